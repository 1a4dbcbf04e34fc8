"""A session without instrument that follows the API, and a window wired to it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from psygnal import Signal
from PySide6.QtWidgets import QApplication

from tem_live.account import Cost
from tem_live.drivers.protocols import CameraCapabilities
from tem_live.errors import DisconnectedError, RefusedError
from tem_live.fluence_map import FluenceMap, Place
from tem_live.gui import theme
from tem_live.gui.app import Workers, build
from tem_live.gui.models.settings import SettingsStore
from tem_live.gui.singletons import make_immortal
from tem_live.gui.views.main_window import MainWindow
from tem_live.ledger_reading import check_area
from tem_live.state import Frame, FrameInfo, LoopState, RunStats, SessionState
from tem_live.watch import WatchState
from tests.gui.planes import on_device, plane_of

# No test opens a window on anybody's screen, and computers without one can run them too.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


def particles(shape=(256, 256), step=0):
    """Expected electrons per pixel of a few round particles on a carbon film."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    scale = min(shape) / 256
    image = np.full(shape, 5.2, np.float32) + 0.15 * np.sin(x / 17 / scale) * np.cos(y / 23 / scale)
    random = np.random.default_rng(3)
    for _ in range(16):
        cy, cx = random.uniform(0, shape[0]), random.uniform(0, shape[1])
        radius = random.uniform(6, 24) * scale
        cy, cx = cy + random.normal() * step * 0.2, cx + random.normal() * step * 0.2
        distance = np.hypot(y - cy, x - cx)
        lattice = 0.25 * np.cos((x + 0.4 * y) * 1.1)
        thickness = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, 1))
        image -= thickness * (2.4 + lattice)
    return np.clip(image, 0.3, None)


