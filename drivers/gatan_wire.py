"""The socket protocol of the SerialEMCCD plug-in of DigitalMicrograph, without a socket.

A message is a 32-bit count of its bytes (itself included), then 32-bit whole numbers, 32-bit flags
and doubles, as many as its function has, little-endian; text follows as padded whole numbers. The
first number is the function, in a reply the error code; a negative one comes alone. After the reply
to GetAcquiredImage come the pixels, 16 bits each, in as many parts as it says; each but the last
one is answered with ChunkHandshake. Source: https://github.com/mastcu/SerialEMCCD,
``SocketPathway.cpp`` (layout, table of functions) and ``SEMCCDDefines.h`` (codes).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from tem_live.errors import DisconnectedError, RefusedError


class Function(IntEnum):
    """Functions that are used here."""

    EXECUTE_SCRIPT = 1
    GET_ACQUIRED_IMAGE = 6
    SELECT_CAMERA = 9
    SET_READ_MODE = 10
    GET_NUMBER_OF_CAMERAS = 11
    IS_CAMERA_INSERTED = 12
    GET_DM_VERSION = 14
    CHUNK_HANDSHAKE = 24


PROCESSING = {"raw": 0, "dark": 1, "gain": 2}
"""Unprocessed, dark subtracted, gain normalised."""
READ_MODES = {"linear": 0, "counting": 2, "super-resolution": 3}
"""Of K2 and K3 cameras."""
SCRIPT_FAILED = -999.0
"""What a script returns that DigitalMicrograph could not run."""

_ERRORS = {
    -6: "the message has the wrong length",
    -5: "the message is too long",
    -4: "the message is too short",
    -3: "the reply does not fit",
    -2: "it ran out of memory or into an exception",
    -1: "its plug-in is too old for this function",
    1: "no image came of it",
    2: "the image has another type than 16 bits",
    3: "DigitalMicrograph raised an exception; it may not take this exposure, binning or region",
    22: "a continuous acquisition ended",
    25: "the script was wrong",
    26: "the script failed",
}
_IMAGE_REPLY_BYTES = 24
_SHORT_REPLY_BYTES = 8
_MOST_BYTES = 1 << 30
"""A larger image than this is none: a K3 in super-resolution has 95 MB."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many numbers, flags and doubles a reply has besides its code."""

    numbers: int = 0
    flags: int = 0
    doubles: int = 0

    @property
    def size_bytes(self) -> int:
        """Length of the reply."""
        return 4 + 4 * (1 + self.numbers + self.flags) + 8 * self.doubles


@dataclass(frozen=True, slots=True)
class Reply:
    """What a reply holds."""

    numbers: tuple[int, ...]
    flags: tuple[int, ...]
    doubles: tuple[float, ...]


