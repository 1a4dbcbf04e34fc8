"""Tiles: all of one size, aligned, and with their halos wherever there is a neighbour."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tem_live.models.tiles import cuts


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


def test_a_frame_of_8192_px_needs_nine_tiles():
    found = cuts(8192 // 4, 2880 // 4, 96 // 4, 8)
    kept = [(4 * cut.first, 4 * cut.last) for cut in found]
    assert kept == [(0, 2784), (2784, 5408), (5408, 8192)]
