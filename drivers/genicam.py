"""GenICam cameras: whatever obeys the Standard Features Naming Convention (SFNC 2.x).

Two routes lead to them, see `genicam_link`. What is set and read back: ExposureTime (microseconds),
AcquisitionFrameRate, BinningHorizontal and -Vertical, OffsetX, OffsetY, Width and Height (in binned
pixels), PixelFormat, Gain, TriggerMode and what switches their automatics off. A camera without
ExposureTime runs frame on frame at its AcquisitionFrameRate, whose inverse is its exposure here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.families import Family
from tem_live.drivers.genicam_link import FORMATS, Block, Link, Numbers, Value
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    EndOfFrames,
    FrameMeta,
    Roi,
)
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)


def _answers(fields: Mapping[str, Any]) -> bool:
    """Whether the camera of a profile, or any GigE Vision camera, is found; none is opened."""
    from tem_live.drivers import genicam_gentl, genicam_viva

    options = GenICamOptions.model_validate(dict(fields))
    if options.route == "gentl":
        with contextlib.suppress(NotConnectedError):
            if genicam_gentl.is_found(options.producer, options.device):
                return True
    route: Literal["gige", "usb3"] = "usb3" if options.route == "usb3" else "gige"
    return genicam_viva.is_found(route, options.device, options.interface)


FAMILY = Family(
    "genicam",
    packages=("harvesters", "viva_genicam"),
    install='pip install "tem-live[genicam]"',
    reach=_answers,
    start="switch the camera on and set camera.route, camera.producer and camera.device in a "
    "profile 'genicam' of your own",
    tested_against="EMVA's GenTL producer viky and viva-genicam 0.10's GigE Vision camera; no "
    "camera hardware",
)

_SLICE_S = 0.1
"""Longest single wait for an image, so that a stop or a close is noticed."""
_PROBE_AFTER_S = 1.0
"""Silence, past the next frame's time, after which a camera is asked for a sign of life."""
_EXPOSURES = ("ExposureTime", "ExposureTimeAbs")
"""In microseconds; the second is the name before SFNC 2.0."""
_RATE = "AcquisitionFrameRate"
_RATE_SWITCHES = ("AcquisitionFrameRateEnable", "AcquisitionFrameRateEnabled")
_AXES = (("OffsetY", "Height", "BinningVertical"), ("OffsetX", "Width", "BinningHorizontal"))
_MOST_BINNINGS = 64


class GenICamOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for a GenICam camera.

    Attributes
    ----------
    route : {"gentl", "gige", "usb3"}
        Through the GenTL producer of the camera's maker, or GigE Vision or USB3 Vision without it.
    producer : str
        The producer's .cti file (gentl); "" for those that GENICAM_GENTL64_PATH names.
    device : str
        Identifier, serial number, address or model of the camera; "" for the only one.
    interface : str
        Address or name of this computer's network interface (gige); "" for all.
    packet_bytes : int or None
        Size of the packets (gige) to set; None leaves it.
    buffer_frames : int
        Images that can be held while none is fetched.
    pixel_format : str
        PFNC name, such as Mono16; "" keeps what is set, or takes the deepest monochrome one.
    gain : float or None
        Gain to set, in the camera's own unit (dB by the SFNC); None leaves it.
    trigger : {"internal", "external"}
        Frame on frame, or one frame for each signal at ``trigger_source``.
    trigger_source : str
        TriggerSource of an external trigger.
    reply_timeout_s : float
        How long an image may be overdue, in seconds.
    properties : dict
        Features to set when it is opened, by their names, in this order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: Literal["gentl", "gige", "usb3"] = "gentl"
    producer: str = ""
    device: str = ""
    interface: str = ""
    packet_bytes: int | None = Field(default=None, ge=576, le=65535)
    buffer_frames: int = Field(default=16, ge=3, le=1024)
    pixel_format: str = ""
    gain: float | None = Field(default=None, allow_inf_nan=False)
    trigger: Literal["internal", "external"] = "internal"
    trigger_source: str = "Line0"
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)
    properties: dict[str, bool | int | float | str] = Field(default_factory=dict)


