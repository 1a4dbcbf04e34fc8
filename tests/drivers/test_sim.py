from __future__ import annotations

import math
import re
import time
from typing import Any

import numpy as np
import pytest
from scipy import ndimage, special, stats

from tem_live.drivers.protocols import (
    Blanker,
    CameraSettings,
    DoseRateControl,
    HasTruth,
)
from tem_live.drivers.sim import Detector, SimCamera, SimColumn, SimMicroscope
from tem_live.drivers.sim_scenes import Damage, Lattice, Motion, make_scene
from tem_live.drivers.sim_windows import Window
from tem_live.errors import NotConnectedError, OverflowedError, RefusedError
from tests.drivers.conformance import CameraConformance
from tests.drivers.sim_bench import SimBench, Stack, assert_mean, assert_variance

SIDE = 128
GAIN = 10.0
QUIET: dict[str, Any] = {
    "scene": "vacuum",
    "sensor_height_px": SIDE,
    "sensor_width_px": SIDE,
    "specimen_pixel_nm": 0.1,
    "beam_e_per_px_s": 200.0,
    "drift_nm_per_s": (0.0, 0.0),
    "wander_nm": 0.0,
    "gain_counts_per_electron": GAIN,
    "gain_spread": 0.0,
    "mtf_sigma_px": 0.0,
    "dark_e_per_px_s": 0.0,
    "read_noise_e": 0.0,
    "row_noise_e": 0.0,
    "hot_pixels": 0,
    "dead_pixels": 0,
    "xrays_per_frame": 0.0,
    "pedestal_counts": 0.0,
    "buffer_frames": 4096,
    "seed": 7,
}


class Bench(SimBench):
    def __init__(self, **changes: Any) -> None:
        super().__init__(SimCamera(SimCamera.Options(**{**QUIET, **changes})), 0.1)


def neighbours(stack: Stack, axis: int) -> float:
    """Correlation of pixels that are next to each other."""
    flat = stack - stack.mean()
    a, b = (flat[:, :-1], flat[:, 1:]) if axis == 0 else (flat[:, :, :-1], flat[:, :, 1:])
    return float((a * b).mean() / flat.var())


class TestSimCamera(CameraConformance):
    exposure_s = 0.01

    def make_camera(self) -> SimCamera:
        return SimCamera(SimCamera.Options(sensor_height_px=64, sensor_width_px=96))


class TestSimCameraWithReadoutGap(CameraConformance):
    exposure_s = 0.01

    def make_camera(self) -> SimCamera:
        return SimCamera(SimCamera.Options(**{**QUIET, "readout_s": 0.005}))


# --------------------------------------------------------------------------------------- electrons


@pytest.mark.parametrize("dose", [0.05, 1.0, 20.0, 63.0, 100.0, 2000.0])
def test_electrons_are_poisson(dose: float) -> None:
    stack, metas = Bench(beam_e_per_px_s=10 * dose, gain_counts_per_electron=4.0).frames(20)
    assert_mean(stack, dose)
    assert_variance(stack, dose)
    assert metas[0].raw["incident_e_per_px"] == pytest.approx(dose)
    assert abs(neighbours(stack, 0)) < 0.01
    assert abs(neighbours(stack, 1)) < 0.01


def test_same_pixel_of_two_frames_is_independent() -> None:
    stack, _ = Bench().frames(20)
    flat = stack - stack.mean()
    assert abs((flat[:-1] * flat[1:]).mean() / flat.var()) < 0.01


@pytest.mark.parametrize("dose", [2.0, 20.0])
def test_energy_spread_raises_the_variance(dose: float) -> None:
    spread = 0.5
    bench = Bench(beam_e_per_px_s=10 * dose, energy_spread=spread, gain_counts_per_electron=40.0)
    stack, _ = bench.frames(20)
    assert stack.mean() == pytest.approx(dose, rel=0.01)
    assert stack.var() == pytest.approx(dose * (1 + spread**2), rel=0.03)


def test_read_noise() -> None:
    bench = Bench(read_noise_e=2.0, beam_e_per_px_s=0.0, pedestal_counts=100.0)
    stack, _ = bench.frames(20)
    assert_mean(stack, 0.0)
    assert_variance(stack, 2.0**2 + 1 / 12 / GAIN**2)


