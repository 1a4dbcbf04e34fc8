from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serial

from tem_live.drivers.protocols import Blanker, Column
from tem_live.drivers.serial_blanker import SerialBlanker
from tem_live.drivers.serial_line import SerialLine, SerialLineOptions
from tem_live.drivers.serial_link import LinkSettings
from tem_live.drivers.sim import SimCamera
from tem_live.drivers.sim_serial import SimulatedPort
from tem_live.errors import DeviceError, DisconnectedError, ProfileError, RefusedError
from tem_live.profiles import check_options
from tests.drivers.instruments.cable import Cable

needs_pty = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
AMPLE_S = 30.0
TEXTS = {"blank_text": "\x02BLANK\r\n", "unblank_text": "\xff"}


def line(**options: Any) -> SerialLine:
    return SerialLine(check_options(SerialLineOptions, {"port": "sim", **options}, "column"))


class Told(SerialBlanker):
    """A blanker whose port is there, and whose commands go to a function."""

    def __init__(self, command: Callable[[bool], None], delay_s: float) -> None:
        settings = LinkSettings(port="sim", baud=9600, terminator=b"")
        super().__init__(settings, lambda: SimulatedPort(lambda _sent: b""), delay_s)
        self._link.open()
        self._command = command

    def _send(self, blanked: bool) -> None:
        self._command(blanked)


class FakeSerial:
    """A ``serial.Serial`` with control lines (a pseudo-terminal has none); notes their levels."""

    def __init__(self) -> None:
        self.__dict__.update(events=[], lost=False)

    def __setattr__(self, name: str, value: object) -> None:
        if self.lost:
            raise OSError(5, "Input/output error")
        self.events.append((name, value))

    @property
    def in_waiting(self) -> int:
        return 0

    def open(self) -> None:
        self.events.append(("open", True))

    def close(self) -> None:
        self.events.append(("open", False))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[FakeSerial]:
    """The ports that were made, the newest last."""
    made: list[FakeSerial] = []

    def make(*_args: object, **_settings: object) -> FakeSerial:
        made.append(FakeSerial())
        return made[-1]

    monkeypatch.setattr(serial, "serial_for_url", make)
    return made


# -------------------------------------------------------------------------------------------- texts


@needs_pty
def test_texts_are_sent_as_they_are(tmp_path: Path) -> None:
    received = bytearray()
    came = threading.Condition()

    def receive(data: bytes) -> bytes:
        with came:
            received.extend(data)
            came.notify_all()
        return b"OK\r\n"

    with Cable(receive, tmp_path) as cable:
        column = line(port=cable.port, **TEXTS)
        column.open()
        assert column.blanked
        column.set_blanked(False)
        assert not column.blanked
        with came:
            assert came.wait_for(lambda: len(received) >= 9, AMPLE_S)
        assert received == b"\x02BLANK\r\n\xff"
        column.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "both"),
        ({"blank_text": "a"}, "both"),
        ({"blank_text": "a", "unblank_text": "a"}, "differ"),
        ({"blank_text": "a", "unblank_text": "\u0394"}, "U\\+00FF"),
        ({"blank_text": "", "unblank_text": "a"}, "blank_text"),
        ({"signal": "dtr", **TEXTS}, "sends no text"),
        ({"signal": "rts", "port": "socket://10.0.0.1:4001"}, "no RTS line"),
        ({"signal": "cts"}, "signal"),
        ({**TEXTS, "delay_s": 60}, "delay_s"),
        ({**TEXTS, "port": ""}, "port"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError, match=said) as caught:
        line(**options)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ control lines