def message(
    function: Function,
    numbers: tuple[int, ...] = (),
    flags: tuple[int, ...] = (),
    doubles: tuple[float, ...] = (),
    text: str = "",
) -> bytes:
    """A message, ready to send. Raises `RefusedError` for numbers of more than 32 bits."""
    tail = b""
    if text:
        tail = text.encode("latin-1", "replace") + b"\0"
        tail += bytes(-len(tail) % 4)
        numbers = (*numbers, len(tail) // 4)
    try:
        body = struct.pack(
            f"<{1 + len(numbers)}i{len(flags)}i{len(doubles)}d",
            function,
            *numbers,
            *flags,
            *doubles,
        )
    except struct.error:
        raise RefusedError(f"DigitalMicrograph takes no such numbers: {numbers}") from None
    return struct.pack("<i", 4 + len(body) + len(tail)) + body + tail


def reply_bytes(head: bytes, shape: Shape) -> int:
    """How long the reply is that begins with these 4 bytes. Raises `DisconnectedError`."""
    (size,) = struct.unpack("<i", head)
    if size not in (shape.size_bytes, _SHORT_REPLY_BYTES):
        raise _broken(f"a reply of {size} bytes where {shape.size_bytes} belong")
    return int(size)


def reply(data: bytes, shape: Shape, what: str) -> Reply:
    """Take a whole reply apart.

    Parameters
    ----------
    data : bytes
        The reply, its length included.
    shape : Shape
        What it should hold.
    what : str
        What was asked for, for the error.

    Raises
    ------
    RefusedError
        Its code is not 0.
    DisconnectedError
        It is no reply to this.
    """
    if len(data) < _SHORT_REPLY_BYTES or len(data) != reply_bytes(data[:4], shape):
        raise _broken(f"{len(data)} bytes as the reply to {what}")
    (code,) = struct.unpack_from("<i", data, 4)
    if code != 0:
        why = _ERRORS.get(code, f"error {code}")
        raise RefusedError(f"DigitalMicrograph refuses {what}: {why}")
    if len(data) != shape.size_bytes:
        raise _broken(f"{len(data)} bytes as the reply to {what}")
    values = struct.unpack_from(f"<{shape.numbers}i{shape.flags}i{shape.doubles}d", data, 8)
    middle = shape.numbers + shape.flags
    return Reply(values[: shape.numbers], values[shape.numbers : middle], values[middle:])


def image_request(
    shape: tuple[int, int],
    origin: tuple[int, int],
    binning: int,
    exposure_s: float,
    processing: str,
) -> bytes:
    """The message that asks for one exposure.

    Parameters
    ----------
    shape, origin : tuple of int
        (height, width) and (top, left) of the region in binned pixels.
    binning : int
        Side of the square of sensor pixels that become one.
    exposure_s : float
        In seconds.
    processing : str
        A key of `PROCESSING`.
    """
    (height, width), (top, left) = shape, origin
    shutter = delay = halved = 0
    as_set_in_dm = -1
    numbers = (
        *(height * width, width, height, PROCESSING[processing], binning),
        *(top, left, top + height, left + width),
        *(shutter, delay, halved, as_set_in_dm),
    )
    return message(Function.GET_ACQUIRED_IMAGE, numbers, doubles=(exposure_s, 0.0))


HANDSHAKE = message(Function.CHUNK_HANDSHAKE)


class ImageReply:
    """The reply to `image_request`, put together as it comes.

    Parameters
    ----------
    shape : tuple of int
        (height, width) that was asked for.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._head = bytearray(4)
        self._have = 0
        self._pixels: bytearray | None = None
        self._chunk_bytes = 0

    @property
    def begun(self) -> bool:
        """Whether anything has come."""
        return self._have > 0 or self._pixels is not None

    @property
    def done(self) -> bool:
        """Whether all has come."""
        return self._pixels is not None and self._have == len(self._pixels)

    def room(self) -> memoryview:
        """Where the next bytes belong; no more may be read than fit."""
        if self._pixels is None:
            return memoryview(self._head)[self._have :]
        end = min(len(self._pixels), (self._have // self._chunk_bytes + 1) * self._chunk_bytes)
        return memoryview(self._pixels)[self._have : end]

    def took(self, count: int) -> bool:
        """Say how many bytes have been read into `room`; whether a `HANDSHAKE` is due.

        Raises
        ------
        RefusedError
            DigitalMicrograph did not take the image.
        DisconnectedError
            What came is no image, or another one than was asked for.
        """
        self._have += count
        if self._pixels is None:
            self._read_head()
            return False
        return not self.done and self._have % self._chunk_bytes == 0

    def pixels(self) -> npt.NDArray[np.uint16]:
        """The image, (height, width), once it is `done`."""
        assert self._pixels is not None
        return np.frombuffer(self._pixels, "<u2").reshape(self._shape)

    def _read_head(self) -> None:
        if self._have < len(self._head):
            return
        if self._have == 4:
            size = reply_bytes(bytes(self._head), Shape(numbers=4))
            # Not in place: a room in it may still be held.
            self._head = self._head + bytes(size - 4)
            return
        count, width, height, chunks = reply(
            bytes(self._head), Shape(numbers=4), "the image"
        ).numbers
        if (height, width) != self._shape or count != height * width:
            raise DisconnectedError(
                f"DigitalMicrograph sends {height}x{width} ({count} pixels) where "
                f"{self._shape[0]}x{self._shape[1]} was set; was it changed by another program?"
            )
        size = 2 * count
        if not 0 < size <= _MOST_BYTES or not 0 < chunks <= size:
            raise _broken(f"an image of {count} pixels in {chunks} parts")
        self._chunk_bytes = -(-size // chunks)
        self._pixels = bytearray(size)
        self._have = 0


def _broken(what: str) -> DisconnectedError:
    return DisconnectedError(f"DigitalMicrograph sent {what}; reconnect to it")
