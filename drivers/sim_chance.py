"""Random numbers of a detector by the plane: normal ones, electrons, and the energy they leave.

NumPy's own take a branch for each number; these take the same few steps for all of a piece that
stays in the processor's cache, which is three to ten times as fast. They need a bit generator whose
raw numbers have 64 random bits (PCG64, SFC64, Philox; not MT19937).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import special

from tem_live.drivers.sim_windows import BAND_PX, Plane

_PIECE = BAND_PX


def frame_generator(seed: int, run: int, sequence: int) -> np.random.Generator:
    """The random numbers of one frame, by the simulator's seed, its series and its number.

    PCG64DXSM is the fastest of NumPy's at raw numbers: 1.0 ns for 32 bits, where SFC64 takes 1.2.
    """
    return np.random.Generator(np.random.PCG64DXSM([seed, run, sequence]))


def normals(shape: tuple[int, ...], rng: np.random.Generator, sigma: float = 1.0) -> Plane:
    """Normal numbers of mean 0, as float32.

    Box and Muller (Ann. Math. Stat. 29 (1958) 610) on 32 bits for the radius, which ends at 6.7
    sigma (beyond it is one number of 4e10), and 16 for the angle: the radii are dense, so that
    65536 rays are no coarser than the numbers of a float32.

    Parameters
    ----------
    shape : tuple of int
        Of what is returned.
    rng : Generator
        See the module's text.
    sigma : float
        Standard deviation.
    """
    out = np.empty(shape, np.float32)
    flat = out.reshape(-1)
    longest = (min(flat.size, _PIECE) + 1) // 2
    radii, angles = np.empty((2, longest), np.float32)
    for begin in range(0, flat.size, _PIECE):
        piece = flat[begin : begin + _PIECE]
        half = (piece.size + 1) // 2
        radius, angle = radii[:half], angles[:half]
        raw = rng.bit_generator.random_raw((6 * half + 7) // 8)
        # Never 0, whose logarithm is none.
        chance = raw.view(np.uint32)[:half]
        chance |= np.uint32(1)
        np.copyto(radius, chance, casting="unsafe")
        radius *= np.float32(2.0**-32)
        np.log(radius, out=radius)
        radius *= np.float32(-2 * sigma**2)
        np.sqrt(radius, out=radius)
        np.copyto(angle, raw.view(np.int16)[2 * half : 3 * half])
        angle *= np.float32(np.pi * 2.0**-15)
        np.cos(angle, out=piece[:half])
        piece[:half] *= radius
        np.sin(angle, out=angle)
        np.multiply(angle[: piece.size - half], radius[: piece.size - half], out=piece[half:])
    return out


class PoissonTable:
    """Poisson numbers of any expectations, from 32 random bits each.

    Up to `LIMIT` Walker's alias method (Electron. Lett. 10 (1974) 127) on tables for 3073
    expectations, between two of which one is drawn such that the mean is kept. They are evenly
    spaced within each octave of 1 + expectation, for that is how a float32 counts: its bits are the
    place between the tables. The mixture raises the variance by 3.4e-5 of itself at most, and 15
    bits of a threshold leave 1.2e-7 of uncertainty in a probability. All in all the distribution
    function is within 6e-6 of the law's, and the mean within 1.2e-5 of itself above 0.05.

    Above it a normal number z is bent into shape, x = m + s z + (z² - 1)/6 - (z³ + 2z)/(72 s) +
    (3z⁴ + 7z² - 16)/(810 m), s = sqrt(m), and rounded: the expansion of Cornish and Fisher (Rev.
    Int. Stat. Inst. 5 (1938) 307) for the Poisson law less the variance 1/12 of rounding. Its
    distribution function is within 1e-6 of the law's.
    """

    LIMIT = 63.0
    LEVELS = 512
    """Tables in an octave."""
    OUTCOMES = 128

    def __init__(self) -> None:
        octave = 1 + np.arange(self.LEVELS) / self.LEVELS
        levels = np.append(np.outer(2.0 ** np.arange(6), octave), self.LIMIT + 1) - 1
        outcomes = np.arange(self.OUTCOMES)
        means = levels[:, None]
        logs = special.xlogy(outcomes, means) - means - special.gammaln(outcomes + 1)
        chances = np.exp(logs)
        threshold, alias = alias_tables(chances / chances.sum(axis=1, keepdims=True))
        # Less 1, so that a difference to 0 ... 32767 has the sign of a comparison.
        steps = np.rint(threshold * 0x8000).astype(np.int32) - 1
        self._table = ((steps << 7) | (alias ^ outcomes.astype(np.int32))).reshape(-1)

    def draw(self, expected: Plane, rng: np.random.Generator, out: Plane | None = None) -> Plane:
        """Poisson numbers of the given expectations.

        Parameters
        ----------
        expected : ndarray
            float32, C-contiguous, none negative.
        rng : Generator
            See the module's text.
        out : ndarray, optional
            Where to put them, of the same shape, C-contiguous; may be ``expected`` itself.

        Returns
        -------
        ndarray
            ``out``, or a new array; whole numbers as float32.
        """
        if out is None:
            out = np.empty(expected.shape, np.float32)
        means, drawn = expected.reshape(-1), out.reshape(-1)
        for begin in range(0, means.size, _PIECE):
            part, to = means[begin : begin + _PIECE], drawn[begin : begin + _PIECE]
            if part.max() <= self.LIMIT:
                self._draw_small(part, to, rng)
                continue
            few = part <= self.LIMIT
            small = part[few]
            np.copyto(to, bent_normals(part, normals(part.shape, rng)))
            if small.size:
                self._draw_small(small, small, rng)
                to[few] = small
        return out

    def _draw_small(self, means: Plane, out: Plane, rng: np.random.Generator) -> None:
        half = (means.size + 1) // 2
        bits = rng.bit_generator.random_raw(half).view(np.int32)[: means.size]
        # Bits 22 ... 31 choose between two tables, 0 ... 6 the cell, 7 ... 21 its outcome or the
        # alias. A table is 2^14 steps of the float32 wide, whose last 4 bits are rounded.
        place = (means + np.float32(1)).view(np.int32)
        work = (bits.view(np.uint32) >> np.uint32(18)).view(np.int32)
        work &= 0x3FF0
        place += work
        place -= _BITS_OF_1 - 8
        place >>= 7
        np.bitwise_and(bits, 127, out=work)
        # The low 7 bits of the place are anything; with 7 random ones upon them they are a cell.
        place ^= work
        entry = self._table.take(place, mode="wrap")
        bits &= 0x3FFF80
        entry -= bits
        # All ones where the alias is the outcome, and else 0.
        np.right_shift(entry, 31, out=work)
        work &= entry
        work ^= place
        work &= 127
        np.copyto(out, work, casting="unsafe")


_BITS_OF_1 = int(np.float32(1).view(np.int32))


def bent_normals(means: Plane, z: Plane) -> Plane:
    """Poisson numbers of large expectations, made of normal ones as `PoissonTable` tells.

    Parameters
    ----------
    means : ndarray
        float32, expectations.
    z : ndarray
        float32, same shape, normal numbers of standard deviation 1.
    """
    square = z * z
    bent = (3 * square + 7) * square
    bent -= 16
    bent /= 810 * np.maximum(means, np.float32(1))
    bent += (square - 1) / np.float32(6)
    root = np.sqrt(means)
    square += 2
    square /= 72 * np.maximum(root, np.float32(1))
    root -= square
    root *= z
    bent += root
    bent += means
    np.maximum(bent, 0, out=bent)
    return np.rint(bent, out=bent)


@cache
def poisson_table() -> PoissonTable:
    """The one table of constants: it takes longer to make than a frame."""
    return PoissonTable()


def alias_tables(
    chances: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Walker's tables: cell k is the outcome k below its threshold, and its alias above.

    Parameters
    ----------
    chances : ndarray
        (laws, outcomes), each row adding up to 1.

    Returns
    -------
    threshold : ndarray
        (laws, outcomes) float64, 0 to 1.
    alias : ndarray
        (laws, outcomes) int32.
    """
    laws, outcomes = chances.shape
    share = chances * outcomes
    threshold = np.ones_like(share)
    alias = np.tile(np.arange(outcomes, dtype=np.int32), (laws, 1))
    row = np.arange(laws)
    # One who has more than a cell fills the cells of those who have less, the poorest first, until
    # less than a cell is left; then the next richest one fills that, and goes on.
    order = share.argsort(axis=1)
    giver, left = order[:, -1], share[row, order[:, -1]]
    poorest, richest = np.zeros(laws, np.intp), np.full(laws, outcomes - 2)
    for _ in range(outcomes - 1):
        spent = left <= 1
        taker = np.where(spent, giver, order[row, poorest])
        has = np.where(spent, left, share[row, taker])
        giver = np.where(spent, order[row, richest], giver)
        threshold[row, taker] = np.minimum(has, 1)
        alias[row, taker] = giver
        left = np.where(spent, share[row, giver], left) + has - 1
        richest -= spent
        poorest += ~spent
    return threshold, alias


def spread_energies(electrons: Plane, spread: float, rng: np.random.Generator) -> Plane:
    """Let each electron leave a signal of its own: mean 1, relative standard deviation ``spread``.

    The sum of n gamma-distributed signals is one gamma number of shape n / spread², taken here by
    the approximation of Wilson and Hilferty (Proc. Natl. Acad. Sci. 17 (1931) 684).
    """
    signal = np.empty(electrons.shape, np.float32)
    many, out = electrons.reshape(-1), signal.reshape(-1)
    for begin in range(0, many.size, _PIECE):
        count = many[begin : begin + _PIECE]
        ninth = count * np.float32(9 / spread**2)
        np.maximum(ninth, np.float32(9e-6), out=ninth)
        np.reciprocal(ninth, out=ninth)
        root = np.sqrt(ninth)
        root *= normals(count.shape, rng)
        root -= ninth
        root += 1
        np.maximum(root, 0, out=root)
        cube = root * root
        cube *= root
        np.multiply(cube, count, out=out[begin : begin + _PIECE])
    return signal
