"""When and where the probe of the simulated scan is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

from tem_live.drivers.sim_options import SimStemOptions
from tem_live.drivers.sim_windows import Plane

Series = npt.NDArray[np.float64]


class Timing(NamedTuple):
    """When a scan is where.

    Attributes
    ----------
    height, width : int
        Lines of a frame, pixels of a line.
    fly_back_s : float
        Before each line, in seconds.
    dwell_s : float
        On each pixel, in seconds.
    """

    height: int
    width: int
    fly_back_s: float
    dwell_s: float

    @property
    def line_s(self) -> float:
        """From the begin of a line's fly-back to that of the next one's, in seconds."""
        return self.fly_back_s + self.width * self.dwell_s

    @property
    def frame_s(self) -> float:
        """All lines, in seconds."""
        return round(self.height * self.line_s, 9)


def displacements(
    options: SimStemOptions,
    timing: Timing,
    drift_px_s: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[Series, Series]:
    """How far the probe is from where a pixel should be, as the specimen sees it.

    Jitter is a stationary first-order autoregressive series over the lines, x_i = ρ x_(i-1) +
    sqrt(1 - ρ²) σ e_i: variance σ², correlation ρ^k (Box, Jenkins & Reinsel, Time Series Analysis,
    section 3.2.3). Drift moves the specimen on from where it is amid the frame. The fly-back's
    rest is W exp(-(fly-back + (j + 1/2) dwell) / settling) at pixel j.

    Returns
    -------
    dy : ndarray
        float64 (H,), pixels.
    dx : ndarray
        float64 (H, W), pixels.
    """
    rho = options.jitter_correlation
    noise = rng.standard_normal((2, timing.height))
    noise[:, 1:] *= np.sqrt(1 - rho**2)
    jitter_y, jitter_x = signal.lfilter([1.0], [1.0, -rho], noise, axis=1)
    # The middle of line i, less the middle of the frame.
    since_s = (np.arange(timing.height) + 0.5) * timing.line_s - timing.frame_s / 2
    dy = options.jitter_y_px * jitter_y - drift_px_s[0] * since_s
    dx = options.jitter_x_px * jitter_x - drift_px_s[1] * since_s
    settling_s = max(options.settling_s, 1e-12)
    pixel_s = timing.fly_back_s + (np.arange(timing.width) + 0.5) * timing.dwell_s
    rest = timing.width * np.exp(-pixel_s / settling_s)
    return np.asarray(dy), np.asarray(dx[:, None] + rest[None, :])


def probed(plane: Plane, y: Series, x: Series) -> Plane:
    """A plane at (y, x), which are broadcast; cubic splines, limited to the plane's values."""
    places = np.broadcast_arrays(y, x)
    seen = ndimage.map_coordinates(plane, places, order=3, mode="nearest", output=np.float32)
    limited: Plane = np.clip(seen, plane.min(), plane.max(), out=seen)
    return limited
