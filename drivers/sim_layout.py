"""What the simulated specimens are made of: particles, a thin film, crystals.

Laid out once, from a generator; what changes with time and fluence is in
`tem_live.drivers.sim_scenes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tem_live.drivers.sim_windows import Plane, Window, overlaps


class Stamps:
    """Particles of a few kinds, which darken a plane at parts of a pixel.

    Parameters
    ----------
    kinds : list of list of list of ndarray
        Of each kind its optical depth, (size, size) float32 by the phase along y and x.
    of : sequence of int
        Which kind each particle is.
    """

    def __init__(self, kinds: list[list[list[Plane]]], of: Sequence[int]) -> None:
        self._phases = [kinds[kind] for kind in of]
        self._steps = np.array([len(phases) for phases in self._phases]).reshape(-1, 1)
        self._half = np.array([p[0][0].shape[0] // 2 for p in self._phases]).reshape(-1, 1)

    def darken(
        self,
        plane: Plane,
        window: Window,
        field: tuple[int, int],
        centers_px: npt.NDArray[np.float64],
        weights: npt.NDArray[np.float64],
    ) -> None:
        """Multiply by what all particles let through.

        Parameters
        ----------
        plane : ndarray
            (window.height, window.width) float32; overwritten.
        window : Window
            What of the field it is.
        field : tuple of int
            (height, width) of a period in pixels.
        centers_px : ndarray
            (N, 2), centres as (y, x) in pixels of the field, rounded to the phases there are.
        weights : ndarray
            (N,), with which the optical depths are multiplied.
        """
        pixels, phases = np.divmod(np.rint(centers_px * self._steps).astype(int), self._steps)
        corners = pixels - self._half - window[:2]
        periods, sizes = np.array(field), 2 * self._half + 1
        first = corners % periods
        # Most lie within the window as one piece, with no other image in it.
        whole = (first + sizes <= np.minimum(window[2:], periods)) & (first + periods >= window[2:])
        factors = -weights.astype(np.float32)
        for of, (py, px), (y, x), at_once, factor in zip(
            self._phases,
            phases.tolist(),
            first.tolist(),
            whole.all(axis=1).tolist(),
            factors,
            strict=True,
        ):
            patch = of[py][px] * factor
            np.exp(patch, out=patch)
            if at_once:
                size = patch.shape[0]
                under = plane[y : y + size, x : x + size]
                np.multiply(under, patch, out=under)
                continue
            for to_y, from_y in overlaps(y, patch.shape[0], 0, window.height, field[0]):
                for to_x, from_x in overlaps(x, patch.shape[1], 0, window.width, field[1]):
                    plane[to_y, to_x] *= patch[from_y, from_x]


def particle_stamp(
    radius_px: float, pixel_size_nm: float, mean_free_path_nm: float, rng: np.random.Generator
) -> list[list[Plane]]:
    """Optical depth of a truncated octahedron in random orientation, with a fringe around it."""
    # Finer than a quarter pixel nobody sees; large particles need less, and the memory counts.
    steps = 4 if radius_px < 32 else 2 if radius_px < 64 else 1
    half = int(np.ceil(radius_px * 1.25)) + 7
    fine = (np.arange((2 * half + 2) * steps) + 0.5) / steps - half - 0.5
    y, x = np.meshgrid(fine, fine, indexing="ij")
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    corners = [(i, j, k) for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]
    normals = np.array(corners) / np.sqrt(3)
    faces = np.vstack([normals, np.eye(3), -np.eye(3)]) @ rotation.T
    distances = radius_px * np.r_[np.full(8, 0.97), np.full(6, 1.05)]
    top = np.full(y.shape, np.inf)
    bottom = np.full(y.shape, -np.inf)
    for (nx, ny, nz), distance in zip(faces, distances, strict=True):
        if abs(nz) < 1e-9:
            top[nx * x + ny * y > distance] = -np.inf
            continue
        plane = (distance - nx * x - ny * y) / nz
        if nz > 0:
            np.minimum(top, plane, out=top)
        else:
            np.maximum(bottom, plane, out=bottom)
    depth = np.maximum(top - bottom, 0) * pixel_size_nm / mean_free_path_nm
    if rng.random() < 0.45:
        # A twin: the other half diffracts differently. Its border is a {111} plane seen on edge.
        angle = rng.uniform(0, np.pi)
        side = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.3, 0.3) * radius_px
        depth = np.where(side > 0, depth * rng.uniform(0.55, 0.8), depth)
    depth = ndimage.gaussian_filter(depth, 0.5 * steps)
    depth += 0.3 * (depth - ndimage.gaussian_filter(depth, 1.6 * steps))
    size = 2 * half + 1

    def at(phase_y: int, phase_x: int) -> Plane:
        # A shift by a part of a pixel to the right is a cut that starts that much further left.
        rows = depth[steps - phase_y :][: size * steps]
        part = rows[:, steps - phase_x :][:, : size * steps]
        mean = part.reshape(size, steps, size, steps).mean(axis=(1, 3))
        return np.ascontiguousarray(mean, np.float32)

    phases = [[at(i, j) for j in range(steps)] for i in range(steps)]
    # What changes nothing is cut off.
    seen = np.argwhere(np.abs(phases).max(axis=(0, 1)) > 1e-4)
    reach = int(np.abs(seen - half).max(initial=0))
    middle = slice(half - reach, half + reach + 1)
    return [[np.ascontiguousarray(phase[middle, middle]) for phase in row] for row in phases]


def scattered(
    field: tuple[int, int],
    radii: npt.NDArray[np.float64],
    coverage: float,
    hole: npt.NDArray[np.float64],
    hole_radius: float,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Kinds and places of particles that touch neither each other nor the hole."""
    size = np.array(field, float)
    wanted = coverage * size.prod()
    kinds: list[int] = []
    places: list[npt.NDArray[np.float64]] = []
    covered = 0.0
    for _ in range(int(40 * wanted / (np.pi * np.mean(radii**2))) + 40):
        if covered >= wanted:
            break
        kind = int(rng.integers(len(radii)))
        place = rng.uniform(0, 1, 2) * size
        away = np.abs(place - hole)
        if np.hypot(*np.minimum(away, size - away)) < hole_radius * 1.15 + 1.3 * radii[kind]:
            continue
        if places:
            apart = np.abs(np.array(places) - place)
            apart = np.hypot(*np.minimum(apart, size - apart).T)
            if np.any(apart < 1.15 * (radii[kinds] + radii[kind]) + 2):
                continue
        kinds.append(kind)
        places.append(place)
        covered += np.pi * radii[kind] ** 2
    return np.array(kinds, np.intp), np.array(places).reshape(-1, 2)


