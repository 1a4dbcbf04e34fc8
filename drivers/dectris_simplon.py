"""SIMPLON, the REST interface of DECTRIS detectors: parameters and commands, no images.

Parameters, commands and times (in seconds) are those of its API manual 1.8 and of DECTRIS' own
``DEigerClient.py``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any, Literal

from tem_live.drivers.families import Fields
from tem_live.errors import DisconnectedError, NotConnectedError, RefusedError


class Simplon:
    """One detector control unit.

    Parameters
    ----------
    host, port : str, int
        Where it is.
    reply_timeout_s : float
        How long an answer may take, in seconds.

    Attributes
    ----------
    version : str
        Of its interface; "" before `connect`.
    """

    def __init__(self, host: str, port: int, reply_timeout_s: float) -> None:
        self._host = host
        self._port = port
        self._reply_timeout_s = reply_timeout_s
        self.version = ""

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self._host}:{self._port}"

    def connect(self) -> None:
        """Ask for its version. Raises `NotConnectedError` or `DisconnectedError`."""
        try:
            version = self.request("GET", "detector", "version")
        except RefusedError as error:
            raise NotConnectedError(f"{self.address} is no DECTRIS detector: {error}") from None
        if not isinstance(version, dict) or not isinstance(version.get("value"), str):
            raise NotConnectedError(f"{self.address} is no DECTRIS detector")
        self.version = version["value"]

    def state(self) -> str:
        """What the detector is doing; "" where it does not tell."""
        try:
            return str(self.request("GET", "detector", "status/state")["value"])
        except (RefusedError, KeyError, TypeError):
            return ""

    def _parameter(self, name: str) -> dict[str, Any]:
        found = self.request("GET", "detector", f"config/{name}")
        if not isinstance(found, dict) or "value" not in found:
            raise RefusedError(f"the DECTRIS detector has no value for '{name}'")
        return found

    def value(self, name: str) -> Any:
        """Of a parameter of the detector, by SIMPLON's name."""
        return self._parameter(name)["value"]

    def number(self, name: str, what: str = "value", default: float | None = None) -> float:
        """A number of a parameter: its value, or its limit with a default."""
        number = self._parameter(name).get(what, default)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise RefusedError(f"the DECTRIS detector tells {number!r} as the {what} of '{name}'")
        return number

    def told(self, name: str) -> str:
        """A parameter for people to read; "detector" where it has none."""
        try:
            return str(self.value(name)).removeprefix("DECTRIS").strip()
        except RefusedError:
            return "detector"

    def set(self, name: str, value: bool | float | str) -> None:
        """Set a parameter of the detector. Raises `RefusedError` or `DisconnectedError`."""
        self.request("PUT", "detector", f"config/{name}", value=value)

    def request(
        self,
        method: Literal["GET", "PUT"],
        module: Literal["detector", "stream"],
        what: str,
        timeout_s: float | None = None,
        value: bool | float | str | None = None,
    ) -> Any:
        """Ask SIMPLON; what it answers. Raises `RefusedError` or `DisconnectedError`."""
        line = http.client.HTTPConnection(
            self._host, self._port, timeout=timeout_s or self._reply_timeout_s
        )
        body = "" if value is None else json.dumps({"value": value})
        headers = {"Content-Type": "application/json; charset=utf-8"} if body else {}
        try:
            line.request(method, self._path(module, what), body=body or None, headers=headers)
            reply = line.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise self.gone(error) from None
        finally:
            line.close()
        if not 200 <= reply.status < 300:
            sent = f" = {value!r}" if value is not None else ""
            raise RefusedError(
                f"the DECTRIS detector refuses {what}{sent}: {reply.status} {_reason(text)}"
            )
        try:
            return json.loads(text) if text else None
        except ValueError:
            return None

    def _path(self, module: str, what: str) -> str:
        if what == "version":
            return f"/{module}/api/version/"
        return f"/{module}/api/{self.version}/{what}"

    def gone(self, error: BaseException) -> DisconnectedError:
        """What an error of the connection means, in one line."""
        said = "it does not answer" if isinstance(error, TimeoutError) else _one_line(str(error))
        return DisconnectedError(
            f"no DECTRIS detector answers at {self.address} ({said or type(error).__name__}); "
            "start it, or set camera.host and camera.port"
        )

    def begin(self, command: str) -> http.client.HTTPConnection:
        """Give a command without waiting for its answer. Raises `DisconnectedError`.

        Returns
        -------
        HTTPConnection
            On which the answer comes; to be closed by whoever asked.
        """
        line = http.client.HTTPConnection(self._host, self._port, timeout=self._reply_timeout_s)
        try:
            line.request("PUT", self._path("detector", command), body="")
        except OSError as error:
            line.close()
            raise self.gone(error) from None
        return line


def answers(fields: Fields) -> bool:
    """Whether a detector control unit is there; any web server may listen on its port."""
    host, port = str(fields.get("host", "127.0.0.1")), int(fields.get("port", 80))
    try:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=0.5)) as line:
            line.request("GET", "/detector/api/version/")
            return "value" in json.loads(line.getresponse().read(4096))
    except (OSError, ValueError, TypeError, http.client.HTTPException):
        return False


def _reason(text: bytes) -> str:
    try:
        table = json.loads(text)
        return _one_line(str(table.get("error", table) if isinstance(table, dict) else table))
    except ValueError:
        said = text.decode("utf-8", "replace")
        return "" if said.lstrip().startswith("<") else _one_line(said)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
