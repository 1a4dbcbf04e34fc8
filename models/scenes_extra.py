"""Further specimens to train on, which a recipe asks for by name (``extra_scenes``).

They stand apart from `tem_live.models.scenes` so that the scenes of earlier recipes stay the same
number by number. Each generator takes a `numpy.random.Generator` and a size and returns a float32
(size, size) transmitted intensity, positive, in arbitrary units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special

from tem_live.errors import InputError
from tem_live.models.scenes import random_scene
from tem_live.models.scenes_parts import Array, Rng, smooth
from tem_live.models.scenes_polycrystal import polycrystal

__all__ = [
    "EXTRA_GENERATORS",
    "bank_name",
    "cells",
    "multislice",
    "perforated",
    "recipe_scene",
    "spheres",
]


def cells(rng: Rng, size: int) -> Array:
    """Part of a cell in a stained section: nucleus, mitochondria with cristae, vesicles, ribosomes.

    Membranes are pairs of dark lines (two leaflets) or, where the section is coarse, single ones.
    """
    y, x = (a.astype(np.float32) for a in np.mgrid[0:size, 0:size])
    pixel = float(np.exp(rng.uniform(np.log(0.5), np.log(2.5))))
    leaflet = 3.0 / pixel  # half of the distance of the leaflets, in pixels
    width = max(1.6 / pixel, 0.6)
    ground = 0.06 * smooth(rng, size, rng.uniform(2.0, 5.0))
    ground += 0.05 * smooth(rng, size, rng.uniform(12.0, 40.0))
    stain = np.asarray(ground, dtype=np.float32)

    def membrane(distance: Array, depth: float) -> Array:
        if leaflet < 1.5:
            line = np.exp(-((distance / (width + leaflet)) ** 2))
        else:
            line = np.exp(-(((np.abs(distance) - leaflet) / width) ** 2))
        return np.asarray(depth * line, dtype=np.float32)

    def blob(radius: float) -> tuple[Array, float, float, float]:
        """Signed distance to a bent ellipse, its centre and its angle."""
        cy, cx, turn = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0, np.pi)
        long = float(np.exp(rng.uniform(0.0, 0.7)))
        u = np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)
        v = np.cos(turn) * (y - cy) - np.sin(turn) * (x - cx)
        around = np.arctan2(v, u)
        bend = 1.0 + 0.06 * np.cos(2 * around + rng.uniform(0, 6)) + 0.04 * np.cos(3 * around)
        distance = np.hypot(u / long, v * long) - radius * bend
        return np.asarray(distance, dtype=np.float32), cy, cx, turn

    depth = rng.uniform(0.15, 0.6)
    if rng.random() < 0.5:
        radius = rng.uniform(0.4, 0.9) * size
        distance, *_ = blob(radius)
        inside = distance < -2 * leaflet
        chromatin = smooth(rng, size, rng.uniform(6.0, 20.0))
        stain += np.where(inside, 0.25 * depth * (chromatin > 0.4), 0.0)
        gap = 12.0 / pixel
        stain += membrane(distance, depth) + membrane(distance + gap, depth)
    for _ in range(int(rng.integers(0, 5))):
        radius = rng.uniform(100.0, 250.0) / pixel
        distance, _, _, turn = blob(radius)
        inside = distance < -14.0 / pixel
        stain += np.where(distance < 0, 0.2 * depth, 0.0)
        stain += membrane(distance, depth) + membrane(distance + 14.0 / pixel, depth)
        # Cristae: folds across the inner membrane, bent a little and broken here and there.
        across = np.cos(turn) * x + np.sin(turn) * y + 3.0 * smooth(rng, size, 12.0)
        pitch = rng.uniform(25.0, 45.0) / pixel
        fold = (across + pitch / 2) % pitch - pitch / 2
        whole = smooth(rng, size, 15.0) > -0.4
        stain += np.where(inside & whole, membrane(np.asarray(fold), 0.8 * depth), 0.0)
    for _ in range(int(rng.integers(2, 30))):
        radius = rng.uniform(18.0, 60.0) / pixel
        distance, *_ = blob(radius)
        stain += membrane(distance, depth)
        stain += np.where(distance < -leaflet, rng.choice([-0.05, 0.1, 0.3]) * depth, 0.0)
    # Ribosomes: 20 nm grains, alone or crowded where a slow field is high.
    crowd = np.exp(rng.uniform(0.0, 1.5) * smooth(rng, size, 25.0))
    share = rng.uniform(0.0, 0.15) / max(10.0 / pixel, 1.0) ** 2
    grains = (rng.random((size, size)) < share * crowd / crowd.mean()).astype(np.float32)
    grain = ndimage.gaussian_filter(grains, max(7.0 / pixel, 0.7))
    stain += 0.8 * depth * grain * 2.0 * np.pi * max(7.0 / pixel, 0.7) ** 2
    image = np.exp(-np.clip(stain, -0.5, 4.0))
    return np.asarray(ndimage.gaussian_filter(image, rng.uniform(0.4, 1.0)), dtype=np.float32)


# Cubic crystals: constant in nm/10 (angstrom, as abTEM counts), and atoms in the cell.
_CRYSTALS: dict[str, tuple[float, tuple[tuple[str, tuple[float, float, float]], ...]]] = {
    "gold": (4.08, tuple(
        ("Au", at) for at in ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
    )),
    "silicon": (5.43, tuple(
        ("Si", (a + d, b + d, c + d))
        for a, b, c in ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
        for d in (0.0, 0.25)
    )),
    "strontium titanate": (3.905, (
        ("Sr", (0, 0, 0)), ("Ti", (0.5, 0.5, 0.5)),
        ("O", (0.5, 0.5, 0)), ("O", (0.5, 0, 0.5)), ("O", (0, 0.5, 0.5)),
    )),
    "magnesia": (4.21, tuple(
        (element, (a + d, b, c))
        for element, d in (("Mg", 0.0), ("O", 0.5))
        for a, b, c in ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
    )),
}  # fmt: skip


def multislice(rng: Rng, size: int) -> Array:
    """A thin crystal with an edge, imaged by phase contrast: multislice of abTEM.

    Madsen & Susi, Open Research Europe 1, 24 (2021). A cubic crystal near one of its low zone axes
    with thermal displacements, vacancies, an edge and carbon around it, 1 to 5 nm thick, at 80 to
    300 kV; independent atoms (Lobato & Van Dyck), defocus, spherical aberration and focal spread.
    Takes seconds at 128 px, the first time more than half a minute.

    Raises
    ------
    InputError
        abTEM is not installed.
    """
    try:
        import abtem
        import ase
    except ImportError as error:
        raise InputError(
            "abTEM is not installed; pip install 'tem-live[multislice]', or leave multislice out "
            "of extra_scenes"
        ) from error

    pixel = rng.uniform(0.18, 0.5)
    # Columns at the cut edges of the box scatter into it from the other side: cropped away.
    margin = 12
    box = (size + 2 * margin) * pixel
    thickness = rng.uniform(10.0, 50.0)
    positions, elements = _crystal(rng, box, thickness)
    carbon = int(rng.choice([0.0, 0.02, 0.06]) * box * box * 20.0)
    where = rng.random((carbon, 3)) * (box, box, 20.0)
    positions = np.concatenate([positions, where])
    symbols = [*elements, *(["C"] * carbon)]
    depth = max(thickness, 20.0) + 2.0
    positions = positions + np.array([0.0, 0.0, 1.0])
    atoms = ase.Atoms(symbols, positions=positions, cell=(box, box, depth), pbc=True)
    fine = size + 2 * margin
    # The grid must reach the angles that are scattered to: 0.13 angstrom or finer.
    grid = fine * int(np.ceil(pixel / 0.13))
    with abtem.config.set({"diagnostics.progress_bar": False, "dask.lazy": False}):
        potential = abtem.Potential(atoms, gpts=(grid, grid), slice_thickness=2.0)
        wave = abtem.PlaneWave(energy=float(rng.choice([80e3, 200e3, 300e3])))
        ctf = {
            "defocus": float(rng.uniform(-200.0, 400.0)),
            "Cs": float(rng.choice([-1e5, 0.0, 1e5, 1e7])),
            "focal_spread": float(rng.uniform(20.0, 60.0)),
            "semiangle_cutoff": float(rng.uniform(15.0, 30.0)),
        }
        image = wave.multislice(potential).apply_ctf(**ctf).intensity().array
    step = grid // fine
    binned = np.asarray(image, dtype=np.float32).reshape(fine, step, fine, step).mean(axis=(1, 3))
    middle = binned[margin : margin + size, margin : margin + size]
    return np.asarray(np.maximum(middle, 0.0), dtype=np.float32)


def _crystal(rng: Rng, box: float, thickness: float) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Atoms of a crystal that fills a part of the box, in angstrom."""
    constant, basis = _CRYSTALS[str(rng.choice(list(_CRYSTALS)))]
    axis = np.array([(0, 0, 1), (1, 1, 0), (1, 1, 1)][int(rng.integers(3))], dtype=np.float64)
    axis /= np.linalg.norm(axis)
    first = np.cross(axis, (0.31, -0.87, 0.12))
    first /= np.linalg.norm(first)
    turn = np.stack([first, np.cross(axis, first), axis])
    angle, tilt = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(0.0, 1.0))
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ turn
    turn = (
        np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
        @ turn
    )
    reach = int(np.ceil(np.sqrt(0.5 * box**2 + 0.25 * thickness**2) / constant)) + 1
    cell = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1)
    cell = cell.reshape(-1, 3)
    # A region of the frame: beyond a line, or an island.
    if rng.random() < 0.6:
        way = rng.uniform(0, 2 * np.pi)
        offset = rng.uniform(-0.3, 0.5) * box
    else:
        way, offset = None, rng.uniform(0.25, 0.5) * box
    places, elements = [], []
    for element, at in basis:
        found = (cell + np.asarray(at)) * constant @ turn.T
        flat = found[:, :2]
        if way is None:
            inside = np.hypot(flat[:, 0], flat[:, 1]) < offset
        else:
            inside = flat @ np.array([np.cos(way), np.sin(way)]) < offset
        inside &= (np.abs(flat) < box / 2).all(axis=1) & (np.abs(found[:, 2]) < thickness / 2)
        inside &= rng.random(len(found)) > 0.01
        places.append(found[inside])
        elements += [element] * int(inside.sum())
    atoms = np.concatenate(places) + np.array([box / 2, box / 2, thickness / 2])
    return atoms + rng.normal(0.0, 0.07, atoms.shape), elements


