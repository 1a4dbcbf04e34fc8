"""The networks of others: architecture, restorers around them, and how they are imported."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tem_live import models
from tem_live.errors import InputError, ModelError
from tem_live.models import cgrdn, imports, tiles, unet_resnet18
from tem_live.models.cards import ModelCard, read_card
from tem_live.models.cgrdn import CGRDN, CgrdnRestorer
from tem_live.models.macs import count_work
from tem_live.models.unet_resnet18 import UnetResNet18, UnetResNet18Restorer
from tests.models.bundles import write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

# -- architecture ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "parameters", "gmac"), [(UnetResNet18, 14.3e6, 21.2), (CGRDN, 7.04e6, 461.0)]
)
def test_size_is_the_published_one(network: type[nn.Module], parameters: float, gmac: float):
    with torch.device("meta"):
        built, frame = network(), torch.empty(1, 1, 512, 512)
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(parameters, rel=2e-3)
    assert count_work(built, frame).macs / 1e9 == pytest.approx(gmac, rel=1e-3)
    assert built(frame).shape == frame.shape


def test_macs_of_known_layers() -> None:
    frame = torch.zeros(1, 3, 10, 12)
    assert count_work(nn.Conv2d(3, 5, 3, padding=1), frame).macs == 3 * 5 * 9 * 120
    assert count_work(nn.Conv2d(3, 5, 2, stride=2), frame).macs == 3 * 5 * 4 * 30
    assert count_work(nn.ConvTranspose2d(3, 5, 4, stride=2), frame).macs == 3 * 5 * 16 * 120


def test_bytes_of_known_layers() -> None:
    frame = torch.zeros(1, 3, 10, 12)
    found = count_work(nn.Conv2d(3, 5, 2, stride=2), frame)
    assert found[1:] == (3 * 120 + 5 * 30, 3 * 5 * 4)
    assert found.times(3) == (3 * found.macs, 3 * found.planes, found.weights)


def test_unet_has_the_names_of_their_state_dict() -> None:
    names = set(UnetResNet18().state_dict())
    assert len(names) == 182
    assert {
        "encoder.conv1.weight",
        "encoder.bn1.running_var",
        "encoder.layer1.1.conv2.weight",
        "encoder.layer4.0.downsample.1.num_batches_tracked",
        "decoder.blocks.0.conv1.0.weight",
        "decoder.blocks.4.conv2.1.bias",
        "segmentation_head.0.bias",
    } <= names


def test_unet_agrees_with_segmentation_models_pytorch() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    theirs = alive(smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1))
    ours = UnetResNet18()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    frame = torch.rand(2, 1, 96, 160)
    with torch.no_grad():
        expected = theirs.eval()(frame)
        torch.testing.assert_close(ours.eval()(frame), expected)
        sigmoid = UnetResNet18(sigmoid=True)
        sigmoid.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(sigmoid.eval()(frame), expected.sigmoid())


def alive(network: nn.Module) -> nn.Module:
    """Give the normalisation layers statistics other than those of an untrained network."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0.0, 0.3)
            layer.running_var.uniform_(0.5, 2.0)
    return network


# -- restorers -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["unet_resnet18", "cgrdn"])
def restorer(request: pytest.FixtureRequest) -> models.Restorer:
    torch.manual_seed(1)
    card = ModelCard(name=request.param, title="untrained", network=request.param)
    if request.param == "cgrdn":
        return CgrdnRestorer(card, "cpu", CGRDN())
    return UnetResNet18Restorer(card, "cpu", UnetResNet18())