def test_blur_lowers_the_variance_and_ties_neighbours() -> None:
    sigma = 0.45
    stack, _ = Bench(mtf_sigma_px=sigma).frames(20)
    edges = special.erf(np.array([-1.5, -0.5, 0.5, 1.5]) / (sigma * np.sqrt(2)))
    side, middle, _ = np.diff(edges) / (edges[-1] - edges[0])
    power = middle**2 + 2 * side**2
    assert_mean(stack, 20.0)
    assert stack.var() == pytest.approx(20.0 * power**2, rel=0.02)
    for axis in (0, 1):
        assert neighbours(stack, axis) == pytest.approx(2 * side * middle / power, abs=0.012)


@pytest.mark.parametrize("sigma", [0.0, 0.45, 1.3])
def test_blur_is_the_kernel_along_both_axes(sigma: float) -> None:
    detector = Detector(SimCamera.Options(mtf_sigma_px=sigma))
    margin, shape = detector.margin, (150, 517)
    assert detector.kernel.sum() == pytest.approx(1, rel=1e-6)
    plane = np.random.default_rng(1).random([n + 2 * margin for n in shape], np.float32)
    wide = ndimage.correlate(plane.astype(float), np.outer(detector.kernel, detector.kernel))
    expected = wide[margin : margin + shape[0], margin : margin + shape[1]]
    np.testing.assert_allclose(detector.blurred(plane), expected, rtol=1e-5)


def test_row_noise_is_shared_by_a_row() -> None:
    bench = Bench(row_noise_e=2.0, read_noise_e=1.0, beam_e_per_px_s=0.0, pedestal_counts=500.0)
    stack, _ = bench.frames(40)
    assert neighbours(stack, 1) == pytest.approx(4 / 5, abs=0.05)
    assert neighbours(stack, 0) == pytest.approx(0, abs=0.07)
    assert stack.mean(axis=2).var() == pytest.approx(4.0 + 1 / SIDE, rel=0.11)


@pytest.mark.parametrize("rate", [0.02, 5.0])
@pytest.mark.parametrize("exposure_s", [1.0, 4.0])
def test_dark_current_grows_with_the_exposure(rate: float, exposure_s: float) -> None:
    bench = Bench(dark_e_per_px_s=rate, beam_e_per_px_s=0.0)
    stack, _ = bench.frames(10, CameraSettings(exposure_s))
    assert_mean(stack, rate * exposure_s)
    assert_variance(stack, rate * exposure_s)


def test_without_pedestal_half_of_a_dark_frame_is_clipped() -> None:
    bench = Bench(read_noise_e=1.0, beam_e_per_px_s=0.0)
    stack, _ = bench.frames(10)
    assert stack.min() == 0
    assert_mean(stack == 0, float(stats.norm.cdf(0.5 / GAIN)))


def test_full_pixels_stay_full() -> None:
    bench = Bench(gain_counts_per_electron=1000.0, beam_e_per_px_s=5000.0)
    stack, _ = bench.frames(2)
    assert np.all(stack * 1000.0 == 65535)


def test_gain_pattern_stays_and_has_the_stated_spread() -> None:
    bench = Bench(gain_spread=0.1, beam_e_per_px_s=2e4)
    stack, _ = bench.frames(20)
    pattern = stack.mean(axis=0) / 2e3
    noise = 1 / 2e3 / 20
    assert pattern.var() - noise == pytest.approx(0.01, rel=0.06)
    assert_mean(pattern, 1.0)


def test_hot_pixels_have_their_own_dark_current() -> None:
    bench = Bench(
        hot_pixels=400, hot_e_per_s=1000.0, beam_e_per_px_s=0.0, gain_counts_per_electron=4.0
    )
    stack, _ = bench.frames(10, CameraSettings(0.5))
    hot = Detector(bench.options).hot
    levels = stack.mean(axis=0)
    at_hot = levels[hot[:, 0], hot[:, 1]]
    assert at_hot.mean() == pytest.approx(500.0, rel=0.25)
    levels[hot[:, 0], hot[:, 1]] = 0
    assert not levels.any()
    again, _ = bench.frames(10, CameraSettings(1.0))
    assert again.sum() / stack.sum() == pytest.approx(2, rel=0.01)


