"""Keithley 6485 and 6487 picoammeters over RS-232: the beam's current on a cup or the screen.

Sources: Model 6485 Picoammeter Instruction Manual, 6485-901-01 (below "6485"), and Model 6487
Reference Manual, 6487-901-01 ("6487").

The line has no checksum, so a reading is asked for twice: ``READ?`` measures, ``FETCh?`` returns
the same measurement again (both manuals, section 12; in the words of the maker's 2400 Series
User's Manual, page 17-3, "until there are new readings, this command continues to return the old
readings"), and only two equal answers make a number. After an answer that did not come or made no
sense, the instrument is cleared (^X) and has to repeat a number before anything else is believed:
answers come in the order of the questions, so none of an earlier question can follow that number.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.protocols import BeamCurrent
from tem_live.drivers.serial_link import LinkSettings, Port, SerialLink
from tem_live.errors import DeviceError, DeviceTimeoutError, NotConnectedError, RefusedError

_CLEAR = b"\x18"
"""^X clears any pending operation and discards any pending output (6487, page 9-16)."""
_IDENTITY = re.compile(rb"KEITHLEY INSTRUMENTS.*MODEL 648[57].*")
"""``*IDN?`` answers maker, model, serial number, firmware (both manuals, section 11)."""
_NUMBERS = range(128, 256)
"""What ``*ESE`` is set to and ``*ESE?`` repeats (the same section). The register only tells which
events a service request would be made for, and there is none on RS-232."""
_STALE_LINES = 100

# Zero correction as both manuals' example programs do it: with zero check on, when the input does
# not count, a reading on the lowest range is taken, and it is subtracted from then on.
_ZERO_CORRECT = (
    b"SYST:ZCH ON",
    b"CURR:RANG 2E-9",
    b"INIT",
    b"SYST:ZCOR:ACQ",
    b"SYST:ZCOR ON",
)
# Figure 13-1 of both manuals: reading with its unit, time stamp in seconds, status word.
_ELEMENTS = b"FORM:ELEM READ,UNIT,TIME,STAT"

_NUMBER = rb"([+-]\d\.\d{1,8}E[+-]?\d{2})"
_READING = re.compile(_NUMBER + rb"A," + _NUMBER + rb"," + _NUMBER)
_ERROR = re.compile(rb'([+-]?\d+),\s*"([^"]*)"')

_OVERFLOW = 9.9e37
_NOT_A_NUMBER = 9.91e37
"""6485, page 13-6; 6487, page 13-7."""
_LARGEST_A = 21.5e-3
"""The highest range is 20 mA and takes 105 % (6487, table 4-2); more is a damaged answer."""

# Bits of the status word (6485, page 13-7; 6487, pages 13-7 and 13-8).
_OVERRANGE, _MATH, _ZERO_CHECK = 1 << 0, 1 << 2, 1 << 9
_FLAGS = {
    1 << 1: "filter",
    1 << 3: "relative",
    1 << 4: "limit test",
    1 << 7: "overvoltage",
    1 << 10: "zero corrected",
}


class KeithleyOptions(BaseModel):
    """Fields of the beam monitor ``keithley``.

    Attributes
    ----------
    port : str
        Name or URL of the serial port, ``sim`` for a simulated instrument.
    baud : int
        As set in the instrument's RS-232 menu.
    xonxoff : bool
        Software flow control, as set there.
    timeout_s : float
        How long an answer may take, in seconds; a reading on the lowest ranges is slow.
    zero_correct : bool
        Measure the instrument's own offset whenever it is connected, and subtract it.
    double_check : bool
        Have each reading sent twice and compared; see the module's text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: str = Field(min_length=1)
    baud: Literal[300, 600, 1200, 2400, 4800, 9600, 19200, 38400, 57600] = 9600
    xonxoff: bool = True
    timeout_s: float = Field(default=5.0, gt=0, le=600, allow_inf_nan=False)
    zero_correct: bool = True
    double_check: bool = True


