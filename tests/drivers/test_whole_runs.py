"""Every driver in a whole session: no frame is lost, and a fault amid a run costs only the run.

What each fault is on the wire is tested beside the driver; here, what it is to whoever measures:
the error is named in time, the beam is off, the recording is whole, the next run works, and
nothing is left behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tem_live import session as session_module
from tem_live.errors import NotConnectedError
from tem_live.recording import read_recording
from tem_live.session import Session, open_session
from tests.drivers.breakable import MARKS, PEERS, Peer
from tests.tem_live.fakes import FakeColumn

# A simulator of others compiles when it is new.
pytestmark = pytest.mark.timeout(300)

FAULTS = [(name, fault) for name, (_, faults) in PEERS.items() for fault in faults]
AMPLE_S = 60.0


@pytest.fixture
def column(monkeypatch: pytest.MonkeyPatch) -> FakeColumn:
    """A blanker of its own, which goes with no camera."""
    column = FakeColumn()
    monkeypatch.setattr(session_module, "make_column", lambda profile, camera: column)
    return column


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    before = the_programs()
    with PEERS[request.param][0](request) as peer:
        yield peer
    # A thread that was given up ends when the call that held it returns.
    wait_until(lambda: the_programs() <= before)


def session_of(peer: Peer) -> Session:
    settings: dict[str, Any] = {
        "camera.exposure_s": peer.exposure_s,
        "camera.reply_timeout_s": peer.reply_s,
        "restorer.model": "none",
        **peer.settings,
    }
    return open_session(peer.profile, settings)


def check_recording(path: Path, frames: int, peer: Peer) -> None:
    """It opens in plain zarr, and holds so many frames, each as it was sent."""
    group: Any = zarr.open_group(path, mode="r")
    raw = np.asarray(group["raw/0"])
    assert len(raw) == frames
    (segment,) = read_recording(path).segments
    assert [info["sequence"] for info in segment.frames] == list(range(frames))
    for number in range(frames if peer.sent else 0):
        np.testing.assert_array_equal(raw[number], peer.sent(number))  # type: ignore[misc]


def runs_again(session: Session) -> bool:
    """Whether it connects again; a library does once the call that was given up has returned."""
    try:
        return sum(1 for _ in session.frames(3)) == 3
    except NotConnectedError:
        return False


def the_programs() -> set[threading.Thread]:
    """Threads but for those of zarr, which are for all stores and stay."""
    of_zarr = ("zarr_io", "asyncio_")
    return {each for each in threading.enumerate() if not each.name.startswith(of_zarr)}


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + AMPLE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "peer", [pytest.param(name, marks=MARKS.get(name, [])) for name in PEERS], indirect=True
)
def test_200_frames_are_recorded_as_they_were_sent(
    peer: Peer, column: FakeColumn, tmp_path: Path
) -> None:
    path = tmp_path / "run.zarr"
    with session_of(peer) as session:
        exposure_s = session.exposure_s
        session.record(path)
        session.start(200)
        assert session.wait(AMPLE_S)
        stats = session.stats()
    assert (stats.frames, stats.dropped_raw, stats.stop_reason) == (200, 0, "frames")
    assert exposure_s == pytest.approx(peer.exposure_s)
    assert column.blanked
    check_recording(path, 200, peer)


@pytest.mark.parametrize(
    ("peer", "fault"),
    [pytest.param(name, fault, marks=MARKS.get(name, [])) for name, fault in FAULTS],
    indirect=["peer"],
)
def test_a_fault_amid_a_run(peer: Peer, fault: str, column: FakeColumn, tmp_path: Path) -> None:
    breaks, words = peer.faults[fault]
    path = tmp_path / "run.zarr"
    with session_of(peer) as session:
        session.record(path)
        session.start()
        wait_until(lambda: session.stats().recorded >= 5)
        assert not column.blanked
        breaks()
        began = time.monotonic()
        assert session.wait(AMPLE_S)
        assert time.monotonic() - began < peer.reply_s + 3
        assert column.blanked
        stats = session.stats()
        assert stats.stop_reason is not None
        assert stats.stop_reason.startswith("error: ")
        assert words in stats.stop_reason
        assert "\n" not in stats.stop_reason
        assert stats.dropped_raw == 0
        assert any(level == "error" for level, _ in session.messages), "the user is told"
        check_recording(path, stats.recorded, peer)
        peer.mend()
        wait_until(lambda: runs_again(session))
        assert column.blanked


@pytest.mark.parametrize(
    "peer", [pytest.param(name, marks=MARKS.get(name, [])) for name in PEERS], indirect=True
)
def test_every_fault_of_a_peer_is_tried(peer: Peer, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["peer"]
    assert set(peer.faults) == set(PEERS[name][1])
