"""Frames are taken: by the one thread that owns the camera."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal, TypeVar

from tem_live.account import DoseAccount
from tem_live.beam_clock import FrameTimes
from tem_live.dose import per_pixel
from tem_live.drivers.protocols import Camera, EndOfFrames, FrameMeta
from tem_live.errors import (
    DeviceError,
    DeviceTimeoutError,
    DisconnectedError,
    OverflowedError,
    RawFrameLostError,
    TemLiveError,
)
from tem_live.frames import FrameRing, Slot
from tem_live.pipeline.processing import Processor
from tem_live.pipeline.stream import Stream, Taken, rate_of
from tem_live.pipeline.writing import Writer
from tem_live.state import BeamState, FrameInfo

_T = TypeVar("_T")

READ_SLICE_S = 0.1
"""Longest wait inside the driver: how late a command or a stop can come to a long exposure."""


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
        self.starting = False
        self.stop_reason: str | None = None
        self.error: TemLiveError | None = None
        self.frames = 0
        self.dropped_raw = 0
        self.first_frame: float | None = None
        self.last_frame: float | None = None
        self.next_id = 0
        self._remaining: int | None = None
        self._deadline: float | None = None
        self._ended = 0.0
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
        self._over = False
        self._queueing = threading.Lock()
        self._stop_request: tuple[str, TemLiveError | None] | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="tem-live camera", daemon=True)
        self._thread.start()

    # -- from other threads

    def prepare(self) -> None:
        """A run is about to be asked for: a stop from here on is meant for it.

        `start` or `give_up` is to follow.
        """
        self._stop_request = None
        self.starting = True
        self._idle.clear()

    def give_up(self, reason: str) -> None:
        """No run was asked for after all, or nobody waits for it any more: there shall be none."""
        self.request_stop(reason)
        self.starting = False
        if not self.running:
            self._idle.set()

    @property
    def fps(self) -> float:
        """Raw frames per second of the run; 0 where there are not two."""
        return rate_of(self.frames, self.first_frame, self.last_frame)

    @property
    def left(self) -> tuple[int | None, float | None]:
        """Frames and seconds that the last run still had to go when it ended; None for no end."""
        if self._deadline is None:
            return self._remaining, None
        return self._remaining, max(self._deadline - self._ended, 0.0)

    def call(self, work: Callable[[], _T]) -> Future[_T]:
        """Run ``work`` on the camera's thread, the camera stopped around it if it runs.

        After `shut_down` the future has a `DisconnectedError`, and nothing is run.
        """
        future: Future[_T] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._over:
                    raise DisconnectedError("the session is closed; open a new one")
                future.set_result(self._paused(work))
            except BaseException as error:
                future.set_exception(error)

        # Whoever waits for a thread that is no more would wait for ever.
        with self._queueing:
            if not self._over:
                self._commands.put(command)
                return future
        command()
        return future

    def start(
        self,
        frames: int | None,
        seconds: float | None,
        unblank: Callable[[], None] | None = None,
    ) -> Future[None]:
        """Begin a run of so many frames or seconds, or without end.

        ``unblank`` lets the beam through, just before the camera starts; None leaves it as it is.
        With a budget that does not allow one frame it is not called, and the run has ended; nor
        where a stop was asked for since `prepare`.
        """
        if not self.starting:
            self.prepare()
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
                    self._answer_the_last()
                    return
                self._commands.get()()
                continue
            while not self._commands.empty():
                self._commands.get()()
            self._guarded_step(READ_SLICE_S)

    def _answer_the_last(self) -> None:
        with self._queueing:
            self._over = True
        while not self._commands.empty():
            self._commands.get()()

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
            if self.running and self._stop_request is not None:
                # Not for the moment that the camera takes to start: whoever asked had a reason.
                self._finish(*self._stop_request)
            elif self.running:
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
        try:
            self._begin_run(frames, seconds, unblank)
        finally:
            self.starting = False
            if not self.running:
                self._idle.set()

    def _begin_run(
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
        self.stop_reason = None
        self.error = None
        self._remaining = frames
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._idle.clear()
        self.running = True
        interval_s = self.stream.state.frame_interval_s
        if self._stop_request is not None:
            self._finish(*self._stop_request)
            return
        first_ends_s = self._account.clock.now() + self.lead_s + interval_s
        if not self._account.lasts_until(first_ends_s, unblanking=unblank is not None):
            self._finish("budget")
            return
        try:
            self._start_camera(unblank)
        except BaseException:
            self._blank()
            self.running = False
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
            roi=stream.state.roi,
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
        self._ended = time.monotonic()
        # Whatever a driver raises: nobody would hear of the end, and the recording stay open.
        with contextlib.suppress(Exception):
            self._camera.stop()
        if self._slot is not None and self._slot_ring is not None:
            self._slot_ring.release(self._slot)
            self._slot = None
        self._slot_ring = None
        try:
            self._processor.drain()
            self._account.settle()
        finally:
            try:
                self._writer.close()
            finally:
                self.stop_reason = reason
                self.error = error
                try:
                    self._on_stopped(reason)
                finally:
                    self._idle.set()