def perforated(rng: Rng, size: int) -> Array:
    """Perforated support film at low magnification: holes in rows, bars, tears, dirt.

    Films of a pitch of some um (Quantifoil, C-flat: 0.6 to 2 um holes, 1 to 4 um apart) at 20 to
    250 nm a pixel; holes lie on a square or hexagonal lattice, are round or rounded squares, and
    may be filled with ice of another thickness.
    """
    y, x = (a.astype(np.float32) for a in np.mgrid[0:size, 0:size])
    pitch = float(np.exp(rng.uniform(np.log(12.0), np.log(110.0))))
    du, dv = _to_nearest_hole(rng, size, pitch)
    roundness = rng.choice([2.0, 2.0, rng.uniform(2.0, 8.0)])
    away = (np.abs(du) ** roundness + np.abs(dv) ** roundness) ** (1.0 / roundness)
    soft = float(np.exp(rng.uniform(np.log(0.35), np.log(2.0))))
    hole = _step(pitch * (rng.uniform(0.18, 0.43) - away), soft)
    film = rng.uniform(0.3, 0.95)
    ice = rng.choice([1.0, rng.uniform(film, 1.0), rng.uniform(0.3, 1.0)])
    image = film + (ice - film) * hole
    if rng.random() < 0.3:
        image = image * (1.0 + rng.uniform(0.005, 0.05) * smooth(rng, size, rng.uniform(1.0, 6.0)))
    if rng.random() < 0.4:
        # A tear, curled at its edge.
        tear = 8.0 * (smooth(rng, size, rng.uniform(15.0, 70.0)) - rng.uniform(0.5, 1.8))
        image = image * (1.0 - rng.uniform(0.0, 0.4) * np.exp(-((tear / rng.uniform(1, 4)) ** 2)))
        image = image + (1.0 - image) * _step(tear, soft)
    for _ in range(rng.choice([0, int(rng.integers(1, 20))])):
        cy, cx = rng.uniform(0.0, size, 2)
        spot = rng.uniform(1.0, 0.03 * size) - np.hypot(y - cy, x - cx)
        image = image * (1.0 - rng.uniform(0.1, 0.9) * _step(spot, soft))
    for _ in range(rng.choice([0, 0, 1, 2])):
        # A bar of the grid.
        way = rng.uniform(0.0, np.pi)
        across = np.cos(way) * x + np.sin(way) * y - rng.uniform(0.0, 1.0) * size
        bar = _step(rng.uniform(0.02, 0.2) * size - np.abs(across), rng.uniform(0.5, 3.0))
        image = image * (1.0 - (1.0 - rng.uniform(0.0, 0.05)) * bar)
    return np.asarray(np.maximum(image, 0.0), dtype=np.float32)


