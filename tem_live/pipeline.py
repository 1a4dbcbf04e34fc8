"""The threads that a frame passes: taken, processed, written.

`Acquisition` owns the camera: it fills a slot of the ring, books the dose and hands the raw frame
to the `Writer` before anything else, then to the `Processor`, which calibrates, restores and
analyses it and publishes it to the display and to subscribers. Queues between them are unbounded
in code and bounded by the ring: whoever is slow holds slots. What gives way is decided in one
place each: restoring is skipped while frames wait (`Processor`), the display takes the newest and
counts the rest, and only when no slot is left can a raw frame not be taken, which ends the run
with the beam blanked unless the profile says to count it (`Acquisition`).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tem_live.account import DoseAccount
from tem_live.analysis import DriftEstimator, RollingMean
from tem_live.beam_clock import FrameTimes
from tem_live.calibration import Calibrator
from tem_live.detector_guard import DetectorGuard
from tem_live.dose import per_A2, per_pixel
from tem_live.drivers.protocols import Camera, CameraState, EndOfFrames, FrameMeta
from tem_live.errors import (
    DeviceError,
    DeviceTimeoutError,
    OverflowedError,
    RawFrameLostError,
    RecordingError,
    TemLiveError,
)
from tem_live.frames import FrameRing, Slot
from tem_live.state import BeamState, Frame, FrameInfo
from tem_live.threads import arithmetic_threads, set_arithmetic_threads, stand_back

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

MOST_WORKERS = 2
"""Frames that are restored at the same time, each on its share of the processor's cores."""

SILENT_S = 15.0
"""A disk that takes nothing for so long does not answer: nobody waits for it any longer."""

_LATER = ("model", "latency_ms", "drift_px")
"""What is known of a frame only once it is restored, and so not when its raw plane is written."""

READ_SLICE_S = 0.1
"""Longest wait inside the driver: how late a command or a stop can come to a long exposure."""


class LiveRestorer(Protocol):
    """What the pipeline needs of a restorer; `tem_live.models.Restorer` has it."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def concurrent(self) -> bool:
        """Whether two threads may restore a frame each at the same time, and gain by it."""

    def restore(self, counts: Any, out: Any = None) -> Any:
        """Restore (H, W) float32 electrons per pixel into ``out``."""


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


@dataclass(frozen=True)
class Stream:
    """What stays the same from one configuration of the camera to the next."""

    state: CameraState
    ring: FrameRing
    calibrator: Calibrator
    pixel_size_nm: float | None
    counts_per_electron: float | None


@dataclass
class Taken:
    """A frame on its way, holding its slot."""

    stream: Stream
    slot: Slot
    info: FrameInfo
    handed_over: float

    def release(self) -> None:
        """Give this holder's share of the slot back."""
        self.stream.ring.release(self.slot)


@dataclass(frozen=True, eq=False)
class _Done:
    """A frame that is calibrated if its dose is known, and restored if it says by whom."""

    taken: Taken
    dose: float | None
    restorer: LiveRestorer | None
    at: float


@dataclass(frozen=True, eq=False)
class Subscription:
    """Who gets copies of which frames."""

    receive: Callable[[Frame], None]
    wants: Callable[[FrameInfo, bool], bool]


def take_all(info: FrameInfo, restored: bool) -> bool:
    """Every frame, restored or not."""
    return True


# ---------------------------------------------------------------------------------------- writing


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
        plane = taken.slot.restored
        backend = taken.stream.ring.backend
        host = plane if backend.name == "cpu" else backend.download(plane)
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


# ------------------------------------------------------------------------------------- processing


