"""Fetches the images of one sequence out of Micro-Manager and into shared memory.

A part of the process of `pycromanager_child`: it runs there, on a thread of its own.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import numpy.typing as npt

_POLL_S = 0.001
_BEAT_S = 0.25

Say = Callable[[dict[str, Any]], None]


class Pump:
    """Fetches the images of one sequence into the slots of the shared memory, on its own thread.

    Parameters
    ----------
    core : object
        pycromanager's core.
    memory : SharedMemory
        ``slots`` frames one after the other.
    shape, dtype
        Of a frame.
    frames : int or None
        Length of the series.
    run : int
        Number of the series, which goes with all that is told of it.
    say : callable
        Sends a message.
    """

    def __init__(
        self,
        core: Any,
        memory: SharedMemory,
        slots: int,
        shape: tuple[int, int],
        dtype: str,
        frames: int | None,
        run: int,
        say: Say,
    ) -> None:
        self._core = core
        self._memory = memory
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._frames = frames
        self._run = run
        self._say = say
        self._halt = threading.Event()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._backlog = 0
        self._beaten = 0.0
        self._thread = threading.Thread(target=self._work, name="pump", daemon=True)
        self._thread.start()

    def free(self, slot: int) -> None:
        """A slot has been read and may be written again."""
        self._free.put(slot)

    def halt(self) -> None:
        """Fetch no more; returns when the call that is going on has returned."""
        self._halt.set()
        self._thread.join()
        # A view that something still holds keeps the mapping until this process ends.
        with contextlib.suppress(BufferError):
            self._memory.close()

    def _work(self) -> None:
        try:
            taken = 0
            slot: int | None = None
            while not self._halt.is_set() and taken != self._frames:
                if slot is None:
                    slot = self._next_slot()
                elif self._is_there() and self._deliver(slot):
                    slot, taken = None, taken + 1
                else:
                    self._halt.wait(_POLL_S)
                self._beat()
        except _Ended as end:
            self._say({"run": self._run, "ended": end.how, "text": str(end)})
        except Exception as error:
            self._say({"run": self._run, "ended": "failed", "text": said(error)})

    def _next_slot(self) -> int | None:
        with contextlib.suppress(queue.Empty):
            return self._free.get(timeout=0.1)
        return None

    def _is_there(self) -> bool:
        core = self._core
        # While there is a backlog one question is saved for each image.
        if self._backlog == 0:
            self._backlog = int(core.get_remaining_image_count())
        if self._backlog > 0:
            return True
        overflowed = core.is_buffer_overflowed()
        # In this order the last image cannot slip between the two questions.
        if core.is_sequence_running() or core.get_remaining_image_count() > 0:
            return False
        if overflowed:
            raise _Ended("overflow", "Micro-Manager's buffer overflowed and the camera stopped")
        raise _Ended("ended", "Micro-Manager's camera ended the sequence by itself")

    def _deliver(self, slot: int) -> bool:
        """Fetch one image and tell of it; False where another program was faster."""
        self._backlog -= 1
        try:
            tagged = self._core.pop_next_tagged_image()
        except Exception:
            self._backlog = 0
            if self._core.get_remaining_image_count() == 0:
                return False
            raise
        pixels = np.asarray(tagged.pix)
        tags = dict(tagged.tags)
        height = int(tags.get("Height", self._shape[0]))
        width = int(tags.get("Width", self._shape[1]))
        if (height, width) != self._shape or pixels.size != height * width:
            raise _Ended(
                "changed",
                f"Micro-Manager sent {height}x{width} pixels where {self._shape[0]}x"
                f"{self._shape[1]} were set; was it changed by another program?",
            )
        if pixels.dtype.itemsize != self._dtype.itemsize:
            raise _Ended(
                "changed",
                f"Micro-Manager sent {pixels.dtype} where {self._dtype} was set; was it changed by "
                "another program?",
            )
        self._write(slot, pixels)
        self._beaten = time.monotonic()
        self._say({"run": self._run, "slot": slot, "tags": plain(tags), "time": time.time()})
        return True

    def _write(self, slot: int, pixels: npt.NDArray[Any]) -> None:
        height, width = self._shape
        size = height * width * self._dtype.itemsize
        view = np.ndarray(self._shape, self._dtype, self._memory.buf, slot * size)
        # Java has no unsigned numbers: the bits are right whatever they are called.
        np.copyto(view, pixels.reshape(self._shape).view(self._dtype))

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > _BEAT_S:
            self._beaten = time.monotonic()
            self._say({"beat": 1})


class _Ended(Exception):  # noqa: N818 - an event
    def __init__(self, how: str, text: str) -> None:
        super().__init__(text)
        self.how = how


def said(error: BaseException) -> str:
    """The first line of an error; Java adds where it came from."""
    text = str(error.args[0] if error.args else error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line.removeprefix("java.lang.Exception: ")


def plain(tags: dict[str, Any]) -> dict[str, Any]:
    """Metadata as JSON has it."""
    return {
        str(key): value if isinstance(value, str | int | float | bool | None) else str(value)
        for key, value in tags.items()
    }


def attach(name: str) -> SharedMemory:
    """Shared memory that the program made and will remove.

    Before Python 3.13 whoever attaches would remove it at its own end, too.
    """
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False)
    from multiprocessing import resource_tracker

    register = resource_tracker.register
    resource_tracker.register = lambda *_: None
    try:
        return SharedMemory(name)
    finally:
        resource_tracker.register = register