@pytest.mark.parametrize("signal", ["dtr", "rts"])
@pytest.mark.parametrize(("asserted", "blanking"), [("unblanked", False), ("blanked", True)])
def test_the_line_blanks_before_the_port_is_open(
    fakes: list[FakeSerial], signal: str, asserted: str, blanking: bool
) -> None:
    column = line(port="COM3", signal=signal, asserted=asserted)
    column.open()
    events = fakes[-1].events
    assert events.index((signal, blanking)) < events.index(("open", True))
    assert (signal, not blanking) not in events
    assert column.blanked
    column.set_blanked(False)
    assert events[-1] == (signal, not blanking)
    column.set_blanked(True)
    assert events[-1] == (signal, blanking)
    column.close()
    assert events[-1] == ("open", False)
    other = "rts" if signal == "dtr" else "dtr"
    assert [event for event in events if event[0] == other] == [(other, True)]


def test_a_lost_port_is_opened_again_for_the_command(fakes: list[FakeSerial]) -> None:
    column = line(port="COM3", signal="dtr")
    column.open()
    fakes[-1].__dict__["lost"] = True
    column.set_blanked(True)
    assert column.blanked
    assert len(fakes) == 2
    assert fakes[-1].events[-1] == ("dtr", False)
    column.close()


@needs_pty
def test_a_port_without_the_line_is_refused_at_opening(tmp_path: Path) -> None:
    with Cable(lambda _data: b"", tmp_path) as cable:
        column = line(port=cable.port, signal="dtr")
        with pytest.raises(RefusedError, match="no DTR line"):
            column.open()
        assert column.commanded is None


# ------------------------------------------------------------------------------- what was commanded


def test_a_failed_command_leaves_it_unknown() -> None:
    fails = iter([False, True])

    def command(_blanked: bool) -> None:
        if next(fails):
            raise DeviceError("no")

    blanker = Told(command, 0.0)
    assert blanker.commanded is None
    blanker.set_blanked(True)
    assert blanker.commanded is True
    with pytest.raises(DeviceError):
        blanker.set_blanked(True)
    assert blanker.commanded is None


def test_a_lost_port_is_tried_once_more_and_not_for_ever() -> None:
    tries: list[bool] = []

    def command(blanked: bool) -> None:
        tries.append(blanked)
        raise DisconnectedError("gone")

    with pytest.raises(DisconnectedError):
        Told(command, 0.0).set_blanked(True)
    assert tries == [True, True]


def test_the_beam_counts_as_on_until_the_blanker_has_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    during: list[bool | None] = []
    blanker = Told(lambda _blanked: during.append(blanker.commanded), 0.5)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        during.append(blanker.commanded)

    monkeypatch.setattr(time, "sleep", sleep)
    blanker.set_blanked(False)
    blanker.set_blanked(True)
    assert during == [False, False, False, False]
    assert waited == [0.5, 0.5]
    assert blanker.commanded is True


def test_blanking_does_not_wait_for_a_slow_unblanking(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[bool] = []
    blanker = Told(commands.append, 0.5)
    waiting, go_on = threading.Event(), threading.Event()

    def sleep(_seconds: float) -> None:
        if commands == [False]:
            waiting.set()
            assert go_on.wait(AMPLE_S)

    monkeypatch.setattr(time, "sleep", sleep)
    thread = threading.Thread(target=blanker.set_blanked, args=(False,))
    thread.start()
    assert waiting.wait(AMPLE_S)
    blanker.set_blanked(True)
    assert blanker.commanded is True
    go_on.set()
    thread.join(AMPLE_S)
    # The one that was overtaken has nothing to say any more.
    assert commands == [False, True]
    assert blanker.commanded is True


@pytest.mark.parametrize("options", [TEXTS, {"signal": "dtr"}, {"signal": "rts"}])
def test_the_simulated_one_takes_the_simulated_beam_away(options: dict[str, Any]) -> None:
    camera = SimCamera(SimCamera.Options())  # type: ignore[arg-type]
    checked = check_options(SerialLineOptions, {"port": "sim", **options}, "column")
    column = SerialLine(checked, camera)
    assert isinstance(column, Column)
    assert isinstance(column, Blanker)
    column.open()
    assert camera.microscope.blanked
    column.set_blanked(False)
    assert not camera.microscope.blanked
    column.set_blanked(True)
    assert camera.microscope.blanked
    column.close()
