"""Start of the cockpit: application, window, workers, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from tem_live.errors import DeviceError, InputError, TemLiveError
from tem_live.gui import theme
from tem_live.gui.controllers.cockpit import Cockpit
from tem_live.gui.controllers.display import Table
from tem_live.gui.controllers.hub import Opener, SessionHub, one_line
from tem_live.gui.models.settings import SettingsStore, settings_path
from tem_live.gui.singletons import make_immortal
from tem_live.gui.views.main_window import MainWindow
from tem_live.gui.workers import Worker
from tem_live.interrupts import ended_in_order
from tem_live.profiles import profile_names

if TYPE_CHECKING:
    from tem_live.session import Session
    from tem_live.state import FrameInfo, SessionState

SIZE = (1280, 800)
SCREENSHOT_LIMIT_S = 180.0


def open_for_gui(profile: str, overrides: Sequence[str]) -> Session:
    """Open a session; imported here because torch takes seconds, on the worker's time."""
    from tem_live.session import open_session

    return open_session(profile, overrides)


def list_models() -> list[tuple[str, str]]:
    """Names and titles of the restorers; imported here for the same reason."""
    from tem_live.models import list_restorers

    return [(card.name, card.title) for card in list_restorers()]


def colour_table(name: str) -> Table | None:
    """Colour map by name; grey needs none."""
    if name == "grey":
        return None
    table: Table = np.asarray(pg.colormap.get(name).getLookupTable(nPts=256, alpha=False))
    return table


def starts_at_once(session: Session, state: SessionState) -> bool:
    """Whether frames may be taken without the user's word: only where that exposes nothing.

    A real beam stays blanked until somebody presses Start, whatever the camera is. A simulated
    column harms no specimen, and where no blanker can be steered, taking frames does not change
    the exposure.
    """
    return session.exposes_nothing


class Workers:
    """The threads of one window."""

    def __init__(self) -> None:
        self.settings = Worker("tem-live settings")
        self.emergency = Worker("tem-live emergency")
        self.display = Worker("tem-live display")
        self.catalogue = Worker("tem-live catalogue")

    def close(self) -> None:
        """Let them end; one that hangs in a device is left behind."""
        for worker in (self.settings, self.emergency, self.display, self.catalogue):
            worker.close(timeout_s=2.0)


def build(
    window: MainWindow,
    workers: Workers,
    opener: Opener = open_for_gui,
    store: SettingsStore | None = None,
    models: Callable[[], Sequence[tuple[str, str]]] = list_models,
    profiles: Callable[[], Sequence[str]] = profile_names,
    at_once: Callable[[Session, SessionState], bool] | None = None,
) -> tuple[Cockpit, SessionHub]:
    """Wire a window; for `run_gui` and for tests.

    Parameters
    ----------
    window, workers
        To be wired.
    opener : callable
        Opens sessions.
    store : SettingsStore, optional
        Remembered settings; in memory only by default.
    models, profiles : callable
        Lists to choose from.
    at_once : callable, optional
        Decides from an open session whether frames are taken at once; never by default.
    """
    hub = SessionHub(opener, workers.settings, workers.emergency)
    cockpit = Cockpit(
        window,
        hub,
        workers.display,
        workers.catalogue,
        store or SettingsStore(None),
        models,
        profiles,
        colour_table,
        at_once,
    )
    return cockpit, hub


