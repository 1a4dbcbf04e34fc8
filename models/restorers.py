"""Find restorers and load them: those that ship, those of this user and those of other packages.

A restorer takes frames in electrons per pixel and returns frames in electrons per pixel, of any
height and width, as NumPy arrays, torch tensors or anything else that speaks DLPack (CuPy).
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import platformdirs

from tem_live.errors import ModelError
from tem_live.models.cards import ModelCard, read_card, sha256_of
from tem_live.models.plain import GAUSSIAN, NONE, GaussianRestorer, NoneRestorer
from tem_live.models.restorer import Precision, Restorer, resolve_device

if TYPE_CHECKING:
    import torch

    from tem_live.models.openvino_scales import Scales

__all__ = [
    "ENTRY_POINTS",
    "Precision",
    "Restorer",
    "RestorerPlugin",
    "default_restorer",
    "imported_folder",
    "list_restorers",
    "load_restorer",
]

_log = logging.getLogger(__name__)

ENTRY_POINTS = "tem_live.restorers"
"""Entry-point group in which other packages offer restorers, see `RestorerPlugin`."""

_WEIGHTS = Path(__file__).parent / "weights"

_VIDEO = ModelCard(
    name="video",
    title="The default restorer with the frames before, moved with the specimen",
    kind="temporal",
    noise="any",
    limits=(
        "For frames of one field of view that follow one another; drift as a whole is followed, "
        "rotation and what moves by itself are not: there it is the single frame's restorer.",
        "A change that is less than noise over some 20 px fades over about a dozen frames.",
        "Takes twice the time of the single frame's restorer, and cannot share it among cores.",
    ),
)


@runtime_checkable
class RestorerPlugin(Protocol):
    """What an entry point of the group ``tem_live.restorers`` must resolve to."""

    card: ModelCard

    def load(self, device: str) -> Restorer:
        """Return the restorer, ready on `device` ("auto", "cpu", "cuda", "cuda:1")."""
        ...


def _plugins() -> dict[str, RestorerPlugin]:
    """Restorers of other packages; a broken one is reported and left out."""
    found: dict[str, RestorerPlugin] = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            plugin = entry.load()
        except Exception as error:  # whatever a stranger's import raises
            _log.warning("restorer plug-in %s (%s) is broken: %s", entry.name, entry.value, error)
            continue
        if isinstance(plugin, RestorerPlugin) and isinstance(plugin.card, ModelCard):
            found[entry.name] = plugin
        else:
            _log.warning("restorer plug-in %s (%s) has no card", entry.name, entry.value)
    return found


def imported_folder() -> Path:
    """Folder of this user's imported restorers; see `tem_live.models.imports`."""
    return Path(platformdirs.user_data_dir("tem_live", appauthor=False)) / "models"


def _imported() -> dict[str, ModelCard]:
    """Cards of what this user imported, by file name; a broken one is reported and left out."""
    found: dict[str, ModelCard] = {}
    for path in sorted(imported_folder().glob("*.json")):
        try:
            card = read_card(path)
        except ModelError as error:
            _log.warning("%s", error)
            continue
        # The default is ours to name, and the name is what `load_restorer` finds the file by.
        found[path.stem] = card.model_copy(update={"name": path.stem, "default": False})
    return found


def list_restorers() -> list[ModelCard]:
    """Cards of all restorers that are installed, the default first; no weights are loaded."""
    return _cards(_imported(), _plugins())


def _cards(
    imported: Mapping[str, ModelCard], plugins: Mapping[str, RestorerPlugin]
) -> list[ModelCard]:
    cards = [read_card(path) for path in sorted(_WEIGHTS.glob("*.json"))]
    cards.sort(key=lambda card: not card.default)
    cards += [_VIDEO, GAUSSIAN, NONE]
    taken = {card.name for card in cards}
    cards += [card for name, card in imported.items() if name not in taken]
    taken |= {card.name for card in cards}
    for name, plugin in sorted(plugins.items()):
        if name not in taken:
            # The default is ours to name: a plug-in must not change what runs by being installed.
            cards.append(plugin.card.model_copy(update={"name": name, "default": False}))
    return cards


def default_restorer() -> str:
    """Name of the restorer to use where none is named."""
    for card in list_restorers():
        if card.default:
            return card.name
    raise ModelError("no default restorer is installed; reinstall tem_live")


