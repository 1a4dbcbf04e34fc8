from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tem_live.drivers.protocols import CameraSettings
from tem_live.drivers.sim import SimCamera
from tem_live.errors import CalibrationError
from tem_live.instrument import make_camera
from tem_live.photon_transfer import GainEstimate, NoisePoint, estimate_gain, noise_points
from tem_live.profiles import load_profile

PAIR = Path(__file__).parents[2].parent / "shared" / "data" / "lowdose_pair"
DOSES = (0.0, 4.0, 10.0, 20.0)
GAIN = 40.0
EXPOSURE_S = 0.002


def frames(camera: SimCamera, dose: float, count: int) -> list[np.ndarray]:
    """Frames at a dose in e-/px, from the simulated camera as anyone would take them."""
    state = camera.configure(CameraSettings(EXPOSURE_S))
    area_A2 = (10 * camera.options.specimen_pixel_nm) ** 2
    camera.microscope.set_dose_rate(dose / EXPOSURE_S / area_A2)
    camera.start(count)
    found = []
    for _ in range(count):
        found.append(np.zeros(state.frame_shape, state.dtype))
        camera.read_into(found[-1], 5.0)
    camera.stop()
    return found


def points(
    doses: tuple[float, ...] = DOSES, pairs: int = 1, correct: bool = False, **options: Any
) -> list[NoisePoint]:
    still: dict[str, Any] = {
        "drift_nm_per_s": (0.0, 0.0), "wander_nm": 0.0, "scene": "vacuum",
        "sensor_height_px": 384, "sensor_width_px": 384,
    }  # fmt: skip
    camera = SimCamera(SimCamera.Options(**{**still, "gain_counts_per_electron": GAIN, **options}))
    camera.open()
    found = []
    for dose in doses:
        taken = frames(camera, dose, 2 * pairs)
        for a, b in zip(taken[::2], taken[1::2], strict=True):
            found += noise_points(
                a, b, saturation_counts=65535, dark=dose == 0, correct_clipping=correct
            )
    camera.close()
    return found


@pytest.mark.parametrize(
    ("scene", "mtf_sigma_px"),
    [("vacuum", 0.0), ("vacuum", 0.45), ("nanoparticles", 0.45), ("nanoparticles", 0.9)],
)
def test_counts_per_electron_of_the_simulated_camera(scene, mtf_sigma_px):
    found = estimate_gain(
        points(
            scene=scene,
            mtf_sigma_px=mtf_sigma_px,
            seed=3,
            sensor_height_px=512,
            sensor_width_px=512,
        )
    )
    assert found.counts_per_electron == pytest.approx(GAIN, rel=0.05)
    low, high = found.interval
    assert low < found.counts_per_electron < high
    assert high - low < 0.2 * GAIN
    assert any("excess noise is 1" in text for text in found.assumptions)
    if mtf_sigma_px:
        # What a plain ratio of variance and mean would have said.
        assert found.plain < 0.75 * GAIN


def test_offset_and_read_noise_come_from_the_dark_pair():
    found = estimate_gain(points(doses=(0, 5, 20), read_noise_e=0.7, pedestal_counts=100))
    assert found.offset_counts == pytest.approx(100, abs=1)
    assert found.read_noise_counts == pytest.approx(0.7 * GAIN, rel=0.05)
    assert isinstance(found, GainEstimate)
    assert [point.dark for point in found.points] == [True, False, False]


@pytest.mark.parametrize("spread", [0.3, 0.8])
def test_known_excess_noise_is_divided_out(spread):
    taken = points(energy_spread=spread, seed=2)
    known = estimate_gain(taken, excess_noise=1 + spread**2)
    assert known.counts_per_electron == pytest.approx(GAIN, rel=0.05)
    unknown = estimate_gain(taken)
    assert unknown.counts_per_electron == pytest.approx(GAIN * (1 + spread**2), rel=0.05)


def test_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(40):
        taken = []
        for dose in (0, 2, 6):
            a, b = (
                GAIN * (rng.poisson(dose, (128, 128)) + rng.normal(0, 1, (128, 128))) for _ in "ab"
            )
            taken += noise_points(a, b, dark=dose == 0)
        low, high = estimate_gain(taken).interval
        held += low < GAIN < high
    # 38 expected of 40.
    assert held >= 34


def test_noise_of_rows_is_recognised_and_left_out():
    found = estimate_gain(points(row_noise_e=0.5, pedestal_counts=400, seed=4))
    assert found.counts_per_electron == pytest.approx(GAIN, rel=0.05)
    assert found.points[0].row_noise_counts == pytest.approx(0.5 * GAIN, rel=0.15)
    assert found.points[0].column_noise_counts == 0
    assert any("whole rows" in text for text in found.assumptions)


def test_clipping_is_recognised_refused_and_on_demand_corrected():
    camera = {"pedestal_counts": 0.0, "read_noise_e": 1.5, "mtf_sigma_px": 0.45, "seed": 5}
    doses = (2.0, 4.0, 10.0, 20.0)
    with pytest.raises(CalibrationError, match=r"% of the pixels are clipped at 0 counts"):
        points(doses=doses, **camera)
    found = estimate_gain(points(doses=doses, correct=True, **camera), offset_counts=0.0)
    assert found.counts_per_electron == pytest.approx(GAIN, rel=0.05)
    assert any("clipped and corrected" in text for text in found.assumptions)


