"""The frame ring: preallocated slots that a frame lives in from the camera to the last consumer.

A slot holds the raw counts (host memory that the driver fills), their calibrated electrons, and the
restored plane. Where the frames live is the business of a `Backend`: NumPy on the host, where
``slot.host`` and ``slot.raw`` are one array, or CuPy on a GPU, fed from pinned host memory on a
copy stream of its own. The code that works on the planes is the same for both.

A slot is shared by counting its holders: `FrameRing.acquire` gives it with one holder,
`FrameRing.retain` and `FrameRing.release` add and take one. With none left it is free again.
"""

from __future__ import annotations

import math
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError, ModelError
from tem_live.threads import keep_memory

if TYPE_CHECKING:
    import torch


class Backend(Protocol):
    """Where the planes of the slots live, and the order of the work on them."""

    name: str
    xp: Any
    """Array namespace of the planes, NumPy's or CuPy's by array-api-compat."""

    def empty_host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Host array that a driver fills; pinned where an upload follows."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], host: npt.NDArray[Any]) -> Any:
        """Raw plane that belongs to ``host``; the same array where no upload is needed."""

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Array of float32."""

    def upload(self, host: npt.NDArray[Any], raw: Any) -> None:
        """Begin to copy ``host`` into ``raw``; work inside `compute` is ordered after it."""

    @contextmanager
    def compute(self) -> Iterator[None]:
        """Order what is done inside after the uploads that were begun before."""

    @contextmanager
    def display(self) -> Iterator[None]:
        """Do what is done inside beside the work of `compute`, on planes that are finished."""

    def finish(self) -> None:
        """Wait until the work that this thread gave inside `compute` or `display` is done."""

    def download(self, plane: Any) -> npt.NDArray[Any]:
        """Copy of a plane on the host, owned by the caller.

        Ordered behind the work given inside `display` where it is called there, else behind that
        given inside `compute`.
        """

    def on_host(self, plane: Any) -> npt.NDArray[Any]:
        """The plane itself where it lives on the host, else `download`."""


def _mapped(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Array of zeros in pages of its own, which go back to the system with it.

    In the heap, where `keep_memory` lets nothing go, those of a ring that was replaced would stay.
    Written to, so that the pages exist: those of `numpy.zeros` come with the first frame.
    """
    size = max(1, math.prod(shape) * dtype.itemsize)
    if sys.platform == "win32":
        pages = mmap.mmap(-1, size)
    else:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(pages, dtype, math.prod(shape)).reshape(shape)
    array.fill(0)
    return array


