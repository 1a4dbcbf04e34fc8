"""A server with the wire of Micro-Manager's (pyjavaz' JSON over ZMQ) in front of a real MMCore.

Micro-Manager's own server is written in Java and on no package registry. This one says what the
real client of pycromanager needs to hear, for the part of MMCoreJ that the driver calls, and the
answers are those of a real core with Micro-Manager's DemoCamera. The wire is that of pyjavaz 1.2.8
(``bridge.py``). As a program: ``python micromanager.py --port 4827 [--log FRAMES]``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_S = 60.0
_S, _I, _L, _D, _B = "java.lang.String", "int", "long", "double", "boolean"
CORE: list[tuple[str, list[str], str]] = [
    ("getVersionInfo", [], _S),
    ("getCameraDevice", [], _S),
    ("setCameraDevice", [_S], "void"),
    ("getShutterDevice", [], _S),
    ("getXYStageDevice", [], _S),
    ("getDeviceLibrary", [_S], _S),
    ("getDeviceName", [_S], _S),
    ("hasProperty", [_S, _S], _B),
    ("hasPropertyLimits", [_S, _S], _B),
    ("getPropertyLowerLimit", [_S, _S], _D),
    ("getPropertyUpperLimit", [_S, _S], _D),
    ("getAllowedPropertyValues", [_S, _S], "mmcorej.StrVector"),
    ("getProperty", [_S, _S], _S),
    ("setProperty", [_S, _S, _S], "void"),
    ("setProperty", [_S, _S, _B], "void"),
    ("setProperty", [_S, _S, _I], "void"),
    ("getExposure", [], _D),
    ("getExposure", [_S], _D),
    ("setExposure", [_D], "void"),
    ("setExposure", [_S, _D], "void"),
    ("getROI", [], "java.awt.Rectangle"),
    ("setROI", [_I, _I, _I, _I], "void"),
    ("setROI", [_S, _I, _I, _I, _I], "void"),
    ("clearROI", [], "void"),
    ("getImageHeight", [], _L),
    ("getImageWidth", [], _L),
    ("getImageBitDepth", [], _L),
    ("getBytesPerPixel", [], _L),
    ("getNumberOfComponents", [], _L),
    ("getPixelSizeUm", [], _D),
    ("getPixelSizeUm", [_B], _D),
    ("startSequenceAcquisition", [_I, _D, _B], "void"),
    ("startSequenceAcquisition", [_S, _I, _D, _B], "void"),
    ("stopSequenceAcquisition", [], "void"),
    ("stopSequenceAcquisition", [_S], "void"),
    ("isSequenceRunning", [], _B),
    ("isSequenceRunning", [_S], _B),
    ("isBufferOverflowed", [], _B),
    ("getRemainingImageCount", [], _I),
    ("popNextTaggedImage", [], "mmcorej.TaggedImage"),
    ("popNextTaggedImage", [_I], "mmcorej.TaggedImage"),
    ("getAutoShutter", [], _B),
    ("setAutoShutter", [_B], "void"),
    ("getShutterOpen", [], _B),
    ("getShutterOpen", [_S], _B),
    ("setShutterOpen", [_B], "void"),
    ("setShutterOpen", [_S, _B], "void"),
    ("getXPosition", [], _D),
    ("getXPosition", [_S], _D),
    ("getYPosition", [], _D),
    ("getYPosition", [_S], _D),
    ("setXYPosition", [_D, _D], "void"),
    ("setXYPosition", [_S, _D, _D], "void"),
    ("deviceBusy", [_S], _B),
]
_ARRAYS = {1: "byte-array", 2: "short-array", 4: "int-array"}


def _api(methods: list[tuple[str, list[str], str]]) -> list[dict[str, Any]]:
    return [{"name": n, "arguments": a, "return-type": r} for n, a, r in methods]


class Rectangle:
    """java.awt.Rectangle, by its public fields."""

    FIELDS = ("x", "y", "width", "height")

    def __init__(self, roi: Any) -> None:
        self.x, self.y, self.width, self.height = (int(n) for n in roi)


class TaggedImage:
    FIELDS = ("pix", "tags")

    def __init__(self, pix: Any, tags: dict[str, Any]) -> None:
        self.pix, self.tags = pix, tags


class StrVector:
    FIELDS = ()

    def __init__(self, words: Any) -> None:
        self._words = list(words)

    def size(self) -> int:
        return len(self._words)

    def get(self, index: int) -> str:
        return str(self._words[index])


_STR_VECTOR = [("size", [], _I), ("get", [_I], _S)]


class Server:
    """Answers one request after the other, as Micro-Manager's does on each of its ports."""

    def __init__(self, core: Any, log: Path | None) -> None:
        self._core = core
        self._log = log
        self._objects: dict[int, Any] = {}

    def serve(self, port: int) -> None:
        import zmq

        line = zmq.Context.instance().socket(zmq.REP)
        line.bind(f"tcp://127.0.0.1:{port}")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            parts = line.recv_multipart()
            binary: list[bytes] = []
            try:
                reply = self._answer(json.loads(parts[0].decode("iso-8859-1")), binary)
            except Exception as error:
                # As Java: the error, and where it came from.
                text = f"java.lang.Exception: {error}\n\tat mmcorej.CMMCore(Native Method)"
                reply = {"type": "exception", "value": text}
            line.send_multipart([json.dumps(reply).encode("iso-8859-1"), *binary])

    def _answer(self, request: dict[str, Any], binary: list[bytes]) -> dict[str, Any]:
        command = request["command"]
        if command == "connect":
            return {"type": "none", "version": "5.1.0"}
        if command == "get-constructors":
            name = request["classpath"]
            api = [{"name": name, "arguments": [], "return-type": name}]
            return {"type": "none", "api": api}
        if command == "constructor":
            return self._shadow(self._core, "mmcorej.CMMCore", CORE)
        if command == "destructor":
            self._objects.pop(request["hash-code"], None)
            return {"type": "none"}
        target = self._objects[request["hash-code"]]
        if command == "get-field":
            return self._value(getattr(target, request["name"]), binary)
        assert command == "run-method", command
        return self._value(self._run(target, request["name"], request["arguments"]), binary)

    def _run(self, target: Any, name: str, arguments: list[Any]) -> Any:
        if target is not self._core:
            return getattr(target, name)(*arguments)
        if name == "popNextTaggedImage":
            return self._pop()
        found = getattr(target, name)(*arguments)
        if name == "getROI":
            return Rectangle(found)
        return StrVector(found) if name == "getAllowedPropertyValues" else found

    def _pop(self) -> TaggedImage:
        import pymmcore

        metadata = pymmcore.Metadata()
        pixels = self._core.popNextImageMD(metadata)
        tags = {key: metadata.GetSingleTag(key).GetValue() for key in metadata.GetKeys()}
        tags |= {"Height": pixels.shape[0], "Width": pixels.shape[1]}
        if self._log is not None:
            with self._log.open("ab") as file:
                file.write(pixels.tobytes())
        return TaggedImage(pixels, tags)

    def _value(self, value: Any, binary: list[bytes]) -> dict[str, Any]:
        if value is None:
            return {"type": "null"}
        if isinstance(value, bool | int | float):
            return {"type": "primitive", "value": value}
        if isinstance(value, str):
            return {"type": "string", "value": value}
        if isinstance(value, dict):
            return {"type": "object", "class": "JSONObject", "value": json.dumps(value)}
        if isinstance(value, Rectangle | TaggedImage | StrVector):
            methods = _STR_VECTOR if isinstance(value, StrVector) else []
            return self._shadow(value, f"peer.{type(value).__name__}", methods, value.FIELDS)
        mark = secrets.token_bytes(4)
        binary += [mark, value.tobytes()]
        number = int.from_bytes(mark, byteorder=sys.byteorder)
        return {"type": _ARRAYS[value.dtype.itemsize], "value": f"@{number:x}"}

    def _shadow(
        self, value: Any, name: str, methods: list[tuple[str, list[str], str]], fields: Any = ()
    ) -> dict[str, Any]:
        number = secrets.randbelow(2**31)
        self._objects[number] = value
        return {
            "type": "unserialized-object",
            "class": name,
            "hash-code": number,
            "interfaces": [name, "java.lang.Object"],
            "fields": list(fields),
            "api": _api(methods),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--property", action="append", default=[])
    given = parser.parse_args()
    import pymmcore
    from mm_test_adapters import device_adapter_path

    core = pymmcore.CMMCore()
    folder = str(device_adapter_path())
    core.setDeviceAdapterSearchPaths([folder])
    core.loadSystemConfiguration(f"{folder}/MMConfig_demo.cfg")
    for pair in given.property:
        device, name, value = pair.split("=")
        core.setProperty(device, name, value)
    Server(core, given.log).serve(given.port)


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


class MicroManager:
    """The server as a process of its own, which can be killed, stopped, and started again.

    Parameters
    ----------
    properties : str
        ``device=property=value`` to set.
    log : Path, optional
        File that gets the pixels of every image that was handed out.
    """

    def __init__(self, *properties: str, log: Path | None = None) -> None:
        self.port = free_port()
        self._properties = properties
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, __file__, "--port", str(self.port)]
        command += [part for pair in self._properties for part in ("--property", pair)]
        if self._log is not None:
            command += ["--log", str(self._log)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._process = process
        assert process.stdout is not None
        began = time.monotonic()
        if process.stdout.readline().strip() != "ready":
            self.kill()
            # Not pytest's own: the program runs where only tem_live is installed.
            raise TimeoutError(f"no server within {time.monotonic() - began:.0f} s")

    def hang(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


if __name__ == "__main__":
    main()
