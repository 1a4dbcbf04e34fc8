"""What a training run is told, a recipe (TOML), and what it tells, its progress."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

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
    "checked_recipe",
    "load_recipe",
    "writing_to",
]


# Side of the blocks that the network turns into channels (`tem_live.models.network.BLOCK`, which
# would import torch).
_BLOCK_PX = 4

# Not strict, true would pass for 1.
Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[int, Field(strict=True, ge=0)]
# In e-/px: less has no logarithm.
Dose = Annotated[float, Field(gt=0.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NetworkRecipe(_Strict):
    """Shape of the network, see `tem_live.models.network.DoseUNet`."""

    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (48, 96, 128, 192)
    blocks: tuple[Number, ...] = (1, 1, 1, 2)
    waves: bool = False
    middles: tuple[Count, ...] = ()

    @property
    def multiple_px(self) -> int:
        """Frames must be a multiple of this many pixels in height and width."""
        return int(_BLOCK_PX * 2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"{len(self.widths)} widths and {len(self.blocks)} blocks: each level has both"
            )
        count = sum(self.blocks) + sum(self.blocks[:-1])
        if self.middles and len(self.middles) != count:
            raise ValueError(f"{len(self.middles)} middles: there are {count} residual blocks")
        return self


class DataRecipe(_Strict):
    """What the network sees: simulated scenes under simulated instruments.

    ``family`` is ``tem`` (cameras of `tem_live.models.cameras`), ``stem`` or ``sem`` (scans of
    `tem_live.models.distortions`).
    """

    family: Literal["tem", "stem", "sem"] = "tem"

    scenes: Count = 6000
    scene_px: int = Field(default=256, strict=True, ge=32)
    extra_scenes: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        default={}, description="share of scenes of each kind in scenes_extra.EXTRA_GENERATORS"
    )
    crops_px: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 160, 192)
    batch_px: Count = Field(default=205_000, description="pixels a batch, about")
    dose_range: tuple[Dose, Dose] = (0.15, 400.0)
    dose_core: tuple[Dose, Dose] = (0.5, 50.0)
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

    @field_validator("dose_range", "dose_core")
    @classmethod
    def _ascending(cls, doses: tuple[float, float]) -> tuple[float, float]:
        if doses[0] > doses[1]:
            raise ValueError(f"{doses[0]:g} to {doses[1]:g}: give the lower dose first")
        return doses


class OptimRecipe(_Strict):
    """How the weights move."""

    max_minutes: float = Field(default=60.0, gt=0.0)
    max_steps: Count = 1_000_000
    learning_rate: float = Field(default=1e-3, gt=0.0)
    final_fraction: float = Field(default=0.01, gt=0.0, le=1.0)
    warmup_steps: Number = 200
    weight_decay: float = Field(default=1e-4, ge=0.0)
    ema: float = Field(default=0.999, ge=0.0, lt=1.0)
    clip_norm: float = Field(default=1.0, gt=0.0)
    checkpoint_minutes: float = Field(default=3.0, ge=0.0)
    threads: Count = 2

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
    gan_from_step: Number = 0
    gan_learning_rate: float = Field(default=1e-4, gt=0.0)
    teacher: str | None = Field(default=None, description="a restorer to learn from, too")
    taught: float = Field(default=0.7, ge=0.0, le=1.0, description="the teacher's share")

    @model_validator(mode="after")
    def _can_be_taught(self) -> Self:
        if self.teacher is not None and self.name != "error-ratio":
            raise ValueError(f"a teacher goes with the loss 'error-ratio', not with '{self.name}'")
        return self


class OwnRecipe(_Strict):
    """The user's own data, see `tem_live.models.pairs`."""

    folder: str
    kind: Literal["auto", "pairs", "series", "frame"] = "auto"
    check: str | None = Field(default=None, description="another frame of the same place")
    counts_per_electron: float | None = Field(default=None, gt=0.0)
    offset_counts: float = 0.0
    reduce: Count = Field(default=1, description="pixels of a side that become one")
    held_out: float = Field(default=0.2, gt=0.0, le=0.5)
    simulated: float = Field(default=0.25, ge=0.0, le=1.0, description="share of simulated scenes")


class MachineRecipe(_Strict):
    """What it runs on; says nothing about the result."""

    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    workers: Number = Field(default=0, description="processes that make batches")


class Recipe(_Strict):
    """A training recipe (TOML). ``start`` names the restorer whose weights training starts from."""

    name: str
    seed: Number = 1
    start: str | None = None
    network: NetworkRecipe = NetworkRecipe()
    data: DataRecipe = DataRecipe()
    loss: LossRecipe = LossRecipe()
    own: OwnRecipe | None = None
    optim: OptimRecipe = OptimRecipe()
    machine: MachineRecipe = MachineRecipe()

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"{name!r}: use letters, digits, dots, dashes and underscores")
        return name

    @model_validator(mode="after")
    def _crops_fit(self) -> Self:
        multiple = self.network.multiple_px
        for crop in self.data.crops_px:
            if crop % multiple:
                raise ValueError(
                    f"data.crops_px {crop}: a network of {len(self.network.widths)} levels needs "
                    f"multiples of {multiple} px"
                )
            if crop > self.data.scene_px:
                raise ValueError(
                    f"data.crops_px {crop}: the scenes have {self.data.scene_px} px (scene_px)"
                )
        return self


class Progress(_Strict):
    """Where a training run stands; handed to the progress callback."""

    # A ruined run has no finite loss, and says so.
    model_config = ConfigDict(allow_inf_nan=True)

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
        found = tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no recipe at {source}; give the path of a .toml file") from error
    except OSError as error:
        raise InputError(f"cannot read the recipe {source}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{source} is not valid TOML: {error}") from error
    return checked_recipe(found, str(source))


def checked_recipe(content: dict[str, Any], source: str) -> Recipe:
    """Make a recipe of what was read; `InputError` names the source and the first wrong field."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(": ".join(part for part in (source, where, said) if part)) from error


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Make a folder of a run and write to it; what fails there becomes an `InputError`."""
    from safetensors import SafetensorError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"cannot write to {folder}: {error}") from error
