"""Load and run restorers.

A restorer takes frames in electrons per pixel and returns frames in electrons per pixel, of any
height and width, as NumPy arrays, torch tensors or anything else that speaks DLPack (CuPy).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import platformdirs

from tem_live.errors import InputError, ModelError
from tem_live.models.cards import ModelCard, read_card, sha256_of

if TYPE_CHECKING:
    import torch

    from tem_live.models.network import DoseUNet

__all__ = [
    "ENTRY_POINTS",
    "Precision",
    "Restorer",
    "RestorerPlugin",
    "default_restorer",
    "imported_folder",
    "list_restorers",
    "load_restorer",
]

_log = logging.getLogger(__name__)

ENTRY_POINTS = "tem_live.restorers"
"""Entry-point group in which other packages offer restorers, see `RestorerPlugin`."""

Precision = Literal["auto", "float32", "float16", "int8"]
"""What a network computes in; ``"auto"`` is the fastest that gives the same within its noise."""

_WEIGHTS = Path(__file__).parent / "weights"

# Below this many electrons per pixel (less than any training dose) the frame is binned first.
_LEAST_DOSE = 0.2
# What is left of a pixel by so many times the noise is a defect or a hit; in frames of fewer pixels
# than this the noise is not known well enough to say so.
_HIT, _MOST_HITS = 12.0, 0.01
_LEAST_PIXELS = 64 * 64
# Frames with a mean beyond this are restored at a smaller scale.
_LARGEST = 1e15
# Frames of more pixels than this are restored in tiles, to bound the memory.
_TILE_PX = 2240
# Farther away hardly anything is seen: 0.02 of the noise at the most.
_HALO_PX = 96

_NONE = ModelCard(
    name="none",
    title="No restoration: the raw frame",
    kind="none",
    noise="any",
    limits=("Changes nothing; non-finite pixels are replaced by the mean around them.",),
)
_GAUSSIAN = ModelCard(
    name="gaussian",
    title="Gaussian blur, sigma 2 px: the honest baseline",
    kind="gaussian",
    noise="any",
    limits=(
        "Blurs everything alike: detail under about 5 px is lost at every dose.",
        "The best sigma depends on the scene and the dose; 2 px is a middle choice.",
    ),
)
_GAUSSIAN_SIGMA_PX = 2.0
_VIDEO = ModelCard(
    name="video",
    title="The default restorer with the frames before, moved with the specimen",
    kind="temporal",
    noise="any",
    limits=(
        "For frames of one field of view that follow one another; drift as a whole is followed, "
        "rotation and what moves by itself are not: there it is the single frame's restorer.",
        "A change that is less than noise over some 20 px fades over about a dozen frames.",
        "Takes twice the time of the single frame's restorer, and cannot share it among cores.",
    ),
)


@runtime_checkable
class RestorerPlugin(Protocol):
    """What an entry point of the group ``tem_live.restorers`` must resolve to."""

    card: ModelCard

    def load(self, device: str) -> Restorer:
        """Return the restorer, ready on `device` ("auto", "cpu", "cuda", "cuda:1")."""
        ...


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
    """

    concurrent = False
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

    def gmac(self, shape: tuple[int, int]) -> float | None:
        """Billions of multiplications for a frame of (height, width) px; None where not counted."""
        return None

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

        frames = _as_tensor(counts)
        if frames.ndim not in (2, 3):
            raise InputError(
                f"frames must be (H, W) or (N, H, W), got {tuple(frames.shape)}; "
                "restore channels one at a time"
            )
        if frames.is_complex():
            raise InputError("frames must be real; give the intensity of a complex image")
        target = None if out is None else _out_tensor(out, counts, frames)
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
        return _like(result.to(frames.device), counts)

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


class _NoneRestorer(Restorer):
    def _restore_finite(self, frame: torch.Tensor, mean: float, out: torch.Tensor) -> None:
        out.copy_(frame)


