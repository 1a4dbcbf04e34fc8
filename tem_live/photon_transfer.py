"""Counts per electron, estimated from pairs of frames alone.

The difference of two frames of the same specimen holds noise only. The noise power of electrons
that arrive one by one grows in proportion to the mean, and its slope is the gain times the excess
noise (photon transfer; Janesick, Photon Transfer, SPIE Press 2007). Three things spoil the plain
ratio of variance to mean, and each is taken care of here:

- Blur (the MTF) correlates neighbours and lowers the variance of a pixel, but not the noise power
  at zero frequency, so that is what is used, extrapolated from the noise power spectrum (McMullan
  et al., Ultramicroscopy 109 (2009) 1126, section 2.3).
- Read noise and the pedestal add a constant, so a line is fitted through several doses.
- Clipping at 0 cuts the variance and lifts the mean. It is recognised and refused, or, on demand,
  corrected as for normally distributed noise.

    noise power at 0 = read noise² + counts per electron · excess noise · (mean - offset)

Excess noise is 1 + (relative standard deviation of the signal of one electron)², the inverse of
Swank's factor (J. Appl. Phys. 44 (1973) 4199). No pair of frames can tell it from gain: it must
be known, or 1 is assumed and the result is gain times excess noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage, optimize, stats

from tem_live.errors import CalibrationError

__all__ = ["GainEstimate", "NoisePoint", "estimate_gain", "noise_points"]

Plane = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MOST_EXCESS_NOISE = 100.0
"""Above it, the signal of an electron would spread ten times as far as it is high."""

MOST_CLIPPED = 0.001
"""Share of pixels at the floor above which a frame is refused, unless it is to be corrected."""

_LEAST_SIDE = 64
_LEAST_PIXELS = 2000
# X-ray hits, hot pixels that flicker: this many local standard deviations of the difference.
_OUTLIER = 8.0
_LOCAL_PX = 8.0
# Where the spectrum is fitted, in cycles per pixel. Under the first there is what moved between
# the frames, over the last the polynomial is no good description of an MTF.
_LOWEST, _HIGHEST, _LEAST_HIGHEST = 0.03, 0.35, 0.12
_RINGS = 24
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class NoisePoint:
    """Mean and noise of one pair of frames, or of those of its pixels that are equally bright.

    Attributes
    ----------
    mean_counts : float
        Mean of the frames.
    power_counts2 : float
        Noise power of one frame at zero frequency, in counts² per pixel: what the variance would
        be without blur. Noise that whole rows or columns share is not in it.
    error_counts2 : float
        Standard error of ``power_counts2``.
    variance_counts2 : float
        Variance of a pixel of one frame, rows and columns again excluded.
    row_noise_counts, column_noise_counts : float
        Standard deviation of the noise that all pixels of a row (column) share; 0 if that is not
        more than chance.
    clipped : float
        Share of the pixels at the floor.
    moved : float
        Power at the lowest frequencies over what is expected there: well over 1 if the specimen
        moved or changed between the frames.
    pixels : int
        Pixels that were used.
    dark : bool
        Whether the beam was off.
    """

    mean_counts: float
    power_counts2: float
    error_counts2: float
    variance_counts2: float
    row_noise_counts: float
    column_noise_counts: float
    clipped: float
    moved: float
    pixels: int
    dark: bool = False


@dataclass(frozen=True)
class GainEstimate:
    """Counts per electron and what it rests on.

    Attributes
    ----------
    counts_per_electron : float
        Estimate.
    interval : (low, high)
        95 % confidence interval of it, for the assumptions stated.
    excess_noise : float
        As given; 1 where it was not known.
    offset_counts, read_noise_counts : float or None
        Pedestal and read noise in counts, from a dark pair or as given; None where frames with
        beam alone cannot tell them apart (see ``noise_at_zero_counts2``).
    noise_at_zero_counts2 : float
        Where the line meets a mean of 0 counts: read noise² - slope · offset.
    plain : float
        Variance over mean (offset taken off where it is known), averaged: what a plain
        photon transfer would have said.
    points : tuple of NoisePoint
        What it was fitted to.
    assumptions : tuple of str
        Plain statements for the user.
    """

    counts_per_electron: float
    interval: tuple[float, float]
    excess_noise: float
    offset_counts: float | None
    read_noise_counts: float | None
    noise_at_zero_counts2: float
    plain: float
    points: tuple[NoisePoint, ...]
    assumptions: tuple[str, ...]


def noise_points(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    classes: int = 1,
    floor_counts: float | None = None,
    saturation_counts: float | None = None,
    correct_clipping: bool = False,
    dark: bool = False,
) -> list[NoisePoint]:
    """Measure the noise of a pair of frames.

    Parameters
    ----------
    first, second : array_like (H, W)
        Raw counts, neither dark- nor gain-corrected, of the same specimen at the same dose.
    classes : int
        How many classes of brightness to divide the pixels into. With more than 1, a single pair
        of a specimen with contrast gives several points. Classes are chosen by one frame
        (blurred) and their mean is taken from the other, so that noise does not choose.
    floor_counts : float or None
        Value at which the camera clips. None looks for one: a lowest value that is held by many
        more pixels than the values next to it. Give ``-inf`` for a counting camera, where many
        zeros are as it should be.
    saturation_counts : float or None
        Pixels that reach it are left out.
    correct_clipping : bool
        Correct for clipping at the floor (see Notes) instead of refusing.
    dark : bool
        The beam was off: this pair tells offset and read noise.

    Returns
    -------
    list of NoisePoint
        One for each class that has enough pixels.

    Raises
    ------
    CalibrationError
        The frames differ in shape, are too small, hold no noise, are saturated, or are clipped
        and ``correct_clipping`` is False.

    Notes
    -----
    Normal noise of mean μ and standard deviation σ, clipped at a floor c with a = (μ - c)/σ, has
    the mean c + σ (a Φ(a) + φ(a)) and the mean square above c of σ² ((a² + 1) Φ(a) + a φ(a))
    (Tobin, Econometrica 26 (1958) 24), from which μ and σ follow. To first
    order clipping multiplies the covariance of two different pixels by Φ(a)² (Price, IRE Trans.
    Inf. Theory 4 (1958) 69), so that

        power = σ² + (power of the clipped noise - its variance) / Φ(a)².
    """
    a, b = (np.asarray(frame, np.float64) for frame in (first, second))
    if a.shape != b.shape or a.ndim != 2 or min(a.shape) < _LEAST_SIDE:
        raise CalibrationError(
            f"photon transfer needs two frames of the same size, at least {_LEAST_SIDE} px wide; "
            f"got {a.shape} and {b.shape}"
        )
    good = np.ones(a.shape, np.bool_)
    if saturation_counts is not None:
        good &= (a < saturation_counts) & (b < saturation_counts)
        if good.mean() < 0.5:
            raise CalibrationError(
                "more than half of the pixels are saturated; lower the dose or the exposure"
            )
    floor = _floor(a, b) if floor_counts is None else floor_counts
    at_floor = 0.5 * ((a <= floor).astype(np.float64) + (b <= floor))
    clipped = float(at_floor[good].mean())
    if clipped > MOST_CLIPPED and not correct_clipping:
        raise CalibrationError(
            f"{clipped:.1%} of the pixels are clipped at {floor:g} counts, which falsifies mean "
            "and noise; raise the camera's pedestal or the dose, or ask for the correction"
        )
    if clipped <= MOST_CLIPPED:
        # Few enough (dead pixels) to leave them out; leaving out more would bias the rest.
        good &= at_floor == 0
    difference = (a - b) / np.sqrt(2.0)
    difference -= difference[good].mean()
    good &= ~_outliers(difference, good)
    difference, row_noise, column_noise = _without_rows_and_columns(difference, good)
    kinds: dict[int, list[NoisePoint]] = {}
    for kind, members, mean in _classes(a, b, good, classes):
        pixels = int(members.sum())
        if pixels < _LEAST_PIXELS:
            continue
        power, error, moved = _power_at_zero(difference, members)
        # What was taken off with the means of rows and columns.
        kept = 1.0 - 1.0 / a.shape[0] - 1.0 / a.shape[1]
        variance = float((difference[members] ** 2).mean()) / kept
        if not (variance > 0 and np.isfinite(power)):
            continue
        point = NoisePoint(
            mean_counts=mean,
            power_counts2=power / kept,
            error_counts2=error / kept,
            variance_counts2=variance,
            row_noise_counts=row_noise,
            column_noise_counts=column_noise,
            clipped=float(at_floor[members].mean()),
            moved=moved,
            pixels=pixels,
            dark=dark,
        )
        point = _unclipped(point, floor) if clipped > MOST_CLIPPED else point
        kinds.setdefault(kind, []).append(point)
    found = [_together(points) for points in kinds.values()]
    if not found:
        raise CalibrationError(
            "the two frames show no noise (is one a copy of the other, or were they smoothed?); "
            "take raw frames"
        )
    return found


def check_excess_noise(excess_noise: float) -> float:
    """The factor as it was given. Raises `CalibrationError` for one that no camera has."""
    if not 1 <= excess_noise <= MOST_EXCESS_NOISE:
        raise CalibrationError(
            f"excess noise {excess_noise:g} is impossible: it is 1 + (relative spread)², "
            f"1 to {MOST_EXCESS_NOISE:g}"
        )
    return excess_noise


def estimate_gain(
    points: Sequence[NoisePoint],
    *,
    excess_noise: float | None = None,
    offset_counts: float | None = None,
    read_noise_counts: float | None = None,
) -> GainEstimate:
    """Fit the line of noise power over mean.

    Parameters
    ----------
    points : sequence of NoisePoint
        Of pairs at several doses, best with a dark pair among them.
    excess_noise : float or None
        1 + (relative standard deviation of the signal of one electron)²; None if unknown: then
        1 is assumed, and said.
    offset_counts, read_noise_counts : float or None
        Where they are known; a dark pair among the points has the last word. Both (or the dark
        pair) make a single dose sufficient.

    Returns
    -------
    GainEstimate

    Raises
    ------
    CalibrationError
        There is no point with beam, the doses are too close to each other to fit a line, or the
        noise does not grow with the mean.
    """
    if excess_noise is not None:
        check_excess_noise(excess_noise)
    lit = [point for point in points if not point.dark]
    if not lit:
        raise CalibrationError("photon transfer needs at least one pair of frames with beam")
    dark = [point for point in points if point.dark]
    if dark:
        offset_counts = float(np.mean([point.mean_counts for point in dark]))
        read_noise_counts = float(np.sqrt(np.mean([point.power_counts2 for point in dark])))
    fitted = list(points)
    if not dark and offset_counts is not None and read_noise_counts is not None:
        # What is known exactly enters as a point without error (a small one keeps the weights
        # finite).
        anchor = replace(
            lit[0],
            mean_counts=offset_counts,
            power_counts2=read_noise_counts**2,
            error_counts2=1e-3 * min(point.error_counts2 for point in lit),
            dark=True,
        )
        fitted.append(anchor)
    mean = np.array([point.mean_counts for point in fitted])
    power = np.array([point.power_counts2 for point in fitted])
    error = np.array([point.error_counts2 for point in fitted])
    slope, slope_error, at_zero, scatter = _line(mean, power, error)
    if not slope > 0 or slope_error > 0.5 * slope:
        said = f" ({slope:.3g} ± {slope_error:.2g} counts)" if np.isfinite(slope_error) else ""
        raise CalibrationError(
            f"the doses of the pairs are too close to each other to tell gain from read noise{said}"
            "; take pairs at several doses (1 to 10) and a dark one"
        )
    if read_noise_counts is None and offset_counts is not None:
        read_noise_counts = float(np.sqrt(max(at_zero + slope * offset_counts, 0.0)))
    elif offset_counts is None and read_noise_counts is not None:
        offset_counts = (read_noise_counts**2 - at_zero) / slope
    excess = 1.0 if excess_noise is None else float(excess_noise)
    below = offset_counts or 0.0
    plain = [
        point.variance_counts2 / (point.mean_counts - below)
        for point in lit
        if point.mean_counts > below
    ]
    return GainEstimate(
        counts_per_electron=slope / excess,
        interval=((slope - slope_error) / excess, (slope + slope_error) / excess),
        excess_noise=excess,
        offset_counts=offset_counts,
        read_noise_counts=read_noise_counts,
        noise_at_zero_counts2=at_zero,
        plain=float(np.mean(plain)) if plain else float("nan"),
        points=tuple(points),
        assumptions=_assumptions(points, excess_noise, offset_counts, scatter),
    )


def _assumptions(
    points: Sequence[NoisePoint],
    excess_noise: float | None,
    offset_counts: float | None,
    scatter: float,
) -> tuple[str, ...]:
    said = [
        "every electron is registered once and the camera is linear",
        "the specimen did not move or change between the two frames of a pair",
    ]
    if excess_noise is None:
        said.append(
            "excess noise is 1: were it F, the counts per electron would be this figure over F"
        )
    else:
        said.append(f"excess noise is {excess_noise:g}, as given")
    if offset_counts is None:
        said.append("offset and read noise are constant; without a dark pair neither is known")
    if max(point.moved for point in points) > 1.5:
        said.append(
            "power at the lowest frequencies: something moved or changed between the frames; "
            "those frequencies were left out"
        )
    rows = max(point.row_noise_counts for point in points)
    columns = max(point.column_noise_counts for point in points)
    if rows > 0 or columns > 0:
        said.append(
            f"noise of whole rows ({rows:.3g} counts) and columns ({columns:.3g} counts) was "
            "recognised and left out"
        )
    clipped = max(point.clipped for point in points)
    if clipped > MOST_CLIPPED:
        said.append(
            f"up to {clipped:.1%} of the pixels were clipped and corrected for normal noise"
        )
    if scatter > 2.0:
        said.append(
            f"the points miss a straight line by {scatter:.1f} times their errors; the interval "
            "was widened by that"
        )
    return tuple(said)


def _line(
    mean: npt.NDArray[Any], power: npt.NDArray[Any], error: npt.NDArray[Any]
) -> tuple[float, float, float, float]:
    """Weighted line: slope, half its 95 % interval, value at 0, scatter over the errors."""
    if len(mean) < 2 or np.ptp(mean) <= 0:
        return 0.0, np.inf, float(power[0]), 1.0
    # The error of a noise power is a share of it. Of what was measured, that would give more weight
    # to what came out low by chance; so it is taken of the line, which is drawn twice.
    shares = error / np.maximum(power, 1e-12)
    for _ in range(2):
        weight = 1.0 / np.maximum(error, 1e-12) ** 2
        middle = float(np.average(mean, weights=weight))
        lever = float((weight * (mean - middle) ** 2).sum())
        slope = float((weight * (mean - middle) * power).sum() / lever)
        level = float(np.average(power, weights=weight))
        on_line = level + slope * (mean - middle)
        error = shares * np.where(on_line > 0, on_line, np.maximum(power, 1e-12))
    rest = power - level - slope * (mean - middle)
    freedom = len(mean) - 2
    scatter = float(np.sqrt((weight * rest**2).sum() / freedom)) if freedom else 1.0
    # The errors of the points are known from theory; where the points miss the line by more, all
    # errors are taken to be that much larger (Birge, Phys. Rev. 40 (1932) 207).
    quantile = float(stats.norm.ppf(0.5 + _CONFIDENCE / 2))
    half = quantile * max(scatter, 1.0) / np.sqrt(lever)
    return slope, float(half), level - slope * middle, scatter


def _floor(a: Plane, b: Plane) -> float:
    """Value at which the camera clips, or -inf: the lowest, if it is held far too often."""
    values = np.concatenate([a.ravel(), b.ravel()])
    lowest = float(values.min())
    at = float((values == lowest).mean())
    # Values next to it are a step away, which is more than 1 where single electrons are counted.
    steps = np.diff(np.unique(values)[:6])
    step = float(np.median(steps)) if steps.size else 1.0
    beside = float(((values > lowest) & (values <= lowest + 4 * step)).mean()) / 4
    if at > 0.1 * MOST_CLIPPED and at > 8 * beside:
        return lowest
    return float("-inf")


def _outliers(difference: Plane, good: Mask) -> Mask:
    """Pixels (and their neighbours) whose difference is out of all proportion."""
    weight = np.maximum(ndimage.gaussian_filter(good.astype(np.float64), _LOCAL_PX), 1e-6)
    outlier = np.zeros(good.shape, np.bool_)
    # Twice: a strong hit hides a weaker one beside it.
    for _ in range(2):
        keep = good & ~outlier
        square = ndimage.gaussian_filter(np.where(keep, difference**2, 0.0), _LOCAL_PX) / weight
        hit = keep & (difference**2 > _OUTLIER**2 * square) & (square > 0)
        outlier |= ndimage.binary_dilation(hit, np.ones((3, 3), np.bool_))
    return outlier


def _without_rows_and_columns(difference: Plane, good: Mask) -> tuple[Plane, float, float]:
    """Take off the mean of each row and column; the standard deviations they had beyond chance."""
    plane = np.where(good, difference, 0.0)
    shared = []
    for axis in (1, 0):
        count = np.maximum(good.sum(axis=axis, keepdims=True), 1)
        means = plane.sum(axis=axis, keepdims=True) / count
        # By chance: the mean of so many pixels. Blur makes neighbours agree, so the noise of the
        # means between neighbouring rows, which it leaves alone, cannot serve; a factor does.
        chance = float((plane**2).sum() / max(good.sum(), 1)) * float((1.0 / count).mean())
        excess = float(means.var()) - 2.0 * chance
        shared.append(np.sqrt(max(float(means.var()) - chance, 0.0)) if excess > 0 else 0.0)
        plane = np.where(good, plane - means, 0.0)
    return plane, float(shared[0]), float(shared[1])


def _together(points: Sequence[NoisePoint]) -> NoisePoint:
    """One point of a class that was chosen twice: its noise is the same, and no better known."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(point, name) for point in points]))

    return replace(
        points[0],
        mean_counts=mean("mean_counts"),
        power_counts2=mean("power_counts2"),
        error_counts2=mean("error_counts2"),
        variance_counts2=mean("variance_counts2"),
        clipped=mean("clipped"),
        moved=mean("moved"),
    )


