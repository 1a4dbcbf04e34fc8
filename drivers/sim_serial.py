"""Serial instruments simulated in this process, for ``port = "sim"``; they need no port at all.

Each instrument takes the bytes that a driver sends and gives back the bytes that the real one
would send. The sources of the commands are named where the drivers use them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from tem_live.drivers.sim import SimCamera

_CLEAR = b"\x03\x18"
_OVERFLOW = 9.9e37


class SimulatedPort:
    """The computer's end of the cable; what `tem_live.drivers.serial_link.Port` asks for.

    Parameters
    ----------
    receive : callable
        Takes what was sent and returns what the instrument answers.
    set_line : callable, optional
        Told the name of a control line, ``dtr`` or ``rts``, and its new level.
    """

    def __init__(
        self,
        receive: Callable[[bytes], bytes],
        set_line: Callable[[str, bool], None] = lambda _line, _level: None,
    ) -> None:
        self._receive = receive
        self._set_line = set_line
        self._answers = bytearray()
        self._lines = {"dtr": True, "rts": True}

    @property
    def in_waiting(self) -> int:
        """Bytes that have come."""
        return len(self._answers)

    def read(self, size: int = 1) -> bytes:
        """Up to ``size`` bytes; waits a moment where there are none."""
        if not self._answers:
            time.sleep(0.002)
        data = bytes(self._answers[:size])
        del self._answers[:size]
        return data

    def write(self, data: bytes) -> int:
        """Hand bytes to the instrument."""
        self._answers += self._receive(data)
        return len(data)

    def close(self) -> None:
        """Pull the cable; what was on its way is lost."""
        self._answers.clear()

    @property
    def dtr(self) -> bool:
        """Level of the line DTR."""
        return self._lines["dtr"]

    @dtr.setter
    def dtr(self, level: bool) -> None:
        self._lines["dtr"] = level
        self._set_line("dtr", level)

    @property
    def rts(self) -> bool:
        """Level of the line RTS."""
        return self._lines["rts"]

    @rts.setter
    def rts(self, level: bool) -> None:
        self._lines["rts"] = level
        self._set_line("rts", level)


class SimulatedUniblitz:
    """A Uniblitz VMM-D3 with three normally-closed shutters; says nothing.

    Parameters
    ----------
    moved : callable, optional
        Told the number of a shutter, 1 to 3, and whether it is open now.
    """

    def __init__(self, moved: Callable[[int, bool], None] = lambda _channel, _open: None) -> None:
        self._moved = moved
        self.shutters = {1: False, 2: False, 3: False}

    def receive(self, data: bytes) -> bytes:
        """Move the shutters; other bytes do nothing."""
        for code in data:
            order, closes = divmod(code - ord("@"), 2)
            if order in (0, 1, 2):
                self._move(order + 1, not closes)
            elif order == 3:
                for channel in self.shutters:
                    self._move(channel, not closes)
        return b""

    def _move(self, channel: int, opens: bool) -> None:
        self.shutters[channel] = opens
        self._moved(channel, opens)


class SimulatedKeithley:
    """A Keithley 6485 as far as a driver uses it.

    Parameters
    ----------
    current_A : callable
        The current at its input in ampere, asked at each measurement; 9.9e37 is an overflow.
    model : str
        As it stands in the identification.
    terminator : bytes
        What ends its answers, as set in its menu.
    """

    def __init__(
        self,
        current_A: Callable[[], float] = lambda: -1.040564e-9,
        model: str = "6485",
        terminator: bytes = b"\n",
    ) -> None:
        self._current_A = current_A
        self._terminator = terminator
        self._identity = f"KEITHLEY INSTRUMENTS INC.,MODEL {model},1234567,B03   Sep 25 2002"
        self._switched_on_s = time.monotonic()
        self._input = bytearray()
        self._errors: list[str] = []
        self._event_enable = 0
        self._offset_A = 0.0
        self._last: tuple[float, float, int] | None = None
        self._reset()

    def receive(self, data: bytes) -> bytes:
        """Do what each command says, once its CR has come; returns the answers."""
        answers = bytearray()
        for byte in data:
            if byte in _CLEAR:
                self._input.clear()
                answers.clear()
            elif byte == ord("\r"):
                for command in self._input.decode("latin-1").split(";"):
                    answer = self._do(command.strip().lstrip(":").upper())
                    if answer is not None:
                        answers += answer.encode() + self._terminator
                self._input.clear()
            elif byte != ord("\n"):
                self._input.append(byte)
        return bytes(answers)

    def _reset(self) -> None:
        self.zero_check = True
        self._zero_correct = False
        self._autorange = True
        self._elements = ["READ", "UNIT", "TIME", "STAT"]

    def _do(self, command: str) -> str | None:
        header, _, value = command.partition(" ")
        header = _short(header)
        if header == "*RST":
            self._reset()
        elif header == "*CLS":
            self._errors.clear()
        elif header == "*IDN?":
            return self._identity
        elif header == "*OPC?":
            return "1"
        elif header == "*ESE" and value.isdigit():
            self._event_enable = int(value)
        elif header == "*ESE?":
            return str(self._event_enable)
        elif header == "SYST:ERR?":
            return self._errors.pop(0) if self._errors else '0,"No error"'
        elif header == "SYST:ZCH" and value in _SWITCH:
            self.zero_check = _SWITCH[value]
        elif header in ("SYST:ZCOR", "SYST:ZCOR:STAT") and value in _SWITCH:
            self._zero_correct = _SWITCH[value]
        elif header == "SYST:ZCOR:ACQ" and not value:
            self._offset_A = self._last[0] if self._last else 0.0
        elif header in ("CURR:RANG", "RANG") and re.fullmatch(r"[0-9.]+E-[0-9]+", value):
            self._autorange = False
        elif header in ("CURR:RANG:AUTO", "RANG:AUTO") and value in _SWITCH:
            self._autorange = _SWITCH[value]
        elif header == "FORM:ELEM":
            self._elements = [_short(item.strip()) for item in value.split(",")]
        elif header == "INIT" and not value:
            self._measure()
        elif header == "READ?":
            self._measure()
            return self._reading()
        elif header == "FETC?":
            if self._last is not None:
                return self._reading()
            self._errors.append('-230,"Data corrupt or stale"')
        elif header:
            self._errors.append('-113,"Undefined header"')
        return None

    def _measure(self) -> None:
        seconds = (time.monotonic() - self._switched_on_s) % 99999.99
        current = 0.0 if self.zero_check else self._current_A()
        status = 512 * self.zero_check + 1024 * self._zero_correct
        if current >= _OVERFLOW:
            status += 1
        elif self._zero_correct:
            current -= self._offset_A
        self._last = (current, seconds, status)

    def _reading(self) -> str:
        assert self._last is not None
        current, seconds, status = self._last
        fields = []
        if "READ" in self._elements:
            fields.append(_number(current) + ("A" if "UNIT" in self._elements else ""))
        if "TIME" in self._elements:
            fields.append(_number(seconds))
        if "STAT" in self._elements:
            fields.append(_number(status))
        return ",".join(fields)


_SWITCH = {"ON": True, "OFF": False, "1": True, "0": False}


def _number(value: float) -> str:
    return f"{value:+.6E}"


def _short(header: str) -> str:
    """Short form of SCPI words: four letters, three where the fourth is a vowel (*, ? kept)."""
    words = []
    for word in header.split(":"):
        query = "?" if word.endswith("?") else ""
        word = word.rstrip("?")
        if len(word) > 4 and word.isalpha():
            word = word[:3] if word[3] in "AEIOU" else word[:4]
        words.append(word + query)
    return ":".join(words)


def beam_of(camera: object) -> Callable[[bool], None]:
    """What a simulated blanker calls with True to take the beam off, False to let it through.

    Next to the simulated camera it moves that microscope's beam; next to another one, nothing.
    """
    if isinstance(camera, SimCamera):
        return camera.microscope.set_blanked
    return lambda _blanked: None


def current_of(camera: object) -> Callable[[], float]:
    """What a simulated picoammeter reads in ampere, with the sign of caught electrons.

    Next to the simulated camera it is that microscope's whole beam; next to another one, -1 nA.
    """
    if isinstance(camera, SimCamera):
        return lambda: -camera.microscope.current_A
    return lambda: -1.040564e-9
