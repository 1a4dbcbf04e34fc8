"""Cameras of a Micro-Manager that is running, through pycromanager.

A process of its own talks to Micro-Manager (`pycromanager_child`), frames come over in shared
memory, and whatever hangs is killed (`pycromanager_link`): a server that dies or hangs ends a run
with an error, and never this program. Connecting again starts a new process.

``backend = "java"`` is Micro-Manager itself with "Run server on port" switched on;
``backend = "python"`` starts a core in the other process, which keeps an adapter that crashes out
of this one. Shutter and stage: `pycromanager_column`. pycromanager: https://pycro-manager.readthedocs.io/.
"""

from __future__ import annotations

import threading
import time
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.families import Family, Fields, listens
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    EndOfFrames,
    FrameMeta,
)
from tem_live.drivers.pycromanager_link import Link, Server, Slots
from tem_live.errors import (
    DeviceError,
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    OverflowedError,
    RefusedError,
)

_SLICE_S = 0.1
"""Longest single wait, so that a stop or a close is noticed."""
_PORT = 4827
"""Of Micro-Manager's server."""


def _answers(fields: Fields) -> bool:
    """Whether Micro-Manager's server says its version: anything may listen on its port."""
    if not listens(fields, port=_PORT):
        return False
    import zmq

    context = zmq.Context()
    try:
        line = context.socket(zmq.REQ)
        line.setsockopt(zmq.LINGER, 0)
        line.connect(f"tcp://127.0.0.1:{int(fields.get('port', _PORT))}")
        line.send_json({"command": "connect", "debug": False})
        return bool(line.poll(1000)) and b'"version"' in line.recv()
    finally:
        context.destroy(linger=0)


FAMILY = Family(
    "pycromanager",
    packages=("pycromanager",),
    reach=_answers,
    start="start Micro-Manager and switch on Tools > Options > Run server on port 4827",
    tested_against="MMCore's DemoCamera with pycromanager 1.0.2: its Python backend, its client of "
    "Java against a server of our own; never Micro-Manager's own server, no camera hardware",
)


class PycromanagerOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for pycromanager.

    Attributes
    ----------
    backend : {"java", "python"}
        A Micro-Manager that is running, or a core that is started for this.
    port : int
        Of the running Micro-Manager's server.
    camera : str or None
        Its label in Micro-Manager's configuration; None takes the current one.
    properties : dict
        Camera properties to set when it is opened, by Micro-Manager's names.
    take_over : bool
        End Live mode, or another program's sequence, when it is opened.
    reply_timeout_s : float
        How long Micro-Manager may take to answer, in seconds, besides the exposure. After that it
        counts as hung.
    micromanager_path, config_file : str or None
        For ``backend = "python"``: folder of the device adapters (None takes those of the package
        ``mm-test-adapters``) and configuration in it.
    buffer_MB : int
        For ``backend = "python"``: circular buffer of the core in megabytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["java", "python"] = "java"
    port: int = Field(default=_PORT, ge=1, le=65535)
    camera: str | None = None
    properties: dict[str, str | int | float] = Field(default_factory=dict)
    take_over: bool = False
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)
    micromanager_path: str | None = None
    config_file: str = "MMConfig_demo.cfg"
    buffer_MB: int = Field(default=256, ge=16, le=65536)


class _Bridge:
    """The one link of a camera and its column, made when the first of them wants it.

    Parameters
    ----------
    options : PycromanagerOptions
        What to connect to.
    """

    def __init__(self, options: PycromanagerOptions) -> None:
        self._options = options
        self._link: Link | None = None
        self._users: set[object] = set()
        self._lock = threading.Lock()

    def hold(self, user: object) -> Link:
        """The link, a new one where there was none or it was lost."""
        with self._lock:
            if self._link is not None and not self._link.alive:
                lost, self._link = self._link, None
                lost.close(0.0)
            if self._link is None:
                self._link = Link(self._server())
            self._users.add(user)
            return self._link

    def release(self, user: object, timeout_s: float) -> None:
        """End the link when nobody else holds it."""
        with self._lock:
            self._users.discard(user)
            link = self._link
            if self._users or link is None:
                return
            self._link = None
            link.close(timeout_s)

    @property
    def current(self) -> Link | None:
        """The link if there is one that was not lost; waits for nothing."""
        link = self._link
        return link if link is not None and link.alive else None

    def _server(self) -> Server:
        options = self._options
        path = options.micromanager_path
        if options.backend == "python" and path is None:
            try:
                from mm_test_adapters import device_adapter_path
            except ImportError:
                raise NotConnectedError(
                    "no device adapters: set camera.micromanager_path to Micro-Manager's folder, "
                    'or pip install "tem-live[mm]" for the demonstration ones'
                ) from None
            path = str(device_adapter_path())
        return Server(
            options.backend,
            options.port,
            path,
            options.config_file,
            options.buffer_MB,
            options.reply_timeout_s,
        )