def run_gui(
    profile: str = "sim",
    *,
    overrides: Sequence[str] = (),
    screenshot: Path | None = None,
    frames: int = 0,
    out: Path | None = None,
    show: Sequence[str] = (),
    size: tuple[int, int] = SIZE,
    opener: Opener = open_for_gui,
    limit_s: float = SCREENSHOT_LIMIT_S,
) -> int:
    """Run the cockpit until its window is closed.

    Parameters
    ----------
    profile : str
        Name or path of a profile.
    overrides : sequence of "key=value"
        Fields to set over the profile's.
    screenshot : Path, optional
        Run offscreen, save the window as PNG here once ``frames`` restored frames were shown
        (frames of any kind where no restorer runs), close the session and return.
    frames : int
        See ``screenshot``; at least one.
    out : Path, optional
        Record from the start.
    show : sequence of str
        Display switches to turn on: ``spectrum``, ``profile``, ``shared_levels``,
        ``rolling_mean``.
    size : (width, height)
        Size of the window for a screenshot in pixels.
    opener : callable
        Opens the session.
    limit_s : float
        How long a screenshot may take in seconds.

    Returns
    -------
    int
        Exit status: 0, or that of the error that ended a screenshot.
    """
    if screenshot is not None and not screenshot.parent.is_dir():
        raise InputError(
            f"--screenshot {screenshot}: the folder {screenshot.parent} does not exist"
        )
    make_immortal()
    app = QApplication.instance()
    if not isinstance(app, QApplication):
        arguments = ["tem-live"]
        if screenshot is not None:
            arguments += ["-platform", "offscreen"]
        app = QApplication(arguments)
    app.setApplicationName("tem_live")
    theme.apply(app)
    window = MainWindow()
    workers = Workers()
    # A screenshot shows the program as it ships, not how somebody left it.
    store = SettingsStore(None if screenshot is not None else settings_path())
    cockpit, hub = build(window, workers, opener, store, at_once=starts_at_once)
    for switch in show:
        cockpit.display.toggle(switch)
    status = 0

    def end(code: int) -> None:
        nonlocal status
        status = status or code
        cockpit.close(attended=False)

    def beam_in_doubt(text: str) -> None:
        nonlocal status
        status = DeviceError.exit_code
        sys.stderr.write(f"tem-live: error: {text}\n")

    cockpit.beam_in_doubt.connect(beam_in_doubt)

    if screenshot is not None:
        window.resize(*size)
        _take_screenshot(window, cockpit, hub, screenshot, max(1, frames), limit_s, end)

    def begin_recording(session: Session) -> None:
        assert out is not None
        session.record(out)

    at_once = screenshot is not None or out is not None
    cockpit.open(
        profile,
        overrides,
        autostart=(lambda session, state: True) if at_once else None,
        on_ready=begin_recording if out is not None else None,
    )
    # A loop of our own: quitting the application for good would leave it unusable for whoever had
    # it before us, a notebook or a test.
    loop = QEventLoop()
    cockpit.finished.connect(loop.quit)
    app.setQuitOnLastWindowClosed(False)
    window.show()
    # Python's handlers run between two byte codes; the display's timer sees to it that there are.
    with ended_in_order(lambda number, frame: end(1 if screenshot is not None else 0)):
        loop.exec()
    workers.close()
    window.deleteLater()
    return status


def _take_screenshot(
    window: MainWindow,
    cockpit: Cockpit,
    hub: SessionHub,
    path: Path,
    frames: int,
    limit_s: float,
    end: Callable[[int], None],
) -> None:
    seen = 0
    done = False

    def fail(text: str, code: int) -> None:
        nonlocal done
        if not done:
            done = True
            sys.stderr.write(f"tem-live: error: {text}\n")
            end(code)

    def save() -> None:
        if not window.grab().save(str(path)):
            sys.stderr.write(f"tem-live: error: the screenshot {path} cannot be written\n")
            end(InputError.exit_code)
        else:
            end(0)

    def count(meta: FrameInfo, restored: bool) -> None:
        nonlocal seen, done
        if restored or meta.model == "none":
            seen += 1
        if seen >= frames and not done:
            done = True
            # A moment for the figures that are fetched beside the frames.
            QTimer.singleShot(400, window, save)

    def refused(error: Exception) -> None:
        code = error.exit_code if isinstance(error, TemLiveError) else 1
        fail(one_line(error), code)

    def failed(key: str, error: Exception) -> None:
        if key in ("run", "record"):
            refused(error)

    def stopped(reason: str) -> None:
        if reason.startswith("error"):
            fail(reason.removeprefix("error: "), 3)

    cockpit.display.shown.connect(count)
    hub.open_failed.connect(refused)
    hub.change_failed.connect(failed)
    hub.stopped.connect(stopped)
    QTimer.singleShot(
        int(limit_s * 1000),
        window,
        lambda: fail(f"only {seen} of {frames} frames were shown in {limit_s:g} s", 3),
    )
