"""A Serval with one detector, which fails as a test demands.

``python -m tests.drivers.servers.serval`` serves 512 x 512 pixels on port 8080 for ten minutes.

Its addresses, words and stream are those of instamatic's and areaDetector's clients; no Serval was
there to compare it with. It shares no code with the driver.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt


def picture(number: int, shape: tuple[int, int], bits: int = 16) -> npt.NDArray[Any]:
    """What image ``number`` shows."""
    rows, columns = np.indices(shape)
    return ((1000 * number + 10 * rows + columns) % 2**bits).astype(f"uint{bits}")


def streamed(number: int, pixels: npt.NDArray[Any], **changes: Any) -> bytes:
    """An image as Serval sends it."""
    data = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    header = {
        "timeAtFrame": 1655990130.181 + number,
        "frameNumber": number,
        "measurementID": "None",
        "dataSize": len(data),
        "bitDepth": 8 * pixels.dtype.itemsize,
        "isPreviewSampled": True,
        "thresholdID": 0,
        "pixelEventNumber": 0,
        "tdc1EventNumber": 0,
        "tdc2EventNumber": 0,
        "integrationSize": 0,
        "integrationMode": "None",
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "corrections": [],
        **changes,
    }
    return json.dumps(header, indent=4).encode() + b"\n" + data


class ServalServer:
    """It listens on a free port; its attributes say how it fails."""

    def __init__(self, chips: int = 1, port: int = 0) -> None:
        self.shape = (256 * chips, 256 * chips)
        self.first = 0
        """Number of the first image."""
        self.config: dict[str, Any] = {
            "BiasVoltage": 100,
            "BiasEnabled": True,
            "TriggerMode": "CONTINUOUS",
            "ExposureTime": 0.5,
            "TriggerPeriod": 0.5,
            "nTriggers": 1,
        }
        self.destination: Any = {"Raw": [{"Base": "file:///data", "FilePattern": "run"}]}
        self.detector: dict[str, Any] | None = {"DetectorType": "Tpx3"}
        self.info: dict[str, Any] = {
            "PixCount": 65536 * chips**2, "RowLen": chips, "NumberOfRows": chips,
            "TimerMinVal": 1e-6, "TimerMaxVal": 100.0,
        }  # fmt: skip
        self.refused: dict[str, str] = {}
        """What is answered with 400, and the text, by path."""
        self.coerced: dict[str, Any] = {}
        """What fields of the configuration become, whatever was set."""
        self.mute = threading.Event()
        """While it is set, nothing is answered."""
        self.connects = True
        """Whether it connects to where the images shall go."""
        self.send: Callable[[int, bytes], bytes | None] = lambda _, message: message
        """What goes out for an image; None hangs up."""
        self.status = "DA_IDLE"
        self.line: socket.socket | None = None
        self._stopped = threading.Event()
        self._measuring: threading.Thread | None = None
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = False
        self.port = self._http.server_address[1]
        self._serving = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._ended = False

    def __enter__(self) -> ServalServer:
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
        if self._ended:
            return
        self._ended = True
        self.mute.clear()
        self.stop()
        self._http.shutdown()
        self._http.server_close()
        self._serving.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(*server._get(self.path))

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._reply(*server._put(self.path, json.loads(body)))

            def _reply(self, status: int, value: Any) -> None:
                while server.mute.is_set():
                    time.sleep(0.01)
                body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _get(self, path: str) -> tuple[int, Any]:
        if path in self.refused:
            return 400, self.refused[path]
        if path == "/measurement/start":
            self._start()
            return 200, "Measurement started."
        if path == "/measurement/stop":
            self.stop()
            return 200, "Measurement stopped."
        tables = {
            "/dashboard": {
                "Server": {"SoftwareVersion": "3.3.2"},
                "Measurement": {"Status": self.status, "FrameCount": 0},
                "Detector": self.detector,
            },
            "/detector/info": self.info,
            "/detector/config": self.config,
            "/server/destination": self.destination,
        }
        return (200, tables[path]) if path in tables else (404, f"no {path}")

    def _put(self, path: str, value: Any) -> tuple[int, Any]:
        if path in self.refused:
            return 400, self.refused[path]
        if path == "/detector/config":
            self.config = {**value, **self.coerced}
        elif path == "/server/destination":
            self.destination = value
        return 200, "Successfully uploaded."

    def _start(self) -> None:
        self.stop()
        self._stopped = threading.Event()
        self.status = "DA_RECORDING"
        if not self.connects:
            return
        (channel,) = self.destination["Image"]
        assert (channel["Format"], channel["Mode"]) == ("jsonimage", "count")
        host, _, port = channel["Base"].removeprefix("tcp://connect@").rpartition(":")
        self.line = socket.create_connection((host, int(port)))
        self._measuring = threading.Thread(target=self._measure, args=(self.line, self._stopped))
        self._measuring.start()

    def stop(self) -> None:
        """End the measurement."""
        self._stopped.set()
        if self.line is not None:
            with contextlib.suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)
        if self._measuring is not None:
            self._measuring.join()
        self.status = "DA_IDLE"

    def _measure(self, line: socket.socket, stopped: threading.Event) -> None:
        with contextlib.suppress(OSError), line:
            began = time.monotonic()
            for index in range(self.config["nTriggers"]):
                due = began + (index + 1) * self.config["TriggerPeriod"]
                if stopped.wait(max(0.0, due - time.monotonic())):
                    return
                number = self.first + index
                out = self.send(index, streamed(number, picture(number, self.shape)))
                if out is None:
                    return
                line.sendall(out)
            stopped.wait(5.0)


if __name__ == "__main__":
    with ServalServer(chips=2, port=8080):
        time.sleep(600)
