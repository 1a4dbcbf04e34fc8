"""Capturing pairs: dose told before, beam blanked between, what is left after a fault."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from tem_live import cli
from tem_live.capture import Plan, capture_pairs, register_and_mean
from tem_live.errors import DeviceError, InputError, RefusedError
from tem_live.files import open_movie
from tem_live.models import blurs, finetune, pairs, scores
from tem_live.models.training import OwnRecipe
from tem_live.session import Session, open_session
from tests.tem_live.fakes import FakeCamera, FakeColumn

OpenFake = Callable[..., Session]

SIM = {
    "restorer.model": "none",
    "camera.sensor_height_px": 128,
    "camera.sensor_width_px": 128,
}


def blur(frame: np.ndarray) -> np.ndarray:
    return blurs.gaussian_blur(frame, 2.0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((0.0, 1.0, 3), "short_s"),
        ((0.1, float("nan"), 3), "long_s"),
        ((0.1, 0.15, 3), "twice"),
        ((0.1, 1.0, 0), "at least 1"),
    ],
)
def test_plans_that_make_no_sense(given: tuple[float, float, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Plan(*given)


def test_the_dose_is_told_before(fake_session: OpenFake) -> None:
    state = fake_session().state
    plan = Plan(0.01, 0.2, 4)
    # 500 e-/px/s on pixels of 0.1 nm are 500 e-/Å²/s; 4 x 0.21 s of it.
    assert plan.fluence_e_per_A2(state) == pytest.approx(4 * 0.21 * 500.0)
    assert "420 e-/Å²" in plan.dose_text(state)
    assert Plan(0.01, 0.2, 4, summed=True).exposure_s == pytest.approx(0.84)


def test_the_beam_is_blanked_between_and_after(
    fake_session: OpenFake, camera: FakeCamera, column: FakeColumn, tmp_path: Path
) -> None:
    session = fake_session()
    column.log.clear()
    taken = capture_pairs(session, Plan(0.01, 0.02, 2), tmp_path / "out")
    beam = [event for event in column.log if event in ("blank", "unblank")]
    # Four exposures, each with a beam of its own.
    assert beam.count("unblank") == 4
    for first, second in pairwise(beam):
        assert (first, second) != ("unblank", "unblank")
    assert beam[-1] == "blank"
    assert taken.blanked is True
    assert taken.pairs == 2
    assert session.exposure_s == 0.01
    # 100 counts of offset and 10 a electron: the first frame of a run is 0 e-.
    assert sorted(p.name for p in (tmp_path / "out" / "long").iterdir()) == ["0001.tif", "0002.tif"]


def test_a_fault_ends_blanked_and_keeps_whole_pairs(
    fake_session: OpenFake, camera: FakeCamera, column: FakeColumn, tmp_path: Path
) -> None:
    runs = 0

    def fail(sequence: int) -> None:
        nonlocal runs
        runs += sequence == 0
        if runs == 6:  # the long exposure of the third pair
            raise DeviceError("the camera fell silent")

    camera.before_frame = fail
    session = fake_session()
    with pytest.raises(DeviceError, match="silent"):
        capture_pairs(session, Plan(0.01, 0.02, 5), tmp_path / "out")
    assert column.blanked
    assert session.blanked is True
    for kind in ("short", "long"):
        with open_movie(tmp_path / "out" / kind) as movie:
            assert len(movie) == 2
    assert (
        json.loads((tmp_path / "out" / "pairs.json").read_text(encoding="utf-8"))["long_s"] == 0.02
    )


def test_a_sum_that_the_budget_ends_is_not_kept(
    fake_session: OpenFake, camera: FakeCamera, column: FakeColumn, tmp_path: Path
) -> None:
    session = fake_session()
    camera.interval_s = 0.01
    # A pair is 0.21 s of 500 e-/Å²/s and a little more.
    session.budget_e_per_A2 = 160.0
    plan = Plan(0.01, 0.2, 4, summed=True)
    with pytest.raises(RefusedError, match=r"ended \(budget\) after \d+ of 20 frames"):
        capture_pairs(session, plan, tmp_path / "out", restore=blur)
    assert column.blanked
    assert session.exposure_s == 0.01
    for kind in ("short", "long"):
        assert [p.name for p in (tmp_path / "out" / kind).iterdir()] == ["0001.tif"]


def test_what_is_refused(fake_session: OpenFake, camera: FakeCamera, tmp_path: Path) -> None:
    session = fake_session()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="not empty"):
        capture_pairs(session, Plan(0.01, 0.02, 1), tmp_path / "full")
    with pytest.raises(InputError, match="cannot write"):
        capture_pairs(session, Plan(0.01, 0.02, 1), tmp_path / "full" / "notes.txt" / "out")
    with pytest.raises(RefusedError, match="longest"):
        capture_pairs(session, Plan(0.01, 20.0, 1), tmp_path / "out")
    assert session.blanked is True
    camera.interval_s = 0.01
    session.start()
    with pytest.raises(RefusedError, match="going on"):
        capture_pairs(session, Plan(0.01, 0.02, 1), tmp_path / "out")
    session.stop()


def test_drift_within_a_sum_is_undone() -> None:
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.standard_normal((224, 224)), 4.0)
    scene = (8.0 + 3.0 * np.tanh(field / field.std())).astype(np.float32)
    steps = [(0.0, 0.0), (0.0, 1.5), (-1.0, 3.0), (-2.0, 4.5), (-3.0, 6.0), (-4.0, 7.5)]
    frames = [
        rng.poisson(np.maximum(pairs.moved(scene, *s)[32:-32, 32:-32], 0.0)).astype(np.float32)
        for s in steps
    ]
    mean, shifts = register_and_mean(frames, blur)
    np.testing.assert_allclose(shifts, steps, atol=0.5)
    truth = scene[32:-32, 32:-32]
    inner = np.s_[12:-12, 12:-12]
    # What is left of six frames' noise, and not the smear of a plain mean.
    registered = scores.mse(truth[inner], mean[inner])
    plain = scores.mse(truth[inner], np.mean(frames, axis=0)[inner])
    assert registered < 1.25 * 8.0 / 6.0
    assert plain > 1.5 * registered
    assert np.isfinite(mean).all()


def test_a_frame_that_shows_nothing_is_left_out() -> None:
    rng = np.random.default_rng(1)
    field = ndimage.gaussian_filter(rng.standard_normal((128, 128)), 4.0)
    scene = (8.0 + 4.0 * np.tanh(field / field.std())).astype(np.float32)
    seen = rng.poisson(scene).astype(np.float32)
    blank = np.zeros_like(seen)
    mean, shifts = register_and_mean([seen, blank], blur)
    assert len(shifts) == 1
    np.testing.assert_array_equal(mean, seen)


@pytest.mark.timeout(300)  # imports Lightning and trains
def test_capture_then_fine_tune_then_restore(tmp_path: Path) -> None:
    """The whole way, on the simulator."""
    pytest.importorskip("lightning")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with open_session("sim", SIM) as session:
        taken = capture_pairs(session, Plan(0.05, 0.5, 3), tmp_path / "own")
        assert taken.blanked is True
        assert taken.long_e_per_px == pytest.approx(10.0 * taken.short_e_per_px, rel=0.03)
    data = pairs.load_own(OwnRecipe(folder=str(tmp_path / "own")), blur)
    # The exposures and the unit are known: nothing had to be assumed.
    assert data.warnings == ()
    for example in data.examples:
        assert example.target is not None
        assert example.target.mean() == pytest.approx(example.frame.mean(), rel=0.03)
    recipe = finetune.own_recipe("fast", tmp_path / "own", name="mine")
    recipe = recipe.model_copy(
        update={
            "optim": recipe.optim.model_copy(update={"max_steps": 2, "threads": 1}),
            "data": recipe.data.model_copy(
                update={"batch_px": 8192, "crops_px": (64,), "scenes": 2, "scene_px": 64}
            ),
        }
    )
    outcome = finetune.finetune(recipe, tmp_path / "run", device="cpu")
    assert outcome.kind == "pairs"
    assert outcome.gain is not None
    # Published or not, the weights restore once they have a card.
    card, _ = finetune._network_of("fast")
    placed, _ = finetune._place(outcome.weights, tmp_path / "cards", recipe, card)
    with open_session("sim", {**SIM, "restorer.model": str(placed)}) as session:
        frame = session.snap()
    assert frame.restored is not None
    assert frame.restored.mean() == pytest.approx(frame.electrons.mean(), rel=0.01)
    torch.set_num_threads(threads)


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["tem-live", "capture", "pairs", "--short-s", "0.02", "--long-s", "0.1", "-n", "1",
                 "--out", str(tmp_path / "own"), "--set", "camera.sensor_height_px=64",
                 "--set", "camera.sensor_width_px=64", "--json"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    captured = capsys.readouterr()
    assert "e-/Å²" in captured.err.splitlines()[0]
    told = json.loads(captured.out.splitlines()[-1])
    assert told["pairs"] == 1
    assert told["blanked"] is True
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert "not empty" in capsys.readouterr().err
