"""What a frame of the simulated camera costs, in ms of its thread's processor time, part by part.

    OMP_NUM_THREADS=1 python tools/sim_cost.py [--profile sim] [--busy]

The camera runs on a clock that this script turns. The least and the median of the frames are shown;
with --busy a second thread multiplies matrices meanwhile, as restoring does.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from arguments import count

from tem_live.drivers import sim_detector, sim_readout, sim_view
from tem_live.drivers.protocols import CameraSettings
from tem_live.drivers.sim_camera import SimCamera
from tem_live.drivers.sim_chance import PoissonTable
from tem_live.errors import InputError, TemLiveError
from tem_live.instrument import make_camera
from tem_live.profiles import load_profile

PARTS: tuple[tuple[str, Any, str], ...] = (
    ("scene", sim_view.View, "share"),
    ("Poisson", PoissonTable, "draw"),
    ("blur, gain", sim_detector.Detector, "_blurred_times"),
    ("dark current", sim_detector, "add_evenly"),
    ("read noise", sim_readout, "normals"),
    ("read-out, noise included", sim_detector, "read_out"),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="sim", help="one with the simulated camera")
    parser.add_argument("--frames", type=count, default=200)
    parser.add_argument("--busy", action="store_true", help="beside another busy thread")
    arguments = parser.parse_args(argv)
    try:
        frame = camera_of(arguments.profile)
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    with busy_thread() if arguments.busy else nothing():
        table(frame, arguments.frames)
    return 0


def table(frame: Callable[[], object], frames: int) -> None:
    """Take twice so many frames and print what they cost."""
    frame()
    whole = [spent_ms(frame) for _ in range(frames)]
    spent: dict[str, list[float]] = {name: [] for name, _, _ in PARTS}
    for name, owner, function in PARTS:
        watch(owner, function, spent[name])
    for _ in range(frames):
        for times_ms in spent.values():
            times_ms.append(0.0)
        frame()
    print(f"{'ms of a thread':26s}  least  median")
    for name, times_ms in [*spent.items(), ("a frame", whole)]:
        print(f"{name:26s} {min(times_ms):6.2f}  {np.median(times_ms):6.2f}")


def camera_of(profile_name: str) -> Callable[[], object]:
    """A running camera; what is returned takes its next frame."""
    profile = load_profile(profile_name)
    camera: Any = make_camera(profile)
    if not isinstance(camera, SimCamera):
        raise InputError(f"profile {profile.name!r} has no simulated camera; use sim")
    now_s = camera.microscope.clock()
    camera.microscope.clock = lambda: now_s
    camera.open()
    state = camera.configure(CameraSettings(profile.camera.exposure_s))
    counts = np.zeros(state.frame_shape, state.dtype)
    camera.start()

    def frame() -> object:
        nonlocal now_s
        now_s += state.frame_interval_s * (1 + 1e-9)
        return camera.read_into(counts, 1.0)

    return frame


def spent_ms(call: Callable[[], object]) -> float:
    """Processor time of this thread for a call."""
    began_s = time.thread_time()
    call()
    return 1e3 * (time.thread_time() - began_s)


def watch(owner: Any, name: str, times_ms: list[float]) -> None:
    """From now on add what each call of a function costs to the last number."""
    function = getattr(owner, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        began_s = time.thread_time()
        result = function(*arguments, **named)
        times_ms[-1] += 1e3 * (time.thread_time() - began_s)
        return result

    setattr(owner, name, watched)


@contextmanager
def busy_thread() -> Iterator[None]:
    """Let another thread multiply matrices."""
    done = threading.Event()

    def work() -> None:
        matrix = np.ones((512, 512), np.float32) / 512
        while not done.is_set():
            matrix @ matrix

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def nothing() -> Iterator[None]:
    """No other thread."""
    yield


if __name__ == "__main__":
    sys.exit(main())
