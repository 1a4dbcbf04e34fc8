"""A maker's library that may never return: its calls are made on a thread, and given up in time.

A call into a library cannot be ended from here. What can be done is not to wait for it: the run
ends with an error, the beam is blanked, and the camera is not used again before the call is back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy.typing as npt

from tem_live.drivers.device_camera import Device, Fetched
from tem_live.drivers.protocols import CameraCapabilities, CameraSettings, CameraState, Roi
from tem_live.drivers.worker import Worker
from tem_live.errors import DeviceError, DisconnectedError, NotConnectedError

Answer = TypeVar("Answer")

_OPENS_WITHIN_S = 60.0
"""Some libraries load a camera's firmware first."""
_SETS_WITHIN_S = 30.0


class GuardedDevice:
    """A device whose calls are made on a thread of their own.

    Parameters
    ----------
    device : Device
        What is called.
    library : str
        What messages call its library.
    reply_timeout_s : float
        How long a call may take in the course of a run, in seconds, past what it was let to wait.
    """

    def __init__(self, device: Device, library: str, reply_timeout_s: float) -> None:
        self._device = device
        self._library = library
        self._reply_timeout_s = reply_timeout_s
        self._exposure_s = 0.0
        self._worker: Worker[Device] | None = None
        self._given_up: Future[Any] | None = None
        self._is_left_open = False

    def open(self) -> CameraCapabilities:
        """See `Device`."""
        self._worker = self._worker or Worker(self._library, lambda: self._device)
        self._check_returned()
        if self._is_left_open:
            with contextlib.suppress(DeviceError, OSError):
                self._call(lambda device: device.close(), _SETS_WITHIN_S)
            self._is_left_open = False
        return self._call(lambda device: device.open(), _OPENS_WITHIN_S)

    def close(self) -> None:
        """See `Device`."""
        self._is_left_open = True
        try:
            self._call(lambda device: device.close(), _SETS_WITHIN_S)
            self._is_left_open = False
        finally:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.close()

    def configure(self, settings: CameraSettings, roi: Roi) -> CameraState:
        """See `Device`."""
        state = self._call(lambda device: device.configure(settings, roi), _SETS_WITHIN_S)
        self._exposure_s = state.exposure_s
        return state

    def start(self, frames: int | None) -> None:
        """See `Device`."""
        self._call(lambda device: device.start(frames), _SETS_WITHIN_S)

    def stop(self) -> None:
        """See `Device`."""
        # Some cameras end the exposure first.
        self._call(lambda device: device.stop(), self._exposure_s + self._reply_timeout_s)

    def fetch(self, buffer: npt.NDArray[Any], wait_s: float) -> Fetched | None:
        """See `Device`."""
        # A call that was given up may still write into the buffer: no other run begins until then.
        return self._call(
            lambda device: device.fetch(buffer, wait_s), wait_s + self._reply_timeout_s
        )

    def is_there(self) -> bool:
        """See `Device`."""
        return self._call(lambda device: device.is_there(), self._reply_timeout_s)

    def _call(self, question: Callable[[Device], Answer], within_s: float) -> Answer:
        self._check_returned()
        if self._worker is None:
            raise NotConnectedError(f"{self._library} is closed; open the camera first")
        answer = self._worker.submit(question)
        try:
            return answer.result(within_s)
        except TimeoutError:
            if answer.done():
                return answer.result()
            self._given_up = answer
            raise DisconnectedError(
                f"{self._library} has not answered for {within_s:.1f} s; look at the camera's "
                "power and cable, and restart the program"
            ) from None

    def _check_returned(self) -> None:
        if self._given_up is not None:
            if not self._given_up.done():
                raise DisconnectedError(
                    f"{self._library} is still in a call that was given up; restart the program, "
                    "and the camera where that does not help"
                )
            self._given_up = None
