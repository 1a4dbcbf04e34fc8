"""A small DECTRIS detector to break: SIMPLON over HTTP, images over ZeroMQ, in both formats.

What the driver makes of a sound stream is proven against LiberTEM-live's simulator; this one is for
what that cannot do: take settings, refuse, be in use, fall silent, send nonsense, and speak CBOR.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import zmq

Parts = list[bytes]
API = "1.8.0"


def bslz4(pixels: npt.NDArray[Any], block: int = 8192) -> bytes:
    """As HDF5's bitshuffle filter frames it."""
    raw, element = pixels.tobytes(), pixels.dtype.itemsize
    out = [struct.pack(">QI", len(raw), block)]
    last = len(raw) % block // (8 * element) * 8 * element
    at = 0
    for size in [block] * (len(raw) // block) + ([last] if last else []):
        shuffled = imagecodecs.bitshuffle_encode(raw[at : at + size], itemsize=element)
        packed = bytes(imagecodecs.lz4_encode(shuffled))
        out += [struct.pack(">I", len(packed)), packed]
        at += size
    return b"".join([*out, raw[at:]])


def picture(number: int, shape: tuple[int, int], dtype: str = "uint16") -> npt.NDArray[Any]:
    """What image ``number`` shows."""
    rows, columns = np.indices(shape)
    return (1000 * number + 10 * rows + columns).astype(dtype)


def legacy_start(series: int) -> Parts:
    head = {"htype": "dheader-1.0", "series": series, "header_detail": "basic"}
    return [json.dumps(head).encode(), json.dumps({"nimages": 1}).encode()]


def legacy_end(series: int) -> Parts:
    return [json.dumps({"htype": "dseries_end-1.0", "series": series}).encode()]


def legacy_image(
    series: int,
    number: int,
    pixels: npt.NDArray[Any],
    compression: str = "bslz4",
    exposure_s: float = 0.01,
) -> Parts:
    raw, bits = pixels.tobytes(), 8 * pixels.dtype.itemsize
    data, encoding = {
        "none": lambda: (raw, "<"),
        "lz4": lambda: (bytes(imagecodecs.lz4_encode(raw)), "lz4<"),
        "bslz4": lambda: (bslz4(pixels), f"bs{bits}-lz4<"),
    }[compression]()
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    ns = round(1e9 * exposure_s)
    tables: list[dict[str, Any]] = [
        {"htype": "dimage-1.0", "series": series, "frame": number, "hash": digest},
        {
            "htype": "dimage_d-1.0",
            "shape": list(pixels.shape[::-1]),
            "type": pixels.dtype.name,
            "encoding": encoding,
            "size": len(data),
        },
        {
            "htype": "dconfig-1.0",
            "start_time": number * ns,
            "stop_time": (number + 1) * ns,
            "real_time": ns,
        },
    ]
    head, description, times = (json.dumps(table).encode() for table in tables)
    return [head, description, data, times]


def cbor_image(
    series: int,
    number: int,
    pixels: npt.NDArray[Any],
    compression: str = "bslz4",
    exposure_s: float = 0.01,
) -> Parts:
    import cbor2

    content: Any = pixels.tobytes()
    if compression == "bslz4":
        content = cbor2.CBORTag(56500, ["bslz4", pixels.dtype.itemsize, bslz4(pixels)])
    elif compression == "lz4":
        packed = bytes(imagecodecs.lz4h5_encode(pixels.tobytes()))
        content = cbor2.CBORTag(56500, ["lz4", 0, packed])
    typed = cbor2.CBORTag({1: 64, 2: 69, 4: 70}[pixels.dtype.itemsize], content)
    image = {
        "type": "image",
        "series_id": series,
        "image_id": number,
        "real_time": [round(5e7 * exposure_s), 50_000_000],
        "start_time": [round(5e7 * exposure_s * number), 50_000_000],
        "data": {"threshold_1": cbor2.CBORTag(40, [list(pixels.shape), typed])},
    }
    return [cbor2.dumps(image)]


def cbor_mark(kind: str, series: int) -> Parts:
    import cbor2

    return [cbor2.dumps({"type": kind, "series_id": series})]


class DectrisServer:
    """A detector on two ports, free ones unless given; its attributes say how it fails."""

    def __init__(self, shape: tuple[int, int] = (18, 28), ports: tuple[int, int] = (0, 0)) -> None:
        self.shape = shape
        self.parameters: dict[str, Any] = {
            "detector/config/description": "DECTRIS SINGLA",
            "detector/config/x_pixels_in_detector": shape[1],
            "detector/config/y_pixels_in_detector": shape[0],
            "detector/config/bit_depth_image": 16,
            "detector/config/count_time": 0.01,
            "detector/config/frame_time": 0.01,
            "detector/config/nimages": 1,
            "detector/config/ntrigger": 1,
            "detector/config/trigger_mode": "ints",
            "detector/config/compression": "bslz4",
            "detector/config/countrate_correction_count_cutoff": 12000,
            "detector/status/state": "idle",
            "stream/config/mode": "disabled",
            "stream/config/header_detail": "all",
            "stream/config/format": "legacy",
        }
        self.limits: dict[str, dict[str, Any]] = {
            "detector/config/count_time": {"min": 1e-6, "max": 3600.0},
            "detector/config/nimages": {"min": 1, "max": 2_000_000_000},
        }
        self.commands: list[str] = []
        """In the order in which they came."""
        self.refused: set[str] = set()
        """Parameters and commands that are answered with 400."""
        self.coerced: dict[str, Any] = {}
        """What parameters become, whatever was set."""
        self.mute = threading.Event()
        """While it is set, nothing is answered."""
        self.armed_in_silence = False
        """The start of a series is not sent."""
        self.send: Callable[[int, Parts], list[Parts]] = lambda _, parts: [parts]
        """What goes out for an image."""
        self.series = 40
        self._quit = threading.Event()
        self._stopped = threading.Event()
        self._signal = threading.Event()
        self._acquiring: threading.Thread | None = None
        self._lock = threading.Lock()
        self._context = zmq.Context()
        self._stream = self._context.socket(zmq.PUSH)
        self._stream.linger = 0
        self._stream.bind(f"tcp://127.0.0.1:{ports[1] or '*'}")
        address = self._stream.getsockopt_string(zmq.LAST_ENDPOINT)
        self.stream_port = int(address.rsplit(":", 1)[1])
        self._http = ThreadingHTTPServer(("127.0.0.1", ports[0]), self._handler())
        self._http.daemon_threads = False
        self.port = self._http.server_address[1]
        self._serving = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> DectrisServer:
        self._serving.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Die: every connection breaks."""
        if self._quit.is_set():
            return
        self._quit.set()
        self.mute.clear()
        self._stop()
        self._http.shutdown()
        self._http.server_close()
        self._serving.join()
        self._stream.close()
        self._context.term()

    def signal(self) -> None:
        """The external trigger."""
        self._signal.set()

    def put(self, parts: Parts) -> bool:
        """Send a message; False where nobody takes it before the series is stopped."""
        with self._lock:
            while not self._stopped.is_set() and not self._quit.is_set():
                if self._stream.poll(20, zmq.POLLOUT):
                    self._stream.send_multipart(parts)
                    return True
        return False

    # ------------------------------------------------------------------------------------- SIMPLON

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(*server._get(self.path))

            def do_PUT(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                self._reply(*server._put(self.path, json.loads(body)["value"] if body else None))

            def _reply(self, status: int, value: Any) -> None:
                while server.mute.is_set():
                    time.sleep(0.01)
                body = b"" if value is None else json.dumps(value).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json; charset=utf-8")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _get(self, path: str) -> tuple[int, Any]:
        if path == "/detector/api/version/":
            return 200, {"value": API, "value_type": "string"}
        name = path.lstrip("/").replace(f"api/{API}/", "")
        if name not in self.parameters:
            return 404, {"error": f"no {name}"}
        return 200, {"value": self.parameters[name], **self.limits.get(name, {})}

    def _put(self, path: str, value: Any) -> tuple[int, Any]:
        name = path.lstrip("/").replace(f"api/{API}/", "")
        if name in self.refused:
            return 400, {"error": f"{name} is not possible"}
        if not name.startswith("detector/command/"):
            if name not in self.parameters:
                return 404, {"error": f"no {name}"}
            self.parameters[name] = self.coerced.get(name, value)
            return 200, [name]
        return 200, self._obey(name.rsplit("/", 1)[1])

    def _obey(self, command: str) -> Any:
        self.commands.append(command)
        if command == "arm":
            self._stop()
            self.series += 1
            self._stopped.clear()
            self._signal.clear()
            self.parameters["detector/status/state"] = "ready"
            if not self.armed_in_silence:
                self.put(self._start_of_series())
            self._acquiring = threading.Thread(target=self._acquire)
            self._acquiring.start()
            return {"sequence id": self.series}
        if command == "trigger":
            self._signal.set()
            # Answered when the last image is taken.
            self._stopped.wait()
            return {}
        self._stop()
        return {"sequence id": self.series}

    def _stop(self) -> None:
        self._stopped.set()
        self._signal.set()
        if self._acquiring is not None:
            self._acquiring.join()
        self.parameters["detector/status/state"] = "idle"

    # --------------------------------------------------------------------------------- the stream

    @property
    def _is_cbor(self) -> bool:
        return bool(self.parameters["stream/config/format"] == "cbor")

    def _start_of_series(self) -> Parts:
        return cbor_mark("start", self.series) if self._is_cbor else legacy_start(self.series)

    def _acquire(self) -> None:
        self._signal.wait()
        if self._stopped.is_set():
            return
        config = {key.rsplit("/", 1)[1]: value for key, value in self.parameters.items()}
        make = cbor_image if self._is_cbor else legacy_image
        dtype = f"uint{config['bit_depth_image']}"
        began = time.monotonic()
        for number in range(config["nimages"] * config["ntrigger"]):
            due = began + (number + 1) * config["frame_time"]
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return
            pixels = picture(number, self.shape, dtype)
            image = make(self.series, number, pixels, config["compression"], config["count_time"])
            for parts in self.send(number, image):
                if not self.put(parts):
                    return
        self.put(cbor_mark("end", self.series) if self._is_cbor else legacy_end(self.series))
        self._stopped.set()