def _classes(a: Plane, b: Plane, good: Mask, count: int) -> list[tuple[int, Mask, float]]:
    """Which class, its pixels, by brightness, and their mean; see `noise_points`.

    Each class is chosen by one frame and measured in the other, so that noise does not choose; and
    the other way round.
    """
    if count <= 1:
        return [(0, good, 0.5 * float(a[good].mean() + b[good].mean()))]
    weight = np.maximum(ndimage.gaussian_filter(good.astype(np.float64), 0.75 * _LOCAL_PX), 1e-6)
    found: list[tuple[int, Mask, float]] = []
    for chosen_by, measured in ((a, b), (b, a)):
        smooth = ndimage.gaussian_filter(np.where(good, chosen_by, 0.0), 0.75 * _LOCAL_PX) / weight
        low, high = np.quantile(smooth[good], (0.01, 0.99))
        edges = np.linspace(low, high, count + 1)[1:-1]
        label = np.digitize(smooth, edges)
        for index in range(count):
            members = good & (label == index)
            if members.any():
                found.append((index, members, float(measured[members].mean())))
    return found


def _power_at_zero(difference: Plane, members: Mask) -> tuple[float, float, float]:
    """Noise power extrapolated to zero frequency, its standard error, and low over expected.

    The logarithm of the power is a polynomial of second degree in the squared frequency, which a
    Gaussian MTF on a floor of read noise follows closely where the MTF has not fallen far; the
    range of the fit ends there.
    """
    height, width = difference.shape
    spectrum = fft.rfft2(np.where(members, difference, 0.0))
    power = (spectrum.real**2 + spectrum.imag**2) / float(members.sum())
    fy, fx = np.abs(fft.fftfreq(height))[:, None], fft.rfftfreq(width)[None, :]
    radius = np.hypot(fy, fx)
    # Taking off the means of rows and columns emptied the axes.
    off_axes = (fy > 0.5 / height) & (fx > 0.5 / width)
    lowest = max(_LOWEST, 4.0 / min(height, width))
    highest = _HIGHEST
    while True:
        inside = off_axes & (radius >= lowest) & (radius < highest)
        value, count, square = _rings(power, radius, inside, lowest, highest)
        design = np.stack([np.ones_like(square), square, square**2], axis=1)
        root = np.sqrt(count)[:, None]
        # The mean of n exponentially distributed powers has a logarithm 1/(2n) too low.
        target = np.log(value) + 0.5 / count
        parameters, *_ = np.linalg.lstsq(design * root, target * root[:, 0], rcond=None)
        fall = float(parameters @ np.array([0.0, highest**2, highest**4]))
        if fall > np.log(0.4) or highest <= _LEAST_HIGHEST:
            break
        highest *= 0.85
    covariance = np.linalg.inv((design * root).T @ (design * root))
    at_zero = float(np.exp(parameters[0]))
    # A mask makes neighbouring coefficients agree: fewer of them are independent.
    share = float(members.mean())
    error = at_zero * float(np.sqrt(covariance[0, 0] / share))
    low = off_axes & (radius < lowest)
    moved = float(power[low].mean()) / at_zero if low.any() else 1.0
    return at_zero, error, moved


