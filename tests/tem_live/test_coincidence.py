"""Coincidence loss: against counting of simulated electrons, and on the way to the user."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from tem_live import cli
from tem_live.coincidence import Counting, CountingModel
from tem_live.detector_guard import DetectorGuard
from tem_live.profiles import load_profile
from tem_live.session import Session

MODELS: tuple[CountingModel, ...] = ("binary", "nonparalysable", "paralysable")


def counted(times: np.ndarray, resolution: float, model: str) -> int:
    """Electrons at these times, counted as the detector does, one by one."""
    if model == "binary":
        return len(np.unique(np.floor(times / resolution)))
    number, dead_until = 0, -math.inf
    for time in times:
        if time >= dead_until:
            number += 1
            dead_until = time + resolution
        elif model == "paralysable":
            dead_until = time + resolution
    return number


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mean", [0.02, 0.3, 0.9])
def test_the_loss_is_that_of_electrons_counted_one_by_one(model: CountingModel, mean: float):
    random = np.random.default_rng(1)
    resolution = 1e-3
    come = 40_000
    times = np.cumsum(random.exponential(resolution / mean, come))
    lost = 1 - counted(times, resolution, model) / come
    assert Counting(resolution, model).loss(mean / resolution) == pytest.approx(lost, abs=0.006)


@pytest.mark.parametrize("model", MODELS)
def test_what_comes_is_found_from_what_is_counted(model: CountingModel):
    counting = Counting(2.5e-3, model, footprint_px=4.0)
    for rate in (0.0, 1.0, 30.0, 90.0):
        seen = rate * (1 - counting.loss(rate))
        assert counting.incident(seen) == pytest.approx(rate, abs=1e-6)
    assert counting.incident(1e6) == math.inf
    assert counting.loss(math.inf) == 1.0


def test_an_electron_that_lights_more_pixels_hides_more():
    assert Counting(1e-3, "binary", 4.0).loss(10.0) == Counting(4e-3, "binary").loss(10.0)


def guard(told: list[str], **options: object) -> DetectorGuard:
    return DetectorGuard(None, None, told.append, told.append, **options)  # type: ignore[arg-type]


def test_the_user_is_told_the_expected_loss_once_a_run():
    told: list[str] = []
    made = guard(told, counting=Counting(1e-3, "nonparalysable"), most_loss=0.05)
    made.look(np.full((32, 32), 4.0, np.float32), 0.1, 1)
    assert made.loss == pytest.approx(0.04)
    assert told == []
    for _ in range(2):
        made.look(np.full((32, 32), 10.0, np.float32), 0.1, 1)
    assert made.loss == pytest.approx(0.1)
    assert told == [
        "about 10% of the electrons are not counted where 100 e-/px/s are: those that coincide are "
        "counted as one; lower the dose rate"
    ]


def test_more_than_can_be_counted_is_all_lost_and_no_error():
    told: list[str] = []
    for model in MODELS:
        made = guard(told, counting=Counting(1.0, model))
        made.look(np.full((32, 32), 4.0, np.float32), 0.1, 1)
        assert made.loss == 1.0


def test_a_session_warns_and_has_the_figure():
    changes = {
        "camera.sensor_height_px": 64,
        "camera.sensor_width_px": 64,
        "camera.scene": "vacuum",
        "camera.counting_resolution_s": 0.002,
        "restorer.model": "none",
    }
    with Session(load_profile("sim", changes)) as session:
        # 100 e-/px/s, before any frame.
        assert session.stats().coincidence_loss == pytest.approx(
            Counting(0.002).loss(100.0), rel=0.01
        )
        session.snap()
        loss = session.stats().coincidence_loss
        assert loss is not None
        assert 0.08 < loss < 0.16
        assert any("not counted" in text for _, text in session.messages)
    with Session(load_profile("sim", {**changes, "camera.counting_resolution_s": 2e-6})) as session:
        session.snap()
        assert not any("not counted" in text for _, text in session.messages)


def test_a_run_without_a_window_tells_it_too():
    options = ["camera.counting_resolution_s=0.002", "camera.scene=vacuum", "restorer.model=none"]
    command = ["run", "--frames", "2", "--json", *(f"--set={option}" for option in options)]
    result = CliRunner().invoke(cli.app, command)
    told = json.loads(result.stdout.strip().splitlines()[-1])
    assert 0.08 < told["coincidence_loss"] < 0.16
    assert any("not counted" in text for text in told["warnings"])


def test_an_integrating_camera_has_none():
    with Session(load_profile("sim", {"restorer.model": "none"})) as session:
        assert session.stats().coincidence_loss is None


def test_the_hybrid_pixel_profile_has_its_dead_time():
    camera = load_profile("serval").camera
    assert camera.counting_model == "nonparalysable"
    # 625 000 hits a second of one pixel.
    assert camera.counting_resolution_s == pytest.approx(1 / 625_000)
