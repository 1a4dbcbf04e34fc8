"""What is done strip by strip is what would be done in one go."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tem_live.models import network, planes

SHAPES = [(64, 64), (200, 333), (97, 1300)]


@pytest.fixture(params=[1 << 18, 3000], ids=["one strip", "many"], autouse=True)
def strip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "_STRIP", request.param)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("multiple", [1, 4, 48])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (5, 100_000), (47, 3)])
def test_strips_are_all_rows_once(shape: tuple[int, int], multiple: int) -> None:
    found = list(planes.strips(*shape, torch.device("cpu"), multiple))
    assert [row for rows in found for row in range(rows.start, rows.stop)] == list(range(shape[0]))
    assert all(rows.start % multiple == 0 for rows in found)
    assert all(rows.stop <= shape[0] for rows in found)


def test_a_gpu_gets_all_rows_at_once() -> None:
    assert list(planes.strips(9000, 9000, torch.device("cuda"))) == [slice(0, 9000)]


@pytest.mark.parametrize(("mean", "sigma"), [(5.0, 2.0), (-1e4, 2.0), (0.0, 1e-35)])
def test_units_of_the_noise(mean: float, sigma: float) -> None:
    plane = mean + sigma * random(40, 50)
    wanted = (plane - mean) / sigma
    out = torch.empty_like(plane)
    planes.in_units_of(plane, mean, sigma, out=out)
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)
    planes.in_units_of(plane, mean, sigma, out=plane)
    assert torch.equal(plane, out)


FRAMES = {
    "plain": random(96, 160),
    "turned": random(160, 96).T,
    "cut out": random(96, 164)[:, 1:161],
    # Nothing in memory lies on a boundary of 16 bytes.
    "moved": random(96 * 160 + 1)[1:].view(96, 160),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_blocks_are_those_of_pixel_unshuffle(frame: torch.Tensor) -> None:
    wanted = functional.pixel_unshuffle(frame[None, None], network.BLOCK)
    hadamard = network.DoseUNet((16, 24), (1, 1)).hadamard
    blocks, bands = planes.measured_blocks(frame, hadamard)
    for found in (blocks, planes.blocks_of(frame)):
        assert torch.equal(found, wanted)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert found.data_ptr() != frame.data_ptr()
    torch.testing.assert_close(bands, network.block_bands(wanted), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("shape", [(96, 160), (93, 158)])
def test_an_image_is_put_together_and_taken_out_of_the_frame(shape: tuple[int, int]) -> None:
    image, frame = random(96, 160), random(*shape) + 3.0
    wanted = image[: shape[0], : shape[1]]
    left = frame - wanted
    channels_last = planes.blocks_of(image)
    for blocks in (channels_last, channels_last.contiguous()):
        rest = frame.clone()
        assert torch.equal(planes.image_of(blocks, rest), wanted)
        assert torch.equal(rest, left)


@pytest.mark.parametrize("cell_px", [4, 12, 32, 48])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_over_cells(shape: tuple[int, int], cell_px: int) -> None:
    first, second = random(*shape), random(*shape).flip(0)
    sums = planes.cell_sums(planes.line_sums([(first, None), (first, second)], cell_px), cell_px)
    pixels = planes.pixels_in_cells(*shape, cell_px, first.device)
    for found, plane in zip(sums / pixels, (first, first * second), strict=True):
        wanted = functional.avg_pool2d(
            plane[None, None], cell_px, ceil_mode=True, count_include_pad=False
        )[0, 0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_larger_cells_from_smaller_ones() -> None:
    plane = random(200, 333)
    small, large = (planes.cell_sums(planes.line_sums([(plane, None)], px), px) for px in (4, 12))
    torch.testing.assert_close(planes.add_cells(small, 3), large, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell_px", [4, 12, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_enlarging_is_bilinear(shape: tuple[int, int], cell_px: int) -> None:
    height, width = shape
    cells = random(2, -(-height // cell_px), -(-width // cell_px))
    wanted = functional.interpolate(
        cells[None].double(), scale_factor=cell_px, mode="bilinear", align_corners=False
    )[0, :, :height, :width].float()
    enlarged = planes.Enlarged(cells, cell_px, width)
    found = [enlarged.rows(rows) for rows in planes.strips(*shape, cells.device, cell_px)]
    torch.testing.assert_close(torch.cat(found, dim=1), wanted, rtol=1e-5, atol=1e-5)