class PycromanagerCamera:
    """See the module's text.

    Parameters
    ----------
    options : PycromanagerOptions
        Which Micro-Manager.
    """

    Options: ClassVar[type[BaseModel]] = PycromanagerOptions

    def __init__(self, options: PycromanagerOptions) -> None:
        self._options = options
        self.bridge = _Bridge(options)
        self._link: Link | None = None
        self._capabilities: CameraCapabilities | None = None
        self._state: CameraState | None = None
        self._slots: Slots | None = None
        self._run = 0
        self._end: int | None = None
        self._taken = 0
        self._running = False
        self._left_running = False
        self._halt = threading.Event()

    @property
    def reply_timeout_s(self) -> float:
        """How long Micro-Manager may take to answer, in seconds."""
        return self._options.reply_timeout_s

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera`."""
        self._opened()
        assert self._capabilities is not None
        return self._capabilities

    def open(self) -> None:
        """See `Camera`."""
        if self._link is not None:
            return
        options = self._options
        link = self.bridge.hold(self)
        try:
            found = link.ask(
                "open",
                options.reply_timeout_s,
                camera=options.camera,
                properties=options.properties,
                # What a bridge that was killed has left running is ours to end.
                take_over=options.take_over or self._left_running,
            )
        except DisconnectedError as error:
            self.bridge.release(self, options.reply_timeout_s)
            raise NotConnectedError(str(error)) from None
        except BaseException:
            self.bridge.release(self, options.reply_timeout_s)
            raise
        height, width = found["sensor"]
        low, high = found["exposure_range_s"]
        self._capabilities = CameraCapabilities(
            name=found["name"],
            sensor_shape=(height, width),
            dtype=np.dtype(found["dtype"]),
            exposure_range_s=(low, high),
            binnings=tuple(found["binnings"]),
            has_roi=True,
        )
        self._left_running = False
        self._halt.clear()
        self._link = link

    def close(self) -> None:
        """See `Camera`."""
        self._halt.set()
        link, self._link = self._link, None
        if link is not None:
            patience_s = self._patience_s()
            if link.alive and self._running:
                self._ask_to_stop(link)
            if self._running and not link.alive:
                self._left_running = True
            self.bridge.release(self, patience_s)
        self._running = False
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.remove()

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera`."""
        link = self._opened()
        roi = check_settings(settings, self.capabilities)
        found = link.ask(
            "configure",
            self._options.reply_timeout_s,
            exposure_s=settings.exposure_s,
            binning=settings.binning,
            roi=roi,
        )
        top, left, rows, columns = found["roi"]
        height, width = found["shape"]
        self._state = CameraState(
            exposure_s=found["exposure_s"],
            binning=found["binning"],
            roi=(top, left, rows, columns),
            frame_shape=(height, width),
            dtype=np.dtype(found["dtype"]),
            frame_interval_s=found["exposure_s"],
            pixel_size_nm=found["pixel_size_nm"],
            saturation_counts=float(2 ** found["bit_depth"] - 1),
        )
        return self._state

    def start(self, frames: int | None = None) -> None:
        """See `Camera`."""
        link = self._opened()
        state = self._state
        if state is None:
            raise RefusedError("the camera was never configured; configure it before the start")
        if self._slots is None or not self._slots.fits(state.frame_shape, state.dtype):
            if self._slots is not None:
                self._slots.remove()
            self._slots = Slots(state.frame_shape, state.dtype)
        self._run = link.new_run()
        link.ask(
            "start",
            self._options.reply_timeout_s,
            run=self._run,
            frames=frames,
            memory=self._slots.name,
            slots=self._slots.count,
            shape=state.frame_shape,
            dtype=state.dtype.name,
        )
        self._end = frames
        self._taken = 0
        self._halt.clear()
        self._running = True

    def stop(self) -> None:
        """See `Camera`."""
        self._halt.set()
        link = self._link
        if self._running and link is not None and link.alive:
            self._ask_to_stop(link)
            self._running = False

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera`."""
        link, state, slots = self._opened(), self._state, self._slots
        if not self._running or state is None or slots is None:
            raise DisconnectedError("the camera is stopped; start it first")
        check_buffer(buffer, state.frame_shape, state.dtype)
        if self._taken == self._end:
            raise EndOfFrames
        told = self._await_frame(link, timeout_s)
        slots.read(told["slot"], buffer)
        link.free(told["slot"])
        tags = told["tags"]
        sequence = _whole(tags.get("ImageNumber", self._taken))
        self._taken += 1
        elapsed = tags.get("ElapsedTime-ms")
        return FrameMeta(
            sequence=sequence,
            host_time_s=told["time"],
            exposure_s=state.exposure_s,
            device_time_s=None if elapsed is None else float(elapsed) / 1e3,
            raw=tags,
        )

    # --------------------------------------------------------------------------------- internals

    def _opened(self) -> Link:
        link = self._link
        if link is None:
            raise NotConnectedError("the Micro-Manager camera is closed; open it first")
        return link

    def _patience_s(self) -> float:
        """Ending a sequence may take as long as an exposure."""
        exposure_s = self._state.exposure_s if self._state is not None else 0.0
        return self._options.reply_timeout_s + exposure_s

    def _ask_to_stop(self, link: Link) -> None:
        try:
            link.ask("stop", self._patience_s())
        # It was killed: no more frames come of it, and the next opening ends the sequence.
        except DeviceError:
            self._left_running = True

    def _await_frame(self, link: Link, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            if self._halt.is_set():
                raise DisconnectedError("the Micro-Manager camera was stopped")
            left_s = deadline - time.monotonic()
            try:
                told = link.next_frame(min(max(left_s, 0.0), _SLICE_S))
            except DisconnectedError:
                # A close ends the process, too.
                if self._halt.is_set():
                    raise DisconnectedError("the Micro-Manager camera was stopped") from None
                self._left_running = True
                raise
            if told is not None and told["run"] == self._run:
                if "slot" in told:
                    return told
                if told["ended"] == "overflow":
                    raise OverflowedError(f"{told['text']}; raise its buffer or the exposure")
                raise DisconnectedError(told["text"])
            if told is None and left_s <= 0:
                raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")


def _whole(told: object) -> int:
    try:
        return int(str(told))
    except ValueError:
        raise DisconnectedError(
            f"Micro-Manager sent an image with the number {str(told)[:40]!r}; reconnect"
        ) from None
