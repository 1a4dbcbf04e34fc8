"""The user's own images as training data: pairs, a series, single frames; in electrons per pixel.

- **Pairs** of short and long exposures (Katsuno et al., arXiv:2106.01718), in the folders ``short``
  and ``long``: the long one is registered on the short one and divided by the ratio of exposures.
  Absolute intensity is kept and the reduction does not alias, other than in their recipe.
- **A series**: each frame's target is the next one, registered (Noise2Noise, Lehtinen et al.,
  arXiv:1803.04189).
- **Single frames**: no target is known, see `tem_live.models.data_own`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import fft as sp_fft
from scipy import ndimage

from tem_live.errors import InputError
from tem_live.models.training import OwnRecipe

__all__ = ["Example", "OwnData", "fixed_pattern", "load_own", "moved", "reduced", "shift_between"]

Array = npt.NDArray[np.float32]
Kind = Literal["pairs", "series", "frame"]
Restore = Callable[[Array], Array]

PAIRS_FILE = "pairs.json"
"""What `tem_live.capture` writes beside the folders: ``short_s`` and ``long_s``, in seconds."""

# Frames smaller than this are of no use to the network.
_LEAST_PX = 64
# Shifts beyond this share of the frame leave too little in common.
_MOST_SHIFT = 0.25
# A correlation of the noise of successive frames from which on it is called a fixed pattern.
_FIXED_SHARE = 0.005


@dataclass(frozen=True)
class Example:
    """A frame, and what it is compared with where there is anything.

    Attributes
    ----------
    frame : ndarray
        float32 (H, W), e-/px.
    target : ndarray or None
        Same shape and unit, the same specimen at the same place; noisy too.
    """

    frame: Array
    target: Array | None = None


@dataclass(frozen=True)
class OwnData:
    """What was found in a folder.

    Attributes
    ----------
    kind : {"pairs", "series", "frame"}
        What it is.
    examples : tuple of Example
        In the order of the files.
    warnings : tuple of str
        What the user should know, one line each.
    check : Example or None
        Of single frames: the first with another one of the same place, not to be trained on.
    """

    kind: Kind
    examples: tuple[Example, ...]
    warnings: tuple[str, ...] = ()
    check: Example | None = None


def reduced(image: npt.ArrayLike, factor: int) -> Array:
    """Reduce an image without aliasing; the electrons of the pixels that become one are summed.

    The cosine transform is cut off at the new Nyquist frequency: nothing folds back, white noise
    stays white, and the mean per area is kept. Rows and columns beyond a multiple of `factor` are
    left out.
    """
    full = np.asarray(image, dtype=np.float32)
    if factor == 1:
        return full
    height, width = full.shape[0] // factor, full.shape[1] // factor
    if not height or not width:
        raise InputError(f"images of {full.shape} cannot be reduced {factor} times")
    waves = sp_fft.dctn(full[: height * factor, : width * factor], type=2, norm="ortho")
    # Orthonormal transforms of unequal size differ by the factor itself.
    small = sp_fft.idctn(waves[:height, :width], type=2, norm="ortho") * np.float32(factor)
    return np.asarray(small, dtype=np.float32)


def moved(image: Array, dy: float, dx: float) -> Array:
    """Move an image down by `dy` and right by `dx` pixels, a phase ramp in Fourier space.

    White noise stays white. What leaves at one edge comes in at the other: cut it off.
    """
    height, width = image.shape
    wy = np.exp(-2j * np.pi * dy * np.fft.fftfreq(height))[:, None]
    wx = np.exp(-2j * np.pi * dx * np.fft.rfftfreq(width))[None, :]
    return np.asarray(np.fft.irfft2(np.fft.rfft2(image) * wy * wx, s=image.shape), np.float32)


def shift_between(fixed: Array, moving: Array) -> tuple[float, float] | None:
    """Where `moving` lies against `fixed`: (dy, dx) in pixels, positive down and to the right.

    Cross-correlation of the images less their slow variation, under a window; the peak is refined
    by parabolas, and the whole is repeated on the moved image, so that the window does not draw
    the shift towards zero. Give restored images where the frames are noisy.

    Returns
    -------
    tuple of float or None
        None where the peak does not stand out (less than 6 standard deviations).
    """
    dy = dx = 0.0
    for _ in range(3):
        step = _peak(fixed, moved(moving, -dy, -dx) if dy or dx else moving)
        if step is None:
            return None
        dy, dx = dy + step[0], dx + step[1]
        if max(abs(dy) / fixed.shape[0], abs(dx) / fixed.shape[1]) > _MOST_SHIFT:
            return None
        if max(abs(step[0]), abs(step[1])) < 0.02:
            break
    return dy, dx


def _peak(fixed: Array, moving: Array) -> tuple[float, float] | None:
    height, width = fixed.shape
    window = np.hanning(height)[:, None] * np.hanning(width)[None, :]
    spectra = []
    for image in (fixed, moving):
        slow = ndimage.gaussian_filter(image, min(height, width) / 8.0)
        spectra.append(np.fft.rfft2((ndimage.gaussian_filter(image, 1.0) - slow) * window))
    correlation = np.fft.irfft2(spectra[1] * spectra[0].conj(), s=fixed.shape)
    row, column = np.unravel_index(int(correlation.argmax()), correlation.shape)
    if not correlation.max() > 6.0 * correlation.std():
        return None

    def refined(line: npt.NDArray[np.float64], at: int) -> float:
        before, peak, after = line[at - 1], line[at], line[(at + 1) % line.size]
        bend = before - 2.0 * peak + after
        offset = 0.5 * (before - after) / bend if bend < 0.0 else 0.0
        return float((at if at <= line.size // 2 else at - line.size) + offset)

    return refined(correlation[:, column], int(row)), refined(correlation[row], int(column))


def _aligned(frame: Array, other: Array, shift: tuple[float, float]) -> Example:
    """The part that both show, `other` moved onto `frame`."""
    dy, dx = shift
    back = moved(other, -dy, -dx)
    # A pixel more than the shift: the phase ramp rings at the seam.
    top, bottom = max(0, math.ceil(-dy)) + 2, max(0, math.ceil(dy)) + 2
    left, right = max(0, math.ceil(-dx)) + 2, max(0, math.ceil(dx)) + 2
    if abs(dy) < 1e-6 and abs(dx) < 1e-6:
        return Example(frame, other)
    inside = np.s_[top : frame.shape[0] - bottom, left : frame.shape[1] - right]
    return Example(np.ascontiguousarray(frame[inside]), np.ascontiguousarray(back[inside]))


def fixed_pattern(frames: list[Array], restore: Restore) -> float:
    """Share of the noise's variance that is the same in successive frames.

    The correlation of what the restorer takes away from each; 0 for independent noise. Detail
    that the restorer takes away counts, too.
    """
    noise = [f - restore(f) for f in frames[:8]]
    shares = []
    for a, b in pairwise(noise):
        a, b = a - ndimage.gaussian_filter(a, 4.0), b - ndimage.gaussian_filter(b, 4.0)
        shares.append(
            float((a * b).mean() / max(math.sqrt((a * a).mean() * (b * b).mean()), 1e-12))
        )
    return float(np.mean(shares)) if shares else 0.0


def load_own(own: OwnRecipe, restore: Restore) -> OwnData:
    """Read, calibrate, reduce and register what the recipe names.

    Parameters
    ----------
    own : OwnRecipe
        Folder, kind and calibration.
    restore : callable
        A restorer that frames are registered with: (H, W) to (H, W).

    Raises
    ------
    InputError
        There is nothing of that kind, or it cannot be used.
    """
    folder = Path(own.folder)
    if not folder.exists():
        raise InputError(f"no folder {folder}")
    paired = (folder / "short").is_dir() and (folder / "long").is_dir()
    kind = own.kind
    if kind == "auto":
        kind = "pairs" if paired else "series"
    if kind == "pairs":
        if not paired:
            raise InputError(f"{folder} has no folders short and long; that is what pairs are")
        return _pairs(folder, own, restore)
    frames, notes = _frames(folder, own)
    if kind == "series" and len(frames) < 4 and own.kind == "auto":
        kind = "frame"
    if kind == "frame":
        check = None if own.check is None else _check(frames[0], own, restore)
        return OwnData("frame", tuple(Example(f) for f in frames), tuple(notes), check)
    if len(frames) < 4:
        raise InputError(f"{folder} has {len(frames)} frame(s); a series needs at least 4")
    return _series(frames, notes, restore)


def _check(frame: Array, own: OwnRecipe, restore: Restore) -> Example:
    """The first frame with another one of the same place as its target."""
    assert own.check is not None
    path = Path(own.check)
    if not path.exists():
        raise InputError(f"no frame {path} to check against")
    others, _ = _frames(path, own)
    if others[0].shape != frame.shape:
        raise InputError(f"{path} has {others[0].shape} px and not {frame.shape}")
    shift = shift_between(restore(frame), restore(others[0]))
    if shift is None:
        raise InputError(f"{path} does not show the same place; give a frame that does")
    # To a tenth of a pixel: what is less is the error of the registration.
    near = max(abs(shift[0]), abs(shift[1])) < 0.1
    return _aligned(frame, others[0], (0.0, 0.0) if near else shift)


def _frames(path: Path, own: OwnRecipe) -> tuple[list[Array], list[str]]:
    """All frames of a file or folder, in electrons, reduced."""
    from tem_live.files import open_movie

    notes: list[str] = []
    with open_movie(path) as movie:
        gain = own.counts_per_electron or movie.counts_per_electron
        if gain is None:
            gain = 1.0
            notes.append(
                f"{path}: counts per electron are unknown: 1 count is taken for 1 electron"
            )
        offset = own.offset_counts or movie.offset_counts
        frames = [
            reduced((movie.frame(i).astype(np.float32) - offset) / np.float32(gain), own.reduce)
            for i in range(len(movie))
        ]
    if min(frames[0].shape) < _LEAST_PX:
        raise InputError(f"{path}: frames of {frames[0].shape} px are too small to train on")
    for number, frame in enumerate(frames):
        if not np.isfinite(frame).all():
            raise InputError(f"{path}: frame {number + 1} has values that are no numbers")
        if not float(frame.mean()) > 0.0:
            raise InputError(f"{path}: frame {number + 1} is dark; check the offset")
    return frames, notes


def _pairs(folder: Path, own: OwnRecipe, restore: Restore) -> OwnData:
    shorts, notes = _frames(folder / "short", own)
    longs, _ = _frames(folder / "long", own)
    if len(shorts) != len(longs) or shorts[0].shape != longs[0].shape:
        raise InputError(
            f"{folder}: {len(shorts)} short exposures of {shorts[0].shape} and {len(longs)} long "
            f"ones of {longs[0].shape} make no pairs"
        )
    ratio = _exposure_ratio(folder)
    if ratio is None:
        ratio = sum(float(x.mean()) for x in longs) / sum(float(x.mean()) for x in shorts)
        notes.append(
            f"no {PAIRS_FILE} tells the exposures: their ratio is taken from the means, {ratio:.4g}"
        )
    examples, lost = [], 0
    for short, long in zip(shorts, longs, strict=True):
        target = np.asarray(long / np.float32(ratio), dtype=np.float32)
        shift = shift_between(restore(short), target)
        if shift is None:
            lost += 1
            continue
        examples.append(_aligned(short, target, shift))
    if lost:
        notes.append(f"{lost} pair(s) left out: the two show nothing in common to register them by")
    if len(examples) < 2:
        raise InputError(f"{folder}: {len(examples)} usable pair(s); take at least 2")
    return OwnData("pairs", tuple(examples), tuple(notes))


def _exposure_ratio(folder: Path) -> float | None:
    path = folder / PAIRS_FILE
    if not path.exists():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ratio = float(told["long_s"]) / float(told["short_s"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path} must state short_s and long_s") from error
    if not 0.0 < ratio < math.inf:
        raise InputError(f"{path} must state short_s and long_s above 0")
    return ratio


def _series(frames: list[Array], notes: list[str], restore: Restore) -> OwnData:
    share = fixed_pattern(frames, restore)
    if share > _FIXED_SHARE:
        notes.append(
            f"{share:.1%} of the noise is the same in successive frames: a fixed pattern would be "
            "learnt as specimen; take dark and gain references first"
        )
    examples, lost = [], 0
    place, furthest = np.zeros(2), 0.0
    clear = [restore(frame) for frame in frames]
    for i in range(len(frames) - 1):
        shift = shift_between(clear[i], clear[i + 1])
        if shift is None:
            lost += 1
            continue
        place += shift
        furthest = max(furthest, float(np.hypot(*place)))
        examples.append(_aligned(frames[i], frames[i + 1], shift))
    if lost:
        notes.append(
            f"{lost} of {len(frames) - 1} successive frames left out: nothing to register them by"
        )
    if len(examples) < 3:
        raise InputError("too few successive frames show the same; give a series of one place")
    if furthest < 1.0:
        notes.append(
            "the specimen hardly moves: a fixed pattern of the camera cannot be told from it"
        )
    return OwnData("series", tuple(examples), tuple(notes))
