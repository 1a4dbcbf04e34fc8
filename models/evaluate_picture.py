"""A picture of an evaluation: what each method makes of each scene, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError

__all__ = ["Picture"]

_Image = npt.NDArray[np.float32]

# Side of the middle of each image that is shown, in pixels.
_SHOWN_PX = 256


class Picture:
    """Images side by side, a row for each scene and dose."""

    def __init__(self) -> None:
        self._columns: list[str] = []
        self._captions: list[str] = []
        self._rows: list[npt.NDArray[np.uint8]] = []

    def add(self, caption: str, images: dict[str, _Image]) -> None:
        """Add a row: images (H, W) by method, the truth among them, in its grey levels."""
        low, high = np.percentile(images["truth"], (0.2, 99.8))
        margin = 0.1 * max(float(high - low), 1e-6)
        scale = 255.0 / (float(high - low) + 2.0 * margin)
        tiles = [
            np.pad(
                np.clip((_middle(image) - (low - margin)) * scale, 0, 255).astype(np.uint8),
                1,
                constant_values=255,
            )
            for image in images.values()
        ]
        self._columns = [*images]
        self._captions.append(caption)
        self._rows.append(np.concatenate(tiles, axis=1))

    def write(self, path: Path) -> dict[str, Any]:
        """Write a PNG; returns its ``path``, its ``columns`` (methods) and its ``rows`` (captions).

        Raises `InputError` where it cannot be written.
        """
        from imagecodecs import png_encode

        height = max(row.shape[0] for row in self._rows)
        width = max(row.shape[1] for row in self._rows)
        page = np.full((height * len(self._rows), width), 255, np.uint8)
        for number, row in enumerate(self._rows):
            page[number * height : number * height + row.shape[0], : row.shape[1]] = row
        try:
            path.write_bytes(png_encode(page))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        return {"path": str(path), "columns": self._columns, "rows": self._captions}


def _middle(image: _Image) -> _Image:
    height, width = image.shape
    top, left = max((height - _SHOWN_PX) // 2, 0), max((width - _SHOWN_PX) // 2, 0)
    return image[top : top + _SHOWN_PX, left : left + _SHOWN_PX]