def test_dead_pixels_hold_the_pedestal() -> None:
    bench = Bench(dead_pixels=30, beam_e_per_px_s=1000.0, pedestal_counts=50.0)
    stack, _ = bench.frames(3)
    dark = np.argwhere(stack.max(axis=0) <= 0)
    dead = Detector(bench.options).dead
    assert sorted(map(tuple, dark)) == sorted(map(tuple, dead))


def test_xrays_hit_while_the_beam_is_on() -> None:
    bench = Bench(
        xrays_per_frame=50.0, xray_e=1000.0, beam_e_per_px_s=0.01, gain_counts_per_electron=4.0
    )
    stack, _ = bench.frames(40)
    hits = int((stack > 10).sum())
    expected = 40 * 50.0 * np.exp(-0.01)
    assert abs(hits - expected) < 5 * np.sqrt(expected) + 10
    assert stack.sum() == pytest.approx(40 * 50.0 * 1000.0, rel=5 * np.sqrt(2 / 2000))
    bench.beam.set_blanked(True)
    assert not bench.frames(5)[0].any()


# --------------------------------------------------------------------------- the beam and the dose


def test_twice_the_exposure_is_twice_the_electrons() -> None:
    bench = Bench()
    once, twice = (bench.frames(10, CameraSettings(t))[0].mean() for t in (0.1, 0.2))
    assert twice / once == pytest.approx(2, rel=0.005)


def test_twice_the_dose_rate_is_twice_the_electrons() -> None:
    bench = Bench()
    once = bench.frames(10)[0].mean()
    bench.beam.set_dose_rate(2 * bench.beam.dose_rate_e_per_A2_s)
    assert bench.frames(10)[0].mean() / once == pytest.approx(2, rel=0.005)


def test_blanked_frames_hold_dark_only() -> None:
    bench = Bench(dark_e_per_px_s=20.0)
    bench.beam.set_blanked(True)
    stack, metas = bench.frames(10)
    assert_mean(stack, 2.0)
    assert {meta.raw["incident_e_per_px"] for meta in metas} == {0.0}
    assert not bench.camera.truth(metas[0]).any()


def test_frame_that_straddles_a_blank_gets_its_share() -> None:
    bench = Bench()

    def blank(number: int) -> None:
        bench.beam.set_blanked(number >= 4)

    stack, metas = bench.frames(6, amid=blank)
    incident = [meta.raw["incident_e_per_px"] for meta in metas]
    assert incident == pytest.approx([20, 20, 20, 20, 6, 0], abs=1e-3)
    assert_mean(stack[4], incident[4])
    assert bench.camera.truth(metas[4]).mean() == pytest.approx(6, abs=1e-3)


def test_what_falls_into_the_readout_gap_is_in_no_frame() -> None:
    bench = Bench(readout_s=0.1)
    before = bench.beam.true_fluence_e_per_A2
    stack, metas = bench.frames(10)
    assert_mean(stack, 20.0)
    # The specimen has taken it all the same.
    assert bench.beam.true_fluence_e_per_A2 - before == pytest.approx(200.0 * 10 * 0.2, rel=1e-5)
    assert metas[9].raw["fluence_e_per_A2"] - before == pytest.approx(200.0 * 1.85, rel=1e-5)


def test_fluence_is_rate_times_unblanked_time() -> None:
    bench = Bench()
    beam, clock = bench.beam, bench.clock
    began, at_start = clock.now, beam.true_fluence_e_per_A2
    for rate, blanked, seconds in ((100, False, 2), (100, True, 5), (30, True, 1), (30, False, 4)):
        beam.set_dose_rate(rate)
        beam.set_blanked(blanked)
        clock.now += seconds
    assert beam.true_fluence_e_per_A2 - at_start == pytest.approx(200 + 120)
    for after, taken in ((1, 100), (2, 200), (6, 200), (9, 230)):
        assert beam.fluence_at(began + after) - at_start == pytest.approx(taken)


def test_specimen_takes_nothing_before_the_camera_is_open() -> None:
    camera = SimCamera(SimCamera.Options(**QUIET))
    time.sleep(0.01)
    assert camera.microscope.true_fluence_e_per_A2 == 0


# ------------------------------------------------------------------------------- regions and truth