def noisy(shape: tuple[int, ...], dose: float = 5.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(dose, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (31, 33), (2, 31, 34)])
def test_any_shape_comes_back_with_its_mean(restorer: models.Restorer, shape: tuple[int, ...]):
    frames = noisy(shape)
    kept = frames.copy()
    result = restorer.restore(frames)
    assert result.shape == shape
    assert result.dtype == np.float32
    np.testing.assert_array_equal(frames, kept)
    np.testing.assert_allclose(result.mean((-2, -1)), frames.mean((-2, -1)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dose", [0.001, 0.3, 20.0, 1e6])
def test_any_dose(restorer: models.Restorer, dose: float) -> None:
    frame = noisy((32, 34), dose)
    result = restorer.restore(frame)
    assert np.isfinite(result).all()
    assert float(result.mean()) == pytest.approx(float(frame.mean()), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.7, -2.0])
def test_constant_frames(restorer: models.Restorer, value: float) -> None:
    frame = np.full((34, 40), value, np.float32)
    np.testing.assert_allclose(restorer.restore(frame), frame, rtol=1e-6)


def test_bad_pixels_and_in_place(restorer: models.Restorer) -> None:
    frame = noisy((32, 34))
    frame[3, 4], frame[9, 9] = np.nan, 3e38
    assert np.isfinite(restorer.restore(frame)).all()
    frame = noisy((32, 34))
    expected = restorer.restore(frame)
    assert restorer.restore(frame, out=frame) is frame
    np.testing.assert_array_equal(frame, expected)


def test_the_scale_of_the_frame_is_the_scale_of_the_result(restorer: models.Restorer) -> None:
    frame = noisy((32, 34))
    np.testing.assert_allclose(
        restorer.restore(frame * 8.0), restorer.restore(frame) * 8.0, rtol=1e-3, atol=1e-2
    )


def test_weights_load_by_card(restorer: models.Restorer, tmp_path: Path) -> None:
    network = restorer._network  # type: ignore[attr-defined]
    tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
    with torch.device("meta"):
        network = type(network)()
    path = imports._write(restorer.card, network, tensors, tmp_path)
    frame = noisy((32, 34))
    loaded = models.load_restorer(path, "cpu")
    np.testing.assert_array_equal(loaded.restore(frame), restorer.restore(frame))
    del tensors[next(iter(tensors))]
    save_file(tensors, path)
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    card["sha256"] = models.cards.sha256_of(path)
    path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded as their card describes"):
        models.load_restorer(path, "cpu")


class Sharpened(nn.Module):
    """Stands for a trained network: keeps one affine scale of its own."""

    multiple = 32

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(frames, 5, 1, 2, count_include_pad=False) * 0.01 - 3.0


def test_unet_output_is_put_on_the_scale_of_electrons() -> None:
    card = ModelCard(name="x", title="x", network="unet_resnet18")
    restorer = UnetResNet18Restorer(card, "cpu", Sharpened())  # type: ignore[arg-type]
    y, x = np.mgrid[0:128, 0:128]
    truth = (20.0 + 8.0 * np.sin(x / 9.0) * np.cos(y / 11.0)).astype(np.float32)
    frame = np.random.default_rng(0).poisson(truth).astype(np.float32)
    result = restorer.restore(frame)
    slope = np.polyfit(truth.ravel(), result.ravel(), 1)[0]
    # The stretch cuts the brightest fifth off, which the line cannot give back.
    assert slope == pytest.approx(1.0, abs=0.1)


def test_stretch_is_theirs() -> None:
    frame = noisy((64, 65), 40.0)
    low, high = unet_resnet18.stretch_limits(torch.from_numpy(frame))
    np.testing.assert_allclose([low, high], np.percentile(frame, (1, 80)), atol=1.0)
    sparse = np.zeros((20, 20), np.float32)
    sparse[4, 5] = 1.0
    assert unet_resnet18.stretch_limits(torch.from_numpy(sparse)) == (0.0, 1.0)


def test_normalisation_is_theirs() -> None:
    frame = noisy((64, 65))
    mean, scale = cgrdn.normalisation(torch.from_numpy(frame))
    assert mean == pytest.approx(float(frame.mean()), rel=1e-5)
    assert scale == pytest.approx(float(frame.std()), rel=1e-5)
    assert cgrdn.normalisation(torch.full((4, 4), 2.0)) == (2.0, cgrdn.STD_FLOOR)


def test_tiles_leave_no_seam() -> None:
    kernel = torch.rand(1, 1, 7, 7)

    def blur(frames: torch.Tensor) -> torch.Tensor:
        assert frames.shape[-1] % 4 == frames.shape[-2] % 4 == 0
        return nn.functional.conv2d(frames, kernel, padding=3)

    frame = torch.rand(101, 75)
    whole = tiles.run_tiled(blur, frame, multiple=4, tile_px=256, halo_px=8)
    cut = tiles.run_tiled(blur, frame, multiple=4, tile_px=32, halo_px=8)
    torch.testing.assert_close(cut, whole)


# -- import: tk-r-em -------------------------------------------------------------------------


def package(folder: Path, names: tuple[str, ...], **changes: np.ndarray) -> dict[str, torch.Tensor]:
    """Lay out tk-r-em's models with random variables; return them as ours."""
    torch.manual_seed(2)
    ours = {name: tensor.clone() for name, tensor in CGRDN().state_dict().items()}
    arrays = {}
    for number, layer in enumerate(imports._cgrdn_layers()):
        stem = f"layer_with_weights-{number}"
        kernel = ours[f"{layer}.weight"].permute(2, 3, 1, 0).contiguous().numpy()
        arrays[f"{stem}/kernel/.ATTRIBUTES/VARIABLE_VALUE"] = kernel
        arrays[f"{stem}/bias/.ATTRIBUTES/VARIABLE_VALUE"] = ours[f"{layer}.bias"].numpy()
    arrays.update(changes)
    first = folder / "models" / names[0] / "variables"
    write_checkpoint(first / "variables", arrays)
    for name in names[1:]:
        other = folder / "models" / name / "variables"
        other.mkdir(parents=True)
        for path in first.iterdir():
            os.link(path, other / path.name)
    return ours


def test_our_layers_are_all_of_the_network() -> None:
    with torch.device("meta"):
        expected = CGRDN().state_dict()
    found = {f"{layer}.{kind}" for layer in imports._cgrdn_layers() for kind in ("weight", "bias")}
    assert found == expected.keys()


def test_import_of_tk_r_em(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "TK_R_EM_MODELS", {"sfr_hrtem": "high-resolution TEM"})
    ours = package(tmp_path / "tk_r_em", ("sfr_hrtem",))
    (path,) = imports.import_tk_r_em(tmp_path)
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, ours[name])
    assert not list(path.parent.glob("*.part"))
    card = {c.name: c for c in models.list_restorers()}["cgrdn-hrtem"]
    assert card.network == "cgrdn"
    assert card.licence == "GPL-3.0-only"
    assert card.parameters == 7_035_521
    assert card.gmac_512 == pytest.approx(461, abs=0.5)
    assert not card.default
    restorer = models.load_restorer("cgrdn-hrtem", "cpu")
    assert restorer.restore(noisy((32, 34))).shape == (32, 34)


