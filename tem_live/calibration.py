"""From counts to electrons: dark and gain references, defect pixels, X-ray hits.

A frame is calibrated as ``electrons = (counts - dark) * gain / counts_per_electron``; pixels that
the references show to be defective are then replaced by the mean of their good neighbours, and
single pixels far above their surroundings (X-ray hits) by the median of theirs. Nothing is clipped
at 0: that would shift the mean of a low-dose frame.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import platformdirs

from tem_live.drivers.protocols import Roi
from tem_live.errors import CalibrationError
from tem_live.paths import check_target, written_whole

Kind = Literal["dark", "gain"]

HOT_SIGMA = 10.0
"""A pixel of the dark reference this many robust standard deviations off is a defect."""
GAIN_RANGE = (0.3, 3.0)
"""Gain outside of this range, relative to the sensor's mean, is a defect."""
_CHUNK_PX = 1 << 16
_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


@dataclass(frozen=True)
class Reference:
    """The mean of many dark or evenly lit frames, and the conditions it was taken under.

    Attributes
    ----------
    kind : {"dark", "gain"}
        What the frames were.
    image : ndarray (H, W) float32
        Dark: mean counts. Gain: factor that evens the sensor out, mean 1.
    frames : int
        Number of frames averaged.
    exposure_s, binning, roi
        Camera settings they were taken with.
    taken : str
        Local date and time, ISO 8601.
    """

    kind: Kind
    image: npt.NDArray[np.float32]
    frames: int
    exposure_s: float
    binning: int
    roi: Roi
    taken: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))

    def save(self, path: Path) -> Path:
        """Write to an .npz file (arrays and JSON only), replacing an older one whole.

        Raises
        ------
        InputError
            There is something else than a file at ``path``, or its folder cannot be written to.
        CalibrationError
            The disk is full or broken.
        """
        check_target(path)
        meta = {
            "kind": self.kind,
            "frames": self.frames,
            "exposure_s": self.exposure_s,
            "binning": self.binning,
            "roi": self.roi,
            "taken": self.taken,
        }
        try:
            with written_whole(path) as part, part.open("wb") as file:
                np.savez_compressed(file, image=self.image, meta=np.array(json.dumps(meta)))
        except OSError as error:
            raise CalibrationError(f"{path} cannot be written: {error.strerror}") from None
        return path

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote.

        Raises
        ------
        CalibrationError
            The file is missing or is no reference.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"]))
                image = arrays["image"].astype(np.float32)
            return cls(image=image, **{**meta, "roi": tuple(meta["roi"])})
        except FileNotFoundError:
            raise CalibrationError(
                f"reference {path} does not exist; take one with 'tem-live calibrate'"
            ) from None
        except Exception as error:
            raise CalibrationError(
                f"{path} is no reference of tem-live ({type(error).__name__}); "
                "take a new one with 'tem-live calibrate'"
            ) from None

    def mismatch(self, shape: tuple[int, int], binning: int, roi: Roi) -> str | None:
        """Why this reference does not fit such frames, or None if it does."""
        if self.image.shape != shape:
            mine, theirs = (f"{h}x{w}" for h, w in (self.image.shape, shape))
            return f"the {self.kind} reference is {mine}, the frames are {theirs}"
        if (self.binning, tuple(self.roi)) != (binning, tuple(roi)):
            return f"the {self.kind} reference was taken with another binning or region"
        return None


def default_path(profile: str, kind: Kind) -> Path:
    """Where ``tem-live calibrate`` keeps the reference of a profile."""
    folder = Path(platformdirs.user_data_dir("tem_live", appauthor=False)) / "calibration"
    return folder / profile / f"{kind}.npz"


def make_gain(
    flat_counts: npt.NDArray[np.floating[Any]], dark_counts: npt.NDArray[np.floating[Any]] | float
) -> npt.NDArray[np.float32]:
    """Gain factors from the mean of evenly lit frames.

    Parameters
    ----------
    flat_counts : ndarray (H, W)
        Mean counts under even illumination.
    dark_counts : ndarray (H, W) or float
        Mean counts without beam, or the pedestal.

    Returns
    -------
    ndarray (H, W) float32
        Factor to multiply dark-corrected counts with; mean response over factor is 1. A pixel
        without response gets 0 and is found to be a defect.

    Raises
    ------
    CalibrationError
        There is no light in the frames.
    """
    response = np.asarray(flat_counts, np.float64) - dark_counts
    level = float(np.median(response))
    if not level > 0:
        raise CalibrationError(
            "the gain frames hold no signal above the dark level; unblank the beam and spread it"
        )
    with np.errstate(divide="ignore"):
        factor = np.where(response > 0, level / response, 0.0)
    return factor.astype(np.float32)


