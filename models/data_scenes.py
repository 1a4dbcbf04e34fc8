"""The bank of clean scenes of a recipe, generated once on all cores and kept as a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.models.scenes_extra import bank_name, recipe_scene
from tem_live.models.training import Recipe
from tem_live.paths import written_whole

__all__ = ["open_scenes", "scene_file"]

_log = logging.getLogger(__name__)

# Scenes that one task of the pool makes.
_TOGETHER = 32


def _scenes(
    seed: int, first: int, count: int, size: int, extra: Mapping[str, float]
) -> npt.NDArray[np.float16]:
    generators = (np.random.default_rng([seed, first + i]) for i in range(count))
    made = [recipe_scene(rng, size, extra) for rng in generators]
    return np.asarray(made, dtype=np.float16)


def scene_file(recipe: Recipe, folder: Path, processes: int | None = None) -> Path:
    """Generate the bank of clean scenes, or find the one of an earlier run.

    The scenes are those of `tem_live.models.scenes_extra.recipe_scene`: the same for the same seed,
    however many processes make them.

    Parameters
    ----------
    recipe : Recipe
        Seed, number and size of the scenes.
    folder : Path
        Where the file is kept.
    processes : int, optional
        By default one for each core, as far as there is work for them.

    Returns
    -------
    Path
        float16 (scenes, S, S), .npy.
    """
    data = recipe.data
    path = folder / bank_name(recipe.seed, data.scenes, data.scene_px, data.extra_scenes)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    _log.info("generating %d scenes of %d px", data.scenes, data.scene_px)
    shape = (data.scenes, data.scene_px, data.scene_px)
    tasks = [
        (
            recipe.seed,
            first,
            min(_TOGETHER, data.scenes - first),
            data.scene_px,
            data.extra_scenes,
        )
        for first in range(0, data.scenes, _TOGETHER)
    ]
    processes = min(processes or os.cpu_count() or 1, len(tasks))
    # A gigabyte: killed again and again, a training must not leave one each time.
    with written_whole(path, path.with_suffix(".part.npy")) as part:
        bank = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        if processes == 1:
            for task in tasks:
                bank[task[1] : task[1] + task[2]] = _scenes(*task)
        else:
            import multiprocessing

            # Forked from a process with threads a child can hang.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=context) as pool:
                for task, made in zip(
                    tasks, pool.map(_scenes, *zip(*tasks, strict=True)), strict=True
                ):
                    bank[task[1] : task[1] + task[2]] = made
        bank.flush()
        del bank
    return path


def open_scenes(
    recipe: Recipe, folder: Path, processes: int | None = None
) -> npt.NDArray[np.float16]:
    """Open the bank of `scene_file`, mapped from the disk; float16 (scenes, S, S).

    Raises
    ------
    InputError
        It is damaged.
    """
    path = scene_file(recipe, folder, processes)
    data = recipe.data
    try:
        bank: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"the scenes in {path} are damaged; delete that file") from error
    if bank.shape != (data.scenes, data.scene_px, data.scene_px):
        raise InputError(f"the scenes in {path} are not those of the recipe; delete that file")
    return bank