class Keithley:
    """See the module's text.

    Connecting resets the instrument to its defaults (autorange, no filter, no relative value).

    Parameters
    ----------
    options : KeithleyOptions
        The port and how to measure.
    """

    Options: ClassVar[type[BaseModel]] = KeithleyOptions

    def __init__(self, options: KeithleyOptions) -> None:
        self._options = options
        settings = LinkSettings(
            port=options.port,
            baud=options.baud,
            timeout_s=options.timeout_s,
            # Commands are processed when their CR has come; answers end as its menu says, with
            # LF, CR, LFCR or CRLF (6485, page 9-17).
            terminator=b"\r",
            reply_ends=b"\r\n",
            xonxoff=options.xonxoff,
        )
        self._camera: object = None
        self._link = SerialLink(
            settings, greet=self._set_up, simulator=partial(_simulated, lambda: self._camera)
        )
        self._in_step = False
        self._number = _NUMBERS[-1]

    def beside(self, camera: object) -> None:
        """See `BesideCamera`: the simulated instrument measures a simulated camera's beam."""
        self._camera = camera

    def open(self) -> None:
        """See `BeamMonitor`."""
        self._link.open()

    def close(self) -> None:
        """See `BeamMonitor`."""
        self._link.close()

    def read_current(self) -> BeamCurrent:
        """See `BeamMonitor`."""
        with self._link.conversation():
            if not self._in_step:
                self._synchronise()
            self._in_step = False
            answer = self._link.query(b"READ?")
            reading = self._understood(answer)
            if self._options.double_check:
                again = self._link.query(b"FETC?")
                if again != answer:
                    raise self._nonsense(again, f"where it had said {_text(answer)}")
            self._in_step = True
        return reading

    # --------------------------------------------------------------------------------- internals

    def _set_up(self) -> None:
        """Greet the instrument on a port that was just opened."""
        self._in_step = False
        try:
            self._synchronise()
            identity = self._link.query(b"*IDN?")
            if _IDENTITY.fullmatch(identity) is None:
                raise NotConnectedError(
                    f"the instrument at {self._link.name} is {_text(identity)}, no Keithley 6485 "
                    "or 6487; correct 'port'"
                )
            zero = _ZERO_CORRECT if self._options.zero_correct else ()
            for command in (b"*RST", b"*CLS", *zero, b"CURR:RANG:AUTO ON", b"SYST:ZCH OFF"):
                self._link.send(command)
            self._link.send(_ELEMENTS)
            if (done := self._link.query(b"*OPC?")) not in (b"1", b"+1"):
                raise self._nonsense(done, "to *OPC?")
            refusal = self._link.query(b"SYST:ERR?")
        except DeviceTimeoutError as error:
            raise NotConnectedError(str(error)) from None
        if (match := _ERROR.fullmatch(refusal)) is None:
            raise self._nonsense(refusal, "to SYST:ERR?")
        if int(match[1]) != 0:
            raise RefusedError(
                f"the picoammeter at {self._link.name} refuses its settings: {_text(refusal)}; "
                "it must be a 6485 or 6487 with SCPI as its language"
            )
        self._in_step = True

    def _synchronise(self) -> None:
        """Throw away all that may still come, up to a number that was not used lately."""
        self._number = self._number + 1 if self._number + 1 in _NUMBERS else _NUMBERS[0]
        number = b"%d" % self._number
        self._link.send_raw(_CLEAR)
        self._link.send(b"*ESE " + number)
        self._link.send(b"*ESE?")
        for _ in range(_STALE_LINES):
            # The rest of a cut answer may stand before it in the same line.
            if (line := self._link.read_line("no answer to '*ESE?'")).endswith(number):
                self._in_step = True
                return
        raise self._nonsense(line, "to *ESE?")

    def _understood(self, answer: bytes) -> BeamCurrent:
        """What an answer to ``READ?`` says. Raises where it says nothing."""
        match = _READING.fullmatch(answer)
        if match is None:
            raise self._nonsense(answer, "to READ?")
        value, seconds, word = (float(text) for text in match.groups())
        special = value in (_OVERFLOW, _NOT_A_NUMBER)
        whole = word.is_integer() and 0 <= word < 1 << 16
        if not whole or seconds < 0 or (abs(value) > _LARGEST_A and not special):
            raise self._nonsense(answer, "to READ?")
        status = int(word)
        if status & _ZERO_CHECK:
            raise RefusedError(
                f"the picoammeter at {self._link.name} has zero check on and does not measure "
                "the beam; press its ZCHK key"
            )
        if status & _MATH:
            raise RefusedError(
                f"the picoammeter at {self._link.name} calculates (MATH) and does not tell the "
                "current; switch its MATH off"
            )
        overflow = value == _OVERFLOW or bool(status & _OVERRANGE)
        return BeamCurrent(
            current_A=None if special or overflow else value,
            host_time_s=time.time(),
            device_time_s=seconds,
            overflow=overflow,
            flags=tuple(name for bit, name in _FLAGS.items() if status & bit),
            raw={"answer": answer.decode("latin-1"), "status": status},
        )

    def _nonsense(self, answer: bytes, to_what: str) -> DeviceError:
        return DeviceError(
            f"the picoammeter at {self._link.name} answered {_text(answer)} {to_what}: a damaged "
            "answer is not used; check cable, baud rate and flow control if this comes often"
        )


def _text(answer: bytes) -> str:
    return repr(answer[:80].decode("latin-1"))


def _simulated(camera: Callable[[], object]) -> Port:
    from tem_live.drivers.sim_serial import SimulatedKeithley, SimulatedPort, current_of

    return SimulatedPort(SimulatedKeithley(current_of(camera())).receive)
