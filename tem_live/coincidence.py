"""Coincidence loss of counting cameras: which part of the electrons is not counted.

Two electrons that come to the same place within the camera's time resolution are counted as one.
With λ the mean number of electrons that come to one place in that time (Poisson), counted over
come is

- ``binary``: (1 - exp(-λ)) / λ, for sensors that are read as frames of hit or not hit (monolithic
  active pixels in counting mode; the time is that of one internal frame). Zambon (2024), Front.
  Phys. 12, 1408430, section 2: the mean of a binary pixel is 1 - exp(-λ);
- ``nonparalysable``: 1 / (1 + λ), for pixels that are dead for a fixed time after each count;
- ``paralysable``: exp(-λ), for pixels whose dead time begins anew with each electron. Both: Knoll,
  Radiation Detection and Measurement, 4th edition, section 4.VII (dead time).

An electron that lights several pixels hides others in all of them: λ is taken per footprint, which
is an approximation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

CountingModel = Literal["binary", "nonparalysable", "paralysable"]


@dataclass(frozen=True, slots=True)
class Counting:
    """How a camera counts.

    Attributes
    ----------
    resolution_s : float
        Time resolution in seconds: an internal frame, or the dead time of a pixel.
    model : {"binary", "nonparalysable", "paralysable"}
        See the module's text.
    footprint_px : float
        Unbinned pixels in which one electron hides another.
    """

    resolution_s: float
    model: CountingModel = "binary"
    footprint_px: float = 1.0

    def loss(self, rate_e_per_px_s: float) -> float:
        """Part of the electrons that is not counted, 0 to 1.

        Parameters
        ----------
        rate_e_per_px_s : float
            Electrons that come, per second and unbinned pixel.
        """
        mean = max(rate_e_per_px_s, 0.0) * self.resolution_s * self.footprint_px
        if mean < 1e-12:
            return 0.0
        if math.isinf(mean):
            return 1.0
        match self.model:
            case "binary":
                return 1 + math.expm1(-mean) / mean
            case "nonparalysable":
                return mean / (1 + mean)
            case "paralysable":
                return -math.expm1(-mean)

    def incident(self, counted_e_per_px_s: float) -> float:
        """Electrons that come, per second and unbinned pixel, from those that are counted.

        Of a paralysable pixel, which counts few of very many too, the lower of the two answers;
        infinite for more than can be counted.
        """
        seen = max(counted_e_per_px_s, 0.0) * self.resolution_s * self.footprint_px
        match self.model:
            case "binary":
                mean = -math.log1p(-seen) if seen < 1 else math.inf
            case "nonparalysable":
                mean = seen / (1 - seen) if seen < 1 else math.inf
            case "paralysable":
                from scipy.special import lambertw

                mean = -float(lambertw(-seen).real) if seen < math.exp(-1) else math.inf
        return mean / (self.resolution_s * self.footprint_px)
