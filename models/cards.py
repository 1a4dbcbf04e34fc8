"""Model cards: what a restorer is, what it was trained on, what was measured, where it fails."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tem_live.errors import ModelError
from tem_live.paths import written_whole

__all__ = ["ModelCard", "Score", "read_card", "sha256_of", "write_card"]


class Score(BaseModel):
    """One measured figure, or a table row of them; nothing in a card is estimated.

    Attributes
    ----------
    data : str
        Scenes or frames it was measured on.
    dose_e_per_px : float or None
        Dose, where there is one.
    camera : str
        ``poisson`` or the camera's name.
    error_ratio, error_ratio_worst : float or None
        MSE over that of the best Gaussian: geometric mean over the scenes, and the worst scene.
    dose_gain : float or None
        MSE of raw over MSE of restored, geometric mean over the scenes.
    extra : dict of str to float
        Further figures, their unit in the name.
    command : str
        What to run to get it again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    camera: str = "poisson"
    dose_e_per_px: float | None = None
    error_ratio: float | None = None
    error_ratio_worst: float | None = None
    dose_gain: float | None = None
    extra: dict[str, float] = Field(default_factory=dict)
    command: str


class ModelCard(BaseModel):
    """Card of a restorer; stored as JSON beside the weights.

    Attributes
    ----------
    name, title, version : str
        Short name (what `load_restorer` takes), one line, version of the weights.
    default : bool
        The restorer used where none is named; exactly one of those that ship.
    kind : {"network", "views", "temporal", "gaussian", "none"}
        What does the work.
    network : {"dose_unet", "unet_resnet18", "cgrdn"}
        Which network, where it is one.
    modality : str
        Kinds of image it was made for.
    doses_e_per_px : tuple of float or None
        Doses per frame seen in training.
    pixel_sizes : str
        What it assumes of the pixel size.
    noise : str
        Cameras seen in training.
    gain : str
        What it assumes of the camera's counts per electron.
    parameters : int
        Trained numbers.
    gmac_512 : float
        10^9 multiplications for a 512 x 512 frame, counted on the network's layers.
    receptive_field_px : int or None
        Side of the square of input that can change one output pixel, from the layers' geometry.
    architecture : dict
        Arguments of the network's class.
    scores : tuple of Score
        Measured only, each with its command.
    training : str
        Command that made the weights.
    recipe : str
        The recipe's text.
    source : str
        Where imported weights came from.
    weights : str
        Name of the card beside it whose weights these are, too; empty where it has its own.
    sha256 : str or None
        Of the weights; checked on loading.
    licence : str
        SPDX name.
    limits : tuple of str
        Where it fails, in plain words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    version: str = "1"
    default: bool = False
    kind: Literal["network", "views", "temporal", "gaussian", "none"] = "network"
    network: Literal["dose_unet", "unet_resnet18", "cgrdn"] = "dose_unet"
    modality: str = "TEM and STEM, single frames"
    doses_e_per_px: tuple[float, float] | None = None
    pixel_sizes: str = "any"
    noise: str = ""
    gain: str = "any: frames are in electrons, counts were divided by the counts per electron"
    parameters: int = 0
    gmac_512: float = 0.0
    receptive_field_px: int | None = None
    architecture: dict[str, bool | list[int]] = Field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    training: str = ""
    recipe: str = ""
    source: str = ""
    # A plain name: a card must not lead to another folder.
    weights: str = Field(default="", pattern=r"^([A-Za-z0-9][\w.-]*)?$")
    sha256: str | None = None
    licence: str = "BSD-3-Clause"
    limits: tuple[str, ...] = ()

    def unseen_dose(self, dose_e_per_px: float) -> str | None:
        """What to tell of frames of a dose that was not trained on; None of others."""
        if self.doses_e_per_px is None or not math.isfinite(dose_e_per_px):
            return None
        low, high = self.doses_e_per_px
        if low <= dose_e_per_px <= high:
            return None
        return (
            f"{dose_e_per_px:.3g} e-/px lies beyond the {low:g} to {high:g} e-/px that {self.name} "
            "was trained on"
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_card(path: Path) -> ModelCard:
    """Read a card; `ModelError` says what is wrong with it."""
    try:
        return ModelCard.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"no model card at {path}; every .safetensors needs its .json beside it"
        ) from error
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        raise ModelError(
            f"the model card {path} cannot be read; restore the file or reinstall tem_live"
        ) from error


def write_card(path: Path, card: ModelCard) -> None:
    """Write a card as JSON, in one move."""
    text = json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False)
    with written_whole(path) as part:
        part.write_text(text + "\n", encoding="utf-8", newline="\n")
