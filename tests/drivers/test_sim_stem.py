from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tem_live.drivers.protocols import (
    Blanker,
    Camera,
    CameraSettings,
    Column,
    DoseRateControl,
    HasTruth,
    Simulated,
)
from tem_live.drivers.sim import SimCamera
from tem_live.drivers.sim_stem import (
    ELECTRONS_PER_S_PER_PA,
    SimStem,
    SimStemColumn,
    Timing,
    displacements,
    probed,
    trail,
)
from tem_live.errors import NotConnectedError, OverflowedError, RefusedError
from tests.drivers.conformance import CameraConformance
from tests.drivers.sim_bench import SimBench, Stack, assert_mean, assert_variance

SIDE = 128
GAIN = 20.0
DWELL_S = 1e-6
FLY_BACK_S = 20e-6
FIELD_A2 = (SIDE * 1.0) ** 2
INCIDENT = 20.0
QUIET: dict[str, Any] = {
    "scene": "vacuum",
    "scan_height_px": SIDE,
    "scan_width_px": SIDE,
    "specimen_pixel_nm": 0.1,
    "beam_pA": INCIDENT / DWELL_S / ELECTRONS_PER_S_PER_PA,
    "detector": "bright-field",
    "drift_nm_per_s": (0.0, 0.0),
    "wander_nm": 0.0,
    "fly_back_s": FLY_BACK_S,
    "settling_s": 0.0,
    "jitter_x_px": 0.0,
    "jitter_y_px": 0.0,
    "flicker": 0.0,
    "decay_s": 0.0,
    "energy_spread": 0.0,
    "amplifier_noise_e": 0.0,
    "row_noise_e": 0.0,
    "gain_counts_per_electron": GAIN,
    "pedestal_counts": 0.0,
    "buffer_frames": 4096,
    "seed": 7,
}
EXPOSURE_S = SIDE * (SIDE * DWELL_S + FLY_BACK_S)


class Bench(SimBench):
    def __init__(self, **changes: Any) -> None:
        super().__init__(SimStem(SimStem.Options(**{**QUIET, **changes})), EXPOSURE_S)


def tied(stack: Stack, axis: int) -> float:
    """Correlation of pixels that are next to each other along an axis of the image."""
    flat = np.moveaxis(stack - stack.mean(), axis + 1, 0)
    return float((flat[:-1] * flat[1:]).mean() / flat.var())


class TestSimStem(CameraConformance):
    exposure_s = 0.01

    def make_camera(self) -> SimStem:
        return SimStem(SimStem.Options(scan_height_px=48, scan_width_px=64, fly_back_s=2e-5))


class TestSimStemOfALattice(CameraConformance):
    exposure_s = 0.01

    def make_camera(self) -> SimStem:
        return SimStem(
            SimStem.Options(**{**QUIET, "scene": "lattice", "scan_height_px": 40, "fly_back_s": 0})
        )


# ------------------------------------------------------------------------------------ time and dose


def test_it_is_what_the_program_asks_for() -> None:
    camera = Bench().camera
    assert isinstance(camera, Camera)
    assert isinstance(camera, HasTruth)
    column = SimStemColumn(SimStemColumn.Options(), camera)
    column.open()
    for protocol in (Column, Blanker, DoseRateControl, Simulated):
        assert isinstance(column, protocol)


def test_exposure_is_lines_of_fly_back_and_dwell() -> None:
    bench = Bench()
    state = bench.camera.configure(CameraSettings(EXPOSURE_S))
    assert state.exposure_s == pytest.approx(128 * (128 * 1e-6 + 20e-6), abs=1e-9)
    assert state.frame_interval_s == state.exposure_s
    _, metas = bench.frames(1)
    assert metas[0].raw["dwell_s"] == pytest.approx(DWELL_S)
    low, high = bench.camera.capabilities.exposure_range_s
    assert low == pytest.approx(128 * (128 * 5e-8 + 20e-6))
    assert high == pytest.approx(128 * (128 * 1e-3 + 20e-6))
    for limit in (low, high):
        assert bench.camera.configure(CameraSettings(limit)).exposure_s == pytest.approx(limit)


