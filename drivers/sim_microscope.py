"""The beam of the simulated microscope: what it lights, since when, and when it was blanked."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable

ELEMENTARY_CHARGE_C = 1.602176634e-19
"""Exact; SI brochure, 9th edition, section 2.2."""
ELECTRONS_PER_S_PER_PA = 1e-12 / ELEMENTARY_CHARGE_C
"""Electrons per second in one picoampere."""


class SimMicroscope:
    """The beam that camera and column share: its dose rate, its blanker, and its history.

    Thread-safe. The history makes it possible to ask later how much a past exposure got. The beam
    is parallel: magnifying more lights no less of the specimen, and a pixel gets fewer electrons.
    Below the magnification at the start the lit area grows with the field, at the same dose rate.

    Parameters
    ----------
    pixel_size_nm : float
        Size of an unbinned pixel at the specimen in nm, unmagnified.
    dose_rate_e_per_A2_s : float
        Incident dose rate at the start, in e-/A^2/s.
    clock : callable
        Time in seconds from any origin.
    beam_area_nm2 : float
        How much of the specimen the beam lights, evenly, in nm², at the start.
    """

    def __init__(
        self,
        pixel_size_nm: float,
        dose_rate_e_per_A2_s: float,
        clock: Callable[[], float] = time.perf_counter,
        beam_area_nm2: float = 1e4,
    ) -> None:
        self.image_shift_nm = (0.0, 0.0)
        """(x, y) of the specimen in nm that the middle of the sensor looks at, with no stage."""
        self._zoom = 1.0
        self._stage_um = (0.0, 0.0)
        self._beam_shift_nm = (0.0, 0.0)
        self._beam_area_nm2 = beam_area_nm2
        self.blanker_latency_s = 0.0
        """How long the beam stays on after it was blanked."""
        self._unzoomed_nm = pixel_size_nm
        self._off_at = -math.inf
        self.clock = clock
        self._lock = threading.Lock()
        self._rate = dose_rate_e_per_A2_s
        self._blanked = False
        self._powered = False
        self._times = [clock()]
        self._rates = [0.0]
        self._fluences = [0.0]
        # Which discs (x, y, radius in nm) have taken how much, and of the present one since when.
        self._lit: dict[tuple[float, float, float], float] = {}
        self._lit_since = 0.0

    def power_on(self) -> None:
        """Let the beam reach the specimen, unless blanked; idempotent."""
        with self._lock:
            self._powered = True
            self._note()

    @property
    def blanked(self) -> bool:
        """Whether the beam is off the specimen."""
        return self._blanked

    @property
    def zoom(self) -> float:
        """How many times more than at the start is magnified."""
        return self._zoom

    @zoom.setter
    def zoom(self, zoom: float) -> None:
        with self._lock:
            self._leave_disc()
            self._zoom = zoom

    @property
    def stage_um(self) -> tuple[float, float]:
        """(x, y) of the stage in µm: how far the specimen is to the right, and down."""
        return self._stage_um

    @stage_um.setter
    def stage_um(self, stage_um: tuple[float, float]) -> None:
        with self._lock:
            self._leave_disc()
            self._stage_um = stage_um

    @property
    def beam_shift_nm(self) -> tuple[float, float]:
        """(x, y) of the beam at the specimen in nm; 0 is what the camera looks at unshifted."""
        return self._beam_shift_nm

    @beam_shift_nm.setter
    def beam_shift_nm(self, beam_shift_nm: tuple[float, float]) -> None:
        with self._lock:
            self._leave_disc()
            self._beam_shift_nm = beam_shift_nm

    @property
    def pixel_size_nm(self) -> float:
        """Size of an unbinned pixel at the specimen in nm, as it is magnified now."""
        return self._unzoomed_nm / self.zoom

    @property
    def beam_area_nm2(self) -> float:
        """Illuminated area in nm²; it grows with the field below the magnification at the start."""
        return self._beam_area_nm2 / min(self.zoom, 1.0) ** 2

    @property
    def current_A(self) -> float:
        """Current of the whole beam below the blanker in ampere."""
        with self._lock:
            self._settle()
            rate_e_per_s = self._rates[-1] * self.beam_area_nm2 * 100
        return rate_e_per_s * ELEMENTARY_CHARGE_C

    def set_blanked(self, blanked: bool) -> None:
        """Blank, which takes `blanker_latency_s`, or unblank, at once."""
        with self._lock:
            self._settle()
            if blanked and not self._blanked:
                self._off_at = self.clock() + self.blanker_latency_s
            self._blanked = blanked
            self._note()

    @property
    def dose_rate_e_per_A2_s(self) -> float:
        """Incident dose rate with the beam unblanked, in e-/A^2/s."""
        return self._rate

    def set_dose_rate(self, dose_rate_e_per_A2_s: float) -> None:
        """Set the incident dose rate in e-/A^2/s, at once."""
        with self._lock:
            self._rate = dose_rate_e_per_A2_s
            self._note()

    @property
    def true_fluence_e_per_A2(self) -> float:
        """What the specimen has taken until now in e-/A^2, between frames included."""
        return self.fluence_at(self.clock())

    def fluence_at(self, time_s: float) -> float:
        """What the specimen had or will have taken at a time of `clock`, in e-/A^2."""
        with self._lock:
            return self._fluence_at(time_s)

    def _fluence_at(self, time_s: float) -> float:
        self._settle()
        last = max(bisect_right(self._times, time_s) - 1, 0)
        since_s = max(time_s - self._times[last], 0.0)
        return self._fluences[last] + since_s * self._rates[last]

    def place_fluence_e_per_A2(self, x_nm: float, y_nm: float) -> float:
        """What a place of the specimen has taken until now in e-/A^2.

        Parameters
        ----------
        x_nm, y_nm : float
            From the middle of the sensor without stage and image shift, to the right and down. The
            specimen's own drift is left out.
        """
        with self._lock:
            self._leave_disc()
            return sum(
                fluence
                for (x, y, radius_nm), fluence in self._lit.items()
                if math.hypot(x_nm - x, y_nm - y) <= radius_nm
            )

    def _leave_disc(self) -> None:
        """Write down what the disc that is lit has taken, before another one is."""
        (right_um, down_um), (x_nm, y_nm) = self._stage_um, self._beam_shift_nm
        radius_nm = math.sqrt(self.beam_area_nm2 / math.pi)
        disc = x_nm - 1000 * right_um, y_nm - 1000 * down_um, radius_nm
        now = self._fluence_at(self.clock())
        if now > self._lit_since:
            self._lit[disc] = self._lit.get(disc, 0.0) + now - self._lit_since
            self._lit_since = now

    def _note(self) -> None:
        now = self.clock()
        self._settle(now)
        late = self._blanked and now < self._off_at
        self._turn(now, self._rate if self._powered and (late or not self._blanked) else 0.0)

    def _settle(self, now: float | None = None) -> None:
        """Write down that a late blanker has taken the beam off, if it has by now."""
        if self._blanked and self._rates[-1] and (now or self.clock()) >= self._off_at:
            self._turn(max(self._off_at, self._times[-1]), 0.0)

    def _turn(self, time_s: float, rate_e_per_A2_s: float) -> None:
        fluence = self._fluences[-1] + (time_s - self._times[-1]) * self._rates[-1]
        self._times.append(time_s)
        self._rates.append(rate_e_per_A2_s)
        self._fluences.append(fluence)
        # Nobody asks for the far past; a script that blanks for days must not fill the memory.
        if len(self._times) > 100_000:
            for history in (self._times, self._rates, self._fluences):
                del history[:50_000]
