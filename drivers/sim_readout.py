"""The end of a simulated detector: what its amplifier adds, and counts of whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.drivers.sim_chance import normals
from tem_live.drivers.sim_windows import Plane, bands

SATURATION_COUNTS = 65535


def read_out(
    signal: Plane,
    pedestal_counts: float,
    noise_counts: float,
    row_noise_counts: float,
    rng: np.random.Generator,
    out: npt.NDArray[np.uint16],
) -> None:
    """Add noise and pedestal, round and clip.

    Parameters
    ----------
    signal : ndarray
        (H, W) float32 in counts; overwritten.
    pedestal_counts : float
        What is added to every pixel.
    noise_counts : float
        White noise, rms.
    row_noise_counts : float
        Noise that all pixels of a row share, rms.
    rng : Generator
        Of this frame; see `tem_live.drivers.sim_chance`.
    out : ndarray
        (H, W) uint16; overwritten.
    """
    height, width = signal.shape
    # Half a count more makes the truncation below a rounding.
    added: npt.NDArray[Any] = np.full((height, 1), pedestal_counts + 0.5, np.float32)
    if row_noise_counts:
        added += normals((height, 1), rng, row_noise_counts)
    for rows in bands(height, width):
        band = signal[rows]
        if noise_counts:
            band += normals(band.shape, rng, noise_counts)
        band += added[rows]
        np.clip(band, 0, SATURATION_COUNTS, out=band)
        np.copyto(out[rows], band, casting="unsafe")
