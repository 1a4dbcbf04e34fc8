"""Tiles: all of one size, aligned, and with their halos wherever there is a neighbour."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tem_live.models.tiles import cuts, grid


@given(
    length=st.integers(1, 400), halo=st.integers(0, 8), kept=st.integers(1, 30),
    multiple=st.sampled_from([1, 4, 8]),
)  # fmt: skip
def test_cuts_cover_an_axis_with_tiles_of_one_size(length, halo, kept, multiple):
    length, halo, kept = length * multiple, halo * multiple, kept * multiple
    tile = 2 * halo + kept
    found = cuts(length, tile, halo, multiple)
    sizes = {cut.stop - cut.start for cut in found}
    assert len(sizes) == 1
    assert max(sizes) <= tile
    assert (found[0].first, found[-1].last) == (0, length)
    for cut in found:
        assert 0 <= cut.start <= cut.first < cut.last <= cut.stop <= length
        assert cut.start % multiple == cut.stop % multiple == 0
        assert cut.start == 0 or cut.first - cut.start >= halo
        assert cut.stop == length or cut.stop - cut.last >= halo
    assert all(one.last == other.first for one, other in pairwise(found))


@given(
    height=st.integers(1, 300), width=st.integers(1, 300), halo=st.integers(0, 4),
    side=st.integers(40, 100), multiple=st.sampled_from([1, 4, 8]),
)  # fmt: skip
def test_a_grid_covers_a_frame_with_tiles_that_are_small_enough(
    height, width, halo, side, multiple
):
    height, width, halo = height * multiple, width * multiple, halo * multiple
    most = (side * multiple) ** 2
    rows, columns = grid(height, width, most, halo, multiple)
    assert rows[0].stop * columns[0].stop <= most
    assert len(rows) == len(columns) == 1 or height * width > most
    for length, found in ((height, rows), (width, columns)):
        assert {cut.stop - cut.start for cut in found} == {found[0].stop}
        assert (found[0].first, found[-1].last) == (0, length)
        assert all(one.last == other.first for one, other in pairwise(found))
        for cut in found:
            assert 0 <= cut.start <= cut.first < cut.last <= cut.stop <= length
            assert cut.start % multiple == 0
            assert cut.start == 0 or cut.first - cut.start >= halo
            assert cut.stop == length or cut.stop - cut.last >= halo


@pytest.mark.parametrize(
    ("side", "counts", "tile"),
    [
        (2976, (1, 1), (2976, 2976)),
        # One cut is half of the overlap of a cut along each axis.
        (4096, (2, 1), (2144, 4096)),
        (8192, (3, 3), (2880, 2880)),
    ],
)
def test_tiles_of_large_frames(side, counts, tile):
    rows, columns = grid(side // 4, side // 4, (2976 // 4) ** 2, 96 // 4, 8)
    assert (len(rows), len(columns)) == counts
    assert (4 * rows[0].stop, 4 * columns[0].stop) == tile


def test_what_cannot_be_small_enough_is_as_small_as_may_be():
    rows, columns = grid(64, 640, 100, 8, 8)
    assert rows[0].stop * columns[0].stop < 64 * 640 / 8