@pytest.mark.parametrize("binning", [2, 4])
def test_binning_sums(binning: int) -> None:
    bench = Bench(pedestal_counts=30.0, read_noise_e=1.0)
    area = binning**2
    stack, metas = bench.frames(20, CameraSettings(0.1, binning))
    assert_mean(stack, 20.0 * area)
    assert_variance(stack, (20.0 + 1.0) * area + 1 / 12 / GAIN**2)
    assert bench.camera.truth(metas[0]).mean() == pytest.approx(20.0 * area, rel=1e-5)


def test_dark_current_and_row_noise_of_binned_pixels() -> None:
    bench = Bench(dark_e_per_px_s=50.0, beam_e_per_px_s=0.0)
    stack, _ = bench.frames(10, CameraSettings(0.1, 2))
    assert_mean(stack, 20.0)
    bench = Bench(row_noise_e=1.0, beam_e_per_px_s=0.0, pedestal_counts=500.0)
    stack, _ = bench.frames(60, CameraSettings(0.1, 2))
    # A binned pixel is the sum of 2 pixels of each of 2 rows: (2 * 1)^2 + (2 * 1)^2.
    assert stack.var() == pytest.approx(8.0, rel=5 * np.sqrt(2 / (60 * SIDE / 2)))


@pytest.mark.parametrize("scene", ["nanoparticles", "lattice", "damage"])
@pytest.mark.parametrize("binning", [1, 2])
def test_region_shows_that_part_of_the_whole(scene: str, binning: int) -> None:
    bench = Bench(scene=scene, mtf_sigma_px=0.45, critical_fluence_e_per_A2=1e9)
    whole = bench.camera.truth(bench.frames(1, CameraSettings(0.1, binning))[1][0])
    roi = (34, 6, 40, 88)
    part = bench.camera.truth(bench.frames(1, CameraSettings(0.1, binning, roi))[1][0])
    top, left, height, width = (n // binning for n in roi)
    np.testing.assert_allclose(part, whole[top : top + height, left : left + width], rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.45])
@pytest.mark.parametrize("scene", ["nanoparticles", "lattice"])
def test_truth_is_the_mean_of_many_frames(scene: str, sigma: float) -> None:
    bench = Bench(scene=scene, mtf_sigma_px=sigma)
    stack, metas = bench.frames(200)
    truth = bench.camera.truth(metas[0])
    np.testing.assert_array_equal(truth, bench.camera.truth(metas[-1]))
    edges = special.erf(np.array([-1.5, -0.5, 0.5, 1.5]) / (max(sigma, 0.1) * np.sqrt(2)))
    power = ((np.diff(edges) / (edges[-1] - edges[0])) ** 2).sum()
    errors = (stack.mean(axis=0) - truth) / np.sqrt(truth * power**2 / 200)
    assert np.abs(errors).max() < 6.5
    assert abs(errors.mean()) < 0.06
    assert errors.var() == pytest.approx(1, abs=0.1)
    assert truth.std() > 0.5


def test_camera_has_truth() -> None:
    assert isinstance(Bench().camera, HasTruth)


def test_brightness_keeps_the_mean_while_the_specimen_moves() -> None:
    bench = Bench(
        scene="nanoparticles",
        mean_transmission=1.0,
        drift_nm_per_s=(0.05, 0.08),
        wander_nm=1.0,
        specimen_pixel_nm=0.2,
        beam_e_per_px_s=1.0,
        mtf_sigma_px=0.45,
    )
    _, metas = bench.frames(30, CameraSettings(10.0))
    shares = [bench.camera.truth(meta).mean() / meta.raw["incident_e_per_px"] for meta in metas]
    assert min(shares) > 0.99
    assert max(shares) < 1.01
    first, last = (bench.camera.truth(meta) for meta in (metas[0], metas[-1]))
    assert np.abs(first - last).mean() > 0.1


# -------------------------------------------------------------------------------------- the scenes


def fringes(scene: Damage, fluence: float, order: int) -> float:
    """Amplitude of the fringes along y and x that fade."""
    window = Window(0, 0, 256, 256)
    shown = scene.transmission(window, 0.0, fluence) - scene.transmission(window, 0.0, 1e9)
    spectrum = np.abs(np.fft.fft2(shown))
    cycles_y, cycles_x = (order * cycles for cycles in scene.fringe_cycles)
    return float(spectrum[cycles_y, 0] + spectrum[0, cycles_x])


