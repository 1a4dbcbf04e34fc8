"""Answers the gatan driver from within DigitalMicrograph's own Python.

For a DigitalMicrograph (GMS 3.4 and later) without the SerialEMCCD plug-in. This one file is all
that it needs: open it in DigitalMicrograph as a Python script and run it in the background, or::

    import gatan_dm
    gatan_dm.serve(48890)

It speaks as much of the plug-in's protocol as `gatan` asks for (see `gatan_wire`), one program at a
time, and runs with the Python 3.7 of DigitalMicrograph.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Tuple  # noqa: UP035 - Python 3.7

if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 48890
_TAG = "tem_live:result"
_EXIT = re.compile(r"Exit\(([^;{}\n]*)\)")
_SCRIPT_FAILED = -999.0
_UNKNOWN, _EXCEPTION, _LENGTH = -1, -2, -6
_DM_CALL_EXCEPTION, _WRONG_TYPE = 3, 2
_CHUNK_BYTES = 33554432
_HANDSHAKE = 24
_STALLED_S = 30.0
"""Longest wait amid a request or an image."""

Answer = Tuple[int, bytes, bytes]  # noqa: UP006
"""Error code, what follows it in the reply, and the pixels."""


class Server:
    """A listening socket and the cameras of DigitalMicrograph.

    Parameters
    ----------
    port : int
        To listen on; 0 for any.
    host : str
        Address to listen on; "" for all. The protocol knows no password: open it to the
        microscope's own network only.
    dm : module
        ``DigitalMicrograph``; imported when None.
    """

    def __init__(self, port: int = PORT, host: str = "127.0.0.1", dm: Any = None) -> None:
        self._dm = dm if dm is not None else importlib.import_module("DigitalMicrograph")
        self._ended = False
        self._client: socket.socket | None = None
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(2)
        self.port = int(self._listener.getsockname()[1])
        self._functions: dict[int, Callable[[bytes], Answer]] = {
            1: self._execute_script,
            6: self._acquire,
            9: self._select,
            10: self._set_read_mode,
            11: self._count,
            12: self._inserted,
            14: self._version,
        }

    def run(self) -> None:
        """Serve until `end` is called."""
        self._listener.settimeout(0.2)
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except socket.timeout:  # noqa: UP041 - Python 3.7
                continue
            except OSError:
                break
            self._client = client
            client.settimeout(_STALLED_S)
            with contextlib.suppress(OSError, struct.error):
                self._serve(client)
            client.close()
        self._listener.close()

    def end(self) -> None:
        """Hang up, and let `run` return; from any thread."""
        self._ended = True
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _serve(self, client: socket.socket) -> None:
        while not self._ended:
            # One that went without a word would keep all others out: as with the plug-in, a new
            # connection ends the earlier one.
            ready, _, _ = select.select([client, self._listener], [], [], 0.2)
            if self._listener in ready:
                return
            if client not in ready:
                continue
            (size,) = struct.unpack("<i", _exactly(client, 4))
            if not 8 <= size <= 1 << 20:
                client.sendall(struct.pack("<2i", 8, _LENGTH))
                return
            body = _exactly(client, size - 4)
            (function,) = struct.unpack_from("<i", body)
            code, values, pixels = self._answer(function, body[4:])
            reply = struct.pack("<i", code) + (values if code >= 0 else b"")
            client.sendall(struct.pack("<i", 4 + len(reply)) + reply)
            if code == 0 and pixels:
                self._send_pixels(client, pixels)

    def _answer(self, function: int, arguments: bytes) -> Answer:
        work = self._functions.get(function)
        if work is None:
            return _UNKNOWN, b"", b""
        try:
            return work(arguments)
        except struct.error:
            return _LENGTH, b"", b""
        except Exception as error:
            _tell(f"tem_live: function {function} failed: {error}")
            return _EXCEPTION, b"", b""

    def _send_pixels(self, client: socket.socket, pixels: bytes) -> None:
        chunks = -(-len(pixels) // _CHUNK_BYTES)
        chunk = -(-len(pixels) // chunks)
        for start in range(0, len(pixels), chunk):
            if start:
                size, function = struct.unpack("<2i", _exactly(client, 8))
                if (size, function) != (8, _HANDSHAKE):
                    raise OSError("no handshake")
            client.sendall(pixels[start : start + chunk])

    # --------------------------------------------------------------------------- the functions

    def _camera(self) -> Any:
        return self._dm.GetActiveCamera()

    def _count(self, arguments: bytes) -> Answer:
        # The Python of DigitalMicrograph knows the camera that is chosen in its window.
        return 0, struct.pack("<i", 1), b""

    def _select(self, arguments: bytes) -> Answer:
        struct.unpack("<i", arguments)
        self._camera().PrepareForAcquire()
        return 0, b"", b""

    def _inserted(self, arguments: bytes) -> Answer:
        struct.unpack("<i", arguments)
        return 0, struct.pack("<i", int(bool(self._camera().GetInserted()))), b""

    def _version(self, arguments: bytes) -> Answer:
        version = self._evaluate("number version\nGetApplicationVersion(version)\nExit(version)")
        return 0, struct.pack("<i", max(0, int(version))), b""

    def _set_read_mode(self, arguments: bytes) -> Answer:
        # AcquireImage has no read mode: it is the one of DigitalMicrograph's window.
        struct.unpack("<id", arguments)
        return _UNKNOWN, b"", b""

    def _execute_script(self, arguments: bytes) -> Answer:
        count, _ = struct.unpack_from("<2i", arguments)
        text = arguments[8 : 8 + 4 * count].split(b"\0", 1)[0].decode("latin-1")
        value = self._evaluate(text)
        return int(value == _SCRIPT_FAILED), struct.pack("<d", value), b""

    def _evaluate(self, script: str) -> float:
        """What a DM script gives by ``Exit(value)``, by way of a tag."""
        text = _EXIT.sub(
            lambda found: (
                f'TagGroupSetTagAsDouble(GetPersistentTagGroup(), "{_TAG}", {found.group(1)})'
            ),
            script,
        )
        tags = self._dm.GetPersistentTagGroup()
        tags.SetTagAsDouble(_TAG, _SCRIPT_FAILED)
        try:
            self._dm.ExecuteScriptString(text)
        except Exception as error:
            # DigitalMicrograph has several errors for a script that is wrong.
            _tell(f"tem_live: a script failed: {error}")
            return _SCRIPT_FAILED
        found, value = tags.GetTagAsDouble(_TAG)
        return float(value) if found else _SCRIPT_FAILED

    def _acquire(self, arguments: bytes) -> Answer:
        import numpy as np

        values = struct.unpack("<13i2d", arguments)
        processing, binning, top, left, bottom, right = values[3:9]
        exposure_s = values[13]
        try:
            # Its region is in unbinned pixels, the plug-in's in binned ones.
            area = (side * binning for side in (top, left, bottom, right))
            image = self._camera().AcquireImage(exposure_s, binning, binning, processing + 1, *area)
            pixels = np.array(image.GetNumArray())
        except Exception as error:
            _tell(f"tem_live: no image: {error}")
            return _DM_CALL_EXCEPTION, struct.pack("<4i", 0, 0, 0, 0), b""
        if pixels.ndim != 2 or pixels.dtype.kind not in "uif":
            return _WRONG_TYPE, struct.pack("<4i", 0, 0, 0, 0), b""
        data = np.clip(np.rint(pixels), 0, 65535).astype("<u2").tobytes()
        height, width = pixels.shape
        chunks = -(-len(data) // _CHUNK_BYTES)
        return 0, struct.pack("<4i", height * width, width, height, chunks), data


def serve(port: int = PORT, host: str = "127.0.0.1") -> None:
    """Serve for ever."""
    Server(port, host).run()


def _tell(text: str) -> None:
    # To DigitalMicrograph's output window.
    sys.stdout.write(text + "\n")


def _exactly(line: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = line.recv(count - len(received))
        if not piece:
            raise OSError("the program hung up")
        received += piece
    return bytes(received)


if __name__ == "__main__":
    serve()
