"""``tem-live evaluate``, ``train`` and ``models import`` as a script sees them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imagecodecs import png_decode

from tem_live import cli
from tem_live.models import evaluate_series, imports, publish
from tem_live.models.evaluate_pair import evaluate_pair
from tem_live.models.unet_resnet18 import UnetResNet18
from tests.models.test_training import RECIPE

pytestmark = pytest.mark.usefixtures("one_thread")

Invoke = Callable[..., tuple[int, str, str]]
SMALL = (
    "--size",
    "64",
    "--doses",
    "5",
    "--cameras",
    "poisson",
    "--scenes",
    "nanoparticles,section",
)


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tem-live", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return call


def last_json(out: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(out.strip().splitlines()[-1], parse_constant=refuse)


@pytest.mark.parametrize(
    "command", ["evaluate", "train", "models import", "models import tk-r-em",
                "models import katsuno"],
)  # fmt: skip
def test_help(invoke: Invoke, command: str) -> None:
    status, out, _ = invoke(*command.split(), "--help")
    assert status == 0
    assert "Usage:" in out


# -- evaluate --------------------------------------------------------------------------------


def test_evaluate_prints_rows_for_models_and_baselines(invoke: Invoke) -> None:
    status, out, _ = invoke("evaluate", "-m", "none", "-m", "gaussian", *SMALL, "--json")
    assert status == 0
    report = last_json(out)
    by_method = {row["method"]: row for row in report["summary"]}
    assert by_method.keys() == {"raw", "best-gaussian", "none", "gaussian-2px"}
    for key in ("error_ratio", "dose_gain", "psnr_db", "psnr_max_db", "ssim", "invented", "bias"):
        assert by_method["none"][key] == by_method["raw"][key]
    assert by_method["raw"]["dose_gain"] == 1.0
    assert by_method["best-gaussian"]["error_ratio"] == 1.0
    assert by_method["gaussian-2px"]["ssim"] > by_method["raw"]["ssim"]
    assert len(report["rows"]) == 2 * len(by_method)
    assert report["pair"] is None
    assert report["picture"] is None


def test_evaluate_prints_a_table_and_writes_a_picture(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "seen.png"
    status, out, err = invoke("evaluate", "-m", "none", *SMALL, "--picture", str(path))
    assert status == 0
    assert "best-gaus" in out
    assert "truth, raw, best-gaussian, none" in out
    assert err == ""
    picture = png_decode(path.read_bytes())
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * 66, 4 * 66)


def test_evaluate_takes_references_a_pair_and_weights(invoke: Invoke, tmp_path: Path) -> None:
    import tifffile

    rng = np.random.default_rng(0)
    for folder in ("clean", "pair"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "clean" / "cells.npy", rng.random((48, 60)) + 1.0)
    for number in (1, 2):
        frame = 44.0 * rng.poisson(5.0, (64, 64)).astype(np.float32)
        tifffile.imwrite(tmp_path / "pair" / f"frame_{number}.tif", frame)
    torch.manual_seed(0)
    torch.save(UnetResNet18().state_dict(), tmp_path / "p.pth")
    weights = imports.import_katsuno(tmp_path / "p.pth", tmp_path / "mine")
    status, out, _ = invoke(
        "evaluate", "-m", str(weights), "--references", str(tmp_path / "clean"), "--pair",
        str(tmp_path / "pair"), "--counts-per-electron", "44", "--doses", "2", "--cameras", "cmos",
        "--seeds", "3,4", "--json",
    )  # fmt: skip
    assert status == 0
    report = last_json(out)
    assert {row["scene"] for row in report["rows"]} == {"cells"}
    assert {row["seed"] for row in report["rows"]} == {3, 4}
    assert report["pair"].keys() == {"raw", "gaussian", "katsuno"}
    # Nothing but Poisson noise of 5 e-/px in it.
    assert report["pair"]["raw"]["error_e2"] == pytest.approx(5.0, rel=0.1)
    status, out, _ = invoke("evaluate", "-m", "none", *SMALL, "--pair", str(tmp_path / "pair"))
    assert "texture" in out


@pytest.mark.parametrize("name", ["nlm", "bm3d"])
def test_slow_baselines(invoke: Invoke, name: str) -> None:
    pytest.importorskip({"nlm": "skimage"}.get(name, name))
    status, out, _ = invoke(
        "evaluate", "-m", "none", *SMALL, "--scenes", "nanoparticles", "--baselines", name, "--json"
    )
    assert status == 0
    by_method = {row["method"]: row for row in last_json(out)["summary"]}
    assert by_method.keys() == {"none", name}
    assert by_method[name]["error_ratio"] < 0.2 * by_method["none"]["error_ratio"]
    assert abs(by_method[name]["bias"]) < 0.05


@pytest.mark.parametrize(("name", "package"), [("nlm", "skimage"), ("bm3d", "bm3d")])
def test_baselines_that_are_not_installed(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.restoration", None)
    status, _, err = invoke("evaluate", "-m", "none", *SMALL, "--baselines", name)
    assert status == 2
    assert "pip install" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "slow"], "'slow'"),
        (["--baselines", "median"], "median"),
        (["--cameras", "film"], "film"),
        (["--scenes", "cats"], "cats"),
        (["--doses", "0"], "above 0"),
        (["--doses", "five"], "--doses"),
        (["--doses", ""], "above 0"),
        (["--seeds", "1.5"], "--seeds"),
        (["--seeds", "-1"], "seeds"),
        (["--seeds", ""], "seed"),
        (["--size", "8"], "size 8"),
        (["--references", "/no/such"], "/no/such"),
        (["--pair", "/no/such"], "/no/such"),
        (["--counts-per-electron", "0"], "above 0"),
        (["--picture", "x.jpg"], ".png"),
        (["--picture", "/no/such/x.png"], "/no/such"),
        (["--columns", "--cameras", "cmos"], "--cameras does nothing with --columns"),
        (["--targets", "--doses", "5"], "--doses does nothing with --targets"),
        (["--targets", "--columns"], "--columns does nothing with --targets"),
        (["--targets", "--counts-per-electron", "0"], "above 0"),
    ],
)
def test_wrong_options_of_evaluate(invoke: Invoke, arguments: list[str], says: str) -> None:
    status, _, err = invoke("evaluate", *arguments)
    assert status == 2
    assert err.startswith("tem-live: error: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("name", "content", "option"),
    [
        ("frame_1.tif", b"no tiff", "--pair"),
        ("other.tif", b"", "--pair"),
        ("clean.npy", b"no array", "--references"),
        ("clean.mrc", b"no mrc", "--references"),
        ("notes.txt", b"no image", "--references"),
    ],
)
def test_unreadable_images_are_one_line(
    invoke: Invoke, tmp_path: Path, name: str, content: bytes, option: str
) -> None:
    (tmp_path / name).write_bytes(content)
    status, _, err = invoke("evaluate", "-m", "none", *SMALL, option, str(tmp_path))
    assert status == 2
    assert err.count("\n") == 1
    assert str(tmp_path) in err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a, b: (a, a), "are the same"),
        (lambda a, b: (a * 0.0, b), "frame_1.tif is dark"),
        (lambda a, b: (a, b * np.nan), "frame_2.tif is dark or not finite"),
        (lambda a, b: (a, b[:70]), "the same size"),
    ],
)
def test_pairs_that_cannot_be_compared(
    invoke: Invoke, tmp_path: Path, change: Callable[..., tuple[Any, Any]], says: str
) -> None:
    import tifffile

    rng = np.random.default_rng(0)
    two = change(*rng.poisson(5.0, (2, 80, 80)).astype(np.float32))
    for number, frame in enumerate(two, 1):
        tifffile.imwrite(tmp_path / f"frame_{number}.tif", frame)
    status, _, err = invoke("evaluate", "-m", "none", *SMALL, "--pair", str(tmp_path))
    assert status == 2
    assert err.count("\n") == 1
    assert says in err


def test_parts_of_the_error_of_a_pair() -> None:
    rng = np.random.default_rng(0)
    y, x = np.indices((256, 256))
    scene = 5.0 + 0.5 * np.sign(np.sin(x / 2.0) * np.sin(y / 2.0))
    a, b = (rng.poisson(scene).astype(np.float32) for _ in range(2))
    methods = {
        "even": lambda f: np.full_like(f, f.mean()),
        "noisy": lambda f: (scene + 0.2 * (f - scene)).astype(np.float32),
    }
    found = evaluate_pair(methods, a, b)
    for row in found.values():
        assert row["error_e2"] == pytest.approx(row["varies_e2"] + row["common_e2"], abs=1e-4)
    # An even image lacks the detail, and nothing of it depends on the noise.
    lost = float(scene.var())
    assert abs(found["even"]["common_e2"] - lost) < 4.0 * found["even"]["common_se_e2"]
    assert 0.005 < found["even"]["common_se_e2"] < 0.05
    assert found["even"]["varies_e2"] < 1e-3
    assert found["noisy"]["varies_e2"] == pytest.approx(0.04 * 5.0, rel=0.05)
    assert abs(found["noisy"]["common_e2"]) < 0.05


def test_a_pair_without_empty_film_has_no_texture(invoke: Invoke, tmp_path: Path) -> None:
    import tifffile

    for number in (1, 2):
        frame = np.random.default_rng(number).poisson(5.0, (30, 30)).astype(np.float32)
        tifffile.imwrite(tmp_path / f"frame_{number}.tif", frame)
    arguments = ("evaluate", "-m", "none", *SMALL, "--pair", str(tmp_path))
    assert last_json(invoke(*arguments, "--json")[1])["pair"]["none"]["texture"] is None
    assert invoke(*arguments)[0] == 0
    tifffile.imwrite(tmp_path / "frame_2.tif", frame[:20])
    status, _, err = invoke(*arguments)
    assert status == 2
    assert "same size" in err


def test_images_that_cannot_be_thinned(invoke: Invoke, tmp_path: Path) -> None:
    np.save(tmp_path / "dark.npy", np.zeros((40, 40)))
    status, _, err = invoke("evaluate", "-m", "none", *SMALL, "--references", str(tmp_path))
    assert status == 2
    assert "empty" in err


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        (evaluate_series, ["--model", "slow"], "'slow'"),
        (publish, ["/no/such", "--recipe", "r.toml", "--title", "t"], "no recipe"),
    ],
)
def test_wrong_options_of_modules(
    capsys: pytest.CaptureFixture[str], module: Any, arguments: list[str], says: str
) -> None:
    assert module.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err


def test_weights_that_no_training_wrote_are_not_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "tiny.safetensors").write_bytes(b"junk")
    arguments = [str(tmp_path), "--recipe", str(tmp_path / "r.toml"), "--title", "t"]
    assert publish.main([*arguments, "--to", str(tmp_path / "out")]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- train -----------------------------------------------------------------------------------


def test_train_says_how_far_it_is(invoke: Invoke, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    status, out, err = invoke("train", str(recipe), "--out", str(tmp_path / "run"))
    assert status == 0
    assert "step 3 " in err
    assert "error ratio" in err
    assert Path(out.strip().removeprefix("weights: ")).is_file()


def test_train_on_own_data_says_what_it_gained(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tem_live.models import finetune

    given: dict[str, Any] = {}
    gain = finetune.Gain(0.5, 0.4, 0.1, 0.01)

    def stand_in(recipe: Any, folder: Path, **more: Any) -> finetune.Outcome:
        given.update(more, recipe=recipe, folder=folder)
        weights = folder / "mine.safetensors"
        return finetune.Outcome("mine", "series", gain, weights, weights, 7, 60.0, 50.0, ("dust",))

    monkeypatch.setattr(finetune, "finetune", stand_in)
    arguments = ("train", "--data", str(tmp_path), "--name", "mine", "--minutes", "3",
                 "--counts-per-electron", "44", "--out", str(tmp_path / "run"))  # fmt: skip
    status, out, err = invoke(*arguments)
    assert status == 0
    assert "fell by +0.1000 ± 0.0100 e-² (+20% of the error): published as mine" in out
    assert "warning: dust" in err
    recipe = given["recipe"]
    assert (recipe.start, recipe.name, recipe.optim.max_minutes) == ("fast", "mine", 3.0)
    assert recipe.own.counts_per_electron == 44.0
    assert given["folder"] == tmp_path / "run"
    report = last_json(invoke(*arguments, "--json")[1])
    assert report["published"] is True
    assert report["gain"]["gain_e2"] == 0.1
    assert report["warnings"] == ["dust"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--from and --data"),
        (["r.toml", "--data", "d"], "--from and --data"),
        (["r.toml"], "no recipe"),
        (["--data", "/no/such"], "/no/such"),
        (["--data", ".", "--minutes", "0"], "--minutes"),
        (["--data", ".", "--from", "gaussian"], "gaussian"),
        (["--data", ".", "--minutes", "inf"], "--minutes"),
        (["--data", ".", "--counts-per-electron", "-1"], "--counts-per-electron"),
        (["--data", ".", "--reduce", "0"], "--reduce"),
        (["--data", ".", "--offset-counts", "nan"], "offset_counts"),
        (["--data", ".", "--name", "fast"], "ships"),
        (["--data", ".", "--name", "../mine"], "letters"),
        (["--data", ".", "--to", __file__], "name a folder"),
        (["."], "cannot read the recipe"),
        (["r.toml", "--from", "fast"], "--from goes with --data"),
        (["r.toml", "--minutes", "3"], "--minutes goes with --data"),
    ],
)
def test_wrong_options_of_train(
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = invoke("train", *arguments)
    assert status == 2
    assert err.startswith("tem-live: error: ")
    assert err.count("\n") == 1
    assert says in err


# -- import ----------------------------------------------------------------------------------


def test_import_katsuno_then_list_and_show(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "params.pth"
    torch.save(UnetResNet18().state_dict(), path)
    status, out, _ = invoke("models", "import", "katsuno", str(path), "--name", "mine", "--json")
    assert status == 0
    (row,) = last_json(out)
    assert row["name"] == "mine"
    assert Path(row["path"]).is_file()
    listed = {card["name"]: card for card in last_json(invoke("models", "list", "--json")[1])}
    assert listed["mine"]["network"] == "unet_resnet18"
    assert last_json(invoke("models", "show", "mine", "--json")[1]) == listed["mine"]
    status, out, _ = invoke(
        "models", "import", "katsuno", str(path), "--to", str(tmp_path / "here")
    )
    assert status == 0
    assert (tmp_path / "here" / "katsuno.safetensors").is_file()
    assert "written to" in out


@pytest.mark.parametrize(
    "arguments", [["katsuno", "gone.pth"], ["tk-r-em", "/no/such"], ["topaz"], ["katsuno"]]
)
def test_wrong_imports_are_one_line(invoke: Invoke, arguments: list[str]) -> None:
    status, _, err = invoke("models", "import", *arguments)
    assert status == 2
    assert err.startswith("tem-live: error: ")
    assert err.count("\n") == 1