def thin_film(
    field: tuple[int, int],
    pixel_size_nm: float,
    hole: npt.NDArray[np.float64],
    hole_radius: float,
    rng: np.random.Generator,
    contrast: float = 0.045,
) -> Plane:
    """Optical depth of a thin amorphous film, (H, W) float32, 0 in its hole."""
    height, width = field
    noise = rng.standard_normal(field, dtype=np.float32)
    # Grain of about 0.5 nm, the pass band of a slightly defocused objective; never finer than
    # what a bilinear shift leaves unharmed.
    fine = max(0.22 / pixel_size_nm, 1.1)
    grain = ndimage.gaussian_filter(noise, fine, mode="wrap", truncate=3)
    grain -= ndimage.gaussian_filter(noise, 1.8 * fine, mode="wrap", truncate=3)
    grain *= contrast / max(float(grain.std()), 1e-9)
    thickness = _smooth(field, 5, rng)
    depth: Plane = np.float32(0.13) + np.float32(0.03) * thickness + grain
    # The hole and its rim lie in a box around it; the rest of the field is plain film.
    reach = int(1.4 * hole_radius) + 30
    rows, columns = (
        np.arange(max(c - reach, c - n // 2), min(c + reach, c - n // 2 + n - 1) + 1)
        for c, n in zip(hole.astype(int), field, strict=True)
    )
    yy, xx = rows[:, None] - hole[0], columns - hole[1]
    angle = np.arctan2(yy, xx)
    ragged = sum(
        rng.uniform(0.01, 0.05) / (k**0.5) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        for k in range(2, 9)
    )
    inside = hole_radius * (1 + ragged) - np.hypot(yy, xx)
    film = 1 / (1 + np.exp(np.clip(inside / 0.8, -40, 40)))
    # The rim of a film is thicker, and a defocused edge has a bright fringe on its vacuum side.
    rim = 0.06 * np.exp(-((inside + 6) ** 2) / (2 * 5.0**2))
    fringe = -0.10 * np.exp(-((inside - 1.8) ** 2) / (2 * 1.2**2))
    box = np.ix_(rows % height, columns % width)
    depth[box] = film * (depth[box] + rim) + fringe
    return depth


def _smooth(field: tuple[int, int], knots: int, rng: np.random.Generator) -> Plane:
    """Periodic smooth noise of standard deviation 1: random knots, joined by their own waves."""
    coarse = np.fft.fft2(rng.standard_normal((knots, knots)))
    waves = np.fft.fftfreq(knots, 1 / knots)
    along_y, along_x = (np.exp(2j * np.pi * np.outer(np.arange(n) / n, waves)) for n in field)
    smooth = ((along_y @ coarse) @ along_x.T).real.astype(np.float32)
    scaled: Plane = (smooth - smooth.mean()) / np.float32(max(float(smooth.std()), 1e-9))
    return scaled


def island(field: tuple[int, int], rng: np.random.Generator) -> Plane:
    """A soft-edged crystal that covers about half of the field, 0 to 1."""
    height, width = field
    y = (np.arange(height)[:, None] - 0.55 * height) / height
    x = (np.arange(width) - 0.42 * width) / width
    angle = np.arctan2(y, x)
    radius = 0.36 * (1 + 0.06 * np.cos(6 * angle + rng.uniform(0, 6)))
    inside = (radius - np.hypot(y, x)) * min(field)
    island: Plane = (1 / (1 + np.exp(np.clip(-inside / 2, -40, 40)))).astype(np.float32)
    return island


def atom_columns(
    field: tuple[int, int], spacing_px: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Atom columns of two grains, (N, 2) as (y, x) in pixels, and their depths (N,)."""
    height, width = field
    center = np.array([0.55 * height, 0.45 * width])
    # A finite crystal with facets: an octagon, cut in two by the grain boundary.
    faces = np.arange(8) * np.pi / 4 + 0.2
    reach = min(field) * rng.uniform(0.36, 0.42, 8)
    places, depths = [], []
    count = int(np.ceil(max(field) / spacing_px))
    i, j = np.meshgrid(*[np.arange(-count, count + 1)] * 2, indexing="ij")
    border = 0.35
    for side, tilt in ((1, 0.0), (-1, np.deg2rad(23.0))):
        c, s = np.cos(tilt + 0.1), np.sin(tilt + 0.1)
        for shift, depth in ((0.0, 0.55), (0.5, 0.30)):
            u, v = (i + shift).ravel() * spacing_px, (j + shift).ravel() * spacing_px
            y, x = c * u - s * v, s * u + c * v
            along = side * (np.cos(border) * x + np.sin(border) * y)
            distance = np.outer(y, np.sin(faces)) + np.outer(x, np.cos(faces))
            kept = (along > 0.25 * spacing_px) & np.all(distance < reach, axis=1)
            # A vacancy is a column that is missing; a dopant one that is deeper than its kind.
            kept &= rng.random(kept.size) > 0.008
            places.append(np.stack([y, x], axis=1)[kept] + center)
            dopant = rng.random(int(kept.sum())) < 0.02
            depths.append(np.where(dopant, 1.7 * depth, depth))
    return np.concatenate(places), np.concatenate(depths)
