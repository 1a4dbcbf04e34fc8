"""Score restorers by atom columns: their places and intensities against the raw counts' bound.

A lattice of which every column is known (`tem_live.models.testscenes.atom_columns`) is exposed and
restored. Columns are found in the restored frame without knowledge of the truth, then a model of
all of them at once is fitted to it: Gaussians of one common width on an even background (De Backer
et al., Ultramicroscopy 171, 104, 2016). How far places and intensities are from the truth is
compared with the Cramer-Rao bound of the raw counts: no unbiased method that looks at the raw frame
can have less scatter (van Aert et al., J. Struct. Biol. 138, 21, 2002). A figure under 1 therefore
means that something was assumed about the specimen, a figure far over 1 that something was lost.

The same fit of the raw frame, a maximum-likelihood estimate, is given beside it; it reaches the
bound and shows that bound and fit are right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.linalg import lapack
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from tem_live.models.blurs import gaussian_blur
from tem_live.models.testscenes import ColumnScene, atom_columns, gaussian_columns

__all__ = [
    "Columns",
    "cramer_rao",
    "evaluate_columns",
    "find_columns",
    "fit_columns",
    "table",
]

Array = npt.NDArray[np.float64]

# A peak counts as a column from this share of a typical column's height on. The weakest column of
# the scene has half of it more.
_LEAST_HEIGHT = 0.2
# Columns from beyond the border reach in by so many standard deviations: not fitted there. Judged
# are those that lie as much again further inside.
_BORDER_SIGMAS = 3.0
# A found column is the true one within this share of the distance between neighbours.
_SAME = 0.35
_REACH_SIGMAS = 4.5
_STEPS = 20
# A fit ends when hardly a column moves by more than this, a fiftieth of the scatter or less.
_STILL_PX = 2e-3


@dataclass(frozen=True)
class Columns:
    """What a model of Gaussian columns says of a frame.

    Attributes
    ----------
    places_px : ndarray
        float64 (N, 2), centres as (y, x).
    volumes_e : ndarray
        float64 (N,), integral of each column over the pixels, in electrons.
    background_e : float
        Electrons per pixel without columns.
    sigma_px : float
        Standard deviation of the columns' Gaussian.
    """

    places_px: Array
    volumes_e: Array
    background_e: float
    sigma_px: float


def find_columns(frame: npt.ArrayLike, sigma_px: float) -> Columns:
    """Find bright columns of about this width: peaks after a blur by the same width.

    Parameters
    ----------
    frame : array_like
        (H, W), electrons per pixel.
    sigma_px : float
        Standard deviation of a column in pixels, about.

    Returns
    -------
    Columns
        Peaks of at least a fifth of a typical one, with rough volumes.
    """
    smooth = gaussian_blur(frame, sigma_px).astype(np.float64)
    background = float(np.percentile(smooth, 10.0))
    around = 2 * round(1.5 * sigma_px) + 1
    peak = (smooth == ndimage.maximum_filter(smooth, around)) & (smooth > background)
    y, x = np.nonzero(peak)
    height = smooth[y, x] - background
    if height.size:
        strong = height > 0.5 * np.percentile(height, 95.0)
        kept = height > _LEAST_HEIGHT * float(np.median(height[strong]))
        y, x, height = y[kept], x[kept], height[kept]
    # The blur halves a column's height: its square adds to that of the column's width.
    volumes = 2.0 * height * 2.0 * np.pi * sigma_px**2
    places = np.stack([y, x], axis=1).astype(np.float64)
    return Columns(places, volumes, background, sigma_px)


def _model(shape: tuple[int, int], columns: Columns) -> tuple[Array, sparse.csr_array]:
    """Electrons at each pixel (P,) and their derivatives (P, 3 N + 2).

    The parameters are y, x and volume of each column, then background and sigma.
    """
    height, width = shape
    sigma, count = columns.sigma_px, len(columns.volumes_e)
    reach = int(np.ceil(_REACH_SIGMAS * sigma))
    offsets = np.arange(-reach, reach + 1)
    nearest = np.rint(columns.places_px).astype(np.int64)
    rows = nearest[:, :1] + offsets
    lines = nearest[:, 1:] + offsets
    dy, dx = rows - columns.places_px[:, :1], lines - columns.places_px[:, 1:]
    shape_y = np.exp(-0.5 * (dy / sigma) ** 2)
    shape_x = np.exp(-0.5 * (dx / sigma) ** 2)
    unit = shape_y[:, :, None] * shape_x[:, None, :] / (2.0 * np.pi * sigma**2)
    body = columns.volumes_e[:, None, None] * unit
    by_y = body * dy[:, :, None] / sigma**2
    by_x = body * dx[:, None, :] / sigma**2
    square = dy[:, :, None] ** 2 + dx[:, None, :] ** 2
    by_sigma = body * (square / sigma**3 - 2.0 / sigma)
    pixel = rows[:, :, None] * width + lines[:, None, :]
    seen = (rows >= 0)[:, :, None] & (rows < height)[:, :, None]
    seen = seen & (lines >= 0)[:, None, :] & (lines < width)[:, None, :]
    of = np.broadcast_to(3 * np.arange(count)[:, None, None], seen.shape)[seen]
    place = pixel[seen]
    total = height * width
    electrons = columns.background_e + np.bincount(place, body[seen], minlength=total)
    values: list[Array] = [by_y[seen], by_x[seen], unit[seen], np.ones(total)]
    values.append(np.bincount(place, by_sigma[seen], minlength=total).astype(np.float64))
    every = np.arange(total)
    at: list[npt.NDArray[np.int64]] = [place, place, place, every, every]
    parameter = [of, of + 1, of + 2, np.full(total, 3 * count), np.full(total, 3 * count + 1)]
    derivative = sparse.csr_array(
        (np.concatenate(values), (np.concatenate(at), np.concatenate(parameter))),
        shape=(total, 3 * count + 2),
    )
    return np.asarray(electrons, dtype=np.float64), derivative


def _solve(normal: sparse.csr_array, right: Array) -> Array:
    """Solve the normal equations by conjugate gradients: neighbouring columns hardly overlap."""
    # Scaled to a unit diagonal; the trace keeps columns that vanish during the fit solvable.
    diagonal = normal.diagonal()
    scale = 1.0 / np.sqrt(diagonal + 1e-12 * diagonal.max())
    scaled = sparse.diags_array(scale) @ normal @ sparse.diags_array(scale)
    found, _ = cg(scaled, scale * right, rtol=1e-6, maxiter=200)
    return np.asarray(scale * found, dtype=np.float64)


def fit_columns(frame: npt.ArrayLike, start: Columns) -> Columns:
    """Fit all columns, the background and the common width at once.

    Parameters
    ----------
    frame : array_like
        (H, W), electrons per pixel.
    start : Columns
        Where to start, see `find_columns`.

    Returns
    -------
    Columns
        Weighted least squares with the variance that the model itself predicts for counts,
        iterated: for a frame of raw counts that is Fisher's scoring, and ends at the maximum of
        the likelihood. The outer 3 sigma of the frame are left out.
    """
    image = np.asarray(frame, dtype=np.float64)
    flat = image.ravel()
    least = 0.05 * max(float(flat.mean()), 1e-6)
    edge = int(np.ceil(_BORDER_SIGMAS * start.sigma_px))
    inside = np.zeros(image.shape)
    inside[edge : image.shape[0] - edge, edge : image.shape[1] - edge] = 1.0
    now = start
    for _ in range(_STEPS):
        electrons, derivative = _model((image.shape[0], image.shape[1]), now)
        weight = inside.ravel() / np.maximum(electrons, least)
        weighted = derivative.T * weight
        step = _solve((weighted @ derivative).tocsr(), np.asarray(weighted @ (flat - electrons)))
        moves = step[:-2].reshape(-1, 3)
        limit = 0.5 * now.sigma_px
        now = Columns(
            now.places_px + np.clip(moves[:, :2], -limit, limit),
            now.volumes_e + moves[:, 2],
            now.background_e + float(step[-2]),
            now.sigma_px * float(np.exp(np.clip(step[-1] / now.sigma_px, -0.2, 0.2))),
        )
        # Columns cut by the border may wander about for ever; the rest is what counts.
        far = np.abs(moves[:, :2]).max(axis=1, initial=0.0)
        if not far.size or float(np.percentile(far, 98.0)) < _STILL_PX:
            break
    return now


def cramer_rao(shape: tuple[int, int], truth: Columns) -> tuple[Array, Array]:
    """Smallest variance that unbiased estimates from raw Poisson counts can have.

    Parameters
    ----------
    shape : tuple of int
        (height, width) of the frame in pixels.
    truth : Columns
        What is exposed.

    Returns
    -------
    places : ndarray
        float64 (N, 2), px^2.
    volumes : ndarray
        float64 (N,), e^2.

    Notes
    -----
    The diagonal of the inverse of the Fisher information, sum over the pixels of
    (dm/da)(dm/db)/m for expected counts m, in which all columns, the background and the width are
    unknown together (van Aert et al., J. Struct. Biol. 138, 21, 2002).
    """
    electrons, derivative = _model(shape, truth)
    information = ((derivative.T * (1.0 / electrons)) @ derivative).toarray()
    # Scaled to a unit diagonal first: a pixel squared and an electron squared differ by powers.
    scale = 1.0 / np.sqrt(np.diagonal(information))
    factor, failed = lapack.dpotrf(information * scale[:, None] * scale[None, :])
    if failed:
        raise ValueError("two columns are at one place: no bound exists")
    inverse, _ = lapack.dpotri(factor)
    variance = (np.diagonal(inverse) * scale**2)[:-2].reshape(-1, 3)
    return variance[:, :2].copy(), variance[:, 2].copy()


def _true_columns(scene: ColumnScene, dose: float) -> Columns:
    return Columns(scene.places_px, scene.volumes * dose, scene.background * dose, scene.sigma_px)


def _inner(places: Array, size: int, sigma_px: float) -> npt.NDArray[np.bool_]:
    margin = 2.0 * _BORDER_SIGMAS * sigma_px
    return np.asarray(((places > margin) & (places < size - 1 - margin)).all(axis=1))


def _match(truth: Array, found: Array, within_px: float) -> npt.NDArray[np.int64]:
    """Index of the found column for each true one, -1 where it is lost; nobody is taken twice."""
    out = np.full(len(truth), -1, dtype=np.int64)
    if not len(truth) or not len(found):
        return out
    to, nearest = cKDTree(found).query(truth, distance_upper_bound=within_px)
    distance, there = np.atleast_1d(to), np.atleast_1d(nearest)
    back = np.atleast_1d(cKDTree(truth).query(found)[1])
    for index, (far, at) in enumerate(zip(distance, there, strict=True)):
        if np.isfinite(far) and back[at] == index:
            out[index] = at
    return out


def _slope(true: Array, restored: Array) -> tuple[float, float]:
    """Slope of a straight line with an offset, and its standard error."""
    if true.size < 3:
        return float("nan"), float("nan")
    x = true - true.mean()
    spread = float(x @ x)
    if spread <= 0.0:
        return float("nan"), float("nan")
    slope = float(x @ (restored - restored.mean())) / spread
    rest = restored - restored.mean() - slope * x
    return slope, float(np.sqrt(rest @ rest / (true.size - 2) / spread))


def _one(scene: ColumnScene, dose: float, frame: npt.ArrayLike, bound: Any) -> dict[str, Any]:
    """Errors of the columns of one frame, to be pooled over frames."""
    size = scene.image.shape[0]
    found = fit_columns(frame, find_columns(frame, scene.sigma_px))
    within = _SAME * scene.pitch_px
    match = _match(scene.places_px, found.places_px, within)
    judged = _inner(scene.places_px, size, scene.sigma_px)
    both = judged & (match >= 0)
    far = np.ones(len(found.places_px), dtype=np.bool_)
    far[match[match >= 0]] = False
    far &= _inner(found.places_px, size, scene.sigma_px)
    # What the model does not explain at a vacancy, as a column there.
    rest = np.asarray(frame, dtype=np.float64) - _model((size, size), found)[0].reshape(size, size)
    empty = _inner(scene.vacancies_px, size, scene.sigma_px)
    filled = []
    for place, host in zip(scene.vacancies_px[empty], scene.vacancy_hosts[empty], strict=True):
        near = np.hypot(*(found.places_px - place).T) < within
        if near.any():
            filled.append(float(found.volumes_e[near].sum() / (host * dose)))
            continue
        shape = gaussian_columns(size, 0.0, scene.sigma_px, place[None], np.ones(1))
        filled.append(float(np.vdot(shape, rest) / np.vdot(shape, shape) / (host * dose)))
    at = match[both]
    return {
        "shift": found.places_px[at] - scene.places_px[both],
        "restored": found.volumes_e[at],
        "true": scene.volumes[both] * dose,
        "host": scene.hosts[both] * dose,
        "dopant": scene.dopants[both],
        "place_bound": bound[0][both],
        "volume_bound": bound[1][both],
        "columns": int(judged.sum()),
        "lost": int((judged & (match < 0)).sum()),
        "invented": int(far.sum()),
        "filled": np.array(filled),
        "sigma_px": found.sigma_px,
    }


def _figures(frames: Sequence[dict[str, Any]]) -> dict[str, float | int | None]:
    def all_of(key: str) -> Any:
        return np.concatenate([frame[key] for frame in frames])

    def figure(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    count = {key: sum(frame[key] for frame in frames) for key in ("columns", "lost", "invented")}
    true, restored, host = all_of("true"), all_of("restored"), all_of("host")
    if not true.size:
        names = ("position_rms_px", "position_ratio", "intensity_rms", "intensity_ratio",
                 "intensity_bias", "slope", "dopant_slope", "dopant_slope_error")  # fmt: skip
        return {**count, **dict.fromkeys(names), "vacancy_filled": None, "sigma_px": None}
    shift = float(np.mean(all_of("shift") ** 2))
    error = float(np.mean((restored - true) ** 2))
    dopant = all_of("dopant")
    slope, _ = _slope(true, restored)
    dopant_slope, dopant_error = _slope((true - host)[dopant], (restored - host)[dopant])
    filled = all_of("filled")
    return {
        **count,
        "position_rms_px": float(np.sqrt(shift)),
        "position_ratio": float(np.sqrt(shift / np.mean(all_of("place_bound")))),
        "intensity_rms": float(np.sqrt(error) / true.mean()),
        "intensity_ratio": float(np.sqrt(error / np.mean(all_of("volume_bound")))),
        "intensity_bias": float(restored.mean() / true.mean() - 1.0),
        "slope": figure(slope),
        "dopant_slope": figure(dopant_slope),
        "dopant_slope_error": figure(dopant_error),
        "vacancy_filled": figure(filled.mean()) if filled.size else None,
        "sigma_px": float(np.mean([frame["sigma_px"] for frame in frames])),
    }


def evaluate_columns(
    methods: Mapping[str, Callable[[npt.NDArray[np.float32]], npt.ArrayLike]],
    *,
    doses: Sequence[float] = (20.0,),
    size: int = 512,
    seeds: Sequence[int] = (0,),
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Score methods on atom columns; "raw" is always among them.

    Parameters
    ----------
    methods : dict of str to callable
        Each takes and returns float32 (H, W) in electrons.
    doses : sequence of float
        Electrons per pixel, Poisson.
    size : int
        Side of the frames in pixels.
    seeds : sequence of int
        A lattice and its noise for each; columns are pooled.
    say : callable, optional
        Told what has been done, one line at a time.

    Returns
    -------
    list of dict
        For each dose and method: ``columns`` judged, ``lost`` and ``invented`` (a peak of at least
        a fifth of a typical column with none within a third of the pitch); ``position_rms_px`` (an
        axis) and ``intensity_rms`` (over the mean intensity), and over the root of the mean
        Cramer-Rao bound ``position_ratio`` and ``intensity_ratio``; ``intensity_bias`` of the mean;
        ``slope`` of restored against true intensity over all columns, ``dopant_slope`` that of the
        differences to the host over the dopants, with its standard error; ``vacancy_filled``, mean
        intensity drawn at vacancies over that of the missing column; ``sigma_px``, fitted width.
        None where a figure does not exist.
    """
    rows: list[dict[str, Any]] = []
    for dose in doses:
        frames: dict[str, list[dict[str, Any]]] = {}
        for seed in seeds:
            scene = atom_columns(size, seed)
            rng = np.random.default_rng([seed, int(dose * 1000), size])
            frame = rng.poisson(dose * scene.image).astype(np.float32)
            bound = cramer_rao((size, size), _true_columns(scene, dose))
            for name, restore in {"raw": lambda raw: raw, **methods}.items():
                frames.setdefault(name, []).append(_one(scene, dose, restore(frame), bound))
            if say is not None:
                say(f"columns, {dose:g} e-/px")
        rows += [
            {"method": name, "dose_e_per_px": dose, **_figures(parts)}
            for name, parts in frames.items()
        ]
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The figures of `evaluate_columns` as text to print."""

    def text(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return [
        {
            "method": row["method"],
            "e-/px": text(row["dose_e_per_px"], "g"),
            "columns": text(row["columns"], "d"),
            "lost": text(row["lost"], "d"),
            "invented": text(row["invented"], "d"),
            "position px": text(row["position_rms_px"], ".3f"),
            "/ bound": text(row["position_ratio"], ".2f"),
            "intensity": text(row["intensity_rms"], ".3f"),
            "/ its bound": text(row["intensity_ratio"], ".2f"),
            "bias": text(row["intensity_bias"], "+.3f"),
            "slope": text(row["slope"], ".3f"),
            "dopants": text(row["dopant_slope"], ".3f")
            + " ± "
            + text(row["dopant_slope_error"], ".3f"),
            "vacancies": text(row["vacancy_filled"], "+.3f"),
        }
        for row in rows
    ]
