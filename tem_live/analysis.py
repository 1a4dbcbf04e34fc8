"""What is derived from the live frames: drift against the first one, and a rolling mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from tem_live.binning import binned

_SIDE = 128
# Height of the peak over the spread of the correlation. Raw frames of noise alone reach 7, 5 e-/px
# frames of the simulated specimens have 9.6 and more. What a restorer makes of noise alone reaches
# 14: it is smooth, and more alike from frame to frame.
_SURE = 8.5
_SURE_IF_RESTORED = 15.0
_MOST_MISSES = 3
# Shift in binned pixels after which the next frame is the one to compare with. What does not move,
# such as the window, pulls each measured shift towards 0: few long ones lose less than many short.
_FARTHEST = 6.0


class DriftEstimator:
    """Shift of each frame against the first, by phase correlation of binned frames.

    A frame is compared with one of those before, until the shift is large or the two are no longer
    alike; then with that one. So a specimen that changes slowly or drifts out of the first field is
    still followed. Kuglin and Hines (1975), Proc. IEEE Conf.
    Cybernetics and Society, 163; the peak is refined by a parabola through its neighbours.
    """

    def __init__(self) -> None:
        self._before: list[npt.NDArray[np.complex64]] | None = None
        self._window: npt.NDArray[np.float32] | None = None
        self._low_pass: npt.NDArray[np.float32] | None = None
        self._shape: tuple[int, ...] = ()
        self._total = np.zeros(2)
        self._total_before = np.zeros(2)
        self._misses = 0

    def reset(self) -> None:
        """Take the next frame as the first."""
        self._before = None
        self._window = None
        self._total = np.zeros(2)
        self._total_before = np.zeros(2)
        self._misses = 0

    def update(
        self,
        image: Any,
        restored: Any = None,
        download: Callable[[Any], npt.NDArray[np.float32]] = np.asarray,
    ) -> tuple[float, float] | None:
        """Follow the next frame.

        Parameters
        ----------
        image : array (H, W) float32
            The frame as the camera saw it: it tells whether there is anything to follow. It is
            binned where it lives (NumPy or CuPy).
        restored : array (H, W) float32, optional
            The restored frame: it tells the shift more exactly.
        download : callable
            Brings an array to the host; only binned frames are.

        Returns
        -------
        (dy, dx) : tuple of float or None
            Shift of the specimen since the first frame in pixels of ``image``, positive down and
            to the right; None for frames that are too small (under 16 px) or show nothing that
            the frame before shows too.
        """
        height, width = image.shape
        factor = max(1, min(height, width) // _SIDE)
        rows, columns = height // factor, width // factor
        if min(rows, columns) < 16:
            return None
        if self._window is None or self._low_pass is None or self._shape != image.shape:
            self.reset()
            self._shape = image.shape
            window = np.outer(np.hanning(rows), np.hanning(columns))
            self._window = window.astype(np.float32)
            frequency = np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(columns)[None, :])
            # The finest frequencies hold noise and the aliases of binning.
            self._low_pass = np.exp(-((frequency / 0.15) ** 2)).astype(np.float32)
        planes = (image,) if restored is None else (image, restored)
        spectra = [self._spectrum(download(binned(plane, factor))) for plane in planes]
        before = self._before
        if before is None or len(before) != len(spectra):
            self._before, self._total_before = spectra, self._total
            return float(self._total[0]), float(self._total[1])
        correlations = [
            self._correlation(new, old, (rows, columns))
            for new, old in zip(spectra, before, strict=True)
        ]
        # Either may show what is there: the restored frame a faint specimen that moves, the raw
        # frame detail that is too weak to be restored.
        if not any(
            found.max() >= sure * found.std()
            for found, sure in zip(correlations, (_SURE, _SURE_IF_RESTORED), strict=False)
        ):
            # The next frame is compared with the last good one, unless there is none any more.
            self._misses += 1
            if self._misses >= _MOST_MISSES:
                self._before, self._total_before, self._misses = spectra, self._total, 0
            return None
        self._misses = 0
        finest = correlations[-1]
        peak = np.unravel_index(int(finest.argmax()), finest.shape)
        shift = np.array([_subpixel(finest, int(peak[0]), int(peak[1]), axis) for axis in (0, 1)])
        self._total = self._total_before + factor * shift
        if np.abs(shift).max() > _FARTHEST:
            self._before, self._total_before = spectra, self._total
        return float(self._total[0]), float(self._total[1])

    def _spectrum(self, small: npt.NDArray[np.float32]) -> npt.NDArray[np.complex64]:
        spectrum: npt.NDArray[np.complex64] = fft.rfft2((small - small.mean()) * self._window)
        return spectrum

    def _correlation(
        self,
        new: npt.NDArray[np.complex64],
        old: npt.NDArray[np.complex64],
        shape: tuple[int, int],
    ) -> npt.NDArray[np.float32]:
        cross = new * old.conj()
        cross *= self._low_pass / np.maximum(np.abs(cross), 1e-12)
        correlation: npt.NDArray[np.float32] = fft.irfft2(cross, s=shape)
        return correlation


def _subpixel(correlation: npt.NDArray[Any], row: int, column: int, axis: int) -> float:
    """Signed position of the peak along one axis, the origin at 0."""
    size = correlation.shape[axis]
    line = correlation[:, column] if axis == 0 else correlation[row]
    at = row if axis == 0 else column
    left, middle, right = line[at - 1], line[at], line[(at + 1) % size]
    curvature = left - 2 * middle + right
    offset = 0.5 * (left - right) / curvature if curvature < 0 else 0.0
    position = at if at <= size // 2 else at - size
    return float(position + offset)


class RollingMean:
    """Running mean of the last frames with exponentially fading weights, in one plane.

    Parameters
    ----------
    frames : int
        Effective number of frames: the noise variance falls by this factor, as in a plain mean
        of so many. The weight of the newest frame is ``2 / (frames + 1)``.
    """

    def __init__(self, frames: int) -> None:
        self._weight = 2.0 / (frames + 1.0)
        self._mean: Any = None
        self._work: Any = None
        self._count = 0

    def update(self, xp: Any, plane: Any) -> None:
        """Take in one plane, array (H, W) float32 of the namespace ``xp``."""
        if self._mean is None or self._mean.shape != plane.shape:
            self._mean, self._work, self._count = plane.copy(), xp.empty_like(plane), 1
            return
        self._count += 1
        # Until enough frames have come, the plain mean; the first frame would else linger.
        weight = max(self._weight, 1.0 / self._count)
        xp.subtract(plane, self._mean, out=self._work)
        xp.multiply(self._work, xp.float32(weight), out=self._work)
        xp.add(self._mean, self._work, out=self._mean)

    @property
    def plane(self) -> Any:
        """The mean so far, array (H, W) float32, or None before the first frame."""
        return self._mean
