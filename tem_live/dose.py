"""Counting electrons: what each frame cost the specimen, and the budget."""

from __future__ import annotations

import math
import threading

from tem_live.errors import InputError

ELEMENTARY_CHARGE_C = 1.602176634e-19
"""Charge of an electron in coulomb; exact (SI brochure, 9th edition, section 2.2)."""

A2_PER_NM2 = 100.0
"""Square angstroms in a square nanometre."""


def per_pixel(dose_e_per_A2: float, pixel_size_nm: float) -> float:
    """Electrons per pixel (or their rate) from electrons per square angstrom."""
    return dose_e_per_A2 * A2_PER_NM2 * pixel_size_nm**2


def per_A2(dose_e_per_px: float, pixel_size_nm: float) -> float:
    """Electrons per square angstrom (or their rate) from electrons per pixel."""
    return dose_e_per_px / (A2_PER_NM2 * pixel_size_nm**2)


def dose_rate_from_current(current_A: float, beam_area_nm2: float, pixel_size_nm: float) -> float:
    """Incident dose rate in e-/px/s of a beam of known current: |I| / (e area) x pixel area.

    Parameters
    ----------
    current_A : float
        Beam current at the specimen in ampere; its sign is that of the meter and ignored.
    beam_area_nm2 : float
        Illuminated area at the specimen in nm², evenly lit.
    pixel_size_nm : float
        Size of a pixel at the specimen in nm.

    Raises
    ------
    InputError
        The current is no number, or a size is not positive.
    """
    if not (math.isfinite(pixel_size_nm) and pixel_size_nm > 0):
        raise InputError(f"a pixel of {pixel_size_nm:g} nm has no dose rate; give its size in nm")
    return per_pixel(dose_rate_per_A2_from_current(current_A, beam_area_nm2), pixel_size_nm)


def dose_rate_per_A2_from_current(current_A: float, beam_area_nm2: float) -> float:
    """Incident dose rate in e-/A^2/s of a beam of known current: |I| / (e area).

    Parameters and errors are those of `dose_rate_from_current`.
    """
    if not math.isfinite(current_A):
        raise InputError("the beam current is no number; measure it again")
    if not (math.isfinite(beam_area_nm2) and beam_area_nm2 > 0):
        raise InputError(
            f"a beam of {beam_area_nm2:g} nm² has no dose rate; give the illuminated area in nm²"
        )
    return abs(current_A) / (ELEMENTARY_CHARGE_C * beam_area_nm2 * A2_PER_NM2)


class DoseMeter:
    """Fluence that the specimen has taken. Any thread may book and ask."""

    def __init__(self) -> None:
        self._parts: list[float] = []
        self._lock = threading.Lock()

    @property
    def fluence_e_per_A2(self) -> float | None:
        """Booked fluence in e-/A^2; None until a frame could be booked."""
        with self._lock:
            return math.fsum(self._parts) if self._parts else None

    def book(self, fluence_e_per_A2: float) -> float:
        """Add the fluence of one frame; returns the total in e-/A^2."""
        with self._lock:
            # Exact sums in few terms: a long run must not lose its small frames to rounding.
            self._parts.append(fluence_e_per_A2)
            if len(self._parts) > 64:
                total = math.fsum(self._parts)
                rest = math.fsum([*self._parts, -total])
                self._parts = [total, rest]
            return math.fsum(self._parts)