class _GaussianRestorer(Restorer):
    def _restore_finite(self, frame: torch.Tensor, mean: float, out: torch.Tensor) -> None:
        import torch
        from torch.nn import functional

        reach = int(np.ceil(4 * _GAUSSIAN_SIGMA_PX))
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _GAUSSIAN_SIGMA_PX) ** 2)
        kernel = torch.tensor(taps / taps.sum(), dtype=torch.float32, device=frame.device)
        height, width = frame.shape
        blurred = _pad(frame[None, None], reach, reach, reach, reach)
        blurred = functional.conv2d(blurred, kernel[None, None, None, :])
        blurred = functional.conv2d(blurred, kernel[None, None, :, None])[0, 0, :height, :width]
        torch.add(blurred, mean - blurred.mean(), out=out)


def _add_what_is_left(image: torch.Tensor, residual: torch.Tensor, level: float) -> float:
    """Add to a restored image what the residual shows beyond doubt to be missing.

    Parameters
    ----------
    image, residual : Tensor
        float32 (H, W), what the network made of a frame without the frame's mean, and the frame
        less that, in units of the noise. Bragg peaks and levels of areas that the network lost are
        moved from the residual to the image.
    level : float
        That mean, in the same unit.

    Returns
    -------
    float
        To be added everywhere, so that the mean is that of the frame without hits.
    """
    from tem_live.models.areas import area_part, area_sums
    from tem_live.models.spectrum import bragg_part

    pixels = residual.numel()
    periodic = bragg_part(residual)
    if periodic is not None:
        image += periodic
        residual -= periodic
    sums = area_sums(residual)
    # A hit would be seen in the sum of the squares around it.
    hits = None if float(sums[1].amax()) < 0.99 * _HIT**2 else _hits(residual, image, level)
    if hits is not None:
        residual.masked_fill_(hits, 0.0)
        pixels -= int(hits.sum())
        sums = area_sums(residual)
    uneven = area_part(residual, sums)
    if uneven is None:
        return float(sums[0].sum()) / pixels
    image += uneven
    residual -= uneven
    return float(residual.sum()) / pixels


def _hits(residual: torch.Tensor, image: torch.Tensor, level: float) -> torch.Tensor | None:
    """Pixels that no noise explains: hot ones and X-ray hits; None where there are none.

    The restorer has taken them out, and what they held belongs to no other pixel. All arguments
    are in units of the noise; `level` is the mean of the frame, above which `image` is counted.
    """
    import torch

    if residual.numel() < _LEAST_PIXELS:
        return None
    if float(torch.maximum(residual.amax(), -residual.amin())) < _HIT:
        return None
    # Bright places are noisier than the mean: at the most as those of a Poisson frame.
    brightness = (1.0 + image / level).clamp_min_(1.0) if level > 0.0 else torch.ones_like(image)
    hits = residual.abs() > brightness.sqrt_().mul_(_HIT)
    # So many are no defects: the noise is not what it seems.
    return hits if 0 < int(hits.sum()) < _MOST_HITS * residual.numel() else None