@pytest.mark.parametrize("order", [1, 2])
def test_damage_fades_as_stated(order: int) -> None:
    critical = 150.0
    scene = make_scene("damage", (256, 256), 0.1, Motion((0.0, 0.0), 0.0), critical, 3)
    assert isinstance(scene, Damage)
    doses = np.linspace(0, 1.2, 7)
    amplitudes = [fringes(scene, dose * critical, order) for dose in doses]
    slope = np.polyfit(doses, np.log(amplitudes), 1)[0]
    assert slope == pytest.approx(-order, rel=0.06)


def test_damage_is_seen_by_the_camera() -> None:
    bench = Bench(scene="damage", critical_fluence_e_per_A2=40.0)
    _, metas = bench.frames(20)
    spread = [bench.camera.truth(meta).std() for meta in metas]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.95 * spread[0]
    bench.beam.set_blanked(True)
    bench.clock.now += 1000.0
    bench.beam.set_blanked(False)
    # Nothing fades in the dark.
    after = bench.camera.truth(bench.frames(1)[1][0]).std()
    assert after == pytest.approx(spread[-1], rel=0.02)


@pytest.mark.parametrize("time_s", [0.0, 3.7])
def test_lattice_columns_are_where_they_are_said_to_be(time_s: float) -> None:
    side = 256
    scene = make_scene("lattice", (side, side), 0.03, Motion((0.5, 2.0), 0.0), 1e9, 3)
    assert isinstance(scene, Lattice)
    depth = -np.log(scene.transmission(Window(0, 0, side, side), time_s, 0.0))
    places = scene.columns_px(time_s)
    assert len(places) == len(scene.column_depths) > 100
    nearest = np.sort(np.hypot(*(places[:, None] - places).transpose(2, 0, 1)), axis=1)[:, 1]
    inner = np.all((places > 8) & (places < side - 9), axis=1) & (nearest > 8)
    offsets = np.arange(-4, 5)
    errors = []
    for y, x in places[inner]:
        iy, ix = round(y), round(x)
        patch = depth[iy - 4 : iy + 5, ix - 4 : ix + 5]
        patch = np.maximum(patch - np.percentile(patch, 30), 0)
        center = [
            (patch * offsets[:, None]).sum() / patch.sum() + iy,
            (patch * offsets).sum() / patch.sum() + ix,
        ]
        errors.append(np.array(center) - (y, x))
    off = np.array(errors)
    assert len(off) > 80
    assert np.abs(np.median(off, axis=0)).max() < 0.05
    assert np.median(np.hypot(*off.T)) < 0.3


def test_transmission_of_vacuum_is_1() -> None:
    scene = make_scene("vacuum", (32, 32), 0.1, Motion((0.0, 0.0), 0.0), 1.0, 1)
    assert np.all(scene.transmission(Window(-4, 3, 40, 20), 5.0, 100.0) == 1)


@pytest.mark.parametrize("scene", ["nanoparticles", "lattice", "damage"])
def test_scene_is_periodic_and_within_bounds(scene: Any) -> None:
    drift = Motion((0.3, -0.7), 2.0)
    made = make_scene(scene, (64, 96), 0.1, drift, 100.0, 5)
    inside = made.transmission(Window(0, 0, 64, 96), 2.0, 10.0)
    beyond = made.transmission(Window(-64, 96, 64, 96), 2.0, 10.0)
    np.testing.assert_allclose(inside, beyond, rtol=1e-4)
    assert inside.dtype == np.float32
    assert 0 < inside.min() < inside.max() < 1.4


def test_the_film_follows_the_drift_in_sixteenths_of_a_pixel() -> None:
    window, speed = Window(0, 0, 96, 96), 0.1
    moving, still = (
        make_scene("nanoparticles", (96, 96), 0.2, Motion(drift, 0.0), 1.0, 5)
        for drift in ((speed, 0.0), (0.0, 0.0))
    )
    now = still.transmission(window, 0.0, 0.0)
    for pixels in (1, 4):
        # A quarter of a pixel, in which particles go, does not come between.
        shown = moving.transmission(window, pixels / speed, 0.0)
        np.testing.assert_allclose(shown, np.roll(now, pixels, axis=0), rtol=1e-4)
    # Half a step is not shown yet, one step is.
    assert (moving.transmission(window, 0.4 / 16 / speed, 0.0) == now).all()
    assert (moving.transmission(window, 1.0 / 16 / speed, 0.0) != now).mean() > 0.9


