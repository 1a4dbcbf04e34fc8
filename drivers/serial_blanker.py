"""A beam blanker on a serial port that is not read back: known is only what it was told.

`blanked` says what was commanded last, and counts as not blanked whenever that is not known.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from tem_live.drivers.serial_link import SIMULATED, LinkSettings, Port, SerialLink
from tem_live.errors import DisconnectedError


class SerialBlanker(ABC):
    """Remembers what a blanker without read-back was told.

    Parameters
    ----------
    settings : LinkSettings
        Of the port.
    simulator : callable
        Makes the simulated blanker where the port asks for one.
    delay_s : float
        How long the blanker takes to follow, in seconds.
    """

    def __init__(
        self, settings: LinkSettings, simulator: Callable[[], Port], delay_s: float
    ) -> None:
        self._link = SerialLink(settings, simulator=simulator)
        self._port_name = settings.port
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._orders = 0
        self._commanded: bool | None = None

    def open(self) -> None:
        """Connect and blank the beam, so that its state is known. Raises `NotConnectedError`."""
        if self._link.is_open:
            return
        self._link.open()
        try:
            self.set_blanked(True)
        except BaseException:
            self._link.close()
            raise

    @property
    def simulated(self) -> bool:
        """Whether the blanker is the simulated one of this process."""
        return self._port_name == SIMULATED

    def close(self) -> None:
        """Disconnect; idempotent. From now on nothing is known."""
        self._link.close()
        with self._lock:
            self._orders += 1
            self._commanded = None

    @property
    def commanded(self) -> bool | None:
        """The last command, True for blanked; None before the first and after a failed one."""
        return self._commanded

    @property
    def blanked(self) -> bool:
        """Whether the beam was commanded off the specimen; False while that is unknown."""
        return self._commanded is True

    def set_blanked(self, blanked: bool) -> None:
        """Command it, and wait until the blanker has had the time to follow. Thread-safe.

        A port that was lost since the last command is opened again first.

        Raises
        ------
        DeviceError
            The command could not be sent; what the blanker does is unknown.
        """
        order = None
        for last in (False, True):
            with self._lock:
                if order is None:
                    self._orders += 1
                    order = self._orders
                elif order != self._orders:
                    # Overtaken: a later command has the last word.
                    return
                # The beam counts as on from before it is let through until it is surely off.
                self._commanded = False if not blanked else self._commanded
                try:
                    self._send(blanked)
                except BaseException as error:
                    self._commanded = None
                    if last or not isinstance(error, DisconnectedError):
                        raise
                    continue
            # Without the lock: somebody's blanking must not wait behind somebody's unblanking.
            if self._delay_s:
                time.sleep(self._delay_s)
            with self._lock:
                if order != self._orders:
                    return
                # A plug that came out with the command took it along, and shows only now.
                try:
                    self._link.check()
                except BaseException as error:
                    self._commanded = None
                    if last or not isinstance(error, DisconnectedError):
                        raise
                    continue
                self._commanded = blanked
            return

    @abstractmethod
    def _send(self, blanked: bool) -> None:
        """Send the command to blank (True) or to unblank (False)."""
