"""A DigitalMicrograph with the SerialEMCCD plug-in, which fails as a test demands.

``python -m tests.drivers.servers.gatan`` serves 512 x 512 pixels on port 48890 for ten minutes.

Written from the plug-in's published sources, apart from the driver: it shares no code with it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

import numpy as np
import numpy.typing as npt

SCRIPT, IMAGE, SELECT, READ_MODE, CAMERAS, INSERTED, VERSION, HANDSHAKE = (
    1,
    6,
    9,
    10,
    11,
    12,
    14,
    24,
)


def picture(sequence: int, shape: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """What image ``sequence`` (from 0) shows."""
    rows, columns = np.indices(shape)
    return (1000 * sequence + 10 * rows + columns).astype(np.uint16)


def packed(*values: int | float) -> bytes:
    """A reply: whole numbers first, then doubles."""
    body = b"".join(struct.pack("<i" if isinstance(v, int) else "<d", v) for v in values)
    return struct.pack("<i", 4 + len(body)) + body


class GatanServer:
    """It listens on a free port; its attributes say how it fails."""

    def __init__(
        self, shape: tuple[int, int] = (16, 24), chunk_bytes: int = 33554432, port: int = 0
    ) -> None:
        self.shape = shape
        self.chunk_bytes = chunk_bytes
        self.binnings = (1, 2, 4, 8)
        self.codes: dict[int, int] = {}
        """Error code of the reply, by function."""
        self.exposure_taken: Callable[[float], float] = lambda exposure_s: exposure_s
        self.mute = threading.Event()
        """While it is set, nothing is answered."""
        self.send: Callable[[int, bytes], bytes | None] = lambda _, message: message
        """What goes out as the reply to an image's request, pixels included; None hangs up."""
        self.requests: list[tuple[int, tuple[int, ...]]] = []
        self.images = 0
        self.handshakes = 0
        self._quit = threading.Event()
        self._client: socket.socket | None = None
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> GatanServer:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Die: the connection breaks."""
        self._quit.set()
        self.mute.clear()
        for line in (self._listener, self._client):
            if line is not None:
                _hang_up(line)
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._quit.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # As the plug-in does: a new program ends the connection of the earlier one.
            if self._client is not None:
                _hang_up(self._client)
            self._client = client
            self._start(lambda client=client: self._serve(client))

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error), client:
            while True:
                (size,) = struct.unpack("<i", _exactly(client, 4))
                body = _exactly(client, size - 4)
                while self.mute.is_set():
                    time.sleep(0.01)
                self._answer(client, *struct.unpack_from("<i", body), body[4:])

    def _answer(self, client: socket.socket, function: int, rest: bytes) -> None:
        longs = struct.unpack_from(f"<{len(rest) // 4}i", rest)
        self.requests.append((function, longs))
        code = self.codes.get(function, 0)
        if code < 0:
            client.sendall(packed(code))
        elif function == IMAGE:
            self._acquire(client, rest, code)
        elif function == SCRIPT:
            value = self._script(rest[8:].split(b"\0")[0].decode())
            client.sendall(packed(int(value == -999.0), value))
        elif function in (CAMERAS, VERSION, INSERTED):
            client.sendall(packed(code, {CAMERAS: 2, VERSION: 60, INSERTED: 1}[function]))
        elif function == HANDSHAKE:
            pass
        else:
            client.sendall(packed(code))

    def _script(self, text: str) -> float:
        if "CM_CCD_GetSize" in text:
            return float(65536 * self.shape[0] + self.shape[1])
        found = re.search(r"FullCCD\(camera, \d, (\S+), (\d+), \d+\)", text)
        if found is None or int(found[2]) not in self.binnings:
            return -999.0
        if "Exit(across)" in text:
            return float(found[2])
        return self.exposure_taken(float(found[1]))

    def _acquire(self, client: socket.socket, rest: bytes, code: int) -> None:
        longs, (exposure_s, _) = (
            struct.unpack_from("<13i", rest),
            struct.unpack_from("<2d", rest, 52),
        )
        top, left, bottom, right = longs[5:9]
        pixels = picture(self.images, (bottom - top, right - left))
        number = self.images
        self.images += 1
        if self._quit.wait(exposure_s):
            return
        if code:
            client.sendall(packed(code, 0, 0, 0, 0))
            return
        data = pixels.tobytes()
        chunks = -(-len(data) // self.chunk_bytes)
        out = self.send(number, packed(0, pixels.size, *pixels.shape[::-1], chunks) + data)
        if out is None:
            _hang_up(client)
            return
        head, data = out[:24], out[24:]
        client.sendall(head)
        chunk = -(-len(data) // chunks) or 1
        for start in range(0, len(data), chunk):
            if start:
                size, function = struct.unpack("<2i", _exactly(client, 8))
                assert (size, function) == (8, HANDSHAKE)
                self.handshakes += 1
            client.sendall(data[start : start + chunk])


def _exactly(line: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = line.recv(count - len(received))
        if not piece:
            raise OSError
        received += piece
    return bytes(received)


def _hang_up(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    line.close()


if __name__ == "__main__":
    with GatanServer((512, 512), port=48890):
        time.sleep(600)