def test_zeros_of_a_counting_camera_are_no_clipping():
    rng = np.random.default_rng(1)
    taken = []
    for dose in (0.05, 0.2, 1.0):
        a, b = (rng.poisson(dose, (256, 256)) for _ in "ab")
        taken += noise_points(a, b, floor_counts=-np.inf)
    found = estimate_gain(taken, offset_counts=0.0, read_noise_counts=0.0)
    assert found.counts_per_electron == pytest.approx(1.0, rel=0.05)


def test_single_dose_needs_offset_and_read_noise():
    taken = points(doses=(10.0,), pairs=2, scene="vacuum")
    with pytest.raises(CalibrationError, match="several doses"):
        estimate_gain(taken)
    found = estimate_gain(taken, offset_counts=100.0, read_noise_counts=0.7 * GAIN)
    assert found.counts_per_electron == pytest.approx(GAIN, rel=0.05)


def test_contrast_of_one_pair_serves_as_several_doses():
    rng = np.random.default_rng(2)
    level = np.repeat(np.linspace(1, 20, 8), 64)[:, None] * np.ones(512)
    a, b = (GAIN * (rng.poisson(level) + rng.normal(0, 1, level.shape)) for _ in "ab")
    found = estimate_gain(noise_points(a, b, classes=8))
    assert found.counts_per_electron == pytest.approx(GAIN, rel=0.05)


def test_motion_between_the_frames_is_told():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:256, 0:256]
    taken = []
    for dose in (5, 20):
        a, b = (
            GAIN * rng.poisson(dose * (1 + 0.3 * np.cos(2 * np.pi * (2 * x + y + shift) / 256)))
            for shift in (0, 40)
        )
        taken += noise_points(a, b)
    found = estimate_gain(taken)
    assert found.counts_per_electron == pytest.approx(GAIN, rel=0.1)
    assert any("something moved" in text for text in found.assumptions)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((64, 64)), np.ones((64, 32)), "same size"),
        (np.ones((8, 8)), np.ones((8, 8)), "at least 64"),
        (np.arange(4096.0).reshape(64, 64), np.arange(4096.0).reshape(64, 64), "no noise"),
    ],
)
def test_frames_that_cannot_serve(a, b, message):
    with pytest.raises(CalibrationError, match=message):
        noise_points(a, b)


def test_saturated_frames_are_refused():
    full = np.full((64, 64), 65535.0)
    with pytest.raises(CalibrationError, match="saturated"):
        noise_points(full, full, saturation_counts=65535)


def test_excess_noise_under_one_is_refused():
    with pytest.raises(CalibrationError, match="impossible"):
        estimate_gain([], excess_noise=0.5)
    with pytest.raises(CalibrationError, match="with beam"):
        estimate_gain([])


@pytest.mark.peer
@pytest.mark.parametrize("photons_per_count", [1.0, 0.25])
def test_micro_managers_demo_camera(photons_per_count):
    pytest.importorskip("pymmcore")
    pytest.importorskip("mm_test_adapters")
    camera: Any = make_camera(load_profile("mm-demo"))
    camera.open()
    try:
        core = camera.core
        core.setProperty("Camera", "Photon Conversion Factor", str(photons_per_count))
        taken = []
        for flux in (2.0, 5.0, 20.0):
            core.setProperty("Camera", "Photon Flux", str(flux))
            state = camera.configure(CameraSettings(0.02))
            camera.start(2)
            a, b = (np.zeros(state.frame_shape, state.dtype) for _ in "ab")
            camera.read_into(a, 5.0)
            camera.read_into(b, 5.0)
            camera.stop()
            taken += noise_points(a, b)
    finally:
        camera.close()
    found = estimate_gain(taken, offset_counts=99.0)
    assert found.counts_per_electron == pytest.approx(1 / photons_per_count, rel=0.05)


def real_pair() -> tuple[np.ndarray, np.ndarray]:
    if not PAIR.is_dir():
        pytest.skip("the real low-dose pair is not here")
    tifffile = pytest.importorskip("tifffile")
    return tifffile.imread(PAIR / "frame_1.tif"), tifffile.imread(PAIR / "frame_2.tif")


def test_real_pair_is_refused_and_says_why():
    a, b = real_pair()
    with pytest.raises(CalibrationError, match=r"13\.\d% of the pixels are clipped at 0"):
        noise_points(a, b)
    taken = noise_points(a, b, classes=6, correct_clipping=True)
    # One dose and little contrast: the slope is right and far too uncertain to be handed out.
    with pytest.raises(CalibrationError, match=r"too close .* \(39\.\d ± 4[01] counts\)"):
        estimate_gain(taken, offset_counts=0.0)


def test_why_plain_photon_transfer_gives_119_on_the_real_pair():
    a, b = (frame.astype(float) for frame in real_pair())
    plain = (a - b).var() / (a + b).mean()
    assert plain == pytest.approx(117, abs=3)
    # Unclipped, the noise is nearly the same where there are half as many electrons: most of it
    # is read noise, which the plain ratio takes for electrons.
    taken = noise_points(a, b, classes=6, correct_clipping=True)
    dark = [point for point in taken if point.mean_counts < 100]
    film = [point for point in taken if point.mean_counts > 180]
    assert np.mean([p.mean_counts for p in film]) > 2 * np.mean([p.mean_counts for p in dark])
    variance = float(np.mean([p.variance_counts2 for p in film]))
    assert np.mean([p.variance_counts2 for p in dark]) > 0.8 * variance
    electrons = 44.0 * float(np.mean([p.mean_counts for p in film]))
    read_noise_e = np.sqrt(variance - electrons) / 44.0
    assert 2.9 < read_noise_e < 3.4
