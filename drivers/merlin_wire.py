"""What a Merlin says on its two ports, taken apart without a socket.

Every message is ``MPX,`` and ten digits that count the bytes after them, then a comma and the
body. Commands, replies and acquisition headers are text; a frame is a text header, padded to the
length that the header itself names, and big-endian pixels. Sources: the commands as LiberTEM-live
(``detectors/merlin/control.py``), instamatic (``camera_merlin.py``) and areaDetector's ADMerlin
(``medipix_low.h``) send them; the frame header MQ1 as LiberTEM (``io/dataset/mib.py``) reads it.
Whatever does not fit is a `DisconnectedError` that says what was wrong: after it no byte of the
stream can be trusted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tem_live.drivers import merlin_raw
from tem_live.errors import DisconnectedError

PREFIX_BYTES = 14
"""``MPX,`` and ten digits."""
MOST_BYTES = 1 << 28
"""A longer message than this is none: 8 x 8 chips at 32 bits are 16 MiB."""
STATUS = {
    "1": "it is busy",
    "2": "it does not know that command",
    "3": "the value is out of range",
    "4": "it is busy",
}
"""Status with which a reply ends; 0 is success (LiberTEM-live, ADMerlin ``medipix_low.h``)."""

_PREFIX = re.compile(rb"MPX,(\d{10})")
_ACQUISITION = re.compile(rb"MPX,\d{10},HDR,")
_PIXELS: dict[str, np.dtype[Any]] = {
    "U08": np.dtype(">u1"),
    "U16": np.dtype(">u2"),
    "U32": np.dtype(">u4"),
}
_HEADER_BYTES = range(64, 65536)
_WORDS = 14
"""How many words of the header are read from its front."""
_WORDS_WITHIN = 256
"""They are within so many bytes: 115 of the 384 in a header of one chip."""
_MOST_PIXELS_A_SIDE = 16384


class RawFrame(NamedTuple):
    """A frame of Merlin's raw mode; for the fields see `merlin_raw.geometry`."""

    bits: int
    height: int
    width: int
    quad: bool


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of one frame.

    Attributes
    ----------
    sequence : int
        Number of the frame within the acquisition, from 1.
    header_bytes : int
        Length of the header; the pixels begin there. 384 for one chip, 768 for four.
    shape : tuple of int
        (height, width) in pixels.
    dtype : numpy dtype
        Of the pixels, big-endian but for raw frames.
    raw_frame : RawFrame or None
        Where the pixels are still to be put in order.
    exposure_s : float
        Shutter time in seconds.
    time_s : float or None
        When the frame was taken, by Merlin's clock, in seconds since 1970; None if unreadable.
    raw : dict
        ``chips``, ``layout``, ``timestamp``, ``counter``, ``gain_mode`` and ``counter_depth``,
        as text.
    """

    sequence: int
    header_bytes: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    raw_frame: RawFrame | None
    exposure_s: float
    time_s: float | None
    raw: dict[str, str]


class Messages:
    """Cuts a stream of bytes into messages, in whatever pieces it comes.

    What was left in the line before the acquisition (an earlier run, garbage) is thrown away: the
    first message is an acquisition header.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._in_step = False

    @property
    def in_a_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._in_step and bool(self._bytes)

    def feed(self, piece: bytes | memoryview) -> None:
        """Append what has arrived."""
        self._bytes += piece

    def next(self) -> bytes | None:
        """Body of the next message, or None until more has arrived. Raises `DisconnectedError`."""
        if not self._in_step and not self._find_acquisition():
            return None
        if len(self._bytes) < PREFIX_BYTES:
            return None
        end = PREFIX_BYTES + body_bytes(bytes(self._bytes[:PREFIX_BYTES]))
        if len(self._bytes) < end:
            return None
        with memoryview(self._bytes) as view:
            body = bytes(view[PREFIX_BYTES:end])
        del self._bytes[:end]
        if not body.startswith(b","):
            raise _broken("a message without a body")
        return body[1:]

    def _find_acquisition(self) -> bool:
        found = _ACQUISITION.search(self._bytes)
        if found is None:
            # The beginning of one may be at the end.
            del self._bytes[: max(0, len(self._bytes) - PREFIX_BYTES - 4)]
            return False
        del self._bytes[: found.start()]
        self._in_step = True
        return True


def message(*words: str) -> bytes:
    """A command, ``message("SET", "COUNTERDEPTH", "12")``, ready to send."""
    body = "," + ",".join(words)
    return f"MPX,{len(body):010d}{body}".encode("ascii")


def body_bytes(prefix: bytes) -> int:
    """How many bytes follow a prefix, the comma that separates them included."""
    found = _PREFIX.fullmatch(prefix)
    if found is None:
        raise _broken(f"{prefix!r} where a message should begin")
    length = int(found.group(1))
    if not 1 < length <= MOST_BYTES:
        raise _broken(f"a message of {length} bytes")
    return length


