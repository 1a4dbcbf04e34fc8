"""Where training batches come from, as a Lightning data module.

On a GPU only the number of the step is handed over, and the batch is made there
(`tem_live.models.data_device`). On a processor, and for scans and the user's own data, batches are
made a few ahead where there are cores for it: in a thread, or in as many processes as the recipe's
``machine.workers``.

This module imports torch and Lightning; import it lazily.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tem_live.models.data_device import Batch, DeviceBatches
from tem_live.models.data_scenes import open_scenes, scene_file
from tem_live.models.training import Recipe

__all__ = ["BatchMaker", "RecipeData"]

_AHEAD = 3


class BatchMaker(Protocol):
    """Makes the batch of any step on the processor; picklable where there are workers."""

    def make(self, step: int, rank: int = 0) -> Batch:
        """Make the batch of one step for one of several devices."""
        ...


class _Batches(IterableDataset[Batch]):
    """Batches of all steps from a first one on; workers take turns."""

    def __init__(self, maker: BatchMaker, first: int, rank: int) -> None:
        super().__init__()
        self._maker, self._first, self._rank = maker, first, rank

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        if worker is None and torch.get_num_threads() < (os.cpu_count() or 1):
            yield from _made_ahead(self._maker, self._first, self._rank)
            return
        # Beside a training that has all cores a thread that makes batches would only be in its way:
        # 145 instead of 100 ms a step on two cores.
        step, stride = self._first, 1
        if worker is not None:
            step, stride = step + worker.id, worker.num_workers
        while True:
            yield self._maker.make(step, self._rank)
            step += stride


class _Steps(IterableDataset[int]):
    """Numbers of the steps; the batch is made on the device."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def __iter__(self) -> Iterator[int]:
        step = self._first
        while True:
            yield step
            step += 1


def _made_ahead(maker: BatchMaker, first: int, rank: int) -> Iterator[Batch]:
    """Make batches in a thread, a few ahead."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def work() -> None:
        step = first
        while not stop.is_set():
            item: Batch | BaseException
            try:
                item = maker.make(step, rank)
            except BaseException as error:  # handed to the consumer, which raises it
                item = error
            step += 1
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    worker = threading.Thread(target=work, name="batches", daemon=True)
    worker.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        worker.join()


class RecipeData(lightning.LightningDataModule):
    """Batches of a recipe.

    Parameters
    ----------
    recipe : Recipe
        What to make.
    folder : Path
        Where the bank of scenes is kept.
    maker : BatchMaker, optional
        Makes the batches instead: the user's own data.
    """

    def __init__(self, recipe: Recipe, folder: Path, maker: BatchMaker | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        self.folder = folder
        self._maker = maker
        self._device_batches: DeviceBatches | None = None
        self.first_step = 0

    def prepare_data(self) -> None:
        """Generate the scenes; Lightning calls this once on each machine."""
        if self._maker is None:
            scene_file(self.recipe, self.folder)

    def setup(self, stage: str) -> None:
        """Open the scenes, on every device's process."""
        if self._maker is not None:
            return
        recipe = self.recipe
        bank = open_scenes(recipe, self.folder)
        if recipe.data.family != "tem":
            from tem_live.models.data_scan import ScanBatches

            self._maker = ScanBatches(recipe.data, recipe.seed, bank)
            return
        device = self.trainer.strategy.root_device if self.trainer is not None else "cpu"
        batches = DeviceBatches(recipe.data, recipe.seed, bank, device)
        if batches.device.type == "cpu":
            self._maker = batches
        else:
            self._device_batches = batches

    def train_dataloader(self) -> Any:
        """Batches from `first_step` on; they never end."""
        if self._device_batches is not None:
            return DataLoader(_Steps(self.first_step), batch_size=None)
        assert self._maker is not None, "setup comes first"
        dataset = _Batches(self._maker, self.first_step, self._rank())
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.recipe.machine.workers,
            # A fork would take the threads' locks of other libraries along, but not the threads.
            multiprocessing_context="spawn" if self.recipe.machine.workers else None,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.recipe.machine.workers > 0,
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch, or make the one of a step, on the device."""
        if self._device_batches is not None:
            return self._device_batches.make(int(batch), self._rank())
        move = {"device": device, "non_blocking": True}
        return Batch(batch.frames.to(**move), batch.targets.to(**move), batch.scale.to(**move))

    def _rank(self) -> int:
        return int(self.trainer.global_rank) if self.trainer is not None else 0
