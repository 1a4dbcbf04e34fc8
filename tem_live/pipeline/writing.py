"""Frames are written: by one thread, so that a slow disk holds slots and nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tem_live.errors import RecordingError
from tem_live.pipeline.stream import Stream, Taken

SILENT_S = 15.0
"""A disk that takes nothing for so long does not answer: nobody waits for it any longer."""

_LATER = ("model", "restore_binning", "latency_ms", "drift_px")
"""What is known of a frame only once it is restored, and so not when its raw plane is written."""


class Sink(Protocol):
    """What the writer needs of a recorder; `tem_live.recording.Recorder` has it."""

    def start(
        self,
        frame_shape: tuple[int, int],
        dtype: np.dtype[Any],
        pixel_size_nm: float | None,
        frame_interval_s: float,
    ) -> None:
        """Begin; again when the shape or type of the frames changes."""

    def write_raw(self, frame_id: int, raw: npt.NDArray[Any], meta: dict[str, Any]) -> None:
        """Store one raw frame with its metadata."""

    def write_restored(self, frame_id: int, restored: npt.NDArray[np.float32]) -> None:
        """Store the restored plane of a frame whose raw one is stored."""

    def note(self, attributes: dict[str, Any]) -> None:
        """Say something of the recording as a whole, besides what it began with."""

    def close(self) -> None:
        """Finish; idempotent."""


class Writer:
    """The thread that writes recordings, so that a slow disk holds slots and nothing else.

    Parameters
    ----------
    on_error : callable of RecordingError
        Called once when a recording cannot go on; the rest of its frames are let go.
    """

    def __init__(self, on_error: Callable[[RecordingError], None]) -> None:
        self._on_error = on_error
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._sink: Sink | None = None
        self._stream: Stream | None = None
        self._broken = False
        self._finishing: Future[None] | None = None
        self._jobs = 0
        self.recorded = 0
        self._thread = threading.Thread(target=self._run, name="tem-live writer", daemon=True)
        self._thread.start()

    @property
    def active(self) -> bool:
        """Whether frames that are handed over now are recorded."""
        return self._sink is not None and not self._broken

    def check_free(self) -> None:
        """Raise `RecordingError` while the recording before still waits for its disk."""
        if self._finishing is not None and not self._finishing.done():
            raise RecordingError(
                "the recording before is not written yet, its disk does not answer; wait for it"
            )

    def open(self, sink: Sink) -> None:
        """Record from the next frame on. Raises as `check_free`."""
        self.check_free()
        self.recorded = 0
        self._broken = False
        self._stream = None
        self._sink = sink

    def raw(self, taken: Taken) -> None:
        """Queue a raw frame."""
        self._hand_over(taken, self._write_raw)

    def restored(self, taken: Taken) -> None:
        """Queue the restored plane of a frame that was queued before."""
        self._hand_over(taken, self._write_restored)

    def note(self, attributes: dict[str, Any]) -> None:
        """Queue something to be said of the recording as a whole."""
        sink = self._sink
        if sink is not None:
            self._queue.put(lambda: None if self._broken else self._guarded(note))

        def note() -> None:
            assert sink is not None
            sink.note(attributes)

    def close(self) -> None:
        """Write what is queued, then close the recording; returns when the file is closed.

        A disk that does not answer is told after `SILENT_S`. What it lacks is written when it does.
        """
        sink, self._sink = self._sink, None
        if sink is None:
            return
        self._finishing = done = Future[None]()

        def finish() -> None:
            try:
                self._guarded(sink.close)
            finally:
                done.set_result(None)

        self._queue.put(finish)
        if not self._await(done):
            self._on_error(
                RecordingError(
                    f"the recording lacks its last frames: its disk took nothing for {SILENT_S:g} "
                    "s; they are written if it answers while the program runs"
                )
            )

    def shut_down(self) -> None:
        """End the thread; a recording that is open is closed first, as by `close`."""
        self.close()
        self._queue.put(None)
        if self._finishing is None or self._await(self._finishing):
            self._thread.join()

    def _await(self, done: Future[None]) -> bool:
        """Wait for it as long as anything is written."""
        while True:
            before = self._jobs
            try:
                done.result(SILENT_S)
            except TimeoutError:
                if self._jobs == before:
                    return False
            else:
                return True

    def _hand_over(self, taken: Taken, write: Callable[[Sink, Taken], None]) -> None:
        sink = self._sink
        if sink is None or self._broken:
            return
        taken.stream.ring.retain(taken.slot)

        def job() -> None:
            try:
                if not self._broken:
                    self._guarded(lambda: write(sink, taken))
            finally:
                taken.release()

        self._queue.put(job)

    def _write_raw(self, sink: Sink, taken: Taken) -> None:
        stream, info = taken.stream, taken.info
        if self._stream is not stream:
            sink.start(
                stream.state.frame_shape,
                stream.state.dtype,
                stream.pixel_size_nm,
                stream.state.frame_interval_s,
            )
            self._stream = stream
        measured = replace(info, dose_e_per_px=stream.calibrator.mean_electrons(taken.slot.host))
        meta = {key: value for key, value in measured.as_dict().items() if key not in _LATER}
        sink.write_raw(info.frame_id, taken.slot.host, meta)
        self.recorded += 1

    def _write_restored(self, sink: Sink, taken: Taken) -> None:
        host = taken.stream.ring.backend.on_host(taken.slot.restored)
        sink.write_restored(taken.info.frame_id, host)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except RecordingError as error:
            self._broken = True
            self._on_error(error)
        except OSError as error:
            self._broken = True
            self._on_error(RecordingError(f"the recording cannot be written: {error}"))
        except Exception as error:
            self._broken = True
            self._on_error(RecordingError(f"the recording failed: {type(error).__name__}: {error}"))

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            job()
            self._jobs += 1
