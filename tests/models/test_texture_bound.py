"""The error that no restorer can take away is that of the texture, and of nothing else."""

import numpy as np
import pytest

from tools import texture_bound

RANDOM = np.random.default_rng(0)


def test_white_texture_leaves_its_own_variance() -> None:
    # Of power far under the noise nearly all is left, of power far over it no more than the noise.
    everywhere = np.ones((256, 256), bool)
    texture = RANDOM.standard_normal((256, 256))
    faint, share = texture_bound.least_error(5.0 + 0.1 * texture, 5.0, everywhere)
    assert share == 1.0
    assert faint == pytest.approx(0.01, rel=0.05)
    strong, _ = texture_bound.least_error(5.0 + 1e4 * texture, 5.0, everywhere)
    assert strong == pytest.approx(5.0, rel=0.05)


def test_particles_and_levels_are_no_texture() -> None:
    y, x = np.mgrid[0:256, 0:256]
    truth = 5.0 + 0.0005 * x - 2.0 * (np.hypot(y - 128, x - 128) < 20)
    texture = 0.05 * RANDOM.standard_normal(truth.shape)
    film = texture_bound.film_of(truth + texture)
    assert not film[110:146, 120:136].any()
    assert film[:80].mean() > 0.95
    least, share = texture_bound.least_error(truth + texture, 5.0, film)
    assert least == pytest.approx(share * 0.05**2, rel=0.1)
    assert texture_bound.least_error(truth, 5.0, np.zeros_like(film)) == (0.0, 0.0)


def test_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert texture_bound.main(["--dose", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("20 e-/px" in line and "dose gain at most" in line for line in lines)
    with pytest.raises(SystemExit):
        texture_bound.main(["--dose", "0"])
