"""Restores the images of a Micro-Manager acquisition on their way, as pycromanager's processor.

An acquisition that loses an image has spent dose for nothing: what cannot be restored is handed on
as it came, with the reason in its metadata, and no exception ever reaches pycromanager, which would
abort. https://pycro-manager.readthedocs.io/en/latest/img_processors.html tells what it expects.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.models import Restorer

Output = Literal["restored", "both"]
Tagged = tuple[npt.NDArray[Any], dict[str, Any]]

_FINE = 100.0
"""Counts for an electron that keep a restored frame's fractions."""


class RestoringProcessor:
    """See the module's text; `tem_live.plugins.process_fn` makes one.

    The metadata of a restored image also hold ``tem_live-restored`` (whether it is),
    ``tem_live-model``, ``tem_live-counts_per_electron`` (of the image as it is now, without
    pedestal), ``tem_live-dose_e_per_px`` (mean of the raw image) and, where it could not be
    restored, ``tem_live-error``.

    Parameters
    ----------
    restorer : Restorer
        What restores.
    counts_per_electron, offset_counts : float
        Of the raw images.
    output : {"restored", "both"}
        One image for each, or two channels.
    output_counts_per_electron : float, optional
        Of the restored images.
    """

    def __init__(
        self,
        restorer: Restorer,
        *,
        counts_per_electron: float,
        offset_counts: float = 0.0,
        output: Output = "restored",
        output_counts_per_electron: float | None = None,
    ) -> None:
        for name, value in (
            ("counts_per_electron", counts_per_electron),
            ("output_counts_per_electron", output_counts_per_electron),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} = {value:g}: give a positive number of counts")
        if output not in ("restored", "both"):
            raise InputError(f"output = {output!r}: give 'restored' or 'both'")
        self._restorer = restorer
        self._gain = counts_per_electron
        self._offset = offset_counts
        self._output = output
        self._output_gain = output_counts_per_electron
        self._queue: Any = None

    def attach(self, acquisition: Any) -> None:
        """Make ``output="both"`` work with pycromanager's Python backend.

        That backend takes one image back for each it gives; with the acquisition at hand the raw
        one goes straight to where the processed ones go. The Java backend needs none of this.

        Parameters
        ----------
        acquisition : pycromanager.Acquisition
            Made with this object as its ``image_process_fn``, before anything is acquired.
        """
        processor = getattr(acquisition, "_image_processor", None)
        self._queue = getattr(processor, "output_queue", None)

    def __call__(self, image: npt.NDArray[Any], metadata: dict[str, Any]) -> Tagged | list[Tagged]:
        """Restore one image.

        Parameters
        ----------
        image : ndarray (H, W) of uint8 or uint16
            Counts.
        metadata : dict
            As Micro-Manager has it; everything in it is kept.

        Returns
        -------
        (ndarray, dict) or list of two of them
            The restored image in the raw one's type with its metadata; for ``output="both"`` the
            raw and the restored one, as channels ``raw`` and ``restored``.
        """
        try:
            restored, added = self._restore(image)
        # Whatever it is: the image that was taken goes on.
        except Exception as error:
            restored, added = image, {"tem_live-error": " ".join(str(error).split())}
        told = {
            **metadata,
            "tem_live-restored": "tem_live-error" not in added,
            "tem_live-model": self._restorer.name,
            **added,
        }
        if self._output == "restored":
            return restored, told
        raw = image, _in_channel({**metadata, "tem_live-restored": False}, "raw")
        result = restored, _in_channel(told, "restored")
        if self._queue is None:
            return [raw, result]
        self._queue.put(_TaggedImage(*raw))
        return result

    def _restore(self, image: npt.NDArray[Any]) -> Tagged:
        if image.ndim != 2 or image.dtype.kind != "u":
            raise InputError(
                f"an image of shape {image.shape} and type {image.dtype} is not restored; it takes "
                "grey ones of 8 or 16 bits"
            )
        electrons = (image.astype(np.float32) - np.float32(self._offset)) / np.float32(self._gain)
        restored = np.asarray(self._restorer.restore(electrons))
        if not np.isfinite(restored).all():
            raise InputError("the restored image holds values that are no numbers")
        gain = self._gain_of(image.dtype)
        top = float(np.iinfo(image.dtype).max)
        counts = np.clip(np.rint(restored * np.float32(gain)), 0.0, top).astype(image.dtype)
        return counts, {
            "tem_live-counts_per_electron": gain,
            "tem_live-dose_e_per_px": float(electrons.mean()),
        }

    def _gain_of(self, dtype: np.dtype[Any]) -> float:
        if self._output_gain is not None:
            return self._output_gain
        return self._gain if dtype.itemsize == 1 else max(self._gain, _FINE)


class _TaggedImage:
    """What pycromanager's Python backend passes along."""

    def __init__(self, pix: npt.NDArray[Any], tags: dict[str, Any]) -> None:
        self.pix = pix
        self.tags = tags


def _in_channel(metadata: dict[str, Any], name: str) -> dict[str, Any]:
    """The metadata with the acquisition's channel, where there is one, told apart by ``name``."""
    axes = dict(metadata.get("Axes") or {})
    channel = axes.get("channel")
    axes["channel"] = name if channel is None else f"{channel} {name}"
    return {**metadata, "Axes": axes, "Channel": axes["channel"]}