def _to_nearest_hole(rng: Rng, size: int, pitch_px: float) -> tuple[Array, Array]:
    """Way from the nearest hole to each pixel, along and across the rows, over the pitch."""
    y, x = (a.astype(np.float32) for a in np.mgrid[0:size, 0:size])
    turn = rng.uniform(0.0, np.pi)
    u = (np.cos(turn) * x + np.sin(turn) * y) / pitch_px + rng.uniform(0.0, 1.0)
    v = (np.cos(turn) * y - np.sin(turn) * x) / pitch_px + rng.uniform(0.0, 1.0)
    if rng.random() >= 0.3:
        return u - np.rint(u), v - np.rint(v)
    # Hexagonal: of two rectangular lattices the nearer hole.
    rows = np.sqrt(3.0)
    ways = [(u - np.rint(u - s) - s, v - rows * (np.rint(v / rows - s) + s)) for s in (0.0, 0.5)]
    first = np.hypot(*ways[0]) < np.hypot(*ways[1])
    along, across = (np.where(first, a, b) for a, b in zip(*ways, strict=True))
    return along, across


def _step(inside_px: npt.NDArray[np.floating], soft_px: float) -> npt.NDArray[np.floating]:
    """0 outside to 1 inside, softened over this many pixels."""
    return np.asarray(special.expit(inside_px / soft_px))


