"""Work on whole frames at the speed of memory: strips, blocks as one element, cells and their sums.

Most of what is done around a network reads and writes whole frames. On a processor it is done strip
by strip, so that what one step wrote is still in the cache for the next; on a GPU in one go, for
there each start of a kernel costs. This module imports torch; import it lazily.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.network import BLOCK

__all__ = [
    "Enlarged",
    "add_cells",
    "blocks_of",
    "cell_sums",
    "continued",
    "image_of",
    "in_units_of",
    "line_sums",
    "measured_blocks",
    "pixels_in_cells",
    "strips",
]

# Elements of a strip: some planes of it fit the cache of a core.
_STRIP = 1 << 18
# Four float32 that lie side by side are moved as one.
_FOUR = torch.complex128
# Up to this mean over sigma (x - mean) / sigma may be computed as x / sigma - mean / sigma; smaller
# sigmas have no reciprocal.
_FUSED, _LEAST_SIGMA = 100.0, 1e-30
# Numbers side by side that are too few for torch's own sum.
_FEW = 8
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
        # About as many in each: a strip costs its steps, however thin it is.
        count = max(1, round(height * width / _STRIP))
        rows = -(-height // (count * multiple)) * multiple
    for first in range(0, height, max(rows, 1)):
        yield slice(first, min(first + rows, height))


def in_units_of(plane: Tensor, mean: float, sigma: float, out: Tensor) -> None:
    """Write (plane - mean) / sigma to `out`, which may be `plane`; float32 of any one shape."""
    if abs(mean) < _FUSED * sigma and sigma > _LEAST_SIGMA:
        # One step instead of two, where its rounding is that of the plane itself.
        torch.add(torch.tensor(-mean / sigma), plane, alpha=1.0 / sigma, out=out)
    else:
        torch.sub(plane, mean, out=out).div_(sigma)


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
    fours = _fours(frame).view(height, BLOCK, width).transpose(1, 2)
    cut = fours.clone(memory_format=torch.contiguous_format)
    return cut.view(frame.dtype).view(1, height, width, BLOCK * BLOCK).permute(0, 3, 1, 2)


def measured_blocks(frame: Tensor, hadamard: Tensor) -> tuple[Tensor, Tensor]:
    """`blocks_of` and the noise in their bands, while they are in the cache.

    Parameters
    ----------
    frame : Tensor
        float32 (H, W), both multiples of 4.
    hadamard : Tensor
        float32 (16, 16), `DoseUNet.hadamard`.

    Returns
    -------
    blocks : Tensor
        float32 (1, 16, H/4, W/4) in channels-last order, its own memory.
    bands : Tensor
        float32 (1, 15), `tem_live.models.network.block_bands` of them.
    """
    height, width = frame.shape[0] // BLOCK, frame.shape[1] // BLOCK
    fours = _fours(frame).view(height, BLOCK, width).transpose(1, 2)
    cut = torch.empty((height, width, BLOCK), dtype=_FOUR, device=frame.device)
    pixels = cut.view(frame.dtype).view(height, width, BLOCK * BLOCK)
    total = torch.zeros(BLOCK * BLOCK, device=frame.device)
    for rows in strips(height, width * BLOCK * BLOCK, frame.device):
        cut[rows] = fours[rows]
        part = pixels[rows].view(-1, BLOCK * BLOCK)
        total += (hadamard @ part.T).abs_().sum(dim=1)
    # The first is the mean of the block, which is signal.
    bands = total[None, 1:].mul_(_ABS_TO_SIGMA / (height * width))
    return pixels[None].permute(0, 3, 1, 2), bands


def image_of(blocks: Tensor, frame: Tensor) -> Tensor:
    """Put blocks together again, and take the image out of the frame.

    Parameters
    ----------
    blocks : Tensor
        float32 (1, 16, h, w).
    frame : Tensor
        float32 (H, W), not larger than the image. Written to: the image is subtracted.

    Returns
    -------
    Tensor
        float32 (H, W), the part of the image where the frame is.
    """
    height, width = blocks.shape[-2:]
    fours = _fours(blocks[0].permute(1, 2, 0)).view(height, width, BLOCK).transpose(1, 2)
    put = torch.empty((height, BLOCK, width), dtype=_FOUR, device=blocks.device)
    image = put.view(blocks.dtype).view(height * BLOCK, width * BLOCK)
    image = image[: frame.shape[0], : frame.shape[1]]
    for rows in strips(height, width * BLOCK * BLOCK, frame.device):
        put[rows] = fours[rows]
        pixels = slice(rows.start * BLOCK, rows.stop * BLOCK)
        frame[pixels] -= image[pixels]
    return image


def _fours(plane: Tensor) -> Tensor:
    """View (..., 4 n) float32 as (..., n) elements of four; a copy where it does not lie so."""
    plane = plane.contiguous()
    if plane.data_ptr() % _FOUR.itemsize or plane.storage_offset() % 4:
        plane = plane.clone()
    return plane.view(_FOUR)


# -------------------------------------------------------------------------------------- cells


def line_sums(products: Sequence[tuple[Tensor, Tensor | None]], cell_px: int) -> Tensor:
    """Sums of planes, or of products of two planes, over so many rows at a time.

    Parameters
    ----------
    products : sequence of (Tensor, Tensor or None)
        n planes or pairs of them, float32 (H, W).
    cell_px : int
        Rows that are added up; the last time there may be fewer.

    Returns
    -------
    Tensor
        float32 (n, ceil(H / cell_px), W).
    """
    plane = products[0][0]
    height, width = plane.shape
    lines = torch.empty((len(products), -(-height // cell_px), width), device=plane.device)
    for rows in strips(height, width, plane.device, cell_px):
        for (first, second), sums in zip(products, lines, strict=True):
            part = first[rows] if second is None else first[rows] * second[rows]
            top, whole = rows.start // cell_px, len(part) // cell_px
            cells = part[: whole * cell_px].reshape(whole, cell_px, width)
            torch.sum(cells, dim=1, out=sums[top : top + whole])
            if len(part) > whole * cell_px:
                torch.sum(part[whole * cell_px :], dim=0, out=sums[-1])
    return lines


def cell_sums(lines: Tensor, cell_px: int) -> Tensor:
    """Sums over square cells (n, h, w), ceil(w / cell_px) of them, from `line_sums` (n, h, w)."""
    count, height, width = lines.shape
    if width % cell_px:
        lines = functional.pad(lines, (0, -width % cell_px))
    cells = lines.view(count, height, -(-width // cell_px), cell_px)
    if cell_px > _FEW:
        return cells.sum(dim=3)
    # So few at a time are added ten times as fast like this.
    columns = cells.unbind(3)
    total = columns[0] + columns[1]
    for column in columns[2:]:
        total += column
    return total


def add_cells(sums: Tensor, side: int) -> Tensor:
    """Add up cells (n, h, w) to larger ones, of so many cells a side."""
    pooled: Tensor = functional.avg_pool2d(sums, side, ceil_mode=True, divisor_override=1)
    return pooled


def pixels_in_cells(height: int, width: int, cell_px: int, device: torch.device) -> Tensor:
    """How many pixels of a plane are in each cell, float32 (h, w), see `cell_sums`."""
    down, across = (
        torch.arange(side, 0, -cell_px, device=device, dtype=torch.float32).clamp_max_(cell_px)
        for side in (height, width)
    )
    return torch.outer(down, across)


class Enlarged:
    """Planes that are linear between the centres of cells, computed strip by strip.

    Parameters
    ----------
    cells : Tensor
        float32 (n, h, w).
    cell_px : int
        Side of a cell in pixels, even.
    width : int
        Columns of the planes, at most those of the cells.
    """

    def __init__(self, cells: Tensor, cell_px: int, width: int) -> None:
        steps = torch.arange(cell_px, device=cells.device, dtype=torch.float32)
        # The upper half of a cell lies after the centre of the one above, the lower after its own.
        self._shares = ((steps + 0.5) / cell_px).roll(cell_px // 2).view(2, cell_px // 2, 1)
        self._cell_px = cell_px
        # Lines are quicker than columns: the cells are turned, and turned back.
        lines = self._between(continued(cells.transpose(1, 2)))
        self._lines = continued(lines[:, :width].transpose(1, 2))

    def rows(self, rows: slice) -> Tensor:
        """The planes (n, rows, width) in these rows, of which the first begins a cell."""
        top, bottom = rows.start // self._cell_px, -(-rows.stop // self._cell_px)
        planes = self._between(self._lines[:, top : bottom + 2])
        return planes[:, : rows.stop - rows.start]

    def _between(self, lines: Tensor) -> Tensor:
        """Lines (n, h, w) of cells to those of pixels, (n, (h - 2) cell_px, w)."""
        count, height, width = lines.shape
        plane, line, element = lines.stride()
        # Twice each, for the two halves of a cell, with no copy.
        shape, strides = (count, height - 2, 2, 1, width), (plane, line, line, 0, element)
        above = lines.as_strided(shape, strides, lines.storage_offset())
        below = lines.as_strided(shape, strides, lines.storage_offset() + line)
        return torch.lerp(above, below, self._shares).view(count, -1, width)


def continued(lines: Tensor) -> Tensor:
    """Lines (n, h, w) with the first and the last of them once more, in new memory."""
    return torch.cat([lines[:, :1], lines, lines[:, -1:]], dim=1)
