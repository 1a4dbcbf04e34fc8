"""The fluence map as pictures: over the frame, and small as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tem_live.gui.models import quantities as q

if TYPE_CHECKING:
    from tem_live.fluence_map import Place
    from tem_live.ledger_map import LedgerMap

OVERVIEW_CELLS = 256
OVERLAY_SIDE = 256
OVERLAY_ALPHA = 80

Picture = npt.NDArray[np.uint8]
Rect = tuple[float, float, float, float]
"""Left, top, width, height."""


@dataclass(frozen=True)
class MapPictures:
    """What is shown of a map.

    Attributes
    ----------
    here_e_per_A2 : float
        Highest fluence of a cell in the field of view, in e-/A^2.
    highest_e_per_A2 : float
        Highest of all: the upper end of the colours; the lower one is 0.
    unplaced_e_per_A2 : float
        What is in no cell, since nobody knew where it was.
    overlay : ndarray (H, W, 4) uint8 or None
        The cells of the field of view, to be laid over all of the frame.
    overview : ndarray (H, W, 4) uint8 or None
        All of the map, and its surroundings up to the field of view.
    overview_nm : Rect
        Its place in nm of the specimen.
    field_nm : Rect
        The field of view in nm of the specimen.
    """

    here_e_per_A2: float
    highest_e_per_A2: float
    unplaced_e_per_A2: float
    overlay: Picture | None
    overview: Picture | None
    overview_nm: Rect
    field_nm: Rect


def map_pictures(read: LedgerMap, place: Place, table: Picture) -> MapPictures:
    """Paint a map.

    Parameters
    ----------
    read : LedgerMap
        The map, read up to now.
    place : Place
        Where the field of view is.
    table : ndarray (256, 3) uint8
        Colours from 0 to the highest fluence.
    """
    left, top, right, bottom = place.box
    field = left, top, right - left, bottom - top
    found = read.map
    whole = None if found is None else found.whole(OVERVIEW_CELLS)
    if found is None or whole is None:
        return MapPictures(0.0, 0.0, read.unplaced_e_per_A2, None, None, field, field)
    values, box = found.part(place.box, 2 * OVERLAY_SIDE)
    overview, overview_box = whole
    # The cells that are shown may be means of some; the figures are those of the finest.
    highest = max(found.highest(), 1e-12)
    return MapPictures(
        here_e_per_A2=found.highest(place.box),
        highest_e_per_A2=highest,
        unplaced_e_per_A2=read.unplaced_e_per_A2,
        overlay=_painted(_sampled(values, box, place.box), highest, table, OVERLAY_ALPHA),
        overview=_painted(overview, highest, table, 255),
        overview_nm=_rect(overview_box),
        field_nm=field,
    )


def here_text(pictures: MapPictures | None, budget_e_per_A2: float | None) -> tuple[str, bool]:
    """What the field of view has taken where it took most, and whether to worry about it."""
    if pictures is None:
        return "unknown: no pixel size", False
    here = pictures.here_e_per_A2
    text = f"at most {q.quantity(here, q.DOSE_A2)}"
    if pictures.unplaced_e_per_A2 > 0.005 * max(here, 1e-9):
        text += f" · {q.number(pictures.unplaced_e_per_A2)} unplaced"
    return text, budget_e_per_A2 is not None and here > 0.8 * budget_e_per_A2


def _sampled(
    values: npt.NDArray[Any], box: tuple[float, ...], wanted: tuple[float, ...]
) -> npt.NDArray[Any]:
    """The cells that make up a part of them, which need not end where a cell does."""
    cell = (box[2] - box[0]) / values.shape[1]

    def index(axis: int) -> npt.NDArray[np.intp]:
        low, high = wanted[axis], wanted[axis + 2]
        number = min(OVERLAY_SIDE, 2 * values.shape[1 - axis])
        at = low + (np.arange(number) + 0.5) * (high - low) / number
        cells = np.clip((at - box[axis]) / cell, 0, values.shape[1 - axis] - 1)
        numbers: npt.NDArray[np.intp] = cells.astype(np.intp)
        return numbers

    picked: npt.NDArray[Any] = values[np.ix_(index(1), index(0))]
    return picked


def _painted(values: npt.NDArray[Any], highest: float, table: Picture, alpha: int) -> Picture:
    index = np.clip(np.rint(values / highest * 255), 0, 255).astype(np.uint8)
    picture = np.empty((*values.shape, 4), np.uint8)
    picture[..., :3] = table[index]
    picture[..., 3] = np.where(values > 0, alpha, 0)
    return picture


def _rect(box: tuple[float, float, float, float]) -> Rect:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]
