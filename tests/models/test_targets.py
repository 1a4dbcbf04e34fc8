"""The table of targets: what it measures, what it says, and that it can say no."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tem_live import cli
from tem_live.errors import InputError
from tem_live.models import evaluate, load_restorer, testscenes
from tem_live.models import evaluate_targets as targets
from tem_live.models.cards import ModelCard
from tem_live.models.restorers import Restorer
from tools import make_scene_file

SIDE = 128


class Wrong(Restorer):
    """Doubles the frame and remembers how often it was told to forget."""

    def __init__(self) -> None:
        super().__init__(ModelCard(name="wrong", title="Wrong"), "cpu")
        self.forgotten = 0

    def reset(self) -> None:
        self.forgotten += 1

    def _restore_finite(self, frame, mean, out):
        out.copy_(2.0 * frame)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Two frames of a dark disc on empty film, 44 counts per electron."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    scene = np.where(np.hypot(y - 40, x - 40) < 12, 1.0, 5.0)
    for number in (1, 2):
        frame = 44.0 * np.random.default_rng(number).poisson(scene)
        tifffile.imwrite(tmp_path / f"frame_{number}.tif", frame.astype(np.uint16))
    return tmp_path


def rows(restorer: Restorer, *sections: str, **options) -> dict[str, dict]:
    found = targets.evaluate_targets(restorer, sections=sections, size=SIDE, **options)
    return {f"{row['target']} {row['where']}": row for row in found}


@pytest.mark.parametrize(
    ("figure", "limit", "sense", "reached"),
    [
        (0.5, 0.5, "at most", True),
        (0.51, 0.5, "at most", False),
        (200.0, 200.0, "at least", True),
        (199.0, 200.0, "at least", False),
        (-0.05, 0.05, "within", True),
        (-0.06, 0.05, "within", False),
        (None, 0.05, "within", None),
    ],
)
def test_verdict(figure: float | None, limit: float, sense: str, reached: bool | None) -> None:
    assert targets.Row("it", "there", figure, limit, sense).reached is reached


def test_raw_frames_reach_what_they_must_and_miss_the_rest() -> None:
    found = rows(load_restorer("none", "cpu"), "bragg", "columns", "cost")
    # Nothing is lost in a raw frame: these rows could not be reached otherwise.
    for target, row in found.items():
        if target.startswith(("Bragg", "columns")):
            assert row["reached"], row
    assert found["GMAC 512 x 512 px"]["reached"] is None


def test_a_blur_loses_the_lattice() -> None:
    found = rows(load_restorer("gaussian", "cpu"), "bragg")
    assert not any(row["reached"] for row in found.values())
    assert all(-1.0 <= row["figure"] < -0.2 for row in found.values())


def test_a_biased_restorer_is_told_and_memory_is_cleared() -> None:
    wrong = Wrong()
    found = rows(wrong, "bias")
    means = [row for row in found.values() if row["target"].startswith("bias of the mean")]
    tiles = [row for row in found.values() if row["target"].startswith("bias of a tile")]
    assert len(means) == len(tiles) == 3
    for row in means:
        assert row["figure"] == pytest.approx(100.0)
        assert row["reached"] is False
    assert all(row["reached"] is False and "beyond" in row["note"] for row in tiles)
    assert wrong.forgotten == 54


def test_the_raw_frame_has_no_bias() -> None:
    found = rows(load_restorer("none", "cpu"), "bias")
    assert all(row["figure"] == 0.0 and row["reached"] for row in found.values())


def test_scenes_and_nanoparticles() -> None:
    found = rows(load_restorer("none", "cpu"), "scenes", "nanoparticles")
    ratios = [row for row in found.values() if "error ratio" in row["target"]]
    assert len(ratios) == 12 + 2
    assert all(row["figure"] > 1.0 and not row["reached"] for row in ratios)
    gains = [row["figure"] for row in found.values() if "gain" in row["target"]]
    assert gains == [pytest.approx(1.0), pytest.approx(1.0)]


def test_real_pair_rows(pair: Path) -> None:
    found = rows(load_restorer("gaussian", "cpu"), "pair", pair=pair)
    by = {row["target"].split(": ")[1].split(",")[0]: row for row in found.values()}
    assert by["PSNR to a long exposure"]["reached"] is None
    assert by["strongest wave in empty film"]["reached"] is True
    assert by["error under the best Gaussian's"]["figure"] < 0.05
    missing = rows(load_restorer("none", "cpu"), "pair")
    assert [row["reached"] for row in missing.values()] == [None] * 4
    assert all("no real pair" in row["note"] for row in missing.values())


def test_a_lattice_drawn_on_empty_film_is_told(pair: Path) -> None:
    class Lattice(Wrong):
        def _restore_finite(self, frame, mean, out):
            import torch

            wave = torch.cos(2.0 * torch.arange(frame.shape[1]))
            out.copy_(mean * (1.0 + 0.05 * wave).expand_as(frame))

    found = rows(Lattice(), "pair", pair=pair)
    (wave,) = [row for row in found.values() if "wave" in row["target"]]
    assert wave["figure"] == pytest.approx(5.0, rel=0.25)
    assert wave["reached"] is False
    assert "3.1 px" in wave["note"]


def test_every_section_has_rows_and_the_table_is_complete(pair: Path) -> None:
    restorer = load_restorer("none", "cpu")
    found = targets.evaluate_targets(restorer, sections=("pair", "cost"), size=SIDE, pair=pair)
    printed = targets.table(found)
    assert len(printed) == len(found) == 5
    assert {line["reached"] for line in printed} <= {"yes", "no", "–"}
    assert list(targets.SECTIONS) == [
        "scenes", "bragg", "pair", "nanoparticles", "bias", "columns", "cost",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"sections": ["beauty"]},
        {"size": 32},
        {"pair": Path("/no/such")},
        {"counts_per_electron": 0.0},
    ],
)
def test_wrong_options(options: dict) -> None:
    with pytest.raises(InputError) as caught:
        targets.evaluate_targets(load_restorer("none", "cpu"), **options)
    assert "\n" not in str(caught.value)


def test_module_and_command(
    pair: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--size", str(SIDE), "--pair", str(pair)]
    only = {name: targets.SECTIONS[name] for name in ("pair", "cost")}
    assert targets.main(["--model", "none", *arguments, "--sections", *only, "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("| model | target |")
    monkeypatch.setattr(targets, "SECTIONS", only)
    monkeypatch.setattr(targets.evaluate_targets, "__kwdefaults__", {
        **targets.evaluate_targets.__kwdefaults__, "sections": tuple(only),
    })  # fmt: skip
    for extra in (["--json"], []):
        monkeypatch.setattr(sys, "argv", [
            "tem-live", "evaluate", "--targets", "-m", "none", *arguments,
            "--counts-per-electron", "44", *extra,
        ])  # fmt: skip
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code
        printed = capsys.readouterr().out
        if extra:
            assert json.loads(printed.splitlines()[-1]) == json.loads(out[-1])
    assert "GMAC" in printed
    assert targets.main(["--model", "slow"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- the scene file --------------------------------------------------------------------------


def test_scene_file_is_the_simulators_scene() -> None:
    scene = testscenes.simulator_nanoparticles()
    assert scene.shape == (512, 512)
    assert scene.mean() == pytest.approx(1.0)
    drawn = make_scene_file.render().astype(np.float64)
    np.testing.assert_allclose(scene, drawn / drawn.mean(), atol=1e-6)


@pytest.mark.parametrize("name", list(testscenes.LATTICE_SCENES))
def test_lattice_scenes_are_fixed_and_positive(name: str) -> None:
    first = testscenes.reference_scene(name, 96, 3)
    np.testing.assert_array_equal(first, testscenes.reference_scene(name, 96, 3))
    assert first.min() > 0.0
    assert first.mean() == pytest.approx(1.0, rel=1e-5)
    assert name not in testscenes.TEST_SCENES
    assert name not in evaluate.Options().scenes
