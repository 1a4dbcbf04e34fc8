"""What is made of a session's frames while they come: watches, the dose loop, the critical fluence.

`Judging` keeps what was begun: watches of the same kind share one analyst, there is one dose loop
at a time, and all of it ends with the session. Whoever never judges pays for none of the imports.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tem_live.errors import InputError, RefusedError

if TYPE_CHECKING:
    from tem_live.damage import DamageEstimate
    from tem_live.minimise import DoseMinimiser, Knob
    from tem_live.minimise_targets import Target
    from tem_live.session import Session
    from tem_live.watch import Analyst, Watch


class Judging:
    """See the module's text.

    Parameters
    ----------
    session : Session
        Whose frames they are.
    restores_singly : callable
        Whether a restorer runs that restores each frame by itself.
    tell : callable of (str, str)
        Level and one line for the user.
    at_close : callable of callable
        Has something called when the session closes.
    """

    def __init__(
        self,
        session: Session,
        restores_singly: Callable[[], bool],
        tell: Callable[[str, str], None],
        at_close: Callable[[Callable[[], None]], object],
    ) -> None:
        self._session = session
        self._restores_singly = restores_singly
        self._tell = tell
        self._at_close = at_close
        self._lock = threading.Lock()
        self._analysts: dict[tuple[bool, bool], Analyst] = {}
        self._watches: list[Watch] = []
        self._ended: DamageEstimate | None = None
        self._ends_with_session = False
        self._found: DamageEstimate | None = None
        self._loop: DoseMinimiser | None = None

    def watch(self, fidelity: bool, damage: bool) -> Watch:
        """Begin to watch; see `Session.watch`."""
        from tem_live.watch import Analyst

        with self._lock:
            analyst = self._analysts.get((fidelity, damage))
            watch = None if analyst is None else analyst.watch()
            if watch is None:
                analyst = Analyst(
                    self._session.subscribe, self._tell, self._restores_singly, fidelity, damage
                )
                self._analysts[fidelity, damage] = analyst
                watch = analyst.watch()
            assert watch is not None, "it has just begun"
            self._forget_the_ended()
            self._watches.append(watch)
            if not self._ends_with_session:
                # From the first one on, so that it comes before what the session has by then.
                self._ends_with_session = True
                self._at_close(self._end)
        return watch

    def _end(self) -> None:
        loop = self._loop
        if loop is not None:
            loop.stop()
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.close()

    def _forget_the_ended(self) -> None:
        """Keep of the watches that have ended the one that knew most of the damage."""
        self._ended = self._of_most(watch for watch in self._watches if not watch.live)
        self._watches = [watch for watch in self._watches if watch.live]

    def _of_most(self, watches: Iterable[Watch]) -> DamageEstimate | None:
        found = [self._ended, *(watch.state.damage for watch in watches)]
        seen = [damage for damage in found if damage is not None]
        return max(seen, key=lambda damage: (damage.known, damage.frames), default=None)

    def begin_anew(self) -> None:
        """Another part of the specimen is in view: it is judged by its own frames alone."""
        with self._lock:
            known = self._damage_seen()
            if known is not None and known.known:
                # Of the same specimen: it may still be taken as the budget.
                self._found = known
            for analyst in self._analysts.values():
                analyst.begin_anew()

    def _damage_seen(self) -> DamageEstimate | None:
        # Of several watches the one that knows; what an ended one found stays true.
        return self._of_most(self._watches)

    def critical_fluence_e_per_A2(self, cautious: bool) -> float:
        """What a watch found; see `Session.take_critical_fluence_as_budget`."""
        damage = self._damage_seen()
        if self._found is not None and (damage is None or not damage.known):
            damage = self._found
        if damage is None or not damage.known or damage.interval_e_per_A2 is None:
            why = "nothing watches over the damage" if damage is None else damage.text
            raise RefusedError(f"there is no critical fluence to take as the budget: {why}")
        critical = damage.critical_fluence_e_per_A2
        return damage.interval_e_per_A2[0] if cautious or critical is None else critical

    def minimise(
        self,
        target_resolution_nm: float | None,
        target: Target | None,
        knob: Knob | None,
        lowest: float | None,
        highest: float | None,
        confidence: float,
    ) -> DoseMinimiser:
        """Begin the dose loop; see `Session.minimise`."""
        from tem_live.minimise import DoseMinimiser
        from tem_live.minimise_targets import Resolution

        session = self._session
        if (target is None) == (target_resolution_nm is None):
            raise InputError("say what the frames must reach: a resolution in nm, or a target")
        wanted = target or Resolution(target_resolution_nm or 0.0)
        if not self._restores_singly():
            raise InputError(
                f"the dose is judged on frames restored each by itself, which '{session.model}' "
                "does not do; choose another model"
            )
        if isinstance(wanted, Resolution) and not session.state.pixel_size_nm:
            raise InputError(
                "a resolution in nm needs the size of a pixel; set camera.pixel_size_nm"
            )
        if self._loop is not None and self._loop.state.active:
            raise RefusedError("a dose loop is on already; stop it first")
        if knob is None:
            steered = session.can_set_dose_rate and bool(session.dose_rate)
            knob = "dose_rate" if steered else "exposure_s"
        watch = session.watch()
        try:
            loop = DoseMinimiser(
                session, watch, wanted, knob, lowest, highest, confidence, self._tell, watch.close
            )
        except BaseException:
            watch.close()
            raise
        self._loop = loop
        return loop
