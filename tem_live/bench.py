"""Speed of each stage and end to end, measured on this machine: what ``tem-live bench`` does."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tem_live.analysis import DriftEstimator
from tem_live.bench_limits import (
    copy_fractions,
    machine_limits,
    median_ms,
    resident_MB,
    roofline_fraction,
)
from tem_live.bench_trials import end_to_end
from tem_live.calibration import Calibrator
from tem_live.drivers.protocols import Blanker, CameraSettings
from tem_live.frames import FrameRing, Slot, open_backend
from tem_live.instrument import make_camera, make_column
from tem_live.pipeline import MOST_WORKERS
from tem_live.profiles import Profile, load_profile
from tem_live.session import Session
from tem_live.threads import arithmetic_threads, set_arithmetic_threads

if TYPE_CHECKING:
    from tem_live.models import Restorer

RESTORE_S = 3.0
SLOWEST_MS = 30e3
LONG_MS = 5e3
TURNS = 12
FEWEST_TURNS = 3
LONGEST_TURNS_S = 120.0
PEERS = ("unet_resnet18", "cgrdn")


def measure(
    size: int = 512,
    device: str = "auto",
    model: str = "fast",
    peers: PeerRates | None = None,
) -> dict[str, Any]:
    """Measure the simulated camera's frames on their way through the program.

    Parameters
    ----------
    size : int
        Side of the square frames in pixels.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    model : str
        Restorer.
    peers : PeerRates, optional
        What `peer_rates` gave for this size and device before; else it is measured.

    Returns
    -------
    dict
        ``machine``, ``stages_ms`` (median of each stage alone), ``restore_fps`` (by model, alone,
        as many frames at once as the pipeline restores),
        ``end_to_end_fps`` (the highest rate of the simulated camera, which runs on the same
        processor, at which 98 % of the frames were restored in a trial of 4 s or 8 frames, each of
        the profile's dose, 95 % as fast as they came),
        ``latency_ms_p50``, ``latency_ms_p99`` (of that trial), ``peer_ratio`` (the model's frames
        per second over those of the networks of Katsuno et al. 2021 and Lobato et al. 2023 on
        this machine, random weights; null where one would take minutes), ``ceiling_gmac_s``
        and ``ceiling_copy_GB_s`` (products of a large matrix product, bytes read and written by a
        copy), ``ceiling_upload_GB_s`` (from the host to a GPU), ``ceiling_fraction`` (share of
        the products that the model's convolutions reach; null for a model without),
        ``roofline_fraction`` and ``copy_fraction`` (see `tem_live.bench_limits`), ``memory_MB``
        (in RAM when it began, with the model's first frames, after the trials),
        ``core_ms`` (time of one core for a frame, of the model, of the model in float32 and of the
        quicker peer, one after the other in turns; hardly changed by other programs; null on a
        GPU), ``precision`` (what the model computes in), ``peers_skipped`` (peers that would take
        minutes, with the ms that were expected of a frame), ``recorded_fps`` (as
        ``end_to_end_fps``, raw and restored frames being recorded) and ``allocations_per_frame``
        of the restorer: ``page_faults`` (null on Windows; 0 where memory is used again) and
        ``torch_bytes``.
    """
    overrides = [
        f"camera.sensor_height_px={size}",
        f"camera.sensor_width_px={size}",
        f"restorer.device={device}",
        f"restorer.model={model}",
    ]
    profile = load_profile("sim", overrides)
    memory_MB = {"began": resident_MB()}
    stages, restore_fps, about = _stages(profile, size)
    memory_MB["restored"] = resident_MB()
    peers = peer_rates(size, profile.restorer.device) if peers is None else peers
    fps = {model: restore_fps, **peers.frames_per_s}
    # The simulated camera runs on the same processor.
    ceiling_fps = 1.1 / (1.0 / restore_fps + 5e-4 * stages["driver"])
    with Session(profile) as session, tempfile.TemporaryDirectory() as folder:
        fastest, trial = end_to_end(session, ceiling_fps)
        recorded, _ = end_to_end(session, fastest or 0.5 * restore_fps, Path(folder))
        memory_MB["recorded"] = resident_MB()
    return {
        "machine": _machine(),
        "size": size,
        "device": trial.device,
        "model": model,
        "stages_ms": {name: round(value, 3) for name, value in stages.items()},
        "restore_fps": {name: rate and round(rate, 3) for name, rate in fps.items()},
        **about,
        "core_ms": _core_ms_of(model, peers, size) if trial.device == "cpu" else None,
        "peers_skipped": peers.skipped_ms,
        "end_to_end_fps": fastest,
        "recorded_fps": recorded,
        "latency_ms_p50": trial.latency_ms_p50,
        "latency_ms_p99": trial.latency_ms_p99,
        "dropped_raw": trial.dropped_raw,
        "peer_ratio": {
            name: round(restore_fps / rate, 2) if (rate := fps[name]) else None for name in PEERS
        },
        "memory_MB": {name: round(value, 1) for name, value in memory_MB.items()},
    }


def compared(size: int, device: str, models: Sequence[str]) -> list[dict[str, Any]]:
    """`measure` several restorers one after the other, beside the same measurement of the peers."""
    from tem_live.models import load_restorer

    # What is wrong with a name is told before minutes are spent on the others.
    places = [str(load_restorer(model, device=device).device) for model in models]
    peers = peer_rates(size, places[0])
    return [measure(size, device, model, peers) for model in models]


class PeerRates(NamedTuple):
    """What the networks of the two papers do on this machine, with random weights."""

    frames_per_s: dict[str, float | None]
    """As many at once as the pipeline restores; None for one that is too slow to wait for."""
    skipped_ms: dict[str, float]
    """Expected ms of a frame of these."""


def peer_rates(size: int, device: str) -> PeerRates:
    """Measure the peers on square frames of so many pixels a side."""
    peers = _peers(device)
    ring = FrameRing(open_backend(str(peers[PEERS[0]].device)), 4, (size, size), np.dtype("u2"))
    return PeerRates(*_peers_fps(peers, ring))


def _stages(profile: Profile, size: int) -> tuple[dict[str, float], float, dict[str, Any]]:
    from tem_live.bench_scaling import display_work
    from tem_live.models import load_restorer
    from tem_live.recording import Recorder

    restorer = load_restorer(profile.restorer.model, device=profile.restorer.device)
    backend = open_backend(str(restorer.device))
    ring = FrameRing(backend, 4, (size, size), np.dtype(np.uint16))
    slot = ring.acquire()
    assert slot is not None
    driver_ms = _driver_ms(profile, slot)
    calibrator = Calibrator(backend.xp, (size, size), 40.0, 100.0, xray_sigma=8.0)
    drift = DriftEstimator()

    def calibrate() -> None:
        with backend.compute():
            calibrator.apply(slot.raw, slot.electrons)
        backend.finish()

    def restore() -> None:
        with backend.compute():
            restorer.restore(slot.torch_electrons, out=slot.torch_restored)
        backend.finish()

    def upload() -> None:
        backend.upload(slot.host, slot.raw)
        with backend.compute():
            backend.finish()

    def analyse() -> None:
        with backend.compute():
            drift.update(slot.electrons, slot.restored, backend.download)

    stages = {
        "driver": driver_ms,
        "upload": median_ms(upload),
        "calibrate": median_ms(calibrate),
        "restore": median_ms(restore),
        "analyse": median_ms(analyse),
        "download": median_ms(lambda: backend.download(slot.restored)),
    }
    restored = backend.download(slot.restored)
    slot.is_restored = True
    stages["display"] = median_ms(display_work(slot, backend))
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "bench.zarr", {})
        recorder.start((size, size), slot.host.dtype, 0.1, 0.05)
        frame_id = iter(range(10_000))

        def record() -> None:
            number = next(frame_id)
            recorder.write_raw(number, slot.host, {"frame_id": number})
            recorder.write_restored(number, restored)

        stages["record"] = median_ms(record)
        recorder.close()
    allocations = {"page_faults": _page_faults(restore), "torch_bytes": _torch_bytes(restore)}
    ring.release(slot)
    # Before the threads that restore share the cores.
    limits = machine_limits(str(restorer.device), restorer.precision)
    fps = _restore_fps(restorer, ring, stages["restore"])
    gmac = restorer.gmac((size, size))
    about = {
        "precision": restorer.precision,
        "engine": restorer.engine,
        "allocations_per_frame": allocations,
        "ceiling_gmac_s": round(limits.gmac_s, 1),
        "ceiling_copy_GB_s": round(limits.copy_GB_s, 2),
        "ceiling_upload_GB_s": limits.upload_GB_s and round(limits.upload_GB_s, 2),
        "ceiling_fraction": None if gmac is None else round(gmac * fps / limits.gmac_s, 3),
        "roofline_fraction": _rounded(roofline_fraction(restorer, (size, size), fps, limits)),
        "copy_fraction": {
            name: _rounded(share) for name, share in copy_fractions(stages, size**2, limits).items()
        },
    }
    return stages, fps, about


def _rounded(share: float | None) -> float | None:
    """To three digits, however small it is."""
    return None if share is None else float(f"{share:.3g}")


def _page_faults(work: Callable[[], object], repeats: int = 5) -> float | None:
    """Pages that the system has to hand out anew with each call; None where it does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / repeats


def silence_profiler() -> None:
    """Have torch's profiler not tell of itself on stderr, between the table and what goes wrong.

    It reads these variables when torch is loaded, so this does nothing after that, and a choice of
    the user's stays.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _torch_bytes(work: Callable[[], object]) -> int:
    """Bytes of host memory that torch asks its allocator for in one call."""
    from torch.autograd.profiler import profile

    with profile(profile_memory=True, use_kineto=False) as seen:
        work()
    events = seen.function_events or ()
    return sum(max(0, event.self_cpu_memory_usage) for event in events)


def _peers(device: str) -> dict[str, Restorer]:
    """The networks of the two papers with random weights."""
    from tem_live.models import ModelCard
    from tem_live.models.cgrdn import CGRDN, CgrdnRestorer
    from tem_live.models.restorer import resolve_device
    from tem_live.models.unet_resnet18 import UnetResNet18, UnetResNet18Restorer

    place = resolve_device(device)
    unet, cgrdn = (ModelCard(name=n, title=n, kind="network", noise="any") for n in PEERS)
    return {
        "unet_resnet18": UnetResNet18Restorer(unet, place, UnetResNet18()),
        "cgrdn": CgrdnRestorer(cgrdn, place, CGRDN()),
    }


def _peers_fps(
    peers: dict[str, Restorer], ring: FrameRing
) -> tuple[dict[str, float | None], dict[str, float]]:
    """Frames per second of the peers, as they would run in the pipeline.

    And the expected ms of a frame of those that are too slow to wait for.
    """
    fps: dict[str, float | None] = {}
    skipped: dict[str, float] = {}
    for name, restorer in peers.items():
        one_ms = _first_ms(restorer, ring)
        if one_ms < SLOWEST_MS:
            fps[name] = _restore_fps(restorer, ring, one_ms)
        else:
            fps[name], skipped[name] = None, round(one_ms)
    return fps, skipped


def _core_ms_of(model: str, peers: PeerRates, size: int) -> dict[str, float]:
    from tem_live.models import load_restorer

    taking_part = {model: load_restorer(model, device="cpu")}
    if taking_part[model].precision != "float32":
        taking_part[f"{model} in float32"] = load_restorer(model, "cpu", "float32")
    # The slow ones would take minutes more: their frames per second must do.
    quick = {
        name: peer
        for name, peer in _peers("cpu").items()
        if name != "cgrdn"
        and (rate := peers.frames_per_s[name]) is not None
        and (TURNS + 1) * MOST_WORKERS / rate < LONGEST_TURNS_S
    }
    return _core_ms({**taking_part, **quick}, size)


def _core_ms(restorers: dict[str, Restorer], size: int) -> dict[str, float]:
    """Time of one core for a frame: the best of some turns, in each of which all have one.

    It counts what the processor did for this program, not what others had of it meanwhile.
    """
    import torch

    frame = np.random.default_rng(1).poisson(5.0, (size, size)).astype(np.float32)
    out = np.empty_like(frame)
    before = torch.get_num_threads()
    set_arithmetic_threads(1)
    times: dict[str, list[float]] = {name: [] for name in restorers}
    end = time.perf_counter() + 0.25 * LONGEST_TURNS_S
    try:
        for turn in range(TURNS + 1):
            if turn > FEWEST_TURNS and time.perf_counter() > end:
                break
            for name, restorer in restorers.items():
                began = time.process_time()
                restorer.restore(frame, out=out)
                if turn:
                    times[name].append(1e3 * (time.process_time() - began))
    finally:
        set_arithmetic_threads(before)
    return {name: round(min(found), 2) for name, found in times.items()}


def _first_ms(restorer: Restorer, ring: FrameRing) -> float:
    """How long a frame takes about, from a small one: a large one might take minutes."""
    side = min(ring.shape[0], 256)
    frame = np.random.default_rng(1).poisson(5.0, (side, side)).astype(np.float32)
    restorer.restore(frame)
    began = time.perf_counter()
    restorer.restore(frame)
    return 1e3 * (time.perf_counter() - began) * (ring.shape[0] / side) ** 2


def _restore_fps(restorer: Restorer, ring: FrameRing, one_ms: float) -> float:
    """Frames per second of the restorer alone, on as many threads as the pipeline gives it."""
    workers = min(MOST_WORKERS, arithmetic_threads()) if restorer.concurrent else 1
    each = max(1 if one_ms > LONG_MS else 2, round(1e3 * RESTORE_S / one_ms / workers))
    # What the first one takes longer does not show beside so much.
    warm = 2 if each > 4 else 0 if one_ms > LONG_MS else 1
    backend = ring.backend

    def work() -> None:
        slot = ring.acquire()
        assert slot is not None
        set_arithmetic_threads(max(1, arithmetic_threads() // workers))
        frame = np.random.default_rng(1).poisson(5.0, ring.shape).astype(np.float32)
        slot.electrons[...] = backend.xp.asarray(frame)
        for i in range(each + warm):
            if i == warm:
                backend.finish()
                ready.wait()
            with backend.compute():
                restorer.restore(slot.torch_electrons, out=slot.torch_restored)
        backend.finish()
        ready.wait()
        ring.release(slot)

    ready = threading.Barrier(workers + 1)
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(work) for _ in range(workers)]
        ready.wait()
        began = time.perf_counter()
        ready.wait()
        seconds = time.perf_counter() - began
        for future in running:
            future.result()
    return workers * each / seconds


def _driver_ms(profile: Profile, slot: Slot) -> float:
    camera = make_camera(profile)
    column = make_column(profile, camera)
    camera.open()
    try:
        if column is not None:
            column.open()
        if isinstance(column, Blanker):
            column.set_blanked(False)
        state = camera.configure(CameraSettings(exposure_s=profile.camera.exposure_s))
        times: list[float] = []
        for _ in range(4):
            # Frames that are due already are handed over without a wait: what is left is the work.
            camera.start(5)
            time.sleep(5.5 * state.frame_interval_s)
            for _ in range(5):
                began = time.perf_counter()
                camera.read_into(slot.host, 1.0)
                times.append(1e3 * (time.perf_counter() - began))
            camera.stop()
        return statistics.median(times)
    finally:
        camera.close()


def _machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
