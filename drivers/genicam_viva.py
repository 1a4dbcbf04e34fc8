"""A GigE Vision or USB3 Vision camera without a vendor's software, with the library viva-genicam.

Library: https://github.com/VitalyVorobyev/viva-genicam.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from tem_live.drivers.genicam_link import Block, Value, plane
from tem_live.errors import DisconnectedError, NotConnectedError, RefusedError

_DISCOVERY_MS = (100, 1000)
"""How long cameras may take to answer: most do at once."""
_LIFE_MS = (100, 300)
"""How long a camera may take for a sign of life; asking for a feature could take 8 s."""
_ASK_AFTER_S = 2.0
"""A camera that has been silent for so long is asked for a sign of life before anything else."""
_TAKE_MS = 100
"""Longest single wait for an image, so that a stop is noticed."""
_TICKS = "GevTimestampTickFrequency"


class Viva:
    """See the module's text; an open connection.

    Parameters
    ----------
    transport : {"gige", "usb3"}
        How the camera is connected.
    device : str
        Address, MAC address, serial number or model of the camera; "" for the only one.
    interface : str
        Address or name of this computer's network interface; "" for all of them.
    packet_bytes : int or None
        Size of the packets of GigE Vision to set; None leaves it.
    buffers : int
        Images that are kept while nobody fetches them.
    """

    def __init__(
        self,
        transport: Literal["gige", "usb3"],
        device: str,
        interface: str,
        packet_bytes: int | None,
        buffers: int,
    ) -> None:
        try:
            import viva_genicam
        except ImportError:
            raise NotConnectedError(
                'GenICam needs viva-genicam: pip install "tem-live[genicam]"'
            ) from None
        self._library: Any = viva_genicam
        self._packet_bytes = packet_bytes
        self._interface = interface or None
        self._camera: Any = None
        self._stream: Any = None
        self._images = _Images(buffers)
        self._gone_for_good = False
        self._heard = time.monotonic()
        self._name = f"the camera {device}".strip()
        self._found = self._look(transport, device)
        self._camera = self._open(self._found, transport)
        try:
            words = (self._text("DeviceVendorName"), self._text("DeviceModelName"))
            self._name = " ".join(words).strip() or self._name
            self._ticks_per_s = float(self.get(_TICKS)) if self.has(_TICKS) else 0.0
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """See `Link`."""
        return self._name

    def has(self, feature: str) -> bool:
        """See `Link`."""
        try:
            state = self._state(feature)
        except RefusedError:
            return False
        return bool(state.is_implemented and state.is_available)

    def writable(self, feature: str) -> bool:
        """See `Link`."""
        try:
            state = self._state(feature)
        except RefusedError:
            return False
        return bool(state.is_available and state.access in ("RW", "WO"))

    def get(self, feature: str) -> Value:
        """See `Link`."""
        self._asked(feature, lambda camera: camera.invalidate(feature))
        value: Value = self._state(feature).value
        return value

    def set(self, feature: str, value: Value) -> None:
        """See `Link`."""
        text = str(value).lower() if isinstance(value, bool) else str(value)
        self._asked(f"{feature} = {value!r}", lambda camera: camera.set(feature, text))

    def limits(self, feature: str) -> tuple[float, float, float]:
        """See `Link`."""
        span = self._state(feature).range
        if span is None:
            raise RefusedError(f"the camera tells no range of {feature}")
        return float(span.min), float(span.max), float(span.inc or 0.0)

    def entries(self, feature: str) -> list[str]:
        """See `Link`."""
        found: list[str] = self._asked(feature, lambda c: c.available_enum_entries(feature))
        return found

    def start(self) -> None:
        """See `Link`."""
        self._stream = self._asked(
            "a stream",
            lambda camera: camera.stream(iface=self._interface, packet_size=self._packet_bytes),
        )
        self._images.begin(self._stream)
        self._asked("AcquisitionStart", lambda camera: camera.acquisition_start())

    def stop(self) -> None:
        """See `Link`."""
        stream, self._stream = self._stream, None
        self._images.end()
        if stream is not None:
            # A camera that is gone would be waited for.
            if not self._gone_for_good:
                with contextlib.suppress(self._library.GenicamError):
                    self._camera.acquisition_stop()
            with contextlib.suppress(self._library.GenicamError):
                stream.close()

    def fetch(self, wait_s: float) -> Block | None:
        """See `Link`."""
        if self._stream is None:
            raise DisconnectedError("the camera was stopped")
        try:
            image = self._images.next(wait_s)
        except self._library.GenicamError as error:
            raise self._gone(error) from None
        if image is None:
            return None
        self._heard = time.monotonic()
        pixels = image.to_numpy()
        return Block(
            number=int(image.block_id),
            pixel_format=str(image.pixel_format),
            pixels=plane(pixels.reshape(-1), int(image.height), int(image.width)),
            device_time_s=self._seconds(image.ts_dev),
            raw={"block": int(image.block_id)},
        )

    def check(self) -> None:
        """See `Link`."""
        camera = self._camera
        if camera is None or camera.transport != "gige":
            return
        if camera.control_state != self._library.ControlState.HELD:
            self._gone_for_good = True
            raise DisconnectedError(
                f"{self._name} no longer obeys this program: it is gone, or another program took "
                "it; close that one and reconnect"
            )

    def probe(self) -> None:
        """See `Link`."""
        self.check()
        if self._camera is None or self._camera.transport != "gige":
            return
        for wait_ms in _LIFE_MS:
            found = self._library.discover(wait_ms, iface=self._interface, all=True)
            if any(info.mac == self._found.mac for info in found):
                self._heard = time.monotonic()
                return
        self._gone_for_good = True
        raise self._gone("it no longer answers")

    def close(self) -> None:
        """See `Link`."""
        self.stop()
        camera, self._camera = self._camera, None
        if camera is not None:
            with contextlib.suppress(self._library.GenicamError):
                camera.close()

    # --------------------------------------------------------------------------------- internals

    def _look(self, transport: str, device: str) -> Any:
        library = self._library
        for wait_ms in _DISCOVERY_MS:
            try:
                if transport == "usb3":
                    found = library.discover_u3v()
                else:
                    found = library.discover(wait_ms, iface=self._interface, all=True)
            except library.GenicamError as error:
                raise NotConnectedError(
                    f"cameras cannot be looked for ({_one_line(error)}); correct camera.interface"
                ) from None
            if any(not device or device in _labels(info) for info in found):
                break
        return self._choose(found, device)

    def _choose(self, found: list[Any], device: str) -> Any:
        labels = [_labels(info) for info in found]
        matching = [i for i, words in enumerate(labels) if not device or device in words]
        if not matching:
            known = ", ".join(words[0] for words in labels) or "none"
            which = f"camera '{device}'" if device else "camera"
            raise NotConnectedError(
                f"no {which} answers (found: {known}); switch it on, give it an address of this "
                "network, or set camera.device and camera.interface"
            )
        if len(matching) > 1:
            raise NotConnectedError(
                "more than one camera answers; set camera.device to one of "
                f"{', '.join(labels[i][0] for i in matching)}"
            )
        return found[matching[0]]

    def _open(self, found: Any, transport: str) -> Any:
        library = self._library
        try:
            if transport == "usb3":
                return library.connect_u3v(found)
            return library.connect_gige(found, iface=self._interface)
        except library.GenicamError as error:
            if "ACCESS_DENIED" in str(error):
                raise NotConnectedError(
                    f"{self._name} is in use; close the other program on it"
                ) from None
            raise NotConnectedError(
                f"{self._name} cannot be opened ({_one_line(error)}); switch it off and on"
            ) from None

    def _text(self, feature: str) -> str:
        try:
            return str(self.get(feature))
        except RefusedError:
            return ""

    def _state(self, feature: str) -> Any:
        return self._asked(feature, lambda camera: camera.feature_state(feature))

    def _seconds(self, ticks: int | None) -> float | None:
        return ticks / self._ticks_per_s if ticks is not None and self._ticks_per_s else None

    def _asked(self, what: str, question: Callable[[Any], Any]) -> Any:
        """Ask the library; what it raises is said in the words of this program."""
        if self._camera is None:
            raise DisconnectedError("the camera was closed")
        library = self._library
        if time.monotonic() - self._heard > _ASK_AFTER_S:
            self.probe()
        try:
            answer = question(self._camera)
            self._heard = time.monotonic()
            return answer
        except library.TransportError as error:
            raise self._gone(error) from None
        except library.GenicamError as error:
            # What cannot be written or read because the camera is gone says "register I/O".
            if "I/O" in str(error):
                raise self._gone(error) from None
            raise RefusedError(f"the camera refuses {what} ({_one_line(error)})") from None

    def _gone(self, why: BaseException | str) -> DisconnectedError:
        return DisconnectedError(
            f"{self._name} is gone ({_one_line(why)}); switch it on and reconnect"
        )


class _Images:
    """Takes a stream's images out of the library, which keeps only a few, in a thread.

    Parameters
    ----------
    most : int
        How many are kept; then the library's few and its loss, which the block numbers tell.
    """

    def __init__(self, most: int) -> None:
        self._kept: queue.Queue[Any] = queue.Queue(most)
        self._most = most
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, stream: Any) -> None:
        self._kept, self._stopped = queue.Queue(self._most), threading.Event()
        self._thread = threading.Thread(
            target=_take, args=(stream, self._kept, self._stopped), name="genicam", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        self._stopped.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def next(self, wait_s: float) -> Any:
        """The next image or None; raises what the library raised."""
        try:
            found = self._kept.get(timeout=max(wait_s, 0.001))
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        return found


def _take(stream: Any, kept: queue.Queue[Any], stopped: threading.Event) -> None:
    found: Any = None
    while not stopped.is_set() and not isinstance(found, Exception):
        try:
            found = stream.next_frame(_TAKE_MS)
        except Exception as error:
            # No image in time is no error.
            found = None if "timeout" in str(error) else error
        # A reader that is held up makes it wait here, where a stop is noticed.
        while found is not None and not stopped.is_set():
            with contextlib.suppress(queue.Full):
                kept.put(found, timeout=_TAKE_MS / 1e3)
                break


def is_found(transport: Literal["gige", "usb3"], device: str, interface: str) -> bool:
    """Whether such a camera answers; it is not opened."""
    import viva_genicam

    if transport == "usb3":
        found: list[Any] = viva_genicam.discover_u3v()
    else:
        found = viva_genicam.discover(_LIFE_MS[-1], iface=interface or None, all=True)
    return any(not device or device in _labels(info) for info in found)


def _labels(info: Any) -> list[str]:
    return [str(word) for word in info.to_dict().values() if word]


def _one_line(why: BaseException | str) -> str:
    return " ".join(str(why).split())[:200] or type(why).__name__
