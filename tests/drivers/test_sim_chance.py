"""The simulators' random numbers against the laws that they are to follow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats

from tem_live.drivers.sim_chance import (
    PoissonTable,
    alias_tables,
    bent_normals,
    normals,
    poisson_table,
    spread_energies,
)
from tests.drivers.sim_bench import assert_mean, assert_variance

DRAWN = 1_000_000


def generator(seed: int = 3) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


def correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


# ------------------------------------------------------------------------------------------ Poisson


@pytest.mark.parametrize(
    "mean",
    # Low doses, on and between tables, at and beside the octaves' ends, and bent normal numbers.
    [
        0.001,
        0.05,
        0.3,
        1.0,
        1.0009,
        2.999,
        3.0,
        5.0,
        17.37,
        31.03,
        62.99,
        63.0,
        63.01,
        100.0,
        2000.0,
    ],
)
def test_the_whole_distribution_is_poissons(mean: float) -> None:
    drawn = poisson_table().draw(np.full(DRAWN, mean, np.float32), generator())
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn, np.rint(drawn))
    assert_mean(drawn.astype(float), mean)
    assert_variance(drawn.astype(float), mean)
    # Chi-square over all outcomes; both tails, which are expected rarely, are one bin each.
    low, high = stats.poisson.ppf([1e-4, 1 - 1e-4], mean)
    outcomes = np.arange(low, high)
    chances = np.r_[stats.poisson.pmf(outcomes, mean), stats.poisson.sf(high - 1, mean)]
    below = stats.poisson.cdf(low - 1, mean)
    places = np.clip(drawn, low - 1, high).astype(int) - int(low - 1)
    counts = np.bincount(places, minlength=chances.size + 1)
    expected = DRAWN * np.r_[below, chances]
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, max(expected.size - 1, 1)) > 1e-5
    # The far tail on its own: a normal approximation would miss it.
    far = stats.poisson.isf(1e-5, mean)
    expected_far = DRAWN * stats.poisson.sf(far, mean)
    assert abs((drawn > far).sum() - expected_far) < 5 * np.sqrt(expected_far) + 3


@pytest.mark.parametrize("mean", [63.0, 100.0, 1000.0])
def test_bent_normals_have_poissons_distribution_function(mean: float) -> None:
    z = np.linspace(-6, 6, 4_000_001).astype(np.float32)
    drawn = bent_normals(np.full_like(z, mean), z)
    assert (np.diff(drawn) >= 0).all()
    outcomes = np.arange(drawn[0] + 1, drawn[-1])
    # Where the outcome becomes larger than k, the normal law has reached what Poisson's has at k.
    reached = stats.norm.cdf(z[np.searchsorted(drawn, outcomes, side="right")].astype(float))
    assert np.abs(reached - stats.poisson.cdf(outcomes, mean)).max() < 8e-6


def test_every_pixel_has_its_own_expectation() -> None:
    rng = np.random.default_rng(5)
    means = rng.uniform(0, 130, (1000, 1000)).astype(np.float32)
    means[:, ::7] /= 100
    drawn = poisson_table().draw(means, generator())
    errors = (drawn - means) / np.sqrt(means)
    assert_mean(errors, 0.0)
    assert_variance(errors, 1.0)
    # Whatever the level: on either side of where the method changes, and where tables are wide.
    for low, high in ((0, 0.5), (0.5, 1.4), (1.4, 30), (30, 62), (62, 63), (63, 64), (64, 130)):
        part = errors[(means >= low) & (means < high)]
        assert_mean(part, 0.0)
        assert_variance(part, 1.0)
    assert abs(correlation(errors, means)) < 0.005


def test_numbers_are_independent_of_their_neighbours() -> None:
    drawn = poisson_table().draw(np.full((1000, 1000), 5.0, np.float32), generator())
    for lag in (1, 2, 1000, 1 << 14, 1 << 15, 1 << 16):
        flat = drawn.ravel()
        assert abs(correlation(flat[lag:], flat[:-lag])) < 0.005


def test_nothing_comes_of_nothing_and_in_place_is_the_same() -> None:
    assert not poisson_table().draw(np.zeros((300, 301), np.float32), generator()).any()
    means = np.linspace(0, 90, 70_001, dtype=np.float32)
    fresh = poisson_table().draw(means, generator())
    again = means.copy()
    assert poisson_table().draw(again, generator(), out=again) is again
    np.testing.assert_array_equal(again, fresh)
    assert (poisson_table().draw(means, generator(4)) != fresh).any()


def test_alias_tables_are_the_laws() -> None:
    outcomes = np.arange(PoissonTable.OUTCOMES)
    means = np.array([0.0, 0.01, 0.7, 5.0, 31.0, 63.0])[:, None]
    chances = np.exp(special.xlogy(outcomes, means) - means - special.gammaln(outcomes + 1))
    chances = np.vstack([chances, np.full(outcomes.size, 1 / outcomes.size)])
    chances /= chances.sum(axis=1, keepdims=True)
    threshold, alias = alias_tables(chances)
    assert threshold.min() >= 0
    assert threshold.max() <= 1
    for law, own, other in zip(chances, threshold, alias, strict=True):
        drawn = own + np.bincount(other, 1 - own, minlength=outcomes.size)
        np.testing.assert_allclose(drawn / outcomes.size, law, atol=1e-13)


# ------------------------------------------------------------------------------------------- normal


def test_normals_are_normal() -> None:
    drawn = normals((1000, 1000), generator())
    assert drawn.dtype == np.float32
    assert_mean(drawn, 0.0)
    assert_variance(drawn, 1.0)
    assert stats.kstest(drawn.ravel().astype(float), "norm").pvalue > 1e-4
    assert_mean(drawn**3, 0.0)
    assert_mean(drawn**4, 3.0)
    for sigmas in (2.0, 3.0, 4.0):
        for tail in (drawn > sigmas, drawn < -sigmas):
            expected = DRAWN * stats.norm.sf(sigmas)
            assert abs(tail.sum() - expected) < 5 * np.sqrt(expected)


def test_the_two_numbers_of_a_pair_are_independent() -> None:
    pairs = [normals((2, 1 << 14), generator(seed)) for seed in range(30)]
    first, second = (np.stack([pair[k] for pair in pairs]) for k in (0, 1))
    assert abs(correlation(first, second)) < 0.008
    # A radius that is not Rayleigh's would tie their squares.
    assert abs(correlation(first**2, second**2)) < 0.008
    assert abs(correlation(first**2, second)) < 0.008
    assert abs(correlation(first[:, 1:], first[:, :-1])) < 0.008


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), ((1 << 15) + 1,)])
def test_odd_shapes_and_sigma(shape: tuple[int, ...]) -> None:
    rng = generator()
    drawn = np.stack([normals(shape, rng, 2.5) for _ in range(200)])
    assert drawn.shape == (200, *shape)
    assert np.isfinite(drawn).all()
    assert_mean(drawn, 0.0)
    assert_variance(drawn, 2.5**2)


# ----------------------------------------------------------------------------------------- energies


@pytest.mark.parametrize("spread", [0.3, 0.8])
def test_energies_are_gamma_distributed(spread: float) -> None:
    many = np.full(DRAWN, 20.0, np.float32)
    signal = spread_energies(many, spread, generator())
    assert signal.mean() == pytest.approx(20, rel=0.002)
    assert signal.var() == pytest.approx(20 * spread**2, rel=0.02)
    law = stats.gamma(20 / spread**2, scale=spread**2)
    for quantile in (0.001, 0.1, 0.5, 0.9, 0.999):
        share = (signal < law.ppf(quantile)).mean()
        assert share == pytest.approx(quantile, rel=0.05, abs=0.0005)
    assert not spread_energies(np.zeros(1000, np.float32), spread, generator()).any()
