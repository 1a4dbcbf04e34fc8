"""What happens beside the steps: progress for the user, checkpoints against a kill.

This module imports torch and Lightning; import it lazily.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from tem_live.models.lightning_checkpoint import write, write_weights
from tem_live.models.lightning_module import RestorerModule
from tem_live.models.training import Progress

__all__ = ["Checkpoints", "ProgressReport"]

_EVERY_S = 10.0


class ProgressReport(Callback):
    """Says every ten seconds how far it is, and writes it to ``log.jsonl``.

    Parameters
    ----------
    folder : Path
        Of the run.
    tell : callable of Progress, optional
        Who is told.
    stop : threading.Event, optional
        Set by someone who wants the run to end.
    """

    def __init__(
        self,
        folder: Path,
        tell: Callable[[Progress], None] | None,
        stop: threading.Event | None,
    ) -> None:
        self._folder, self._tell, self._stop = folder, tell, stop
        self._said = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._said = time.monotonic()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Pass the wish to end on, before the devices agree on it."""
        pl_module.stopping = self._stop is not None and self._stop.is_set()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report where it is time."""
        if time.monotonic() - self._said > _EVERY_S:
            self._report(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Report the end."""
        self._report(trainer, pl_module)

    def _report(self, trainer: lightning.Trainer, module: RestorerModule) -> None:
        self._said = time.monotonic()
        losses, ratios = module.losses[:], module.ratios[:]
        module.losses.clear()
        module.ratios.clear()
        if not losses or not trainer.is_global_zero:
            return
        report = Progress(
            step=module.step,
            minutes=module.seconds / 60.0,
            max_minutes=module.recipe.optim.max_minutes,
            loss=float(torch.stack(losses).mean()),
            error_ratio=math.exp(float(torch.stack(ratios).mean())),
            learning_rate=module.rate(),
        )
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(report.model_dump_json() + "\n")
        if self._tell is not None:
            self._tell(report)


class Checkpoints(Callback):
    """Writes a checkpoint and the averaged weights every few minutes, and at the end.

    Parameters
    ----------
    folder : Path
        Of the run.
    minutes : float
        Between two of them.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self._folder, self._minutes = folder, minutes
        self._saved = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write where it is time."""
        if time.monotonic() - self._saved > 60.0 * self._minutes:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write the last one."""
        self._write(trainer, pl_module)

    def _write(self, trainer: lightning.Trainer, module: RestorerModule) -> None:
        self._saved = time.monotonic()
        if not trainer.is_global_zero:
            return
        recipe = module.recipe
        write(
            self._folder,
            module.parts(),
            step=module.step,
            seconds=module.seconds,
            recipe=recipe.model_dump(mode="json"),
        )
        write_weights(self._folder, recipe, module.average, module.step)
