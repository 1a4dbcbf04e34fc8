"""The pycromanager bridge: both backends of the real client, and what happens when they break."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tem_live import doctor
from tem_live.drivers.protocols import Blanker, CameraSettings, CameraState, Stage
from tem_live.drivers.pycromanager_bridge import PycromanagerCamera, PycromanagerOptions
from tem_live.drivers.pycromanager_column import (
    PycromanagerColumn,
    PycromanagerColumnOptions,
    PycromanagerShutter,
)
from tem_live.drivers.pycromanager_link import heard
from tem_live.drivers.pycromanager_pump import Pump
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    OverflowedError,
    RefusedError,
)
from tem_live.recording import read_recording
from tem_live.session import Session, open_session
from tests.drivers.conformance import CameraConformance
from tests.drivers.reading import fails_soon
from tests.drivers.servers.micromanager import MicroManager, free_port

pytest.importorskip("pymmcore", reason="pymmcore is not installed")
pytest.importorskip("mm_test_adapters", reason="no device adapters: mm-test-adapters")

SMALL = {"PixelType": "16bit", "BitDepth": 16, "OnCameraCCDXSize": 128, "OnCameraCCDYSize": 96}
NOISE = {**SMALL, "Mode": "Noise", "Photon Flux": 20.0}
AMPLE_S = 30.0
hangs = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot stop a process")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the servers have sent, pixels only."""
    log = tmp_path_factory.mktemp("sent") / "pixels"
    log.touch()
    return log


