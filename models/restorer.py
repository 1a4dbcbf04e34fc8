"""What all restorers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from tem_live.errors import InputError, ModelError
from tem_live.models.arrays import as_tensor, like, out_tensor
from tem_live.models.cards import ModelCard

if TYPE_CHECKING:
    import torch

    from tem_live.models.macs import Work

__all__ = ["Precision", "Restorer", "padded", "resolve_device"]

Precision = Literal["auto", "float32", "float16", "int8"]
"""What a network computes in; ``"auto"`` is the fastest that gives the same within its noise."""

# Frames with a mean beyond this are restored at a smaller scale.
_LARGEST = 1e15


class Restorer(ABC):
    """A restorer on a device. One thread at a time may call `restore` unless it is `concurrent`.

    Attributes
    ----------
    card : ModelCard
        What it is and what was measured.
    device : str
        torch name of the device it computes on.
    concurrent : bool
        Whether several threads may call `restore` at once, and gain by it.
    precision : str
        What most of it is computed in: ``"float32"``, ``"float16"`` or ``"int8"``.
    engine : str
        What computes it: ``"torch"``, or OpenVINO and its version.
    binning : int
        Frames are binned by this factor before and enlarged after, see `tem_live.models.binned`.
    """

    concurrent = False
    binning = 1
    precision: Literal["float32", "float16", "int8"] = "float32"
    engine = "torch"

    def __init__(self, card: ModelCard, device: str) -> None:
        self.card = card
        self.device = device

    @property
    def name(self) -> str:
        """Short name, the one of its card."""
        return self.card.name

    def __repr__(self) -> str:
        return f"<Restorer {self.name!r} on {self.device}>"

    def work(self, shape: tuple[int, int]) -> Work | None:
        """What its network has to do for a frame of (height, width) px; None where not counted."""
        return None

    def gmac(self, shape: tuple[int, int]) -> float | None:
        """Billions of multiplications for a frame of (height, width) px; None where not counted."""
        work = self.work(shape)
        return None if work is None else work.macs / 1e9

    def prepare(self, shape: tuple[int, int]) -> None:  # noqa: B027  (most have nothing to do)
        """Make ready for frames of (height, width) px, so that the first takes no longer.

        Does nothing where there is nothing to be done. It counts for as many threads an operation
        as torch uses in the calling thread.
        """

    def restore(self, counts: Any, out: Any = None) -> Any:
        """Restore one frame or a stack of frames.

        Parameters
        ----------
        counts : array
            (H, W) or (N, H, W), electrons per pixel, best float32 (other real types are
            converted). NumPy array, torch tensor or another DLPack array (CuPy). Not changed.
        out : array, optional
            float32, same kind and shape as `counts`; the result is written into it. It may be
            `counts` itself.

        Returns
        -------
        array
            float32, same kind and shape: `out` if given. On CUDA the work is queued on torch's
            current stream.

        Raises
        ------
        InputError
            Not a real array of 2 or 3 axes, or `out` does not fit.

        Notes
        -----
        The mean of each frame is kept, that of its finite pixels and, by networks, of those that
        hold no hit: what a hot pixel or an X-ray left belongs to no other pixel. Non-finite pixels
        are replaced by the mean around them before anything else, so that they do not spread. A
        constant frame comes back as it is; one without a finite pixel comes back as zeros.
        """
        import torch

        frames = as_tensor(counts)
        if frames.ndim not in (2, 3):
            raise InputError(
                f"frames must be (H, W) or (N, H, W), got {tuple(frames.shape)}; "
                "restore channels one at a time"
            )
        if frames.is_complex():
            raise InputError("frames must be real; give the intensity of a complex image")
        target = None if out is None else out_tensor(out, counts, frames)
        source = frames.to(self.device, torch.float32)
        direct = target is not None and target.device == source.device
        # Outside of inference mode: the caller may go on to compute gradients with the result.
        result = target if direct and target is not None else torch.empty_like(source)
        with torch.inference_mode():
            if result.numel():
                if source.ndim == 2:
                    self._restore_frame(source, result)
                else:
                    for frame, place in zip(source, result, strict=True):
                        self._restore_frame(frame, place)
            if target is not None and not direct:
                target.copy_(result)
        if out is not None:
            return out
        return like(result.to(frames.device), counts)

    def _restore_frame(self, frame: torch.Tensor, out: torch.Tensor) -> None:
        """Restore one float32 (H, W) tensor into `out`, which may be `frame` itself."""
        import torch

        mean = frame.mean()
        level = float(mean)
        if abs(level) < _LARGEST:
            self._restore_finite(frame, level, out)
            return
        # NaN and infinity make no mean; beyond the largest value squares overflow.
        largest = float(torch.where(torch.isfinite(frame), frame, 0.0).abs().max())
        scale = max(largest / _LARGEST, 1.0)
        mended, level = _mend(frame / scale)
        self._restore_finite(mended, level, out)
        if scale > 1.0:
            most = torch.finfo(out.dtype).max
            out.mul_(scale).clamp_(-most, most)

    @abstractmethod
    def _restore_finite(self, frame: torch.Tensor, mean: float, out: torch.Tensor) -> None:
        """Restore a frame of finite pixels with this mean into `out` (may be `frame`)."""


def _mend(frame: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Replace non-finite pixels by the mean of the finite ones around; return the finite mean."""
    import torch
    from torch.nn import functional

    finite = torch.isfinite(frame)
    if not bool(finite.any()):
        return torch.zeros_like(frame), 0.0
    filled = torch.where(finite, frame, frame.new_zeros(()))
    # In float64: a frame may hold values whose sum overflows float32.
    mean = float(filled.double().sum() / finite.sum())
    weight = finite.to(frame.dtype)[None, None]
    total = functional.avg_pool2d(filled[None, None], 9, 1, 4, count_include_pad=False)[0, 0]
    count = functional.avg_pool2d(weight, 9, 1, 4, count_include_pad=False)[0, 0]
    around = torch.where(count > 1e-3, total / count.clamp_min(1e-3), frame.new_tensor(mean))
    return torch.where(finite, frame, around), mean


def padded(image: torch.Tensor, top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    """Pad (1, 1, H, W): mirrored where the frame is large enough, else by its edge."""
    from torch.nn import functional

    height, width = image.shape[-2:]
    if left or right:
        mode = "reflect" if max(left, right) < width else "replicate"
        image = functional.pad(image, (left, right, 0, 0), mode=mode)
    if top or bottom:
        mode = "reflect" if max(top, bottom) < height else "replicate"
        image = functional.pad(image, (0, 0, top, bottom), mode=mode)
    return image


def resolve_device(device: str) -> str:
    """The torch device that "auto", "cpu", "cuda" or "cuda:1" means here, or `ModelError`."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; use auto, cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "no CUDA device is available; use device='cpu' or 'auto', or install a CUDA build of "
            "torch and a driver"
        )
    return str(chosen)