def reply_is_whole(body: bytes) -> bool:
    """Whether a reply has its status, one digit.

    Merlin counts the comma before the body, LiberTEM-live's simulator does not: where a reply ends
    in a comma, its status is still to come.
    """
    return not body.endswith(b",")


def reply(body: bytes, kind: str, name: str) -> tuple[str, str]:
    """Take the reply to a command apart.

    Parameters
    ----------
    body : bytes
        ``,GET,name,value,status`` or ``,SET,name,status`` or ``,CMD,name,status``.
    kind, name : str
        Of the command that it answers.

    Returns
    -------
    tuple of str
        The value ("" but for GET), and the status as in `STATUS`.
    """
    words = body.decode("latin-1").strip().split(",")
    expected = 5 if kind == "GET" else 4
    if len(words) < expected or [word.upper() for word in words[1:3]] != [kind, name.upper()]:
        raise _broken(f"{body[:60]!r} as the reply to {kind},{name}")
    return ",".join(words[3:-1]), words[-1]


def is_frame(body: bytes) -> bool:
    """Whether a message of the data port is a frame; else it is an acquisition header."""
    if body.startswith(b"HDR"):
        return False
    if not body.startswith(b"MQ1,"):
        raise _broken(f"{body[:20]!r} where a frame should be")
    return True


def frame_header(body: bytes) -> FrameHeader:
    """Take the header of a frame apart.

    Raises
    ------
    DisconnectedError
        A field is missing or makes no sense, the pixels have a type that is not read here, or the
        message is not as long as its own header says.
    """
    try:
        text = [word.decode("ascii").strip() for word in body[:_WORDS_WITHIN].split(b",")[:_WORDS]]
        sequence, header_bytes, width, height = (_number(text[i]) for i in (1, 2, 4, 5))
        kind, exposure_s = text[6].upper(), float(text[10])
    except (IndexError, ValueError):
        raise _broken(f"a frame with the header {body[:80]!r}") from None
    sides = range(1, _MOST_PIXELS_A_SIDE + 1)
    if header_bytes not in _HEADER_BYTES or not 0 <= exposure_s < 1e9:
        raise _broken(f"a frame with the header {body[:80]!r}")
    if sequence < 1 or width not in sides or height not in sides:
        raise _broken(f"frame {sequence} of {height}x{width} pixels")
    depth = _last(body[:header_bytes])
    raw = None
    if kind == "R64":
        quad = text[3] == "04" and text[7].startswith("2x2")
        raw = RawFrame(int(depth or 0), height, width, quad)
        try:
            shape, size = merlin_raw.geometry(*raw)
        except ValueError as error:
            raise _broken(f"a raw frame that is not read here ({error})") from None
        dtype = merlin_raw.DTYPES[raw.bits]
    elif kind in _PIXELS:
        dtype, shape = _PIXELS[kind], (height, width)
        size = height * width * dtype.itemsize
    else:
        raise _broken(f"a frame with the header {body[:80]!r}")
    if len(body) != header_bytes + size:
        raise _broken(
            f"{len(body)} bytes for a frame of {height}x{width} {kind} after {header_bytes}"
        )
    # The length fits where the next message has filled up what was missing of this one.
    next_at = body.find(b",MQ1,")
    if next_at >= 0 and _PREFIX.fullmatch(body[max(0, next_at - PREFIX_BYTES) : next_at]):
        raise _broken(f"frame {sequence} torn, and the next one within it")
    return FrameHeader(
        sequence=sequence,
        header_bytes=header_bytes,
        shape=shape,
        dtype=dtype,
        raw_frame=raw,
        exposure_s=exposure_s,
        time_s=_seconds(text[9]),
        raw={
            "chips": text[3],
            "layout": text[7],
            "timestamp": text[9],
            "counter": _word(text, 11),
            "gain_mode": _word(text, 13),
            "counter_depth": depth,
        },
    )


def pixels(header: FrameHeader, body: bytes) -> npt.NDArray[Any]:
    """The pixels of a frame, (height, width), in their order."""
    if header.raw_frame is not None:
        return merlin_raw.in_order(memoryview(body)[header.header_bytes :], *header.raw_frame)
    flat: npt.NDArray[Any] = np.frombuffer(body, header.dtype, offset=header.header_bytes)
    return flat.reshape(header.shape)


def _number(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 12:
        raise ValueError(text)
    return int(text)


def _seconds(text: str) -> float | None:
    # "2020-05-18 16:51:49.971626", the clock of Merlin's computer, without a zone.
    try:
        return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def _word(words: list[str], index: int) -> str:
    return words[index] if index < len(words) else ""


def _last(header: bytes) -> str:
    # The counter depth is the last word before the padding, after all DACs of all chips.
    words = header.split(b"\0", 1)[0].decode("latin-1").rstrip(" ,\r\n").rsplit(",", 1)
    word = words[-1].strip()
    return word if word.isdecimal() and word.isascii() and len(word) < 4 else ""


def _broken(what: str) -> DisconnectedError:
    return DisconnectedError(f"Merlin sent {what}; reconnect, and look for another program on it")
