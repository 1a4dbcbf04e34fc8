"""A better restorer as a teacher: part of what a smaller network is trained towards.

A frame of few electrons does not tell what it shows: between truth and the best that anybody could
make of it lies most of the error, and a step towards the truth is mostly a step towards chance.
What a better network makes of the same frame has none of that chance, and only the small error that
is its own (distillation: Hinton, Vinyals and Dean, arXiv:1503.02531). `tem_live.models.losses` has
the loss, a recipe's ``[loss] teacher`` names the restorer.

This module imports torch; import it lazily.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tem_live.errors import InputError
from tem_live.models.lightning_module import restored_frames
from tem_live.models.network import DoseUNet
from tem_live.models.restorers import load_restorer
from tem_live.models.training import Recipe
from tem_live.models.trim import network_of

__all__ = ["Teacher", "teacher_of"]

_TURNS = 4


class Teacher(nn.Module):
    """Restores frames turned and mirrored in another way each step.

    The mean of what a network makes of a frame from several sides is better than each
    (`tem_live.models.views`); over the steps that mean is what is taught, at the price of one.

    Parameters
    ----------
    network : DoseUNet
        Is not trained.
    """

    def __init__(self, network: DoseUNet) -> None:
        super().__init__()
        self.network = network.eval()
        self.network.requires_grad_(False)

    @torch.no_grad()
    def forward(self, frames: Tensor, step: int) -> Tensor:
        """Restore float32 (N, 1, H, W) in electrons, seen from the side of this step."""
        turns, mirrored = step % _TURNS, step // _TURNS % 2 == 1
        shown = torch.rot90(frames.flip(2) if mirrored else frames, turns, (2, 3))
        restored = restored_frames(self.network, shown.contiguous())
        restored = torch.rot90(restored, -turns, (2, 3))
        return restored.flip(2) if mirrored else restored


def teacher_of(recipe: Recipe) -> Teacher | None:
    """Load the restorer that a recipe names as its teacher; None where it names none.

    Raises
    ------
    InputError
        There is no such restorer, it has no network of this package, or the crops of the recipe
        do not fit that network.
    """
    if recipe.loss.teacher is None:
        return None
    network = network_of(load_restorer(recipe.loss.teacher, "cpu", "float32"))
    for crop in recipe.data.crops_px:
        if crop % network.multiple:
            raise InputError(
                f"data.crops_px {crop}: the teacher '{recipe.loss.teacher}' needs multiples of "
                f"{network.multiple} px"
            )
    layout: dict[str, Any] = {"memory_format": torch.channels_last}
    return Teacher(network.to(**layout))
