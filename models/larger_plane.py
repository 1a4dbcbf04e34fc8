"""A plane larger than the frame, of whose spectrum a few columns are looked at.

Along y they alone are transformed. Along x there are two ways that come to the same: a few columns
are sums of the frame with waves, and two of these in a row are sums with what the waves have in
common, with no plane between; many are less work as Fourier transforms of all columns.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tem_live.models.planes import strips

__all__ = ["LargerPlane"]

# Up to so many columns the sums are the quicker way, counted for a fit of three steps.
_FEW = 96


class LargerPlane:
    """Coefficients of waves in a plane around the frame.

    Parameters
    ----------
    size : tuple of int
        Rows and columns of the frame, H and W.
    larger : tuple of int
        Rows and columns of the plane, whose first pixel is the frame's.
    columns : Tensor
        int64 (K,), in order: columns of the ``rfft2`` of the plane that are looked at.
    """

    def __init__(self, size: tuple[int, int], larger: tuple[int, int], columns: Tensor) -> None:
        self._height, self._tall = size[0], larger[0]
        single = (columns == 0) | (2 * columns == larger[1])
        self.weight = torch.where(single, 1.0, 2.0)
        """float32 (K,): each column but the first and the last of the spectrum stands for two."""
        way = _Sums if len(columns) <= _FEW else _Transforms
        self._along = way(size, larger[1], columns, self.weight)

    def coefficients(self, image: Tensor) -> Tensor:
        """Those of the frame (H, W) with zeros around it, complex64 (rows, K)."""
        return self._down(self._along.spectrum(image))

    def draw(self, coefficients: Tensor) -> Tensor:
        """What coefficients make where the frame is, float32 (H, W)."""
        return self._along.rows(self._up(coefficients))

    def seen(self, coefficients: Tensor) -> Tensor:
        """Coefficients of what coefficients make where the frame is, with zeros around it."""
        return self._down(self._along.seen(self._up(coefficients)))

    def _down(self, lines: Tensor) -> Tensor:
        found: Tensor = torch.fft.fft(lines, n=self._tall, dim=0)
        return found

    def _up(self, coefficients: Tensor) -> Tensor:
        lines: Tensor = torch.fft.ifft(coefficients, dim=0)
        return lines[: self._height]


class _Sums:
    """The spectrum along x of rows, (n, W) to complex (n, K), and back: sums with waves."""

    def __init__(self, size: tuple[int, int], wide: int, columns: Tensor, weight: Tensor) -> None:
        pixels = torch.arange(size[1], device=columns.device)
        # Whole turns are taken off while these are whole numbers.
        angles = (columns[:, None] * pixels % wide) * (2.0 * math.pi / wide)
        waves = torch.stack([angles.cos(), -angles.sin()], dim=1)
        self._waves = waves.view(-1, size[1])
        self._drawn = (waves * (weight / wide)[:, None, None]).view(-1, size[1])
        self._common = self._drawn @ self._waves.T

    def spectrum(self, rows: Tensor) -> Tensor:
        return _paired(rows @ self._waves.T)

    def rows(self, lines: Tensor) -> Tensor:
        return _apart(lines) @ self._drawn

    def seen(self, lines: Tensor) -> Tensor:
        """The spectrum of the rows that these lines make."""
        return _paired(_apart(lines) @ self._common)


def _apart(lines: Tensor) -> Tensor:
    """Complex (n, K) to its real and imaginary parts side by side, (n, 2 K)."""
    return torch.view_as_real(lines).reshape(len(lines), -1)


def _paired(parts: Tensor) -> Tensor:
    """Reverse `_apart`."""
    return torch.view_as_complex(parts.view(len(parts), -1, 2))


class _Transforms:
    """As `_Sums`, by Fourier transforms of which only these columns are kept."""

    def __init__(self, size: tuple[int, int], wide: int, columns: Tensor, _weight: Tensor) -> None:
        self._width, self._wide, self._columns = size[1], wide, columns
        self._strips = list(strips(size[0], wide, columns.device))
        # The other columns stay zero, whatever rows are drawn.
        shape = (self._strips[0].stop, wide // 2 + 1)
        self._whole = torch.zeros(shape, dtype=torch.complex64, device=columns.device)

    def spectrum(self, rows: Tensor) -> Tensor:
        return torch.cat([self._forth(rows[part]) for part in self._strips])

    def rows(self, lines: Tensor) -> Tensor:
        drawn = torch.empty((len(lines), self._width), device=lines.device)
        for part in self._strips:
            drawn[part] = self._back(lines[part])
        return drawn

    def seen(self, lines: Tensor) -> Tensor:
        return torch.cat([self._forth(self._back(lines[part])) for part in self._strips])

    def _forth(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.fft.rfft(rows, n=self._wide, dim=1)
        return found.index_select(1, self._columns)

    def _back(self, lines: Tensor) -> Tensor:
        whole = self._whole[: len(lines)]
        whole[:, self._columns] = lines
        drawn: Tensor = torch.fft.irfft(whole, n=self._wide, dim=1)
        return drawn[:, : self._width]
