"""Restore by a `DoseUNet`: what is done to a frame before it and after it.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tem_live.errors import ModelError
from tem_live.models.areas import area_part, area_sums
from tem_live.models.binned import restored_binned
from tem_live.models.cards import ModelCard
from tem_live.models.macs import Work, unet_work
from tem_live.models.network import BLOCK, DoseUNet, conditions
from tem_live.models.planes import blocks_of, image_of, in_units_of, measured_blocks
from tem_live.models.restorer import Precision, Restorer, padded
from tem_live.models.spectrum import bragg_part, lattice_part
from tem_live.models.tiles import Cut, grid
from tem_live.models.waves import lattice_waves

if TYPE_CHECKING:
    from tem_live.models.openvino_scales import Scales

__all__ = ["NetworkRestorer", "hits_in"]

# Below this many electrons per pixel (less than any training dose) the frame is binned first.
_LEAST_DOSE = 0.2
# What is left of a pixel by so many times the noise is a defect or a hit; in frames of fewer pixels
# than this the noise is not known well enough to say so.
_HIT, _MOST_HITS = 12.0, 0.01
_LEAST_PIXELS = 64 * 64
# Frames of more pixels than a square of this side are restored in tiles, to bound the memory. Two
# of them make a frame of 4096 x 4096, nine one of 8192 x 8192.
_TILE_PX = 2976
# Farther away hardly anything is seen: 0.02 of the noise at the most.
_HALO_PX = 96


class NetworkRestorer(Restorer):
    """Runs a `DoseUNet`.

    Parameters
    ----------
    card : ModelCard
        What it is.
    device : str
        torch name of the device that the network is on.
    network : DoseUNet
        Ready to run.
    precision : {"auto", "float32", "float16", "int8"}
        What to compute in.
    scales : Scales, optional
        Of its 8 bit integers, where they came with the weights.

    Raises
    ------
    ModelError
        The precision does not work on the device.
    """

    def __init__(
        self,
        card: ModelCard,
        device: str,
        network: DoseUNet,
        precision: Precision = "float32",
        scales: Scales | None = None,
    ) -> None:
        super().__init__(card, device)
        self._network = network
        self._run: Callable[..., Tensor] = network
        if precision != "float32":
            self._run = self._accelerated(network, precision, scales)
        # Nothing of it changes with a frame. On a GPU one frame is prepared while the other runs.
        self.concurrent = True

    def _accelerated(
        self, network: DoseUNet, precision: Precision, scales: Scales | None
    ) -> Callable[..., Tensor]:
        if self.device != "cpu":
            return self._on_gpu(network, precision)
        found = self._in_integers(network, scales) if precision in ("auto", "int8") else None
        if found is not None:
            self.precision = "int8"
            return found
        if precision != "auto":
            raise ModelError(
                f"precision {precision!r} is not to be had on this processor ('int8' needs VNNI "
                "instructions, 'float16' a GPU); use 'auto' or 'float32'"
            )
        return network

    def _in_integers(
        self, network: DoseUNet, scales: Scales | None
    ) -> Callable[..., Tensor] | None:
        from tem_live.models.int8 import can_multiply_int8, int8_network

        if not can_multiply_int8():
            return None
        if importlib.util.find_spec("openvino") is not None:
            from tem_live.models.openvino_network import openvino_network

            found = openvino_network(network, lambda: int8_network(network) or network, scales)
            if found is not None:
                self.engine = found.engine
                return found
        return int8_network(network)

    def _on_gpu(self, network: DoseUNet, precision: Precision) -> Callable[..., Tensor]:
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
        prepare = getattr(self._run, "prepare", None)
        if prepare is None:
            return
        step = self._network.multiple
        rows, columns = self._tiles(*(-(-side // step) * step // BLOCK for side in shape))
        prepare(rows[0].stop, columns[0].stop)

    def work(self, shape: tuple[int, int]) -> Work | None:
        """See `Restorer.work`."""
        return unet_work(self._network, shape)

    def _restore_finite(self, frame: Tensor, mean: float, out: Tensor) -> None:

        height, width = frame.shape
        blocks, sigma, vector = self._blocks_and_noise(self._fit(frame), mean)
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
            restored_binned(frame, factor, self._restored, out)
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
            blocks, sigma, vector = self._blocks_and_noise(self._fit(rest), mean)
            if sigma == 0.0:
                out.copy_(frame)
                return
            in_units_of(rest, mean, sigma, out=rest)
        in_units_of(blocks, mean, sigma, out=blocks)
        image = self._specimen(rest, mean / sigma, blocks, vector)
        # Planes of a large frame are not kept for longer than they are needed.
        del blocks
        left = _add_what_is_left(image, rest, mean / sigma)
        torch.add(torch.tensor(mean + sigma * left), image, alpha=sigma, out=out)
        if lattice is not None:
            out += lattice

    def _specimen(self, rest: Tensor, level: float, blocks: Tensor, vector: Tensor) -> Tensor:
        """What the network makes of a frame.

        Parameters
        ----------
        rest : Tensor
            float32 (H, W), the frame less its mean, in units of the noise. Written to: what the
            network makes of it is subtracted.
        level : float
            That mean, in the same unit.
        blocks, vector : Tensor
            The same frame as the network wants it, see `_blocks_and_noise`.

        Returns
        -------
        Tensor
            float32 (H, W), in the same unit.
        """
        parts = [blocks]
        if self._network.waves:
            parts.append(blocks_of(lattice_waves(self._fit(rest)[None])[0]))
        return image_of(self._tiled(parts, vector), rest)

    def _fit(self, frame: Tensor) -> Tensor:
        step = self._network.multiple
        height, width = frame.shape
        bottom, right = -height % step, -width % step
        if not bottom and not right:
            return frame
        return padded(frame[None, None], 0, bottom, 0, right)[0, 0]

    def _blocks_and_noise(self, frame: Tensor, mean: float) -> tuple[Tensor, float, Tensor]:

        blocks, bands = measured_blocks(frame, self._network.hadamard)
        sigma, vector = conditions(bands, torch.full((1,), mean, device=frame.device))
        return blocks, float(sigma), vector

    def _restored(self, frame: Tensor) -> Tensor:
        restored = torch.empty_like(frame)
        self._restore_frame(frame, restored)
        return restored

    def _tiles(self, height: int, width: int) -> tuple[tuple[Cut, ...], tuple[Cut, ...]]:
        """Where a frame of so many blocks is cut along either axis; one tile where it is small."""
        step = self._network.multiple // BLOCK
        halo = max(_HALO_PX // BLOCK // step, 1) * step
        return grid(height, width, (_TILE_PX // BLOCK) ** 2, halo, step)

    def _tiled(self, parts: Sequence[Tensor], vector: Tensor) -> Tensor:
        """Run the network tile by tile; tiles overlap so that no seam is left.

        The parts are the blocks of the frame and, where the network takes them, of its waves.
        """
        height, width = parts[0].shape[-2:]
        rows, columns = self._tiles(height, width)
        if len(rows) == len(columns) == 1:
            return self._run(parts[0], vector, *parts[1:])
        result = torch.empty_like(parts[0])
        for y in rows:
            for x in columns:
                frame, *waves = (part[..., y.whole, x.whole] for part in parts)
                restored = self._run(frame, vector, *waves)
                result[..., y.kept, x.kept] = restored[..., y.middle, x.middle]
        return result


def _add_what_is_left(image: Tensor, residual: Tensor, level: float) -> float:
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
    pixels = residual.numel()
    periodic = bragg_part(residual)
    if periodic is not None:
        image += periodic
        residual -= periodic
    sums = area_sums(residual)
    # A hit would be seen in the sum of the squares around it.
    hits = None if float(sums[1].amax()) < 0.99 * _HIT**2 else hits_in(residual, image, level)
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


def hits_in(residual: Tensor, image: Tensor, level: float) -> Tensor | None:
    """Pixels that no noise explains: hot ones and X-ray hits.

    Parameters
    ----------
    residual, image : Tensor
        float32 (H, W), what a restorer took out of a frame, and what it made of it less the frame's
        mean, in units of the noise.
    level : float
        That mean, in the same unit.

    Returns
    -------
    Tensor or None
        bool (H, W); None where there are none. The restorer has taken them out, and what they held
        belongs to no other pixel.
    """
    if residual.numel() < _LEAST_PIXELS:
        return None
    if float(torch.maximum(residual.amax(), -residual.amin())) < _HIT:
        return None
    # Bright places are noisier than the mean: at the most as those of a Poisson frame.
    brightness = (1.0 + image / level).clamp_min_(1.0) if level > 0.0 else torch.ones_like(image)
    hits = residual.abs() > brightness.sqrt_().mul_(_HIT)
    # So many are no defects: the noise is not what it seems.
    return hits if 0 < int(hits.sum()) < _MOST_HITS * residual.numel() else None