@pytest.fixture(scope="module")
def running(log: Path) -> Iterator[MicroManager]:
    """A server that no test may kill."""
    server = MicroManager(log=log)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(log: Path) -> Iterator[MicroManager]:
    """A server to kill."""
    server = MicroManager(log=log)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def hanging(running: MicroManager) -> Iterator[MicroManager]:
    """A server to stop, which goes on afterwards and then does nothing."""
    yield running
    running.go_on()
    camera = make(running, take_over=True)
    camera.open()
    camera.close()


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every process that the bridge started has ended, and its memory is gone."""
    processes: list[subprocess.Popen[str]] = []
    memories: list[str] = []
    popen, memory = subprocess.Popen, shared_memory.SharedMemory.__init__

    def started(command: Any, *args: Any, **options: Any) -> Any:
        process = popen(command, *args, **options)
        if any("pycromanager_child" in str(part) for part in command):
            processes.append(process)
        return process

    def made(self: Any, name: Any = None, create: bool = False, size: int = 0) -> None:
        memory(self, name, create, size)
        memories.append(self.name)

    monkeypatch.setattr("tem_live.drivers.pycromanager_link.subprocess.Popen", started)
    monkeypatch.setattr(shared_memory.SharedMemory, "__init__", made)
    yield
    assert all(process.returncode is not None for process in processes)
    for name in memories:
        with pytest.raises(FileNotFoundError):
            shared_memory.SharedMemory(name)


def make(server: MicroManager | None = None, **options: Any) -> PycromanagerCamera:
    options.setdefault("properties", SMALL)
    if server is None:
        return PycromanagerCamera(PycromanagerOptions(backend="python", **options))
    return PycromanagerCamera(PycromanagerOptions(port=server.port, **options))


def column(camera: PycromanagerCamera) -> PycromanagerColumn:
    return PycromanagerColumn(PycromanagerColumnOptions(), camera)


def read(camera: PycromanagerCamera, state: CameraState) -> npt.NDArray[Any]:
    buffer = np.empty(state.frame_shape, state.dtype)
    camera.read_into(buffer, AMPLE_S)
    return buffer


def read_until_it_ends(camera: PycromanagerCamera, state: CameraState) -> None:
    while True:
        read(camera, state)


def session_of(server: MicroManager, **fields: Any) -> Session:
    settings: dict[str, Any] = {
        "camera.port": server.port,
        "camera.properties": NOISE,
        "camera.reply_timeout_s": 2.0,
        "camera.exposure_s": 0.01,
        "restorer.model": "none",
        **fields,
    }
    return open_session("pycromanager", settings)


class _OfOneProcess(CameraConformance):
    """The cameras of all tests share one process; what becomes of processes is tested below."""

    exposure_s = 0.02
    keeper: ClassVar[PycromanagerCamera]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _kept(cls, running: MicroManager) -> Iterator[None]:
        cls.keeper = cls.made(running)
        cls.keeper.bridge.hold(cls)
        yield
        cls.keeper.bridge.release(cls, 5.0)

    @classmethod
    def made(cls, server: MicroManager) -> PycromanagerCamera:
        raise NotImplementedError

    def make_camera(self) -> PycromanagerCamera:
        camera = make(properties=SMALL)
        camera.bridge = self.keeper.bridge
        return camera


class TestJava(_OfOneProcess):
    @classmethod
    def made(cls, server: MicroManager) -> PycromanagerCamera:
        return make(server)


class TestPython(_OfOneProcess):
    @classmethod
    def made(cls, server: MicroManager) -> PycromanagerCamera:
        return make()


# ------------------------------------------------------------------------------------ the pictures


@pytest.mark.parametrize("dtype", [np.uint16, np.uint8], ids=["16bit", "8bit"])
def test_pixels_are_those_that_were_sent(
    running: MicroManager, log: Path, dtype: type[np.unsignedinteger[Any]]
) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    camera = make(running, properties={**NOISE, "PixelType": f"{bits}bit", "BitDepth": bits})
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.005, binning=2, roi=(16, 32, 64, 64)))
        assert state.dtype == dtype
        before = log.stat().st_size
        camera.start(40)
        stack = np.stack([read(camera, state) for _ in range(40)])
    finally:
        camera.close()
    assert np.array_equal(stack.ravel(), np.fromfile(log, dtype, offset=before))
    # No frame twice.
    assert len({frame.tobytes() for frame in stack}) == 40


def test_the_python_backend_counts_as_the_camera_does() -> None:
    camera = make(properties=NOISE)
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.01))
        camera.start(8)
        stack = np.stack([read(camera, state) for _ in range(8)])
        assert stack.mean() == pytest.approx(99 + 20.0 * 10, rel=0.01)
    finally:
        camera.close()


def recorded(path: Path) -> npt.NDArray[np.uint16]:
    """The raw frames of a recording."""
    (segment,) = read_recording(path).segments
    return np.asarray(segment.raw[:])


def sent(log: Path, offset: int) -> npt.NDArray[np.uint16]:
    return np.fromfile(log, np.uint16, offset=offset).reshape(-1, 96, 128)


# ------------------------------------------------------------------------------ shutter and stage


@pytest.mark.parametrize("backend", ["java", "python"])
def test_shutter_and_stage(running: MicroManager, backend: str) -> None:
    camera = make(running if backend == "java" else None)
    camera.open()
    beam = column(camera)
    try:
        beam.open()
        assert isinstance(beam, Blanker)
        assert isinstance(beam, Stage)
        state = camera.configure(CameraSettings(0.01))
        camera.start()
        for blanked in (True, False, True, True):
            beam.set_blanked(blanked)
            assert beam.blanked is blanked
            read(camera, state)
        assert beam.move_stage(12.0, -7.5) == pytest.approx((12.0, -7.5), abs=0.02)
        assert beam.stage_position_um == pytest.approx((12.0, -7.5), abs=0.02)
        with pytest.raises(RefusedError):
            beam.move_stage(float("nan"), 0.0)
    finally:
        beam.close()
        camera.close()


def test_the_shutter_needs_no_open_camera(running: MicroManager) -> None:
    shutter = PycromanagerShutter(PycromanagerColumnOptions(), make(running))
    shutter.open()
    shutter.set_blanked(False)
    shutter.close()
    assert not isinstance(shutter, Stage)
    again = PycromanagerShutter(PycromanagerColumnOptions(), make(running))
    again.open()
    assert again.blanked is False
    again.set_blanked(True)
    assert again.blanked is True
    again.close()


def test_a_column_of_another_camera_is_refused() -> None:
    with pytest.raises(RefusedError, match="pycromanager"):
        PycromanagerShutter(PycromanagerColumnOptions(), object())


# ------------------------------------------------------------------------------------------ faults


def test_an_absent_server_is_told_at_once() -> None:
    camera = PycromanagerCamera(PycromanagerOptions(port=free_port()))
    began = time.monotonic()
    with pytest.raises(NotConnectedError, match="Run server on port") as caught:
        camera.open()
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def test_something_else_on_the_port_is_told_in_time() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        camera = PycromanagerCamera(PycromanagerOptions(port=port, reply_timeout_s=2.0))
        with pytest.raises(NotConnectedError):
            camera.open()


def test_a_server_that_is_killed_ends_the_run(server: MicroManager) -> None:
    camera = make(server)
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.01))
        camera.start()
        read(camera, state)
        server.kill()
        with pytest.raises(DisconnectedError, match="gone"):
            read_until_it_ends(camera, state)
        camera.close()
        with pytest.raises(NotConnectedError, match="Run server on port"):
            camera.open()
        server.start()
        camera.open()
        assert camera.configure(CameraSettings(0.01)) == state
        camera.start(1)
        read(camera, state)
    finally:
        camera.close()


@hangs
def test_a_server_that_hangs_ends_the_run(hanging: MicroManager) -> None:
    camera = make(hanging, reply_timeout_s=1.0)
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.01))
        camera.start()
        read(camera, state)
        hanging.hang()
        began = time.monotonic()
        with pytest.raises(DisconnectedError, match="not answered for"):
            read_until_it_ends(camera, state)
        assert time.monotonic() - began < 10
        camera.close()
        hanging.go_on()
        # What was left running is ended, and it works again.
        camera.open()
        camera.configure(CameraSettings(0.01))
        camera.start(1)
        read(camera, state)
    finally:
        camera.close()


@hangs
@pytest.mark.parametrize("what", ["open", "configure", "stop", "blank"])
def test_a_server_that_hangs_hangs_no_call(hanging: MicroManager, what: str) -> None:
    camera = make(hanging, reply_timeout_s=1.0)
    beam = column(camera)
    beam.open()
    if what != "open":
        camera.open()
        camera.configure(CameraSettings(0.01))
    if what == "stop":
        camera.start()
    hanging.hang()
    calls: dict[str, Callable[[], object]] = {
        "open": camera.open,
        "configure": lambda: camera.configure(CameraSettings(0.02)),
        "stop": camera.stop,
        "blank": lambda: beam.set_blanked(True),
    }
    began = time.monotonic()
    if what == "stop":
        camera.stop()
    else:
        with pytest.raises((DisconnectedError, NotConnectedError)) as caught:
            calls[what]()
        assert "\n" not in str(caught.value)
    assert beam.blanked is False
    beam.close()
    camera.close()
    assert time.monotonic() - began < 12


@hangs
def test_a_camera_that_is_closed_while_the_server_hangs(hanging: MicroManager) -> None:
    camera = make(hanging, reply_timeout_s=1.0)
    camera.open()
    camera.configure(CameraSettings(0.01))
    camera.start()
    hanging.hang()
    began = time.monotonic()
    camera.close()
    assert time.monotonic() - began < 6


def test_the_process_that_is_killed_ends_the_run_and_the_beam_is_blanked(
    running: MicroManager,
) -> None:
    camera = make(running)
    camera.open()
    beam = column(camera)
    beam.open()
    try:
        state = camera.configure(CameraSettings(0.01))
        beam.set_blanked(False)
        camera.start()
        read(camera, state)
        link = camera.bridge.current
        assert link is not None
        os.kill(link.pid, signal.SIGTERM)
        with pytest.raises(DisconnectedError):
            read_until_it_ends(camera, state)
        assert beam.blanked is False
        beam.set_blanked(True)
        assert beam.blanked is True
        camera.close()
        camera.open()
    finally:
        beam.close()
        camera.close()


def test_a_run_that_breaks_off_is_blanked_recorded_and_goes_on(
    server: MicroManager, log: Path, tmp_path: Path
) -> None:
    before = log.stat().st_size
    with session_of(server) as session:
        session.record(tmp_path / "first.zarr")
        session.start()
        assert wait_until(lambda: session.stats().recorded >= 10)
        server.kill()
        assert session.wait(AMPLE_S)
        told = [text for level, text in session.messages if level == "error"]
        assert any("gone" in text for text in told)
        # Its shutter went with it, and nobody may believe otherwise.
        assert session.blanked is False
        assert any("COULD NOT BE BLANKED" in text for text in told)
        kept = recorded(tmp_path / "first.zarr")
        assert len(kept) >= 10
        assert np.array_equal(kept, sent(log, before)[: len(kept)])
        server.start()
        assert sum(1 for _ in session.frames(3)) == 3
        assert session.blanked is True


def wait_until(is_so: Callable[[], bool]) -> bool:
    waiting = threading.Event()
    for _ in range(int(AMPLE_S / 0.02)):
        if is_so():
            return True
        waiting.wait(0.02)
    return False


def test_refused_property_is_named(running: MicroManager) -> None:
    camera = make(running, properties={"Colour of the sky": 1})
    with pytest.raises(RefusedError, match="Colour of the sky") as caught:
        camera.open()
    assert "\n" not in str(caught.value)
    camera = make(running, camera="Nobody")
    with pytest.raises(NotConnectedError, match="Nobody"):
        camera.open()


def test_what_the_core_refuses_changes_nothing(running: MicroManager) -> None:
    camera = make(running)
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.02, binning=2, roi=(0, 0, 48, 64)))
        camera.start()
        with pytest.raises(RefusedError, match="refuses the settings"):
            camera.configure(CameraSettings(0.5, binning=4))
        camera.stop()
        assert camera.configure(CameraSettings(0.02, binning=2, roi=(0, 0, 48, 64))) == state
    finally:
        camera.close()


def test_two_programs_at_once(running: MicroManager) -> None:
    first, second = make(running), make(running)
    third, taking_over = make(running), make(running, take_over=True)
    try:
        first.open()
        second.open()
        state = first.configure(CameraSettings(0.01))
        second.configure(CameraSettings(0.01))
        first.start()
        with pytest.raises(RefusedError, match="in use"):
            second.start()
        with pytest.raises(NotConnectedError, match="take_over"):
            third.open()
        # None of them has disturbed it.
        for sequence in range(5):
            buffer = np.empty(state.frame_shape, state.dtype)
            assert first.read_into(buffer, AMPLE_S).sequence == sequence
        taking_over.open()
        with pytest.raises(DisconnectedError, match="by itself"):
            read_until_it_ends(first, state)
    finally:
        for camera in (first, second, third, taking_over):
            camera.close()


THIEF = """
import contextlib, os, sys
from mmpycorex import Core
core = Core(port=int(sys.argv[1]))
while True:
    # The driver may be faster.
    with contextlib.suppress(Exception):
        core.pop_next_tagged_image()
        break