@pytest.mark.parametrize("drift", [(0.0, 0.0), (0.02, 0.0)])
def test_what_a_scene_shows_belongs_to_the_caller(drift: tuple[float, float]) -> None:
    scene = make_scene("nanoparticles", (64, 64), 0.2, Motion(drift, 0.0), 1.0, 5)
    window = Window(0, 0, 64, 64)
    first = scene.transmission(window, 0.1, 0.0)
    before = first.copy()
    first *= 0
    np.testing.assert_array_equal(scene.transmission(window, 0.1, 0.0), before)
    part = scene.transmission(Window(3, 5, 20, 30), 0.1, 0.0)
    np.testing.assert_allclose(part, before[3:23, 5:35], rtol=1e-5)


# ----------------------------------------------------------------------------------- repeatability

ALL_NOISE = {
    **{key: value for key, value in QUIET.items() if "sensor" in key},
    "scene": "nanoparticles",
    "buffer_frames": 4096,
}


def raw_frames(seed: int) -> list[bytes]:
    bench = Bench(**{**SimCamera.Options().model_dump(), **ALL_NOISE, "seed": seed})
    return [frame.tobytes() for frame in bench.frames(4)[0]]


def test_same_seed_gives_the_same_frames() -> None:
    first, again, other = raw_frames(1), raw_frames(1), raw_frames(2)
    assert first == again
    assert not set(first) & set(other)
    assert len(set(first)) == 4


def test_late_reader_is_told_how_many_frames_it_lost() -> None:
    bench = Bench(buffer_frames=8)
    state = bench.camera.configure(CameraSettings(0.1))
    buffer = np.empty(state.frame_shape, state.dtype)
    bench.camera.start()
    bench.clock.now += 0.1001
    assert bench.camera.read_into(buffer, 1.0).sequence == 0
    bench.clock.now += 2.0
    with pytest.raises(OverflowedError) as caught:
        bench.camera.read_into(buffer, 1.0)
    (lost,) = re.findall(r"(\d+) frame\(s\) were lost", str(caught.value))
    assert int(lost) == 12
    sequences = [bench.camera.read_into(buffer, 1.0).sequence for _ in range(8)]
    assert sequences == list(range(1 + int(lost), 9 + int(lost)))


def test_reader_within_the_buffer_loses_nothing() -> None:
    bench = Bench(buffer_frames=8)
    state = bench.camera.configure(CameraSettings(0.1))
    buffer = np.empty(state.frame_shape, state.dtype)
    bench.camera.start()
    for first in (0, 8, 16):
        bench.clock.now += 0.8001
        assert [bench.camera.read_into(buffer, 1.0).sequence for _ in range(8)] == [
            *range(first, first + 8)
        ]


# -------------------------------------------------------------------------------------- the column


def column_of(camera: SimCamera, **options: Any) -> SimColumn:
    column = SimColumn(SimColumn.Options(**options), camera)
    column.open()
    return column


def test_column_steers_the_beam() -> None:
    camera = Bench().camera
    column = column_of(camera)
    assert isinstance(column, Blanker)
    assert isinstance(column, DoseRateControl)
    assert column.blanked
    column.set_blanked(False)
    assert not camera.microscope.blanked
    assert column.set_dose_rate(12.5) == 12.5
    assert camera.microscope.dose_rate_e_per_A2_s == column.dose_rate_e_per_A2_s == 12.5


def test_column_can_be_found_unblanked() -> None:
    assert not column_of(Bench().camera, found_blanked=False).blanked


@pytest.mark.parametrize("rate", [-1.0, 1001.0, float("nan"), float("inf")])
def test_column_refuses_a_dose_rate_out_of_range(rate: float) -> None:
    camera = Bench().camera
    column = column_of(camera, max_dose_rate_e_per_A2_s=1000.0)
    before = column.dose_rate_e_per_A2_s
    with pytest.raises(RefusedError, match="dose rate"):
        column.set_dose_rate(rate)
    assert column.dose_rate_e_per_A2_s == before
    assert column.set_dose_rate(1000.0) == 1000.0
    assert column.set_dose_rate(0.0) == 0.0


def test_closed_column_says_so() -> None:
    column = column_of(Bench().camera)
    column.close()
    column.close()
    with pytest.raises(NotConnectedError):
        column.set_blanked(False)
    with pytest.raises(NotConnectedError):
        _ = column.blanked
    with pytest.raises(NotConnectedError):
        column.set_dose_rate(1.0)


