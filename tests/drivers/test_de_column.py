"""The Direct Electron column against de-twin's SOAP server, which others wrote."""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tem_live.drivers.de_column import DEColumn, DEColumnOptions
from tem_live.drivers.protocols import BeamShift, Blanker, ColumnParts, Magnification, Stage
from tem_live.errors import (
    DeviceError,
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)

pytest.importorskip("de_twin", reason="de-twin is not installed")

pytestmark = [pytest.mark.peer]


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


class Service:
    """The twin's column in a process of its own."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "de_twin.faces.temchannel_soap", "--host", "127.0.0.1"]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)], stdout=out, stderr=out
            )
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as line:
                if line.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                pytest.skip(f"the twin's column did not start: {log.read_text()[-300:]}")
            time.sleep(0.05)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("soap") / "log.txt")
    yield running
    running.end()


@pytest.fixture
def column(service: Service) -> DEColumn:
    opened = DEColumn(DEColumnOptions(soap_port=service.port))
    opened.open()
    return opened


def test_what_it_can_do(column: DEColumn):
    parts = ColumnParts.of(column)
    for part in (parts.blanker, parts.spot_size, parts.magnification, parts.stage):
        assert part is column
    assert parts.beam_shift is column
    assert parts.image_shift is column
    # It tells no dose rate, so none is made up.
    assert parts.dose_rate is None
    assert isinstance(column, Blanker | Magnification | Stage | BeamShift)


def test_blanking_is_read_back(column: DEColumn):
    for blanked in (True, False, True):
        column.set_blanked(blanked)
        assert column.blanked is blanked


def test_spot_size(column: DEColumn):
    for spot_size in (4, 2):
        assert column.set_spot_size(spot_size) == column.spot_size == spot_size
    # The service would clip it to 5 and call that a success.
    with pytest.raises(RefusedError, match="there are 1 to 5"):
        column.set_spot_size(99)
    assert column.spot_size == 2


def test_a_spot_size_that_reads_back_another_is_refused(service: Service):
    column = DEColumn(DEColumnOptions(soap_port=service.port, highest_spot_size=20))
    column.open()
    with pytest.raises(RefusedError, match="it is 5"):
        column.set_spot_size(12)


def test_magnification(column: DEColumn):
    taken = column.set_magnification(50_000)
    assert taken == column.magnification
    assert taken == pytest.approx(50_000, rel=0.3)
    assert column.set_magnification(20_000) < taken
    assert column.pixel_size_nm is None


def test_the_stage_moves_and_is_waited_for(column: DEColumn):
    for target in ((12.0, -7.0), (0.0, 0.0)):
        assert column.move_stage(*target) == pytest.approx(target, abs=0.5)
        assert column.stage_position_um == pytest.approx(target, abs=0.5)


def test_beam_shift_is_in_nm(column: DEColumn):
    assert column.set_beam_shift(120.0, -80.0) == pytest.approx((120.0, -80.0), abs=5)
    assert column.set_beam_shift(0.0, 0.0) == pytest.approx((0.0, 0.0), abs=5)


def test_image_shift_is_in_nm_and_leaves_the_beam(column: DEColumn):
    column.set_beam_shift(120.0, -80.0)
    assert column.set_image_shift(250.0, 60.0) == pytest.approx((250.0, 60.0), abs=5)
    assert column.beam_shift_nm == pytest.approx((120.0, -80.0), abs=5)
    assert column.set_image_shift(0.0, 0.0) == pytest.approx((0.0, 0.0), abs=5)
    column.set_beam_shift(0.0, 0.0)


def test_closed_and_absent_are_said(service: Service):
    closed = DEColumn(DEColumnOptions(soap_port=service.port))
    with pytest.raises(NotConnectedError, match="open it first"):
        closed.set_blanked(True)
    absent = DEColumn(DEColumnOptions(soap_port=free_port()))
    with pytest.raises(NotConnectedError, match=r"column\.soap_port"):
        absent.open()


def test_a_service_that_is_gone_is_said(tmp_path: Path):
    mortal = Service(tmp_path / "log.txt")
    column = DEColumn(DEColumnOptions(soap_port=mortal.port))
    column.open()
    mortal.end()
    with pytest.raises(DisconnectedError, match="is gone"):
        column.set_blanked(True)


# ------------------------------------------------------------------------- what the twin never does


@pytest.fixture
def faulty() -> Iterator[Callable[[Callable[[], tuple[int, bytes]]], DEColumn]]:
    """A column behind a service that answers as it is told."""
    servers: list[http.server.ThreadingHTTPServer] = []
    threads: list[threading.Thread] = []

    def serve(answer: Callable[[], tuple[int, bytes]]) -> DEColumn:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, body = answer()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threads.append(threading.Thread(target=server.serve_forever, args=(0.01,)))
        threads[-1].start()
        column = DEColumn(DEColumnOptions(soap_port=server.server_address[1], reply_timeout_s=0.2))
        column._open = True
        return column

    yield serve
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


FAULT = b"<E><Body><Fault><faultstring>no such method</faultstring></Fault></Body></E>"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"hello", "no XML"),
        (200, b"<Envelope/>", "nothing"),
        (200, b"<E><Body><r><intResult>x</intResult></r></Body></E>", "no number"),
        (200, b"<E><Body><r/></Body></E>", "no number"),
        (500, FAULT, "no such method"),
        (503, b"", "HTTP 503"),
    ],
)
def test_nonsense_is_never_taken_for_an_answer(
    faulty: Callable[..., DEColumn], status: int, body: bytes, words: str
):
    column = faulty(lambda: (status, body))
    with pytest.raises(DeviceError, match=words):
        _ = column.blanked


def test_a_blanker_that_does_not_follow_is_said(faulty: Callable[..., DEColumn]):
    column = faulty(lambda: (200, b"<E><Body><r><intResult>0</intResult></r></Body></E>"))
    with pytest.raises(RefusedError, match="does not blank"):
        column.set_blanked(True)


def test_a_service_that_hangs_is_given_its_timeout(faulty: Callable[..., DEColumn]):
    release = threading.Event()

    def hang() -> tuple[int, bytes]:
        release.wait(5)
        return 200, b""

    column = faulty(hang)
    began = time.monotonic()
    with pytest.raises(DeviceTimeoutError, match="did not answer"):
        _ = column.blanked
    assert time.monotonic() - began < 3
    release.set()


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n<half"]
)
def test_something_else_behind_the_port_is_said(said: bytes):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        column = DEColumn(DEColumnOptions(soap_port=server.getsockname()[1], reply_timeout_s=5.0))
        with pytest.raises(NotConnectedError, match="no DE-TEM-Channel answers"):
            column.open()
        thread.join(10)


def test_a_refusal_that_is_cut_off_is_one_all_the_same(column: DEColumn, service: Service):
    column.open()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 500 E\r\nContent-Length: 100\r\n\r\nabc")

        thread = threading.Thread(target=serve)
        thread.start()
        elsewhere = DEColumnOptions(soap_port=server.getsockname()[1], reply_timeout_s=5.0)
        column._options = elsewhere
        with pytest.raises(RefusedError, match="HTTP 500"):
            column.set_blanked(True)
        thread.join(10)