class FakeSession:
    """Gives frames at once when asked for the newest; settings can be made slow or refused."""

    state_changed = Signal(SessionState)
    stopped = Signal(str)
    message = Signal(str, str)

    def __init__(self, name="fake", shape=(256, 256), pixel_size_nm=0.1, **state):
        self.profile = SimpleNamespace(
            name=name, title="", camera=SimpleNamespace(driver="sim"), pipeline=None
        )
        self.capabilities = CameraCapabilities(
            name="Fake camera 4k",
            sensor_shape=shape,
            dtype=np.dtype(np.uint16),
            exposure_range_s=(0.001, 10.0),
            binnings=(1, 2, 4),
            has_roi=True,
        )
        self.messages: deque[tuple[str, str]] = deque()
        self.state = replace(
            SessionState(
                exposure_s=0.2,
                binning=1,
                roi=(0, 0, *shape),
                frame_shape=shape,
                frame_interval_s=0.05,
                pixel_size_nm=pixel_size_nm,
                counts_per_electron=8.0,
                saturation_counts=65535.0,
                dose_rate_e_per_px_s=25.0,
                blanked=True,
                model="fast",
                device="cpu",
                running=False,
                recording=None,
            ),
            **state,
        )
        self.hold = threading.Event()
        self.hold.set()
        self.calls: list[str] = []
        self.closed = False
        self.run_error = None
        self.modes = ("search", "record")
        self.exposes_nothing = True
        self.can_set_dose_rate = True
        self.place = Place(0.0, 0.0, 25.6, 25.6)
        self.map = FluenceMap(0.2)
        self.blank_calls = 0
        self.frame_id = 0
        self.total = 0.0
        self.budget_e_per_A2: float | None = None
        self.watch_state = WatchState()
        self.watching = 0
        self.loop_nm = None
        self.interval_s = 0.0
        self._last = 0.0
        self._truth = [particles(shape, step) for step in range(4)]
        self._random = np.random.default_rng(1)

    def _set(self, **changes):
        self.state = replace(self.state, **changes)
        self.state_changed.emit(self.state)

    def apply(self, **changes):
        self.hold.wait(20)
        self.calls.append(f"apply {changes}")
        if changes.get("exposure_s", 1) < 0.001:
            raise RefusedError("the camera takes no exposure under 1 ms; ask for more")
        new = dict(changes)
        if "dose_rate" in new:
            # The column takes whole steps of 5 only: what is read back differs from what was asked.
            new["dose_rate_e_per_px_s"] = 5.0 * round(new.pop("dose_rate") / 5.0)
        if "roi" in new and new["roi"] is None:
            new["roi"] = (0, 0, *self.capabilities.sensor_shape)
        self._set(**new)
        return self.state

    def blank_now(self):
        self.blank_calls += 1
        self.calls.append("blank_now")
        self._set(blanked=True)
        self.message.emit("warning", "beam blanked")

    def start(self, frames=None):
        self.hold.wait(20)
        self.calls.append("start")
        self._set(running=True, blanked=False if self.state.blanked is not None else None)

    def stop(self, reason="user"):
        self.calls.append("stop")
        self._set(running=False, blanked=True if self.state.blanked is not None else None)
        self.stopped.emit(reason)

    def lose(self, text="the camera does not answer any more", error=DisconnectedError):
        self.run_error = error(text)
        # As the session does it: the run's end is told before the state that it leaves.
        self.state = replace(self.state, running=False, blanked=True)
        self.message.emit("error", text)
        self.stopped.emit(f"error: {text}")
        self.state_changed.emit(self.state)

    def close(self):
        self.calls.append("close")
        self._set(running=False, blanked=True, recording=None)
        self.closed = True

    @property
    def area(self):
        return self.state.area

    @area.setter
    def area(self, name):
        if name is not None:
            check_area(name)
        self._set(area=name)

    def use_mode(self, name):
        self.hold.wait(20)
        self.calls.append(f"mode {name}")
        self._set(mode=name, magnification=50_000.0)

    def fluence_map(self, most_bytes=None):
        return SimpleNamespace(map=self.map, unplaced_e_per_A2=0.0)

    def record(self, path):
        self.calls.append(f"record {path}")
        self._set(recording=Path(path))
        return Path(path)

    def stop_recording(self):
        path = self.state.recording
        self._set(recording=None)
        return path

    def take_reference(self, kind, frames=64, path=None):
        self.calls.append(f"reference {kind} {frames}")
        return Path(f"{kind}.npz")

    def rolling_mean_on_device(self):
        return plane_of(self._truth[0])

    def stats(self):
        return RunStats(
            frames=self.frame_id,
            fps=19.8,
            restored=self.frame_id,
            restore_fps=19.8,
            latency_ms_p50=12.4,
            latency_ms_p99=20.1,
            display_skipped=3,
            dose_e_per_px=5.0,
            fluence_e_per_A2=self.total,
            budget_e_per_A2=self.budget_e_per_A2,
            area_fluence_e_per_A2=self.total,
            left_e_per_A2=(
                None if self.budget_e_per_A2 is None else self.budget_e_per_A2 - self.total
            ),
            recorded=12 if self.state.recording else 0,
        )

    def cost(self, exposure_s=None, frames=1):
        left = self.stats().left_e_per_A2
        return Cost(5.5 * frames, left, "incident")

    def watch(self):
        self.watching += 1

        def close():
            self.watching -= 1

        return SimpleNamespace(state=self.watch_state, close=close)

    def minimise(self, target_resolution_nm):
        if self.state.model == "none":
            raise RefusedError("the dose is judged on restored frames; choose a model")
        self.loop_nm = target_resolution_nm

        def stop():
            self.loop_nm = None

        state = LoopState(True, "holding", "1 nm", text=f"holds {target_resolution_nm:g} nm")
        return SimpleNamespace(state=state, stop=stop, watch=self.watch())

    def take_critical_fluence_as_budget(self):
        self.budget_e_per_A2 = 267.0
        return 267.0

    def newest_on_device(self):
        if not self.state.running or time.monotonic() - self._last < self.interval_s:
            return None
        self._last = time.monotonic()
        return on_device(self.make_frame())

    def make_frame(self):
        truth = self._truth[self.frame_id % len(self._truth)]
        electrons = self._random.poisson(truth).astype(np.float32)
        restored = truth + self._random.normal(0, 0.1, truth.shape).astype(np.float32)
        state = self.state
        self.total += 5.0
        info = FrameInfo(
            frame_id=self.frame_id,
            sequence=self.frame_id,
            host_time_s=time.time(),
            exposure_s=state.exposure_s,
            binning=state.binning,
            pixel_size_nm=state.pixel_size_nm,
            counts_per_electron=state.counts_per_electron,
            dose_e_per_px=float(electrons.mean()),
            fluence_e_per_A2=5.0,
            total_fluence_e_per_A2=self.total,
            dose_rate_e_per_px_s=state.dose_rate_e_per_px_s,
            blanked=state.blanked,
            drift_px=(0.3, -0.4),
            model=state.model,
            latency_ms=12.0,
            roi=state.roi,
        )
        self.frame_id += 1
        return Frame(
            raw=(electrons * 8).astype(np.uint16),
            electrons=electrons,
            restored=None if state.model == "none" else restored.astype(np.float32),
            meta=info,
        )


