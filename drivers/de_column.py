"""Microscope columns behind Direct Electron's DE-TEM-Channel: a SOAP service on TCP port 5002.

One request is one HTTP POST with a connection of its own, so that blanking waits for nothing else
that is asked. The service answers a setter with a success of 1 also where it refused or clipped the
value (a spot size of 99 reads back 5), so everything is read back.

**Untested on hardware.** Tested against the column of de-twin 0.3.0, whose server has the method
names, units and quirks of the real service written down (`de_twin.faces.temchannel_soap`): stage
and shifts in µm, magnification as shown. The service tells no dose rate, and its intensity (C2) has
no unit that means a dose.
"""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.error
import urllib.request
from typing import Any, ClassVar
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.hosts import Host
from tem_live.errors import (
    DeviceError,
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)

_NAMESPACE = "http://tempuri.org/ns.xsd"
_X, _Y = 1, 2
"""Bits of the mask that says which axes of the stage to move."""
_RUNNING = 1
_POLL_S = 0.05
_STAGE_TOLERANCE_UM = 0.5
_SHIFT_TOLERANCE_UM = 0.005


class DEColumnOptions(BaseModel):
    """Fields of ``[column]`` with ``driver = "direct-electron"``.

    Attributes
    ----------
    host : str
        Where DE-TEM-Channel runs.
    soap_port : int
        Its port.
    reply_timeout_s : float
        How long one answer may take, in seconds.
    move_timeout_s : float
        How long the stage may take to move, in seconds.
    highest_spot_size : int
        Spot sizes are 1 to this.
    blanker_latency_s : float
        How long the beam may stay on after the service has answered, in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: Host = "127.0.0.1"
    soap_port: int = Field(default=5002, ge=1, le=65535)
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)
    move_timeout_s: float = Field(default=60.0, gt=0, le=600)
    highest_spot_size: int = Field(default=5, ge=1, le=20)
    blanker_latency_s: float = Field(default=0.0, ge=0, le=5)


class DEColumn:
    """See the module's text.

    Parameters
    ----------
    options : DEColumnOptions
        Which service.
    camera : object
        Not needed: any camera may go with this column.
    """

    Options: ClassVar[type[BaseModel]] = DEColumnOptions

    def __init__(self, options: DEColumnOptions, camera: object = None) -> None:
        self._options = options
        # Not through a proxy that the environment names: the service is in the same room.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._open = False

    def open(self) -> None:
        """See `Column`."""
        options = self._options
        try:
            self._number("getBeamBlankState", "intResult")
        except DeviceError as error:
            raise NotConnectedError(
                f"no DE-TEM-Channel answers at {options.host}:{options.soap_port} ({error}); "
                "start it, or set column.host and column.soap_port"
            ) from None
        self._open = True

    def close(self) -> None:
        """See `Column`."""
        self._open = False

    # ------------------------------------------------------------------------------- the beam

    @property
    def blanked(self) -> bool:
        """See `Blanker`."""
        self._must_be_open()
        return self._number("getBeamBlankState", "intResult") != 0

    def set_blanked(self, blanked: bool) -> None:
        """See `Blanker`."""
        self._must_be_open()
        self._ask("setBeamBlank", {"blank": int(blanked)})
        if self.blanked != blanked:
            raise RefusedError(
                "the column does not " + ("blank" if blanked else "unblank") + "; is it in use by "
                "another program, or are its valves closed?"
            )

    @property
    def blanker_latency_s(self) -> float:
        """See `BlankerLatency`."""
        return self._options.blanker_latency_s

    @property
    def spot_sizes(self) -> tuple[int, ...]:
        """See `SpotSize`."""
        return tuple(range(1, self._options.highest_spot_size + 1))

    @property
    def spot_size(self) -> int:
        """See `SpotSize`."""
        self._must_be_open()
        return int(self._number("getSpotSize", "shortResult"))

    def set_spot_size(self, spot_size: int) -> int:
        """See `SpotSize`."""
        self._must_be_open()
        if spot_size not in self.spot_sizes:
            raise RefusedError(
                f"spot size {spot_size} is out of range; there are 1 to {self.spot_sizes[-1]} "
                "(column.highest_spot_size)"
            )
        self._ask("setSpotSize", {"spot": spot_size})
        taken = self.spot_size
        if taken != spot_size:
            raise RefusedError(f"the column refuses spot size {spot_size}; it is {taken}")
        return taken

    @property
    def beam_shift_nm(self) -> tuple[float, float]:
        """See `BeamShift`."""
        self._must_be_open()
        x_um, y_um = self._pair("getBeamShift")
        return x_um * 1e3, y_um * 1e3

    def set_beam_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """See `BeamShift`."""
        self._must_be_open()
        self._ask("setBeamShift", {"x": x_nm / 1e3, "y": y_nm / 1e3})
        taken = self.beam_shift_nm
        if _far(taken, (x_nm, y_nm), _SHIFT_TOLERANCE_UM * 1e3):
            raise RefusedError(
                f"the column refuses a beam shift of {x_nm:g}, {y_nm:g} nm; it is "
                f"{taken[0]:g}, {taken[1]:g}"
            )
        return taken

    @property
    def image_shift_nm(self) -> tuple[float, float]:
        """See `ImageShift`."""
        self._must_be_open()
        x_um, y_um = self._pair("getImageShift")
        return x_um * 1e3, y_um * 1e3

    def set_image_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """See `ImageShift`."""
        self._must_be_open()
        self._ask("setImageShift", {"x": x_nm / 1e3, "y": y_nm / 1e3})
        taken = self.image_shift_nm
        if _far(taken, (x_nm, y_nm), _SHIFT_TOLERANCE_UM * 1e3):
            raise RefusedError(
                f"the column refuses an image shift of {x_nm:g}, {y_nm:g} nm; it is "
                f"{taken[0]:g}, {taken[1]:g}"
            )
        return taken

    # --------------------------------------------------------------------------- magnification

    @property
    def magnification(self) -> float:
        """See `Magnification`."""
        self._must_be_open()
        answer = self._ask(
            "executeBatchCommands", {"commands": "PROJ_Magnification", "totalCommands": 1}
        )
        return _as_number(answer, "r", "executeBatchCommands")

    @property
    def pixel_size_nm(self) -> float | None:
        """Not known to the column: DE-Server tells the camera."""
        return None

    def set_magnification(self, magnification: float) -> float:
        """See `Magnification`."""
        self._must_be_open()
        before = self.magnification
        self._ask("setMagnification", {"mag": float(magnification)})
        taken = self.magnification
        # A column takes the nearest of its steps. One that stays where it was has refused.
        if abs(taken / magnification - 1) > 0.5 and taken == before:
            raise RefusedError(
                f"the column refuses magnification {magnification:g}; it is {taken:g}"
            )
        return taken

    # ------------------------------------------------------------------------------- the stage

    @property
    def stage_position_um(self) -> tuple[float, float]:
        """See `Stage`."""
        self._must_be_open()
        answer = self._ask("getStagePosition", {"val": 1})
        return (
            _as_number(answer, "one", "getStagePosition"),
            _as_number(answer, "two", "getStagePosition"),
        )

    def move_stage(self, x_um: float, y_um: float) -> tuple[float, float]:
        """See `Stage`. Raises `RefusedError` where it stops elsewhere."""
        self._must_be_open()
        axes = {"x": float(x_um), "y": float(y_um), "z": 0.0, "a": 0.0, "b": 0.0}
        self._ask("setStagePosition", {**axes, "axes-mask": _X | _Y})
        deadline = time.monotonic() + self._options.move_timeout_s
        while self._number("getOperationStatus", "intResult", {"val": 0}) == _RUNNING:
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(
                    f"the stage still moves after {self._options.move_timeout_s:g} s; "
                    "raise column.move_timeout_s"
                )
            time.sleep(_POLL_S)
        stands = self.stage_position_um
        if _far(stands, (x_um, y_um), _STAGE_TOLERANCE_UM):
            raise RefusedError(
                f"the stage does not go to {x_um:g}, {y_um:g} µm; it stands at "
                f"{stands[0]:g}, {stands[1]:g}"
            )
        return stands

    # --------------------------------------------------------------------------------- internals

    def _must_be_open(self) -> None:
        if not self._open:
            raise NotConnectedError("the Direct Electron column is closed; open it first")

    def _number(self, method: str, field: str, arguments: dict[str, Any] | None = None) -> float:
        return _as_number(self._ask(method, arguments or {"val": 1}), field, method)

    def _pair(self, method: str) -> tuple[float, float]:
        answer = self._ask(method, {"val": 1})
        return _as_number(answer, "floatone", method), _as_number(answer, "floattwo", method)

    def _ask(self, method: str, arguments: dict[str, Any]) -> dict[str, str]:
        """Call a method; returns the fields of its answer."""
        options = self._options
        request = urllib.request.Request(
            f"http://{options.host}:{options.soap_port}/",
            data=_envelope(method, arguments).encode(),
            headers={"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'},
        )
        try:
            with self._opener.open(request, timeout=options.reply_timeout_s) as reply:
                body = reply.read()
        except urllib.error.HTTPError as error:
            # gSOAP sends a fault, with its reason, as an HTTP error.
            reason = f"HTTP {error.code}"
            # What it says of it may not come, or be cut.
            with error, contextlib.suppress(OSError, http.client.HTTPException):
                reason = _fault(error.read()) or reason
            raise RefusedError(f"DE-TEM-Channel refuses {method}: {reason}") from None
        except TimeoutError:
            raise DeviceTimeoutError(
                f"DE-TEM-Channel did not answer {method} within {options.reply_timeout_s:g} s"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            # The latter where something else listens there, or it ends amid its answer.
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                raise DeviceTimeoutError(
                    f"DE-TEM-Channel did not answer {method} within {options.reply_timeout_s:g} s"
                ) from None
            raise DisconnectedError(
                f"DE-TEM-Channel at {options.host}:{options.soap_port} is gone: {cause}"
            ) from None
        return _fields(body, method)


def _envelope(method: str, arguments: dict[str, Any]) -> str:
    inner = "".join(f"<{k}>{escape(str(v))}</{k}>" for k, v in arguments.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<SOAP-ENV:Envelope xmlns:SOAP-ENV="http://schemas.xmlsoap.org/soap/envelope/" '
        f'xmlns:ns="{_NAMESPACE}"><SOAP-ENV:Body><ns:{method}>{inner}</ns:{method}>'
        "</SOAP-ENV:Body></SOAP-ENV:Envelope>"
    )


def _fields(body: bytes, method: str) -> dict[str, str]:
    """Names and texts of what the answer in a SOAP body holds."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        raise DeviceError(f"DE-TEM-Channel answered {method} with what is no XML") from None
    for element in root.iter():
        if _local(element.tag) == "Body" and len(element):
            return {_local(child.tag): (child.text or "").strip() for child in element[0]}
    raise DeviceError(f"DE-TEM-Channel answered {method} with nothing")


def _fault(body: bytes) -> str:
    try:
        return _fields(body, "").get("faultstring", "")
    except DeviceError:
        return ""


def _local(tag: str) -> str:
    return tag.rsplit("}", 1)[-1]


def _as_number(answer: dict[str, str], field: str, method: str) -> float:
    try:
        return float(answer[field])
    except (KeyError, ValueError):
        said = answer.get(field, "nothing")
        raise DeviceError(f"DE-TEM-Channel answered {method} with {said!r}, no number") from None


def _far(a: tuple[float, float], b: tuple[float, float], tolerance: float) -> bool:
    return any(abs(x - y) > tolerance for x, y in zip(a, b, strict=True))
