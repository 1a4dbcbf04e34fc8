"""The plane around a frame, against plain transforms of it."""

from __future__ import annotations

import pytest
import torch

from tem_live.models import larger_plane
from tem_live.models.larger_plane import LargerPlane

WIDE = 150


def columns(which: str) -> torch.Tensor:
    # With the first and the last of them, which have no other half.
    return torch.arange(0, WIDE // 2 + 1, 15 if which == "few" else 1)


@pytest.fixture(params=["few", "many", "sums of many"])
def plane(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[LargerPlane, torch.Tensor]:
    monkeypatch.setattr(larger_plane, "_FEW", 1000 if request.param == "sums of many" else 20)
    which = columns("few" if request.param == "few" else "many")
    return LargerPlane((61, 100), (96, WIDE), which), which


def test_coefficients_are_those_of_the_frame_with_zeros_around_it(plane):
    of, which = plane
    frame = torch.randn(61, 100, generator=torch.Generator().manual_seed(1))
    wanted = torch.fft.rfft2(frame, s=(96, WIDE))[:, which]
    torch.testing.assert_close(of.coefficients(frame), wanted, atol=1e-3, rtol=1e-4)


def test_waves_are_drawn_where_the_frame_is(plane):
    of, which = plane
    drawn = _drawn(coefficients(len(which)), which)
    torch.testing.assert_close(of.draw(coefficients(len(which))), drawn[:61, :100])


def test_what_is_drawn_is_seen_with_zeros_around_it(plane):
    of, which = plane
    drawn = _drawn(coefficients(len(which)), which)[:61, :100]
    wanted = torch.fft.rfft2(drawn, s=(96, WIDE))[:, which]
    torch.testing.assert_close(of.seen(coefficients(len(which))), wanted, atol=1e-3, rtol=1e-4)


def test_each_column_counts_for_itself_and_its_other_half(plane):
    of, which = plane
    made = coefficients(len(which))
    whole = torch.zeros((96, WIDE // 2 + 1), dtype=torch.complex64)
    whole[:, which] = torch.fft.ifft(made, dim=0)
    # Parseval, where the rows of the first and of the last column are real numbers.
    power = torch.fft.irfft(whole, n=WIDE, dim=1).square().sum() * WIDE
    rows = torch.fft.ifft(made, dim=0)
    real = (of.weight == 1.0)[None]
    rows = torch.where(real, rows.real.to(rows.dtype), rows)
    torch.testing.assert_close((rows.abs().square() @ of.weight).sum(), power)


def coefficients(count: int) -> torch.Tensor:
    return torch.randn(96, count, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))


def _drawn(made: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    lines = torch.zeros((96, WIDE // 2 + 1), dtype=torch.complex64)
    lines[:, which] = torch.fft.ifft(made, dim=0)
    return torch.fft.irfft(lines, n=WIDE, dim=1)
