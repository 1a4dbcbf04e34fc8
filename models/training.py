"""Training of restorers by a recipe: a plain loop that survives being killed at any moment.

Every batch is a function of the seed and the step alone, so resuming needs no state of a random
generator. The learning rate follows the wall clock (time spent training over ``max_minutes``), so
that a run ends annealed on any machine. Checkpoints are safetensors plus JSON, each written beside
its place and moved there.

This module imports torch inside its functions only.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import shutil
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tem_live.errors import InputError
from tem_live.models import cameras, scenes_extra

if TYPE_CHECKING:
    import torch

__all__ = ["Progress", "Recipe", "load_recipe", "make_batch", "train"]

_log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkRecipe(_Strict):
    """Shape of the network, see `tem_live.models.network.DoseUNet`."""

    widths: tuple[int, ...] = (48, 96, 128, 192)
    blocks: tuple[int, ...] = (1, 1, 1, 2)
    waves: bool = False


class DataRecipe(_Strict):
    """What the network sees: simulated scenes under simulated instruments.

    ``family`` is ``tem`` (cameras of `tem_live.models.cameras`), ``stem`` or ``sem`` (scans of
    `tem_live.models.distortions`).
    """

    family: Literal["tem", "stem", "sem"] = "tem"

    scenes: int = Field(default=6000, ge=1)
    scene_px: int = Field(default=256, ge=32)
    extra_scenes: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        default={}, description="share of scenes of each kind in scenes_extra.EXTRA_GENERATORS"
    )
    crops_px: tuple[int, ...] = (128, 160, 192)
    batch_px: int = Field(default=205_000, ge=1, description="pixels a batch, about")
    dose_range: tuple[float, float] = (0.15, 400.0)
    dose_core: tuple[float, float] = (0.5, 50.0)
    poisson: float = Field(default=0.4, ge=0.0, le=1.0)

    @field_validator("extra_scenes")
    @classmethod
    def _known_scenes(cls, shares: dict[str, float]) -> dict[str, float]:
        known = scenes_extra.EXTRA_GENERATORS
        unknown = [name for name in shares if name not in known]
        if unknown:
            raise ValueError(f"no scenes are called {unknown[0]!r}; use {', '.join(known)}")
        if sum(shares.values()) > 1.0:
            raise ValueError("the shares add up to more than 1")
        return shares


class OptimRecipe(_Strict):
    """How the weights move."""

    max_minutes: float = Field(default=60.0, gt=0.0)
    max_steps: int = Field(default=1_000_000, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0.0)
    final_fraction: float = Field(default=0.01, gt=0.0, le=1.0)
    warmup_steps: int = Field(default=200, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0.0)
    ema: float = Field(default=0.999, ge=0.0, lt=1.0)
    clip_norm: float = Field(default=1.0, gt=0.0)
    checkpoint_minutes: float = Field(default=3.0, ge=0.0)
    threads: int = Field(default=2, ge=1)


class LossRecipe(_Strict):
    """What is minimised, see `tem_live.models.losses`; ``gan`` is the optional stage."""

    name: Literal["error-ratio", "noisy-target", "l1", "one-minus-ssim", "lobato"] = "error-ratio"
    gan_weight: float = Field(default=0.0, ge=0.0, description="0: no adversarial stage")
    gan_from_step: int = Field(default=0, ge=0)
    gan_learning_rate: float = Field(default=1e-4, gt=0.0)


class OwnRecipe(_Strict):
    """The user's own data, see `tem_live.models.pairs`."""

    folder: str
    kind: Literal["auto", "pairs", "series", "frame"] = "auto"
    check: str | None = Field(default=None, description="another frame of the same place")
    counts_per_electron: float | None = Field(default=None, gt=0.0)
    offset_counts: float = 0.0
    reduce: int = Field(default=1, ge=1, description="pixels of a side that become one")
    held_out: float = Field(default=0.2, gt=0.0, le=0.5)
    simulated: float = Field(default=0.25, ge=0.0, le=1.0, description="share of simulated scenes")


