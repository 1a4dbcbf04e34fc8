"""Random cameras to train with: what a detector does to an image, in electrons.

Real cameras are not Poisson: they add gain (excess) noise, read noise, streaks along the read-out
direction, blur, clipping at zero, defects. A restorer that has only seen Poisson noise takes these
for specimen and draws lattices and stripes. Every sample therefore gets a camera of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft as sp_fft
from scipy import ndimage, special

__all__ = ["BLURS_PX", "Camera", "expected_clipped", "expose", "gaussian_error", "random_camera"]

Array = npt.NDArray[np.float32]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Camera:
    """Noise of one camera; the default is an ideal counting camera (Poisson).

    Attributes
    ----------
    excess : float
        Variance added by the gain cascade, per electron (variance/mean is 1 + excess).
    read_e : float
        Standard deviation of the read noise in electrons.
    blur_px : float
        Standard deviation of the Gaussian point spread: blurs the signal and its shot noise.
    streak : float
        Standard deviation of the noise along lines, in units of the white noise.
    streak_px : float
        Length over which streaks stay correlated, in pixels.
    streak_columns : bool
        Streaks run down columns instead of along rows.
    column_offset : float
        Standard deviation of whole-column offsets, in units of the white noise.
    gain_residue : float
        Relative standard deviation of an uncorrected pixel gain.
    clip : bool
        Negative values are stored as zero.
    defects : float
        Fraction of hot and dead pixels.
    xrays : float
        Expected X-ray hits per megapixel.
    """

    excess: float = 0.0
    read_e: float = 0.0
    blur_px: float = 0.0
    streak: float = 0.0
    streak_px: float = 32.0
    streak_columns: bool = False
    column_offset: float = 0.0
    gain_residue: float = 0.0
    clip: bool = False
    defects: float = 0.0
    xrays: float = 0.0


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def random_camera(rng: Rng, poisson: float = 0.4) -> Camera:
    """Draw a camera; with probability `poisson` the ideal counting one."""
    if rng.random() < poisson:
        return Camera()

    def maybe(chance: float, low: float, high: float) -> float:
        return _log_uniform(rng, low, high) if rng.random() < chance else 0.0

    return Camera(
        excess=maybe(0.7, 0.05, 4.0),
        read_e=maybe(0.7, 0.1, 5.0),
        blur_px=maybe(0.4, 0.25, 0.8),
        streak=maybe(0.5, 0.04, 0.5),
        streak_px=_log_uniform(rng, 8.0, 600.0),
        streak_columns=bool(rng.random() < 0.2),
        column_offset=maybe(0.15, 0.02, 0.2),
        gain_residue=maybe(0.3, 0.003, 0.03),
        clip=bool(rng.random() < 0.6),
        defects=maybe(0.25, 1e-5, 1e-3),
        xrays=maybe(0.2, 5.0, 200.0),
    )


def expected_clipped(
    mean: npt.NDArray[np.floating], sigma: npt.NDArray[np.floating] | float
) -> Array:
    """Mean of max(0, x) for x normal: what an average over many clipped frames converges to."""
    u = mean / np.maximum(sigma, 1e-6)
    return np.asarray(
        mean * special.ndtr(u) + sigma * np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi),
        dtype=np.float32,
    )


def _streaks(rng: Rng, shape: tuple[int, int], camera: Camera) -> Array:
    """Unit-variance noise along lines: a running mean of this length over white noise."""
    lines, along = shape[::-1] if camera.streak_columns else shape
    length = max(int(camera.streak_px), 1)
    if length >= along:
        field = np.repeat(rng.standard_normal((lines, 1), dtype=np.float32), along, axis=1)
    else:
        white = rng.standard_normal((lines, along + length), dtype=np.float32)
        total = np.cumsum(white, axis=1, dtype=np.float64)
        field = ((total[:, length:] - total[:, :-length]) / np.sqrt(length)).astype(np.float32)
    return field.T if camera.streak_columns else field


def expose(
    rng: Rng, scene: npt.NDArray[np.floating], dose: float, camera: Camera
) -> tuple[Array, Array, float]:
    """Take one frame.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the noise.
    scene : ndarray
        (H, W), relative intensity; the frame's expected value is ``dose * scene``.
    dose : float
        Electrons per pixel where the scene is 1.
    camera : Camera
        What the detector does.

    Returns
    -------
    frame : ndarray
        float32 (H, W), electrons.
    target : ndarray
        float32 (H, W): what the frame would average to, without defects. Blur is part of it; so
        is the shift by clipping, which only a calibration that knows the offset can undo.
    sigma : float
        Standard deviation of the noise per pixel in electrons, before clipping.
    """
    signal = np.asarray(scene, dtype=np.float32) * np.float32(dose)
    frame = rng.poisson(signal).astype(np.float32)
    noise_scale = 1.0
    if camera.excess > 0.0:
        frame += np.sqrt(camera.excess * signal) * rng.standard_normal(
            signal.shape, dtype=np.float32
        )
    if camera.blur_px > 0.0:
        frame = ndimage.gaussian_filter(frame, camera.blur_px, mode="mirror")
        signal = ndimage.gaussian_filter(signal, camera.blur_px, mode="mirror")
        taps = ndimage.gaussian_filter1d(np.eye(1, 17, 8)[0], camera.blur_px)
        noise_scale = float(np.sum(taps**2)) ** 2
    variance = noise_scale * (1.0 + camera.excess) * signal + camera.read_e**2
    white = float(np.sqrt(variance.mean()))
    if camera.gain_residue > 0.0:
        frame *= 1.0 + camera.gain_residue * rng.standard_normal(frame.shape, dtype=np.float32)
        variance = variance + (camera.gain_residue * signal) ** 2
    if camera.read_e > 0.0:
        frame += camera.read_e * rng.standard_normal(frame.shape, dtype=np.float32)
    if camera.streak > 0.0:
        frame += camera.streak * white * _streaks(rng, signal.shape, camera)
        variance = variance + (camera.streak * white) ** 2
    if camera.column_offset > 0.0:
        frame += (
            camera.column_offset
            * white
            * rng.standard_normal((1, frame.shape[1]), dtype=np.float32)
        )
        variance = variance + (camera.column_offset * white) ** 2
    sigma = float(np.sqrt(variance.mean()))
    target = signal
    if camera.clip and (camera.read_e > 0.0 or camera.excess > 0.0 or camera.streak > 0.0):
        np.maximum(frame, 0.0, out=frame)
        target = expected_clipped(signal, np.sqrt(variance))
    _add_defects(rng, frame, camera, max(dose, 1.0))
    return frame, np.asarray(target, dtype=np.float32), sigma


def _add_defects(rng: Rng, frame: Array, camera: Camera, dose: float) -> None:
    height, width = frame.shape
    if camera.defects > 0.0:
        count = int(rng.poisson(camera.defects * frame.size))
        y, x = rng.integers(0, height, count), rng.integers(0, width, count)
        hot = rng.random(count) < 0.5
        frame[y, x] = np.where(hot, dose * np.exp(rng.uniform(1.0, 4.5, count)), 0.0)
    if camera.xrays > 0.0:
        for _ in range(int(rng.poisson(camera.xrays * frame.size / 1e6))):
            y0, x0 = int(rng.integers(0, height)), int(rng.integers(0, width))
            spread = rng.uniform(0.3, 1.0)
            dy, dx = np.mgrid[-2:3, -2:3]
            blob = np.exp(-(dy**2 + dx**2) / (2 * spread**2))
            energy = dose * np.exp(rng.uniform(2.0, 5.5))
            ys, xs = slice(max(y0 - 2, 0), y0 + 3), slice(max(x0 - 2, 0), x0 + 3)
            view = frame[ys, xs]
            top, left = max(2 - y0, 0), max(2 - x0, 0)
            view += energy * blob[top : top + view.shape[0], left : left + view.shape[1]]


BLURS_PX = (0.0, 0.6, 0.9, 1.3, 1.9, 2.8, 4.2, 6.5, 10.0)
"""Gaussian blurs that `gaussian_error` tries, standard deviations in pixels."""


def gaussian_error(target: Array, sigma: float) -> float:
    """MSE that the best of nine Gaussian blurs is expected to leave, in e-^2.

    The training loss is measured in this unit, so that it approximates the error ratio that
    restorers are judged by, whatever the scene, the dose and the camera. The widest blur is
    limited to 10 px: on an empty frame a wider one would weigh that frame without bound.
    """
    height, width = target.shape
    spectrum = sp_fft.dctn(target, type=2, norm="ortho")
    spectrum[0, 0] = 0.0
    power = np.square(spectrum)
    wy = (np.pi * np.arange(height, dtype=np.float32) / height) ** 2
    wx = (np.pi * np.arange(width, dtype=np.float32) / width) ** 2
    best = np.inf
    for blur in BLURS_PX:
        gy, gx = np.exp(-0.5 * wy * blur * blur), np.exp(-0.5 * wx * blur * blur)
        # sum P (1 - gy gx)^2, expanded so that it is three matrix products
        bias = power.sum() - 2.0 * gy @ power @ gx + (gy * gy) @ power @ (gx * gx)
        noise = sigma * sigma * float(np.mean(gy * gy) * np.mean(gx * gx))
        best = min(best, max(float(bias), 0.0) / target.size + noise)
    return float(best)
