"""Protection of the detector: how many electrons a second its pixels take, and when it is too many.

Looked at are means over blocks of `BLOCK_PX` pixels: a focused beam harms a small part of a
detector while the mean of the frame is low, and single pixels are X-rays and noise. The rate is
that of an unbinned pixel, as limits of detectors are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tem_live.coincidence import Counting

BLOCK_PX = 16


class DetectorGuard:
    """Compares the dose rate on the detector with its limits.

    Parameters
    ----------
    max_rate_e_per_px_s : float or None
        Above it the beam is to go off.
    counting_limit_e_per_px_s : float or None
        Above it a counting camera loses electrons by coincidence.
    on_over : callable of str
        Called with what is wrong each time that the first limit is exceeded.
    on_coincidence : callable of str
        Called once a run for the second, or for a loss over the third.
    counting : Counting or None
        How the camera counts, where that is known.
    most_loss : float
        Part of the electrons that may be lost by coincidence.

    Attributes
    ----------
    loss : float or None
        Part of the electrons that the brightest block of the last frame lost; None where it is not
        known how the camera counts, or no frame was seen yet.
    """

    def __init__(
        self,
        max_rate_e_per_px_s: float | None,
        counting_limit_e_per_px_s: float | None,
        on_over: Callable[[str], None],
        on_coincidence: Callable[[str], None],
        counting: Counting | None = None,
        most_loss: float = 0.05,
    ) -> None:
        self.counting = counting
        self.loss: float | None = None
        self._most_loss = most_loss
        self.max_rate_e_per_px_s = max_rate_e_per_px_s
        self.counting_limit_e_per_px_s = counting_limit_e_per_px_s
        self._on_over = on_over
        self._on_coincidence = on_coincidence
        self._told = False

    def run_begins(self) -> None:
        """The user may be told of coincidence loss anew."""
        self._told = False

    def why_not(self, rate_e_per_px_s: float | None) -> str | None:
        """Why the beam must not come on at this rate of an unbinned pixel; None where it may."""
        limit = self.max_rate_e_per_px_s
        if limit is None or rate_e_per_px_s is None or rate_e_per_px_s <= limit:
            return None
        return (
            f"{rate_e_per_px_s:.3g} e-/px/s are more than the {limit:g} that the detector may take "
            "(dose.max_rate_e_per_px_s); lower the dose rate"
        )

    def look(self, electrons: Any, exposure_s: float, binning: int) -> None:
        """Look at one calibrated frame.

        Parameters
        ----------
        electrons : ndarray (H, W), NumPy or CuPy
            Electrons per pixel as binned.
        exposure_s : float
            Exposure in seconds.
        binning : int
            Side of the square of pixels that are summed into one.
        """
        limits = (self.max_rate_e_per_px_s, self.counting_limit_e_per_px_s, self.counting)
        if limits == (None, None, None) or exposure_s <= 0:
            return
        rate = brightest_block(electrons) / (exposure_s * binning**2)
        if self.counting is not None:
            incident = self.counting.incident(rate)
            self.loss = self.counting.loss(incident)
        over = self.why_not(rate)
        if over is not None:
            self._on_over(over)
            return
        counting = self.counting_limit_e_per_px_s
        if counting is not None and rate > counting and not self._told:
            self._told = True
            self._on_coincidence(
                f"{rate:.3g} e-/px/s are more than the {counting:g} that the camera counts well: "
                "electrons that coincide are counted as one; lower the dose rate"
            )
        elif self.loss is not None and self.loss > self._most_loss and not self._told:
            self._told = True
            self._on_coincidence(
                f"about {self.loss:.0%} of the electrons are not counted where {rate:.3g} e-/px/s "
                "are: those that coincide are counted as one; lower the dose rate"
            )


def brightest_block(plane: Any, side: int = BLOCK_PX) -> float:
    """Highest mean of the blocks of ``side`` x ``side`` pixels that fit into a plane (H, W)."""
    height, width = plane.shape
    rows, columns = min(side, height), min(side, width)
    down, across = height // rows, width // columns
    blocks = plane[: down * rows, : across * columns].reshape(down, rows, across, columns)
    return float(blocks.mean(axis=(1, 3)).max())