class MachineRecipe(_Strict):
    """What it runs on; says nothing about the result."""

    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    workers: int = Field(default=0, ge=0, description="processes that make batches")


class Recipe(_Strict):
    """A training recipe (TOML). ``start`` names the restorer whose weights training starts from."""

    name: str
    seed: int = 1
    start: str | None = None
    network: NetworkRecipe = NetworkRecipe()
    data: DataRecipe = DataRecipe()
    loss: LossRecipe = LossRecipe()
    own: OwnRecipe | None = None
    optim: OptimRecipe = OptimRecipe()
    machine: MachineRecipe = MachineRecipe()


class Progress(_Strict):
    """Where a training run stands; handed to the progress callback."""

    step: int
    minutes: float
    max_minutes: float
    loss: float
    error_ratio: float
    learning_rate: float


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe; `InputError` says what is wrong with it."""
    source = Path(path)
    try:
        return Recipe.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(f"no recipe at {source}; give the path of a .toml file") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{source}: {where}: {first['msg']}") from error


def _scene_file(recipe: Recipe, folder: Path) -> npt.NDArray[np.float16]:
    """Generate the bank of clean scenes once, or read the one of an earlier run."""
    data = recipe.data
    path = folder / scenes_extra.bank_name(
        recipe.seed, data.scenes, data.scene_px, data.extra_scenes
    )
    if not path.exists():
        _log.info("generating %d scenes of %d px", data.scenes, data.scene_px)
        part = path.with_suffix(".part.npy")
        bank = np.empty((data.scenes, data.scene_px, data.scene_px), dtype=np.float16)
        for i in range(data.scenes):
            rng = np.random.default_rng([recipe.seed, i])
            bank[i] = scenes_extra.recipe_scene(rng, data.scene_px, data.extra_scenes)
        np.save(part, bank)
        part.replace(path)
    kept: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")
    return kept


def make_batch(
    recipe: Recipe, bank: npt.NDArray[np.float16], step: int
) -> tuple[Array, Array, Array]:
    """Make the batch of one step; the same for the same recipe, bank and step.

    Returns
    -------
    frames, targets : ndarray
        float32 (N, 1, S, S), electrons.
    scale : ndarray
        float32 (N,): the error that the best Gaussian is expected to leave, e-^2.
    """
    data = recipe.data
    rng = np.random.default_rng([recipe.seed, 7919, step])
    size = int(data.crops_px[step % len(data.crops_px)])
    size = min(size, data.scene_px)
    count = max(1, round(data.batch_px / size**2))
    frames = np.empty((count, 1, size, size), dtype=np.float32)
    targets = np.empty_like(frames)
    scale = np.empty(count, dtype=np.float32)
    for i in range(count):
        scene = bank[int(rng.integers(len(bank)))]
        y, x = rng.integers(0, data.scene_px - size + 1, 2)
        crop = np.rot90(scene[y : y + size, x : x + size], int(rng.integers(4)))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        clean = np.ascontiguousarray(crop, dtype=np.float32)
        if rng.random() < 0.4:
            clean = 1.0 + np.float32(np.exp(rng.uniform(np.log(0.1), 0.0))) * (clean - 1.0)
            np.maximum(clean, 0.0, out=clean)
        low, high = data.dose_core if rng.random() < 0.75 else data.dose_range
        dose = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        camera = cameras.random_camera(rng, data.poisson)
        frame, target, sigma = cameras.expose(rng, clean, dose, camera)
        frames[i, 0], targets[i, 0] = frame, target
        scale[i] = cameras.gaussian_error(target, max(sigma, 0.02))
    return frames, targets, scale


def _prefetch(
    recipe: Recipe, bank: npt.NDArray[np.float16], first: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Make batches in a thread, a few ahead."""
    ready: queue.Queue[tuple[Array, Array, Array] | BaseException] = queue.Queue(maxsize=3)
    stop = threading.Event()

    def put(item: tuple[Array, Array, Array] | BaseException) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        step = first
        try:
            while not stop.is_set():
                put(make_batch(recipe, bank, step))
                step += 1
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