MODELS = [("fast", "Small U-Net"), ("gaussian", "Gaussian blur"), ("none", "No restoration")]


class Rig:
    """A wired window with a fake session, or whatever the opener gives."""

    def __init__(self, qtbot, session=None, opener=None, store=None, at_once=None):
        theme.apply(QApplication.instance())
        self.qtbot = qtbot
        self.session = session or FakeSession()
        self.window = MainWindow()
        # Unlike qtbot.addWidget this never calls close(), which would only ask for it.
        self.workers = Workers()
        self.cockpit, self.hub = build(
            self.window,
            self.workers,
            opener or (lambda profile, overrides: self.session),
            store or SettingsStore(None),
            lambda: MODELS,
            lambda: ["fake", "sim", "replay"],
            at_once,
        )
        self.ended = False
        self.gone = False
        self.cockpit.finished.connect(self._on_end)

    def _on_end(self):
        self.ended = True

    def open(self, start=True):
        self.window.show()
        self.cockpit.open("fake", autostart=lambda session, state: start)
        self.qtbot.waitUntil(lambda: self.hub.session is not None)
        if start:
            self.qtbot.waitUntil(lambda: self.hub.state.running and not self.hub.is_pending("run"))
        return self

    def settled(self, is_so):
        """Wait until the window knows that the session is so and nothing is on its way."""
        self.qtbot.waitUntil(
            lambda: (
                is_so(self.hub.state)
                and not any(self.hub.is_pending(key) for key in ("run", "blanked", "record"))
            ),
            timeout=20_000,
        )

    def wait_frames(self, count=1):
        seen = []

        def add(meta, restored):
            seen.append(meta.frame_id)

        self.cockpit.display.shown.connect(add)
        self.qtbot.waitUntil(lambda: len(seen) >= count)
        self.cockpit.display.shown.disconnect(add)

    def end(self):
        self.session.hold.set()
        if not self.ended:
            self.cockpit.close()
            self.qtbot.waitUntil(lambda: self.ended, timeout=10000)
        if not self.gone:
            self.gone = True
            self.workers.close()
            self.window.deleteLater()


@pytest.fixture(autouse=True, scope="session")
def _immortal():
    make_immortal()


@pytest.fixture
def make_session():
    return FakeSession


@pytest.fixture
def make_rig(qtbot):
    rigs = []

    def make(**options):
        rigs.append(Rig(qtbot, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.end()


@pytest.fixture
def rig(make_rig):
    return make_rig()


@pytest.fixture(autouse=True)
def _own_settings(tmp_path, monkeypatch):
    """No test may read or write the user's settings."""
    monkeypatch.setattr("tem_live.gui.app.settings_path", lambda: tmp_path / "gui.json")