def find_defects(
    dark: npt.NDArray[np.float32] | None, gain: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.bool_] | None:
    """Pixels whose dark level or gain is out of all proportion; None without a reference."""
    defects: npt.NDArray[np.bool_] | None = None
    if dark is not None:
        deviation = np.abs(dark - np.median(dark))
        defects = deviation > HOT_SIGMA * max(_scatter(deviation), 1e-6)
    if gain is not None:
        dead = (gain < GAIN_RANGE[0]) | (gain > GAIN_RANGE[1])
        defects = dead if defects is None else defects | dead
    return defects


def _scatter(deviation: npt.NDArray[np.float32]) -> float:
    """Standard deviation of dark levels from their absolute deviations, whatever a few are."""
    by_median = 1.4826 * float(np.median(deviation))
    # Of a camera that hardly counts in the dark most pixels are alike, and that is zero: there the
    # others have one event or two, which is chance and no defect. Their variance is their number.
    other = deviation[deviation > 0]
    # One count in the mean of some frames: less than a count.
    event = min(float(other.min()), 1.0) if other.size else 0.0
    events = float(np.minimum(deviation, HOT_SIGMA * event).mean(dtype=np.float64))
    return max(by_median, math.sqrt(event * max(events, event)))


class Calibrator:
    """Turns raw counts into electrons per pixel, in place, without allocating a plane.

    Parameters
    ----------
    xp : array namespace
        ``numpy`` or ``cupy``.
    shape : tuple of int
        (height, width) of the frames.
    counts_per_electron : float
        Gain.
    offset_counts : float
        Pedestal in counts; used where there is no dark reference.
    dark, gain : ndarray (H, W) float32 or None
        References.
    replace_defects : bool
        Whether defects that the references show are replaced.
    xray_sigma : float
        Threshold for X-ray hits in standard deviations of the frame; 0 switches them off.
    masked_counts : float or None
        Value by which the detector marks pixels that it did not measure. Which those are is seen
        in the first frame; they are replaced as defects are, whatever `replace_defects` says.
    """

    def __init__(
        self,
        xp: Any,
        shape: tuple[int, int],
        counts_per_electron: float,
        offset_counts: float = 0.0,
        dark: npt.NDArray[np.float32] | None = None,
        gain: npt.NDArray[np.float32] | None = None,
        replace_defects: bool = True,
        xray_sigma: float = 0.0,
        masked_counts: float | None = None,
    ) -> None:
        self._xp = xp
        self._on_host = "cupy" not in xp.__name__
        self._dark: Any = np.float32(offset_counts) if dark is None else xp.asarray(dark)
        scale = np.float32(1.0 / counts_per_electron)
        self._scale: Any = scale if gain is None else xp.asarray(gain) * scale
        self._xray_sigma = xray_sigma
        self._shape = shape
        self._counts_per_electron = counts_per_electron
        self._references = dark, gain
        self._masked_counts = masked_counts
        self._marking = threading.Lock()
        defects = find_defects(dark, gain)
        self._leave_out(defects, defects if replace_defects else None)

    def _leave_out(
        self, bad: npt.NDArray[np.bool_] | None, replaced: npt.NDArray[np.bool_] | None
    ) -> None:
        """Pixels that say nothing of the dose, and those that neighbours stand in for."""
        self.defects = 0 if replaced is None else int(replaced.sum())
        self._replaced = replaced
        self._patches = None
        if replaced is not None and self.defects:
            self._patches = _patches(self._xp, replaced)
        self.__dict__.pop("_on_gpu", None)
        self._bad = np.flatnonzero(bad) if bad is not None else np.zeros(0, np.intp)
        dark, gain = self._references
        # A pixel that is nearly dead has a factor of thousands.
        mean_dark = float(self._dark) if dark is None else self._mean(dark)
        mean_gain = 1.0 if gain is None else self._mean(gain)
        self._means = mean_dark, mean_gain / self._counts_per_electron

    def _mean(self, plane: npt.NDArray[Any]) -> float:
        """Mean over the pixels that measure."""
        count = plane.size - len(self._bad)
        if not len(self._bad) or not count:
            return float(plane.mean(dtype=np.float64))
        bad = plane.reshape(-1)[self._bad].sum(dtype=np.float64)
        return float((plane.sum(dtype=np.float64) - bad) / count)

    def _mark_masked(self, raw: Any) -> None:
        """See in the first frame which pixels the detector does not measure: they stay the same."""
        if self._masked_counts is None:
            return
        with self._marking:
            if self._masked_counts is None:
                return
            found = raw == self._masked_counts
            masked = found if isinstance(found, np.ndarray) else found.get()
            if 2 * int(masked.sum()) > masked.size:
                # No mask: a frame that is nothing but too bright.
                return
            if masked.any():
                known = find_defects(*self._references)
                replaced = masked if self._replaced is None else masked | self._replaced
                self._leave_out(masked if known is None else masked | known, replaced)
            self._masked_counts = None

    def mean_electrons(self, counts: npt.NDArray[Any]) -> float:
        """Mean electrons per pixel of a raw frame on the host, without calibrating its pixels.

        Parameters
        ----------
        counts : ndarray (H, W), any real dtype
            Counts. Defects are left out.
        """
        self._mark_masked(counts)
        mean_dark, mean_scale = self._means
        return (self._mean(counts) - mean_dark) * mean_scale

    def apply(self, raw: Any, out: Any) -> Any:
        """Calibrate one frame.

        Parameters
        ----------
        raw : array (H, W), any real dtype
            Counts.
        out : array (H, W) float32
            Electrons per pixel are written here.

        Returns
        -------
        array
            ``out``.
        """
        self._mark_masked(raw)
        if not self._on_host:
            return self._apply_on_gpu(raw, out)
        # Some rows at a time, which stay in the cache from one step to the next.
        rows = max(1, _CHUNK_PX // max(1, self._shape[1]))
        for top in range(0, self._shape[0], rows):
            part = slice(top, top + rows)
            dark = self._dark if self._dark.ndim == 0 else self._dark[part]
            scale = self._scale if self._scale.ndim == 0 else self._scale[part]
            self._xp.subtract(raw[part], dark, out=out[part], casting="same_kind")
            self._xp.multiply(out[part], scale, out=out[part])
        self._mend_defects(out)
        if self._xray_sigma > 0:
            self._remove_xrays(out)
        return out

    def _apply_on_gpu(self, raw: Any, out: Any) -> Any:
        from tem_live.gpu_kernels import calibrate

        calibrate(self._xp, raw, self._on_gpu[0], self._on_gpu[1], out, self._xray_sigma)
        self._mend_defects(out)
        return out

    @functools.cached_property
    def _on_gpu(self) -> tuple[Any, Any]:
        """Dark level and scale as the kernel takes them; defects count nothing until mended."""
        xp = self._xp
        dark, scale = (
            array.reshape(1) if array.ndim == 0 else array
            for array in (xp.asarray(self._dark), xp.asarray(self._scale))
        )
        if self._patches is not None:
            scale = xp.broadcast_to(scale, self._shape).copy()
            scale.reshape(-1)[self._patches[0]] = 0.0
        return dark.astype(xp.float32), scale.astype(xp.float32)

    def _mend_defects(self, out: Any) -> None:
        if self._patches is None:
            return
        pixels, neighbours, weights = self._patches
        flat = out.reshape(-1)
        flat[pixels] = (flat[neighbours] * weights).sum(axis=1)

    def _remove_xrays(self, out: Any) -> None:
        # A hit raises few pixels by much. Only those far above the whole frame are looked at
        # closer, so that the cost is one pass for the threshold; what their neighbours share is
        # the specimen and stays.
        xp = self._xp
        sample = out[::4, ::4].copy()
        threshold = sample.mean() + self._xray_sigma * sample.std()
        # Most rows have no hit: their maximum says so at a tenth of the cost.
        rows = xp.flatnonzero(out.max(axis=1) > threshold)
        if not len(rows):
            return
        ys, xs = xp.nonzero(out[rows] > threshold)
        ys = rows[ys]
        height, width = self._shape
        around = xp.stack(
            [
                out[xp.clip(ys + dy, 0, height - 1), xp.clip(xs + dx, 0, width - 1)]
                for dy, dx in _NEIGHBOURS
            ]
        )
        middle = xp.median(around, axis=0)
        spread = xp.sqrt(xp.maximum(middle, 1.0))
        hit = out[ys, xs] > middle + self._xray_sigma * spread
        out[ys[hit], xs[hit]] = middle[hit]


def _patches(xp: Any, defects: npt.NDArray[np.bool_]) -> tuple[Any, Any, Any]:
    """Flat indices of the defects, of their neighbours, and the neighbours' weights."""
    height, width = defects.shape
    ys, xs = np.nonzero(defects)
    # A cluster or a dead row has no good direct neighbour: widen the search until there is one.
    for reach in (1, 2, 4, 8, 16):
        steps = [(dy * reach, dx * reach) for dy, dx in _NEIGHBOURS]
        ny = np.stack([ys + dy for dy, _ in steps], axis=1)
        nx = np.stack([xs + dx for _, dx in steps], axis=1)
        inside = (ny >= 0) & (ny < height) & (nx >= 0) & (nx < width)
        ny, nx = ny.clip(0, height - 1), nx.clip(0, width - 1)
        good = inside & ~defects[ny, nx]
        if reach == 1:
            flat, weights = ny * width + nx, good.astype(np.float32)
        else:
            lone = weights.sum(axis=1) == 0
            flat[lone], weights[lone] = (ny * width + nx)[lone], good[lone]
    total = weights.sum(axis=1, keepdims=True)
    weights /= np.maximum(total, 1.0)
    return xp.asarray(ys * width + xs), xp.asarray(flat), xp.asarray(weights)
