"""Checkpoints of a training run: a folder of safetensors and one small pointer to the newest.

    latest.json              step, seconds, recipe, name of the folder
    step-0001200/
        network.safetensors      float32
        average.safetensors      float32: what is exported
        moments.safetensors      bfloat16: m.NAME and v.NAME of AdamW
        discriminator.safetensors, discriminator-moments.safetensors     of an adversarial stage

The pointer is moved last, so that a kill at any moment leaves the old checkpoint or the new one.
No file is larger than `MOST_BYTES`: what does not fit goes on in ``network-2.safetensors`` and so
on. Nothing in them knows of a device.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tem_live.errors import InputError
from tem_live.models.training import Recipe, writing_to
from tem_live.paths import written_whole

if TYPE_CHECKING:
    from tem_live.models.network import DoseUNet

__all__ = [
    "MOST_BYTES",
    "Checkpoint",
    "latest",
    "moments_of",
    "restore_moments",
    "write",
    "write_weights",
]

MOST_BYTES = 16_000_000
"""No file of a checkpoint is larger."""


class Checkpoint:
    """A checkpoint that was found.

    Attributes
    ----------
    folder : Path
        Its tensors.
    step : int
        Steps taken.
    seconds : float
        Time spent training.
    recipe : dict
        As it was then.
    """

    def __init__(self, folder: Path, step: int, seconds: float, recipe: dict[str, Any]) -> None:
        self.folder = folder
        self.step = step
        self.seconds = seconds
        self.recipe = recipe

    def tensors(self, part: str) -> dict[str, Tensor]:
        """All tensors of a part ("network", "average", "moments" ...), on the processor.

        Raises
        ------
        InputError
            A file of it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob(f"{part}*.safetensors")):
            number = path.stem.removeprefix(part)
            if number == "" or (number[0] == "-" and number[1:].isdigit()):
                try:
                    found.update(load_file(path))
                except (OSError, SafetensorError) as error:
                    raise InputError(
                        f"{path} is damaged; begin anew with --no-resume, or in another folder"
                    ) from error
        return found


def latest(folder: Path) -> Checkpoint | None:
    """Newest whole checkpoint in the folder of a run; None where there is none.

    Raises
    ------
    InputError
        The pointer cannot be read, or what it points to is gone.
    """
    pointer = folder / "latest.json"
    try:
        value = json.loads(pointer.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{pointer} cannot be read; delete it to begin anew") from error
    try:
        found = Checkpoint(
            folder / str(value["folder"]),
            int(value["step"]),
            float(value["seconds"]),
            dict(value["recipe"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{pointer} is no pointer to a checkpoint; delete it") from error
    if not found.folder.is_dir():
        raise InputError(f"the checkpoint {found.folder} is gone; delete {pointer} to begin anew")
    return found


def write(
    folder: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    *,
    step: int,
    seconds: float,
    recipe: Mapping[str, Any],
) -> Path:
    """Write a checkpoint and remove the one before; returns its folder.

    Raises
    ------
    InputError
        It cannot be written (the disk is full, say); the one before is still there.
    """
    target = folder / f"step-{step:07d}"
    try:
        before = latest(folder)
    except InputError:  # broken, and about to be replaced
        before = None
    if before is not None and before.folder == target:
        # Another run's, or this one's: what the pointer names is not touched before it moves.
        target = target.with_name(f"{target.name}-again")
    with writing_to(folder):
        # A kill may have left half of it.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for part, tensors in parts.items():
            _save_part(target, part, tensors)
        value = {"folder": target.name, "step": step, "seconds": seconds, "recipe": dict(recipe)}
        pointer = folder / "latest.json"
        with written_whole(pointer) as beside, beside.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(value, indent=2) + "\n")
            stream.flush()
            # The pointer must not reach the disk before what it points to.
            os.fsync(stream.fileno())
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _save_part(target: Path, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Save in files of at most `MOST_BYTES`; the first keeps the part's plain name."""
    from safetensors.torch import save_file

    room = MOST_BYTES - 500_000  # names and shapes
    files: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room:
            raise InputError(f"the weights {name} alone take {size} bytes; use a narrower network")
        if used + size > room:
            files.append({})
            used = 0
        files[-1][name] = tensor.detach().cpu().contiguous()
        used += size
    for number, content in enumerate(files, 1):
        path = target / (f"{part}.safetensors" if number == 1 else f"{part}-{number}.safetensors")
        save_file(content, path)
        with contextlib.suppress(OSError), path.open("rb+") as stream:
            os.fsync(stream.fileno())


def moments_of(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's two moments of each weight; bfloat16 keeps their range and halves the file."""
    out: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        state = optimiser.state.get(parameter)
        if state:
            out[f"m.{name}"] = state["exp_avg"].to(torch.bfloat16)
            out[f"v.{name}"] = state["exp_avg_sq"].to(torch.bfloat16)
    return out


def restore_moments(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    moments: Mapping[str, Tensor],
    step: int,
) -> None:
    """Put moments back; weights that have none start afresh."""
    for name, parameter in network.named_parameters():
        if f"m.{name}" in moments:
            optimiser.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": moments[f"m.{name}"].to(parameter).clone(),
                "exp_avg_sq": moments[f"v.{name}"].to(parameter).clone(),
            }


def write_weights(
    folder: Path, recipe: Recipe, average: DoseUNet, step: int, scales: bool = False
) -> Path:
    """Write the averaged weights in half precision, ``<name>.safetensors``: what ships.

    With ``scales`` those of its 8 bit integers are measured and written too: some seconds that
    loading them then need not take.
    """
    from safetensors.torch import save_file

    from tem_live.models.openvino_scales import measured_scales, tensors_of

    path = folder / f"{recipe.name}.safetensors"
    metadata = {
        "architecture": "DoseUNet",
        "widths": json.dumps(recipe.network.widths),
        "blocks": json.dumps(recipe.network.blocks),
        "waves": json.dumps(recipe.network.waves),
        "middles": json.dumps(recipe.network.middles),
        "step": str(step),
    }
    tensors = {
        name: tensor.detach().cpu().to(torch.float16).contiguous()
        for name, tensor in average.state_dict().items()
    }
    if scales:
        # In half precision, as it will be used, and on the processor, where it will be.
        network = copy.deepcopy(average).cpu().eval().requires_grad_(False)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        tensors |= tensors_of(measured_scales(network))
    with writing_to(folder), written_whole(path) as part:
        save_file(tensors, part, metadata=metadata)
    return path
