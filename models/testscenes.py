"""Specimens to judge restorers by. They share no code with the scenes of the training.

Each is fixed by its name, the size and the seed: float32 (size, size), mean 1. The physics differs
from the training's too: phase contrast comes from an exit wave and an aberrated lens, spheres are
projected through their thickness, membranes are pairs of lines at a fixed distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = [
    "LATTICE_SCENES",
    "TEST_SCENES",
    "ColumnScene",
    "atom_columns",
    "gaussian_columns",
    "reference_scene",
    "simulator_nanoparticles",
]

Array = npt.NDArray[np.float64]
Rng = np.random.Generator


def _axes(size: int) -> tuple[Array, Array]:
    yy, xx = np.mgrid[0:size, 0:size]
    return yy.astype(np.float64), xx.astype(np.float64)


def _random_waves(rng: Rng, size: int, longest: float, shortest: float, count: int = 60) -> Array:
    """Smooth random field as a sum of plane waves; unit variance about."""
    yy, xx = _axes(size)
    field = np.zeros((size, size))
    for _ in range(count):
        k = 2 * np.pi / rng.uniform(shortest, longest)
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        field += np.cos(k * (np.cos(angle) * xx + np.sin(angle) * yy) + phase)
    return np.asarray(field * np.sqrt(2.0 / count), dtype=np.float64)


def _lens(phase: Array, defocus_px2: float, envelope_px: float, amplitude: float) -> Array:
    """Intensity of the exit wave exp(i phase - amplitude * phase) through a defocused lens."""
    size = phase.shape[0]
    q2 = np.add.outer(np.fft.fftfreq(size) ** 2, np.fft.fftfreq(size) ** 2)
    wave = np.exp((1j - amplitude) * phase)
    transfer = np.exp(-1j * np.pi * defocus_px2 * q2 - (np.pi * envelope_px) ** 2 * q2)
    return np.asarray(np.abs(np.fft.ifft2(np.fft.fft2(wave) * transfer)) ** 2, dtype=np.float64)


def nanoparticles(rng: Rng, size: int) -> Array:
    """Low contrast: core-shell spheres on a carbon film, seen by absorption."""
    yy, xx = _axes(size)
    thickness = np.zeros((size, size))
    for _ in range(max(4, int(28 * (size / 512) ** 2))):
        cy, cx = rng.uniform(0, size, 2)
        outer = rng.lognormal(np.log(15.0), 0.35)
        inner = outer * rng.uniform(0.5, 0.9)
        d2 = (yy - cy) ** 2 + (xx - cx) ** 2
        thickness += 0.5 * np.sqrt(np.maximum(outer**2 - d2, 0.0))
        thickness += 0.8 * np.sqrt(np.maximum(inner**2 - d2, 0.0))
    film = 0.012 * _random_waves(rng, size, 14.0, 5.0)
    light = 1 + 0.06 * (xx - yy) / size
    return np.asarray(light * np.exp(-0.012 * thickness + film))


def crystal(rng: Rng, size: int) -> Array:
    """Atomic resolution: a faceted two-species crystal, vacuum, thin carbon; phase contrast."""
    yy, xx = _axes(size)
    angle = rng.uniform(0, np.pi / 2)
    pitch = 11.3
    u = (np.cos(angle) * xx + np.sin(angle) * yy) / pitch
    v = (-np.sin(angle) * xx + np.cos(angle) * yy) / pitch

    def columns(offset_u: float, offset_v: float, width: float) -> Array:
        du = (u - offset_u) - np.round(u - offset_u)
        dv = (v - offset_v) - np.round(v - offset_v)
        return np.asarray(np.exp(-(du * du + dv * dv) * (pitch / width) ** 2))

    potential = columns(0, 0, 2.1) + 0.55 * columns(0.5, 0.5, 1.8)
    centre = size / 2
    edge = np.full((size, size), -np.inf)
    for k in range(5):
        normal = angle + k * 2 * np.pi / 5 + 0.2 * rng.normal()
        edge = np.maximum(
            edge, np.cos(normal) * (xx - centre) + np.sin(normal) * (yy - centre) - 0.33 * size
        )
    inside = np.clip(0.5 - edge / 6.0, 0.0, 1.0)
    carbon = 0.10 * _random_waves(rng, size, 12.0, 4.5)
    phase = 0.9 * inside * potential + carbon * (yy > 0.55 * size)
    return _lens(phase, 22.0, 0.9, 0.08)


def boundary(rng: Rng, size: int) -> Array:
    """Two close-packed grains that meet at a tilt boundary, with missing columns."""
    yy, xx = _axes(size)
    image = np.zeros((size, size))
    line = 0.5 * size + 0.12 * (yy - size / 2) + 6 * np.sin(yy / 31.0)
    pitch = 8.2
    for side, angle in ((-1, 0.11), (1, 0.58)):
        c, s = np.cos(angle), np.sin(angle)
        reach = int(size / pitch) + 2
        for i in range(-reach, reach):
            for j in range(-reach, reach):
                a, b = (i + 0.5 * (j % 2)) * pitch, j * pitch * np.sqrt(0.75)
                py, px = size / 2 + s * a + c * b, size / 2 + c * a - s * b
                if not (-5 < py < size + 5 and -5 < px < size + 5):
                    continue
                at = line[int(np.clip(py, 0, size - 1)), 0]
                if (px - at) * side < 1.5 or rng.random() < 0.01:
                    continue
                y0, x0 = int(py), int(px)
                ys, xs = slice(max(y0 - 6, 0), y0 + 7), slice(max(x0 - 6, 0), x0 + 7)
                d2 = (yy[ys, xs] - py) ** 2 + (xx[ys, xs] - px) ** 2
                image[ys, xs] += rng.normal(1.0, 0.05) * np.exp(-d2 / (2 * 1.9**2))
    return np.asarray(0.35 + image)


def grid_square(rng: Rng, size: int) -> Array:
    """Low magnification: opaque grid bars, a holey film, a tear and dirt."""
    yy, xx = _axes(size)
    scale = size / 512
    bars = np.minimum(np.abs(xx - 0.09 * size - 0.05 * yy), np.abs(yy - 0.91 * size + 0.05 * xx))
    bar = 1 / (1 + np.exp((bars - 26 * scale) / 1.2))
    pitch = 58 * scale
    a, b = xx + 0.21 * yy, yy - 0.21 * xx
    hole = np.hypot((a % pitch) - pitch / 2, (b % pitch) - pitch / 2) - 19 * scale
    film = 0.62 + 0.30 / (1 + np.exp(hole / 0.8))
    tear = _random_waves(rng, size, 420 * scale, 130 * scale, 24) - 1.25
    film = np.where(tear > 0, 0.95, film)
    film = film - 0.12 * np.exp(-((tear / 0.05) ** 2))
    for _ in range(14):
        cy, cx = rng.uniform(0, size, 2)
        r = rng.uniform(2, 9) * scale
        film = film * (
            1 - 0.6 / (1 + np.exp(np.minimum((np.hypot(yy - cy, xx - cx) - r) / 0.7, 50.0)))
        )
    return np.asarray((1 - bar) * film + 0.015 * bar)


def section(rng: Rng, size: int) -> Array:
    """Stained thin section: membranes as pairs of lines, vesicles, granular cytoplasm."""
    yy, xx = _axes(size)
    stain = 0.05 * _random_waves(rng, size, 26.0, 7.0)
    potential = _random_waves(rng, size, 260.0, 110.0, 18)
    gy, gx = np.gradient(potential)
    distance = potential / np.maximum(np.hypot(gy, gx), 0.01)
    for offset in (-3.4, 3.4):
        stain += 0.33 * np.exp(-(((distance - offset) / 1.5) ** 2))
    for _ in range(max(3, int(22 * (size / 512) ** 2))):
        cy, cx = rng.uniform(0, size, 2)
        r = rng.uniform(7, 19)
        d = np.hypot(yy - cy, xx - cx) - r
        stain += 0.30 * np.exp(-((d / 1.7) ** 2)) + 0.10 * (d < 0)
    return np.asarray(np.exp(-stain))


def thin_film(rng: Rng, size: int) -> Array:
    """Amorphous carbon far from focus with small gold clusters: weak, irregular, phase contrast."""
    yy, xx = _axes(size)
    q2 = np.add.outer(np.fft.fftfreq(size) ** 2, np.fft.fftfreq(size) ** 2)
    random = np.fft.fft2(rng.normal(0, 1, (size, size)))
    carbon = np.fft.ifft2(random / (1 + q2 / 0.06**2)).real
    carbon *= 0.06 / carbon.std()
    for _ in range(max(3, int(30 * (size / 512) ** 2))):
        cy, cx = rng.uniform(0, size, 2)
        r = rng.uniform(2.5, 7.0)
        d2 = (yy - cy) ** 2 + (xx - cx) ** 2
        carbon += 0.10 * np.sqrt(np.maximum(r * r - d2, 0))
    return _lens(carbon, 55.0, 1.6, 0.25)


TEST_SCENES: dict[str, Callable[[Rng, int], Array]] = {
    "nanoparticles": nanoparticles,
    "crystal": crystal,
    "boundary": boundary,
    "grid_square": grid_square,
    "section": section,
    "thin_film": thin_film,
}
"""Generators by name."""


def _fringes(rng: Rng, size: int, angles: tuple[float, ...]) -> Array:
    """A finite crystal whose fringes, and those of half their spacing, run along these angles."""
    yy, xx = _axes(size)
    period = 10.0 + rng.uniform(-0.4, 0.4)
    image = np.zeros((size, size))
    for angle in angles:
        phase = 2 * np.pi * (np.cos(angle) * yy + np.sin(angle) * xx) / period + rng.uniform(0, 6)
        image += 0.10 * np.cos(phase) + 0.05 * np.cos(2 * phase)
    theta = np.arctan2(yy - 0.5 * size, xx - 0.45 * size)
    outline = 0.36 + 0.03 * np.cos(3 * theta + rng.uniform(0, 6)) + 0.02 * np.cos(7 * theta)
    distance = np.hypot(yy - 0.5 * size, xx - 0.45 * size) - outline * size
    inside = 1 / (1 + np.exp(np.clip(distance / 1.5, -50.0, 50.0)))
    return np.asarray((1 + image * inside) * (1 - 0.15 * inside))


LATTICE_SCENES: dict[str, Callable[[Rng, int], Array]] = {
    # Along y the intensity changes from row to row: the fringes lie along the rows.
    "fringes_rows": lambda rng, size: _fringes(rng, size, (0.0,)),
    "fringes_columns": lambda rng, size: _fringes(rng, size, (np.pi / 2,)),
    "fringes_oblique": lambda rng, size: _fringes(rng, size, (0.41,)),
    "fringes_crossed": lambda rng, size: _fringes(rng, size, (0.0, np.pi / 2)),
    "columns": lambda rng, size: atom_columns(size, int(rng.integers(2**31))).image,
}
"""Lattices for the amplitudes of Bragg peaks; generators by name. Not among `TEST_SCENES`."""


@dataclass(frozen=True)
class ColumnScene:
    """An atomic lattice of which every column is known.

    Attributes
    ----------
    image : ndarray
        float64 (size, size), mean 1: ``background`` plus a Gaussian for each column.
    background : float
        What the image is without columns.
    sigma_px : float
        Standard deviation of each column's Gaussian in pixels.
    pitch_px : float
        Distance between neighbouring columns in pixels.
    places_px : ndarray
        float64 (N, 2), centres of the columns as (y, x).
    volumes : ndarray
        float64 (N,), integral of each column over the pixels, in units of the image.
    hosts : ndarray
        float64 (N,), the integral that a column of the host would have there.
    dopants : ndarray
        bool (N,), which columns are not the host's.
    vacancies_px : ndarray
        float64 (M, 2), where a column is missing.
    vacancy_hosts : ndarray
        float64 (M,), the integral of the missing columns.
    """

    image: Array
    background: float
    sigma_px: float
    pitch_px: float
    places_px: Array
    volumes: Array
    hosts: Array
    dopants: npt.NDArray[np.bool_]
    vacancies_px: Array
    vacancy_hosts: Array


def gaussian_columns(
    size: int, background: float, sigma_px: float, places_px: Array, volumes: Array
) -> Array:
    """Image of columns, float64 (size, size): see `ColumnScene`."""
    image = np.full((size, size), background)
    reach = int(np.ceil(6 * sigma_px))
    for (y, x), volume in zip(places_px, volumes, strict=True):
        rows = np.arange(max(int(y) - reach, 0), min(int(y) + reach + 2, size))
        columns = np.arange(max(int(x) - reach, 0), min(int(x) + reach + 2, size))
        along_y = np.exp(-0.5 * ((rows - y) / sigma_px) ** 2)
        along_x = np.exp(-0.5 * ((columns - x) / sigma_px) ** 2)
        patch = volume / (2 * np.pi * sigma_px**2) * np.outer(along_y, along_x)
        image[rows[:, None], columns[None, :]] += patch
    return image


def atom_columns(size: int = 512, seed: int = 0) -> ColumnScene:
    """Annular dark field of a crystal of two species with dopants, vacancies and a surface.

    Columns are bright Gaussians on an even background, beyond the surface is vacuum. Every column
    is off its place by 0.25 px at random and by a slow strain, the thickness varies by 20 %, 6 % of
    the columns are dopants of 0.45 to 0.75 or 1.3 to 1.7 times the host's intensity, 2 % missing.
    """
    rng = np.random.default_rng([911, 6211, seed])
    cell, sigma_px, background = 16.6, 2.2, 0.35
    angle = rng.uniform(0.1, 0.35)
    c, s = np.cos(angle), np.sin(angle)
    reach = int(size / cell) + 2
    i, j, species = np.meshgrid(
        np.arange(-reach, reach), np.arange(-reach, reach), [0, 1], indexing="ij"
    )
    u, v = (i + 0.5 * species).ravel() * cell, (j + 0.5 * species).ravel() * cell
    y, x = size / 2 + s * u + c * v, size / 2 + c * u - s * v
    turn = rng.uniform(0, 2 * np.pi, 2)
    strain = [1.0 * np.sin(2 * np.pi * (0.7 * y + 0.4 * x) / size + t) for t in turn]
    surface = 0.76 * size + 0.12 * (y - size / 2) + 0.02 * size * np.sin(7 * y / size)
    inside = (x < surface) & (np.minimum(y, x) > -6) & (y < size + 6)
    host = 2 * np.pi * sigma_px**2 * np.where(species.ravel() == 0, 2.0, 1.1)
    host *= 1 + 0.10 * np.sin(2 * np.pi * (0.5 * y - 0.8 * x) / size + turn[0])
    places = np.stack([y + strain[0], x + strain[1]], axis=1) + rng.normal(0, 0.25, (y.size, 2))
    draw = rng.random(y.size)
    dopant = draw < 0.06
    weight = np.where(
        rng.random(y.size) < 0.5, rng.uniform(0.45, 0.75, y.size), rng.uniform(1.3, 1.7, y.size)
    )
    volume = host * np.where(dopant, weight, 1.0)
    missing = inside & (draw > 0.98)
    there = inside & ~missing
    image = gaussian_columns(size, background, sigma_px, places[there], volume[there])
    mean = float(image.mean())
    return ColumnScene(
        image=image / mean,
        background=background / mean,
        sigma_px=sigma_px,
        pitch_px=cell * np.sqrt(0.5),
        places_px=places[there],
        volumes=volume[there] / mean,
        hosts=host[there] / mean,
        dopants=dopant[there],
        vacancies_px=places[missing],
        vacancy_hosts=host[missing] / mean,
    )


def reference_scene(name: str, size: int = 512, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return the test scene of this name, float32 (size, size), mean 1."""
    key = sum(map(ord, name))
    image = {**TEST_SCENES, **LATTICE_SCENES}[name](np.random.default_rng([911, key, seed]), size)
    return np.asarray(image / image.mean(), dtype=np.float32)


def simulator_nanoparticles() -> npt.NDArray[np.float32]:
    """Return the simulated camera's nanoparticles from their file, float32 (512, 512), mean 1.

    The file was written by ``tools/make_scene_file.py``.
    """
    from imagecodecs import png_decode

    path = Path(__file__).parent / "scene_files" / "nanoparticles.png"
    image = np.asarray(png_decode(path.read_bytes()), dtype=np.float64)
    return np.asarray(image / image.mean(), dtype=np.float32)
