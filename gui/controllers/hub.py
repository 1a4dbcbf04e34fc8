"""The one place that talks to the session. Everything that may wait runs on a worker.

Two workers: one for settings, and one for the emergency blank and the end, which must not stand in
line behind a device that does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, Qt, Signal

from tem_live.errors import RefusedError, TemLiveError
from tem_live.gui.workers import Runner

if TYPE_CHECKING:
    from tem_live.session import Session
    from tem_live.state import SessionState

Opener = Callable[[str, Sequence[str]], "Session"]
Action = Callable[["Session"], Any]


class SessionHub(QObject):
    """Opens, changes and closes the session; tells what came of it on the GUI thread.

    Parameters
    ----------
    opener : callable
        ``open_session``.
    settings, emergency : Runner
        Workers; ``emergency`` is used for nothing that waits for the settings' worker.
    """

    opened = Signal(object, object)
    """A session and its state."""
    opening_changed = Signal(bool)
    """Whether a session is being opened."""
    gone = Signal()
    """There is no session any more."""
    state_changed = Signal(object)
    """Settings as read back (`SessionState`)."""
    stopped = Signal(str)
    """A run has ended, with its reason."""
    message = Signal(str, str)
    """Level and one line."""
    pending_changed = Signal(str, bool)
    """A setting waits for its device, or no longer."""
    finished = Signal()
    """`shutdown` is done: recording and devices are closed; as to the beam, see `beam_left_on`."""
    change_failed = Signal(str, object)
    """Name of a setting and the error that it ended with."""
    open_failed = Signal(object)
    """The error that kept a session from being opened."""

    _heard = Signal(int, str, object)

    def __init__(
        self, opener: Opener, settings: Runner, emergency: Runner, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._opener = opener
        self._settings = settings
        self._emergency = emergency
        self._session: Session | None = None
        self._state: SessionState | None = None
        self._epoch = 0
        self._opening = False
        self._closing = False
        self._opens = 0
        self._closes = 0
        self._beam_left_on = False
        self._emergencies = 0
        self._pending: set[str] = set()
        self._unbind: Callable[[], None] = lambda: None
        self._heard.connect(self._hear, Qt.ConnectionType.QueuedConnection)

    @property
    def session(self) -> Session | None:
        """The open session."""
        return self._session

    @property
    def state(self) -> SessionState | None:
        """Its settings as last told."""
        return self._state

    @property
    def opening(self) -> bool:
        """Whether a session is being opened."""
        return self._opening

    @property
    def beam_left_on(self) -> bool:
        """Whether a session was closed whose beam could not be blanked."""
        return self._beam_left_on

    def is_pending(self, key: str) -> bool:
        """Whether that setting waits for its device."""
        return key in self._pending

    # ------------------------------------------------------------------------------------- opening

    def open(self, profile: str, overrides: Sequence[str] = ()) -> None:
        """Close the session, if there is one, and open another."""
        if self._closing:
            return
        self._epoch += 1
        epoch = self._epoch
        self._let_go()
        self._opens += 1
        self._opening = True
        self.opening_changed.emit(True)

        def work() -> tuple[Session, SessionState] | None:
            if epoch != self._epoch:
                return None
            session = self._opener(profile, overrides)
            return session, session.state

        # A key of its own: an answer must never be dropped, the session in it has to be closed.
        self._settings.submit(
            f"open {epoch}",
            work,
            lambda answer: self._on_open(epoch, answer),
            lambda error: self._on_open_failed(epoch, error),
        )

    def _on_open(self, epoch: int, answer: tuple[Session, SessionState] | None) -> None:
        self._opens -= 1
        if answer is None:
            self._finish_if_done()
            return
        session, state = answer
        if self._closing:
            self._close_for_good(session, state)
            return
        if epoch != self._epoch:
            self._settings.submit(f"close {epoch}", session.close)
            return
        self._session, self._state = session, state
        self._bind(epoch, session)
        self._opening = False
        self.opening_changed.emit(False)
        self.opened.emit(session, state)
        self.state_changed.emit(state)
        for level, text in list(session.messages):
            self.message.emit(level, text)

    def _on_open_failed(self, epoch: int, error: Exception) -> None:
        self._opens -= 1
        self._finish_if_done()
        if self._closing or epoch != self._epoch:
            return
        self._opening = False
        self.opening_changed.emit(False)
        self.message.emit("error", one_line(error))
        self.open_failed.emit(error)

    def _let_go(self) -> None:
        session, state = self._session, self._state
        self._unbind()
        self._session = self._state = None
        for key in list(self._pending):
            self._set_pending(key, False)
        if session is None:
            return
        if state is not None and state.blanked is not None:
            # First and apart: closing may have to wait behind a device that does not answer.
            self._emergency.submit("blank", session.blank_now)
        self._settings.submit(
            f"close {self._epoch}",
            session.close,
            failed=lambda error: self.message.emit("error", one_line(error)),
        )
        self.gone.emit()

    def _bind(self, epoch: int, session: Session) -> None:
        def on_state(state: SessionState) -> None:
            self._heard.emit(epoch, "state", session)

        def on_stopped(reason: str) -> None:
            self._heard.emit(epoch, "stopped", reason)

        def on_message(level: str, text: str) -> None:
            self._heard.emit(epoch, "message", (level, text))

        session.state_changed.connect(on_state)
        session.stopped.connect(on_stopped)
        session.message.connect(on_message)

        def unbind() -> None:
            # What it has to say while it is closed is heard: its beam may be still on.
            session.state_changed.disconnect(on_state)
            session.stopped.disconnect(on_stopped)
            self._unbind = lambda: None

        self._unbind = unbind

    def _hear(self, epoch: int, kind: str, what: Any) -> None:
        if kind == "message":
            self.message.emit(*what)
        elif epoch != self._epoch or self._session is None:
            return
        elif kind == "state":
            # As it is by now: of two threads' news the older may have come last.
            self._take_state(what.state)
        else:
            self.stopped.emit(what)

    # ------------------------------------------------------------------------------------ changing

    def change(
        self,
        key: str,
        action: Action,
        done: Callable[[Any], None] | None = None,
        unblanks: bool = False,
    ) -> None:
        """Do something with the session on the settings' worker and read the settings back.

        Parameters
        ----------
        key : str
            Name of the setting. It is pending until the device has answered the last change.
        action : callable of Session
            What to do; may wait.
        done : callable, optional
            Gets the action's result on the GUI thread, if it succeeded.
        unblanks : bool
            The action takes the beam onto the specimen. An emergency blank that comes after it was
            asked for has the last word, even where the action had to wait for a device.
        """
        session, epoch = self._session, self._epoch
        if session is None:
            self.message.emit("warning", "no instrument is open; choose a profile")
            return
        self._set_pending(key, True)

        emergencies = self._emergencies

        def work() -> tuple[Any, Exception | None]:
            result: Any = None
            failure: Exception | None = None
            try:
                if unblanks and emergencies != self._emergencies:
                    raise RefusedError("not done, since the beam was blanked meanwhile")
                result = action(session)
            except Exception as error:
                failure = error
            if unblanks and emergencies != self._emergencies:
                session.blank_now()
            return result, failure

        def answered(answer: tuple[Any, Exception | None]) -> None:
            if epoch != self._epoch:
                return
            result, failure = answer
            self._set_pending(key, False)
            # Not as it was when the device answered: the beam may have been blanked since.
            self._take_state(session.state)
            if failure is not None:
                self.message.emit("error", one_line(failure))
                self.change_failed.emit(key, failure)
            elif done is not None:
                done(result)

        def failed(error: Exception) -> None:
            if epoch == self._epoch:
                self._set_pending(key, False)
                self.message.emit("error", one_line(error))

        self._settings.submit(key, work, answered, failed)

    def blank_now(self) -> None:
        """Emergency: take the beam off the specimen, ahead of everything else."""
        session = self._session
        if session is None:
            self.message.emit("warning", "no instrument is open, so no beam can be blanked here")
            return
        self._emergencies += 1
        self._set_pending("blanked", True)

        def answered(_: object) -> None:
            self._set_pending("blanked", False)
            if session is self._session:
                self._take_state(session.state)

        def failed(error: Exception) -> None:
            self.message.emit("error", one_line(error))
            answered(None)

        self._emergency.submit("blank", session.blank_now, answered, failed)

    # ------------------------------------------------------------------------------------- closing

    def shutdown(self) -> None:
        """Blank the beam and close everything; `finished` tells when."""
        if self._closing:
            return
        self._closing = True
        self._epoch += 1
        self._unbind()
        if self._session is not None:
            self._close_for_good(self._session, self._state)
        else:
            self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._closing and not self._opens and not self._closes:
            self.finished.emit()

    def _close_for_good(self, session: Session, state: SessionState | None) -> None:
        def work() -> None:
            if state is not None and state.blanked is not None:
                session.blank_now()
            session.close()

        def closed(_: object) -> None:
            self._beam_left_on |= session.state.blanked is False
            self._closes -= 1
            self._finish_if_done()

        def failed(error: Exception) -> None:
            self.message.emit("error", one_line(error))
            closed(None)

        self._closes += 1
        self._emergency.submit(f"shutdown {id(session)}", work, closed, failed)

    def _take_state(self, state: SessionState) -> None:
        self._state = state
        self.state_changed.emit(state)

    def _set_pending(self, key: str, pending: bool) -> None:
        if pending:
            self._pending.add(key)
        else:
            self._pending.discard(key)
        self.pending_changed.emit(key, pending)


def one_line(error: Exception) -> str:
    """Text for the message bar; an error that is not ours is named as such."""
    text = " ".join(str(error).split())
    if isinstance(error, TemLiveError):
        return text
    return f"internal error, please report it: {type(error).__name__}: {text}"