class _NetworkRestorer(Restorer):
    """Runs a `DoseUNet`."""

    def __init__(
        self, card: ModelCard, device: str, network: DoseUNet, precision: Precision = "float32"
    ) -> None:
        super().__init__(card, device)
        self._network = network
        self._run: Callable[..., torch.Tensor] = network
        if precision != "float32":
            self._run = self._accelerated(network, precision)
        # Nothing of it changes with a frame. On a GPU one frame is prepared while the other runs.
        self.concurrent = True

    def _accelerated(self, network: DoseUNet, precision: Precision) -> Callable[..., torch.Tensor]:
        if self.device != "cpu":
            return self._on_gpu(network, precision)
        found = self._in_integers(network) if precision in ("auto", "int8") else None
        if found is not None:
            self.precision = "int8"
            return found
        if precision != "auto":
            raise ModelError(
                f"precision {precision!r} is not to be had on this processor ('int8' needs VNNI "
                "instructions, 'float16' a GPU); use 'auto' or 'float32'"
            )
        return network

    def _in_integers(self, network: DoseUNet) -> Callable[..., torch.Tensor] | None:
        from tem_live.models.int8 import can_multiply_int8, int8_network

        if not can_multiply_int8():
            return None
        if importlib.util.find_spec("openvino") is not None:
            from tem_live.models.openvino_network import openvino_network

            found = openvino_network(network, lambda: int8_network(network) or network)
            if found is not None:
                self.engine = found.engine
                return found
        return int8_network(network)

    def _on_gpu(self, network: DoseUNet, precision: Precision) -> Callable[..., torch.Tensor]:
        from tem_live.models.cuda_graph import cuda_network

        half = precision == "float16"
        found = cuda_network(network, half) if precision in ("auto", "float16") else None
        if found is not None:
            self.precision = "float16" if half else "float32"
            return found
        if precision != "auto":
            raise ModelError(
                f"precision {precision!r} is not to be had on {self.device}; use 'auto' or "
                "'float32'"
            )
        return network

    def prepare(self, shape: tuple[int, int]) -> None:
        """See `Restorer.prepare`."""
        from tem_live.models.network import BLOCK
        from tem_live.models.tiles import cuts

        prepare = getattr(self._run, "prepare", None)
        if prepare is None:
            return
        step, tile, halo = self._tiling()
        height, width = (-(-side // (step * BLOCK)) * step for side in shape)
        if max(shape) > _TILE_PX:
            height, width = (cuts(side, tile, halo, step)[0].stop for side in (height, width))
        prepare(height, width)

    def gmac(self, shape: tuple[int, int]) -> float | None:
        """See `Restorer.gmac`."""
        import torch

        from tem_live.models.macs import count_macs
        from tem_live.models.network import BLOCK, CONDITIONS, DoseUNet

        step = self._network.multiple
        height, width = (-(-side // step) * step // BLOCK for side in shape)
        with torch.device("meta"):
            net = self._network
            twin = DoseUNet(net.widths, net.blocks, net.waves, net.middles)
            # Two frames: for a single one the layers are passed by, see `network._Block`.
            blocks = torch.empty(2, BLOCK * BLOCK, height, width)
            waves = [blocks] if net.waves else []
            return count_macs(twin, blocks, torch.empty(2, CONDITIONS), *waves) / 2e9

    def _restore_finite(self, frame: torch.Tensor, mean: float, out: torch.Tensor) -> None:
        import torch

        from tem_live.models.planes import blocks_of, image_of, in_units_of
        from tem_live.models.spectrum import lattice_part
        from tem_live.models.waves import lattice_waves

        height, width = frame.shape
        padded = self._fit(frame)
        blocks, sigma, vector = self._blocks_and_noise(padded, mean)
        if sigma == 0.0 and bool((frame == frame.flatten()[0]).all()):
            out.copy_(frame)
            return
        # So few electrons that most blocks are empty: none of the noise is left to measure and
        # no such frame was trained on. Read noise, if there were any, would show in sigma.
        if 0.0 < mean < _LEAST_DOSE and sigma < 3.0 * mean**0.5:
            factor = 2
            while mean * factor**2 < _LEAST_DOSE:
                factor *= 2
            if factor > min(height, width):
                out.fill_(mean)
                return
            self._restore_binned(frame, mean, factor, out)
            return
        if sigma == 0.0:
            # Noise-free almost everywhere (a synthetic frame): nothing to remove.
            out.copy_(frame)
            return
        # A lattice beyond doubt: the network restores what else there is.
        rest = torch.empty((height, width), device=frame.device)
        in_units_of(frame, mean, sigma, out=rest)
        lattice = lattice_part(rest)
        if lattice is not None:
            lattice = lattice.sub_(lattice.mean()).mul_(sigma)
            torch.sub(frame, lattice, out=rest)
            padded = self._fit(rest)
            blocks, sigma, vector = self._blocks_and_noise(padded, mean)
            if sigma == 0.0:
                out.copy_(frame)
                return
        in_units_of(blocks, mean, sigma, out=blocks)
        parts = [blocks]
        if self._network.waves:
            units = torch.empty_like(padded)
            in_units_of(padded, mean, sigma, out=units)
            parts.append(blocks_of(lattice_waves(units[None])[0]))
        if lattice is not None:
            in_units_of(rest, mean, sigma, out=rest)
        if max(height, width) > _TILE_PX:
            restored = self._tiled(parts, vector)
        else:
            restored = self._run(blocks, vector, *parts[1:])
        image = image_of(restored, rest)
        # Planes of a large frame are not kept for longer than they are needed.
        del padded, blocks, parts, restored
        left = _add_what_is_left(image, rest, mean / sigma)
        torch.add(torch.tensor(mean + sigma * left), image, alpha=sigma, out=out)
        if lattice is not None:
            out += lattice

    def _fit(self, frame: torch.Tensor) -> torch.Tensor:
        step = self._network.multiple
        height, width = frame.shape
        bottom, right = -height % step, -width % step
        if not bottom and not right:
            return frame
        return _pad(frame[None, None], 0, bottom, 0, right)[0, 0]

    def _blocks_and_noise(
        self, frame: torch.Tensor, mean: float
    ) -> tuple[torch.Tensor, float, torch.Tensor]:
        import torch

        from tem_live.models.network import conditions
        from tem_live.models.planes import measured_blocks

        blocks, bands = measured_blocks(frame, self._network.hadamard)
        sigma, vector = conditions(bands, torch.full((1,), mean, device=frame.device))
        return blocks, float(sigma), vector

    def _restore_binned(
        self, frame: torch.Tensor, mean: float, factor: int, out: torch.Tensor
    ) -> None:
        import torch
        from torch.nn import functional

        height, width = frame.shape
        full = _pad(frame[None, None], 0, -height % factor, 0, -width % factor)
        small = functional.avg_pool2d(full, factor) * float(factor**2)
        restored = torch.empty_like(small[0, 0])
        self._restore_frame(small[0, 0], restored)
        large = functional.interpolate(
            restored[None, None] / float(factor**2),
            size=full.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )[0, 0, :height, :width]
        torch.add(large, mean - large.mean(), out=out)

    def _tiling(self) -> tuple[int, int, int]:
        """The network's step, the side of a tile and its halo, in blocks."""
        from tem_live.models.network import BLOCK

        step = self._network.multiple // BLOCK
        tile, halo = (max(px // BLOCK // step, 1) * step for px in (_TILE_PX, _HALO_PX))
        return step, tile, halo

    def _tiled(self, parts: Sequence[torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
        """Run the network tile by tile; tiles overlap so that no seam is left.

        The parts are the blocks of the frame and, where the network takes them, of its waves.
        """
        import torch

        from tem_live.models.tiles import cuts

        step, tile, halo = self._tiling()
        result = torch.empty_like(parts[0])
        rows, columns = (cuts(side, tile, halo, step) for side in result.shape[-2:])
        for y in rows:
            for x in columns:
                frame, *waves = (part[..., y.whole, x.whole] for part in parts)
                restored = self._run(frame, vector, *waves)
                result[..., y.kept, x.kept] = restored[..., y.middle, x.middle]
        return result


def _pad(image: torch.Tensor, top: int, bottom: int, left: int, right: int) -> torch.Tensor:
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


def _as_tensor(counts: Any) -> torch.Tensor:
    """View an array as a torch tensor, without a copy where that is possible."""
    import torch
    from torch.utils.dlpack import from_dlpack

    if isinstance(counts, torch.Tensor):
        return counts.detach()
    if isinstance(counts, np.ndarray):
        array = counts
        if array.dtype.kind not in "biufc":
            raise InputError(f"frames must be numbers, got an array of {array.dtype}")
        if array.dtype.kind == "c":
            raise InputError("frames must be real; give the intensity of a complex image")
        # torch knows neither big-endian nor negative strides, and warns of read-only memory.
        if array.dtype != np.float32 or min(array.strides, default=0) < 0:
            array = array.astype(np.float32)
        elif not array.flags.writeable:
            array = array.copy()
        return torch.from_numpy(array)
    if hasattr(counts, "__dlpack__"):
        return from_dlpack(counts)
    raise InputError(
        f"cannot restore a {type(counts).__name__}; give a NumPy array, a torch tensor or an "
        "array that supports DLPack"
    )


def _out_tensor(out: Any, counts: Any, frames: torch.Tensor) -> torch.Tensor:
    """View `out` as a tensor to write to."""
    import torch
    from torch.utils.dlpack import from_dlpack

    if type(out) is not type(counts) and not isinstance(out, type(counts)):
        raise InputError(
            f"out is a {type(out).__name__} but the frames are a {type(counts).__name__}; "
            "give the same kind"
        )
    if tuple(out.shape) != tuple(frames.shape):
        raise InputError(f"out has shape {tuple(out.shape)}, the frames {tuple(frames.shape)}")
    if isinstance(out, np.ndarray):
        if out.dtype != np.float32 or not out.flags.writeable or min(out.strides, default=0) < 0:
            raise InputError("out must be a writable float32 array")
        return torch.from_numpy(out)
    target = out if isinstance(out, torch.Tensor) else from_dlpack(out)
    if target.dtype != torch.float32:
        raise InputError(f"out must be float32, got {target.dtype}")
    return target


def _like(result: torch.Tensor, counts: Any) -> Any:
    """Return a tensor as the kind of array that `counts` is."""
    import torch

    if isinstance(counts, torch.Tensor):
        return result
    if isinstance(counts, np.ndarray):
        return result.numpy()
    library = sys.modules[type(counts).__module__.partition(".")[0]]
    return library.from_dlpack(result)


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


def _plugins() -> dict[str, RestorerPlugin]:
    """Restorers of other packages; a broken one is reported and left out."""
    found: dict[str, RestorerPlugin] = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            plugin = entry.load()
        except Exception as error:  # whatever a stranger's import raises
            _log.warning("restorer plug-in %s (%s) is broken: %s", entry.name, entry.value, error)
            continue
        if isinstance(plugin, RestorerPlugin) and isinstance(plugin.card, ModelCard):
            found[entry.name] = plugin
        else:
            _log.warning("restorer plug-in %s (%s) has no card", entry.name, entry.value)
    return found


def imported_folder() -> Path:
    """Folder of this user's imported restorers; see `tem_live.models.imports`."""
    return Path(platformdirs.user_data_dir("tem_live", appauthor=False)) / "models"


def _imported() -> dict[str, ModelCard]:
    """Cards of what this user imported, by file name; a broken one is reported and left out."""
    found: dict[str, ModelCard] = {}
    for path in sorted(imported_folder().glob("*.json")):
        try:
            card = read_card(path)
        except ModelError as error:
            _log.warning("%s", error)
            continue
        # The default is ours to name, and the name is what `load_restorer` finds the file by.
        found[path.stem] = card.model_copy(update={"name": path.stem, "default": False})
    return found


def list_restorers() -> list[ModelCard]:
    """Cards of all restorers that are installed, the default first; no weights are loaded."""
    return _cards(_imported(), _plugins())


def _cards(
    imported: Mapping[str, ModelCard], plugins: Mapping[str, RestorerPlugin]
) -> list[ModelCard]:
    cards = [read_card(path) for path in sorted(_WEIGHTS.glob("*.json"))]
    cards.sort(key=lambda card: not card.default)
    cards += [_VIDEO, _GAUSSIAN, _NONE]
    taken = {card.name for card in cards}
    cards += [card for name, card in imported.items() if name not in taken]
    taken |= {card.name for card in cards}
    for name, plugin in sorted(plugins.items()):
        if name not in taken:
            # The default is ours to name: a plug-in must not change what runs by being installed.
            cards.append(plugin.card.model_copy(update={"name": name, "default": False}))
    return cards


def default_restorer() -> str:
    """Name of the restorer to use where none is named."""
    for card in list_restorers():
        if card.default:
            return card.name
    raise ModelError("no default restorer is installed; reinstall tem_live")


def load_restorer(
    name_or_path: str | os.PathLike[str] = "fast",
    device: str = "auto",
    precision: Precision = "auto",
) -> Restorer:
    """Load a restorer.

    Parameters
    ----------
    name_or_path : str or path
        A name from `list_restorers`, or the path of a .safetensors with its card beside it.
    device : str
        "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
    precision : {"auto", "float32", "float16", "int8"}
        What the networks of this package compute in. "auto" takes 8 bit integers where the
        processor has instructions for them and they give the same within a small share of the
        noise (`tem_live.models.int8`), else float32; on a GPU float32, as a CUDA graph. "float16"
        is for GPUs. Other networks are always float32.

    Returns
    -------
    Restorer

    Raises
    ------
    ModelError
        Unknown name, missing or damaged file, a device that is not there, or a precision
        that does not work there.
    """
    text = os.fspath(name_or_path)
    if text in ("none", "raw", "identity"):
        return _NoneRestorer(_NONE, resolve_device(device))
    if text == "video":
        from tem_live.models.video import VideoRestorer

        return VideoRestorer(_VIDEO, load_restorer(default_restorer(), device, precision))
    if text == "gaussian":
        return _GaussianRestorer(_GAUSSIAN, resolve_device(device))
    if text.endswith(".safetensors") or not isinstance(name_or_path, str):
        return _load_network(Path(text), resolve_device(device), precision)
    if (_WEIGHTS / f"{text}.json").is_file():
        return _load_network(_WEIGHTS / f"{text}.safetensors", resolve_device(device), precision)
    imported = _imported()
    if text in imported:
        return _load_network(
            imported_folder() / f"{text}.safetensors", resolve_device(device), precision
        )
    plugins = _plugins()
    if text in plugins:
        return plugins[text].load(resolve_device(device))
    known = ", ".join(card.name for card in _cards(imported, plugins))
    raise ModelError(f"no restorer is called {text!r}; use one of {known}, or a .safetensors path")


def _load_network(path: Path, device: str, precision: Precision) -> Restorer:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"no weights at {path}; check the path or reinstall tem_live")
    card = read_card(path.with_suffix(".json"))
    if card.sha256 is None or sha256_of(path) != card.sha256:
        raise ModelError(
            f"the weights {path} do not match their card (SHA-256); the file is damaged or was "
            "replaced: reinstall tem_live or fetch it again"
        )
    try:
        network = _make_network(card)
        network.load_state_dict({k: _float32(v) for k, v in load_file(path).items()})
    except (SafetensorError, RuntimeError, KeyError, ValueError, OSError) as error:
        raise ModelError(
            f"the weights {path} cannot be loaded as their card describes them: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return _make_restorer(card, device, network, precision)


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    """Weights may be stored in half precision; the counters of a normalisation are integers."""
    import torch

    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _make_network(card: ModelCard) -> torch.nn.Module:
    if card.network == "unet_resnet18":
        from tem_live.models.unet_resnet18 import UnetResNet18

        return UnetResNet18(sigmoid=bool(card.architecture.get("sigmoid")))
    if card.network == "cgrdn":
        from tem_live.models.cgrdn import CGRDN

        return CGRDN()
    from tem_live.models.network import DoseUNet

    shape = card.architecture
    widths, depths = cast("list[int]", shape["widths"]), cast("list[int]", shape["blocks"])
    middles = cast("list[int]", shape.get("middles", []))
    return DoseUNet(widths, depths, bool(shape.get("waves", False)), middles)


def _make_restorer(card: ModelCard, device: str, network: Any, precision: Precision) -> Restorer:
    import torch

    if card.network == "unet_resnet18":
        from tem_live.models.unet_resnet18 import UnetResNet18Restorer

        return UnetResNet18Restorer(card, device, network)
    if card.network == "cgrdn":
        from tem_live.models.cgrdn import CgrdnRestorer

        return CgrdnRestorer(card, device, network)
    network = network.requires_grad_(False).eval().to(torch.device(device))
    network = network.to(memory_format=torch.channels_last)
    restorer = _NetworkRestorer(card, device, network, precision)
    if card.kind == "views":
        from tem_live.models.views import ViewsRestorer

        return ViewsRestorer(card, restorer)
    return restorer
