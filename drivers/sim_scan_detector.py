"""The detector of the simulated scan: from expected electrons to counts.

It counts what it gets (Poisson), spreads the signal of each electron, trails into the pixels that
follow, and its amplifier adds noise and an offset a line. Cold emission flickers from line to line.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import signal

from tem_live.drivers.sim_chance import poisson_table, spread_energies
from tem_live.drivers.sim_options import SimStemOptions
from tem_live.drivers.sim_readout import read_out
from tem_live.drivers.sim_windows import Plane


class ScanDetector:
    """From expected electrons to counts.

    Parameters
    ----------
    options : SimStem.Options
        The noise.
    """

    LEAD_DECAYS = 8
    """Time constants before a line in which the detector already sees its first pixel."""

    def __init__(self, options: SimStemOptions) -> None:
        self._options = options

    def detect(
        self,
        expected: Plane,
        dwell_s: float,
        rng: np.random.Generator,
        out: npt.NDArray[np.uint16],
    ) -> None:
        """Turn expected electrons into the counts of one frame.

        Parameters
        ----------
        expected : ndarray
            (H, W) float32, electrons per pixel; overwritten.
        dwell_s : float
            Time on a pixel in seconds.
        rng : Generator
            Of this frame.
        out : ndarray
            (H, W) uint16; overwritten.
        """
        options = self._options
        height, width = expected.shape
        if options.flicker:
            current = 1 + options.flicker * rng.standard_normal((height, 1), dtype=np.float32)
            expected *= np.maximum(current, 0)
        c0, c1, q = trail(options.decay_s, dwell_s)
        # What the probe has seen before the line trails into it: it waits at the first pixel.
        lead = min(int(np.ceil(self.LEAD_DECAYS * options.decay_s / dwell_s)), 4 * width)
        seen = np.concatenate([np.repeat(expected[:, :1], lead, axis=1), expected], axis=1)
        electrons = poisson_table().draw(seen, rng, out=seen)
        if options.energy_spread:
            electrons = spread_energies(electrons, options.energy_spread, rng)
        if c1:
            trailed = signal.lfilter([c0, c1 - q * c0], [1.0, -q], electrons, axis=1)
            electrons = np.asarray(trailed, dtype=np.float32)
        gain = options.gain_counts_per_electron
        read_out(
            electrons[:, lead:] * np.float32(gain),
            options.pedestal_counts,
            options.amplifier_noise_e * gain,
            options.row_noise_e * gain,
            rng,
            out,
        )


def trail(decay_s: float, dwell_s: float) -> tuple[float, float, float]:
    """Shares of an electron's light that fall into its own pixel and into the next ones.

    Electrons come evenly during the dwell time d and shine with the time constant τ. With
    r = τ / d and q = exp(-1 / r) the integrals over the pixels' times are c0 = 1 - r (1 - q) and,
    in the k-th pixel after it, c1 q^(k-1) with c1 = r (1 - q)²; they add up to 1.

    Returns
    -------
    tuple of float
        (c0, c1, q).
    """
    ratio = decay_s / dwell_s
    if ratio == 0.0:
        return 1.0, 0.0, 0.0
    gone = float(-np.expm1(-1 / ratio))
    return 1 - ratio * gone, ratio * gone**2, 1 - gone
