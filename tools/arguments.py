"""Numbers on the command lines of these scripts: argparse says in one line what is wrong."""

from __future__ import annotations

import argparse
import math

__all__ = ["count", "counts", "positive", "sides"]


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return number


def count(text: str) -> int:
    """A whole number above 0."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return number


def counts(text: str) -> list[int]:
    """Whole numbers above 0, separated by commas."""
    return [count(part) for part in text.split(",")]


def sides(text: str) -> list[int]:
    """Sides of frames in pixels, separated by commas."""
    found = counts(text)
    if min(found) < 64:
        raise argparse.ArgumentTypeError(f"{text!r}: frames have 64 pixels a side or more")
    return found
