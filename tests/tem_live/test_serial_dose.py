"""Serial instruments on a pseudo-terminal, in a session: what goes wrong there is not booked wrong.

Each in five conditions: normal, slow, garbled, silent, and unplugged in the middle. The shutters
move the simulated beam, so that what the specimen really takes is known.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tem_live.dose_calibration import DoseCalibration, calibrate_dose
from tem_live.drivers.sim_serial import SimulatedKeithley, SimulatedUniblitz
from tem_live.errors import DeviceError, DeviceTimeoutError, DisconnectedError
from tem_live.session import Session, open_session
from tests.drivers.instruments.cable import (
    Cable,
    Faulty,
    Unplugged,
    silent,
    unplugged_in_mid_reply,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")

AMPLE_S = 30.0
PROFILE = """
[camera]
driver = "sim"
exposure_s = 0.01
sensor_height_px = 32
sensor_width_px = 32
specimen_pixel_nm = 0.2
beam_e_per_px_s = 100.0
overflow = "count"

[restorer]
model = "none"

[dose]
incident_rate_e_per_A2_s = 25.0

[column]
port = "{port}"
delay_s = 0.05
{driver}
"""
# The second is the same instrument, by the codes of its manual.
SHUTTERS = {
    "uniblitz": 'driver = "uniblitz"',
    "serial-line": 'driver = "serial-line"\nblank_text = "A"\nunblank_text = "@"',
}


class Shutter:
    """A shutter in the simulated beam, and the faults of it and of its cable.

    Normally closed: what the driver sends is what moves it.
    """

    def __init__(self, folder: Path) -> None:
        self._instrument = SimulatedUniblitz(self._move)
        self._moved = threading.Condition()
        self._opened = False
        self.slow_s = 0.0
        self.says = b""
        self.deaf = False
        self.pull_at = b""
        self.take_beam: Callable[[bool], None] = lambda _blanked: None
        self.cable = Cable(self._receive, folder)

    def _receive(self, data: bytes) -> bytes:
        if self.pull_at and self.pull_at in data:
            raise Unplugged(self.says)
        if self.slow_s:
            threading.Event().wait(self.slow_s)
        if not self.deaf:
            self._instrument.receive(data)
        return self.says

    def _move(self, channel: int, opened: bool) -> None:
        with self._moved:
            self._opened = opened
            self.take_beam(not opened)
            self._moved.notify_all()

    def wait(self, opened: bool) -> None:
        with self._moved:
            assert self._moved.wait_for(lambda: self._opened is opened, AMPLE_S)


@pytest.fixture
def shutter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shutter]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = set(threading.enumerate())
    shutter = Shutter(tmp_path)
    with shutter.cable:
        yield shutter
    assert set(threading.enumerate()) <= before


@pytest.fixture(params=SHUTTERS)
def session(request: pytest.FixtureRequest, shutter: Shutter, tmp_path: Path) -> Iterator[Session]:
    """A session whose simulated beam goes through the shutter."""
    profile = tmp_path / "shutter.toml"
    profile.write_text(PROFILE.format(port=shutter.cable.port, driver=SHUTTERS[request.param]))
    with open_session(str(profile)) as session:
        shutter.take_beam = session._camera.microscope.set_blanked  # type: ignore[attr-defined]
        shutter.take_beam(True)
        yield session


def lit(session: Session, frames: int = 20) -> tuple[float, float]:
    """What came in during a run and some time after it: (booked, true) in e-/A^2."""
    before = session.stats().fluence_e_per_A2 or 0.0, session.true_fluence_e_per_A2 or 0.0
    session.start(frames)
    assert session.wait(AMPLE_S)
    threading.Event().wait(0.05)
    after = session.stats().fluence_e_per_A2 or 0.0, session.true_fluence_e_per_A2 or 0.0
    return after[0] - before[0], after[1] - before[1]


def test_a_shutter_as_it_should_be(session: Session) -> None:
    booked, true = lit(session)
    assert session.blanked
    # Its delay is booked in full, a shutter on a pseudo-terminal moves at once.
    assert true <= booked <= true + 25 * 2 * 0.05 + 0.05 * true
    assert true > 25 * 20 * 0.01


def test_a_slow_shutter_within_its_delay(session: Session, shutter: Shutter) -> None:
    shutter.slow_s = 0.03
    booked, true = lit(session)
    assert session.blanked
    assert 0 < true <= booked


@pytest.mark.parametrize("says", [b"\xff\x00", b"@@@@\r\n", b"A" * 3000])
def test_a_shutter_that_babbles_is_not_listened_to(
    session: Session, shutter: Shutter, says: bytes
) -> None:
    shutter.says = says
    booked, true = lit(session)
    assert session.blanked
    assert 0 < true <= booked
    assert not any(level == "error" for level, _ in session.messages)


def test_a_shutter_without_power_never_makes_less_booked(
    session: Session, shutter: Shutter
) -> None:
    # Closed it stays closed. Nobody can know; what is booked is what would have come.
    shutter.deaf = True
    booked, true = lit(session)
    assert true == 0
    assert booked > 25 * 20 * 0.01


def test_a_shutter_unplugged_with_the_command_on_its_way(
    session: Session, shutter: Shutter
) -> None:
    true_before = session.true_fluence_e_per_A2 or 0.0
    session.start()
    shutter.wait(opened=True)
    # The plug takes the command along: written it was, and it never came.
    shutter.pull_at, shutter.says = b"A", b"?"
    with pytest.raises(DeviceError, match="ttyTEST"):
        session.blanked = True
    assert session.blanked is False
    shutter.cable.wait_until_unplugged()
    shutter.pull_at = b""
    # The beam is on, and is booked as such.
    before = session.stats().fluence_e_per_A2 or 0.0
    threading.Event().wait(0.2)
    assert (session.stats().fluence_e_per_A2 or 0.0) - before >= 25 * 0.2
    shutter.cable.plug()
    session.blanked = True
    shutter.wait(opened=False)
    assert session.blanked
    session.stop()
    at_the_end = session.stats().fluence_e_per_A2 or 0.0
    assert at_the_end >= (session.true_fluence_e_per_A2 or 0.0) - true_before > 0
    threading.Event().wait(0.1)
    assert session.stats().fluence_e_per_A2 == pytest.approx(at_the_end, abs=1e-6)


# ------------------------------------------------------------------------- the beam's current


OLD = DoseCalibration(
    profile="sim",
    taken="2026-01-01T12:00:00",
    counts_per_electron=40.0,
    counts_interval=(39.0, 41.0),
    offset_counts=100.0,
    read_noise_counts=28.0,
    assumptions=(),
    rates_e_per_A2_s={"column": 25.0, "current": 30.0},
    disagreement=0.2,
    use="current",
    current_A=1e-9,
    beam_area_nm2=1e4,
    exposure_s=0.01,
    binning=1,
    pixel_size_nm=0.2,
    spot_size=3,
    magnification=50_000.0,
)


@pytest.fixture
def meter() -> Faulty:
    # 1 nA; what the simulated beam is taken for.
    return Faulty(SimulatedKeithley(lambda: -1.0e-9).receive)


@pytest.fixture
def metered(meter: Faulty, tmp_path: Path) -> Iterator[tuple[Session, Cable]]:
    """A session with the simulated column and a picoammeter on a cable."""
    before = set(threading.enumerate())
    with Cable(meter.receive, tmp_path) as cable:
        overrides: dict[str, Any] = {
            "restorer.model": "none",
            "camera.sensor_height_px": 64,
            "camera.sensor_width_px": 64,
            "camera.exposure_s": 0.005,
            "camera.overflow": "count",
            "beam_monitor.driver": "keithley",
            "beam_monitor.port": cable.port,
            "beam_monitor.timeout_s": AMPLE_S,
        }
        with open_session("sim", overrides) as session:
            yield session, cable
    assert set(threading.enumerate()) <= before


def test_a_picoammeter_as_it_should_be(metered: tuple[Session, Cable]) -> None:
    session, _ = metered
    assert session.read_current() == pytest.approx(-1e-9)
    assert session.blanked


def test_a_slow_picoammeter_is_waited_for(metered: tuple[Session, Cable], meter: Faulty) -> None:
    session, _ = metered
    session.read_current()

    def slow(answer: bytes) -> bytes:
        threading.Event().wait(0.1)
        return answer

    meter.faults.extend([slow, slow])
    assert session.read_current() == pytest.approx(-1e-9)


def garbled(answer: bytes) -> bytes:
    return answer[:4] + b"\xff" + answer[5:]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (garbled, DeviceError),
        (silent, DeviceTimeoutError),
        (unplugged_in_mid_reply, DisconnectedError),
    ],
)
def test_a_picoammeter_that_fails_changes_nothing_that_is_booked(
    metered: tuple[Session, Cable],
    meter: Faulty,
    fault: Callable[[bytes], bytes],
    error: type[Exception],
) -> None:
    session, cable = metered
    session.use_dose_calibration(OLD)
    session.read_current()
    assert session.cost(1.0).e_per_A2 == pytest.approx(30, rel=0.02)
    if fault is silent:
        session._monitor._link.timeout_s = 0.2  # type: ignore[union-attr]
    meter.faults.append(fault)
    with pytest.raises(error, match="ttyTEST"):
        calibrate_dose(session)
    assert session.blanked
    assert session.dose_calibration == OLD
    assert session.cost(1.0).e_per_A2 == pytest.approx(30, rel=0.02)
    assert (session.stats().fluence_e_per_A2 or 0.0) >= (session.true_fluence_e_per_A2 or 0.0) > 0
    # It is there again, and so is its reading.
    if fault is unplugged_in_mid_reply:
        cable.wait_until_unplugged()
        cable.plug()
    session._monitor._link.timeout_s = AMPLE_S  # type: ignore[union-attr]
    assert session.read_current() == pytest.approx(-1e-9)
