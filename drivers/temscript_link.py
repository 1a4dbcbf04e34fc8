"""A Thermo Fisher (FEI) microscope through the package temscript, 2.1 or newer.

Three routes: ``local`` asks the scripting interface (COM) on the microscope's own computer,
``remote`` asks a ``temscript-server`` there over HTTP, and ``null`` is temscript's own simulated
microscope in this process. Each `TemscriptLink` has a connection and a thread of its own, because
an exposure occupies its connection until it has ended. Methods and units are those of
temscript 2.1.0, base_microscope.py (https://temscript.readthedocs.io/); pickled answers, which
could run code here, are never asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.families import Family, Fields
from tem_live.drivers.hosts import Host
from tem_live.drivers.worker import Worker
from tem_live.errors import DeviceError, DisconnectedError, NotConnectedError, RefusedError

Answer = TypeVar("Answer")

INSTALL = 'pip install "tem-live[thermo]"'
_COINIT_MULTITHREADED = 0
_GATEWAY = "Remote call returned status"
"""How temscript begins the message of what its server did not do."""


class TemscriptOptions(BaseModel):
    """Where the microscope is; fields of ``[camera]`` and of ``[column]`` alike.

    Attributes
    ----------
    route : {"local", "remote", "null"}
        See the module's text.
    host, port : str, int
        Of the ``temscript-server``, for ``remote``.
    reply_timeout_s : float
        How long an answer may take, in seconds; to an exposure, past its end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: Literal["local", "remote", "null"] = "local"
    host: Host = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)


class TemscriptLink:
    """One connection to the microscope.

    Parameters
    ----------
    options : TemscriptOptions
        Where it is.
    longest_s : float
        What the longest request takes besides, in seconds: an exposure, a move of the stage.
    """

    def __init__(self, options: TemscriptOptions, longest_s: float = 0.0) -> None:
        self._options = options
        self._longest_s = longest_s
        self._worker: Worker[Any] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is connected."""
        return self._worker is not None

    def open(self) -> None:
        """Connect; raises `NotConnectedError` with what to do."""
        if self._worker is not None:
            return
        # Imported on the connection's thread alone: importing it already sets COM up.
        if find_spec("temscript") is None:
            raise NotConnectedError(f"Thermo Fisher microscopes need temscript: {INSTALL}")
        self._worker = Worker(
            "temscript", lambda: _connect(self._options, self._longest_s), _disconnect
        )
        try:
            self.ask(lambda microscope: microscope.get_family())
        except DeviceError as error:
            self.close()
            raise NotConnectedError(str(error)) from None

    def close(self) -> None:
        """Disconnect; idempotent. What was asked for and has not ended ends by itself."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def wait_for(self, longest_s: float) -> None:
        """From now on the longest request takes ``longest_s`` seconds besides."""
        self._longest_s = longest_s
        self.ask(lambda microscope: _wait(microscope, self._options.reply_timeout_s + longest_s))

    def submit(self, question: Callable[[Any], Answer]) -> Future[Answer]:
        """Ask without waiting; what goes wrong is to be told by `told`."""
        if self._worker is None:
            raise NotConnectedError("the Thermo Fisher microscope is not connected; open it first")
        return self._worker.submit(question)

    def ask(
        self, question: Callable[[Any], Answer], longest_s: float = 0.0, even_late: bool = False
    ) -> Answer:
        """Ask and wait for the answer.

        Parameters
        ----------
        question : callable
            Given temscript's microscope; it runs on this connection's thread.
        longest_s : float
            How much longer than ``reply_timeout_s`` it may take, in seconds.
        even_late : bool
            Whether it is to be done where it has not begun by then.

        Raises
        ------
        RefusedError
            The microscope or temscript does not accept it.
        DisconnectedError
            No answer, or the connection is gone.
        """
        if self._worker is None:
            raise NotConnectedError("the Thermo Fisher microscope is not connected; open it first")
        try:
            longest_s += self._options.reply_timeout_s
            return self._worker.call(question, longest_s, even_late=even_late)
        except Exception as error:
            raise self.told(error) from None

    def told(self, error: BaseException) -> DeviceError:
        """What an error of temscript means, in one line."""
        if isinstance(error, DeviceError):
            return error
        about = getattr(error, "strerror", None) or (error.args[0] if error.args else error)
        said = " ".join(str(about).split())
        said = said or type(error).__name__
        where = _where(self._options)
        if isinstance(error, TimeoutError):
            return DisconnectedError(
                f"{where} does not answer; is it still exposing, or a dialog open?"
            )
        # On Windows OSError is also how a COM call fails, for whatever reason.
        if isinstance(error, KeyError | ValueError | TypeError) or said.startswith(_GATEWAY):
            return RefusedError(f"{where} refuses: {said}")
        return DisconnectedError(f"{where} is gone ({said}); {_remedy(self._options)}")


def _answers(fields: Fields) -> bool:
    known = {name: fields[name] for name in ("route", "host", "port") if name in fields}
    link = TemscriptLink(TemscriptOptions(**known, reply_timeout_s=3.0))
    try:
        link.open()
    except DeviceError:
        return False
    finally:
        link.close()
    return True


FAMILY = Family(
    "thermo",
    packages=("temscript",),
    install=INSTALL,
    # Or a server on this computer, such as temscript's simulated microscope.
    reach=lambda fields: _answers(fields) or _answers({"route": "remote"}),
    start="start the microscope's software, or set camera.route, camera.host and camera.port in a "
    "profile 'thermo' of your own; without a microscope: temscript-server --null --host 127.0.0.1",
    tested_against="temscript 2.1.0's server and simulated microscope; no hardware",
)


def _connect(options: TemscriptOptions, longest_s: float) -> Any:
    if sys.platform == "win32":
        import ctypes

        # Each thread has to say how it uses COM; it may have been said already.
        ctypes.windll.ole32.CoInitializeEx(None, _COINIT_MULTITHREADED)
    import temscript

    if options.route == "null":
        return temscript.NullMicroscope()
    if options.route == "local":
        return temscript.Microscope()
    return temscript.RemoteMicroscope(
        (options.host, options.port), timeout=options.reply_timeout_s + longest_s
    )


def _wait(microscope: Any, timeout_s: float) -> None:
    # temscript takes a timeout only when it is made; each request is a new connection with this.
    connection = getattr(microscope, "_conn", None)
    if connection is not None:
        connection.timeout = timeout_s


def _disconnect(microscope: Any) -> None:
    # temscript leaves an answer that it could not read open.
    connection = getattr(microscope, "_conn", None)
    if connection is not None:
        connection.close()


def _where(options: TemscriptOptions) -> str:
    if options.route == "remote":
        return f"temscript-server at {options.host}:{options.port}"
    return "the microscope's scripting interface"


def _remedy(options: TemscriptOptions) -> str:
    if options.route == "remote":
        return "start it on the microscope's computer, or set host and port"
    return (
        'run this on the microscope\'s computer with its software started, or set route = "remote"'
    )
