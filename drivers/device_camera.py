"""The camera that all vendors' libraries share: waiting, ending, counting and refusing.

A vendor module says how its library is asked, as one `Device`; `DeviceCamera` makes a
`tem_live.drivers.protocols.Camera` of it. A device is asked one thing at a time, from whichever
thread, and never waits long, so that a stop or a close is noticed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    EndOfFrames,
    FrameMeta,
    Roi,
)
from tem_live.errors import (
    DeviceError,
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)

SLICE_S = 0.1
"""Longest that `Device.fetch` is let to wait at once, in seconds."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A frame that a device has written into the buffer.

    Attributes
    ----------
    number : int or None
        The frame's number as the device counts, from 0 at `Device.start`; None where it does not.
    device_time_s : float or None
        The device's own clock in seconds.
    raw : mapping
        What else the device told, JSON-able.
    """

    number: int | None = None
    device_time_s: float | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)


class Device(Protocol):
    """One vendor's way to one camera. All of it may raise `DisconnectedError`."""

    def open(self) -> CameraCapabilities:
        """Connect and ask what the camera can do. Raises `NotConnectedError`."""

    def close(self) -> None:
        """Give everything back that `open` took, as far as it came; may raise a `DeviceError`."""

    def configure(self, settings: CameraSettings, roi: Roi) -> CameraState:
        """Set what was checked already, and read back what was taken. Raises `RefusedError`."""

    def start(self, frames: int | None) -> None:
        """Begin a series; numbers count from 0 again."""

    def stop(self) -> None:
        """End the series. It may have ended."""

    def fetch(self, buffer: npt.NDArray[Any], wait_s: float) -> Fetched | None:
        """Write the next frame into ``buffer``; None if none came within ``wait_s`` seconds."""

    def is_there(self) -> bool:
        """Whether the camera still answers, asked when no frame came in time."""


class DeviceCamera:
    """A camera of a `Device`. See the module's text.

    Parameters
    ----------
    device : Device
        How it is asked.
    name : str
        What messages call it, such as ``"the Andor camera"``.
    """

    def __init__(self, device: Device, name: str) -> None:
        self._device = device
        self._name = name
        self._capabilities: CameraCapabilities | None = None
        self._settings: tuple[CameraSettings, Roi] | None = None
        self._state: CameraState | None = None
        self._end: int | None = None
        self._next = 0
        self._running = False
        self._halt = threading.Event()
        self._lock = threading.Lock()

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera`."""
        if self._capabilities is None:
            raise NotConnectedError(f"{self._name} is closed; open it first")
        return self._capabilities

    def open(self) -> None:
        """See `Camera`."""
        with self._lock:
            if self._capabilities is not None:
                return
            try:
                self._capabilities = self._device.open()
            except BaseException as error:
                with contextlib.suppress(DeviceError, OSError):
                    self._device.close()
                if isinstance(error, DisconnectedError | DeviceTimeoutError):
                    raise NotConnectedError(str(error)) from None
                raise

    def close(self) -> None:
        """See `Camera`."""
        self._halt.set()
        with self._lock:
            if self._capabilities is None:
                return
            self._end_series()
            self._capabilities = self._settings = self._state = None
            with contextlib.suppress(DeviceError, OSError):
                self._device.close()

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera`."""
        roi = check_settings(settings, self.capabilities)
        with self._lock:
            _ = self.capabilities
            try:
                self._state = self._device.configure(settings, roi)
            except RefusedError:
                if self._settings is not None:
                    with contextlib.suppress(RefusedError):
                        self._state = self._device.configure(*self._settings)
                raise
            self._settings = settings, roi
            return self._state

    def start(self, frames: int | None = None) -> None:
        """See `Camera`."""
        with self._lock:
            _ = self.capabilities
            if self._state is None:
                raise RefusedError(f"{self._name} is not configured; set an exposure first")
            self._end_series()
            self._end, self._next = frames, 0
            self._halt.clear()
            self._running = True
            try:
                self._device.start(frames)
            except BaseException:
                self._end_series()
                raise

    def stop(self) -> None:
        """See `Camera`."""
        self._halt.set()
        with self._lock:
            self._end_series()

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera`."""
        _ = self.capabilities
        state = self._state
        # A series that has ended is still there to say so, until it is stopped.
        if state is None or not self._running or self._halt.is_set():
            raise DisconnectedError(f"{self._name} is stopped; start it first")
        check_buffer(buffer, state.frame_shape, state.dtype)
        if self._next == self._end:
            raise EndOfFrames
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            with self._lock:
                if self._halt.is_set() or not self._running:
                    raise DisconnectedError(f"{self._name} was stopped")
                fetched = self._device.fetch(buffer, min(left_s, SLICE_S))
                if fetched is not None:
                    return self._number(fetched, state)
                if time.monotonic() < deadline:
                    continue
                there = self._device.is_there()
            if not there:
                raise DisconnectedError(
                    f"{self._name} does not answer any more; look at its power and its cable, "
                    "and reconnect"
                )
            raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")

    def _number(self, fetched: Fetched, state: CameraState) -> FrameMeta:
        sequence = self._next if fetched.number is None else fetched.number
        if sequence < self._next:
            raise DisconnectedError(
                f"{self._name} sent frame {sequence} after frame {self._next - 1}; "
                "is another program using it?"
            )
        self._next = sequence + 1
        if self._end is not None and self._next >= self._end:
            # What the camera counted and lost belongs to the series, too.
            self._next = self._end
            with contextlib.suppress(DeviceError):
                self._device.stop()
        return FrameMeta(
            sequence=sequence,
            host_time_s=time.time(),
            exposure_s=state.exposure_s,
            device_time_s=fetched.device_time_s,
            raw=fetched.raw,
        )

    def _end_series(self) -> None:
        if self._running:
            self._running = False
            with contextlib.suppress(DeviceError):
                self._device.stop()
