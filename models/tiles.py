"""Run a network on frames of any size: padded to its step, and in tiles where they are large.

This module imports torch; import it lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Cut", "cuts", "grid", "run_tiled"]

# More tiles along an axis are not looked at.
_MOST_CUTS = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """A tile along one axis: it reaches from `start` to `stop`, and `first` to `last` are kept."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def whole(self) -> slice:
        """What goes in."""
        return slice(self.start, self.stop)

    @property
    def kept(self) -> slice:
        """What of the frame comes out."""
        return slice(self.first, self.last)

    @property
    def middle(self) -> slice:
        """The same, counted from the beginning of the tile."""
        return slice(self.first - self.start, self.last - self.start)


def cuts(length: int, tile: int, halo: int, multiple: int) -> list[Cut]:
    """Cut an axis into tiles of one length, as few as may be.

    Networks are prepared for each shape, and the time per pixel should not jump with the size of
    the frame: so no tile is smaller than the others.

    Parameters
    ----------
    length : int
        Of the axis, a multiple of `multiple`.
    tile : int
        Largest length of a tile with its halos.
    halo : int
        What a tile overlaps the kept part of its neighbour by; smaller than half of `tile`.
    multiple : int
        Of which starts and lengths are multiples.

    Returns
    -------
    list of Cut
        Their kept parts follow one another and cover the axis.
    """
    if length <= tile:
        return [Cut(0, length, 0, length)]
    return _cut_into(-(-(length - 2 * halo) // (tile - 2 * halo)), length, halo, multiple)


@lru_cache(maxsize=16)
def grid(
    height: int, width: int, most: int, halo: int, multiple: int
) -> tuple[tuple[Cut, ...], tuple[Cut, ...]]:
    """Cut a frame into tiles of one shape, so that as little as may be is computed twice.

    Parameters
    ----------
    height, width : int
        Of the frame, multiples of `multiple`.
    most : int
        Elements of a tile with its halos, at the most where that is possible.
    halo, multiple : int
        As for `cuts`.

    Returns
    -------
    rows, columns : tuple of Cut
        See `cuts`. Long tiles overlap along one axis alone: two of them of a square frame have half
        of the overlap of four squares.
    """
    most_cuts = 1 if height * width <= most else _MOST_CUTS

    def cost(way: tuple[list[Cut], list[Cut]]) -> tuple[int, int, int, int]:
        rows, columns = way
        elements = rows[0].stop * columns[0].stop
        count = len(rows) * len(columns)
        # Rows of a frame lie together in memory: cut across, a tile is no copy.
        return max(elements - most, 0), elements * count, count, len(columns)

    down, across = (list(_ways(side, halo, multiple, most_cuts)) for side in (height, width))
    rows, columns = min(product(down, across), key=cost)
    return tuple(rows), tuple(columns)


def _ways(length: int, halo: int, multiple: int, most: int) -> Iterator[list[Cut]]:
    """An axis as one tile, as two, and so on, each longer than what it overlaps others by."""
    for count in range(1, most + 1):
        found = _cut_into(count, length, halo, multiple)
        if count > 1 and found[0].stop < 4 * halo:
            return
        # Rounded up, fewer may do; then the last would keep nothing.
        if all(cut.first < cut.last for cut in found):
            yield found


def _cut_into(count: int, length: int, halo: int, multiple: int) -> list[Cut]:
    """`cuts`, by their number."""
    if count == 1:
        return [Cut(0, length, 0, length)]
    size = -(-(length + 2 * halo * (count - 1)) // (count * multiple)) * multiple
    starts = [min(i * (size - 2 * halo), length - size) for i in range(count)]
    edges = [0, *(start + halo for start in starts[1:]), length]
    return [
        Cut(start, start + size, first, last)
        for start, (first, last) in zip(starts, pairwise(edges), strict=True)
    ]


def run_tiled(
    network: Callable[[Tensor], Tensor],
    frame: Tensor,
    *,
    multiple: int,
    tile_px: int,
    halo_px: int,
) -> Tensor:
    """Apply `network` to a frame.

    Parameters
    ----------
    network : callable
        (1, 1, H, W) to the same shape, where H and W are multiples of `multiple`.
    frame : Tensor
        float32 (H, W), any size; mirrored (or, where it is too small for that, continued by its
        edge) at the bottom and at the right to fit.
    multiple : int
        The network's step, in pixels.
    tile_px, halo_px : int
        Frames with more than `tile_px` a side are cut into tiles of at most that, which overlap
        the kept parts of their neighbours by `halo_px`. Both are multiples of `multiple`.

    Returns
    -------
    Tensor
        float32 (H, W).
    """
    height, width = frame.shape
    whole = _continued(frame[None, None], -height % multiple, -width % multiple)
    if max(whole.shape[-2:]) <= tile_px:
        return network(whole)[0, 0, :height, :width]
    result = torch.empty_like(whole)
    rows, columns = (cuts(side, tile_px, halo_px, multiple) for side in whole.shape[-2:])
    for y in rows:
        for x in columns:
            tile = network(whole[..., y.whole, x.whole])
            result[..., y.kept, x.kept] = tile[..., y.middle, x.middle]
    return result[0, 0, :height, :width]


def _continued(image: Tensor, bottom: int, right: int) -> Tensor:
    height, width = image.shape[-2:]
    if right:
        mode = "reflect" if right < width else "replicate"
        image = functional.pad(image, (0, right, 0, 0), mode=mode)
    if bottom:
        mode = "reflect" if bottom < height else "replicate"
        image = functional.pad(image, (0, 0, 0, bottom), mode=mode)
    return image
