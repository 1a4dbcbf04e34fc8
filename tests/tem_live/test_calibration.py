from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tem_live.calibration import Calibrator, Reference, default_path, find_defects, make_gain
from tem_live.errors import CalibrationError

SHAPE = (40, 50)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def plane() -> np.ndarray:
    return np.zeros(SHAPE, np.float32)


def test_counts_become_electrons():
    raw = np.full(SHAPE, 300, np.uint16)
    out = Calibrator(np, SHAPE, counts_per_electron=40, offset_counts=100).apply(raw, plane())
    assert np.allclose(out, 5.0)


def test_counts_below_the_pedestal_stay_negative():
    raw = np.full(SHAPE, 90, np.uint16)
    out = Calibrator(np, SHAPE, 10, offset_counts=100).apply(raw, plane())
    assert np.allclose(out, -1.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.int32])
def test_every_camera_dtype(dtype):
    raw = np.full(SHAPE, 50, dtype)
    out = Calibrator(np, SHAPE, 10, offset_counts=10).apply(raw, plane())
    assert np.allclose(out, 4.0)


def test_dark_and_gain_references_undo_a_sensor(rng: np.random.Generator):
    dark = rng.normal(100, 5, SHAPE).astype(np.float32)
    response = rng.normal(1, 0.05, SHAPE)
    gain = make_gain(dark + 4000 * response, dark)
    raw = (dark + 200 * response).astype(np.float32)
    out = Calibrator(np, SHAPE, 40, dark=dark, gain=gain).apply(raw, plane())
    assert np.allclose(out, 5.0 * np.median(response), rtol=1e-3)


def test_mean_electrons_is_the_mean_of_the_calibrated_frame(rng: np.random.Generator):
    dark = rng.normal(100, 5, SHAPE).astype(np.float32)
    raw = rng.poisson(300, SHAPE).astype(np.uint16)
    calibrator = Calibrator(np, SHAPE, 40, dark=dark)
    assert calibrator.mean_electrons(raw) == pytest.approx(
        float(calibrator.apply(raw, plane()).mean()), rel=1e-4
    )


def test_defects_take_the_mean_of_their_good_neighbours(rng: np.random.Generator):
    dark = rng.normal(100, 2, SHAPE).astype(np.float32)
    for place in [(5, 5), (5, 6), (0, 0), (39, 49), (20, slice(None))]:
        dark[place] = 9000
    calibrator = Calibrator(np, SHAPE, 1, dark=dark)
    assert calibrator.defects == 4 + 50
    raw = dark + 70
    raw[dark > 1000] = 65535
    assert np.allclose(calibrator.apply(raw, plane()), 70, atol=0.01)


def test_dead_pixel_of_the_gain_reference_is_a_defect():
    flat = np.full(SHAPE, 1000.0)
    flat[3, 4] = 0
    gain = make_gain(flat, 0.0)
    defects = find_defects(None, gain)
    assert defects is not None
    assert np.argwhere(defects).tolist() == [[3, 4]]


def test_a_quiet_sensor_has_no_defects():
    dark = np.random.default_rng(1).normal(100, 2, SHAPE).astype(np.float32)
    defects = find_defects(dark, None)
    assert defects is not None
    assert not defects.any()


@pytest.mark.parametrize("dark_rate", [1e-4, 1e-3, 1e-2, 0.05])
def test_dark_events_of_a_counting_camera_are_no_defects(
    dark_rate: float, rng: np.random.Generator
):
    # Most pixels have the same mean of none at all, and that of the others is one event of 64.
    dark = (rng.poisson(64 * dark_rate, (256, 256)) / 64).astype(np.float32)
    dark[7, 9] = 3.0
    defects = find_defects(dark, None)
    assert defects is not None
    assert np.argwhere(defects).tolist() == [[7, 9]]


def test_a_hot_pixel_of_a_sensor_without_any_noise_is_a_defect():
    dark = np.full(SHAPE, 100.0, np.float32)
    dark[7, 9] = 4000
    defects = find_defects(dark, None)
    assert defects is not None
    assert np.argwhere(defects).tolist() == [[7, 9]]


def test_nearly_dead_pixels_do_not_raise_the_mean(rng: np.random.Generator):
    response = rng.normal(1, 0.02, SHAPE)
    response[3, 4] = 1e-6
    gain = make_gain(4000 * response, 0.0)
    raw = rng.poisson(200 * response).astype(np.uint16)
    calibrator = Calibrator(np, SHAPE, 40, gain=gain)
    assert calibrator.mean_electrons(raw) == pytest.approx(
        float(calibrator.apply(raw, plane()).mean()), rel=2e-3
    )


