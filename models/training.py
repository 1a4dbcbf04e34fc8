"""What a training run is told, a recipe (TOML), and what it tells, its progress."""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tem_live.errors import InputError
from tem_live.models import scenes_extra

__all__ = [
    "DataRecipe",
    "LossRecipe",
    "MachineRecipe",
    "NetworkRecipe",
    "OptimRecipe",
    "OwnRecipe",
    "Progress",
    "Recipe",
    "load_recipe",
]


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

    def rate(self, step: int, seconds: float) -> float:
        """Learning rate: warm-up, then a cosine over the time or the steps, what is further."""
        done = min(1.0, max(seconds / (60.0 * self.max_minutes), step / self.max_steps))
        low = self.final_fraction
        cosine = low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done))
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return self.learning_rate * cosine * warm

    def finished(self, step: int, seconds: float) -> bool:
        """Whether the time or the steps are used up."""
        return step >= self.max_steps or seconds >= 60.0 * self.max_minutes


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