@pytest.mark.parametrize("factor", [0.05, 1.0, 10.0])
def test_electrons_are_poisson_of_current_times_dwell(factor: float) -> None:
    bench = Bench(beam_pA=factor * QUIET["beam_pA"], gain_counts_per_electron=4.0)
    stack, metas = bench.frames(20)
    assert metas[0].raw["incident_e_per_px"] == pytest.approx(factor * INCIDENT, rel=1e-5)
    assert_mean(stack, factor * INCIDENT)
    assert_variance(stack, factor * INCIDENT)
    assert abs(tied(stack, 0)) < 0.01
    assert abs(tied(stack, 1)) < 0.01


def test_twice_the_dwell_time_is_twice_the_electrons() -> None:
    stack, _ = Bench().frames(10, CameraSettings(SIDE * (SIDE * 2 * DWELL_S + FLY_BACK_S)))
    assert_mean(stack, 2 * INCIDENT)


def test_the_specimen_takes_the_fly_back_too() -> None:
    bench = Bench()
    before = bench.beam.true_fluence_e_per_A2
    bench.frames(5)
    taken = bench.beam.true_fluence_e_per_A2 - before
    line = (SIDE * DWELL_S + FLY_BACK_S) / (SIDE * DWELL_S)
    # A pixel is 1 Å², so that 20 electrons per pixel are 20 per Å².
    assert taken == pytest.approx(5 * INCIDENT * line, rel=1e-3)


def test_blanking_amid_a_frame_leaves_the_later_lines_dark() -> None:
    bench = Bench(pedestal_counts=50.0)

    def blank(number: int) -> None:
        bench.beam.set_blanked(number >= 1)

    stack, metas = bench.frames(3, amid=blank)
    first_dark = int(np.ceil(0.3 * SIDE))
    assert_mean(stack[0], INCIDENT)
    assert_mean(stack[1, : first_dark - 1], INCIDENT)
    assert not stack[1, first_dark:].any()
    assert not stack[2].any()
    assert metas[1].raw["incident_e_per_px"] == pytest.approx(0.3 * INCIDENT, rel=0.03)
    truth = bench.camera.truth(metas[1])
    assert not truth[first_dark:].any()
    assert truth[: first_dark - 1] == pytest.approx(INCIDENT, rel=1e-5)
    assert not bench.camera.truth(metas[2]).any()


@pytest.mark.parametrize(("blanked", "share"), [("fly-back", 1.0), ("first half", 0.5)])
def test_a_line_gets_the_electrons_of_its_own_pixels_time(blanked: str, share: float) -> None:
    bench = Bench()
    line_s = SIDE * DWELL_S + FLY_BACK_S
    half_s = {"fly-back": 0.0, "first half": SIDE * DWELL_S / 2}[blanked]

    def blank(number: int) -> None:
        begin = bench.clock.now - 0.3 * EXPOSURE_S + 50 * line_s
        for at_s, off in ((begin, True), (begin + FLY_BACK_S + half_s, False)):
            bench.clock.now = at_s
            bench.beam.set_blanked(off)

    _, metas = bench.frames(1, amid=blank)
    truth = bench.camera.truth(metas[0])[:, 0]
    assert truth[50] == pytest.approx(share * INCIDENT, rel=1e-4)
    assert np.delete(truth, 50) == pytest.approx(INCIDENT, rel=1e-4)


def test_frames_are_dated_by_their_middle() -> None:
    bench = Bench()
    before = bench.beam.true_fluence_e_per_A2
    _, metas = bench.frames(3)
    middles = (np.arange(3) + 0.5) * EXPOSURE_S
    assert [meta.raw["specimen_time_s"] for meta in metas] == pytest.approx(middles)
    rate = bench.beam.dose_rate_e_per_A2_s
    taken = [meta.raw["fluence_e_per_A2"] - before for meta in metas]
    assert taken == pytest.approx(rate * middles, rel=1e-4)
    # The specimen's age goes on with the next series.
    assert bench.frames(1)[1][0].raw["specimen_time_s"] == pytest.approx(3.5 * EXPOSURE_S)