def test_all_six_models_are_imported_to_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "_import_cgrdn", lambda model, *rest: (model.name, *rest))
    for name in imports.TK_R_EM_MODELS:
        (tmp_path / "models" / name).mkdir(parents=True)
    rows = imports.import_tk_r_em(tmp_path, tmp_path / "out")
    assert [row[0] for row in rows] == list(imports.TK_R_EM_MODELS)  # type: ignore[index]
    assert {row[-1] for row in rows} == {tmp_path / "out"}  # type: ignore[index]


KEY = "layer_with_weights-{}/{}/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        (KEY.format(0, "kernel"), np.zeros((3, 3, 1, 60), np.float32), "not CGRDN: first.weight"),
        (KEY.format(3, "bias"), np.full(32, np.nan, np.float32), "not finite"),
        (KEY.format(152, "bias"), np.zeros(1, np.int32), "152"),
    ],
)
def test_other_models_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, array: np.ndarray, says: str
) -> None:
    monkeypatch.setattr(imports, "TK_R_EM_MODELS", {"sfr_lrtem": "low-resolution TEM"})
    package(tmp_path, ("sfr_lrtem",), **{name: array})
    with pytest.raises(ModelError, match=says) as caught:
        imports.import_tk_r_em(tmp_path)
    assert "\n" not in str(caught.value)
    assert not models.restorers.imported_folder().exists()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no model of tk-r-em in"):
        imports.import_tk_r_em(tmp_path)
    monkeypatch.setattr(imports.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'tem-live\[import\]'"):
        imports.import_tk_r_em()


# -- import: Katsuno -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict(alive(UnetResNet18()).state_dict())


@pytest.mark.parametrize("form", ["plain", "checkpoint", "parallel", "half", "safetensors"])
def test_import_of_a_state_dict(tmp_path: Path, theirs: dict[str, torch.Tensor], form: str) -> None:
    path = tmp_path / ("params.safetensors" if form == "safetensors" else "params.pth")
    if form == "safetensors":
        save_file(theirs, path)
    elif form == "checkpoint":
        torch.save({"state_dict": theirs, "epoch": 3}, path)
    elif form == "parallel":
        torch.save({f"module.{k}": v for k, v in theirs.items()}, path)
    elif form == "half":
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in theirs.items()}, path)
    else:
        torch.save(theirs, path)
    written = imports.import_katsuno(path)
    tolerance = 1e-2 if form == "half" else 0.0
    for name, tensor in load_file(written).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)
    restorer = models.load_restorer("katsuno", "cpu")
    assert restorer.concurrent
    assert restorer.card.source == path.name
    assert restorer.restore(noisy((32, 34))).shape == (32, 34)


