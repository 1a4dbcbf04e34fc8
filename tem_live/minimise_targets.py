"""What may be wanted of a restored frame: a resolution, an equivalent dose, a contrast to noise.

A target reads pairs of frames, of which one half was restored and is compared with the *raw* other
half (`tem_live.fidelity`), and says how far the dose is over or under what is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.fidelity import PairFigures
from tem_live.fidelity_spectra import THRESHOLD, correlation_with_truth
from tem_live.watch import Pair

__all__ = ["ContrastToNoise", "EquivalentDose", "Resolution", "Target"]

Floats = npt.NDArray[np.float64]

_MOST = math.log(8.0)
"""Surplus or lack beyond which a pair only says "far"."""


class Target(Protocol):
    """What is wanted of a restored frame."""

    @property
    def text(self) -> str:
        """In a few words, for the user."""

    def read(self, pair: Pair, figures: PairFigures) -> Any:
        """What to keep of a pair."""

    def surplus(self, readings: Sequence[Any]) -> float:
        """Natural logarithm of present dose over needed dose, from one reading or more."""


@dataclass(frozen=True)
class _Rings:
    frequency_per_nm: Floats
    count: Floats
    powers: dict[str, Floats]


@dataclass(frozen=True)
class Resolution:
    """Detail of this period, or finer, shows in the restored frame as it is in the specimen.

    The correlation with the truth in some ring of at most this period is `THRESHOLD`. For a
    linear restorer 1/c² - 1 falls as the inverse of the dose, which tells the dose that is needed.

    Parameters
    ----------
    resolution_nm : float
        Period in nm.
    """

    resolution_nm: float

    def __post_init__(self) -> None:
        _must_be_positive(self.resolution_nm, "a resolution", "nm")

    @property
    def text(self) -> str:
        """See `Target.text`."""
        return f"{self.resolution_nm:.3g} nm resolved"

    def read(self, pair: Pair, figures: PairFigures) -> _Rings:
        """See `Target.read`. Raises `InputError` where the pixel size is unknown."""
        pixel_size_nm = pair.first.meta.pixel_size_nm
        if not pixel_size_nm:
            raise InputError(
                "a resolution in nm needs the size of a pixel; set camera.pixel_size_nm"
            )
        # Relative to the dose, so that pairs of different doses can be put together.
        scale = figures.dose_e_per_px**2
        names = ("signal", "noise", "restored", "confirmed")
        powers = {name: getattr(figures, name) / scale for name in names}
        return _Rings(figures.frequency / pixel_size_nm, figures.count, powers)

    def surplus(self, readings: Sequence[_Rings]) -> float:
        """See `Target.surplus`."""
        last = readings[-1]
        alike = [r for r in readings if len(r.count) == len(last.count)]
        powers = {name: np.mean([r.powers[name] for r in alike], axis=0) for name in last.powers}
        correlation, resolved = correlation_with_truth(powers, last.count * len(alike))
        spacing = last.frequency_per_nm[1] - last.frequency_per_nm[0]
        fine = last.frequency_per_nm >= 1.0 / self.resolution_nm - spacing
        if not fine.any():
            return -_MOST
        # What does not stand out of the noise is not resolved, whatever its correlation.
        found = np.where(resolved, correlation, np.minimum(correlation, 0.99 * THRESHOLD))[fine]
        best = float(np.nanmax(np.append(found, 0.3)))
        best = min(max(best, 0.1), 0.98)
        lack = (1.0 / best**2 - 1.0) / (1.0 / THRESHOLD**2 - 1.0)
        return _limited(-math.log(lack))


@dataclass(frozen=True)
class EquivalentDose:
    """The error of the restored frame is that of a raw frame of this dose.

    Parameters
    ----------
    dose_e_per_px : float
        Dose of that raw frame.
    """

    dose_e_per_px: float

    def __post_init__(self) -> None:
        _must_be_positive(self.dose_e_per_px, "an equivalent dose", "e-/px")

    @property
    def text(self) -> str:
        """See `Target.text`."""
        return f"as good as raw frames of {self.dose_e_per_px:.3g} e-/px"

    def read(self, pair: Pair, figures: PairFigures) -> PairFigures:
        """See `Target.read`."""
        return figures

    def surplus(self, readings: Sequence[PairFigures]) -> float:
        """See `Target.surplus`."""
        # Over the dose squared, so that pairs of different doses can be put together.
        error = float(np.mean([r.mse_e2 / r.dose_e_per_px**2 for r in readings]))
        noise = float(np.mean([r.noise_e2 / r.dose_e_per_px for r in readings]))
        ratio = noise / max(error, 1e-9) / self.dose_e_per_px
        # A restorer's error falls more slowly than the dose rises: as its power 0.7, measured.
        return _limited(math.log(ratio) / 0.7)


@dataclass(frozen=True)
class _Contrast:
    contrast: float
    mse: float


@dataclass(frozen=True)
class ContrastToNoise:
    """A feature stands out of its surroundings by this many times the error.

    The contrast is told by the raw frames, which do not flatter; the error by the restored half
    against the raw other half, over the feature and a frame of half its size around it.

    Parameters
    ----------
    ratio : float
        Contrast over root mean square error.
    region : (top, left, height, width)
        The feature, in pixels of the frame.
    """

    ratio: float
    region: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        _must_be_positive(self.ratio, "a contrast-to-noise ratio", "")
        if min(self.region[:2]) < 0 or min(self.region[2:]) < 1:
            raise InputError(f"the region {self.region} is none; give top, left, height, width")

    @property
    def text(self) -> str:
        """See `Target.text`."""
        return f"contrast-to-noise {self.ratio:.3g}"

    def read(self, pair: Pair, figures: PairFigures) -> _Contrast:
        """See `Target.read`. Raises `InputError` where the feature is not within the frame."""
        a, b = pair.first, pair.second
        assert a.restored is not None
        assert b.restored is not None
        top, left, height, width = self.region
        rows, columns = a.electrons.shape
        if top + height > rows or left + width > columns:
            raise InputError(f"the feature {self.region} is not within the frame")
        around = (
            slice(max(top - (height + 1) // 2, 0), top + height + (height + 1) // 2),
            slice(max(left - (width + 1) // 2, 0), left + width + (width + 1) // 2),
        )
        inside = np.zeros((rows, columns), np.bool_)
        inside[top : top + height, left : left + width] = True
        raw = (0.5 * (a.electrons + b.electrons))[around]
        within = inside[around]
        contrast = abs(float(raw[within].mean()) - float(raw[~within].mean()))
        noise = 0.5 * (a.electrons[around] - b.electrons[around]) ** 2
        error = 0.5 * (a.restored[around] - b.electrons[around]) ** 2
        error = error + 0.5 * (b.restored[around] - a.electrons[around]) ** 2
        dose = figures.dose_e_per_px
        return _Contrast(contrast / dose, float((error - noise).mean()) / dose**2)

    def surplus(self, readings: Sequence[_Contrast]) -> float:
        """See `Target.surplus`."""
        contrast = float(np.mean([r.contrast for r in readings]))
        error = float(np.mean([r.mse for r in readings]))
        # The ratio's square is proportional to the dose, or nearly.
        return _limited(math.log(max(contrast, 1e-9) ** 2 / max(error, 1e-9) / self.ratio**2))


def _limited(surplus: float) -> float:
    return min(max(surplus, -_MOST), _MOST)


def _must_be_positive(value: float, what: str, unit: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} of {value:g} {unit} is no target; give a positive figure")