class GenICamCamera:
    """See the module's text.

    Parameters
    ----------
    options : GenICamOptions
        Which camera.
    """

    Options: ClassVar[type[BaseModel]] = GenICamOptions

    def __init__(self, options: GenICamOptions) -> None:
        self._options = options
        self._link: Link | None = None
        self._capabilities: CameraCapabilities | None = None
        self._exposure = ""
        self._state: CameraState | None = None
        self._format = ""
        self._gain: float | None = None
        self._numbers = Numbers()
        self._end: int | None = None
        self._taken = 0
        self._heard = self._probed = 0.0
        self._running = False
        self._halt = threading.Event()
        # A link is for one thread at a time.
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------- as a camera

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera`."""
        self._connected()
        if self._capabilities is None:
            raise NotConnectedError("the camera is closed; open it first")
        return self._capabilities

    def open(self) -> None:
        """See `Camera`."""
        if self._link is not None:
            return
        self._halt.clear()
        self._link = self._connect()
        try:
            self._prepare(self._link)
            self._capabilities = self._read_capabilities(self._link)
        except DisconnectedError as error:
            self.close()
            raise NotConnectedError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `Camera`."""
        self.stop()
        with self._lock:
            link, self._link = self._link, None
            self._capabilities = self._state = None
            if link is not None:
                link.close()

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera`."""
        with self._lock:
            link = self._connected()
            link.check()
            roi = check_settings(settings, self.capabilities)
            with _undone_if_refused(link, self._settable(link)) as put:
                self._put_region(link, put, roi, settings.binning)
                self._put_times(link, put, settings.exposure_s)
            self._state = self._read_state(link)
            return self._state

    def start(self, frames: int | None = None) -> None:
        """See `Camera`."""
        with self._lock:
            link = self._connected()
            if self._state is None:
                raise RefusedError("the camera is not configured; configure it first")
            link.stop()
            link.check()
            self._halt.clear()
            self._numbers = Numbers()
            self._end, self._taken = frames, 0
            link.start()
            self._heard = time.monotonic()
            self._running = True

    def stop(self) -> None:
        """See `Camera`."""
        self._halt.set()
        with self._lock:
            if self._running and self._link is not None:
                self._link.stop()
            self._running = False

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera`."""
        self._connected()
        state = self._state
        if not self._running or state is None:
            raise DisconnectedError("the camera is stopped; start it first")
        check_buffer(buffer, state.frame_shape, state.dtype)
        if self._taken == self._end:
            raise EndOfFrames
        deadline = time.monotonic() + timeout_s
        while True:
            meta = self._next(buffer, state, max(0.0, deadline - time.monotonic()))
            if meta is not None:
                return meta
            self._check_silence(state)
            if time.monotonic() >= deadline:
                raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")

    # ---------------------------------------------------------------------------------- the images

    def _next(
        self, buffer: npt.NDArray[Any], state: CameraState, wait_s: float
    ) -> FrameMeta | None:
        with self._lock:
            if self._halt.is_set() or self._link is None:
                raise DisconnectedError("the camera was stopped")
            self._link.check()
            block = self._link.fetch(min(wait_s, _SLICE_S))
            if block is None:
                return None
            self._heard = time.monotonic()
            self._check_block(block, state)
            number = self._numbers.frame(block.number)
            # The link may use the pixels' memory for the next image.
            np.copyto(buffer, block.pixels)
        self._taken += 1
        gain = {} if self._gain is None else {"gain": self._gain}
        return FrameMeta(
            sequence=number,
            host_time_s=time.time(),
            exposure_s=state.exposure_s,
            device_time_s=block.device_time_s,
            raw={"pixel_format": block.pixel_format, **gain, **block.raw},
        )

    def _check_block(self, block: Block, state: CameraState) -> None:
        fits = block.pixels.shape == state.frame_shape and block.pixels.dtype == state.dtype
        if not fits or block.pixel_format != self._format:
            rows, columns = block.pixels.shape
            raise DisconnectedError(
                f"the camera sends {block.pixel_format} {rows}x{columns} where {self._format} "
                f"{state.frame_shape[0]}x{state.frame_shape[1]} was set; was it changed by "
                "another program?"
            )

    def _check_silence(self, state: CameraState) -> None:
        # Nobody knows when the next signal comes.
        overdue_s = 0.0 if self._options.trigger == "external" else state.frame_interval_s
        now = time.monotonic()
        silent_s = now - self._heard
        if min(silent_s - overdue_s, now - self._probed) > _PROBE_AFTER_S:
            with self._lock:
                if self._link is not None:
                    self._link.probe()
            self._probed = time.monotonic()
        if (
            self._options.trigger != "external"
            and silent_s > state.frame_interval_s + self._options.reply_timeout_s
        ):
            raise DisconnectedError(
                f"the camera sends no images for {silent_s:.1f} s; switch it on, look for lost "
                "packets (packet size, firewall), and reconnect"
            )

    # -------------------------------------------------------------------------------- the features

    def _connected(self) -> Link:
        link = self._link
        if link is None:
            raise NotConnectedError("the camera is closed; open it first")
        return link

    def _connect(self) -> Link:
        options = self._options
        if options.route == "gentl":
            from tem_live.drivers.genicam_gentl import GenTL

            return GenTL(options.producer, options.device, options.buffer_frames)
        from tem_live.drivers.genicam_viva import Viva

        return Viva(
            options.route,
            options.device,
            options.interface,
            options.packet_bytes,
            options.buffer_frames,
        )

    def _prepare(self, link: Link) -> None:
        """What has to be so whatever is configured later."""
        options = self._options
        for name, value in options.properties.items():
            link.set(name, value)
        self._exposure = next((name for name in _EXPOSURES if link.has(name)), "")
        for name, value in (
            ("AcquisitionMode", "Continuous"),
            ("ExposureAuto", "Off"),
            ("ExposureMode", "Timed"),
            ("GainAuto", "Off"),
            ("BinningHorizontalMode", "Sum"),
            ("BinningVerticalMode", "Sum"),
        ):
            if link.writable(name) and value in link.entries(name) and link.get(name) != value:
                link.set(name, value)
        self._choose_component(link)
        self._choose_format(link)
        if options.gain is not None:
            link.set("Gain", options.gain)
        self._choose_trigger(link)

    def _choose_component(self, link: Link) -> None:
        # A camera that also measures distances or the like would send those with each image.
        if not link.writable("ComponentSelector"):
            return
        components = link.entries("ComponentSelector")
        if "Intensity" not in components:
            return
        for component in sorted(components, key=lambda name: name == "Intensity"):
            link.set("ComponentSelector", component)
            if link.writable("ComponentEnable"):
                link.set("ComponentEnable", component == "Intensity")

    def _choose_format(self, link: Link) -> None:
        wanted, current = self._options.pixel_format, str(link.get("PixelFormat"))
        if wanted and wanted not in FORMATS:
            raise RefusedError(
                f"the pixel format {wanted} is not read here; set camera.pixel_format to one of "
                f"{', '.join(FORMATS)}"
            )
        if not wanted and current in FORMATS:
            return
        offered = link.entries("PixelFormat")
        chosen = wanted or next((name for name in FORMATS if name in offered), "")
        if chosen not in offered:
            raise RefusedError(
                f"the camera has no pixel format {chosen or 'that is monochrome'}; it has "
                f"{', '.join(offered)}"
            )
        if chosen != current:
            link.set("PixelFormat", chosen)

    def _choose_trigger(self, link: Link) -> None:
        external = self._options.trigger == "external"
        if not link.has("TriggerMode"):
            if external:
                raise RefusedError("the camera has no trigger; set camera.trigger = 'internal'")
            return
        if link.writable("TriggerSelector") and "FrameStart" in link.entries("TriggerSelector"):
            link.set("TriggerSelector", "FrameStart")
        if external:
            source, sources = self._options.trigger_source, link.entries("TriggerSource")
            if source not in sources:
                raise RefusedError(
                    f"the camera has no trigger source {source}; set camera.trigger_source to one "
                    f"of {', '.join(sources)}"
                )
            link.set("TriggerSource", source)
        if link.writable("TriggerMode"):
            link.set("TriggerMode", "On" if external else "Off")

    def _read_capabilities(self, link: Link) -> CameraCapabilities:
        binnings = _binnings(link)
        has_offsets = all(link.writable(offset) for offset, _, _ in _AXES)
        if has_offsets:
            # What a size may be depends on them.
            for name, value in (("OffsetX", 0), ("OffsetY", 0)):
                link.set(name, value)
        if len(binnings) > 1:
            for _, _, name in _AXES:
                link.set(name, 1)
        height, width = (self._whole(link, size) for _, size, _ in _AXES)
        self._format = str(link.get("PixelFormat"))
        if self._exposure:
            low, high, _ = link.limits(self._exposure)
            range_s = (low / 1e6, high / 1e6)
        elif link.writable(_RATE):
            self._switch_rate(link)
            low, high, _ = link.limits(_RATE)
            range_s = (1 / high, 1 / max(low, 1e-4))
        else:
            range_s = (0.0, 0.0)
        return CameraCapabilities(
            name=link.name,
            sensor_shape=(height, width),
            dtype=_dtype(self._format),
            exposure_range_s=range_s,
            binnings=binnings,
            has_roi=has_offsets and all(link.writable(size) for _, size, _ in _AXES),
            has_exposure=range_s[1] > 0,
        )

    def _whole(self, link: Link, size: str) -> int:
        """Pixels of the unbinned sensor along an axis."""
        for name in (f"Sensor{size}", f"{size}Max"):
            if link.has(name):
                return int(link.get(name))
        if link.writable(size):
            return int(link.limits(size)[1])
        return int(link.get(size))

    def _switch_rate(self, link: Link) -> None:
        for name in _RATE_SWITCHES:
            if link.writable(name):
                link.set(name, True)

    def _settable(self, link: Link) -> list[str]:
        names = [name for offset, size, binning in _AXES for name in (binning, size, offset)]
        return [name for name in (*names, self._exposure, _RATE) if name and link.writable(name)]

    def _put_region(self, link: Link, put: _Put, roi: Roi, binning: int) -> None:
        for start, extent, (offset, size, bins) in zip(roi[:2], roi[2:], _AXES, strict=True):
            if offset in put.names:
                put(offset, 0)
            if bins in put.names:
                put(bins, binning)
            if size in put.names:
                low, _, step = link.limits(size)
                put(size, _on_grid(extent // binning, low, step))
            if offset in put.names:
                low, _, step = link.limits(offset)
                put(offset, _on_grid(start // binning, low, step))

    def _put_times(self, link: Link, put: _Put, exposure_s: float) -> None:
        if self._exposure:
            put(self._exposure, 1e6 * exposure_s)
        if _RATE in put.names:
            # Frame on frame, as fast as the camera allows with this exposure.
            low, high, _ = link.limits(_RATE)
            put(_RATE, min(max(1 / exposure_s, low), high))

    def _read_state(self, link: Link) -> CameraState:
        top, rows, bins = (_integer(link, *pair) for pair in zip(_AXES[0], (0, 0, 1), strict=True))
        left, columns = (_integer(link, name, 0) for name in _AXES[1][:2])
        rate = float(link.get(_RATE)) if link.has(_RATE) else 0.0
        exposure_s = float(link.get(self._exposure)) / 1e6 if self._exposure else 0.0
        self._format = str(link.get("PixelFormat"))
        self._gain = float(link.get("Gain")) if link.has("Gain") else None
        interval_s = max(exposure_s, 1 / rate if rate > 0 else 0.0)
        return CameraState(
            exposure_s=exposure_s or interval_s,
            binning=bins,
            roi=(top * bins, left * bins, rows * bins, columns * bins),
            frame_shape=(rows, columns),
            dtype=_dtype(self._format),
            frame_interval_s=interval_s,
            saturation_counts=float(2 ** FORMATS[self._format] - 1),
        )


class _Put:
    """Sets features one after another, and knows how to go back."""

    def __init__(self, link: Link, names: list[str]) -> None:
        self.names = frozenset(names)
        self._link = link
        self._before = [(name, link.get(name)) for name in names]

    def __call__(self, name: str, value: Value) -> None:
        self._link.set(name, value)

    def back(self) -> None:
        offsets = [name for name, _, _ in _AXES if name in self.names]
        for name, value in [*((name, 0) for name in offsets), *self._before]:
            with contextlib.suppress(RefusedError, DisconnectedError):
                self._link.set(name, value)


@contextlib.contextmanager
def _undone_if_refused(link: Link, names: list[str]) -> Iterator[_Put]:
    put = _Put(link, names)
    try:
        yield put
    except RefusedError:
        put.back()
        raise


def _binnings(link: Link) -> tuple[int, ...]:
    names = [name for _, _, name in _AXES]
    if not all(link.writable(name) for name in names):
        return (1,)
    for name in ("BinningHorizontalMode", "BinningVerticalMode"):
        # Binning sums here; a camera that averages is not asked to bin.
        if link.has(name) and link.get(name) != "Sum":
            return (1,)
    spans = [link.limits(name) for name in names]
    low, high = max(span[0] for span in spans), min(span[1] for span in spans)
    step = max(1, *(int(span[2]) for span in spans))
    found = range(int(low), min(int(high), _MOST_BINNINGS) + 1, step)
    return tuple(sorted({1, *found}))


def _integer(link: Link, name: str, missing: int) -> int:
    return int(link.get(name)) if link.has(name) else missing


def _dtype(pixel_format: str) -> np.dtype[Any]:
    if pixel_format not in FORMATS:
        raise RefusedError(
            f"the camera's pixel format {pixel_format} is not read here; set camera.pixel_format"
        )
    return np.dtype(np.uint8 if FORMATS[pixel_format] == 8 else np.uint16)


def _on_grid(value: int, low: float, step: float) -> int:
    """The highest value that is not above and on the camera's grid; what is too low is left."""
    step_px = max(1, int(step))
    return value if value < low else int(low) + (value - int(low)) // step_px * step_px
