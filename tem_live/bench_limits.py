"""What the machine itself can do, and how much of it is reached: products, copies, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from tem_live.models import Restorer

__all__ = [
    "Limits",
    "copy_fractions",
    "machine_limits",
    "median_ms",
    "resident_MB",
    "roofline_fraction",
]

REPEATS = 20
LONGEST_S = 5.0
"""After this no more are begun, but for three."""
_BYTES = 1 << 28
_ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1}
# Read and written per pixel: 16 bit counts, from which float32 electrons are made.
_COUNTS, _ELECTRONS = 2, 4


class Limits(NamedTuple):
    """Measured on one device."""

    gmac_s: float
    """Products per second of a large matrix product, in 10^9, float32 or (on a GPU) float16."""
    copy_GB_s: float
    """Bytes read and written per second by a copy within the device's memory, in 10^9."""
    upload_GB_s: float | None
    """Bytes per second from pinned memory of the host to a GPU; None where there is none."""


def machine_limits(device: str, precision: str = "float32") -> Limits:
    """Measure what a device can do, with as many threads as torch now uses.

    Parameters
    ----------
    device : str
        torch name, ``"cpu"`` or ``"cuda"``.
    precision : str
        ``"float16"`` takes the matrix product in that on a GPU; else float32.
    """
    import torch

    place = torch.device(device)
    gpu = place.type == "cuda"
    dtype = torch.float16 if gpu and precision == "float16" else torch.float32

    def seconds(work: Callable[[], object]) -> float:
        def done() -> None:
            work()
            if gpu:
                torch.cuda.synchronize(place)

        return 1e-3 * median_ms(done)

    side = 8192 if gpu else 2048
    a, b = (torch.randn(side, side, device=place, dtype=dtype) for _ in range(2))
    gmac_s = side**3 / 1e9 / seconds(lambda: a @ b)
    here = torch.zeros(_BYTES // 4, device=place)
    there = torch.zeros_like(here)
    copy_GB_s = 2.0 * _BYTES / 1e9 / seconds(lambda: there.copy_(here))
    upload_GB_s = None
    if gpu:
        host = torch.zeros(_BYTES // 4, pin_memory=True)
        upload_GB_s = _BYTES / 1e9 / seconds(lambda: there.copy_(host, non_blocking=True))
    return Limits(gmac_s, copy_GB_s, upload_GB_s)


def roofline_fraction(
    restorer: Restorer, shape: tuple[int, int], frames_per_s: float, limits: Limits
) -> float | None:
    """Share of the frames per second that a machine of these limits allows the network.

    Each of its convolutions is counted as reading its input and weights and writing its output
    once, in what the restorer computes in; the slower of products and bytes bounds the rate
    (Williams et al., Commun. ACM 52 (2009) 65). None for a restorer whose work is not counted.

    Notes
    -----
    On a processor the products of `Limits` are float32: in 8 bit integers more than 1 is possible.
    """
    work = restorer.work(shape)
    if work is None:
        return None
    moved_GB = (work.planes + work.weights) * _ITEM_BYTES[restorer.precision] / 1e9
    least_s = max(work.macs / 1e9 / limits.gmac_s, moved_GB / limits.copy_GB_s)
    return least_s * frames_per_s


def copy_fractions(
    stages_ms: Mapping[str, float], pixels: int, limits: Limits
) -> dict[str, float | None]:
    """Share of the rate of a plain copy at which stages move a frame; None where nothing moves.

    Parameters
    ----------
    stages_ms : mapping of str to float
        Duration of ``calibrate``, ``upload`` and ``download`` in ms.
    pixels : int
        Of the frame.
    limits : Limits
        What they are compared with: of the upload where there is a GPU, else of the copy.

    Notes
    -----
    The copy is one of memory; a frame that stays in the processor's cache may exceed it.
    """
    bus = limits.upload_GB_s
    moved: dict[str, tuple[int, float | None]] = {
        "calibrate": (_COUNTS + _ELECTRONS, limits.copy_GB_s),
        # Without a GPU the frame is where it is needed.
        "upload": (_COUNTS, bus),
        "download": (_ELECTRONS, bus) if bus else (2 * _ELECTRONS, limits.copy_GB_s),
    }
    return {
        stage: None if rate is None else item * pixels / (stages_ms[stage] * 1e6) / rate
        for stage, (item, rate) in moved.items()
    }


def median_ms(work: Callable[[], object]) -> float:
    """Median time of `REPEATS` calls in ms, after three that make what is needed.

    Of what takes long there are fewer, but three.
    """
    times: list[float] = []
    for repeats in (3, REPEATS):
        times.clear()
        while len(times) < repeats and (len(times) < 3 or sum(times) < LONGEST_S):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def resident_MB() -> float:
    """Memory of this process that is in RAM, in units of 2^20 bytes."""
    return float(psutil.Process().memory_info().rss) / 2**20