class NumpyBackend:
    """Planes in host memory; every step is done when its call returns."""

    name = "cpu"

    def __init__(self) -> None:
        import array_api_compat.numpy

        keep_memory()
        self.xp: Any = array_api_compat.numpy

    def empty_host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """See `_mapped`."""
        return _mapped(shape, dtype)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], host: npt.NDArray[Any]) -> Any:
        """The host array itself."""
        return host

    def zeros(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """See `_mapped`."""
        return _mapped(shape, np.dtype(np.float32))

    def upload(self, host: npt.NDArray[Any], raw: Any) -> None:
        """Nothing to copy."""

    @contextmanager
    def compute(self) -> Iterator[None]:
        """Nothing to order."""
        yield

    @contextmanager
    def display(self) -> Iterator[None]:
        """Nothing to order."""
        yield

    def finish(self) -> None:
        """Nothing to wait for."""

    def download(self, plane: Any) -> npt.NDArray[Any]:
        """Plain copy."""
        return np.array(plane, copy=True)

    def on_host(self, plane: Any) -> npt.NDArray[Any]:
        """The plane."""
        host: npt.NDArray[Any] = plane
        return host


class CupyBackend:
    """Planes on the GPU; uploads run on a stream of their own, ordered by events.

    The compute stream is torch's current one, so that a network's work and CuPy's calibration
    follow one another without a synchronisation.
    """

    name = "cuda"

    def __init__(self) -> None:
        try:
            import array_api_compat.cupy
            import cupy
            import torch
        except ImportError as error:
            raise ModelError(
                f"device 'cuda' needs CuPy and a CUDA build of torch: {error}; "
                "pip install tem-live[cuda]"
            ) from None
        if not torch.cuda.is_available():
            raise ModelError("device 'cuda' is asked for but torch sees no CUDA device; use 'cpu'")
        self.xp: Any = array_api_compat.cupy
        self._copy_stream = cupy.cuda.Stream(non_blocking=True)
        self._torch_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._compute_stream = cupy.cuda.ExternalStream(self._torch_stream.cuda_stream)
        # What is shown waits for no network, and no network for it.
        self._display_stream = cupy.cuda.Stream(non_blocking=True)
        self._uploaded = cupy.cuda.Event(disable_timing=True)
        self._mine = threading.local()

    def empty_host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Pinned memory: the only kind that the copy engine reads while kernels run."""
        import cupyx

        host: npt.NDArray[Any] = cupyx.empty_pinned(shape, dtype)
        return host

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], host: npt.NDArray[Any]) -> Any:
        """Array on the GPU."""
        return self.xp.empty(shape, dtype=dtype)

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Array on the GPU."""
        return self.xp.zeros(shape, dtype=self.xp.float32)

    def upload(self, host: npt.NDArray[Any], raw: Any) -> None:
        """Asynchronous copy on the copy stream; the event marks its end."""
        raw.set(host, stream=self._copy_stream)
        self._uploaded.record(self._copy_stream)

    @contextmanager
    def compute(self) -> Iterator[None]:
        """Make the compute stream current for CuPy and torch, behind the last upload."""
        import torch

        self._compute_stream.wait_event(self._uploaded)
        with self._compute_stream, torch.cuda.stream(self._torch_stream):
            try:
                yield
            finally:
                self._done().record(self._compute_stream)

    @contextmanager
    def display(self) -> Iterator[None]:
        """Make the display's stream current for CuPy."""
        with self._display_stream:
            self._mine.stream = self._display_stream
            try:
                yield
            finally:
                self._mine.stream = self._compute_stream
                self._done().record(self._display_stream)

    def finish(self) -> None:
        """Wait for this thread's own work, not for what others have queued behind it."""
        self._done().synchronize()

    def _done(self) -> Any:
        """Event behind what this thread did last inside `compute` or `display`."""
        import cupy

        try:
            return self._mine.done
        except AttributeError:
            self._mine.done = cupy.cuda.Event(block=True, disable_timing=True)
            return self._mine.done

    def download(self, plane: Any) -> npt.NDArray[Any]:
        """Copy behind the work that fills the plane."""
        import cupy

        stream = getattr(self._mine, "stream", self._compute_stream)
        host: npt.NDArray[Any] = cupy.asnumpy(plane, stream=stream)
        return host

    def on_host(self, plane: Any) -> npt.NDArray[Any]:
        """As `download`."""
        return self.download(plane)


def open_backend(device: str) -> Backend:
    """Backend for a device.

    Parameters
    ----------
    device : str
        ``"cpu"`` or ``"cuda"``, the first GPU.

    Raises
    ------
    ModelError
        CUDA is asked for, but CuPy or a CUDA device is missing; or another GPU than the first.
    """
    if device.startswith("cuda") and device.partition(":")[2] not in ("", "0"):
        raise ModelError(
            f"frames are taken onto the first GPU, not onto '{device}': set the environment's "
            f"CUDA_VISIBLE_DEVICES={device.partition(':')[2]}, which makes that the first, and "
            "ask for 'cuda'"
        )
    return CupyBackend() if device.startswith("cuda") else NumpyBackend()


class Slot:
    """One frame's memory.

    Attributes
    ----------
    host : ndarray (H, W) of the camera's dtype
        What the driver writes into.
    raw : array (H, W) of the camera's dtype
        The counts on the backend's device; ``host`` itself on the CPU.
    electrons : array (H, W) float32
        Calibrated electrons per pixel.
    restored : array (H, W) float32
        Restored electrons per pixel; meaningful while `is_restored`.
    """

    def __init__(self, host: npt.NDArray[Any], raw: Any, electrons: Any, restored: Any) -> None:
        self.host = host
        self.raw = raw
        self.electrons = electrons
        self.restored = restored
        self.is_restored = False
        self.holders = 0

    @cached_property
    def torch_electrons(self) -> torch.Tensor:
        """The memory of `electrons` as torch sees it (DLPack, no copy)."""
        from torch.utils.dlpack import from_dlpack

        return from_dlpack(self.electrons)

    @cached_property
    def torch_restored(self) -> torch.Tensor:
        """The memory of `restored` as torch sees it (DLPack, no copy)."""
        from torch.utils.dlpack import from_dlpack

        return from_dlpack(self.restored)


class FrameRing:
    """A fixed number of slots of one frame shape, shared between threads.

    Parameters
    ----------
    backend : Backend
        Where the planes live.
    slots : int
        Number of slots.
    shape : tuple of int
        (height, width) of the frames.
    dtype : numpy dtype
        Data type of the raw counts.

    Raises
    ------
    InputError
        The machine has not that much memory.
    """

    def __init__(
        self, backend: Backend, slots: int, shape: tuple[int, int], dtype: np.dtype[Any]
    ) -> None:
        self.backend = backend
        self.shape = shape
        self.dtype = dtype
        # Each kind in one piece. All of it is there from the first: a slot that is first needed
        # behind a slow disk, after minutes, must find its memory.
        room = (slots, *shape)
        try:
            host = backend.empty_host(room, dtype)
            raw = backend.empty(room, dtype, host)
            electrons, restored = backend.zeros(room), backend.zeros(room)
        except (MemoryError, OSError) as error:
            size_gb = math.prod(room) * (dtype.itemsize + 8) / 1e9
            raise InputError(
                f"{slots} frames of {shape[0]} x {shape[1]} px take {size_gb:.3g} GB, more than "
                "there is; lower pipeline.slots, or bin or read out a smaller region"
            ) from error
        # Where there is nothing to upload the two are one array, in each slot as well.
        hosts = list(host)
        raws = hosts if raw is host else list(raw)
        self._slots = [
            Slot(*planes) for planes in zip(hosts, raws, electrons, restored, strict=True)
        ]
        self._free = list(self._slots)
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def free(self) -> int:
        """Number of slots that nobody holds."""
        with self._changed:
            return len(self._free)

    def acquire(self, timeout_s: float = 0.0) -> Slot | None:
        """A free slot with one holder, or None if none became free within ``timeout_s``."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._free, timeout_s):
                return None
            slot = self._free.pop()
            slot.holders = 1
            slot.is_restored = False
            return slot

    def retain(self, slot: Slot) -> None:
        """Add a holder to a slot that has at least one."""
        with self._changed:
            if slot.holders < 1:
                raise ValueError("a free slot cannot be retained")
            slot.holders += 1

    def release(self, slot: Slot) -> None:
        """Take a holder off; the slot is free when none is left."""
        with self._changed:
            if slot.holders < 1:
                raise ValueError("slot released more often than held")
            slot.holders -= 1
            if slot.holders == 0:
                self._free.append(slot)
                self._changed.notify()
