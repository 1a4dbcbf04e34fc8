"""What the columns of both simulators have: a blanker that is at once, and a dose rate."""

from __future__ import annotations

from pydantic import Field

from tem_live.drivers.sim_microscope import SimMicroscope
from tem_live.drivers.sim_options import StrictOptions
from tem_live.errors import NotConnectedError, RefusedError


class BeamColumnOptions(StrictOptions):
    """Fields of ``[column]`` that both have.

    Attributes
    ----------
    max_dose_rate_e_per_A2_s : float
        Highest dose rate that is accepted, in e-/A^2/s; the lowest is 0.
    found_blanked : bool
        Whether the beam is off the specimen when the program connects.
    """

    max_dose_rate_e_per_A2_s: float = Field(default=1e6, gt=0, le=1e9)
    found_blanked: bool = True


class BeamColumn:
    """The blanker and the dose rate of a simulated column.

    Parameters
    ----------
    options : BeamColumnOptions
        Range of the dose rate, and how the column is found.
    microscope : SimMicroscope
        Whose beam it is.
    """

    def __init__(self, options: BeamColumnOptions, microscope: SimMicroscope) -> None:
        self._max_dose_rate_e_per_A2_s = options.max_dose_rate_e_per_A2_s
        self._microscope = microscope
        self._open = False
        if options.found_blanked:
            microscope.set_blanked(True)

    @property
    def simulated(self) -> bool:
        """Always."""
        return True

    def open(self) -> None:
        """See `Column.open`."""
        self._open = True

    def close(self) -> None:
        """See `Column.close`."""
        self._open = False

    @property
    def blanked(self) -> bool:
        """Whether the beam is off the specimen."""
        return self._beam.blanked

    def set_blanked(self, blanked: bool) -> None:
        """Blank or unblank; takes effect amid an exposure too."""
        self._beam.set_blanked(blanked)

    @property
    def dose_rate_e_per_A2_s(self) -> float:
        """Incident dose rate with the beam unblanked, averaged over a scan, in e-/A^2/s."""
        return self._beam.dose_rate_e_per_A2_s

    def set_dose_rate(self, dose_rate_e_per_A2_s: float) -> float:
        """Set the incident dose rate in e-/A^2/s. Raises `RefusedError` out of range."""
        beam, highest = self._beam, self._max_dose_rate_e_per_A2_s
        if not 0 <= dose_rate_e_per_A2_s <= highest:
            raise RefusedError(
                f"dose rate {dose_rate_e_per_A2_s:g} e-/Å²/s is out of range; "
                f"the column takes 0 to {highest:g}"
            )
        beam.set_dose_rate(float(dose_rate_e_per_A2_s))
        return beam.dose_rate_e_per_A2_s

    @property
    def _beam(self) -> SimMicroscope:
        self._must_be_open()
        return self._microscope

    def _must_be_open(self) -> None:
        if not self._open:
            raise NotConnectedError("the simulated column is closed; open it first")