@pytest.mark.parametrize("replace_defects", [True, False])
def test_pixels_that_were_not_measured_are_replaced(
    replace_defects: bool, rng: np.random.Generator
):
    # A gap between two chips, and a masked pixel, as DECTRIS marks them.
    raw = rng.poisson(5.0, (2, *SHAPE)).astype(np.uint32)
    raw[:, :, 20:22] = raw[:, 3, 4] = np.iinfo(np.uint32).max
    calibrator = Calibrator(
        np, SHAPE, 1, replace_defects=replace_defects, masked_counts=float(np.iinfo(np.uint32).max)
    )
    for frame in raw:
        measured = frame[frame < 1000]
        assert calibrator.mean_electrons(frame) == pytest.approx(measured.mean())
        out = calibrator.apply(frame, plane())
        assert 0 <= out.min() <= out.max() <= measured.max()
        assert out.mean() == pytest.approx(measured.mean(), rel=0.01)
    assert calibrator.defects == 2 * SHAPE[0] + 1


def test_a_frame_that_is_too_bright_all_over_is_no_mask():
    full = np.full(SHAPE, 65535, np.uint16)
    calibrator = Calibrator(np, SHAPE, 1, masked_counts=65535.0)
    assert calibrator.mean_electrons(full) == 65535
    assert calibrator.defects == 0


def test_xray_hits_go_and_the_rest_stays(rng: np.random.Generator):
    clean = rng.poisson(20, SHAPE).astype(np.uint16)
    hit = clean.copy()
    hit[10, 10] = 5000
    hit[0, 0] = 3000
    calibrator = Calibrator(np, SHAPE, 1, xray_sigma=6)
    out = calibrator.apply(hit, plane())
    assert out[10, 10] < 40
    assert out[0, 0] < 40
    out[10, 10], out[0, 0] = clean[10, 10], clean[0, 0]
    assert np.array_equal(out, clean.astype(np.float32))


def test_a_bright_feature_is_no_xray():
    raw = np.full(SHAPE, 20, np.uint16)
    raw[20:26, 20:26] = 400
    out = Calibrator(np, SHAPE, 1, xray_sigma=6).apply(raw, plane())
    assert np.array_equal(out, raw.astype(np.float32))


def test_gain_of_dark_frames_is_refused():
    with pytest.raises(CalibrationError, match="no signal"):
        make_gain(np.full(SHAPE, 100.0), 100.0)


def test_reference_comes_back_as_saved(tmp_path: Path):
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    saved = Reference("dark", image, 16, 0.05, 2, (0, 0, 6, 8)).save(tmp_path / "a" / "dark.npz")
    loaded = Reference.load(saved)
    assert np.array_equal(loaded.image, image)
    assert (loaded.kind, loaded.frames, loaded.binning, loaded.roi) == ("dark", 16, 2, (0, 0, 6, 8))
    assert loaded.mismatch((3, 4), 2, (0, 0, 6, 8)) is None
    assert "3x4" in (loaded.mismatch((5, 5), 2, (0, 0, 6, 8)) or "")
    assert "binning" in (loaded.mismatch((3, 4), 1, (0, 0, 6, 8)) or "")


@pytest.mark.parametrize("content", [b"", b"no npz at all", None])
def test_a_file_that_is_no_reference(tmp_path: Path, content: bytes | None):
    path = tmp_path / "dark.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match="calibrate"):
        Reference.load(path)


def test_each_profile_has_its_own_place():
    assert default_path("sim", "dark") != default_path("replay", "dark")


def test_tall_frames_are_calibrated_part_by_part_like_the_whole(monkeypatch):
    rng = np.random.default_rng(5)
    raw = rng.integers(90, 400, (301, 40)).astype(np.uint16)
    dark = rng.normal(100, 2, raw.shape).astype(np.float32)
    gain = rng.normal(1, 0.05, raw.shape).astype(np.float32)
    out = np.zeros(raw.shape, np.float32)
    monkeypatch.setattr("tem_live.calibration._CHUNK_PX", 7 * 40)
    Calibrator(np, raw.shape, 40.0, dark=dark, gain=gain, replace_defects=False).apply(raw, out)
    np.testing.assert_allclose(out, (raw - dark) * gain / 40.0, rtol=1e-5, atol=1e-6)
