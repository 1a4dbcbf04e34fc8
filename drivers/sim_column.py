"""The column of the simulated microscope: all that a column can have."""

from __future__ import annotations

from pydantic import Field

from tem_live.drivers.sim_beam_column import BeamColumn, BeamColumnOptions
from tem_live.drivers.sim_camera import SimCamera
from tem_live.errors import NotConnectedError, RefusedError


class SimColumnOptions(BeamColumnOptions):
    """Fields of ``[column]`` with ``driver = "sim"``; `BeamColumnOptions` has the others.

    Attributes
    ----------
    blanker_latency_s : float
        How long the beam stays on after it was blanked, in seconds.
    magnification : float
        Nominal magnification at which a pixel is ``camera.specimen_pixel_nm`` large.
    """

    blanker_latency_s: float = Field(default=0.0, ge=0, le=5)
    magnification: float = Field(default=50_000.0, gt=0, le=1e8)


class SimColumn(BeamColumn):
    """The column of the simulated microscope: all that a column can have.

    Parameters
    ----------
    options : SimColumn.Options
        Range of the dose rate, and how the column is found.
    camera : SimCamera
        The camera of the same microscope.

    Raises
    ------
    NotConnectedError
        The camera is another one than the simulated.
    """

    Options = SimColumnOptions

    STAGE_UM = 1000.0
    """How far the stage goes in each direction."""
    BEAM_SHIFT_NM = 10_000.0
    """How far the beam can be shifted in each direction."""
    IMAGE_SHIFT_NM = 10_000.0
    """How far the image can be shifted in each direction."""
    ZOOMS = (1 / 16, 16.0)
    """Range of the magnification relative to that of the options."""

    def __init__(self, options: SimColumnOptions, camera: object) -> None:
        if not isinstance(camera, SimCamera):
            raise NotConnectedError(
                'the simulated column belongs to the simulated camera; set camera.driver = "sim", '
                'or column.driver = "none"'
            )
        camera.microscope.blanker_latency_s = options.blanker_latency_s
        super().__init__(options, camera.microscope)
        self._options = options
        self._spot_size = 3

    @property
    def blanker_latency_s(self) -> float:
        """See `BlankerLatency`."""
        return self._options.blanker_latency_s

    @property
    def beam_area_nm2(self) -> float:
        """See `BeamArea`."""
        return self._microscope.beam_area_nm2

    @property
    def stage_position_um(self) -> tuple[float, float]:
        """See `Stage`. What the specimen has taken is one figure for all of it."""
        return self._beam.stage_um

    def move_stage(self, x_um: float, y_um: float) -> tuple[float, float]:
        """See `Stage`; at once."""
        self._must_be_open()
        if not all(abs(value) <= self.STAGE_UM for value in (x_um, y_um)):
            raise RefusedError(
                f"({x_um:g}, {y_um:g}) µm is out of range; the stage goes {self.STAGE_UM:g} µm "
                "in each direction"
            )
        self._microscope.stage_um = float(x_um), float(y_um)
        return self._microscope.stage_um

    @property
    def beam_shift_nm(self) -> tuple[float, float]:
        """See `BeamShift`."""
        return self._beam.beam_shift_nm

    def set_beam_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """See `BeamShift`; what the disc of the beam leaves is dark."""
        self._must_be_open()
        if not all(abs(value) <= self.BEAM_SHIFT_NM for value in (x_nm, y_nm)):
            raise RefusedError(
                f"({x_nm:g}, {y_nm:g}) nm is out of range; the beam can be shifted by "
                f"{self.BEAM_SHIFT_NM:g} nm in each direction"
            )
        self._microscope.beam_shift_nm = float(x_nm), float(y_nm)
        return self._microscope.beam_shift_nm

    @property
    def image_shift_nm(self) -> tuple[float, float]:
        """See `ImageShift`."""
        return self._beam.image_shift_nm

    def set_image_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """See `ImageShift`; the beam stays on the specimen where it is."""
        self._must_be_open()
        if not all(abs(value) <= self.IMAGE_SHIFT_NM for value in (x_nm, y_nm)):
            raise RefusedError(
                f"({x_nm:g}, {y_nm:g}) nm is out of range; the image can be shifted by "
                f"{self.IMAGE_SHIFT_NM:g} nm in each direction"
            )
        self._microscope.image_shift_nm = float(x_nm), float(y_nm)
        return self._microscope.image_shift_nm

    @property
    def spot_sizes(self) -> tuple[int, ...]:
        """See `SpotSize`."""
        return tuple(range(1, 12))

    @property
    def spot_size(self) -> int:
        """See `SpotSize`."""
        self._must_be_open()
        return self._spot_size

    def set_spot_size(self, spot_size: int) -> int:
        """See `SpotSize`; the next higher number halves the current."""
        self._must_be_open()
        if spot_size not in self.spot_sizes:
            raise RefusedError(f"spot size {spot_size} is out of range; there are 1 to 11")
        rate = self.dose_rate_e_per_A2_s * 2.0 ** (self._spot_size - spot_size)
        self.set_dose_rate(rate)
        self._spot_size = spot_size
        return spot_size

    @property
    def magnification(self) -> float:
        """See `Magnification`."""
        self._must_be_open()
        return self._options.magnification * self._microscope.zoom

    @property
    def pixel_size_nm(self) -> float:
        """See `Magnification`."""
        return self._beam.pixel_size_nm

    def set_magnification(self, magnification: float) -> float:
        """See `Magnification`. The dose rate per area stays: the beam is parallel."""
        self._must_be_open()
        low, high = (zoom * self._options.magnification for zoom in self.ZOOMS)
        if not low <= magnification <= high:
            raise RefusedError(
                f"magnification {magnification:g} is out of range; "
                f"the column takes {low:g} to {high:g}"
            )
        self._microscope.zoom = magnification / self._options.magnification
        return self.magnification