def spheres(rng: Rng, size: int) -> Array:
    """Round particles seen by absorption through their thickness, full, hollow or core and shell.

    Latex, vesicles, precipitates, nanoparticles of two metals: of one size or of many, 4 to 40 px
    in radius, strewn or in heaps, overlapping, on a film whose grain is weaker than they are. What
    absorbs is the path through the sphere (Beer-Lambert), so that its rim fades away.
    """
    y, x = (a.astype(np.float32) for a in np.mgrid[0:size, 0:size])
    typical = float(np.exp(rng.uniform(np.log(4.0), np.log(40.0))))
    spread = rng.uniform(0.0, 0.5)
    covered = float(np.exp(rng.uniform(np.log(0.03), np.log(0.8))))
    number = int(np.clip(covered * size**2 / (np.pi * typical**2), 2, 120))
    core = rng.choice([0.0, rng.uniform(0.4, 0.95)])
    # Of the core, in parts of the shell's: less than nothing is a hollow sphere.
    extra = rng.choice([-1.0, rng.uniform(-1.0, 0.0), float(np.exp(rng.uniform(-1.0, 1.2)))])
    heap = rng.uniform(0.1, 0.3) * size if rng.random() < 0.3 else None
    middle = rng.uniform(0.2, 0.8, 2) * size
    path = np.zeros((size, size), dtype=np.float32)
    for _ in range(number):
        if heap is None:
            cy, cx = rng.uniform(-typical, size + typical, 2)
        else:
            cy, cx = rng.normal(middle, heap)
        radius = typical * float(np.exp(rng.normal(0.0, spread)))
        rows, columns = (_span(at, radius, size) for at in (cy, cx))
        away2 = (y[rows, columns] - cy) ** 2 + (x[rows, columns] - cx) ** 2
        path[rows, columns] += np.sqrt(np.maximum(radius**2 - away2, 0.0))
        if core:
            inner = radius * float(np.clip(core + rng.normal(0.0, 0.1), 0.2, 0.97))
            path[rows, columns] += extra * np.sqrt(np.maximum(inner**2 - away2, 0.0))
    absorbed = float(np.exp(rng.uniform(np.log(0.04), np.log(2.0))))
    stain = absorbed / (2.0 * typical) * path
    if rng.random() < 0.7:
        grain = absorbed * float(np.exp(rng.uniform(np.log(0.005), np.log(0.15))))
        stain += grain * smooth(rng, size, rng.uniform(0.8, 4.0))
    image = np.exp(-stain) * (1.0 + rng.uniform(0.0, 0.15) * _slope(rng, size))
    return np.asarray(image, dtype=np.float32)


