"""Train a restorer with Lightning: progress, checkpoints, resuming, mixed precision, devices.

Lightning drives; what it would keep as a pickle is written as safetensors instead, see
`tem_live.models.lightning_checkpoint`. Several GPUs are Lightning's ``ddp``: each makes batches
of its own, and their gradients are averaged.

This module imports torch and Lightning inside its functions only.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tem_live.errors import InputError
from tem_live.models.training import Progress, Recipe, load_recipe, writing_to

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from torch import Tensor

    from tem_live.models.lightning_checkpoint import Checkpoint
    from tem_live.models.lightning_data import BatchMaker

__all__ = ["fit", "train"]

_log = logging.getLogger(__name__)


def train(
    recipe_path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Train a restorer by a recipe of simulated data.

    Parameters
    ----------
    recipe_path : path
        A TOML recipe, see `tem_live.models.training.Recipe`.
    output_dir : path, optional
        Where scenes, checkpoints and the log go; default ``.train/<name>``.
    resume : bool
        Continue from the newest checkpoint in `output_dir` (from the start if there is none).
    device : str
        "auto" (CUDA where there is one), "cpu" or "cuda".
    devices : int
        How many of them.
    progress : callable, optional
        Called about every ten seconds with a `Progress`.
    stop : threading.Event, optional
        Set it to end early; a checkpoint is written.

    Returns
    -------
    Path
        The averaged weights, ``<name>.safetensors`` in `output_dir` (float16).

    Raises
    ------
    InputError
        The recipe is missing or wrong, the checkpoint belongs to another network, or Lightning
        is not installed.
    """
    recipe = load_recipe(recipe_path)
    folder = Path(output_dir) if output_dir is not None else Path(".train") / recipe.name
    return fit(
        recipe,
        folder,
        resume=resume,
        device=device,
        devices=devices,
        progress=progress,
        stop=stop,
    )


def fit(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    weights: dict[str, Tensor] | None = None,
    maker: BatchMaker | None = None,
) -> Path:
    """Train by a recipe that was read; arguments as those of `train`.

    Parameters
    ----------
    recipe, folder
        What to train, and where checkpoints go.
    resume, device, devices, progress, stop
        See `train`.
    weights : dict of str to Tensor, optional
        What to start from; by default what the recipe's ``start`` names, or random weights.
    maker : BatchMaker, optional
        Makes the batches instead of the recipe's ``data``: the user's own.

    Returns
    -------
    Path
        See `train`.
    """
    _must_have_lightning()
    import lightning
    import torch

    from tem_live.models.lightning_callbacks import Checkpoints, ProgressReport
    from tem_live.models.lightning_checkpoint import latest, write_weights
    from tem_live.models.lightning_data import RecipeData
    from tem_live.models.lightning_module import RestorerModule
    from tem_live.models.restorer import resolve_device
    from tem_live.models.teacher import teacher_of

    kind = torch.device(resolve_device(device)).type
    if devices < 1 or (kind == "cuda" and devices > torch.cuda.device_count()):
        raise InputError(f"--devices {devices}: there are {torch.cuda.device_count()} GPUs here")
    if kind == "cpu":
        torch.set_num_threads(recipe.optim.threads)
    with writing_to(folder):  # before anything long begins
        pass
    module = RestorerModule(recipe)
    found = latest(folder) if resume else None
    if found is not None:
        _must_be_the_same_training(recipe, found)
        module.resume(found)
        _log.info("resumed at step %d", module.step)
    elif weights is not None:
        module.begin_with(weights)
    elif recipe.start is not None:
        from tem_live.models.finetune import weights_of

        module.begin_with(weights_of(recipe.start))
    if module.finished():
        return write_weights(folder, recipe, module.average, module.step, scales=True)
    module.teacher = teacher_of(recipe)
    data = RecipeData(recipe, folder, maker)
    data.first_step = module.step
    precision = recipe.machine.precision
    if precision == "auto":
        precision = "bf16-mixed" if kind == "cuda" else "32-true"
    callbacks: list[Callback] = [
        ProgressReport(folder, progress, stop),
        Checkpoints(folder, recipe.optim.checkpoint_minutes),
    ]
    with warnings.catch_warnings(), _quiet():
        # Batches never end and are made ahead by a thread: advice on workers does not apply.
        warnings.filterwarnings("ignore", message=r"(?s).*does not have many workers.*")
        # The teacher's, which stay so; none of ours behaves differently in training.
        warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode.*")
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"(?s).*`IterableDataset` has `__len__`.*")
        trainer = lightning.Trainer(
            accelerator="gpu" if kind == "cuda" else "cpu",
            devices=devices,
            strategy="auto" if devices == 1 else _parallel(recipe),
            precision=precision,
            max_epochs=-1,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=data)
    if not trainer.is_global_zero:
        # Lightning started this process for one more device; the first one tells and publishes.
        raise SystemExit(0)
    return write_weights(folder, recipe, module.average, module.step, scales=True)


def _parallel(recipe: Recipe) -> str:
    # The network's loss does not reach the discriminator's weights, and the other way round.
    return "ddp_find_unused_parameters_true" if recipe.loss.gan_weight else "ddp"


def _must_be_the_same_training(recipe: Recipe, found: Checkpoint) -> None:
    """What a run learns from stays; how long it runs, and on what machine, may change."""
    try:
        before = type(recipe).model_validate(found.recipe)
    except ValueError:
        # Of a recipe that could say something else: nothing to compare.
        return
    for part in ("start", "seed", "data", "loss", "own"):
        if getattr(before, part) != getattr(recipe, part):
            raise InputError(
                f"cannot resume: the checkpoint in {found.folder.parent} is of a recipe with "
                f"another '{part}'; begin anew with --no-resume, or in another folder (--out)"
            )


def _must_have_lightning() -> None:
    if importlib.util.find_spec("lightning") is None:
        raise InputError("training needs Lightning; pip install 'tem-live[train]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notes on hardware and tips are no news to someone who trains a restorer."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
