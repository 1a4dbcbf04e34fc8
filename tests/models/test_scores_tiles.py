"""The bias of a tile is in standard errors of its mean."""

from __future__ import annotations

import numpy as np

from tem_live.models.scores_tiles import tile_bias, tile_standard_error


def test_standard_error_of_white_and_of_streaked_tiles() -> None:
    rng = np.random.default_rng(3)
    white = rng.poisson(5.0, (12, 256, 320)).astype(float)
    error = tile_standard_error(white)
    assert error.shape == (4, 5)
    np.testing.assert_allclose(error, np.sqrt(5.0) / 64.0, rtol=0.25)
    # Whole-row noise of variance 1 averages over 64 rows only.
    streaked = white + rng.standard_normal((12, 256, 1))
    expected = np.sqrt(5.0 / 64**2 + 1.0 / 64)
    np.testing.assert_allclose(tile_standard_error(streaked), expected, rtol=0.35)


def test_tile_bias_is_in_standard_errors() -> None:
    raw = np.random.default_rng(4).poisson(5.0, (130, 192)).astype(float)
    error = np.full((2, 3), np.sqrt(5.0) / 64.0)
    assert not tile_bias(raw, raw, error).any()
    shifted = raw.copy()
    shifted[64:128, 128:192] += 3.0 * np.sqrt(5.0) / 64.0
    np.testing.assert_allclose(tile_bias(raw, shifted, error), [[0, 0, 0], [0, 0, 3]], atol=1e-9)
    truth = tile_bias(raw, np.full_like(raw, 5.0), error)
    assert 0.3 < truth.std() < 2.5
    hot = np.zeros(raw.shape, dtype=bool)
    hot[70, 130] = True
    raw[70, 130] = 1e5
    assert abs(tile_bias(raw, np.full_like(raw, 5.0), error, hot)).max() < 5.0
