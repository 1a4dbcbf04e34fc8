"""Grains of one crystal and their boundaries, column by column, to train on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tem_live.models.scenes_parts import Array, Rng, smooth

__all__ = ["polycrystal"]

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Crystal:
    """What all grains have in common: lengths in pixels, the columns of a cell in its fractions."""

    pitch: float
    angle: float
    ratio: float
    columns: tuple[tuple[float, float, float], ...]
    width: float
    gap: float
    missing: float
    scatter: float
    doped: float
    dopant: float


def polycrystal(rng: Rng, size: int) -> Array:
    """Grains of one crystal, each turned another way, and their boundaries.

    Every column is there as a whole or not at all: grains end at the last column that is theirs,
    with a gap between them or close together. Columns lack here and there, or are of another
    element, and some grains are thinner or empty.
    """
    owner, border = _territories(rng, size)
    crystal = _crystal(rng)
    image = np.zeros((size, size), np.float32)
    for grain in range(int(owner.max()) + 1):
        if grain and rng.random() < 0.12:
            continue
        near, found = _grain(rng, crystal, owner, border, grain)
        image[near] += found
    ground = rng.uniform(0.1, 2.0)
    bright = rng.random() < 0.7
    contrast = float(np.exp(rng.uniform(np.log(0.08), np.log(1.0))))
    image = image / max(float(image.max()), 1e-6)
    out = ground + image if bright else 1.0 - contrast * image
    if rng.random() < 0.4:
        out = out * (1.0 + rng.uniform(0.005, 0.06) * smooth(rng, size, rng.uniform(1.0, 4.0)))
    return np.asarray(np.maximum(out, 0.02), np.float32)


def _territories(rng: Rng, size: int) -> tuple[Whole, Array]:
    """Which grain each pixel belongs to, and how far in px it is from the next one, about."""
    y, x = (a.astype(np.float32) for a in np.mgrid[0:size, 0:size])
    count = int(rng.choice([2, 2, 3, 4, 6]))
    warp = rng.uniform(0.0, 6.0)
    yy, xx = y + warp * smooth(rng, size, 15.0), x + warp * smooth(rng, size, 15.0)
    points = rng.uniform(0.0, size, (count, 2))
    away = np.stack([np.hypot(yy - cy, xx - cx) for cy, cx in points])
    order = np.sort(away, axis=0)
    # Half the difference of the distances is the distance to the wall where that is straight.
    return away.argmin(axis=0), 0.5 * (order[1] - order[0])


def _crystal(rng: Rng) -> _Crystal:
    pitch = float(np.exp(rng.uniform(np.log(4.0), np.log(20.0))))
    angle = float(rng.choice([np.pi / 2, np.pi / 3, rng.uniform(np.pi / 3, 1.9)]))
    ratio = float(rng.choice([1.0, 1.0, rng.uniform(1.0, 1.6)]))
    columns = [(0.0, 0.0, 1.0)]
    if rng.random() < 0.4:
        along, across = rng.choice([0.5, 1 / 3, rng.random()], 2)
        columns.append((float(along), float(across), rng.uniform(0.2, 1.0)))
    return _Crystal(
        pitch,
        angle,
        ratio,
        tuple(columns),
        width=pitch * rng.uniform(0.15, 0.3) / len(columns) ** 0.5,
        gap=rng.uniform(-0.3, 0.5) * pitch,
        missing=float(rng.choice([0.0, 0.01, 0.05])),
        scatter=float(rng.choice([0.0, 0.05, 0.2])),
        doped=float(rng.choice([0.0, 0.02, 0.1])),
        dopant=float(np.exp(rng.normal(0.0, 0.4))),
    )


def _grain(
    rng: Rng, crystal: _Crystal, owner: Whole, border: Array, grain: int
) -> tuple[npt.NDArray[np.bool_], Array]:
    """The pixels that a grain reaches, and the intensity of its columns there."""
    size = len(owner)
    y, x = (a.astype(np.float32) for a in np.mgrid[0:size, 0:size])
    turn = rng.uniform(0.0, 2.0 * np.pi)
    a = crystal.pitch * np.array([np.cos(turn), np.sin(turn)])
    angle = turn + crystal.angle
    b = crystal.pitch * crystal.ratio * np.array([np.cos(angle), np.sin(angle)])
    inverse = np.linalg.inv(np.stack([a, b], axis=1))
    origin = rng.uniform(0.0, size, 2)
    near = ndimage.binary_dilation(owner == grain, iterations=int(crystal.pitch) + 1)
    yy, xx = y[near], x[near]
    weight = rng.choice([1.0, 1.0, rng.uniform(0.5, 1.0)])
    keys = rng.random((3, 64, 64)).astype(np.float32)
    found = np.zeros(len(yy), np.float32)
    u = inverse[0, 0] * (xx - origin[0]) + inverse[0, 1] * (yy - origin[1])
    v = inverse[1, 0] * (xx - origin[0]) + inverse[1, 1] * (yy - origin[1])
    for s, t, strength in crystal.columns:
        # Of each pixel the nearest cell, and those around it.
        for di, dj in np.ndindex(3, 3):
            i, j = np.rint(u - s) + (di - 1), np.rint(v - t) + (dj - 1)
            cx = origin[0] + (i + s) * a[0] + (j + t) * b[0]
            cy = origin[1] + (i + s) * a[1] + (j + t) * b[1]
            at = tuple(np.clip(np.rint(c), 0, size - 1).astype(np.int64) for c in (cy, cx))
            cell = (i.astype(np.int64) % 64, j.astype(np.int64) % 64)
            there = (owner[at] == grain) & (border[at] > crystal.gap)
            there &= keys[0][cell] >= crystal.missing
            each = strength * (1.0 + crystal.scatter * (keys[1][cell] - 0.5)) * there
            each *= np.where(keys[2][cell] < crystal.doped, crystal.dopant, 1.0)
            away2 = (xx - cx) ** 2 + (yy - cy) ** 2
            found += each * np.exp(-away2 / (2.0 * crystal.width**2))
    return near, np.asarray(weight * found, np.float32)