def test_column_of_another_camera_is_refused() -> None:
    with pytest.raises(NotConnectedError, match="simulated camera"):
        SimColumn(SimColumn.Options(), object())


def test_a_late_blanker_lets_the_beam_through_for_its_latency() -> None:
    bench = Bench()
    column = column_of(bench.camera, blanker_latency_s=0.25, found_blanked=False)
    beam, clock, before = bench.beam, bench.clock, bench.beam.true_fluence_e_per_A2
    column.set_dose_rate(100.0)
    column.set_blanked(True)
    clock.now += 0.1
    column.set_dose_rate(200.0)
    clock.now += 10
    assert beam.true_fluence_e_per_A2 - before == pytest.approx(100 * 0.1 + 200 * 0.15)
    assert beam.current_A == 0
    # Nobody looked while it was off.
    column.set_blanked(False)
    column.set_blanked(True)
    clock.now += 10
    column.set_blanked(False)
    assert beam.true_fluence_e_per_A2 - before == pytest.approx(40 + 200 * 0.25)
    before += 50
    # Unblanked before the blanker had moved: it was never off.
    column.set_blanked(False)
    clock.now += 1
    column.set_blanked(True)
    clock.now += 0.1
    column.set_blanked(False)
    clock.now += 1
    assert beam.true_fluence_e_per_A2 - before == pytest.approx(40 + 200 * 2.1)


def test_spot_size_halves_the_current() -> None:
    bench = Bench()
    column = column_of(bench.camera, found_blanked=False)
    column.set_dose_rate(100.0)
    current_A = bench.beam.current_A
    assert current_A == pytest.approx(100 * 100 * column.beam_area_nm2 * 1.602176634e-19)
    assert column.set_spot_size(5) == column.spot_size == 5
    assert column.dose_rate_e_per_A2_s == pytest.approx(25.0)
    assert bench.beam.current_A == pytest.approx(current_A / 4)
    with pytest.raises(RefusedError, match="spot size"):
        column.set_spot_size(0)


def test_the_stage_moves_the_image_to_the_right_and_down() -> None:
    bench = Bench(scene="lattice", drift_nm_per_s=(0.0, 0.0), wander_nm=0.0, mtf_sigma_px=0.0)
    column = column_of(bench.camera, found_blanked=False)
    _, (meta, *_) = bench.frames(1)
    before = bench.camera.truth(meta)
    pixel_um = bench.options.specimen_pixel_nm / 1000
    assert column.move_stage(5 * pixel_um, 3 * pixel_um) == column.stage_position_um
    _, (meta, *_) = bench.frames(1)
    after = bench.camera.truth(meta)
    assert np.allclose(after[3:, 5:], before[:-3, :-5], rtol=1e-4)
    assert not np.allclose(after, before, rtol=1e-2)
    for x_um, y_um in ((1001.0, 0.0), (0.0, float("nan"))):
        with pytest.raises(RefusedError, match="stage goes"):
            column.move_stage(x_um, y_um)


