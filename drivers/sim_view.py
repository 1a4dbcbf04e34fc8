"""What of a specimen the sensor of the simulated microscope sees, and which part of it is lit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from tem_live.drivers.sim_microscope import SimMicroscope
from tem_live.drivers.sim_scenes import Scene
from tem_live.drivers.sim_windows import Plane, Window


class Optics(NamedTuple):
    """How the column stands while a frame is taken; the units are those of `SimMicroscope`."""

    zoom: float = 1.0
    stage_um: Sequence[float] = (0.0, 0.0)
    beam_shift_nm: Sequence[float] = (0.0, 0.0)
    image_shift_nm: Sequence[float] = (0.0, 0.0)

    @classmethod
    def of(cls, microscope: SimMicroscope) -> Optics:
        """As it stands now."""
        return cls(
            microscope.zoom,
            microscope.stage_um,
            microscope.beam_shift_nm,
            microscope.image_shift_nm,
        )

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Optics:
        """From what `to_raw` has put into ``FrameMeta.raw``."""
        return cls(**{name: raw[name] for name in cls._fields if name in raw})

    def to_raw(self) -> dict[str, Any]:
        """JSON-able; only what is not as at the start."""
        shifts = {name: list(value) for name, value in self._asdict().items() if name != "zoom"}
        moved: dict[str, Any] = {name: shift for name, shift in shifts.items() if any(shift)}
        return moved if self.zoom == 1.0 else {"zoom": self.zoom, **moved}


class View:
    """What the sensor sees.

    Parameters
    ----------
    scene : Scene
        The specimen.
    sensor : tuple of int
        (height, width) in pixels.
    pixel_size_nm : float
        Size of a pixel at the specimen in nm where the zoom is 1.
    microscope : SimMicroscope
        Whose beam lights it.
    """

    def __init__(
        self,
        scene: Scene,
        sensor: tuple[int, int],
        pixel_size_nm: float,
        microscope: SimMicroscope,
    ) -> None:
        self.scene = scene
        self._sensor = sensor
        self._pixel_size_nm = pixel_size_nm
        self._microscope = microscope

    def share(
        self, window: Window, time_s: float, fluence_e_per_A2: float, optics: Optics
    ) -> Plane:
        """Fraction of the incident electrons that reach the pixels of a window.

        Parameters
        ----------
        window : Window
            In pixels of the sensor.
        time_s, fluence_e_per_A2 : float
            Age of the specimen, and what it has taken.
        optics : Optics
            How the column stands.

        Returns
        -------
        ndarray
            (window.height, window.width) float32; a new array.
        """
        # In whole pixels, which no stage is better than.
        right, down = (
            round((1000 * stage - image) / self._pixel_size_nm)
            for stage, image in zip(optics.stage_um, optics.image_shift_nm, strict=True)
        )
        if optics.zoom == 1.0:
            moved = window._replace(top=window.top - down, left=window.left - right)
            share = self.scene.transmission(moved, time_s, fluence_e_per_A2)
        else:
            field = Window(-down, -right, *self._sensor)
            whole = self.scene.transmission(field, time_s, fluence_e_per_A2)
            share = zoomed(whole, window, optics.zoom)
        # Where the beam is on the sensor.
        beam_nm = [b - i for b, i in zip(optics.beam_shift_nm, optics.image_shift_nm, strict=True)]
        if any(beam_nm):
            self._darken_beyond(share, window, self._pixel_size_nm / optics.zoom, beam_nm)
        return share

    def _darken_beyond(
        self, plane: Plane, window: Window, pixel_size_nm: float, beam_nm: Sequence[float]
    ) -> None:
        """Take away what is outside of the lit disc; ``beam_nm`` is from the sensor's middle."""
        height, width = self._sensor
        x = (np.arange(window.width) + window.left + 0.5 - width / 2) * pixel_size_nm
        y = (np.arange(window.height) + window.top + 0.5 - height / 2) * pixel_size_nm
        distance_nm = np.hypot(x[None, :] - beam_nm[0], y[:, None] - beam_nm[1])
        plane[distance_nm > math.sqrt(self._microscope.beam_area_nm2 / math.pi)] = 0


def zoomed(field: Plane, window: Window, zoom: float) -> Plane:
    """A window of a periodic field that is magnified about its middle, by linear interpolation.

    Parameters
    ----------
    field : ndarray
        (H, W) float32, one period.
    window : Window
        What to compute, in magnified pixels.
    zoom : float
        How many times a structure is larger than in ``field``.
    """
    if zoom < 1:
        # What falls into one pixel is averaged, for its mean must not change.
        field = ndimage.gaussian_filter(field, 0.4 / zoom, mode="wrap")
    middle = (np.array(field.shape) - 1) / 2
    offset = middle + (np.array(window[:2]) - middle) / zoom
    out: Plane = ndimage.affine_transform(
        field,
        np.full(2, 1 / zoom),
        offset,
        output_shape=(window.height, window.width),
        order=1,
        mode="grid-wrap",
    )
    return out
