"""Go on training a shipped restorer on one's own data, and say what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tem_live.errors import InputError
from tem_live.models.cards import ModelCard
from tem_live.models.restorers import load_restorer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["weights_of"]


def weights_of(name: str) -> dict[str, Tensor]:
    """Weights of an installed restorer, or of a .safetensors path, to start a training from.

    Raises
    ------
    InputError
        It is not one of our networks.
    """
    _, weights = _network_of(name)
    return weights


def _network_of(name: str) -> tuple[ModelCard, dict[str, Tensor]]:
    restorer = load_restorer(Path(name) if name.endswith(".safetensors") else name, "cpu")
    network = getattr(restorer, "_network", None)
    if restorer.card.kind != "network" or restorer.card.network != "dose_unet" or network is None:
        raise InputError(f"{name} is no network of ours to go on training; use fast")
    return restorer.card, {k: v.clone() for k, v in network.state_dict().items()}
