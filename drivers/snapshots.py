"""Frames of cameras that hand one image over for each request, in a call that waits for it.

Each image was asked for, so none is lost between two of them, and there is no device's number that
could say otherwise. The next exposure is asked for when the last image was taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import DisconnectedError

Image = npt.NDArray[Any]

DTYPE: np.dtype[Any] = np.dtype(np.int32)
"""Takes what cameras send (8 and 16 bits with and without sign, signed 32) without a change."""


class Snapshots:
    """A series of exposures, each asked for on another thread.

    Parameters
    ----------
    expose : callable
        Asks for one image.
    """

    def __init__(self, expose: Callable[[], Future[Image]]) -> None:
        self._expose = expose
        self._image: Future[Image] | None = None
        self._to_ask = 0.0
        self._began: float | None = None

    def start(self, frames: int | None) -> None:
        """Ask for the first image of so many."""
        self._to_ask = math.inf if frames is None else frames
        self._image = None
        if self._to_ask >= 1:
            self._ask()

    def stop(self) -> None:
        """Ask for no more. One that was begun ends by itself, and nobody takes it."""
        if self._image is not None:
            self._image.cancel()
        self._image = self._began = None
        self._to_ask = 0

    def next(self, wait_s: float) -> Image | None:
        """The image that was asked for; None if it is not there within ``wait_s`` seconds.

        Raises
        ------
        Exception
            What went wrong with the exposure. The next call begins another one in its place.
        """
        if self._image is None and self._to_ask < 1:
            return None
        image = self._image or self._ask()
        wait((image,), wait_s)
        if not image.done():
            if self._began is None and image.running():
                self._began = time.monotonic()
            return None
        self._image = None
        try:
            taken = image.result()
        except Exception:
            # Another one is asked for only when somebody asks again.
            self._to_ask += 1
            raise
        if self._to_ask >= 1:
            self._ask()
        return taken

    def is_overdue(self, longest_s: float) -> bool:
        """Whether an exposure has been going on for longer than ``longest_s`` seconds.

        One that waits for the end of an earlier one does not count as going on.
        """
        return self._began is not None and time.monotonic() - self._began > longest_s

    def _ask(self) -> Future[Image]:
        self._to_ask -= 1
        self._began = None
        self._image = self._expose()
        return self._image


def copy_image(image: Image, buffer: Image, sender: str) -> None:
    """Copy an image into the buffer of a frame.

    Parameters
    ----------
    image : ndarray
        What was sent.
    buffer : ndarray (H, W)
        Where it shall be.
    sender : str
        What messages call who sent it.

    Raises
    ------
    DisconnectedError
        It has another shape or does not fit the buffer's type.
    """
    if image.shape != buffer.shape:
        raise DisconnectedError(
            f"{sender} sent an image of {'x'.join(map(str, image.shape))} where "
            f"{'x'.join(map(str, buffer.shape))} was set; was it changed by another program?"
        )
    if not np.can_cast(image.dtype, buffer.dtype):
        raise DisconnectedError(
            f"{sender} sent {image.dtype} pixels, which do not fit {buffer.dtype}"
        )
    np.copyto(buffer, image)
