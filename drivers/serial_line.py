"""A beam blanker on a serial port of its own: two texts, or the level of one control line.

For blankers and shutters whose makers publish no command set, and for self-built ones: what is
sent is what the user's own manual says, set in the profile. Nothing is read back: `blanked` says
what was commanded last, and counts as not blanked whenever that is not known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tem_live.drivers.serial_link import SIMULATED, LinkSettings, Port, SerialLink
from tem_live.errors import DisconnectedError


class SerialLineOptions(BaseModel):
    r"""Fields of ``[column]`` with ``driver = "serial-line"``.

    Attributes
    ----------
    port : str
        Name or URL of the serial port, ``sim`` for a simulated blanker.
    signal : {"text", "dtr", "rts"}
        What steers the blanker: two texts, or the level of that control line.
    blank_text, unblank_text : str or None
        What to send, terminator included (``"\r"``); one byte a character up to U+00FF.
    asserted : {"unblanked", "blanked"}
        With a control line: what its asserted (positive) level does.
    baud : int
        Bits per second.
    delay_s : float
        How long the blanker takes to follow, in seconds; setting it waits that long.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: str = Field(min_length=1)
    signal: Literal["text", "dtr", "rts"] = "text"
    blank_text: str | None = Field(default=None, min_length=1, max_length=256)
    unblank_text: str | None = Field(default=None, min_length=1, max_length=256)
    asserted: Literal["unblanked", "blanked"] = "unblanked"
    baud: int = Field(default=9600, ge=50, le=4_000_000)
    delay_s: float = Field(default=0.0, ge=0, le=5, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_way_to_blank(self) -> Self:
        texts = (self.blank_text, self.unblank_text)
        if self.signal == "text":
            if None in texts:
                raise ValueError("give both blank_text and unblank_text, or signal = 'dtr'/'rts'")
            if texts[0] == texts[1]:
                raise ValueError("blank_text and unblank_text must differ")
            if any(ord(char) > 255 for text in texts for char in text or ""):
                raise ValueError("blank_text and unblank_text take characters up to U+00FF")
        elif texts != (None, None):
            raise ValueError(f"signal = {self.signal!r} sends no text; leave the texts out")
        elif self.port.startswith(("socket://", "loop://")):
            # pyserial takes the level there, and nothing happens.
            raise ValueError(f"{self.port} has no {self.signal.upper()} line; take a real port")
        return self


class UnconfirmedBlanker:
    """Remembers what a blanker without read-back was told. Thread-safe.

    Parameters
    ----------
    command : callable
        Sends the command to blank (True) or unblank (False).
    delay_s : float
        How long the blanker takes to follow, in seconds.
    check : callable, optional
        Raises a `DisconnectedError` where the port was lost after a command was sent.
    """

    def __init__(
        self,
        command: Callable[[bool], None],
        delay_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._command = command
        self._delay_s = delay_s
        self._check = check
        self._lock = threading.Lock()
        self._orders = 0
        self._commanded: bool | None = None

    @property
    def commanded(self) -> bool | None:
        """The last command, True for blanked; None before the first and after a failed one."""
        return self._commanded

    def set_blanked(self, blanked: bool) -> None:
        """Command it, and wait until the blanker has had the time to follow.

        A port that was lost since the last command is opened again first.

        Raises
        ------
        DeviceError
            The command could not be sent; what the blanker does is unknown.
        """
        order = None
        for last in (False, True):
            with self._lock:
                if order is None:
                    self._orders += 1
                    order = self._orders
                elif order != self._orders:
                    # Overtaken: a later command has the last word.
                    return
                # The beam counts as on from before it is let through until it is surely off.
                self._commanded = False if not blanked else self._commanded
                try:
                    self._command(blanked)
                except BaseException as error:
                    self._commanded = None
                    if last or not isinstance(error, DisconnectedError):
                        raise
                    continue
            # Without the lock: somebody's blanking must not wait behind somebody's unblanking.
            if self._delay_s:
                time.sleep(self._delay_s)
            with self._lock:
                if order != self._orders:
                    return
                # A plug that came out with the command took it along, and shows only now.
                try:
                    self._check()
                except BaseException as error:
                    self._commanded = None
                    if last or not isinstance(error, DisconnectedError):
                        raise
                    continue
                self._commanded = blanked
            return

    def forget(self) -> None:
        """From now on nothing is known."""
        with self._lock:
            self._orders += 1
            self._commanded = None


class SerialLine:
    """See the module's text. Opening it blanks the beam, so that its state is known.

    Parameters
    ----------
    options : SerialLineOptions
        The port and what to send.
    camera : object
        Not needed; a simulated camera's beam is what the simulated blanker blanks.
    """

    Options: ClassVar[type[BaseModel]] = SerialLineOptions

    def __init__(self, options: SerialLineOptions, camera: object = None) -> None:
        self._options = options
        at_rest = self._level(blanked=True)
        settings = LinkSettings(
            port=options.port,
            baud=options.baud,
            terminator=b"",
            dtr=at_rest if options.signal == "dtr" else True,
            rts=at_rest if options.signal == "rts" else True,
        )
        self._link = SerialLink(settings, simulator=lambda: self._simulated(camera))
        self._blanker = UnconfirmedBlanker(self._send, options.delay_s, self._link.check)

    def open(self) -> None:
        """Connect and blank the beam. Raises `NotConnectedError`."""
        if self._link.is_open:
            return
        self._link.open()
        try:
            self._blanker.set_blanked(True)
        except BaseException:
            self._link.close()
            raise

    @property
    def simulated(self) -> bool:
        """Whether the blanker is the simulated one of this process."""
        return self._options.port == SIMULATED

    def close(self) -> None:
        """Disconnect; idempotent. A control line falls back to its resting level."""
        self._link.close()
        self._blanker.forget()

    @property
    def commanded(self) -> bool | None:
        """The last command, True for blanked; None while unknown. Never read back."""
        return self._blanker.commanded

    @property
    def blanked(self) -> bool:
        """Whether the beam was commanded off the specimen; False while that is unknown."""
        return self._blanker.commanded is True

    def set_blanked(self, blanked: bool) -> None:
        """Blank or unblank. Raises a `DeviceError` when the command could not be sent."""
        self._blanker.set_blanked(blanked)

    # --------------------------------------------------------------------------------- internals

    def _level(self, blanked: bool) -> bool:
        """Level of the control line that blanks, or unblanks."""
        return blanked == (self._options.asserted == "blanked")

    def _send(self, blanked: bool) -> None:
        options = self._options
        if options.signal == "text":
            text = options.blank_text if blanked else options.unblank_text
            assert text is not None, "checked by the options"
            self._link.command(text.encode("latin-1"))
        else:
            self._link.set_line(options.signal, self._level(blanked))

    def _simulated(self, camera: object) -> Port:
        from tem_live.drivers.sim_serial import SimulatedPort, beam_of

        options, set_blanked = self._options, beam_of(camera)

        def receive(data: bytes) -> bytes:
            text = data.decode("latin-1")
            if text in (options.blank_text, options.unblank_text):
                set_blanked(text == options.blank_text)
            return b""

        def set_line(line: str, level: bool) -> None:
            if line == options.signal:
                set_blanked(level == self._level(blanked=True))

        return SimulatedPort(receive, set_line)
