"""A frame for the display: its planes stay on the device, only what is shown comes to the host.

A window shows a few hundred thousand pixels of a frame that may have sixteen million. So the frame
is copied once on its device, which frees its slot, and what the window asks for is taken from the
copy: means over squares of pixels, a part, single values. On the CPU the same code copies nothing
that it need not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.binning import binned
from tem_live.frames import Backend, Slot
from tem_live.state import FrameInfo

__all__ = ["DeviceFrame", "DevicePlane"]

_ALL = slice(None)


class DevicePlane:
    """One plane that nobody writes to any more.

    Parameters
    ----------
    array : array (H, W) float32
        In e-/px, where ``backend`` has it.
    backend : Backend
        Where the plane lives.

    Attributes
    ----------
    shape : (height, width)
        In pixels.
    """

    def __init__(self, array: Any, backend: Backend) -> None:
        self._array = array
        self._backend = backend
        self.shape: tuple[int, int] = (int(array.shape[0]), int(array.shape[1]))

    def part(
        self, rows: slice = _ALL, columns: slice = _ALL, factor: int = 1, step: int = 1
    ) -> npt.NDArray[np.float32]:
        """Part of the plane on the host, shrunk before it comes; not to be written to.

        Parameters
        ----------
        rows, columns : slice
            The part, in pixels of the plane.
        factor, step : int
            See `tem_live.binning.binned`.

        Returns
        -------
        ndarray float32
            In e-/px.
        """
        with self._backend.display():
            return self._backend.on_host(binned(self._array[rows, columns], factor, step))

    def at(self, row: int, column: int) -> float:
        """Value of one pixel in e-/px."""
        return float(self.part(slice(row, row + 1), slice(column, column + 1))[0, 0])


@dataclass(frozen=True, slots=True)
class DeviceFrame:
    """One frame with memory of its own on its device.

    Attributes
    ----------
    electrons : DevicePlane
        Calibrated, unrestored.
    restored : DevicePlane or None
        None where restoring was skipped or there is no restorer.
    meta : FrameInfo
        Identity, conditions and dose.
    """

    electrons: DevicePlane
    restored: DevicePlane | None
    meta: FrameInfo

    @classmethod
    def copy_of(cls, slot: Slot, backend: Backend, meta: FrameInfo) -> DeviceFrame:
        """Copy of a slot's planes, complete when the call returns."""
        with backend.display():
            electrons = slot.electrons.copy()
            restored = slot.restored.copy() if slot.is_restored else None
        backend.finish()
        return cls(
            DevicePlane(electrons, backend),
            None if restored is None else DevicePlane(restored, backend),
            meta,
        )
