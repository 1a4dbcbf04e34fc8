"""How threads share the cores: those of torch, of Python, and those that must not be late.

And how they share memory: what one frame needed is kept for the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator

_NICE = 5
_BELOW_NORMAL = -1
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def let_threads_sleep() -> None:
    """Have OpenMP's threads sleep instead of spin while they wait.

    A live session has other work for the cores: camera, writer, window. A spinning thread takes
    the core from the very thread it waits for; with one other busy process on two cores a network
    was measured to take 620 ms instead of 95 ms. OpenMP reads the variable when torch is loaded,
    so this does nothing after that, and a choice of the user's stays.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def switch_quickly() -> None:
    """Have Python's threads take turns every half millisecond instead of every five.

    A thread that takes frames needs the interpreter a few dozen times a frame, briefly. Where
    another one computes in Python, each of these waits for the end of a turn.
    """
    sys.setswitchinterval(5e-4)


def share_one_heap() -> None:
    """Have all threads take memory from one heap; to be called before there are any others.

    The GNU C library gives each thread a heap of its own. What is small and kept then cuts up what
    is large and free in every one of them, and each grows to the worst its thread has met: from 447
    to 455 MB within 150 s at 512 x 512, against 421 to 426 MB within 50 s and no more after that
    with this. And such a heap ends at 64 MB: whatever is larger is mapped and given back each time,
    `keep_memory` or not. Heaps that exist already stay in use. Without effect on other systems.
    """
    mallopt = _of_the_c_library("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def keep_memory() -> None:
    """Have the allocator keep freed memory for the next frame.

    A network frees its planes with every frame. The GNU C library hands large pieces back to the
    system, which has to clear each page anew when it is touched: 3700 page faults and 7 ms a frame
    of 512 x 512 were measured, none with this, and 1.5 ns per pixel for every plane of 4096 x 4096,
    of which there are dozens. Pieces of more than 32 MiB are in the heap only where mapping is
    switched off. So the worst frame's memory is held until `return_memory`. It is kept in one heap,
    see `share_one_heap`. Without effect on other systems.
    """
    share_one_heap()
    mallopt = _of_the_c_library("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        # That is never, says mallopt(3).
        mallopt(_M_TRIM_THRESHOLD, -1)


def set_objects_aside() -> None:
    """Have Python's garbage collector leave alone what there is now, until `take_objects_back`.

    A program with torch and a camera's driver holds some 200,000 objects, nearly all of them for
    good. A full collection looks at every one, and no thread can use Python meanwhile: 95 to 114 ms
    were measured, the time of a dozen frames of a fast camera.
    """
    gc.freeze()


def take_objects_back() -> None:
    """End `set_objects_aside`, whoever has called it: what became garbage can be collected."""
    gc.unfreeze()


def return_memory() -> None:
    """Give the system what `keep_memory` has kept and nothing uses; for after a change of size."""
    trim = _of_the_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_the_c_library(name: str) -> Callable[..., int] | None:
    """A function that GNU's has; None on other systems and in other C libraries."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def stand_back() -> None:
    """Let other threads of this program have the core first; for work that may be late.

    Without effect where the system does not know priorities of threads.
    """
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32
        kernel.SetThreadPriority(kernel.GetCurrentThread(), _BELOW_NORMAL)
    elif sys.platform == "linux":
        # There a thread has a nice value of its own.
        me = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + _NICE)


@functools.cache
def arithmetic_threads() -> int:
    """Threads that torch uses for one operation unless told otherwise: the machine's cores.

    The first answer holds: torch forgets its own choice with the first `set_arithmetic_threads`.
    """
    import torch

    return torch.get_num_threads()


def set_arithmetic_threads(count: int) -> None:
    """Have operations called from this thread use so many cores."""
    import torch

    torch.set_num_threads(count)


@contextlib.contextmanager
def arithmetic_on(count: int | None) -> Iterator[None]:
    """Have operations called from this thread use so many cores for a while; None for as before."""
    import torch

    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    set_arithmetic_threads(count)
    try:
        yield
    finally:
        set_arithmetic_threads(before)