class Processor:
    """The threads that calibrate every frame and restore as many as they can.

    A network scales badly over the cores of a processor: its many short steps wait for the slowest
    core each time. Where a restorer allows it, two frames are therefore restored at once, each on
    half of the cores. Restored frames are handed on in their order all the same, by whichever
    thread completes the next one; frames that are not restored overtake them, so that a slow
    restorer never holds more slots than it works on.

    Parameters
    ----------
    writer : Writer
        Takes the restored planes.
    account : DoseAccount
        Books the measured dose of frames whose incident dose nobody knows.
    guard : DetectorGuard
        Looks at the dose rate on the detector.
    message : callable of (level, text)
        Tells the user.
    rolling_mean : int
        Effective frames of the rolling mean.
    """

    def __init__(
        self,
        writer: Writer,
        account: DoseAccount,
        guard: DetectorGuard,
        message: Callable[[str, str], None],
        rolling_mean: int,
    ) -> None:
        self._writer = writer
        self._account = account
        self._guard = guard
        self._message = message
        self._waiting: deque[Taken] = deque()
        self._busy = 0
        self._tickets = 0
        self._next_ticket = 0
        self._done: dict[int, _Done] = {}
        self._delivering = False
        self._closing = False
        self._changed = threading.Condition()
        self._lock = threading.Lock()
        self._newest: Taken | None = None
        self._display_attached = False
        self._subscribers: list[Subscription] = []
        self._restorer: LiveRestorer | None = None
        self._workers = 1
        self._drift = DriftEstimator()
        self._rolling = RollingMean(rolling_mean)
        self._rolling_frames = rolling_mean
        self.reset()
        self._threads = [
            threading.Thread(
                target=self._run, args=(i,), name=f"tem-live processing {i}", daemon=True
            )
            for i in range(MOST_WORKERS)
        ]
        for thread in self._threads:
            thread.start()

    def reset(self) -> None:
        """Forget the figures of the last run."""
        with self._lock:
            self.restored = 0
            self.restore_skipped = 0
            self.display_skipped = 0
            self.latencies_ms: deque[float] = deque(maxlen=4096)
            self.dose_sum = 0.0
            self.dose_frames = 0
            self.first_restored: float | None = None
            self.last_restored: float | None = None

    @property
    def restore_fps(self) -> float:
        """Restored frames per second of the run; 0 where there are not two."""
        return _rate(self.restored, self.first_restored, self.last_restored)

    def set_restorer(self, restorer: LiveRestorer | None) -> None:
        """Restore with this one from the next frame on."""
        with self._changed:
            self._restorer = restorer
            self._workers = 1
            if restorer is not None and restorer.concurrent:
                self._workers = min(MOST_WORKERS, arithmetic_threads())
            self._changed.notify_all()

    def prepare(self, shape: tuple[int, int]) -> None:
        """Have the restorer ready for frames of (height, width) px before the first one comes."""
        restorer, workers = self._restorer, self._workers
        # Restorers of other packages need not have it.
        prepare = getattr(restorer, "prepare", None)
        if prepare is None:
            return

        def work() -> None:
            # As the threads that restore: what an engine starts here runs like them later.
            stand_back()
            set_arithmetic_threads(max(1, arithmetic_threads() // workers))
            try:
                prepare(shape)
            except Exception as error:
                # The first frame will fail as well, and tell.
                _log.warning("%s is not ready: %s", getattr(restorer, "name", restorer), error)

        thread = threading.Thread(target=work, name="tem-live preparing", daemon=True)
        thread.start()
        thread.join()

    def submit(self, taken: Taken) -> None:
        """Take over a frame with its slot.

        Behind a restorer that takes longer than the ring can hold, the frames that have waited
        longest are calibrated here, on the caller's thread, and stay unrestored.
        """
        with self._changed:
            self._waiting.append(taken)
            limit = max(2, len(taken.stream.ring) // 2)
            passed = self._waiting.popleft() if len(self._waiting) > limit else None
            if passed is not None:
                self._busy += 1
            self._changed.notify_all()
        if passed is not None:
            with self._lock:
                self.restore_skipped += 1
            self._process(passed)

    def drain(self) -> None:
        """Wait until every frame submitted so far is processed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy)

    def subscribe(
        self, receive: Callable[[Frame], None], wants: Callable[[FrameInfo, bool], bool]
    ) -> Callable[[], None]:
        """Hand the frames that ``wants`` chooses to ``receive`` on this thread, as copies."""
        subscription = Subscription(receive, wants)
        with self._lock:
            self._subscribers.append(subscription)

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers.remove(subscription)

        return unsubscribe

    def newest(self) -> Frame | None:
        """Copy of the newest frame that was not taken yet, or None; does not wait."""
        self._display_attached = True
        with self._lock:
            taken, self._newest = self._newest, None
        if taken is None:
            return None
        try:
            return _copy(taken)
        finally:
            taken.release()

    def rolling_mean(self) -> npt.NDArray[np.float32] | None:
        """Copy of the rolling mean of the unrestored electrons, (H, W) float32, or None."""
        with self._lock:
            plane = self._rolling.plane
            if plane is None:
                return None
            return plane.copy() if isinstance(plane, np.ndarray) else _on_host(plane)

    def forget(self) -> None:
        """Let go of the frame kept for the display, and begin drift and rolling mean anew."""
        with self._lock:
            taken, self._newest = self._newest, None
            self._drift.reset()
            self._rolling = RollingMean(self._rolling_frames)
        if taken is not None:
            taken.release()

    def shut_down(self) -> None:
        """Process what is queued and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.forget()

    def _run(self, index: int) -> None:
        # A frame that is restored late costs nothing, one that is taken late is lost.
        stand_back()
        mine = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (self._waiting and index < self._workers) or self._closing
                )
                if not self._waiting:
                    return
                taken = self._waiting.popleft()
                self._busy += 1
                restorer, workers = self._restorer, self._workers
                # A frame that waits behind this one is fresher: it is restored instead.
                skip = restorer is not None and len(self._waiting) > 1
                ticket = self._tickets
                if restorer is not None and not skip:
                    self._tickets += 1
            if skip:
                with self._lock:
                    self.restore_skipped += 1
            if restorer is None or skip:
                self._process(taken)
                continue
            if mine != workers:
                mine = workers
                set_arithmetic_threads(max(1, arithmetic_threads() // workers))
            self._deliver_in_order(ticket, self._calibrate_and_restore(taken, restorer))

    def _process(self, taken: Taken) -> None:
        self._deliver(self._calibrate_and_restore(taken, None))

    def _calibrate_and_restore(self, taken: Taken, restorer: LiveRestorer | None) -> _Done:
        stream, slot = taken.stream, taken.slot
        backend = stream.ring.backend
        dose = None
        try:
            backend.upload(slot.host, slot.raw)
            with backend.compute():
                stream.calibrator.apply(slot.raw, slot.electrons)
                dose = float(slot.electrons.mean(dtype=np.float64))
                self._guard.look(slot.electrons, taken.info.exposure_s, taken.info.binning)
                if restorer is not None:
                    self._restore(restorer, slot)
            backend.finish()
        except Exception as error:
            # One frame that cannot be processed is no reason to lose the raw ones after it.
            self._message("error", f"a frame could not be processed: {error}")
        return _Done(taken, dose, restorer if slot.is_restored else None, time.perf_counter())

    def _deliver_in_order(self, ticket: int, done: _Done) -> None:
        """Hand over a restored frame, or leave it to the thread that hands over those before it."""
        with self._changed:
            self._done[ticket] = done
            if self._delivering:
                return
            self._delivering = True
        while True:
            with self._changed:
                if self._next_ticket not in self._done:
                    self._delivering = False
                    return
                following = self._done.pop(self._next_ticket)
                self._next_ticket += 1
            self._deliver(following)

    def _deliver(self, done: _Done) -> None:
        taken = done.taken
        slot, backend = taken.slot, taken.stream.ring.backend
        try:
            if done.dose is not None:
                with backend.compute(), self._lock:
                    self._rolling.update(backend.xp, slot.electrons)
                taken.info = self._book(done, done.dose)
                if slot.is_restored:
                    self._writer.restored(taken)
                self._publish(taken, shown=slot.is_restored or self._restorer is None)
        except Exception as error:
            self._message("error", f"a frame could not be handed on: {error}")
        finally:
            taken.release()
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _restore(self, restorer: LiveRestorer, slot: Slot) -> None:
        try:
            restorer.restore(slot.torch_electrons, out=slot.torch_restored)
        except Exception as error:
            with self._changed:
                first, self._restorer = self._restorer is restorer, None
            if first:
                self._message(
                    "error",
                    f"restorer '{restorer.name}' failed and is off, raw goes on: {error}",
                )
        else:
            slot.is_restored = True

    def _book(self, done: _Done, dose: float) -> FrameInfo:
        taken, restorer, now = done.taken, done.restorer, done.at
        info, stream, slot = taken.info, taken.stream, taken.slot
        latency_ms = (now - taken.handed_over) * 1e3 if restorer else None
        fluence, total = info.fluence_e_per_A2, info.total_fluence_e_per_A2
        if info.dose_source == "detected" and stream.pixel_size_nm is not None:
            # Nobody says what came in: what was detected is the best there is.
            fluence, total = self._account.frame_detected(
                info.frame_id, per_A2(max(dose, 0.0), stream.pixel_size_nm), info.exposure_s
            )
        with self._lock:
            self.dose_sum += dose
            self.dose_frames += 1
            if latency_ms is not None:
                self.restored += 1
                self.latencies_ms.append(latency_ms)
                self.first_restored = self.first_restored or now
                self.last_restored = now
        drift = None
        if restorer:
            # Binned where the planes live; what comes to the host is small.
            backend = stream.ring.backend
            with backend.compute():
                drift = self._drift.update(slot.electrons, slot.restored, backend.download)
        return replace(
            info,
            dose_e_per_px=dose,
            fluence_e_per_A2=fluence,
            total_fluence_e_per_A2=total,
            model=restorer.name if restorer else "none",
            latency_ms=latency_ms,
            drift_px=drift,
        )

    def _publish(self, taken: Taken, shown: bool) -> None:
        with self._lock:
            takers = [s for s in self._subscribers if s.wants(taken.info, taken.slot.is_restored)]
        if takers:
            frame = _copy(taken)
            for taker in takers:
                taker.receive(frame)
        if not shown:
            return
        taken.stream.ring.retain(taken.slot)
        with self._lock:
            before, after = self._newest, taken
            if before is not None and before.info.frame_id > taken.info.frame_id:
                before, after = taken, before
            self._newest = after
            if before is not None and self._display_attached:
                self.display_skipped += 1
        if before is not None:
            before.release()


def _on_host(plane: Any) -> npt.NDArray[np.float32]:
    host: npt.NDArray[np.float32] = plane.get()
    return host


def _copy(taken: Taken) -> Frame:
    download = taken.stream.ring.backend.download
    slot = taken.slot
    return Frame(
        raw=np.array(slot.host, copy=True),
        electrons=download(slot.electrons),
        restored=download(slot.restored) if slot.is_restored else None,
        meta=taken.info,
    )


# -------------------------------------------------------------------------------------- acquiring


class Acquisition:
    """The thread that owns the camera from opening to closing.

    Everything that touches the camera is sent here with `call`; between calls it takes frames.

    Parameters
    ----------
    camera : Camera
        Open.
    writer, processor
        Where the frames go, in this order.
    account : DoseAccount
        Books what came in, and says when the budget is spent.
    beam : callable
        Gives the `BeamState` as last read back.
    blank : callable
        Takes the beam off; must not raise.
    pause : callable
        Takes the beam off while the camera does not look; returns what lets it through again.
    timeout_s : float
        How long past its exposure a frame may take.
    overflow : {"stop", "count"}
        What a lost raw frame does.
    on_stopped : callable of str
        Called when a run has ended, its frames are processed and its recording is closed.
    """

    def __init__(
        self,
        camera: Camera,
        writer: Writer,
        processor: Processor,
        account: DoseAccount,
        beam: Callable[[], BeamState],
        blank: Callable[[], None],
        pause: Callable[[], Callable[[], None]],
        timeout_s: float,
        overflow: Literal["stop", "count"],
        on_stopped: Callable[[str], None],
    ) -> None:
        self._camera = camera
        self._writer = writer
        self._processor = processor
        self._account = account
        self._beam = beam
        self._blank = blank
        self._pause = pause
        self._timeout_s = timeout_s
        self._overflow = overflow
        self._on_stopped = on_stopped
        self.stream: Stream | None = None
        self.taps: list[Callable[[Taken], None]] = []
        self.running = False
        self.stop_reason: str | None = None
        self.error: TemLiveError | None = None
        self.frames = 0
        self.dropped_raw = 0
        self.first_frame: float | None = None
        self.last_frame: float | None = None
        self.next_id = 0
        self._remaining: int | None = None
        self._deadline: float | None = None
        self._expected = 0
        self._waiting_since = 0.0
        self._slot: Slot | None = None
        self._slot_ring: FrameRing | None = None
        self._times = FrameTimes(0.0)
        self._unblanked_at: float | None = None
        self._exposed_with: BeamState | None = None
        self.lead_s = 0.0
        """Time from letting the beam through to the first exposure's begin, when last measured."""
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closing = False
        self._stop_request: tuple[str, TemLiveError | None] | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="tem-live camera", daemon=True)
        self._thread.start()

    # -- from other threads

    @property
    def fps(self) -> float:
        """Raw frames per second of the run; 0 where there are not two."""
        return _rate(self.frames, self.first_frame, self.last_frame)

    def call(self, work: Callable[[], _T]) -> Future[_T]:
        """Run ``work`` on the camera's thread, the camera stopped around it if it runs."""
        future: Future[_T] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self._paused(work))
            except BaseException as error:
                future.set_exception(error)

        self._commands.put(command)
        return future

    def start(
        self,
        frames: int | None,
        seconds: float | None,
        unblank: Callable[[], None] | None = None,
    ) -> Future[None]:
        """Begin a run of so many frames or seconds, or without end.

        ``unblank`` lets the beam through, just before the camera starts; None leaves it as it is.
        With a budget that does not allow one frame it is not called, and the run has ended.
        """
        return self.call(lambda: self._begin(frames, seconds, unblank))

    def request_stop(self, reason: str, error: TemLiveError | None = None) -> None:
        """End the run after the frame at hand; returns at once. The first reason counts."""
        if self._stop_request is None:
            self._stop_request = reason, error

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until no run is on; False if ``timeout_s`` passed first."""
        return self._idle.wait(timeout_s)

    def shut_down(self) -> None:
        """End the run and the thread."""
        self.request_stop("user")
        self._closing = True
        self._commands.put(lambda: None)
        self._thread.join()

    # -- on the camera's thread

    def _run(self) -> None:
        while True:
            if not self.running:
                if self._closing:
                    return
                self._commands.get()()
                continue
            while not self._commands.empty():
                self._commands.get()()
            self._guarded_step(READ_SLICE_S)

    def _guarded_step(self, wait_s: float) -> bool:
        try:
            return self._step(wait_s)
        except TemLiveError as error:
            self._finish(f"error: {error}", error)
        except Exception as error:
            text = f"{type(error).__name__} in the camera driver: {error}"
            self._finish(f"error: {text}", DeviceError(text))
        return False

    def _paused(self, work: Callable[[], _T]) -> _T:
        if not self.running:
            return work()
        # Nothing is taken while the camera is set: what would come in now would be wasted.
        self._exposed_with = self._exposed_with or self._beam()
        go_on = self._pause()
        self._fetch_ready(self._account.clock.now())
        if not self.running:
            return work()
        self._camera.stop()
        try:
            return work()
        finally:
            if self.running:
                self._restart(go_on)

    def _restart(self, unblank: Callable[[], None]) -> None:
        try:
            self._start_camera(unblank)
        except DeviceError as error:
            self._finish(f"error: {error}", error)

    def _start_camera(self, unblank: Callable[[], None] | None) -> None:
        stream = self.stream
        assert stream is not None
        self._times = FrameTimes(stream.state.frame_interval_s)
        self._exposed_with = None
        if unblank is not None:
            self._unblanked_at = self._account.clock.now()
            unblank()
        self._camera.start(self._remaining)
        self._expected = 0
        self._waiting_since = time.monotonic()

    def _fetch_ready(self, exposed_until_s: float) -> None:
        # Frames that the camera holds were paid for by the specimen: fetch them before a stop
        # throws them away. A camera that is faster than this loop must not keep it for ever.
        for _ in range(64):
            if not self.running or not self._guarded_step(wait_s=0.0):
                return
            if self._times.last_s + 0.5 * self._times.interval_s > exposed_until_s:
                return

    def _fetch_paid(self) -> None:
        """Take what the camera holds already; the beam is off, and nothing more is paid for."""
        stream, paid_until = self.stream, self._account.clock.now()
        assert stream is not None
        for _ in range(len(stream.ring)):
            slot = self._free_slot(stream, 0.0)
            if slot is None:
                return
            try:
                meta = self._camera.read_into(slot.host, 0.0)
            except (DeviceError, EndOfFrames):
                return
            arrived_s = self._account.clock.now()
            if self._times.ended(meta.sequence, arrived_s) > paid_until:
                return
            self._slot = None
            self._hand_on(stream, slot, meta, arrived_s, self._beam())

    def _begin(
        self, frames: int | None, seconds: float | None, unblank: Callable[[], None] | None
    ) -> None:
        if self.stream is None:
            raise DeviceError("the camera is not configured")
        self.frames = 0
        self.dropped_raw = 0
        self.first_frame = self.last_frame = None
        self._processor.reset()
        # Before the beam is on: a specimen need not wait for a compiler.
        self._processor.prepare(self.stream.ring.shape)
        self._stop_request = None
        self.stop_reason = None
        self.error = None
        self._remaining = frames
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._idle.clear()
        self.running = True
        interval_s = self.stream.state.frame_interval_s
        first_ends_s = self._account.clock.now() + self.lead_s + interval_s
        if not self._account.lasts_until(first_ends_s, unblanking=unblank is not None):
            self._finish("budget")
            return
        try:
            self._start_camera(unblank)
        except BaseException:
            self._blank()
            self.running = False
            self._idle.set()
            raise

    def _step(self, wait_s: float) -> bool:
        """Take one frame, or find a reason to end; True if a frame was taken."""
        stream = self.stream
        assert stream is not None
        if self._stop_request is not None:
            self._finish(*self._stop_request)
            return False
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._finish("seconds")
            return False
        wait_s = self._end_exposing(wait_s)
        slot = self._free_slot(stream, wait_s)
        if slot is None:
            return False
        try:
            meta = self._camera.read_into(slot.host, wait_s)
        except DeviceTimeoutError:
            waited = time.monotonic() - self._waiting_since
            if waited > stream.state.frame_interval_s + self._timeout_s:
                raise DeviceTimeoutError(
                    f"no frame from the camera for {waited:.1f} s at an exposure of "
                    f"{stream.state.exposure_s:g} s; check the camera, or raise camera.timeout_s"
                ) from None
            return False
        except EndOfFrames:
            self._finish("frames")
            return False
        except OverflowedError:
            if self._overflow == "stop":
                raise
            # How many were lost is told by the next frame's sequence number.
            return False
        arrived_s, beam = self._account.clock.now(), self._exposed_with or self._beam()
        if self._remaining == 1:
            # The series is exposed: the beam goes off before anything is done with its frame.
            self._blank()
        self._waiting_since = time.monotonic()
        self._slot = None
        ended_s = self._hand_on(stream, slot, meta, arrived_s, beam)
        if self._remaining is not None:
            self._remaining -= 1
            if self._remaining == 0:
                self._finish("frames")
                return True
        # At the end of a frame, for the next one: in its middle it would be wasted.
        if self._stop_request is None and not self._account.lasts_until(
            ended_s + stream.state.frame_interval_s
        ):
            self._finish("budget")
        return True

    def _end_exposing(self, wait_s: float) -> float:
        """Blank when the last frame of a series has been exposed, fetched or not.

        Returns
        -------
        float
            How long to wait for a frame at most, so that this is done in time.
        """
        if self._remaining is None or self._exposed_with is not None:
            return wait_s
        ends_s = self._times.will_end(self._expected + self._remaining - 1)
        if ends_s is None:
            return wait_s
        left_s = ends_s - self._account.clock.now()
        if left_s > 0:
            return min(wait_s, left_s)
        self._exposed_with = self._beam()
        self._blank()
        return wait_s

    def _free_slot(self, stream: Stream, wait_s: float) -> Slot | None:
        if self._slot is not None and self._slot_ring is not stream.ring:
            assert self._slot_ring is not None
            self._slot_ring.release(self._slot)
            self._slot = None
        if self._slot is None:
            self._slot, self._slot_ring = stream.ring.acquire(wait_s), stream.ring
        if self._slot is None and time.monotonic() - self._waiting_since > self._timeout_s:
            raise RawFrameLostError(
                f"all {len(stream.ring)} frame slots are held for {self._timeout_s:g} s: the disk "
                "cannot keep up; record to a faster disk, or raise pipeline.slots or the exposure"
            )
        return self._slot

    def _hand_on(
        self, stream: Stream, slot: Slot, meta: FrameMeta, arrived_s: float, beam: BeamState
    ) -> float:
        """Book a frame and pass it on; returns when its exposure ended, by the beam's clock."""
        now = time.perf_counter()
        lost = meta.sequence - self._expected
        self._expected = meta.sequence + 1
        ended_s = self._times.ended(meta.sequence, arrived_s)
        self._times.dated(meta.sequence, arrived_s, meta.device_time_s)
        if self._unblanked_at is not None:
            exposed_s = (meta.sequence + 1) * stream.state.frame_interval_s
            self.lead_s = max(ended_s - self._unblanked_at - exposed_s, 0.0)
            self._unblanked_at = None
        booked = self._account.frame_ended(self.next_id, ended_s)
        pixel_size_nm = stream.pixel_size_nm
        rate = beam.dose_rate_e_per_A2_s
        info = FrameInfo(
            frame_id=self.next_id,
            sequence=meta.sequence,
            host_time_s=meta.host_time_s,
            exposure_s=meta.exposure_s,
            binning=stream.state.binning,
            pixel_size_nm=pixel_size_nm,
            counts_per_electron=stream.counts_per_electron,
            fluence_e_per_A2=booked[0] if booked else None,
            total_fluence_e_per_A2=booked[1] if booked else None,
            dose_source="incident" if booked else "detected",
            dose_rate_e_per_px_s=(
                None if rate is None or not pixel_size_nm else per_pixel(rate, pixel_size_nm)
            ),
            blanked=beam.blanked,
            raw=meta.raw,
        )
        self.next_id += 1
        self.frames += 1
        self.first_frame = self.first_frame or now
        self.last_frame = now
        taken = Taken(stream, slot, info, now)
        self._writer.raw(taken)
        for tap in list(self.taps):
            tap(taken)
        self._processor.submit(taken)
        if lost > 0:
            self.dropped_raw += lost
            if self._overflow == "stop":
                raise RawFrameLostError(
                    f"the camera lost {lost} frame(s) before frame {info.frame_id}; lengthen the "
                    'exposure, or set camera.overflow = "count" to go on regardless'
                )
        return ended_s

    def _finish(self, reason: str, error: TemLiveError | None = None) -> None:
        # The beam first: everything after this line may fail or take its time.
        self._blank()
        if self.running and error is None and reason != "frames":
            # A loop that lags behind its camera has frames to fetch that the specimen paid for.
            self._fetch_paid()
        self.running = False
        with contextlib.suppress(DeviceError):
            self._camera.stop()
        if self._slot is not None and self._slot_ring is not None:
            self._slot_ring.release(self._slot)
            self._slot = None
        self._slot_ring = None
        self._processor.drain()
        self._account.settle()
        self._writer.close()
        self.stop_reason = reason
        self.error = error
        try:
            self._on_stopped(reason)
        finally:
            self._idle.set()


def _rate(count: int, first: float | None, last: float | None) -> float:
    if first is None or last is None or count < 2 or last <= first:
        return 0.0
    return (count - 1) / (last - first)