class _Run:
    """State of one training run: network, averaged network, optimiser, clock."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        import torch

        from tem_live.models.network import DoseUNet

        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = torch.device(device)
        net = recipe.network

        def build() -> DoseUNet:
            fresh = DoseUNet(net.widths, net.blocks, net.waves)
            return fresh.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

        self.network = build()
        self.average = build()
        self.average.load_state_dict(self.network.state_dict())
        self.average.requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=recipe.optim.learning_rate,
            weight_decay=recipe.optim.weight_decay,
        )
        self.step = 0
        self.seconds = 0.0

    def rate(self) -> float:
        optim = self.recipe.optim
        done = min(1.0, max(self.seconds / (60.0 * optim.max_minutes), self.step / optim.max_steps))
        low = optim.final_fraction
        cosine = low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done))
        warm = min(1.0, (self.step + 1) / (optim.warmup_steps + 1))
        return optim.learning_rate * cosine * warm

    def finished(self) -> bool:
        optim = self.recipe.optim
        return self.step >= optim.max_steps or self.seconds >= 60.0 * optim.max_minutes

    def learn(self, frames: Array, targets: Array, scale: Array) -> tuple[float, float]:
        """Take one step; return the loss and the geometric mean of the error ratio."""
        import torch
        from torch.nn import functional

        from tem_live.models.network import BLOCK, block_bands, conditions
        from tem_live.models.waves import lattice_waves

        rate = self.rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        x = functional.pixel_unshuffle(torch.from_numpy(frames).to(self.device), BLOCK)
        y = functional.pixel_unshuffle(torch.from_numpy(targets).to(self.device), BLOCK)
        mean = x.mean(dim=(1, 2, 3))
        with torch.no_grad():
            sigma, vector = conditions(block_bands(x), mean)
            sigma = sigma.clamp_min(1e-3)
        shift, unit = mean[:, None, None, None], sigma[:, None, None, None]
        z = ((x - shift) / unit).contiguous(memory_format=torch.channels_last)
        waves = None
        if self.recipe.network.waves:
            with torch.no_grad():
                image = functional.pixel_shuffle(z, BLOCK)[:, 0]
                waves = functional.pixel_unshuffle(lattice_waves(image)[:, None], BLOCK)
        out = self.network(z, vector, waves)
        error = (out - (y - shift) / unit).square().mean(dim=(1, 2, 3)) * sigma.square()
        ratio = error / torch.from_numpy(scale).to(self.device)
        # The root tempers scenes that are far worse than blurring; the geometric mean is judged.
        loss = torch.sqrt(ratio + 1e-3).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.optim.clip_norm)
        self.optimiser.step()
        self.step += 1
        decay = min(self.recipe.optim.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.network.parameters()), 1.0 - decay
            )
        with torch.no_grad():
            typical = float(ratio.clamp_min(1e-6).log().mean().exp())
        return float(loss.detach()), typical

    def _moments(self) -> dict[str, torch.Tensor]:
        import torch

        names = {id(p): n for n, p in self.network.named_parameters()}
        out: dict[str, torch.Tensor] = {}
        for parameter, state in self.optimiser.state.items():
            name = names[id(parameter)]
            # bfloat16 keeps the range of the second moments and halves the file.
            out[f"m.{name}"] = state["exp_avg"].to(torch.bfloat16).contiguous()
            out[f"v.{name}"] = state["exp_avg_sq"].to(torch.bfloat16).contiguous()
        return out

    def save(self, folder: Path) -> None:
        """Write a checkpoint; the pointer moves last, so a kill leaves the old or the new one."""
        from safetensors.torch import save_file

        target = folder / f"step-{self.step:07d}"
        target.mkdir(parents=True, exist_ok=True)
        for name, net in (("network", self.network), ("average", self.average)):
            tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
            save_file(tensors, target / f"{name}.safetensors")
        save_file(self._moments(), target / "moments.safetensors")
        _write_json(
            folder / "latest.json",
            {
                "folder": target.name,
                "step": self.step,
                "seconds": self.seconds,
                "recipe": self.recipe.model_dump(mode="json"),
            },
        )
        for old in folder.glob("step-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

    def load(self, folder: Path) -> None:
        """Continue from the newest checkpoint in `folder`."""
        import torch
        from safetensors.torch import load_file

        latest = json.loads((folder / "latest.json").read_text(encoding="utf-8"))
        source = folder / latest["folder"]
        self.network.load_state_dict(load_file(source / "network.safetensors"))
        self.average.load_state_dict(load_file(source / "average.safetensors"))
        moments = load_file(source / "moments.safetensors")
        self.step = int(latest["step"])
        self.seconds = float(latest["seconds"])
        for name, parameter in self.network.named_parameters():
            if f"m.{name}" in moments:
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": moments[f"m.{name}"].to(parameter).clone(),
                    "exp_avg_sq": moments[f"v.{name}"].to(parameter).clone(),
                }


def train(
    recipe_path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Train a restorer.

    Parameters
    ----------
    recipe_path : path
        A TOML recipe, see `Recipe`.
    output_dir : path, optional
        Where scenes, checkpoints and the log go; default ``.train/<name>``.
    resume : bool
        Continue from the newest checkpoint in `output_dir` (from the start if there is none).
    device : str
        torch device.
    progress : callable, optional
        Called about every ten seconds with a `Progress`.
    stop : threading.Event, optional
        Set it to end early; a checkpoint is written.

    Returns
    -------
    Path
        The averaged weights, ``<name>.safetensors`` in `output_dir` (float16). `tem_live.models`
        loads them once `tem_live.models.cards.write_card` has put a card beside them.

    Raises
    ------
    InputError
        The recipe is missing or wrong, or the checkpoint belongs to another network.
    """
    import torch

    recipe = load_recipe(recipe_path)
    folder = Path(output_dir) if output_dir is not None else Path(".train") / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.optim.threads)
    run = _Run(recipe, device)
    if resume and (folder / "latest.json").exists():
        try:
            run.load(folder)
        except (RuntimeError, KeyError, OSError, ValueError) as error:
            raise InputError(
                f"cannot resume from {folder}: {str(error).splitlines()[0]}; "
                "delete the folder or train without --resume"
            ) from error
        _log.info("resumed at step %d", run.step)
    bank = _scene_file(recipe, folder)
    if run.finished():
        return _export(run, folder)
    started = time.monotonic() - run.seconds
    saved = said = time.monotonic()
    losses: list[tuple[float, float]] = []
    batches = _prefetch(recipe, bank, run.step)
    try:
        for batch in batches:
            losses.append(run.learn(*batch))
            now = time.monotonic()
            run.seconds = now - started
            ended = run.finished() or (stop is not None and stop.is_set())
            if now - said > 10.0 or ended:
                said = now
                report = Progress(
                    step=run.step,
                    minutes=run.seconds / 60.0,
                    max_minutes=recipe.optim.max_minutes,
                    loss=float(np.mean([a for a, _ in losses])),
                    error_ratio=float(np.exp(np.mean(np.log([b for _, b in losses])))),
                    learning_rate=run.rate(),
                )
                losses.clear()
                with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(report.model_dump_json() + "\n")
                if progress is not None:
                    progress(report)
            if ended:
                break
            if now - saved > 60.0 * recipe.optim.checkpoint_minutes:
                saved = now
                run.save(folder)
                _export(run, folder)
    finally:
        batches.close()  # type: ignore[attr-defined]
    run.save(folder)
    return _export(run, folder)


def _export(run: _Run, folder: Path) -> Path:
    """Write the averaged weights in half precision: what ships."""
    import torch
    from safetensors.torch import save_file

    path = folder / f"{run.recipe.name}.safetensors"
    part = path.with_name(path.name + ".part")
    tensors = {
        k: v.detach().cpu().to(torch.float16).contiguous()
        for k, v in run.average.state_dict().items()
    }
    net = run.recipe.network
    save_file(
        tensors,
        part,
        metadata={
            "architecture": "DoseUNet",
            "widths": json.dumps(net.widths),
            "blocks": json.dumps(net.blocks),
            "waves": json.dumps(net.waves),
            "step": str(run.step),
        },
    )
    part.replace(path)
    return path
