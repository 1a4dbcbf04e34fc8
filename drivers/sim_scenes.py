"""Specimens of the simulated microscope: what fraction of the beam reaches each pixel.

A scene is a pure function of time and fluence, so that any frame can be computed again later, alone
and in any order; randomness sits in what is laid out once, from a seed. Scenes are periodic: what
leaves the field at one edge comes in at the other. The mean over the field therefore stays, and the
blur of the detector finds something beyond the edge.

They are made for development, for tests and for showing the program; none is a training generator.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tem_live.drivers.sim_layout import (
    Stamps,
    atom_columns,
    island,
    particle_stamp,
    scattered,
    thin_film,
)
from tem_live.drivers.sim_windows import Kept, Plane, Window, bands, shifted

SceneName = Literal["nanoparticles", "lattice", "damage", "vacuum"]


class Scene(Protocol):
    """A specimen under the beam."""

    def transmission(self, window: Window, time_s: float, fluence_e_per_A2: float) -> Plane:
        """Fraction of the incident electrons that reach the detector.

        Parameters
        ----------
        window : Window
            What to compute.
        time_s : float
            Age of the specimen in seconds: it moves.
        fluence_e_per_A2 : float
            What it has taken so far in e-/A^2: it may fade.

        Returns
        -------
        ndarray
            (height, width) float32; about 0.1 to 1.2, above 1 only in Fresnel fringes.
        """


class Motion(NamedTuple):
    """How a specimen moves.

    Attributes
    ----------
    drift_px_s : tuple of float
        Drift of the whole specimen, (dy, dx) in pixels per second.
    wander_px : float
        Amplitude of the slow random walk of a particle in pixels.
    """

    drift_px_s: tuple[float, float]
    wander_px: float


def make_scene(
    name: SceneName,
    field: tuple[int, int],
    pixel_size_nm: float,
    motion: Motion,
    critical_fluence_e_per_A2: float,
    seed: int,
) -> Scene:
    """Lay out a scene.

    Parameters
    ----------
    name : str
        Which one.
    field : tuple of int
        (height, width) of the sensor in pixels.
    pixel_size_nm : float
        Size of a pixel at the specimen in nm.
    motion : Motion
        How it moves.
    critical_fluence_e_per_A2 : float
        Fluence at which ``damage`` keeps 1/e of its first Bragg contrast, in e-/A^2.
    seed : int
        Of everything that is laid out at random.
    """
    rng = np.random.default_rng([seed, 0x5CE7E])
    if name == "nanoparticles":
        return Nanoparticles(field, pixel_size_nm, motion, rng)
    if name == "lattice":
        return Lattice(field, pixel_size_nm, motion, rng)
    if name == "damage":
        return Damage(field, pixel_size_nm, motion, critical_fluence_e_per_A2, rng)
    return Vacuum()


class Vacuum:
    """Nothing in the beam."""

    def transmission(self, window: Window, time_s: float, fluence_e_per_A2: float) -> Plane:
        """Ones; see `Scene.transmission`."""
        return np.ones((window.height, window.width), np.float32)


class Nanoparticles:
    """Gold-like particles that wander on a thin amorphous film with a hole in it.

    Bright field: mass-thickness contrast exp(-t / Λ) of faceted crystals (truncated octahedra in
    random orientation) with a mean free path of 8 nm, part of them twinned, whose diffraction
    contrast swells and fades as they tilt; a grainy film; Fresnel fringes along all edges.
    """

    MEAN_FREE_PATH_NM = 8.0
    COVERAGE = 0.11
    FILM_STEPS = 16
    """Steps of a pixel in which the film drifts; particles have 1 to 4."""

    def __init__(
        self,
        field: tuple[int, int],
        pixel_size_nm: float,
        motion: Motion,
        rng: np.random.Generator,
    ) -> None:
        self._field = field
        self._motion = motion
        height, width = field
        side = min(field)
        hole = np.array([0.30 * height, 0.72 * width])
        hole_radius = 0.17 * side
        self._film = np.exp(-thin_film(field, pixel_size_nm, hole, hole_radius, rng))
        # Half of the area is in the larger particles, as after coarsening. Radii in nm are kept
        # in pixels between what is still seen and what still fits.
        radii_nm = np.exp(rng.normal(np.log(2.3), 0.45, 24))
        radii = np.sort(np.clip(radii_nm / pixel_size_nm, 3.0, min(0.08 * side, 120.0)))
        kinds_of = [particle_stamp(r, pixel_size_nm, self.MEAN_FREE_PATH_NM, rng) for r in radii]
        kinds, places = scattered(field, radii, self.COVERAGE, hole, hole_radius, rng)
        self._stamps = Stamps(kinds_of, kinds.tolist())
        self._place = places
        count = len(kinds)
        octaves = np.arange(9)
        self._periods = 1.1 * 2.0**octaves * rng.uniform(0.8, 1.25, (count, 2, octaves.size))
        self._phases = rng.uniform(0, 2 * np.pi, (count, 2, octaves.size))
        # Amplitudes that grow as the square root of the period are those of a random walk; small
        # particles walk further.
        mobility = np.clip(radii.mean() / radii[kinds], 0.4, 2.0)
        self._amplitude = (
            motion.wander_px * 2.0 ** ((octaves - octaves[-1]) / 2) * mobility[:, None, None]
        )
        self._start = (self._amplitude * np.sin(self._phases)).sum(axis=2)
        self._rocking = rng.uniform(6.0, 40.0, count), rng.uniform(0, 2 * np.pi, count)
        self._depth = rng.uniform(0.1, 0.35, count)
        self._still = not (motion.wander_px or any(motion.drift_px_s))
        self._kept_film, self._kept_whole = Kept(), Kept()

    def particle_centers_px(self, time_s: float) -> npt.NDArray[np.float64]:
        """Centres of the particles, (N, 2) as (y, x) in sensor pixels; not wrapped."""
        walk = self._amplitude * np.sin(2 * np.pi * time_s / self._periods + self._phases)
        drift = np.array(self._motion.drift_px_s) * time_s
        centers: npt.NDArray[np.float64] = self._place - self._start + walk.sum(axis=2) + drift
        return centers

    def transmission(self, window: Window, time_s: float, fluence_e_per_A2: float) -> Plane:
        """See `Scene.transmission`; fluence changes nothing."""
        if self._still:
            return self._kept_whole.get(window, lambda: self._shown(window, 0.0)).copy()
        return self._shown(window, time_s)

    def _shown(self, window: Window, time_s: float) -> Plane:
        # The film drifts in steps, and is kept until the next one.
        dy, dx = (
            round(speed * time_s * self.FILM_STEPS) / self.FILM_STEPS
            for speed in self._motion.drift_px_s
        )
        film = self._kept_film.get((window, dy, dx), lambda: shifted(self._film, window, dy, dx))
        periods, phases = self._rocking
        # Motion 0 means a specimen that stands still altogether, rocking included.
        moving = 1.0 if self._motion.wander_px else 0.0
        weights = 1 + self._depth * np.sin(2 * np.pi * time_s * moving / periods + phases)
        centers_px = self.particle_centers_px(time_s)
        plane = film.copy()
        self._stamps.darken(plane, window, self._field, centers_px, weights)
        return plane


class Lattice:
    """Two finite crystals of known atom columns, with a grain boundary, vacancies and dopants.

    Columns of a square lattice (0.39 nm, as strontium titanate along [001], A and B columns) are
    dark Gaussians on a thin film; a corner of the field is vacuum.
    """

    SPACING_NM = 0.3905
    COLUMN_SIGMA_NM = 0.055

    def __init__(
        self,
        field: tuple[int, int],
        pixel_size_nm: float,
        motion: Motion,
        rng: np.random.Generator,
    ) -> None:
        self._motion = motion
        self._field = field
        height, width = field
        a = self.SPACING_NM / pixel_size_nm
        sigma = max(self.COLUMN_SIGMA_NM / pixel_size_nm, 0.6)
        hole = np.array([0.05 * height, 0.95 * width])
        film = thin_film(field, pixel_size_nm, hole, 0.28 * min(field), rng, contrast=0.03)
        places, depths = atom_columns(field, a, rng)
        self._columns = places
        self.column_depths = depths
        """Depth of each column in the logarithm of the transmission."""
        atoms = np.zeros(field, np.float32)
        reach = int(np.ceil(4 * sigma))
        offsets = np.arange(-reach, reach + 1)
        for (y, x), depth in zip(places, depths, strict=True):
            iy, ix = round(y), round(x)
            gy = np.exp(-0.5 * ((offsets + iy - y) / sigma) ** 2)
            gx = np.exp(-0.5 * ((offsets + ix - x) / sigma) ** 2)
            patch = (depth * gy[:, None] * gx).astype(np.float32)
            if reach <= iy < height - reach and reach <= ix < width - reach:
                atoms[iy - reach : iy + reach + 1, ix - reach : ix + reach + 1] += patch
            else:
                atoms[np.ix_((offsets + iy) % height, (offsets + ix) % width)] += patch
        self._plane = np.exp(-(film + atoms))

    def columns_px(self, time_s: float) -> npt.NDArray[np.float64]:
        """Centres of the atom columns, (N, 2) as (y, x) in sensor pixels, inside of the field."""
        drift = np.array(self._motion.drift_px_s) * time_s
        centers: npt.NDArray[np.float64] = (self._columns + drift) % np.array(self._field)
        return centers

    def transmission(self, window: Window, time_s: float, fluence_e_per_A2: float) -> Plane:
        """See `Scene.transmission`; fluence changes nothing."""
        dy, dx = self._motion.drift_px_s
        return shifted(self._plane, window, dy * time_s, dx * time_s)


class Damage:
    """A beam-sensitive crystal and particles that fade with the fluence they have taken.

    transmission = film · (1 - B1 e^(-N/Nc) - B2 e^(-2N/Nc) - M e^(-N/4Nc)), with the first Bragg
    fringes B1, those of half their spacing B2 (fine detail goes first: the critical fluence is
    taken to be proportional to the spacing, Howells et al., J. Electron Spectrosc. 170 (2009) 4)
    and the mass of the particles M, which is lost last.
    """

    SPACING_NM = 1.0

    def __init__(
        self,
        field: tuple[int, int],
        pixel_size_nm: float,
        motion: Motion,
        critical_fluence_e_per_A2: float,
        rng: np.random.Generator,
    ) -> None:
        self._motion = motion
        self._critical = critical_fluence_e_per_A2
        height, width = field
        hole = np.array([0.10 * height, 0.90 * width])
        self._film = np.exp(-thin_film(field, pixel_size_nm, hole, 0.25 * min(field), rng))
        # Whole numbers of fringes over the field keep the scene periodic.
        cycles = [max(1, round(n * pixel_size_nm / self.SPACING_NM)) for n in field]
        self.fringe_cycles = cycles[0], cycles[1]
        """Fringes of the first order over the field, along y and along x."""
        y = 2 * np.pi * cycles[0] * np.arange(height)[:, None] / height
        x = 2 * np.pi * cycles[1] * np.arange(width) / width
        crystal = island(field, rng)
        self._first = (crystal * 0.10 * (np.cos(y) + np.cos(x))).astype(np.float32)
        self._second = (crystal * 0.05 * (np.cos(2 * y) + np.cos(2 * x))).astype(np.float32)
        whole = Window(0, 0, height, width)
        radii = np.sort(np.clip(rng.uniform(2.0, 4.0, 8) / pixel_size_nm, 3.0, 0.06 * min(field)))
        kinds_of = [particle_stamp(r, pixel_size_nm, 25.0, rng) for r in radii]
        kinds, places = scattered(field, radii, 0.05, hole, 0.25 * min(field), rng)
        left = np.ones(field, np.float32)
        Stamps(kinds_of, kinds.tolist()).darken(left, whole, field, places, np.ones(len(kinds)))
        self._mass = 1 - left

    def transmission(self, window: Window, time_s: float, fluence_e_per_A2: float) -> Plane:
        """See `Scene.transmission`."""
        dy, dx = (speed * time_s for speed in self._motion.drift_px_s)
        left = fluence_e_per_A2 / self._critical
        fading = (
            (self._first, np.exp(-left)),
            (self._second, np.exp(-2 * left)),
            (self._mass, np.exp(-left / 4)),
        )
        parts = [(part, np.float32(kept)) for part, kept in fading if kept > 1e-4]
        whole = np.ones_like(self._film)
        for rows in bands(*whole.shape):
            band = whole[rows]
            for part, kept in parts:
                band -= kept * part[rows]
            band *= self._film[rows]
            np.maximum(band, np.float32(0.02), out=band)
        return shifted(whole, window, dy, dx)