def load_restorer(
    name_or_path: str | os.PathLike[str] = "fast",
    device: str = "auto",
    precision: Precision = "auto",
) -> Restorer:
    """Load a restorer.

    Parameters
    ----------
    name_or_path : str or path
        A name from `list_restorers`, or the path of a .safetensors with its card beside it.
    device : str
        "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
    precision : {"auto", "float32", "float16", "int8"}
        What the networks of this package compute in. "auto" takes 8 bit integers where the
        processor has instructions for them and they give the same within a small share of the
        noise (`tem_live.models.int8`), else float32; on a GPU float32, as a CUDA graph. "float16"
        is for GPUs. Other networks are always float32.

    Returns
    -------
    Restorer

    Raises
    ------
    ModelError
        Unknown name, missing or damaged file, a device that is not there, or a precision
        that does not work there.
    """
    text = os.fspath(name_or_path)
    if text in ("none", "raw", "identity"):
        return NoneRestorer(NONE, resolve_device(device))
    if text == "video":
        from tem_live.models.video import VideoRestorer

        return VideoRestorer(_VIDEO, load_restorer(default_restorer(), device, precision))
    if text == "gaussian":
        return GaussianRestorer(GAUSSIAN, resolve_device(device))
    if text.endswith(".safetensors") or not isinstance(name_or_path, str):
        return _load_network(Path(text), resolve_device(device), precision)
    if (_WEIGHTS / f"{text}.json").is_file():
        return _load_network(_WEIGHTS / f"{text}.safetensors", resolve_device(device), precision)
    imported = _imported()
    if text in imported:
        return _load_network(
            imported_folder() / f"{text}.safetensors", resolve_device(device), precision
        )
    plugins = _plugins()
    if text in plugins:
        return plugins[text].load(resolve_device(device))
    known = ", ".join(card.name for card in _cards(imported, plugins))
    raise ModelError(f"no restorer is called {text!r}; use one of {known}, or a .safetensors path")


def _load_network(path: Path, device: str, precision: Precision) -> Restorer:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from tem_live.models.openvino_scales import scales_in, without_scales

    described = path.with_suffix(".json")
    if not path.is_file() and not described.is_file():
        raise ModelError(f"no weights at {path}; check the path or reinstall tem_live")
    card = read_card(described)
    if card.weights:
        path = path.with_name(f"{card.weights}.safetensors")
    if not path.is_file():
        raise ModelError(f"no weights at {path}; check the path or reinstall tem_live")
    if card.sha256 is None or sha256_of(path) != card.sha256:
        raise ModelError(
            f"the weights {path} do not match their card (SHA-256); the file is damaged or was "
            "replaced: reinstall tem_live or fetch it again"
        )
    try:
        network = _make_network(card)
        tensors = load_file(path)
        weights = without_scales(tensors)
        network.load_state_dict({k: _float32(v) for k, v in weights.items()})
    except (SafetensorError, RuntimeError, KeyError, ValueError, OSError) as error:
        raise ModelError(
            f"the weights {path} cannot be loaded as their card describes them: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return _make_restorer(card, device, network, precision, scales_in(tensors))


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    """Weights may be stored in half precision; the counters of a normalisation are integers."""
    import torch

    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _make_network(card: ModelCard) -> torch.nn.Module:
    if card.network == "unet_resnet18":
        from tem_live.models.unet_resnet18 import UnetResNet18

        return UnetResNet18(sigmoid=bool(card.architecture.get("sigmoid")))
    if card.network == "cgrdn":
        from tem_live.models.cgrdn import CGRDN

        return CGRDN()
    from tem_live.models.network import DoseUNet

    shape = card.architecture
    widths, depths = cast("list[int]", shape["widths"]), cast("list[int]", shape["blocks"])
    middles = cast("list[int]", shape.get("middles", []))
    return DoseUNet(widths, depths, bool(shape.get("waves", False)), middles)


def _make_restorer(
    card: ModelCard, device: str, network: Any, precision: Precision, scales: Scales | None
) -> Restorer:
    import torch

    if card.network == "unet_resnet18":
        from tem_live.models.unet_resnet18 import UnetResNet18Restorer

        return UnetResNet18Restorer(card, device, network)
    if card.network == "cgrdn":
        from tem_live.models.cgrdn import CgrdnRestorer

        return CgrdnRestorer(card, device, network)
    from tem_live.models.network_restorer import NetworkRestorer
    from tem_live.models.views import ViewsRestorer

    network = network.requires_grad_(False).eval().to(torch.device(device))
    network = network.to(memory_format=torch.channels_last)
    kind = ViewsRestorer if card.kind == "views" else NetworkRestorer
    return kind(card, device, network, precision, scales)
