"""A JEOL microscope through JEOL's package PyJEM: one thread for all of one connection.

PyJEM comes from JEOL with TEM Center and is on no package index; ``PyJEM.offline`` is its own
simulation. Names and units are those of its docstrings (versions 1.0 to 1.3,
https://pyjem.github.io/PyJEM/); where two of its users disagree, the driver has an option.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.families import Family, Vendor
from tem_live.drivers.worker import Worker
from tem_live.errors import DeviceError, DisconnectedError, NotConnectedError, RefusedError

Answer = TypeVar("Answer")

Connect = Callable[[], Any]
"""Gives a module of PyJEM, or of its shape."""

_INSTALL = "install PyJEM from JEOL's TEM Center (it is on no package index)"

FAMILY = Family(
    "jeol",
    vendor=Vendor(
        name="PyJEM",
        is_there=lambda: find_spec("PyJEM") is not None,
        install=_INSTALL,
    ),
    # Importing PyJEM already talks to TEM Center.
    start="start TEM Center, then try: tem-live run --profile jeol --frames 1",
    tested_against="a fake module of PyJEM's shape; no hardware",
)


class PyJemOptions(BaseModel):
    """What the camera and the column have in common in their tables of a profile.

    Attributes
    ----------
    route : {"online", "offline"}
        The microscope, or PyJEM's own simulation.
    reply_timeout_s : float
        How long an answer may take, in seconds; to an exposure, past its end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: Literal["online", "offline"] = "online"
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)


class PyJemLink:
    """One module of PyJEM and the thread that uses it.

    Parameters
    ----------
    options : PyJemOptions
        Where the microscope is.
    module : str
        Which module of PyJEM: ``detector`` or ``TEM3``.
    connect : callable or None
        Gives the module, called on the thread that uses it; None imports it.
    """

    def __init__(self, options: PyJemOptions, module: str, connect: Connect | None = None) -> None:
        package = "PyJEM.offline" if options.route == "offline" else "PyJEM"
        self._options = options
        self._is_imported = connect is None
        self._connect = connect or (lambda: import_module(f"{package}.{module}"))
        self._worker: Worker[Any] | None = None

    def open(self) -> None:
        """Begin to use it. Raises `NotConnectedError`."""
        if self._worker is not None:
            return
        if self._is_imported and find_spec("PyJEM") is None:
            raise NotConnectedError(f"JEOL microscopes need PyJEM; {_INSTALL}")
        self._worker = Worker("pyjem", self._connect)

    def close(self) -> None:
        """Use it no more; idempotent. What was asked for and has not ended ends by itself."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def submit(self, question: Callable[[Any], Answer]) -> Future[Answer]:
        """Ask without waiting; what goes wrong is to be told by `told`."""
        if self._worker is None:
            raise NotConnectedError("the JEOL microscope is not connected; open it first")
        return self._worker.submit(question)

    def ask(
        self, question: Callable[[Any], Answer], longest_s: float = 0.0, even_late: bool = False
    ) -> Answer:
        """Ask and wait ``reply_timeout_s`` and ``longest_s`` seconds for the answer.

        What has not begun by then is not done any more, unless it is to be done ``even_late``.

        Raises
        ------
        RefusedError
            PyJEM does not accept it, or answers otherwise than is known here.
        DisconnectedError
            No answer, or the connection is gone.
        """
        if self._worker is None:
            raise NotConnectedError("the JEOL microscope is not connected; open it first")
        try:
            longest_s += self._options.reply_timeout_s
            return self._worker.call(question, longest_s, even_late=even_late)
        except Exception as error:
            raise self.told(error) from None

    def told(self, error: BaseException) -> DeviceError:
        """What an error of PyJEM means, in one line."""
        if isinstance(error, DeviceError):
            return error
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, TimeoutError):
            return DisconnectedError("PyJEM does not answer; is TEM Center running?")
        if isinstance(error, ImportError):
            return NotConnectedError(f"PyJEM cannot be loaded ({said}); {_INSTALL}")
        if isinstance(error, LookupError | TypeError | ValueError | AttributeError):
            return RefusedError(f"PyJEM answers otherwise than is known here: {said}")
        return DisconnectedError(f"PyJEM failed ({said}); start TEM Center and reconnect")