os._exit(0)
"""


def test_another_program_that_takes_images_is_noticed(running: MicroManager) -> None:
    camera = make(running)
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.02))
        camera.start()
        buffer = np.empty(state.frame_shape, state.dtype)
        with subprocess.Popen([sys.executable, "-c", THIEF, str(running.port)]) as thief:
            count = sequence = 0
            while thief.poll() is None or sequence == count - 1:
                sequence = camera.read_into(buffer, AMPLE_S).sequence
                count += 1
        assert sequence > count - 1
    finally:
        camera.close()


def test_a_buffer_that_runs_over_says_so() -> None:
    camera = make(properties={"PixelType": "16bit", "FastImage": 1}, buffer_MB=16)
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.001))
        camera.start()
        # Nobody reads: first the shared memory is full, then the core's buffer.
        threading.Event().wait(0.5)
        with pytest.raises(OverflowedError):
            read_until_it_ends(camera, state)
        camera.stop()
        camera.start(1)
        read(camera, state)
    finally:
        camera.close()


PROGRAM = """
import sys
import numpy as np
from tem_live.drivers.protocols import CameraSettings
from tem_live.drivers.pycromanager_bridge import PycromanagerCamera, PycromanagerOptions
camera = PycromanagerCamera(PycromanagerOptions(port=int(sys.argv[1])))
camera.open()
state = camera.configure(CameraSettings(0.01))
camera.start()
camera.read_into(np.empty(state.frame_shape, state.dtype), 10.0)
print(camera.bridge.current.pid, camera._slots.name, flush=True)
input()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process ids are asked the POSIX way")
def test_a_killed_program_leaves_nothing_behind(running: MicroManager) -> None:
    command = [sys.executable, "-c", PROGRAM, str(running.port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        pid, name = process.stdout.readline().split()
        process.kill()
    assert wait_until(lambda: not is_there(int(pid)))
    assert wait_until(lambda: not Path("/dev/shm", name).exists())
    # The sequence has been ended, so that the next program is not refused.
    camera = make(running)
    camera.open()
    camera.close()


SESSION = """
import sys
from tem_live.session import open_session
settings = {"camera.port": int(sys.argv[1]), "restorer.model": "none", "camera.exposure_s": 0.01}
session = open_session("pycromanager", settings)
session.start()
assert session.blanked is False
print("unblanked", flush=True)
input()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the state folder is named the POSIX way")
def test_a_killed_program_leaves_the_beam_blanked(
    running: MicroManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    shutter = PycromanagerShutter(PycromanagerColumnOptions(), make(running))
    shutter.open()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", SESSION, str(running.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "unblanked"
            assert shutter.blanked is False
            process.kill()
        assert wait_until(lambda: shutter.blanked)
    finally:
        shutter.close()


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended.
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" not in status.read_text()


def test_an_unguarded_script_may_use_it(running: MicroManager, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from tem_live.session import open_session\n"
        f"with open_session('pycromanager', {{'camera.port': {running.port},"
        " 'restorer.model': 'none', 'camera.exposure_s': 0.01}) as session:\n"
        "    print(sum(1 for _ in session.frames(3)))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=AMPLE_S, check=False
    )
    assert done.stdout.strip() == "3", done.stderr


class Core:
    """pycromanager's core, as far as images are fetched of it: it has one."""

    def __init__(self, pixels: npt.NDArray[Any], tags: dict[str, Any]) -> None:
        self.pix, self.tags = pixels, tags

    def get_remaining_image_count(self) -> int:
        return 1

    def pop_next_tagged_image(self) -> Core:
        return self


@pytest.mark.parametrize(
    ("pixels", "tags", "said"),
    [
        (np.zeros(24, np.uint16), {"Height": 6, "Width": 4}, "6x4 pixels where 4x6 were set"),
        (np.zeros(12, np.uint16), {"Height": 4, "Width": 6}, "another program"),
        (np.zeros(24, np.uint8), {"Height": 4, "Width": 6}, "uint8 where uint16 was set"),
        (np.zeros(24, np.uint16), {"Height": "high"}, "high"),
    ],
    ids=["turned", "shorter", "type", "garbage"],
)
def test_an_image_that_does_not_belong_there_ends_the_run(
    pixels: npt.NDArray[Any], tags: dict[str, Any], said: str
) -> None:
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    memory = shared_memory.SharedMemory(create=True, size=4 * 48)
    try:
        pump = Pump(Core(pixels, tags), memory, 4, (4, 6), "uint16", None, 7, told.put)
        end = told.get(timeout=AMPLE_S)
        while "beat" in end:
            end = told.get(timeout=AMPLE_S)
        pump.halt()
    finally:
        memory.unlink()
    # The first that was told, so that no frame was given.
    assert end["run"] == 7
    assert end["ended"] in ("changed", "failed")
    assert said in end["text"]


MESSAGES = [
    {"id": 7, "is": {"exposure_s": 0.05}},
    {"id": 8, "refused": "no"},
    {"run": 2, "slot": 3, "tags": {"Height": 4}, "time": 1783.2},
    {"run": 2, "ended": "overflow", "text": "full"},
    {"beat": 1},
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_heard(message: dict[str, Any]) -> None:
    assert heard(json.dumps(message)) == message


_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
_ANY = st.recursive(
    _PLAIN, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3)
)
_NAMES = st.sampled_from("id is refused run slot tags time ended text beat".split())  # noqa: SIM905


@given(line=st.text(max_size=99) | st.dictionaries(_NAMES, _ANY).map(json.dumps))
def test_noise_is_no_message(line: str) -> None:
    with contextlib.suppress(ValueError):
        message = heard(line)
        assert "beat" in message or isinstance(message.get("id", message.get("run")), int)


@given(at=st.integers(0, 60), of=st.sampled_from(MESSAGES))
def test_a_message_that_breaks_off_is_none(at: int, of: dict[str, Any]) -> None:
    line = json.dumps(of)
    with pytest.raises(ValueError, match="no message"):
        heard(line[: min(at, len(line) - 1)])


def test_a_process_that_talks_nonsense_is_given_up(
    running: MicroManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen
    raving = [sys.executable, "-c", "print('GARBAGE', flush=True); input()"]
    monkeypatch.setattr(
        "tem_live.drivers.pycromanager_link.subprocess.Popen",
        lambda command, **options: popen(raving, **options),
    )
    with fails_soon(NotConnectedError, "'GARBAGE.*no message", 10):
        make(running).open()


def test_timeout_is_told(running: MicroManager) -> None:
    camera = make(running)
    camera.open()
    try:
        state = camera.configure(CameraSettings(1.0))
        camera.start()
        with pytest.raises(DeviceTimeoutError):
            camera.read_into(np.empty(state.frame_shape, state.dtype), 0.05)
    finally:
        camera.close()


def test_doctor_sees_it_come_and_go(
    server: MicroManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tem_live.profiles.user_folder", lambda: tmp_path)
    (tmp_path / "pycromanager.toml").write_text(
        f'[camera]\ndriver = "pycromanager"\nport = {server.port}\n'
    )

    def row() -> dict[str, Any]:
        return next(row for row in doctor.examine() if row["name"] == "pycromanager")

    assert (row()["reachable"], row()["mend"]) == (True, None)
    server.kill()
    assert row()["reachable"] is False
    assert "Run server on port" in row()["mend"]
