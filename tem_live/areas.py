"""The areas of the specimen in one session: which one is booked on, and what else was lit of it.

A mode with an area of its own lights a place beside the area that the user named, and is booked on
an area beside. What of that reached into the named area's own field, which is the field of the mode
that magnifies it most, counts for its budget all the same.
"""

from __future__ import annotations

from collections.abc import Callable

from tem_live.account import DoseAccount
from tem_live.beam import Beam
from tem_live.errors import RecordingError
from tem_live.fluence_map import Place
from tem_live.ledger import Ledger
from tem_live.ledger_map import LedgerMap
from tem_live.profiles import ModeProfile, Profile
from tem_live.whereabouts import Whereabouts


class Areas:
    """See the module's text.

    Parameters
    ----------
    profile : Profile
        The instrument, and its modes.
    account : DoseAccount
        What is booked by; its first ledger is that of the profile's area.
    beam : Beam
        Tells the magnification.
    whereabouts : Whereabouts
        Tells the place.
    open_ledger : callable of (area or None)
        Opens a ledger to book on.
    tell : callable of (str, str)
        Level and one line for the user.

    Attributes
    ----------
    named : str or None
        As the user called the area that is in the beam.
    """

    def __init__(
        self,
        profile: Profile,
        account: DoseAccount,
        beam: Beam,
        whereabouts: Whereabouts,
        open_ledger: Callable[[str | None], Ledger],
        tell: Callable[[str, str], None],
    ) -> None:
        self._modes = profile.modes
        self._account = account
        self._beam = beam
        self._whereabouts = whereabouts
        self._open_ledger = open_ledger
        self._tell = tell
        self._map: LedgerMap | None = None
        self.named = profile.dose.area

    def book_on(self, area: str | None) -> None:
        """Book on an area from now on, and look back on it."""
        self._account.move_to(self._open_ledger(area))
        self.look_back()

    def look_back(self) -> None:
        """Count what was lit from beside, and tell the user what to know of the area's past."""
        self.count_beside()
        account = self._account
        if account.open_since is not None:
            self._tell(
                "warning",
                f"the last session on {account.area} did not end in order: what the beam did after "
                f"{account.open_since} is not booked",
            )
        elif account.left_e_per_A2 == 0:
            self._tell(
                "warning",
                f"the budget of {account.budget_e_per_A2:g} e-/Å² is spent on {account.area}",
            )

    def of_mode(self, name: str, mode: ModeProfile) -> str | None:
        """The area that a mode is booked on, whose beam is where it is going to be."""
        if self.named is None or mode.area is None:
            return self.named
        if self._lights_own_field():
            self._tell(
                "warning",
                f"the beam of {name} reaches into the field of {self.named}: booked on "
                f"{self.named}; shift it further, or make it smaller",
            )
            return self.named
        return f"{self.named}-{mode.area}"

    def count_beside(self) -> None:
        """Count for the budget what modes with an area beside have lit of the area's own field."""
        named, place = self.named, self._own_place()
        beside = {mode.area for mode in self._modes.values() if mode.area is not None}
        if named is None or place is None or self._account.area != named or not beside:
            return
        box = place.field_box(self._own_scale())
        taken = 0.0
        for name in beside:
            lit = LedgerMap(f"{named}-{name}")
            try:
                lit.update()
            except RecordingError as error:
                self._tell("warning", f"what was lit beside {named} is not known: {error}")
            if lit.map is not None:
                taken += lit.map.highest(box) or 0.0
        if taken > 0 and taken != self._account.elsewhere_e_per_A2:
            self._tell(
                "warning",
                f"the field has been lit from beside: {taken:.3g} e-/Å² more count for the budget",
            )
        self._account.elsewhere_e_per_A2 = taken

    def fluence_map(self, most_bytes: int | None) -> LedgerMap:
        """What each place of the area has taken; see `Session.fluence_map`."""
        area, path = self._account.area, self._account.ledger_path
        if self._map is None or not self._map.reads(area, path):
            self._map = LedgerMap(area, only=None if area is not None else path)
        if area is not None or path is not None:
            self._map.update(most_bytes)
        return self._map

    def _lights_own_field(self) -> bool:
        """Whether the beam reaches into the area's own field.

        Where the illuminated area is not known nobody can tell, and the profile is believed.
        """
        place = self._own_place()
        return place is not None and place.beam_reaches_field(self._own_scale())

    def _own_modes(self) -> list[ModeProfile]:
        """The modes that light the area itself and tell a magnification, the highest one last."""
        own = [m for m in self._modes.values() if m.area is None and m.magnification]
        return sorted(own, key=lambda mode: mode.magnification or 0.0)

    def _own_place(self) -> Place | None:
        """The place with the camera looking where the mode that magnifies the area most does."""
        own = self._own_modes()
        looks = own[-1].image_shift_nm if own else None
        return self._whereabouts.place if looks is None else self._whereabouts.place_at(looks)

    def _own_scale(self) -> float:
        """Side of the field of the mode that magnifies the area most, as a part of the present."""
        own = self._own_modes()
        if self._beam.parts.magnification is None or not own:
            return 1.0
        return self._beam.parts.magnification.magnification / (own[-1].magnification or 1.0)
