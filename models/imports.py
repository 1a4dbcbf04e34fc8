"""Bring in networks that others trained: converted on the user's machine, for this user alone.

Their weights have licences of their own and are not part of tem_live. What is written is what ships
too: safetensors with a card beside it. Nothing that could run code is read: the variables of a
TensorFlow checkpoint are raw numbers (`tem_live.models.tf_checkpoint`), and of PyTorch's pickles
only tensors are let in.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tem_live.errors import InputError, ModelError
from tem_live.models.cards import ModelCard, sha256_of, write_card
from tem_live.models.restorers import imported_folder, list_restorers
from tem_live.paths import written_whole

if TYPE_CHECKING:
    import torch

__all__ = ["TK_R_EM_MODELS", "import_katsuno", "import_tk_r_em"]

TK_R_EM_MODELS = {
    "sfr_hrtem": "high-resolution TEM",
    "sfr_lrtem": "low-resolution TEM",
    "sfr_hrstem": "high-resolution STEM",
    "sfr_lrstem": "low-resolution STEM",
    "sfr_hrsem": "high-resolution SEM",
    "sfr_lrsem": "low-resolution SEM",
}
"""The models of the package tk-r-em and the images that they were trained for."""

_CGRDN_LIMITS = (
    "No figure of it is known to this card: score it on your own frames (tem-live evaluate).",
    "Draws waves like those of a lattice where a frame shows little but noise (seen with the TEM "
    "networks, on simulated membranes and amorphous film).",
    "The mean of each frame is set to that of the raw one; the published network shifts it.",
    "The weights are under the GPL, version 3: converted for you, not part of tem_live.",
)
_UNET_LIMITS = (
    "The input saturates: what is brighter than four fifths of the frame is told apart no more.",
    "Electrons are found by a straight line from the output to the raw frame, see "
    "tem_live.models.unet_resnet18.",
    "What it was trained on is not known here; score it on your own frames (tem-live evaluate).",
)


def import_tk_r_em(source: Path | None = None, folder: Path | None = None) -> list[Path]:
    """Convert the six networks of Lobato et al. (arXiv:2303.17025) from the package tk-r-em.

    Parameters
    ----------
    source : Path, optional
        The unpacked package, or its folder ``models``; by default the installed package.
    folder : Path, optional
        Where to write; by default where `load_restorer` finds them by name.

    Returns
    -------
    list of Path
        ``cgrdn-hrtem.safetensors`` and so on, each with its card beside it.

    Raises
    ------
    ModelError
        The package is not there, or a model in it is missing, damaged or of another architecture.
    InputError
        The folder cannot be written to.
    """
    models, version = _installed_models() if source is None else (_models_in(source), "")
    return [
        _import_cgrdn(models / name, images, version, folder or imported_folder())
        for name, images in TK_R_EM_MODELS.items()
    ]


def import_katsuno(
    path: Path, folder: Path | None = None, *, name: str = "katsuno", sigmoid: bool = False
) -> Path:
    """Take in a network of Katsuno et al. (arXiv:2106.01718): their state dict.

    Parameters
    ----------
    path : Path
        A state dict of segmentation-models-pytorch's ``Unet("resnet18", in_channels=1)``, saved by
        ``torch.save`` or as safetensors.
    folder : Path, optional
        Where to write; by default where `load_restorer` finds it by name.
    name : str
        Name of the restorer.
    sigmoid : bool
        The network ends in a sigmoid, as that of 2023 (arXiv:2310.20279).

    Returns
    -------
    Path
        ``<name>.safetensors``, with its card beside it.

    Raises
    ------
    InputError
        No such file, a name that cannot be used, or the folder cannot be written to.
    ModelError
        The file is not such a state dict, or holds anything but tensors.
    """
    import torch

    from tem_live.models.unet_resnet18 import UnetResNet18

    _check_name(name)
    tensors = _state_dict(path)
    with torch.device("meta"):
        network = UnetResNet18()
    _check_fit(network, tensors, f"{path} is no state dict of Unet('resnet18', in_channels=1)")
    card = ModelCard(
        name=name,
        title="U-Net with a ResNet-18 encoder (Katsuno et al.), imported",
        network="unet_resnet18",
        modality="TEM, single frames, like those that it was trained on",
        noise="that of the microscope whose frames it was trained on",
        architecture={"sigmoid": [1]} if sigmoid else {},
        source=path.name,
        licence="LicenseRef-unknown",
        limits=_UNET_LIMITS,
    )
    return _write(card, network, tensors, folder or imported_folder())


def _import_cgrdn(model: Path, images: str, version: str, folder: Path) -> Path:
    import torch

    from tem_live.models.cgrdn import CGRDN
    from tem_live.models.tf_checkpoint import read_checkpoint

    variables = read_checkpoint(model / "variables" / "variables")
    with torch.device("meta"):
        network = CGRDN()
    tensors: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(_cgrdn_layers()):
        for ours, theirs in (("weight", "kernel"), ("bias", "bias")):
            key = f"layer_with_weights-{number}/{theirs}/.ATTRIBUTES/VARIABLE_VALUE"
            if key not in variables:
                raise ModelError(f"{model} is not CGRDN: it has no {key}; use tk-r-em 1.0.4")
            value = torch.from_numpy(variables.pop(key))
            if ours == "weight" and value.ndim == 4:
                # Height, width, in, out; of the transposed convolution out, in: as torch has it.
                value = value.permute(3, 2, 0, 1)
            tensors[f"{layer}.{ours}"] = value.contiguous()
    _check_fit(network, tensors, f"{model} is not CGRDN")
    kind = model.name.removeprefix("sfr_")
    card = ModelCard(
        name=f"cgrdn-{kind}",
        title=f"CGRDN of Lobato et al. for {images}, imported",
        network="cgrdn",
        modality=f"{images}, single frames",
        noise="counting, read-out and dark noise, X-ray hits, dead pixels; scan noise for S(T)EM",
        source=f"tk-r-em {version}".rstrip() + f", {model.name}",
        licence="GPL-3.0-only",
        limits=_CGRDN_LIMITS,
    )
    return _write(card, network, tensors, folder)


def _cgrdn_layers() -> list[str]:
    """Names of our layers in the order in which theirs are numbered, that of the computation."""
    names = ["first", "down"]
    for group in range(4):
        for block in range(4):
            here = f"groups.{group}.blocks.{block}"
            names += [f"{here}.layers.{layer}" for layer in range(8)] + [f"{here}.fuse"]
        names.append(f"groups.{group}.fuse")
    return [*names, "fuse", "up", "last"]


def _installed_models() -> tuple[Path, str]:
    """Folder of the models in the installed package, which is not imported, and its version."""
    spec = importlib.util.find_spec("tk_r_em")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "tk-r-em is not installed; pip install 'tem-live[import]' (190 MB, GPL-3), or name the "
            "folder in which it was unpacked"
        )
    try:
        version = importlib.metadata.version("tk-r-em")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return _models_in(Path(spec.submodule_search_locations[0])), version


def _models_in(source: Path) -> Path:
    for folder in (source, source / "models", source / "tk_r_em" / "models"):
        if any((folder / name).is_dir() for name in TK_R_EM_MODELS):
            return folder
    raise ModelError(f"no model of tk-r-em in {source}; name the folder of the unpacked package")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"--name {name!r}: use letters, digits, dots, dashes and underscores")
    ours = {card.name for card in list_restorers() if not card.source} | {"raw", "identity"}
    if name in ours:
        raise InputError(f"--name {name}: a restorer of that name exists; choose another")


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file, by name; whatever else a pickle may hold is refused unread."""
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"no file {path}; give the state dict that torch.save wrote")
    try:
        if path.suffix == ".safetensors":
            value: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                # It wonders about pickles that it goes on to refuse.
                warnings.simplefilter("ignore")
                value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        # Of a damaged pickle anything may come, struct.error or IndexError say; and what torch says
        # of others advises to load the file with everything that it may run.
        raise ModelError(
            f"{path} holds no plain tensors; save the network's state_dict() with torch.save or "
            "as safetensors"
        ) from None
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items()
    ):
        raise ModelError(f"{path} is not a state dict; save the network's state_dict()")
    return {
        key.removeprefix("module."): (
            tensor.float() if tensor.is_floating_point() else tensor
        ).contiguous()
        for key, tensor in value.items()
    }


def _check_fit(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise `ModelError` unless the tensors are this network's, of its shapes, and finite."""
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise ModelError(f"{what}: it lacks {name}")
        if tensors[name].shape != tensor.shape:
            shape, wanted = tuple(tensors[name].shape), tuple(tensor.shape)
            raise ModelError(f"{what}: {name} is {shape}, not {wanted}")
        if not bool(tensors[name].isfinite().all()):
            raise ModelError(f"{what}: {name} is not finite")
    for name in tensors:
        if name not in expected:
            raise ModelError(f"{what}: {name} is not part of it")


def _write(
    card: ModelCard, network: torch.nn.Module, tensors: dict[str, torch.Tensor], folder: Path
) -> Path:
    """Write the weights and then the card, each in one move; count what the card tells."""
    import torch
    from safetensors.torch import save_file

    from tem_live.models.macs import count_work

    path = folder / f"{card.name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            save_file(tensors, part)
        frame = torch.empty(1, 1, 512, 512, device="meta")
        figures = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "gmac_512": round(count_work(network, frame).macs / 1e9, 1),
            "sha256": sha256_of(path),
        }
        write_card(path.with_suffix(".json"), card.model_copy(update=figures))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return path