def test_import_by_name_with_a_sigmoid(tmp_path: Path, theirs: dict[str, torch.Tensor]) -> None:
    torch.save(theirs, tmp_path / "p.pth")
    folder = tmp_path / "mine"
    path = imports.import_katsuno(tmp_path / "p.pth", folder, name="liquid", sigmoid=True)
    assert path == folder / "liquid.safetensors"
    assert models.load_restorer(path, "cpu")._network.sigmoid  # type: ignore[attr-defined]
    assert "liquid" not in {card.name for card in models.list_restorers()}


class Boom:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("echo a pickle ran > ran.txt",))


def refused(path: Path, says: str, kind: type[Exception] = ModelError) -> None:
    with pytest.raises(kind, match=says) as caught:
        imports.import_katsuno(path)
    assert "\n" not in str(caught.value)
    assert not models.restorers.imported_folder().exists()


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"weight": Boom()}, path)
    refused(path, "no plain tensors")
    path.write_bytes(pickle.dumps(Boom()))
    refused(path, "no plain tensors")
    assert not (tmp_path / "ran.txt").exists()


def test_a_whole_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 1, 3), tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "no plain tensors")


@pytest.mark.parametrize("name", ["text.pth", "junk.pth", "text.safetensors", "empty.pth"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = {"empty.pth": "", "junk.pth": "junk"}.get(name, "no weights")
    path.write_text(content, encoding="utf-8")
    refused(path, "no plain tensors")


def test_other_state_dicts_are_refused(tmp_path: Path, theirs: dict[str, torch.Tensor]) -> None:
    refused(tmp_path / "gone.pth", "no file", InputError)
    path = tmp_path / "p.pth"
    for value, says in (
        ([1, 2], "not a state dict"),
        ({"a": 1}, "not a state dict"),
        ({"a": torch.zeros(3)}, "it lacks encoder.conv1.weight"),
        ({**theirs, "further": torch.zeros(1)}, "further is not part of it"),
        ({**theirs, "encoder.conv1.weight": torch.zeros(64, 3, 7, 7)}, r"\(64, 3, 7, 7\), not"),
        ({**theirs, "segmentation_head.0.bias": torch.tensor([np.inf])}, "not finite"),
    ):
        torch.save(value, path)
        refused(path, says)


@pytest.mark.parametrize("name", ["fast", "none", "raw", "gaussian", "../x", "", "a b"])
def test_names_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--name"):
        imports.import_katsuno(tmp_path / "p.pth", name=name)


def test_a_folder_that_cannot_be_written(tmp_path: Path, theirs: dict[str, torch.Tensor]) -> None:
    torch.save(theirs, tmp_path / "p.pth")
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write to"):
        imports.import_katsuno(tmp_path / "p.pth", tmp_path / "file" / "here")


def test_a_broken_card_is_reported_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    folder = models.restorers.imported_folder()
    folder.mkdir(parents=True)
    (folder / "broken.json").write_text("{", encoding="utf-8")
    assert "broken" not in {card.name for card in models.list_restorers()}
    assert "broken.json" in caplog.text


def test_an_imported_card_cannot_become_the_default() -> None:
    folder = models.restorers.imported_folder()
    folder.mkdir(parents=True)
    shipped = Path(models.restorers.__file__).parent / "weights" / "fast.json"
    card = read_card(shipped).model_dump(mode="json")
    for name in ("fast", "other"):
        text = json.dumps({**card, "default": True, "title": "imported"})
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    cards = models.list_restorers()
    assert [card.name for card in cards if card.default] == ["fast"]
    assert [card.name for card in cards].count("fast") == 1
    assert models.load_restorer("fast", "cpu").card.title != "imported"