def test_a_shifted_beam_leaves_what_it_no_longer_lights_dark() -> None:
    bench = Bench(scene="vacuum", mtf_sigma_px=0.0)
    column = column_of(bench.camera, found_blanked=False)
    radius_nm = np.sqrt(column.beam_area_nm2 / np.pi)
    assert column.set_beam_shift(radius_nm, 0.0) == column.beam_shift_nm
    _, (meta, *_) = bench.frames(1)
    truth = bench.camera.truth(meta)
    # The disc's edge is in the middle of the field, and bent away from the light.
    assert truth[SIDE // 2, : SIDE // 2 - 1].max() == 0
    assert truth[SIDE // 2, SIDE // 2 + 1 :].min() > 0
    assert np.count_nonzero(truth) / truth.size < 0.5
    column.set_beam_shift(0.0, 0.0)
    _, (meta, *_) = bench.frames(1)
    assert bench.camera.truth(meta).min() > 0
    with pytest.raises(RefusedError, match="beam can be shifted"):
        column.set_beam_shift(1e6, 0.0)


def test_an_image_shift_moves_the_specimen_in_the_frame_and_no_beam() -> None:
    bench = Bench(scene="lattice", mtf_sigma_px=0.0)
    column = column_of(bench.camera, found_blanked=False)
    _, (meta, *_) = bench.frames(1)
    before = bench.camera.truth(meta)
    pixel_nm = bench.options.specimen_pixel_nm
    # What was 5 pixels to the right and 3 down is now in the middle; nothing else tells that.
    assert column.set_image_shift(5 * pixel_nm, 3 * pixel_nm) == column.image_shift_nm
    assert column.beam_shift_nm == column.stage_position_um == (0.0, 0.0)
    _, (meta, *_) = bench.frames(1)
    after = bench.camera.truth(meta)
    lit = (before[3:, 5:] > 0) & (after[:-3, :-5] > 0)
    assert lit.mean() > 0.9
    assert np.allclose(after[:-3, :-5][lit], before[3:, 5:][lit], rtol=1e-4)
    # A diameter away it is dark, until the beam comes along.
    far_nm = 2 * np.sqrt(column.beam_area_nm2 / np.pi)
    column.set_image_shift(0.0, far_nm)
    _, (meta, *_) = bench.frames(1)
    assert bench.camera.truth(meta).max() == 0
    column.set_beam_shift(0.0, far_nm)
    _, (meta, *_) = bench.frames(1)
    assert bench.camera.truth(meta).min() > 0
    with pytest.raises(RefusedError, match="image can be shifted"):
        column.set_image_shift(0.0, float("nan"))


def test_only_the_places_in_the_disc_take_a_dose() -> None:
    now = [0.0]
    microscope = SimMicroscope(0.2, 10.0, lambda: now[0], beam_area_nm2=math.pi * 50.0**2)
    microscope.power_on()
    now[0] = 1.0
    microscope.beam_shift_nm = (200.0, 0.0)
    microscope.image_shift_nm = (200.0, 0.0)
    now[0] = 4.0
    assert microscope.place_fluence_e_per_A2(0.0, 0.0) == pytest.approx(10.0)
    assert microscope.place_fluence_e_per_A2(200.0, 49.0) == pytest.approx(30.0)
    assert microscope.place_fluence_e_per_A2(200.0, 51.0) == 0.0
    microscope.stage_um = (0.2, 0.0)
    now[0] = 5.0
    # The specimen has gone to the right: the beam is on what was in the middle.
    assert microscope.place_fluence_e_per_A2(0.0, 0.0) == pytest.approx(20.0)
    assert microscope.true_fluence_e_per_A2 == pytest.approx(50.0)


def test_below_its_magnification_the_beam_lights_the_larger_field() -> None:
    bench = Bench()
    column = column_of(bench.camera, found_blanked=False)
    area_nm2 = column.beam_area_nm2
    column.set_magnification(column.magnification / 4)
    assert column.beam_area_nm2 == pytest.approx(16 * area_nm2)
    column.set_magnification(column.magnification * 8)
    assert column.beam_area_nm2 == pytest.approx(area_nm2)


def test_magnification_enlarges_the_image_and_thins_its_dose() -> None:
    bench = Bench(scene="lattice", drift_nm_per_s=(0.0, 0.0), wander_nm=0.0, mtf_sigma_px=0.0)
    column = column_of(bench.camera, found_blanked=False)
    _, (meta, *_) = bench.frames(1)
    unmagnified = bench.camera.truth(meta)
    assert column.set_magnification(2 * column.magnification) == column.magnification
    pixel_nm = bench.options.specimen_pixel_nm / 2
    assert column.pixel_size_nm == pytest.approx(pixel_nm)
    assert bench.camera.configure(CameraSettings(0.1)).pixel_size_nm == pytest.approx(pixel_nm)
    magnified, (meta, *_) = bench.frames(4)
    # The middle quarter of the field before, twice as large.
    truth = bench.camera.truth(meta)
    assert truth.mean() == pytest.approx(magnified.mean(), rel=0.01)
    quarter = slice(SIDE // 4, 3 * SIDE // 4)
    assert truth.mean() == pytest.approx(unmagnified[quarter, quarter].mean() / 4, rel=0.02)
    binned = truth.reshape(SIDE // 2, 2, SIDE // 2, 2).sum(axis=(1, 3))
    assert np.corrcoef(binned.ravel(), unmagnified[quarter, quarter].ravel())[0, 1] > 0.95
    with pytest.raises(RefusedError, match="magnification"):
        column.set_magnification(1.0)