def _rings(
    power: Plane, radius: Plane, inside: Mask, lowest: float, highest: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Mean power, number of coefficients and mean squared frequency of rings of equal area."""
    square = radius[inside] ** 2
    place = (square - lowest**2) / (highest**2 - lowest**2) * _RINGS
    ring = np.clip(place.astype(np.int64), 0, _RINGS - 1)
    count = np.bincount(ring, minlength=_RINGS).astype(np.float64)
    full = count > 0
    count = count[full]
    value = np.bincount(ring, power[inside], minlength=_RINGS)[full] / count
    return (
        np.maximum(value, 1e-300),
        count,
        np.bincount(ring, square, minlength=_RINGS)[full] / count,
    )


def _unclipped(point: NoisePoint, floor: float) -> NoisePoint:
    """The point as it would be without clipping; see Notes of `noise_points`."""
    if point.clipped > 0.5:
        raise CalibrationError(
            f"{point.clipped:.0%} of the pixels are clipped, too many to correct; raise the "
            "camera's pedestal or the dose"
        )
    if point.clipped <= 0:
        return point
    above_floor = point.mean_counts - floor
    wanted = point.variance_counts2 / above_floor**2

    def relative_variance(a: float) -> float:
        above, density = stats.norm.cdf(a), stats.norm.pdf(a)
        mean = a * above + density
        return float(((a * a + 1) * above + a * density) / mean**2 - 1)

    # It falls with a, from infinity to 1/a².
    a = float(optimize.brentq(lambda a: relative_variance(a) - wanted, -3.0, 1e4))
    above, density = float(stats.norm.cdf(a)), float(stats.norm.pdf(a))
    sigma = above_floor / (a * above + density)
    correlated = (point.power_counts2 - point.variance_counts2) / above**2
    return replace(
        point,
        mean_counts=floor + a * sigma,
        power_counts2=sigma**2 + correlated,
        error_counts2=point.error_counts2 / above**2,
        variance_counts2=sigma**2,
    )
