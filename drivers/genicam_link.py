"""What the GenICam driver needs of a connection, whatever library makes it.

Two libraries do: `genicam_gentl` goes through a GenTL producer (the ``.cti`` file that comes with a
camera), `genicam_viva` speaks GigE Vision and USB3 Vision itself. Features have the names of the
GenICam Standard Features Naming Convention (SFNC).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tem_live.errors import DisconnectedError

Value = str | int | float | bool

FORMATS: dict[str, int] = {
    "Mono16": 16,
    "Mono14": 14,
    "Mono12": 12,
    "Mono12p": 12,
    "Mono12Packed": 12,
    "Mono10": 10,
    "Mono10p": 10,
    "Mono10Packed": 10,
    "Mono8": 8,
}
"""Pixel formats that are read here (PFNC names) and their bits, the deepest first."""

_SHORT = 0xFFFF
"""Last block number of GigE Vision 1.x, whose numbers have 16 bits and skip 0."""


@dataclass(frozen=True, slots=True)
class Block:
    """One image as it came.

    Attributes
    ----------
    number : int
        As the camera counts.
    pixel_format : str
        PFNC name.
    pixels : ndarray
        (height, width), uint8 or uint16. Good until the next call of the link.
    device_time_s : float or None
        The camera's clock in seconds.
    raw : dict
        What else is known, JSON-able.
    """

    number: int
    pixel_format: str
    pixels: npt.NDArray[Any]
    device_time_s: float | None = None
    raw: dict[str, Any] = field(default_factory=dict)


class Link(Protocol):
    """An open connection to one camera. Not thread-safe.

    What the camera does not take is a `RefusedError`, a camera that is gone a `DisconnectedError`.
    """

    @property
    def name(self) -> str:
        """Vendor and model."""

    def has(self, feature: str) -> bool:
        """Whether the camera has the feature and it is available now."""

    def writable(self, feature: str) -> bool:
        """Whether it can be set now."""

    def get(self, feature: str) -> Value:
        """Its value, read from the camera."""

    def set(self, feature: str, value: Value) -> None:
        """Set it."""

    def limits(self, feature: str) -> tuple[float, float, float]:
        """Lowest value, highest value and increment (0 where there is none) as they are now."""

    def entries(self, feature: str) -> list[str]:
        """What an enumeration takes now."""

    def start(self) -> None:
        """Begin to acquire."""

    def stop(self) -> None:
        """End it; idempotent, never raises for a camera that is gone."""

    def fetch(self, wait_s: float) -> Block | None:
        """The next complete image, or None if there is none within about ``wait_s``."""

    def check(self) -> None:
        """Raise `DisconnectedError` if the camera is known to be gone or taken by another."""

    def probe(self) -> None:
        """Ask a silent camera for a sign of life, if there is a short way, and `check`."""

    def close(self) -> None:
        """Disconnect; idempotent, never raises for a camera that is gone."""


class Numbers:
    """Turns a camera's block numbers into frame numbers from 0, so that what is lost shows.

    Cameras begin at 0, at 1, or go on from the last series, so the first block that arrives is
    frame 0: what is lost before it does not show. Numbers of 16 bits go from 65535 to 1.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._last = 0
        self._turns = 0

    def frame(self, block: int) -> int:
        """Number of the frame; raises `DisconnectedError` when the blocks do not go up."""
        if self._first is None:
            self._first = self._last = block
            return 0
        number = block + self._turns
        if number <= self._last and self._first <= _SHORT and block <= _SHORT:
            turned = number + _SHORT
            # Nobody loses half a turn: a small step back is a repeated block.
            if turned - self._last <= _SHORT // 2:
                self._turns += _SHORT
                number = turned
        if number <= self._last:
            raise DisconnectedError(
                f"the camera sent block {block} after block {self._last - self._turns}; "
                "was it started again by another program?"
            )
        self._last = number
        return number - self._first


def plane(data: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """An image without what pads its lines.

    Parameters
    ----------
    data : ndarray
        The pixels one after another, lines padded or not.
    height, width : int
        In pixels.

    Raises
    ------
    DisconnectedError
        There are too few or too many of them.
    """
    lines, left = divmod(data.size, height) if height > 0 else (0, 1)
    if left or lines < width or width < 1 or data.dtype not in (np.uint8, np.uint16):
        raise DisconnectedError(
            f"the camera sent {data.size} values of {data.dtype} for an image of {height}x{width}; "
            "reconnect to it"
        )
    return data.reshape(height, lines)[:, :width]
