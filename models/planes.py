"""Work on whole frames at the speed of memory: strips, blocks as one element, cells and their sums.

Most of what is done around a network reads and writes whole frames. On a processor it is done strip
by strip, so that what one step wrote is still in the cache for the next; on a GPU in one go, for
there each start of a kernel costs. This module imports torch; import it lazily.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.network import BLOCK

__all__ = [
    "Enlarged",
    "add_cells",
    "block_bands",
    "blocks_of",
    "cell_sums",
    "image_of",
    "in_units_of",
    "pixels_in_cells",
    "strips",
]

# Elements of a strip: some planes of it fit the cache of a core.
_STRIP = 1 << 17
# Four float32 that lie side by side are moved as one.
_FOUR = torch.complex128
# E|x| of a unit normal is sqrt(2/pi): mean absolute deviation to standard deviation.
_ABS_TO_SIGMA = math.sqrt(math.pi / 2.0)


def strips(height: int, width: int, device: torch.device, multiple: int = 1) -> Iterator[slice]:
    """Rows of a plane, so many at a time as stay in the cache.

    Parameters
    ----------
    height, width : int
        Size of the plane.
    device : torch.device
        Where it is; on a GPU all rows are one strip.
    multiple : int
        Each strip but the last has a multiple of this many rows.
    """
    rows = height
    if device.type == "cpu":
        rows = max(_STRIP // max(width, 1) // multiple, 1) * multiple
    for first in range(0, height, rows):
        yield slice(first, min(first + rows, height))


def in_units_of(frame: Tensor, mean: float, sigma: float, out: Tensor | None = None) -> Tensor:
    """(frame - mean) / sigma, float32 (H, W), into `out` (may be `frame`) or a new plane."""
    if out is None:
        out = torch.empty_like(frame, memory_format=torch.contiguous_format)
    for rows in strips(*frame.shape, frame.device):
        torch.sub(frame[rows], mean, out=out[rows]).div_(sigma)
    return out


# ------------------------------------------------------------------------------------- blocks


def blocks_of(frame: Tensor) -> Tensor:
    """Cut a frame into blocks, ``pixel_unshuffle(4)`` in channels-last order.

    Parameters
    ----------
    frame : Tensor
        float32 (H, W), both multiples of 4.

    Returns
    -------
    Tensor
        float32 (1, 16, H/4, W/4), its own memory.
    """
    height, width = frame.shape[0] // BLOCK, frame.shape[1] // BLOCK
    fours = _fours(frame).view(height, BLOCK, width)
    cut = torch.empty((height, width, BLOCK), dtype=_FOUR, device=frame.device)
    cut.copy_(fours.transpose(1, 2))
    return cut.view(frame.dtype).view(1, height, width, BLOCK * BLOCK).permute(0, 3, 1, 2)


def image_of(blocks: Tensor) -> Tensor:
    """Inverse of `blocks_of`, its own memory."""
    height, width = blocks.shape[-2:]
    fours = _fours(blocks[0].permute(1, 2, 0)).view(height, width, BLOCK)
    image = torch.empty((height, BLOCK, width), dtype=_FOUR, device=blocks.device)
    image.copy_(fours.transpose(1, 2))
    return image.view(blocks.dtype).view(height * BLOCK, width * BLOCK)


def _fours(plane: Tensor) -> Tensor:
    """View (..., 4 n) float32 as (..., n) elements of four; a copy where it does not lie so."""
    plane = plane.contiguous()
    if plane.data_ptr() % _FOUR.itemsize or plane.storage_offset() % 4:
        plane = plane.clone()
    return plane.view(_FOUR)


def block_bands(blocks: Tensor, hadamard: Tensor) -> Tensor:
    """`tem_live.models.network.block_bands` of a single frame, in half of the time.

    Parameters
    ----------
    blocks : Tensor
        float32 (1, 16, h, w) from `blocks_of`.
    hadamard : Tensor
        float32 (16, 16), `DoseUNet.hadamard`.

    Returns
    -------
    Tensor
        float32 (1, 15).
    """
    pixels = blocks[0].permute(1, 2, 0).reshape(-1, BLOCK * BLOCK)
    total = torch.zeros(BLOCK * BLOCK - 1, device=blocks.device)
    for rows in strips(len(pixels), BLOCK * BLOCK, blocks.device):
        total += (hadamard[1:] @ pixels[rows].T).abs_().sum(dim=1)
    return total.mul_(_ABS_TO_SIGMA / len(pixels))[None]


# -------------------------------------------------------------------------------------- cells


def cell_sums(first: Tensor, second: Tensor | None, cell_px: int) -> Tensor:
    """Sums of a plane, or of the products of two, over square cells.

    Parameters
    ----------
    first, second : Tensor
        float32 (H, W).
    cell_px : int
        Side of a cell; those at the lower and right border may hold fewer pixels.

    Returns
    -------
    Tensor
        float32 (ceil(H / cell_px), ceil(W / cell_px)).
    """
    height, width = first.shape
    lines = torch.empty((-(-height // cell_px), width), device=first.device)
    for rows in strips(height, width, first.device, cell_px):
        part = first[rows] if second is None else first[rows] * second[rows]
        top, whole = rows.start // cell_px, len(part) // cell_px
        cells = part[: whole * cell_px].unflatten(0, (whole, cell_px))
        torch.sum(cells, dim=1, out=lines[top : top + whole])
        if len(part) > whole * cell_px:
            torch.sum(part[whole * cell_px :], dim=0, out=lines[-1])
    return add_cells(lines, 1, cell_px)


def add_cells(sums: Tensor, rows: int, columns: int) -> Tensor:
    """Add up cells (h, w) to larger ones, of so many rows and columns of them."""
    pooled: Tensor = functional.avg_pool2d(
        sums[None, None], (rows, columns), ceil_mode=True, divisor_override=1
    )
    return pooled[0, 0]


def pixels_in_cells(height: int, width: int, cell_px: int, device: torch.device) -> Tensor:
    """How many pixels of a plane are in each cell, float32, see `cell_sums`."""
    down, across = (
        torch.arange(side, 0, -cell_px, device=device, dtype=torch.float32).clamp_max_(cell_px)
        for side in (height, width)
    )
    return torch.outer(down, across)


class Enlarged:
    """A plane that is linear between the centres of cells, computed strip by strip.

    Parameters
    ----------
    cells : Tensor
        float32 (h, w).
    cell_px : int
        Side of a cell in pixels, even.
    width : int
        Columns of the plane, at most those of the cells.
    """

    def __init__(self, cells: Tensor, cell_px: int, width: int) -> None:
        lines = functional.interpolate(
            cells[None, None],
            size=(cells.shape[0], cells.shape[1] * cell_px),
            mode="bilinear",
            align_corners=False,
        )[0, 0, :, :width]
        # Beyond the outermost centres the level is theirs.
        self._lines = torch.cat([lines[:1], lines, lines[-1:]])
        self._cell_px = cell_px
        steps = torch.arange(cell_px, device=cells.device, dtype=torch.float32)
        # The upper half of a cell lies after the centre of the one above, the lower after its own.
        shares = ((steps + 0.5) / cell_px).roll(cell_px // 2)
        self._shares = shares.view(1, 2, cell_px // 2, 1)

    def rows(self, rows: slice) -> Tensor:
        """The plane in these rows, of which the first is the first of a cell."""
        cell_px, width = self._cell_px, self._lines.shape[1]
        top, count = rows.start // cell_px, -(-(rows.stop - rows.start) // cell_px)
        lines = self._lines[top : top + count + 2]
        above = lines[:-1].unfold(0, 2, 1).transpose(1, 2)[:, :, None]
        below = lines[1:].unfold(0, 2, 1).transpose(1, 2)[:, :, None]
        plane = torch.lerp(above, below, self._shares)
        return plane.reshape(count * cell_px, width)[: rows.stop - rows.start]
