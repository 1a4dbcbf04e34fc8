"""Every family's peer, or the fake of it, in one form: it sends known frames and breaks on demand.

`PEERS` names them by their driver. A new driver adds one function here and has then the tests of
`test_whole_runs`.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from tem_live import session as session_module
from tem_live.drivers import native
from tem_live.drivers.protocols import Camera, CameraSettings
from tests.drivers.instruments.atcore import Atcore
from tests.drivers.instruments.dcam import Dcam
from tests.drivers.instruments.pco_sdk import PcoSdk
from tests.drivers.servers import dectris, gatan, merlin, serval
from tests.drivers.servers.proxy import Proxy

Pixels = npt.NDArray[Any]
Break = Callable[[], object]
REPLY_S = 0.5
"""Time that drivers are given for an answer, in seconds."""


@dataclass
class Peer:
    """Something with a camera that a session can use.

    Attributes
    ----------
    profile : str
        Shipped profile to use it with.
    settings : mapping
        What the profile has to be told of it.
    faults : mapping of str to (callable, str)
        What breaks it in the middle of a run, by the fault's name, and words that the run then
        ends with.
    mend : callable
        Makes it sound again, whatever broke it.
    sent : callable or None
        What frame ``n`` of its first run shows; None where that is not known beforehand.
    exposure_s : float
        Of its runs, in seconds.
    reply_s : float
        Time that the driver is given for an answer, in seconds.
    """

    profile: str
    settings: Mapping[str, Any]
    faults: Mapping[str, tuple[Break, str]]
    mend: Callable[[], object]
    sent: Callable[[int], Pixels] | None = None
    exposure_s: float = 0.002
    reply_s: float = REPLY_S


class Make(Protocol):
    """Gives a sound peer, and leaves nothing behind."""

    def __call__(self, request: pytest.FixtureRequest) -> AbstractContextManager[Peer]: ...


class _Restarted:
    """A server of this process, which can be ended and begun again on its ports."""

    def __init__(self, make: Callable[..., Any], stack: ExitStack) -> None:
        self._make, self._ports = make, None
        self.now: Any = make().__enter__()
        stack.callback(lambda: self.now.end())

    def mend(self, ports: Any) -> None:
        """As it was, on the same ports."""
        self.now.end()
        self.now = self._make(ports).__enter__()

    def sends(self, message: Callable[[Any, Any], Any]) -> Break:
        """From now on ``message(number, what a sound one sends)``."""
        return lambda: setattr(self.now, "send", message)

    def end(self) -> None:
        self.now.end()


@contextmanager
def gatan_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    shape = (16, 24)
    with ExitStack() as stack:
        server = _Restarted(lambda port=0: gatan.GatanServer(shape, port=port), stack)
        port = server.now.port
        whole = gatan.packed(0, 384, 24, 16, 1)
        yield Peer(
            "gatan",
            {"camera.port": port},
            {
                "killed": (server.end, "no DigitalMicrograph answers"),
                "stalled": (server.sends(lambda _, sound: b""), "sends no image"),
                "wrong size": (
                    server.sends(lambda _, s: gatan.packed(0, 192, 12, 16, 1) + s[24:]),
                    "16x12",
                ),
                "wrong type": (
                    server.sends(lambda _, s: gatan.packed(0, 768, 24, 16, 1) + 2 * s[24:]),
                    "768 pixels",
                ),
                "truncated": (server.sends(lambda _, s: s[: len(whole) + 99]), "amid an image"),
                "garbage": (server.sends(lambda *_: b"GARBAGE " * 120), "a reply of"),
                "another program": (
                    lambda: socket.create_connection(("127.0.0.1", port)).close(),
                    "another program",
                ),
            },
            lambda: server.mend(port),
            lambda number: gatan.picture(number, shape),
        )


@contextmanager
def serval_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    shape = (256, 256)
    small, wide = np.ones((128, 256), np.uint16), np.ones(shape, np.uint32)
    with ExitStack() as stack:
        server = _Restarted(lambda port=0: serval.ServalServer(port=port), stack)
        port = server.now.port
        yield Peer(
            "serval",
            {"camera.port": port},
            {
                "killed": (server.end, "Serval"),
                "stalled": (server.sends(lambda *_: b""), "sends no images"),
                "wrong size": (
                    server.sends(lambda number, _: serval.streamed(number, small)), "128x256",
                ),
                "wrong type": (
                    server.sends(lambda number, _: serval.streamed(number, wide)), "uint32",
                ),
                "truncated": (server.sends(lambda _, sound: sound[:999]), "image"),
                "garbage": (server.sends(lambda *_: b"GARBAGE " * 40), "should begin"),
                "another program": (lambda: server.now.stop(), "another program"),
            },
            lambda: server.mend(port),
            lambda number: serval.picture(number, shape),
        )  # fmt: skip


@contextmanager
def merlin_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    shape = (16, 24)

    def another(shape: tuple[int, int], kind: str) -> Callable[[int, bytes], bytes]:
        def message(index: int, _: bytes) -> bytes:
            return merlin.message(merlin.frame(index + 1, merlin.picture(index, shape), kind))

        return message

    with ExitStack() as stack:
        server = _Restarted(lambda ports=(0, 0): merlin.MerlinServer(shape, ports), stack)
        ports = server.now.port, server.now.data_port
        yield Peer(
            "merlin",
            {"camera.port": ports[0], "camera.data_port": ports[1]},
            {
                "killed": (server.end, "Merlin"),
                "stalled": (server.sends(lambda *_: b""), "sends no frames"),
                "wrong size": (server.sends(another((8, 24), "U16")), "8x24"),
                "wrong type": (server.sends(another(shape, "U32")), "uint32"),
                # What follows is taken for the rest of it, so that the next header is amiss.
                "truncated": (server.sends(lambda _, sound: sound[:99]), "Merlin"),
                "garbage": (server.sends(lambda *_: b"GARBAGE" * 40), "should begin"),
                "another program": (
                    server.sends(lambda *_: merlin.message(b"HDR,\nEnd\t")),
                    "another program",
                ),
            },
            lambda: server.mend(ports),
            lambda number: merlin.picture(number, shape),
        )


def _dectris_peer(stream: str) -> Make:
    make = {"legacy": dectris.legacy_image, "cbor": dectris.cbor_image}[stream]
    shape = (18, 28)

    @contextmanager
    def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
        if stream == "cbor":
            pytest.importorskip("cbor2", reason="cbor2 is not installed")
        with ExitStack() as stack:
            server = _Restarted(lambda ports=(0, 0): dectris.DectrisServer(shape, ports), stack)
            ports = server.now.port, server.now.stream_port

            def another(shape: tuple[int, int], dtype: str) -> Callable[[int, Any], Any]:
                def message(number: int, _: Any) -> Any:
                    picture = dectris.picture(number, shape, dtype)
                    return [make(server.now.series, number, picture)]

                return message

            start = (
                dectris.legacy_start(4242)
                if stream == "legacy"
                else dectris.cbor_mark("start", 4242)
            )

            def torn(_: int, parts: list[bytes]) -> list[list[bytes]]:
                return [parts[:-1] if len(parts) > 1 else [parts[0][:99]]]

            yield Peer(
                "dectris",
                {
                    "camera.port": ports[0],
                    "camera.stream_port": ports[1],
                    "camera.stream": stream,
                },
                {
                    "killed": (server.end, "DECTRIS"),
                    "stalled": (server.sends(lambda *_: []), "sends no images"),
                    "wrong size": (server.sends(another((8, 28), "uint16")), "8x28"),
                    "wrong type": (server.sends(another(shape, "uint32")), "uint32"),
                    "truncated": (server.sends(torn), "DECTRIS"),
                    "garbage": (server.sends(lambda *_: [[b"GARBAGE"] * 4]), "DECTRIS"),
                    "another program": (server.sends(lambda *_: [start]), "another series"),
                },
                lambda: server.mend(ports),
                lambda number: dectris.picture(number, shape),
            )

    return peer


@contextmanager
def genicam_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    from tem_live.drivers.genicam import GenICamCamera
    from tem_live.drivers.genicam_link import Block
    from tests.drivers.instruments.genicam_link import BrokenLink

    class Link(BrokenLink):
        def __init__(self) -> None:
            super().__init__()
            self.numbers = itertools.count()
            self.make: Callable[[int], Block | None] = sound

        def start(self) -> None:
            self.numbers = itertools.count()

        def fetch(self, wait_s: float) -> Block | None:
            time.sleep(min(wait_s, 0.002))
            return self.make(next(self.numbers))

    def picture(number: int, shape: tuple[int, int] = (6, 8), kind: Any = np.uint16) -> Pixels:
        return np.full(shape, number % 200, kind)

    def sound(number: int) -> Block:
        return Block(number + 1, "Mono12", picture(number))

    def sends(make: Callable[[int], Block | None]) -> Break:
        return lambda: setattr(link, "make", make)

    def nothing(number: int) -> None:
        return None

    def gone() -> None:
        link.alive = False
        link.make = nothing

    def mend() -> None:
        link.alive, link.make = True, sound

    link = Link()
    _patch(request).setattr(GenICamCamera, "_connect", lambda self: link)
    yield Peer(
        "genicam",
        {},
        {
            "killed": (gone, "a camera is gone"),
            "stalled": (sends(nothing), "sends no images"),
            "wrong size": (sends(lambda n: Block(n + 1, "Mono12", picture(n, (6, 4)))), "6x4"),
            "wrong type": (
                sends(lambda n: Block(n + 1, "Mono8", picture(n, kind=np.uint8))), "Mono8",
            ),
        },
        mend,
        picture,
    )  # fmt: skip


@contextmanager
def thermo_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    pytest.importorskip("temscript", reason="temscript is not installed")
    from tests.drivers.servers.temscript import Microscope

    class Torn(BaseHTTPRequestHandler):
        """An answer that is shorter than it says."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "999")
            self.end_headers()
            self.wfile.write(b'{"CCD": ')

        def log_message(self, format: str, *args: Any) -> None: ...

    class Garbage(Torn):
        def do_GET(self) -> None:
            self.wfile.write(b"GARBAGE " * 40)

    held = threading.Event()
    counted = itertools.count()
    now: list[Microscope] = []

    def picture(number: int) -> Pixels:
        return np.arange(64 * 64, dtype=np.int32).reshape(64, 64) + number

    def begin(port: int) -> None:
        now[:] = [Microscope(port)]
        answers.clear()
        held.clear()
        sends(lambda: picture(next(counted)))()

    def sends(image: Callable[[], Pixels]) -> Break:
        def pretend() -> None:
            now[0].itself.pretend = lambda _: {"CCD": image()}

        return pretend

    def stall() -> Pixels:
        held.wait(20)
        return picture(0)

    def taken() -> Pixels:
        raise RuntimeError("the camera is in use by another application")

    def end() -> None:
        held.set()
        if now:
            now.pop().end()

    def answers_with(handler: type[BaseHTTPRequestHandler]) -> Break:
        return lambda: setattr(now[0].server, "RequestHandlerClass", handler)

    answers: list[Any] = []
    begin(0)
    port = now[0].port

    def mend() -> None:
        end()
        begin(port)

    try:
        yield Peer(
            "thermo",
            {"camera.route": "remote", "camera.port": port},
            {
                "killed": (end, "temscript-server"),
                "stalled": (sends(stall), "does not answer"),
                "wrong size": (sends(lambda: picture(0)[1:]), "63x64"),
                "wrong type": (sends(lambda: picture(0).astype(np.float64)), "float64"),
                "truncated": (answers_with(Torn), "temscript-server"),
                "garbage": (answers_with(Garbage), "temscript-server"),
                "another program": (sends(lambda: picture(0)[:32, :32].copy()), "another program"),
                "in use": (sends(taken), "camera is in use"),
            },
            mend,
            picture,
        )
    finally:
        end()


