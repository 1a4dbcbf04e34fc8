r"""Images that Serval streams (format ``jsonimage``), taken apart without a socket.

Each is a JSON object that ends in ``}\n`` and then ``dataSize`` bytes of pixels, big-endian.
Sources: instamatic (``serval_movie_deserializer.py`` and its test, which holds a header of Serval)
and areaDetector's ADTimePix3. Whatever does not fit is a `DisconnectedError`: after it no byte of
the stream can be trusted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import DisconnectedError

DTYPES: dict[int, np.dtype[Any]] = {
    8: np.dtype(np.uint8),
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
}
"""Data types by ``bitDepth``."""

_MOST_HEADER_BYTES = 1 << 16
_MOST_PIXELS_A_SIDE = 16384


@dataclass(frozen=True, slots=True)
class Image:
    """One image.

    Attributes
    ----------
    number : int
        As Serval counts within a measurement.
    threshold : int
        Counter of a Medipix3 that it is of; 0 for a Timepix3.
    pixels : ndarray
        (height, width), big-endian; a view of the received bytes.
    time_s : float or None
        Serval's time of the frame in seconds since 1970.
    raw : dict
        The rest of the header, JSON-able.
    """

    number: int
    threshold: int
    pixels: npt.NDArray[Any]
    time_s: float | None
    raw: dict[str, Any]


class Images:
    """Cuts a stream of bytes into images, in whatever pieces it comes."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._header: dict[str, Any] | None = None

    @property
    def in_an_image(self) -> bool:
        """Whether an image has begun and not ended."""
        return self._header is not None or bool(self._bytes.strip())

    def feed(self, piece: bytes | memoryview) -> None:
        """Append what has arrived."""
        self._bytes += piece

    def next(self) -> Image | None:
        """The next image, or None until more has arrived. Raises `DisconnectedError`."""
        if self._header is None:
            self._header = self._cut_header()
        header = self._header
        if header is None or len(self._bytes) < header["dataSize"]:
            return None
        with memoryview(self._bytes) as view:
            data = bytes(view[: header["dataSize"]])
        del self._bytes[: header["dataSize"]]
        self._header = None
        # Where something was missing, the next image has filled it up.
        if b'"frameNumber"' in data:
            raise _broken(f"image {header['frameNumber']} torn, and the next one within it")
        dtype = DTYPES[header["bitDepth"]].newbyteorder(">")
        time_s = header.get("timeAtFrame")
        kept = ("measurementID", "pixelEventNumber", "thresholdID", "integrationSize")
        return Image(
            number=header["frameNumber"],
            threshold=header["thresholdID"],
            pixels=np.frombuffer(data, dtype).reshape(header["height"], header["width"]),
            time_s=float(time_s) if isinstance(time_s, int | float) else None,
            raw={name: header[name] for name in kept if _is_plain(header.get(name))},
        )

    def _cut_header(self) -> dict[str, Any] | None:
        begin = len(self._bytes) - len(self._bytes.lstrip())
        if begin == len(self._bytes):
            return None
        end = self._bytes.find(b"}\n", begin, begin + _MOST_HEADER_BYTES)
        if self._bytes[begin : begin + 1] != b"{" or (
            end < 0 and len(self._bytes) - begin >= _MOST_HEADER_BYTES
        ):
            raise _broken(f"{bytes(self._bytes[begin : begin + 40])!r} where an image should begin")
        if end < 0:
            return None
        header = _checked(bytes(self._bytes[begin : end + 1]))
        del self._bytes[: end + 2]
        return header


def _checked(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _broken(f"a header that is no JSON ({text[:60]!r})") from None
    if not isinstance(header, dict):
        raise _broken(f"a header that is no object ({text[:60]!r})")
    header.setdefault("thresholdID", 0)
    names = ("frameNumber", "width", "height", "bitDepth", "thresholdID")
    if not all(type(header.get(name)) is int for name in names):
        raise _broken(f"a header without {', '.join(names)} ({text[:60]!r})")
    sides = range(1, _MOST_PIXELS_A_SIDE + 1)
    if header["width"] not in sides or header["height"] not in sides or header["frameNumber"] < 0:
        raise _broken(f"frame {header['frameNumber']} of {header['height']}x{header['width']}")
    if header["bitDepth"] not in DTYPES:
        raise _broken(f"pixels of {header['bitDepth']} bits; 8, 16 and 32 are read here")
    size = header["width"] * header["height"] * header["bitDepth"] // 8
    if header.setdefault("dataSize", size) != size:
        raise _broken(
            f"{header['dataSize']!r} bytes for {header['height']}x{header['width']} of "
            f"{header['bitDepth']} bits"
        )
    return header


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_plain(value: object) -> bool:
    return isinstance(value, str) or _is_number(value)


def _broken(what: str) -> DisconnectedError:
    return DisconnectedError(f"Serval sent {what}; reconnect to it")
