"""What the fakes of vendors' libraries share: C functions made of methods, and a sensor.

The functions are called through ctypes with the driver's own declarations, so that what a driver
passes goes through C types; faults are fields of the sensor. Nothing here proves what a vendor's
library does: it does what its header says, as we read it.
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.drivers.native import Prototypes


class Library:
    """An object with C functions, each a method of the same name.

    Parameters
    ----------
    fake : object
        Whose methods they are.
    prototypes : mapping
        Result and argument types by name.
    """

    def __init__(self, fake: object, prototypes: Prototypes) -> None:
        self.errors: list[BaseException] = []
        self.hanging: dict[str, threading.Event] = {}
        for name, (result, arguments) in prototypes.items():
            method = self._noted(getattr(fake, name))
            setattr(self, name, ctypes.CFUNCTYPE(result, *arguments)(method))

    def _noted(self, method: Any) -> Any:
        # ctypes only prints what a callback raises: the test looks at it here.
        def call(*arguments: Any) -> int:
            if method.__name__ in self.hanging:
                self.hanging[method.__name__].wait(20)
            try:
                return int(method(*arguments))
            except BaseException as error:
                self.errors.append(error)
                return -1

        return call


class Sensor:
    """A sensor that is read out on the wall clock, and what may go wrong with it.

    While nobody asks for long, its clock stands still: a test that a busy computer let wait finds
    its frames. A test of what is lost asks on.
    """

    height, width = 96, 128

    def __init__(self) -> None:
        self.exposure_s = 0.01
        self.binning = 1
        self.roi = (0, 0, self.height, self.width)
        self.lost: set[int] = set()
        self.present = True
        self.in_use = False
        self.silent = False
        self.failing: dict[str, int] = {}
        self._running = False
        self._ran_s = 0.0
        self._asked = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.roi[2] // self.binning, self.roi[3] // self.binning

    @property
    def running(self) -> bool:
        return self._running

    def start(self) -> None:
        self._running = True
        self._ran_s, self._asked = 0.0, time.monotonic()

    def stop(self) -> None:
        self._running = False

    def exposures(self) -> int:
        """How many have ended since the start."""
        if not self._running or self.silent:
            return 0
        now = time.monotonic()
        self._ran_s += min(now - self._asked, 2 * self.exposure_s)
        self._asked = now
        return int(self._ran_s / self.exposure_s)

    def arrived(self) -> list[int]:
        """Exposures that have arrived, in order."""
        return [number for number in range(self.exposures()) if number not in self.lost]

    def await_more(self, than: int, timeout_s: float) -> bool:
        """Wait until more exposures have ended."""
        deadline = time.monotonic() + timeout_s
        while self.exposures() <= than and self.present:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(left_s, self.exposure_s / 4, 0.01))
        return self.present

    def picture(self, exposure: int) -> npt.NDArray[np.uint16]:
        """What an exposure shows: its number, and the place of each pixel."""
        rows, columns = np.indices(self.shape)
        return (1000 * exposure + 10 * rows + columns).astype(np.uint16) & 0xFFF