def _span(centre: float, radius: float, size: int) -> slice:
    """Rows or columns that a disk reaches."""
    low, high = np.clip((np.floor(centre - radius), np.ceil(centre + radius) + 1), 0, size)
    return slice(int(low), int(high))


def _slope(rng: Rng, size: int) -> Array:
    """Even slope in some direction, from -0.5 to 0.5 along the sides."""
    y, x = (a.astype(np.float32) / size - 0.5 for a in np.mgrid[0:size, 0:size])
    way = rng.uniform(0.0, 2.0 * np.pi)
    return np.asarray(np.cos(way) * x + np.sin(way) * y, dtype=np.float32)


EXTRA_GENERATORS: dict[str, Callable[[Rng, int], Array]] = {
    "cells": cells,
    "multislice": multislice,
    "perforated": perforated,
    "polycrystal": polycrystal,
    "spheres": spheres,
}
"""Generators by the name that a recipe's ``extra_scenes`` uses."""


def recipe_scene(rng: Rng, size: int, extra: Mapping[str, float]) -> Array:
    """Return one clean scene of a recipe, float32 (size, size), mean 1, nowhere negative.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where randomness comes from.
    size : int
        Side in pixels.
    extra : mapping of str to float
        Share of each of `EXTRA_GENERATORS`; the rest, and all where it is empty, are those of
        `tem_live.models.scenes.random_scene`.
    """
    if extra:
        draw = rng.random()
        for name, share in extra.items():
            if draw < share:
                image = np.maximum(EXTRA_GENERATORS[name](rng, size), 0.0)
                return np.asarray(image / max(float(image.mean()), 1e-3), dtype=np.float32)
            draw -= share
    return random_scene(rng, size)


def bank_name(seed: int, count: int, size: int, extra: Mapping[str, float]) -> str:
    """Name of the file that keeps such scenes: another one for other scenes."""
    kinds = "".join(f"-{name}{share:g}" for name, share in extra.items())
    return f"scenes-{seed}-{count}-{size}{kinds}.npy"
