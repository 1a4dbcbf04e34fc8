from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tem_live.drivers.sim_readout import read_out
from tem_live.drivers.sim_windows import Kept, Plane, Window, bands, cut, shifted

PLANE: Plane = np.random.default_rng(1).random((40, 50), np.float32)
WINDOWS = [
    Window(0, 0, 40, 50),
    Window(5, 7, 20, 30),
    Window(-3, -4, 46, 58),
    Window(95, -130, 90, 170),
    Window(39, 49, 1, 1),
]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_is_cut_out_of_a_plane_that_repeats(window: Window) -> None:
    rows = (window.top + np.arange(window.height)) % 40
    columns = (window.left + np.arange(window.width)) % 50
    part = cut(PLANE, window)
    np.testing.assert_array_equal(part, PLANE[np.ix_(rows, columns)])
    part[:] = 7
    assert PLANE.max() < 7


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("dy", "dx"), [(0, 0), (2, -3), (0.25, 0), (0, -0.4), (1.7, 60.3), (-81.25, -0.001)]
)
def test_a_shift_is_bilinear(window: Window, dy: float, dx: float) -> None:
    y, x = np.meshgrid(
        window.top + np.arange(window.height) - dy,
        window.left + np.arange(window.width) - dx,
        indexing="ij",
    )
    expected = ndimage.map_coordinates(PLANE, [y, x], order=1, mode="grid-wrap")
    before = PLANE.copy()
    np.testing.assert_allclose(shifted(PLANE, window, dy, dx), expected, atol=2e-5)
    np.testing.assert_array_equal(PLANE, before)


def test_a_shift_over_several_bands_has_no_seams() -> None:
    plane = np.random.default_rng(2).random((300, 400), np.float32)
    window = Window(0, 0, 300, 400)
    assert len(list(bands(300, 400))) > 2
    expected = ndimage.shift(plane, (0.3, 0.6), order=1, mode="grid-wrap")
    np.testing.assert_allclose(shifted(plane, window, 0.3, 0.6), expected, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (512, 512), (513, 77), (3, 100_000)])
def test_bands_are_all_rows_once(height: int, width: int) -> None:
    rows = np.concatenate([np.arange(height)[band] for band in bands(height, width)])
    np.testing.assert_array_equal(rows, np.arange(height))


def test_what_is_asked_for_again_is_not_made_again() -> None:
    kept, made = Kept(), []

    def make() -> Plane:
        made.append(1)
        return np.full((2, 2), len(made), np.float32)

    assert kept.get("a", make)[0, 0] == kept.get("a", make)[0, 0] == 1
    assert kept.get("b", make)[0, 0] == 2
    assert kept.get("a", make)[0, 0] == 3
    with pytest.raises(ValueError, match="read-only"):
        kept.get("a", make)[0, 0] = 0


def test_read_out_rounds_and_clips() -> None:
    rng = np.random.Generator(np.random.SFC64(1))
    signal = np.array([[-50.0, 0.4, 0.6, 10.49, 65434.6, 1e6]], np.float32)
    out = np.empty(signal.shape, np.uint16)
    read_out(signal.copy(), 0.0, 0.0, 0.0, rng, out)
    assert out.tolist() == [[0, 0, 1, 10, 65435, 65535]]
    read_out(signal.copy(), 100.0, 0.0, 0.0, rng, out)
    assert out.tolist() == [[50, 100, 101, 110, 65535, 65535]]


def test_read_out_adds_white_noise_and_that_of_rows() -> None:
    rng = np.random.Generator(np.random.SFC64(1))
    out = np.empty((700, 300), np.uint16)
    read_out(np.full(out.shape, 200.0, np.float32), 1000.0, 30.0, 0.0, rng, out)
    assert out.mean() == pytest.approx(1200, abs=5 * 30 / np.sqrt(out.size))
    assert out.var() == pytest.approx(900 + 1 / 12, rel=5 * np.sqrt(2 / out.size))
    flat = out - out.mean()
    for axis in (0, 1):
        assert abs((flat * np.roll(flat, 1, axis)).mean() / flat.var()) < 5 / np.sqrt(out.size)
    read_out(np.full(out.shape, 200.0, np.float32), 1000.0, 0.0, 30.0, rng, out)
    assert np.ptp(out, axis=1).max() == 0
    assert out[:, 0].var() == pytest.approx(900, rel=5 * np.sqrt(2 / 700))
