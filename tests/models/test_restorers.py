"""The public contract of restorers, on the one that ships and on the two baselines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tem_live import models
from tem_live.errors import InputError, ModelError
from tem_live.models import network_restorer, restorers
from tem_live.models.cards import read_card, sha256_of

NAMES = ["fast", "gaussian", "none"]
WEIGHTS = Path(restorers.__file__).parent / "weights"


@pytest.fixture(scope="module", params=NAMES)
def restorer(request: pytest.FixtureRequest) -> models.Restorer:
    return models.load_restorer(request.param, "cpu")


@pytest.fixture(scope="module")
def fast() -> models.Restorer:
    return models.load_restorer("fast", "cpu")


def noisy(shape: tuple[int, ...], dose: float = 5.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(dose, shape).astype(np.float32)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import tem_live.models, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "shape",
    [(512, 512), (1, 1), (1, 7), (9, 1), (2, 3), (31, 33), (64, 65), (127, 200), (3, 40, 50)],
)
def test_any_shape_comes_back_with_its_mean(
    restorer: models.Restorer, shape: tuple[int, ...]
) -> None:
    frames = noisy(shape)
    kept = frames.copy()
    result = restorer.restore(frames)
    assert isinstance(result, np.ndarray)
    assert result.shape == shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(frames, kept)
    axes = (-2, -1)
    np.testing.assert_allclose(result.mean(axes), frames.mean(axes), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dose", [0.001, 0.05, 0.3, 1.0, 20.0, 1e3, 1e6])
def test_mean_is_kept_at_any_dose(restorer: models.Restorer, dose: float) -> None:
    frame = noisy((96, 130), dose)
    result = restorer.restore(frame)
    assert np.isfinite(result).all()
    assert float(result.mean()) == pytest.approx(float(frame.mean()), rel=1e-3, abs=1e-6)
    # Nothing far outside of what was counted is made up.
    assert result.max() <= frame.max() * 1.05 + 1e-6
    assert result.min() >= frame.min() - 0.05 * frame.max() - 1e-6


def test_a_dark_frame_stays_dark(fast: models.Restorer) -> None:
    frame = np.random.default_rng(3).normal(0.0, 2.0, (128, 128)).astype(np.float32)
    result = fast.restore(frame)
    assert float(result.mean()) == pytest.approx(float(frame.mean()), abs=1e-3)
    assert result.std() < 0.2


def test_stack_is_frame_by_frame(restorer: models.Restorer) -> None:
    frames = noisy((3, 48, 70))
    together = restorer.restore(frames)
    for frame, result in zip(frames, together, strict=True):
        np.testing.assert_array_equal(restorer.restore(frame), result)


def test_empty_stack(restorer: models.Restorer) -> None:
    assert restorer.restore(np.zeros((0, 8, 8), np.float32)).shape == (0, 8, 8)


def test_repeats_exactly(restorer: models.Restorer) -> None:
    frame = noisy((100, 90))
    np.testing.assert_array_equal(restorer.restore(frame), restorer.restore(frame))


def test_out_is_written_in_place(restorer: models.Restorer) -> None:
    frame = noisy((65, 64))
    expected = restorer.restore(frame)
    out = np.full_like(frame, np.nan)
    assert restorer.restore(frame, out=out) is out
    np.testing.assert_array_equal(out, expected)
    view = np.zeros((65, 128), np.float32)[:, ::2]
    restorer.restore(frame, out=view)
    np.testing.assert_array_equal(view, expected)
    assert restorer.restore(frame, out=frame) is frame
    np.testing.assert_array_equal(frame, expected)


def test_tensors_and_dlpack(restorer: models.Restorer) -> None:
    frame = noisy((40, 64))
    expected = restorer.restore(frame)
    tensor = torch.from_numpy(frame.copy())
    out = torch.zeros_like(tensor)
    assert restorer.restore(tensor, out=out) is out
    np.testing.assert_array_equal(out.numpy(), expected)
    result = restorer.restore(tensor)
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64, np.float16, ">f4"])
def test_other_types_are_converted(restorer: models.Restorer, dtype: str) -> None:
    frame = noisy((32, 40))
    result = restorer.restore(frame.astype(dtype))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, restorer.restore(frame))


def test_read_only_and_flipped_frames(restorer: models.Restorer) -> None:
    frame = noisy((40, 48))
    flipped = frame[::-1, ::-1]
    np.testing.assert_array_equal(restorer.restore(flipped), restorer.restore(flipped.copy()))
    expected = restorer.restore(frame)
    frame.flags.writeable = False
    np.testing.assert_array_equal(restorer.restore(frame), expected)


@pytest.mark.parametrize("value", [0.0, 3.7, -2.0, 1e6])
def test_constant_frame_is_returned_as_it_is(restorer: models.Restorer, value: float) -> None:
    frame = np.full((50, 70), value, np.float32)
    np.testing.assert_allclose(restorer.restore(frame), frame, rtol=1e-6)


def test_one_electron(restorer: models.Restorer) -> None:
    frame = np.zeros((128, 96), np.float32)
    frame[40, 50] = 1.0
    result = restorer.restore(frame)
    assert float(result.sum(dtype=np.float64)) == pytest.approx(1.0, rel=1e-3)
    if restorer.name != "none":
        assert result.max() < 0.2
        assert result.min() > -1e-3


def test_all_electrons_in_one_pixel(fast: models.Restorer) -> None:
    frame = np.zeros((128, 96), np.float32)
    frame[40, 50] = 1e5
    result = fast.restore(frame)
    # It is a defect, and the rest of the frame is dark.
    assert np.isfinite(result).all()
    assert abs(float(result.mean())) < 0.05


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_do_not_spread(restorer: models.Restorer, bad: float) -> None:
    frame = noisy((128, 128), 20.0)
    broken = frame.copy()
    broken[30, 40] = bad
    broken[80:84, 90:95] = bad
    result = restorer.restore(broken)
    assert np.isfinite(result).all()
    finite = np.isfinite(broken)
    assert float(result.mean()) == pytest.approx(float(broken[finite].mean()), rel=1e-3)
    assert abs(result[82, 92] - 20.0) < 5.0
    difference = np.abs(result - restorer.restore(frame))
    assert difference[:, :24].max() < 1.0


def test_frame_without_a_finite_pixel_is_zero(restorer: models.Restorer) -> None:
    frame = np.full((20, 30), np.nan, np.float32)
    np.testing.assert_array_equal(restorer.restore(frame), np.zeros((20, 30)))


def test_overflowing_sum(restorer: models.Restorer) -> None:
    frame = noisy((40, 40))
    frame[3, 3] = 3e38
    frame[9, 9] = 3e38
    assert restorer.restore(frame).shape == frame.shape


def test_tiles_leave_no_seam(fast: models.Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[0:384, 0:320]
    scene = 5.0 + 2.0 * np.sin(x / 9.0) * np.cos(y / 14.0)
    frame = np.random.default_rng(5).poisson(scene).astype(np.float32)
    whole = fast.restore(frame)
    monkeypatch.setattr(network_restorer, "_TILE_PX", 320)
    tiled = fast.restore(frame)
    assert np.abs(tiled - whole).max() < 0.02 * whole.mean()


@pytest.mark.parametrize(
    ("frames", "out", "says"),
    [
        (np.zeros((2, 2, 2, 2), np.float32), None, r"\(H, W\)"),
        (np.zeros(5, np.float32), None, r"\(H, W\)"),
        (np.zeros((4, 4), np.complex64), None, "real"),
        (torch.zeros((4, 4), dtype=torch.complex64), None, "real"),
        (np.zeros((4, 4), object), None, "numbers"),
        ([[1.0, 2.0]], None, "list"),
        (np.zeros((4, 4), np.float32), np.zeros((4, 5), np.float32), "shape"),
        (np.zeros((4, 4), np.float32), np.zeros((4, 4)), "float32"),
        (np.zeros((4, 4), np.float32), torch.zeros((4, 4)), "same kind"),
        (torch.zeros((4, 4)), torch.zeros((4, 4), dtype=torch.float64), "float32"),
    ],
)
def test_wrong_input_is_refused(
    restorer: models.Restorer, frames: object, out: object, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        restorer.restore(frames, out=out)


# -- loading ---------------------------------------------------------------------------------


def test_exactly_one_default() -> None:
    cards = models.list_restorers()
    assert [card.name for card in cards if card.default] == ["fast"]
    assert models.default_restorer() == "fast"
    assert {card.name for card in cards} >= set(NAMES)
    assert len({card.name for card in cards}) == len(cards)


@pytest.mark.parametrize("name", NAMES)
def test_listed_restorers_load(name: str) -> None:
    restorer = models.load_restorer(name)
    assert restorer.name == name
    assert restorer.card.name == name
    assert restorer.device in ("cpu", "cuda")
    assert name in repr(restorer)


def test_raw_is_none() -> None:
    assert models.load_restorer("raw", "cpu").name == "none"


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ModelError, match=r"'slow'.*fast") as caught:
        models.load_restorer("slow")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_device() -> None:
    with pytest.raises(ModelError, match="device"):
        models.load_restorer("fast", "abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match="CUDA"):
        models.load_restorer(name, "cuda")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for suffix in (".safetensors", ".json"):
        shutil.copy(WEIGHTS / f"fast{suffix}", tmp_path / f"mine{suffix}")
    return tmp_path / "mine.safetensors"


def test_weights_load_by_path(copied: Path, fast: models.Restorer) -> None:
    frame = noisy((64, 64))
    for path in (copied, str(copied)):
        loaded = models.load_restorer(path, "cpu")
        np.testing.assert_array_equal(loaded.restore(frame), fast.restore(frame))


def one_line(path: Path, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        models.load_restorer(path, "cpu")
    assert "\n" not in str(caught.value)


def test_missing_weights(tmp_path: Path) -> None:
    one_line(tmp_path / "gone.safetensors", "no weights at")


def test_a_card_with_the_weights_of_another(copied: Path, fast: models.Restorer) -> None:
    views = copied.with_name("views.json")
    card = json.loads(copied.with_suffix(".json").read_text(encoding="utf-8"))
    views.write_text(json.dumps({**card, "name": "views", "weights": "mine"}), encoding="utf-8")
    frame = noisy((64, 64))
    loaded = models.load_restorer(views.with_suffix(".safetensors"), "cpu")
    assert loaded.name == "views"
    np.testing.assert_array_equal(loaded.restore(frame), fast.restore(frame))
    for elsewhere in ("../mine", "/etc/mine", "..", ".mine"):
        views.write_text(json.dumps({**card, "weights": elsewhere}), encoding="utf-8")
        one_line(views.with_suffix(".safetensors"), "model card")
    views.write_text(json.dumps({**card, "weights": "gone"}), encoding="utf-8")
    one_line(views.with_suffix(".safetensors"), "no weights at")


def test_missing_card(copied: Path) -> None:
    copied.with_suffix(".json").unlink()
    one_line(copied, "no model card at")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"surprise": 1}'])
def test_broken_card(copied: Path, text: str) -> None:
    copied.with_suffix(".json").write_text(text, encoding="utf-8")
    one_line(copied, "card")


def test_changed_weights_fail_the_hash(copied: Path) -> None:
    data = bytearray(copied.read_bytes())
    data[-1] ^= 1
    copied.write_bytes(data)
    one_line(copied, "SHA-256")


@pytest.mark.parametrize("cut", [0, 5, 1000])
def test_damaged_weights_with_a_right_hash(copied: Path, cut: int) -> None:
    copied.write_bytes(copied.read_bytes()[:cut])
    card = json.loads(copied.with_suffix(".json").read_text(encoding="utf-8"))
    card["sha256"] = sha256_of(copied)
    copied.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
    one_line(copied, "cannot be loaded")


def test_card_of_another_architecture(copied: Path) -> None:
    card = json.loads(copied.with_suffix(".json").read_text(encoding="utf-8"))
    card["architecture"]["widths"][0] += 8
    copied.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
    one_line(copied, "cannot be loaded")


def test_what_ships() -> None:
    card = read_card(WEIGHTS / "fast.json")
    weights = WEIGHTS / "fast.safetensors"
    assert weights.stat().st_size <= 10e6
    assert card.sha256 == sha256_of(weights)
    assert 0 < card.gmac_512 <= 10.0
    assert card.licence == "BSD-3-Clause"
    assert card.limits
    assert card.scores
    assert all(score.command for score in card.scores)
    shipped = {p.suffix for p in WEIGHTS.iterdir() if p.is_file()}
    assert shipped <= {".safetensors", ".json", ".py"}


def test_the_cards_figures_are_the_networks() -> None:
    from tem_live.models.network import DoseUNet
    from tem_live.models.publish import count_gmac, receptive_field_px

    card = read_card(WEIGHTS / "fast.json")
    shape = card.architecture
    network = DoseUNet(shape["widths"], shape["blocks"], middles=shape["middles"])
    assert sum(p.numel() for p in network.parameters()) == card.parameters
    assert count_gmac(network) == pytest.approx(card.gmac_512, abs=0.01)
    assert receptive_field_px(network) == card.receptive_field_px


# -- plug-ins --------------------------------------------------------------------------------


class _Entry:
    def __init__(self, name: str, thing: object) -> None:
        self.name, self.value, self._thing = name, f"{name}:plugin", thing

    def load(self) -> object:
        if isinstance(self._thing, Exception):
            raise self._thing
        return self._thing


class _Plugin:
    card = models.ModelCard(name="theirs", title="Theirs", default=True)

    def load(self, device: str) -> models.Restorer:
        return models.load_restorer("none", device)


def test_plugins_are_found_and_broken_ones_are_survived(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [
        _Entry("theirs", _Plugin()),
        _Entry("broken", ImportError("no such thing")),
        _Entry("cardless", object()),
        _Entry("fast", _Plugin()),
    ]
    monkeypatch.setattr(restorers.importlib.metadata, "entry_points", lambda group: entries)
    names = [card.name for card in models.list_restorers()]
    assert names.count("fast") == 1
    assert "theirs" in names
    assert not {"broken", "cardless"} & set(names)
    assert models.default_restorer() == "fast"
    assert models.load_restorer("theirs", "cpu").name == "none"
    assert "no such thing" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_processor(fast: models.Restorer) -> None:
    frame = noisy((128, 160))
    cuda = models.load_restorer("fast", "cuda")
    expected = fast.restore(frame)
    np.testing.assert_allclose(cuda.restore(frame), expected, atol=0.02)
    tensor = torch.from_numpy(frame).cuda()
    out = torch.empty_like(tensor)
    assert cuda.restore(tensor, out=out) is out
    np.testing.assert_allclose(out.cpu().numpy(), expected, atol=0.02)