@contextmanager
def tvips_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    from tem_live.drivers.tvips import TvipsCamera, TvipsOptions
    from tests.drivers.instruments.emmenu import HEIGHT, WIDTH, ComError, Emmenu

    emmenu = Emmenu()
    stuck = threading.Event()
    _takes(request, lambda: TvipsCamera(TvipsOptions(reply_timeout_s=REPLY_S), emmenu.connect))

    def spoils(pixels: Callable[[Pixels], Pixels]) -> Break:
        return lambda: setattr(emmenu, "spoil", pixels)

    def stall(pixels: Pixels) -> Pixels:
        stuck.wait(20)
        return pixels

    def mend() -> None:
        stuck.set()
        emmenu.failing, emmenu.spoil = None, lambda pixels: pixels

    def picture(number: int) -> Pixels:
        rows, columns = np.indices((HEIGHT, WIDTH))
        return 1000 * number + 10 * rows + columns - 5

    gone = ComError(0x800706BA, "RPC server is unavailable")
    # HRESULT_FROM_WIN32(ERROR_BUSY), winerror.h.
    taken = ComError(0x800700AA, "The requested resource is in use")
    try:
        yield Peer(
            "tvips",
            {},
            {
                "killed": (lambda: setattr(emmenu, "failing", gone), "EMMENU is gone"),
                "stalled": (spoils(stall), "does not answer"),
                "wrong size": (spoils(lambda pixels: pixels[1:]), "47x64"),
                "garbage": (spoils(lambda pixels: pixels[0]), "EMMENU"),
                "another program": (
                    lambda: setattr(emmenu.configuration, "DimensionX", WIDTH // 2),
                    "another program",
                ),
                "in use": (lambda: setattr(emmenu, "failing", taken), "is in use"),
            },
            mend,
            picture,
        )
    finally:
        stuck.set()


@contextmanager
def jeol_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    from tem_live.drivers.jeol import JeolCamera, JeolOptions
    from tests.drivers.instruments.pyjem import PyJem

    fake, patch = PyJem(), _patch(request)
    stuck = threading.Event()
    sound, sent = fake.snapshot_rawdata, fake.sent
    _takes(request, lambda: JeolCamera(JeolOptions(reply_timeout_s=REPLY_S), lambda: fake))

    def spoils(change: Callable[[bytes], Any]) -> Break:
        patch.setattr(fake, "snapshot_rawdata", lambda: change(sound()))
        return lambda: patch.setattr(fake, "snapshot_rawdata", lambda: change(sound()))

    def stall(data: bytes) -> bytes:
        stuck.wait(20)
        return data

    def mend() -> None:
        stuck.set()
        fake.failing = None
        patch.setattr(fake, "snapshot_rawdata", sound)

    faults: dict[str, tuple[Break, str]] = {
        "killed": (
            lambda: setattr(fake, "failing", ConnectionError("no route")), "no route",
        ),
        "stalled": (spoils(stall), "does not answer"),
        "wrong size": (spoils(lambda data: data + data), "bytes where"),
        "truncated": (spoils(lambda data: data[:99]), "99 bytes"),
        "garbage": (spoils(lambda data: None), "PyJEM answers otherwise"),
        "another program": (spoils(lambda data: data[: len(data) // 4]), "another program"),
        "in use": (
            lambda: setattr(fake, "failing", RuntimeError("TVCAM_U is in use")), "is in use",
        ),
    }  # fmt: skip
    mend()
    stuck.clear()
    try:
        yield Peer("jeol", {}, faults, mend, lambda _: sent.reshape(48, 64))
    finally:
        stuck.set()


def _library_peer(driver: str, make: Callable[[], Any], wrong_size: Callable[[Any], None]) -> Make:
    """A maker's library: calls instead of messages, so none is truncated, and none is garbage."""
    stalls_in = {
        "hamamatsu": "dcamwait_start", "andor": "AT_WaitBuffer", "pco": "PCO_GetBufferStatus",
    }[driver]  # fmt: skip

    @contextmanager
    def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
        fake = make()
        returned = threading.Event()
        _patch(request).setattr(native, "loader", lambda *_: lambda: fake.library)
        sound = {name: value for name, value in vars(fake).items() if not callable(value)}
        changeable = {name: sound[name] for name in ("wrong_size", "short_by", "told_size")
                      if name in sound}  # fmt: skip

        def mend() -> None:
            fake.library.hanging.clear()
            returned.set()
            fake.sensor.present = True
            for name, value in changeable.items():
                setattr(fake, name, value)

        def stall() -> None:
            fake.library.hanging[stalls_in] = returned

        try:
            yield Peer(
                driver,
                {},
                {
                    "killed": (lambda: setattr(fake.sensor, "present", False), ""),
                    "stalled": (stall, "has not answered"),
                    "wrong size": (lambda: wrong_size(fake), ""),
                },
                mend,
                fake.sensor.picture,
                # Its few buffers must last while a busy computer does something else.
                exposure_s=0.01,
            )
        finally:
            returned.set()
        assert fake.library.errors == []
        assert fake.open_handles == [], "what was opened is closed"

    return peer


def _patch(request: pytest.FixtureRequest) -> pytest.MonkeyPatch:
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    return patch


def _takes(request: pytest.FixtureRequest, make: Callable[[], Camera]) -> None:
    """Have sessions use this camera, where the driver's library comes from its maker alone."""
    _patch(request).setattr(session_module, "make_camera", lambda profile: make())


@contextmanager
def direct_electron_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    twin = request.getfixturevalue("twin")
    with Proxy(twin.port) as proxy:

        def fails(fault: str) -> Break:
            return lambda: setattr(proxy, "fault", fault)

        def mend() -> None:
            proxy.end()
            proxy.begin()

        def another_program() -> None:
            other = twin.camera()
            other.open()
            other.configure(CameraSettings(0.05, roi=(0, 0, 64, 64)))
            other.start()
            other.close()

        yield Peer(
            "de-twin",
            {
                "camera.port": proxy.port,
                "camera.roi": [256, 256, 128, 128],
                # Beside other tests its first frame has taken longer than 5 s.
                "camera.timeout_s": 30.0,
            },
            {
                "killed": (proxy.end, "DE-Server"),
                "stalled": (fails("stalled"), "DE-Server"),
                "truncated": (fails("truncated"), "DE-Server"),
                "garbage": (fails("garbage"), "DE-Server"),
                "another program": (another_program, "another program"),
            },
            mend,
            exposure_s=0.02,
            # Its simulation keeps a processor busy.
            reply_s=4.0,
        )


@contextmanager
def mm_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    pytest.importorskip("mm_test_adapters", reason="no device adapters: mm-test-adapters")
    from tem_live.drivers.mm import MMCamera, MMOptions

    options = {"PixelType": "16bit", "BitDepth": 16, "Mode": "Noise"}
    sizes = {"OnCameraCCDXSize": 64, "OnCameraCCDYSize": 48}
    camera = MMCamera(MMOptions(properties={**options, **sizes}))
    _takes(request, lambda: camera)
    yield Peer(
        "mm-demo",
        {},
        {"killed": (lambda: camera.core.stopSequenceAcquisition(), "ended the sequence")},
        lambda: None,
        exposure_s=0.005,
    )


@contextmanager
def pycromanager_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    pytest.importorskip("mm_test_adapters", reason="no device adapters: mm-test-adapters")
    from tests.drivers.servers.micromanager import MicroManager

    log = request.getfixturevalue("tmp_path") / "sent"
    log.touch()
    server = MicroManager(log=log)
    server.start()

    def mend() -> None:
        server.kill()
        server.start()

    size = {"OnCameraCCDXSize": 64, "OnCameraCCDYSize": 48}
    try:
        yield Peer(
            "pycromanager",
            {
                "camera.port": server.port,
                "camera.properties": {"PixelType": "16bit", "BitDepth": 16, **size},
            },
            {"killed": (server.kill, "gone"), "stalled": (server.hang, "not answered")},
            mend,
            lambda number: np.fromfile(log, np.uint16).reshape(-1, 48, 64)[number],
            exposure_s=0.005,
            # Two programs and Java's protocol between them, beside other tests.
            reply_s=4.0,
        )
    finally:
        server.kill()


MARKS = {"thermo": [pytest.mark.filterwarnings("ignore::ResourceWarning")]}
"""See `tests.drivers.servers.temscript.LEAVES_OPEN`."""

_ON_A_WIRE = (
    "killed", "stalled", "wrong size", "wrong type", "truncated", "garbage", "another program",
)  # fmt: skip
_IN_A_LIBRARY = ("killed", "stalled", "wrong size")

PEERS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "mm": (mm_peer, ("killed",)),
    "pycromanager": (pycromanager_peer, ("killed", "stalled")),
    "direct-electron": (
        direct_electron_peer, ("killed", "stalled", "truncated", "garbage", "another program"),
    ),
    "gatan": (gatan_peer, _ON_A_WIRE),
    "serval": (serval_peer, _ON_A_WIRE),
    "merlin": (merlin_peer, _ON_A_WIRE),
    "dectris legacy": (_dectris_peer("legacy"), _ON_A_WIRE),
    "dectris cbor": (_dectris_peer("cbor"), _ON_A_WIRE),
    "genicam": (genicam_peer, ("killed", "stalled", "wrong size", "wrong type")),
    "thermo": (thermo_peer, (*_ON_A_WIRE, "in use")),
    "tvips": (
        tvips_peer, ("killed", "stalled", "wrong size", "garbage", "another program", "in use"),
    ),
    "jeol": (jeol_peer, tuple(name for name in (*_ON_A_WIRE, "in use") if name != "wrong type")),
    "hamamatsu": (
        _library_peer("hamamatsu", Dcam, lambda fake: setattr(fake, "wrong_size", True)),
        _IN_A_LIBRARY,
    ),
    "andor": (
        _library_peer("andor", Atcore, lambda fake: setattr(fake, "short_by", 4)), _IN_A_LIBRARY,
    ),
    "pco": (
        _library_peer("pco", PcoSdk, lambda fake: setattr(fake, "told_size", (48, 64))),
        _IN_A_LIBRARY,
    ),
}  # fmt: skip
"""Each peer, and the faults that it knows; why others do not befall it is in docs/cameras.md."""
