"""The size of a pixel from a spacing that is known."""

from __future__ import annotations

import json
import sys
import tomllib

import numpy as np
import pytest

from tem_live import cli
from tem_live.errors import CalibrationError
from tem_live.pixel_size import strongest_waves
from tem_live.profiles import MagnificationProfile


def frames(
    period_px: float, direction_deg: float, count: int, shape: tuple[int, int] = (256, 320)
) -> list[np.ndarray]:
    """5 e-/px with waves of 10 %, which drift by any amount from frame to frame."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    angle = np.radians(direction_deg)
    along = (np.cos(angle) * x + np.sin(angle) * y) / period_px
    drifts = random.uniform(size=count)
    scenes = [5.0 + 0.5 * np.cos(2.0 * np.pi * (along + drift)) for drift in drifts]
    return [random.poisson(scene).astype(np.float32) for scene in scenes]


@pytest.mark.parametrize(
    ("period_px", "direction_deg"),
    [(7.83, 31.0), (7.83, -64.0), (12.4, 0.0), (12.4, 90.0), (3.1, 45.0), (27.0, -20.0)],
)
def test_a_spacing_is_found_within_its_error(period_px: float, direction_deg: float):
    wave = strongest_waves(frames(period_px, direction_deg, 8))[0]
    assert wave.error_px is not None
    assert 0.0 < wave.error_px < 2e-3 * period_px
    assert wave.period_px == pytest.approx(period_px, abs=5 * wave.error_px)
    # Across is across: 90 and -90 degrees are one direction.
    turned = (wave.direction_deg - direction_deg + 90.0) % 180.0 - 90.0
    assert turned == pytest.approx(0.0, abs=0.5)


def test_one_frame_tells_no_error():
    wave = strongest_waves(frames(7.83, 31.0, 1))[0]
    assert wave.error_px is None
    assert wave.period_px == pytest.approx(7.83, rel=2e-3)


def test_each_wave_is_found_once_the_strongest_first():
    crossed = [
        one + 0.5 * other
        for one, other in zip(frames(9.0, 0.0, 6), frames(6.0, 90.0, 6), strict=True)
    ]
    waves = strongest_waves(crossed)
    assert [round(wave.period_px, 1) for wave in waves] == [9.0, 6.0]
    assert waves[0].over_noise > waves[1].over_noise


@pytest.mark.parametrize("count", [1, 2, 16])
def test_noise_has_no_spacing(count: int):
    random = np.random.default_rng(3)
    for _ in range(20):
        noise = [random.poisson(5.0, (128, 128)).astype(np.float32) for _ in range(count)]
        with pytest.raises(CalibrationError, match="repeats"):
            strongest_waves(noise)


def test_small_and_constant_frames_are_refused():
    with pytest.raises(CalibrationError, match="too small"):
        strongest_waves([np.ones((31, 200), np.float32)])
    with pytest.raises(CalibrationError, match="repeats"):
        strongest_waves([np.ones((128, 128), np.float32)])


def called(
    capsys: pytest.CaptureFixture[str], monkeypatch, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["tem-live", "calibrate", "magnification", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    told = capsys.readouterr()
    return int(left.value.code or 0), told.out, told.err


# The simulated crystal is strontium titanate, 0.3905 nm, 0.03 nm a pixel.
LATTICE = ("--profile", "sim-lattice", "--frames", "4", "--spacing-nm", f"{0.3905 / 2**0.5:.6f}")


def test_the_simulated_crystal_gives_the_simulated_pixel(capsys, monkeypatch):
    status, out, _ = called(capsys, monkeypatch, *LATTICE, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["pixel_size_nm"] == pytest.approx(0.03, rel=5e-3)
    assert found["magnification"] == 50_000.0


def test_binned_frames_give_the_unbinned_pixel_of_the_wave_that_is_meant(capsys, monkeypatch):
    finer = ("--spacing-nm", f"{0.3905 / 2:.6f}", "--period-px", "3.2")
    told = called(
        capsys,
        monkeypatch,
        *LATTICE,
        *finer,
        "--set",
        "camera.binning=2",
        "--frames",
        "8",
        "--json",
    )
    assert json.loads(told[1])["pixel_size_nm"] == pytest.approx(0.03, rel=5e-3)


def test_what_is_printed_goes_into_a_profile(capsys, monkeypatch):
    _, out, _ = called(capsys, monkeypatch, *LATTICE)
    lines = out[out.index("[[magnifications]]") :]
    (entry,) = tomllib.loads(lines)["magnifications"]
    assert MagnificationProfile(**entry).pixel_size_nm == pytest.approx(0.03, rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--spacing-nm", "0"], "--spacing-nm"),
        (["--spacing-nm", "1", "--period-px", "nan"], "--period-px"),
        (["--spacing-nm", "1", "--frames", "0"], "--frames"),
        (["--spacing-nm", "1", "--frames", "2"], "repeats"),
    ],
)
def test_wrong_input_is_one_line(capsys, monkeypatch, arguments: list[str], word: str):
    status, _, err = called(capsys, monkeypatch, *arguments)
    assert status != 0
    assert word in err
    assert len(err.strip().splitlines()) == 1
