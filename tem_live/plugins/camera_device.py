"""A session's restored frames as a camera of pymmcore-plus, for the viewers that are built on it.

Frames are restored electrons in 16 bit counts, since that is what such viewers and their writers
take; the metadata of each say how many counts are an electron, and the frame's id, dose and
fluence. Written for pymmcore-plus 0.18 (``pymmcore_plus.experimental.unicore``).
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pymmcore_plus.experimental.unicore import CameraDevice

from tem_live.errors import DeviceError, DeviceTimeoutError, InputError, RefusedError
from tem_live.session import Session
from tem_live.state import Frame, FrameInfo

_KEPT = 8
"""Frames that wait for the viewer; an older one gives way to a newer."""
_SLICE_S = 0.1
_PATIENCE_S = 10.0
"""How long past its exposure a restored frame may take."""
_DTYPE = np.dtype(np.uint16)


class RestoredCamera(CameraDevice):  # type: ignore[misc]  # without stubs
    """See the module's text; `tem_live.plugins.restored_camera` makes one.

    Parameters
    ----------
    session : Session
        Whose frames.
    counts_per_electron : float
        Counts that stand for one electron.
    drives : bool
        Whether a sequence starts a run of the session where none is going on.
    """

    def __init__(self, session: Session, counts_per_electron: float, drives: bool) -> None:
        if not (math.isfinite(counts_per_electron) and counts_per_electron > 0):
            raise InputError(
                f"counts_per_electron = {counts_per_electron:g}: give a positive number of counts"
            )
        self._session = session
        self._gain = counts_per_electron
        self._drives = drives
        super().__init__()

    def get_exposure(self) -> float:
        """Exposure of a frame in milliseconds."""
        return 1e3 * self._session.exposure_s

    def set_exposure(self, exposure: float) -> None:
        """Set it, in milliseconds. Raises `RefusedError` for what the camera does not take."""
        self._session.exposure_s = exposure / 1e3

    def get_binning(self) -> int:
        """Side of the square of sensor pixels that are one."""
        return self._session.binning

    def get_camera_name(self) -> str:
        """The camera that tem_live runs, and the restorer."""
        return f"{self._session.capabilities.name}, restored by {self._session.model}"

    def shape(self) -> tuple[int, int]:
        """(height, width) of the frames in binned pixels."""
        return self._session.state.frame_shape

    def dtype(self) -> np.dtype[Any]:
        """Type of the images."""
        return _DTYPE

    def start_sequence(
        self,
        n: int | None,
        get_buffer: Callable[[Sequence[int], npt.DTypeLike], npt.NDArray[Any]],
    ) -> Iterator[Mapping[str, Any]]:
        """Write restored frames into the core's buffers, as they come.

        Parameters
        ----------
        n : int or None
            How many; None goes on until the sequence, or the session's run, is ended.
        get_buffer : callable
            Gives the memory for an image of a shape and type.

        Yields
        ------
        mapping
            Metadata of each image.

        Raises
        ------
        RefusedError
            There is no restorer, or a single frame is wanted and no run is going on.
        DeviceError
            The run ended before all had come, or no frame came in time.
        """
        session = self._session
        if session.model == "none":
            raise RefusedError("tem_live runs without a restorer: there is nothing to show")
        shape = self.shape()
        inbox: queue.Queue[Frame] = queue.Queue(_KEPT)
        ended = threading.Event()

        def on_stopped(_: str) -> None:
            ended.set()

        end = session.subscribe(lambda frame: _newest(inbox, frame), _if_restored)
        session.stopped.connect(on_stopped)
        own_run = False
        try:
            if not session.state.running and self._drives:
                session.start(n)
                own_run = True
            elif not session.state.running and n == 1:
                # A snap is refused at once; a longer sequence may be waiting for the run.
                raise RefusedError(
                    "tem_live takes no frames now: start a run there, or make this camera with "
                    "drives=True, which lets it start one"
                )
            taken = 0
            while n is None or taken < n:
                frame = self._next(inbox, ended)
                if frame is None:
                    if n is None:
                        return
                    reason = session.stats().stop_reason
                    raise DeviceError(f"tem_live's run ended ({reason}) after {taken} of {n}")
                assert frame.restored is not None
                if frame.restored.shape != shape:
                    raise DeviceError("the size of tem_live's frames was changed; begin again")
                buffer = get_buffer(shape, _DTYPE)
                scaled = np.rint(frame.restored * np.float32(self._gain))
                np.copyto(buffer, np.clip(scaled, 0, 65535), casting="unsafe")
                taken += 1
                yield self._metadata(frame.meta)
        finally:
            end()
            session.stopped.disconnect(on_stopped)
            if own_run:
                session.stop()

    def _next(self, inbox: queue.Queue[Frame], ended: threading.Event) -> Frame | None:
        """The next frame; None when the run has ended and all were taken."""
        waits = max(1, round((self._session.exposure_s + _PATIENCE_S) / _SLICE_S))
        for _ in range(waits):
            was_ended = ended.is_set()
            with contextlib.suppress(queue.Empty):
                return inbox.get(timeout=_SLICE_S)
            if was_ended:
                return None
        raise DeviceTimeoutError("tem_live sent no restored frame in time; start a run there")

    def _metadata(self, info: FrameInfo) -> dict[str, Any]:
        told = {
            "tem_live-frame_id": info.frame_id,
            "tem_live-model": info.model,
            "tem_live-counts_per_electron": self._gain,
            "tem_live-exposure_s": info.exposure_s,
            "tem_live-pixel_size_nm": info.pixel_size_nm,
            "tem_live-dose_e_per_px": info.dose_e_per_px,
            "tem_live-fluence_e_per_A2": info.total_fluence_e_per_A2,
        }
        return {key: str(value) for key, value in told.items() if value is not None}


def _if_restored(_: FrameInfo, restored: bool) -> bool:
    return restored


def _newest(inbox: queue.Queue[Frame], frame: Frame) -> None:
    """Put a frame in without waiting; on the processing thread."""
    while True:
        try:
            inbox.put_nowait(frame)
            return
        except queue.Full:
            with contextlib.suppress(queue.Empty):
                inbox.get_nowait()