def test_same_calls_give_the_same_frames() -> None:
    noisy = {"scene": "lattice", "jitter_x_px": 1.0, "flicker": 0.02, "decay_s": 1e-6}
    one, two = (Bench(**noisy).frames(3)[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (one[0] != one[1]).any()
    assert (Bench(**noisy, seed=8).frames(3)[0] != one).any()


def test_slow_reader_loses_frames() -> None:
    bench = Bench(buffer_frames=2)
    state = bench.camera.configure(CameraSettings(EXPOSURE_S))
    bench.camera.start()
    bench.clock.now += 5.5 * state.frame_interval_s
    buffer = np.empty(state.frame_shape, state.dtype)
    with pytest.raises(OverflowedError, match=r"3 frame\(s\) were lost"):
        bench.camera.read_into(buffer, 0.1)
    assert bench.camera.read_into(buffer, 0.1).sequence == 3


# ------------------------------------------------------------------------------------------- column


def test_column_steers_current_and_blanker() -> None:
    camera = Bench().camera
    column = SimStemColumn(SimStemColumn.Options(max_dose_rate_e_per_A2_s=1e5), camera)
    with pytest.raises(NotConnectedError):
        _ = column.blanked
    column.open()
    assert column.blanked
    assert column.simulated
    column.set_blanked(False)
    assert not camera.microscope.blanked
    assert column.beam_pA == pytest.approx(QUIET["beam_pA"])
    assert column.set_dose_rate(1000.0) == 1000.0
    assert column.beam_pA == pytest.approx(1000.0 * FIELD_A2 / ELECTRONS_PER_S_PER_PA)
    for wrong in (-1.0, 2e5, float("nan")):
        with pytest.raises(RefusedError, match="out of range"):
            column.set_dose_rate(wrong)
    column.close()
    with pytest.raises(NotConnectedError):
        column.set_blanked(True)


def test_column_refuses_another_camera() -> None:
    with pytest.raises(NotConnectedError, match="sim-stem"):
        SimStemColumn(SimStemColumn.Options(), SimCamera(SimCamera.Options()))


# ----------------------------------------------------------------------------------------- detector


def test_energy_spread_raises_the_variance() -> None:
    stack, _ = Bench(energy_spread=0.5, gain_counts_per_electron=100.0).frames(20)
    assert stack.mean() == pytest.approx(INCIDENT, rel=0.005)
    assert stack.var() == pytest.approx(INCIDENT * 1.25, rel=0.03)


def test_amplifier_noise_is_white() -> None:
    bench = Bench(amplifier_noise_e=2.0, beam_pA=0.0, pedestal_counts=500.0)
    stack, _ = bench.frames(20)
    assert_mean(stack, 0.0)
    assert_variance(stack, 4.0 + 1 / 12 / GAIN**2)
    assert abs(tied(stack, 0)) < 0.01
    assert abs(tied(stack, 1)) < 0.01


def test_row_noise_is_shared_by_a_line() -> None:
    bench = Bench(row_noise_e=2.0, beam_pA=0.0, pedestal_counts=500.0)
    stack, _ = bench.frames(40)
    assert np.ptp(stack, axis=2).max() == 0
    assert stack.var() == pytest.approx(4.0, rel=5 * np.sqrt(2 / (40 * SIDE)))
    assert tied(stack, 0) == pytest.approx(0, abs=5 / np.sqrt(40 * SIDE))


def test_flicker_scales_lines() -> None:
    bench = Bench(flicker=0.05, beam_pA=100 * QUIET["beam_pA"])
    lines = bench.frames(40)[0].mean(axis=2)
    assert_mean(lines, 100 * INCIDENT)
    shot = 1 / (100 * INCIDENT * SIDE)
    assert (lines / 2000).var() - shot == pytest.approx(0.05**2, rel=5 * np.sqrt(2 / (40 * SIDE)))


@pytest.mark.parametrize("ratio", [0.3, 2.0])
def test_trail_keeps_the_mean_and_ties_a_line(ratio: float) -> None:
    stack, _ = Bench(decay_s=ratio * DWELL_S).frames(20)
    c0, c1, q = trail(ratio * DWELL_S, DWELL_S)
    assert c0 + c1 / (1 - q) == pytest.approx(1)
    power = c0**2 + c1**2 / (1 - q * q)
    next_one = (c0 * c1 + c1 * c1 * q / (1 - q * q)) / power
    assert stack.mean() == pytest.approx(INCIDENT, rel=0.003)
    assert stack[:, :, 0].mean() == pytest.approx(INCIDENT, rel=0.03)
    assert stack.var() == pytest.approx(INCIDENT * power, rel=0.03)
    assert stack[:, :, 0].var() == pytest.approx(INCIDENT * power, rel=0.15)
    assert tied(stack, 1) == pytest.approx(next_one, abs=0.012)
    assert abs(tied(stack, 0)) < 0.012


def test_full_pixels_stay_full() -> None:
    stack, _ = Bench(gain_counts_per_electron=10_000.0).frames(2)
    assert stack.max() * 10_000 == 65535


# ---------------------------------------------------------------------------- where the probe is


def timing(height: int = 2000, width: int = 64) -> Timing:
    return Timing(height, width, FLY_BACK_S, DWELL_S)


def moved(scan: Timing, drift_px_s: tuple[float, float] = (0.0, 0.0), **changes: Any) -> Any:
    options = SimStem.Options(**{**QUIET, **changes})
    return displacements(options, scan, drift_px_s, np.random.default_rng(3))


def test_a_perfect_scan_is_nowhere_else() -> None:
    dy, dx = moved(timing())
    assert not dy.any()
    assert not dx.any()


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_jitter_is_tied_from_line_to_line(rho: float) -> None:
    scan = timing(40_000, 16)
    dy, dx = moved(scan, jitter_x_px=0.8, jitter_y_px=0.3, jitter_correlation=rho)
    assert np.ptp(dx, axis=1).max() == 0
    dx = dx[:, 0]
    # An effective number of samples that counts the correlation.
    error = np.sqrt(2 * (1 + rho**2) / (1 - rho**2) / dx.size)
    for series, sigma in ((dy, 0.3), (dx, 0.8)):
        assert series.var() / sigma**2 == pytest.approx(1, abs=5 * error)
        for lag in (1, 4):
            product = (series[lag:] * series[:-lag]).mean() / sigma**2
            assert product == pytest.approx(rho**lag, abs=5 * error)
    assert (dx * dy).mean() / 0.24 == pytest.approx(0, abs=5 * error)


def test_fly_back_is_the_coils_exponential() -> None:
    scan = timing(4, 64)
    _, dx = moved(scan, settling_s=10e-6)
    after_s = FLY_BACK_S + (np.arange(64) + 0.5) * DWELL_S
    np.testing.assert_allclose(dx, np.tile(64 * np.exp(-after_s / 10e-6), (4, 1)))


def test_drift_goes_on_line_by_line() -> None:
    scan = timing(100, 64)
    dy, dx = moved(scan, (30.0, -50.0))
    since_s = (np.arange(100) - 49.5) * scan.line_s
    np.testing.assert_allclose(dy, -30.0 * since_s, atol=1e-6)
    np.testing.assert_allclose(dx[:, 7], 50.0 * since_s, atol=1e-6)


def test_probing_where_the_pixels_are_changes_nothing() -> None:
    plane = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    y, x = np.arange(20.0)[:, None], np.arange(30.0)[None, :]
    np.testing.assert_allclose(probed(plane, y, x), plane, atol=1e-5)


# -------------------------------------------------------------------------------------------- truth


@pytest.mark.parametrize("detector", ["dark-field", "bright-field"])
def test_truth_is_the_mean_of_a_perfect_scan(detector: str) -> None:
    bench = Bench(scene="nanoparticles", detector=detector, collected=0.6, background=0.05)
    stack, metas = bench.frames(100)
    truth = bench.camera.truth(metas[0])
    np.testing.assert_array_equal(truth, bench.camera.truth(metas[-1]))
    errors = (stack.mean(axis=0) - truth) / np.sqrt(truth / 100)
    assert np.abs(errors).max() < 7
    assert abs(errors.mean()) < 0.06
    assert errors.var() == pytest.approx(1, abs=0.1)
    assert truth.std() > 0.5


def test_dark_field_is_what_bright_field_lacks() -> None:
    bright, dark = (
        Bench(scene="nanoparticles", detector=detector, collected=0.6, background=0.05)
        for detector in ("bright-field", "dark-field")
    )
    left = bright.camera.truth(bright.frames(1)[1][0]) / INCIDENT
    seen = dark.camera.truth(dark.frames(1)[1][0]) / INCIDENT
    np.testing.assert_allclose(seen, 0.6 * np.maximum(1 - left, 0) + 0.05, atol=1e-4)


def test_vacuum_is_the_background_in_dark_field() -> None:
    stack, _ = Bench(detector="dark-field", background=0.1).frames(10)
    assert_mean(stack, 0.1 * INCIDENT)
    assert_variance(stack, 0.1 * INCIDENT)


def test_jittered_frames_show_the_truth_beside_its_place() -> None:
    jitter = {"scene": "lattice", "jitter_x_px": 1.0, "jitter_correlation": 0.5}
    bench = Bench(**jitter, specimen_pixel_nm=0.03, beam_pA=50 * QUIET["beam_pA"])
    stack, metas = bench.frames(1)
    frame, truth = stack[0], bench.camera.truth(metas[0])
    gradient = np.gradient(truth, axis=1)
    shifts = ((frame - truth) * gradient).sum(axis=1) / (gradient**2).sum(axis=1)
    assert 0.6 < shifts.std() < 1.3
    # Lines are moved, and their mean over the whole width stays.
    assert frame.mean() == pytest.approx(truth.mean(), rel=0.01)


def test_specimen_drifts_within_the_frame_and_on() -> None:
    frame_nm = 2.0 * 0.1
    bench = Bench(scene="nanoparticles", drift_nm_per_s=(0.0, frame_nm / EXPOSURE_S))
    _, metas = bench.frames(2)
    one, two = (bench.camera.truth(meta) for meta in metas)
    # Two pixels a frame along x; the scene is periodic.
    np.testing.assert_allclose(np.roll(one, 2, axis=1), two, atol=0.5)
    assert np.abs(one - two).max() > 2


@pytest.mark.parametrize("axis", [0, 1])
def test_drift_within_a_frame_goes_the_way_of_the_specimen(axis: int) -> None:
    speed_nm_s = 1.0 * 0.03 / EXPOSURE_S
    drift = {0: (speed_nm_s, 0.0), 1: (0.0, speed_nm_s)}[axis]
    bench = Bench(
        scene="lattice",
        specimen_pixel_nm=0.03,
        drift_nm_per_s=drift,
        beam_pA=50 * QUIET["beam_pA"],
    )
    stack, metas = bench.frames(8)
    truths = np.stack([bench.camera.truth(meta) for meta in metas])
    slopes = np.gradient(truths, axis=axis + 1)
    # A pixel in a frame: the last lines see it half a pixel further on, the first half before. One
    # frame is uncertain by 0.03.
    for lines, expected in ((slice(2, 34), -0.5 + 18 / SIDE), (slice(94, 126), 0.5 - 18 / SIDE)):
        shown, still, gradient = stack[:, lines], truths[:, lines], slopes[:, lines]
        shift = -((shown - still) * gradient).sum() / (gradient**2).sum()
        assert shift == pytest.approx(expected, abs=0.08)


def test_damage_fades_with_what_was_taken() -> None:
    bench = Bench(scene="damage", critical_fluence_e_per_A2=40.0)
    _, metas = bench.frames(8)
    spread = [bench.camera.truth(meta).std() for meta in metas]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.9 * spread[0]
