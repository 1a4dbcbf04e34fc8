"""The column of the simulated scan: a fast blanker, and the probe's current as a dose rate."""

from __future__ import annotations

from tem_live.drivers.sim_beam_column import BeamColumn, BeamColumnOptions
from tem_live.drivers.sim_microscope import ELECTRONS_PER_S_PER_PA
from tem_live.drivers.sim_scan_camera import SimStem
from tem_live.errors import NotConnectedError


class SimStemColumn(BeamColumn):
    """The column of the simulated scan: a fast blanker, and the probe's current as a dose rate.

    The dose rate is the probe's current spread over the scanned field. The beam stays on during the
    fly-back, so a pixel gets the dose rate times its area times the time of a frame, less the share
    of the fly-back: current times dwell time.

    Parameters
    ----------
    options : SimStemColumn.Options
        Range of the dose rate, and how the column is found.
    camera : SimStem
        The scan of the same microscope.

    Raises
    ------
    NotConnectedError
        The camera is another one than the simulated scan.
    """

    Options = BeamColumnOptions

    def __init__(self, options: BeamColumnOptions, camera: object) -> None:
        if not isinstance(camera, SimStem):
            raise NotConnectedError(
                'the column "sim-stem" belongs to the simulated scan; '
                'set camera.driver = "sim-stem", or column.driver = "none"'
            )
        super().__init__(options, camera.microscope)
        self._field_A2 = camera.field_A2

    @property
    def beam_pA(self) -> float:
        """The probe's current with the beam unblanked, in pA."""
        return self.dose_rate_e_per_A2_s * self._field_A2 / ELECTRONS_PER_S_PER_PA
