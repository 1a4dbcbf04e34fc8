"""The beam of one session: blanked and let through, set, and booked by what the column tells.

`Beam` owns the column. Whoever lets the beam onto the specimen passes `Beam.let_through`, and a run
ends in `Beam.blank_quietly`, however it ends.

There are two locks, which nobody else takes. `_changing` is held while the column takes what the
dose rate depends on, which may be slow; `_noting` while it is noted what the blanker answered,
inside of the other where both are. Blanking takes the second alone, and that only once the blanker
was commanded: a column that takes its time cannot hold it up.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from tem_live.account import DoseAccount
from tem_live.dose_calibration import DoseCalibration
from tem_live.drivers.protocols import Blanker, Column, ColumnParts, Simulated
from tem_live.errors import DeviceError, RefusedError
from tem_live.magnifications import MagnificationTable
from tem_live.profiles import Profile
from tem_live.state import BeamState
from tem_live.supervisor import Supervisor, last_report

SUPERVISOR_STARTS_S = 20.0
_UNWATCHED = (
    "no second process watches over the beam: it stays on if this program is killed or hangs"
)


class Beam:
    """See the module's text. Blanking is safe from any thread.

    Parameters
    ----------
    profile : Profile
        The instrument.
    column : Column or None
        Its column, not yet open.
    account : DoseAccount
        Told when the beam is on, and at which dose rate.
    calibration : DoseCalibration or None
        What dose rates are set and booked by.
    why_not : callable
        Why the detector does not allow the beam as it is set; None where it does.
    on_too_bright : callable of str
        Called with that where it comes to be so with the beam on.
    tell : callable of (str, str)
        Level and one line for the user.

    Attributes
    ----------
    parts : ColumnParts
        What the column can do; nothing until it is open.
    state : BeamState
        As last read back.
    spot_size, magnification : int or float or None
        As last read back.
    magnification_at_start : float or None
        As it was when the column was opened.
    magnifications : MagnificationTable
        What was calibrated of them.
    calibration : DoseCalibration or None
        As given; after setting it, `read_rate_again`.
    """

    def __init__(
        self,
        profile: Profile,
        column: Column | None,
        account: DoseAccount,
        calibration: DoseCalibration | None,
        why_not: Callable[[], str | None],
        on_too_bright: Callable[[str], None],
        tell: Callable[[str, str], None],
    ) -> None:
        self._profile = profile
        self._column = column
        self._account = account
        self._why_not = why_not
        self._on_too_bright = on_too_bright
        self._tell = tell
        self._changing = threading.Lock()
        self._noting = threading.RLock()
        self._opened = False
        self._emergencies = 0
        self._supervisor: Supervisor | None = None
        self.parts = ColumnParts()
        self.state = BeamState()
        self.spot_size: int | None = None
        self.magnification: float | None = None
        self.magnification_at_start: float | None = None
        self.magnifications = MagnificationTable(profile.magnifications)
        self.calibration = calibration

    # ------------------------------------------------------------------------- opening and closing

    def open_column(self) -> None:
        """Open the column, and find out what it can do."""
        if self._column is not None:
            self._column.open()
            self._opened = True
        self.parts = self.magnifications.applied_to(ColumnParts.of(self._column))
        if self.magnifications and self.parts.magnification is None:
            self._tell(
                "warning", "no column tells the magnification: [[magnifications]] is not used"
            )
        if self.parts.blanker_latency is not None:
            self._account.latency_s = self.parts.blanker_latency.blanker_latency_s
        if self.parts.magnification is not None:
            self.magnification_at_start = self.parts.magnification.magnification

    def close_column(self) -> None:
        """Let go of the column; never raises a `DeviceError`."""
        if self._column is not None:
            with contextlib.suppress(DeviceError):
                self._column.close()

    def blank_unfinished(self) -> None:
        """Blank, however far the opening came. Raises what the blanker does."""
        if self.parts.blanker is None and hasattr(type(self._column), "set_blanked"):
            # It did not come to telling what it can do.
            self.parts = ColumnParts(blanker=cast(Blanker, self._column))
        if self.parts.blanker is not None and self._opened:
            self.set_blanked(True)

    # ----------------------------------------------------------------------------- the supervisor

    @property
    def simulated(self) -> bool:
        """Whether the column exists in this process alone."""
        return isinstance(self._column, Simulated) and self._column.simulated

    def watch_over(self, on_blanked: Callable[[], None]) -> None:
        """Have the beam blanked if this process is killed or hangs, where there is a beam.

        Parameters
        ----------
        on_blanked : callable
            Called from another thread where it hung, and goes on.
        """
        if self.parts.blanker is None or self.simulated:
            return
        self.tell_last_report()
        try:
            self._supervisor = Supervisor(self._profile, on_blanked)
        except OSError as error:
            self._tell("warning", f"{_UNWATCHED} ({error})")

    def tell_last_report(self) -> None:
        """Tell what a supervisor did for this program, or for the one before."""
        report = last_report()
        if report is not None:
            self._tell("warning" if report.error is None else "error", str(report))

    def await_supervisor(self) -> None:
        """Wait until the supervisor watches; where it does not, the user is told once."""
        if self._supervisor is not None and not self._supervisor.wait_ready(SUPERVISOR_STARTS_S):
            self._tell("warning", _UNWATCHED)
            self._supervisor.release()
            self._supervisor = None

    def release_supervisor(self) -> None:
        """End the supervisor; where the beam is not known to be off, it blanks first."""
        if self._supervisor is not None:
            self._supervisor.release(blanked=self.state.blanked is True)

    # ------------------------------------------------------------------------------------ blanking

    @property
    def emergencies(self) -> int:
        """Counts what must not be undone by an unblanking that was asked for before."""
        return self._emergencies

    def blank_now(self) -> bool:
        """Blank, for good as to what was asked for before; returns whether it did. Never raises."""
        self._emergencies += 1
        if self.parts.blanker is None:
            self._tell("error", "this instrument has no beam blanker: close the valves by hand")
            return False
        try:
            self.set_blanked(True)
        except Exception as error:
            self._tell("error", f"THE BEAM COULD NOT BE BLANKED, close the valves: {error}")
            return False
        self._tell("warning", "beam blanked")
        return True

    def blank_for_good(self) -> None:
        """As `blank_quietly`, and what was asked for before does not undo it."""
        self._emergencies += 1
        self.blank_quietly()

    def blank_on_request(self) -> None:
        """Blank, and what was asked for before does not undo it. Raises as `set_blanked`."""
        self._emergencies += 1
        self.set_blanked(True)

    def blank_quietly(self) -> None:
        """Blank where there is a blanker; a failure is told, loudly, and never raised."""
        if self.parts.blanker is None:
            self._account.beam_off()
            return
        try:
            self.set_blanked(True)
        except Exception as error:
            self._tell("error", f"THE BEAM COULD NOT BE BLANKED, close the valves: {error}")

    def set_blanked(self, blanked: bool) -> None:
        """Command the blanker, and note and book what it answers.

        Raises
        ------
        RefusedError
            There is no blanker.
        DeviceError
            It failed; the beam counts as on where the blanker does not say otherwise.
        """
        blanker = self.parts.blanker
        if blanker is None:
            raise RefusedError("this instrument has no beam blanker that can be set from here")
        # No lock: the blanker must not wait behind a dose rate that a slow column is taking.
        answered_s = None
        if not blanked:
            self._account.beam_on()
        try:
            blanker.set_blanked(blanked)
            answered_s = self._account.clock.now()
        finally:
            # Of two threads that command at the same time, the later one notes what is.
            with self._noting:
                # After a failure above all: what is not known to be blanked is not blanked.
                try:
                    off = blanker.blanked
                except Exception:
                    off = False
                self.state = replace(self.state, blanked=off)
                if off:
                    self._account.beam_off(answered_s)
                else:
                    self._account.beam_on()
                    self._account.recheck()

    # ---------------------------------------------------------------------------------- unblanking

    def check_detector(self) -> None:
        """Raises `RefusedError` where the detector does not allow the beam as it is set."""
        over = self._why_not()
        if over is not None:
            raise RefusedError(f"the beam stays off: {over}")

    def unblank(self, since: int) -> None:
        """Let the beam onto the specimen, unless there was an emergency after ``since``."""
        self.check_detector()
        self.await_supervisor()
        self.let_through(since)

    def let_on(self, since: int) -> None:
        """Unblank for a run; without a blanker the beam counts as on from here to its end."""
        if self.parts.blanker is None:
            self._account.beam_on()
            self._account.recheck()
        else:
            self.let_through(since)

    def let_through(self, since: int) -> None:
        """As `unblank`, of a detector and a supervisor that were asked before."""
        if self._emergencies == since:
            self.set_blanked(False)
        if self._emergencies != since:
            self.set_blanked(True)
            raise RefusedError("the beam was blanked meanwhile, and stays so; start again")

    def pause(self) -> Callable[[], None]:
        """Take the beam off for a moment, if it is on; returns what lets it through again."""
        if self.parts.blanker is None or self.state.blanked is not False:
            return lambda: None
        since = self._emergencies
        self.blank_quietly()

        def go_on() -> None:
            # Whoever blanked meanwhile meant it.
            with contextlib.suppress(RefusedError):
                self.let_through(since)

        return go_on

    # ------------------------------------------------------------------------------- the dose rate

    def set_dose_rate(self, dose_rate_e_per_A2_s: float) -> None:
        """Set the dose rate at the specimen. Raises `RefusedError` where that is not possible."""
        control = self.parts.dose_rate_control
        if control is None:
            raise RefusedError("this instrument's dose rate cannot be set from here")
        told = dose_rate_e_per_A2_s
        if self.calibration is not None:
            told /= self.calibration.column_factor
        self._change_rate(dose_rate_e_per_A2_s, lambda: control.set_dose_rate(told))

    def set_spot_size(self, spot_size: int) -> None:
        """Set the spot size. Raises `RefusedError` where that is not possible."""
        control = self.parts.spot_size
        if control is None:
            raise RefusedError("this instrument's spot size cannot be set from here")
        self._change_rate(None, lambda: control.set_spot_size(spot_size))

    def set_magnification(self, magnification: float) -> None:
        """Set the magnification. Raises `RefusedError` where that is not possible."""
        control = self.parts.magnification
        if control is None:
            raise RefusedError("this instrument's magnification cannot be set from here")
        self._change_rate(None, lambda: control.set_magnification(magnification))

    def read(self) -> None:
        """Read all of it back, and book by it."""
        blanker = self.parts.blanker
        off = None if blanker is None else blanker.blanked
        self.state = BeamState(blanked=off)
        self._read_rate()
        if off is False:
            self._account.beam_on()
            self._account.recheck()

    def read_rate_again(self) -> None:
        """Book by the dose rate as the column tells it now."""
        with self._changing:
            self._read_rate()

    def _change_rate(self, to_e_per_A2_s: float | None, change: Callable[[], object]) -> None:
        """Change what the dose rate depends on, and book by what the column tells afterwards."""
        with self._changing:
            before, began_s = self._account.clock.rate_e_per_A2_s, self._account.clock.now()
            if to_e_per_A2_s is not None and before is not None and to_e_per_A2_s > before:
                # While the column is at it, the higher one counts.
                self._account.set_rate(to_e_per_A2_s)
            try:
                change()
            finally:
                self._read_rate(began_s)
        if self.state.blanked is False:
            over = self._why_not()
            if over is not None:
                self._on_too_bright(over)

    def _read_rate(self, since_s: float | None = None) -> None:
        """Book by the dose rate that the column tells, or the one that the profile does."""
        parts, calibration = self.parts, self.calibration
        self.spot_size = parts.spot_size.spot_size if parts.spot_size else None
        self.magnification = parts.magnification.magnification if parts.magnification else None
        if parts.dose_rate is not None:
            told: float | None = parts.dose_rate.dose_rate_e_per_A2_s
        else:
            told = self._profile.dose.incident_rate_e_per_A2_s
        rate = told
        if calibration is not None:
            rate = calibration.rate(told, self.spot_size, self.magnification)
        self._account.set_rate(rate, since_s)
        with self._noting:
            self.state = replace(self.state, dose_rate_e_per_A2_s=rate)
