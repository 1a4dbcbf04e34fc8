"""Frames are calibrated, restored and analysed, and handed to the display and to subscribers."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tem_live.account import DoseAccount
from tem_live.analysis import DriftEstimator, RollingMean
from tem_live.detector_guard import DetectorGuard
from tem_live.device_frame import DeviceFrame, DevicePlane
from tem_live.dose import per_A2
from tem_live.frames import Backend, Slot
from tem_live.pipeline.stream import Taken, rate_of
from tem_live.pipeline.writing import Writer
from tem_live.state import Frame, FrameInfo
from tem_live.threads import arithmetic_threads, set_arithmetic_threads, stand_back

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

MOST_WORKERS = 2
"""Frames that are restored at the same time, each on its share of the processor's cores."""


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
        # The mean's own: a whole plane is copied under it, and nothing else is to wait for that.
        self._averaging = threading.Lock()
        self._newest: Taken | None = None
        self._display_attached = False
        self._subscribers: list[Subscription] = []
        self._restorer: LiveRestorer | None = None
        self._workers = 1
        self._drift = DriftEstimator()
        self._rolling = RollingMean(rolling_mean)
        self._rolling_frames = rolling_mean
        self._rolling_backend: Backend | None = None
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
        return rate_of(self.restored, self.first_restored, self.last_restored)

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
        return self._newest_as(_copy)

    def newest_on_device(self) -> DeviceFrame | None:
        """As `newest`, but the copy stays where the planes live."""
        return self._newest_as(_copy_on_device)

    def rolling_mean(self) -> npt.NDArray[np.float32] | None:
        """Copy of the rolling mean of the unrestored electrons, (H, W) float32, or None."""
        mean = self.rolling_mean_on_device()
        return None if mean is None else mean.part()

    def rolling_mean_on_device(self) -> DevicePlane | None:
        """As `rolling_mean`, but the copy stays where the planes live."""
        with self._averaging:
            plane, backend = self._rolling.plane, self._rolling_backend
            if plane is None or backend is None:
                return None
            with backend.compute():
                mean = plane.copy()
        backend.finish()
        return DevicePlane(mean, backend)

    def _newest_as(self, copy: Callable[[Taken], _T]) -> _T | None:
        self._display_attached = True
        with self._lock:
            taken, self._newest = self._newest, None
        if taken is None:
            return None
        try:
            return copy(taken)
        finally:
            taken.release()

    def forget(self) -> None:
        """Let go of the frame kept for the display, and begin drift and rolling mean anew."""
        with self._lock:
            taken, self._newest = self._newest, None
            self._drift.reset()
        with self._averaging:
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
                with backend.compute(), self._averaging:
                    self._rolling.update(backend.xp, slot.electrons)
                    self._rolling_backend = backend
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
            # Restorers of other packages need not have it.
            restore_binning=getattr(restorer, "binning", 1),
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


def _copy_on_device(taken: Taken) -> DeviceFrame:
    return DeviceFrame.copy_of(taken.slot, taken.stream.ring.backend, taken.info)


def _copy(taken: Taken) -> Frame:
    download = taken.stream.ring.backend.download
    slot = taken.slot
    return Frame(
        raw=np.array(slot.host, copy=True),
        electrons=download(slot.electrons),
        restored=download(slot.restored) if slot.is_restored else None,
        meta=taken.info,
    )
