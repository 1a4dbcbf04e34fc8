"""A beam blanker on a serial port of its own: two texts, or the level of one control line.

For blankers and shutters whose makers publish no command set, and for self-built ones: what is
sent is what the user's own manual says, set in the profile. Nothing is read back: `blanked` says
what was commanded last, and counts as not blanked whenever that is not known.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import override

from tem_live.drivers.serial_blanker import SerialBlanker
from tem_live.drivers.serial_link import LinkSettings, Port


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


class SerialLine(SerialBlanker):
    """See the module's text. Opening it blanks the beam, so that its state is known.

    A control line falls back to its resting level when it is closed.

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
        super().__init__(settings, lambda: self._simulated(camera), options.delay_s)

    def _level(self, blanked: bool) -> bool:
        """Level of the control line that blanks, or unblanks."""
        return blanked == (self._options.asserted == "blanked")

    @override
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
