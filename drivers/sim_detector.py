"""The detector of the simulated camera: from expected electrons to counts.

Noise enters where it does in a camera: Poisson statistics of the electrons, spread of the energy
that each leaves, blur (which correlates the noise of neighbours), gain and its pattern, dark
current, hot and dead pixels, binning, X-ray hits, read noise, noise of whole rows, pedestal,
clipping.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from tem_live.drivers.protocols import CameraState, Roi
from tem_live.drivers.sim_chance import poisson_table, spread_energies
from tem_live.drivers.sim_options import SimCameraOptions
from tem_live.drivers.sim_readout import read_out
from tem_live.drivers.sim_windows import Plane, bands


class _Region(NamedTuple):
    """What a region of the sensor has of its own; places are indices, (y, x)."""

    roi: Roi
    gain_middle: Plane
    dead: tuple[npt.NDArray[np.int64], ...]
    hot: tuple[npt.NDArray[np.int64], ...]
    hot_gain: npt.NDArray[np.float32]
    hot_e_per_s: npt.NDArray[np.float64]


class Detector:
    """From expected electrons to counts: everything between the specimen and the file.

    Parameters
    ----------
    options : SimCamera.Options
        The noise.
    """

    def __init__(self, options: SimCameraOptions) -> None:
        self._options = options
        self.kernel = blur_kernel(options.mtf_sigma_px)
        self.margin = self.kernel.size // 2
        """Pixels around a region that its blur reaches for."""
        rng = np.random.default_rng([options.seed, 0xDE7EC])
        shape = options.sensor_height_px, options.sensor_width_px
        self._gain = np.float32(options.gain_counts_per_electron) * (
            1 + np.float32(options.gain_spread) * rng.standard_normal(shape, dtype=np.float32)
        )
        defects = min(options.hot_pixels + options.dead_pixels, shape[0] * shape[1])
        places = rng.choice(shape[0] * shape[1], defects, replace=False)
        where = np.stack(np.unravel_index(places, shape), axis=1)
        self.hot = where[: options.hot_pixels]
        """Places of the hot pixels, (N, 2) as (y, x) on the sensor."""
        self.dead = where[options.hot_pixels :]
        """Places of the dead pixels, (N, 2)."""
        self._hot_e_per_s = options.hot_e_per_s * rng.exponential(1.0, len(self.hot))
        # The middle of the blur, in both directions, is multiplied together with the gain.
        self._middle = self.kernel[self.margin] ** 2
        self._gain_middle = self._gain * self._middle
        self._region: _Region | None = None

    def blurred(self, plane: Plane) -> Plane:
        """The detector's blur of a plane that has `margin` more pixels on each side."""
        return self._blurred_times(plane, np.asarray(self._middle))

    def _blurred_times(self, plane: Plane, factor: Plane) -> Plane:
        """Blur by the kernel over its middle, and multiply; a new array."""
        margin = self.margin
        height, width = (n - 2 * margin for n in plane.shape)
        weights = self.kernel[margin + 1 :] / self.kernel[margin]
        factor = np.broadcast_to(factor, (height, width))
        out = np.empty((height, width), np.float32)
        highest = max(rows.stop - rows.start for rows in bands(height, width))
        along_y = np.empty((highest, width + 2 * margin), np.float32)
        along_x = np.empty((highest, width), np.float32)
        for rows in bands(height, width):
            count = rows.stop - rows.start
            above = plane[rows.start : rows.stop + 2 * margin]
            lines = with_neighbours(above, weights, along_y[:count])
            band = with_neighbours(lines.T, weights, along_x[:count].T).T
            np.multiply(band, factor[rows], out=out[rows])
        return out

    def detect(
        self,
        expected: Plane,
        state: CameraState,
        rng: np.random.Generator,
        out: npt.NDArray[np.uint16],
    ) -> None:
        """Turn expected electrons into the counts of one frame.

        Parameters
        ----------
        expected : ndarray
            (H + 2 margin, W + 2 margin) float32, electrons per unbinned pixel, unblurred;
            overwritten.
        state : CameraState
            Region, binning and exposure.
        rng : Generator
            Of this frame; see `tem_live.drivers.sim_chance`.
        out : ndarray
            Frame shape, uint16; overwritten.
        """
        options, binning = self._options, state.binning
        lit = expected.max() > 0
        electrons = poisson_table().draw(expected, rng, out=expected)
        if options.energy_spread:
            electrons = spread_energies(electrons, options.energy_spread, rng)
        if self._region is None or self._region.roi != state.roi:
            self._region = self._region_of(state.roi)
        region = self._region
        signal = self._blurred_times(electrons, region.gain_middle)
        signal[region.dead] = 0
        signal[region.hot] += region.hot_gain * rng.poisson(region.hot_e_per_s * state.exposure_s)
        counts = binned(signal, binning)
        # From here on in counts of a pixel as binned. The sum of independent normal terms is
        # normal: binning turns sigma into binning * sigma.
        gain = options.gain_counts_per_electron
        dark_e_per_px = binning * binning * options.dark_e_per_px_s * state.exposure_s
        add_evenly(counts, gain, dark_e_per_px, rng)
        if lit and options.xrays_per_frame:
            share = signal.size / (options.sensor_height_px * options.sensor_width_px)
            hits = rng.poisson(options.xrays_per_frame * share)
            where = rng.integers(0, counts.size, hits)
            np.add.at(counts.reshape(-1), where, gain * options.xray_e * rng.exponential(1, hits))
        read_out(
            counts,
            options.pedestal_counts,
            options.read_noise_e * gain * binning,
            options.row_noise_e * gain * binning**1.5,
            rng,
            out,
        )

    def _region_of(self, roi: Roi) -> _Region:
        top, left, height, width = roi

        def within(places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
            y, x = places[:, 0] - top, places[:, 1] - left
            inside: npt.NDArray[np.bool_] = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            return inside

        hot, dead = (
            tuple((places[within(places)] - (top, left)).T) for places in (self.hot, self.dead)
        )
        part = slice(top, top + height), slice(left, left + width)
        return _Region(
            roi,
            self._gain_middle[part],
            dead,
            hot,
            self._gain[part][hot],
            self._hot_e_per_s[within(self.hot)],
        )


def add_evenly(
    counts: Plane, gain: float, expected_e_per_px: float, rng: np.random.Generator
) -> None:
    """Add Poisson electrons of one expectation everywhere, in place; cheap when they are few.

    Parameters
    ----------
    counts : ndarray
        (H, W) float32, C-contiguous.
    gain : float
        Counts per electron.
    expected_e_per_px : float
        Electrons per pixel.
    rng : Generator
        See `tem_live.drivers.sim_chance`.
    """
    if not expected_e_per_px:
        return
    if expected_e_per_px > 0.1:
        electrons = np.full(counts.shape, expected_e_per_px, np.float32)
        poisson_table().draw(electrons, rng, out=electrons)
        electrons *= np.float32(gain)
        counts += electrons
        return
    # The total is Poisson and each electron falls anywhere: exactly the same statistics.
    where = rng.integers(0, counts.size, rng.poisson(expected_e_per_px * counts.size))
    np.add.at(counts.reshape(-1), where, np.float32(gain))


def with_neighbours(plane: Plane, weights: Plane, out: Plane) -> Plane:
    """Each row and, weighted, those beside it.

    Parameters
    ----------
    plane : ndarray
        (H + 2 N, W) float32.
    weights : ndarray
        (N,) float32, of the rows next to it and further away.
    out : ndarray
        (H, W) float32; overwritten.

    Returns
    -------
    ndarray
        ``out``; ``plane`` itself for no weights.
    """
    reach, count = len(weights), len(out)
    if not reach:
        return plane
    np.add(plane[reach - 1 :][:count], plane[reach + 1 :][:count], out=out)
    out *= weights[0]
    out += plane[reach:][:count]
    for k in range(2, reach + 1):
        both = plane[reach - k :][:count] + plane[reach + k :][:count]
        both *= weights[k - 1]
        out += both
    return out


def blur_kernel(sigma_px: float) -> npt.NDArray[np.float32]:
    """Gaussian blur integrated over pixels, odd length, float32, sum 1; [1] for sigma 0."""
    if sigma_px == 0:
        return np.ones(1, np.float32)
    reach = max(1, int(np.ceil(3 * sigma_px - 0.5)))
    edges = (np.arange(-reach, reach + 2) - 0.5) / (sigma_px * np.sqrt(2))
    weights = np.diff(special.erf(edges))
    kernel: npt.NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return kernel


def binned(plane: Plane, binning: int) -> Plane:
    """Sums of binning x binning pixels; the plane itself for 1."""
    if binning == 1:
        return plane
    height, width = (n // binning for n in plane.shape)
    blocks = plane[: height * binning, : width * binning].reshape(height, binning, width, binning)
    summed: Plane = blocks.sum(axis=(1, 3), dtype=np.float32)
    return summed
