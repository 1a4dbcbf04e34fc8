"""The training step as a Lightning module: network, average, optimisers, learning rate, clock.

Optimisation is manual because the adversarial stage has two optimisers. The learning rate follows
the time spent training (over ``max_minutes``) or the steps, whichever is further, so that a run
ends annealed on any machine; where there are several devices the first one's clock counts.

This module imports torch and Lightning; import it lazily.
"""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from tem_live.errors import InputError
from tem_live.models.data_device import Batch
from tem_live.models.lightning_checkpoint import Checkpoint, moments_of, restore_moments
from tem_live.models.losses import (
    PatchGan,
    TaughtLoss,
    make_loss,
    relativistic_losses,
    unit_contrast,
)
from tem_live.models.network import BLOCK, DoseUNet, block_bands, conditions
from tem_live.models.training import Recipe
from tem_live.models.waves import lattice_waves

__all__ = ["RestorerModule", "restored_frames"]


def restored_frames(network: DoseUNet, frames: Tensor) -> Tensor:
    """Restore frames as the shipped restorer does, up to its Bragg peaks and its set mean.

    Parameters
    ----------
    network : DoseUNet
        In training or not.
    frames : Tensor
        float32 (N, 1, H, W) in electrons; H and W multiples of ``network.multiple``.

    Returns
    -------
    Tensor
        float32 (N, 1, H, W) in electrons.
    """
    # The noise is measured in full precision, whatever the network computes in.
    with torch.autocast(frames.device.type, enabled=False):
        blocks = functional.pixel_unshuffle(frames.float(), BLOCK)
        mean = blocks.mean(dim=(1, 2, 3))
        with torch.no_grad():
            sigma, vector = conditions(block_bands(blocks), mean)
            sigma = sigma.clamp_min(1e-3)
        shift, unit = mean[:, None, None, None], sigma[:, None, None, None]
        z = ((blocks - shift) / unit).contiguous(memory_format=torch.channels_last)
        waves = None
        if network.waves:
            with torch.no_grad():
                image = functional.pixel_shuffle(z, BLOCK)[:, 0]
                waves = functional.pixel_unshuffle(lattice_waves(image)[:, None], BLOCK)
    out: Tensor = network(z, vector, waves)
    return functional.pixel_shuffle(out.float() * unit + shift, BLOCK)


class RestorerModule(lightning.LightningModule):
    """Trains one network by a recipe.

    Parameters
    ----------
    recipe : Recipe
        Network, loss, optimiser.

    Attributes
    ----------
    network, average : DoseUNet
        The network, and the exponentially weighted mean of its weights, which is exported.
    step : int
        Steps taken, those of earlier runs included.
    seconds : float
        Time spent training, likewise.
    teacher : nn.Module or None
        Restores the frames of a step, too, see `tem_live.models.teacher`.
    losses, ratios : list of float
        Of the steps since `ProgressReport` cleared them.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        shape = recipe.network
        # In the layout that the convolutions compute in: a sixth of a step less on a processor.
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self.network, self.average = (
            DoseUNet(shape.widths, shape.blocks, shape.waves, shape.middles).to(**layout)
            for _ in range(2)
        )
        self.average.load_state_dict(self.network.state_dict())
        self.average.requires_grad_(False)
        self.loss = make_loss(recipe.loss.name)
        self.taught_loss = TaughtLoss(recipe.loss.taught)
        self.teacher: nn.Module | None = None
        self.discriminator = PatchGan() if recipe.loss.gan_weight > 0.0 else None
        self.step = 0
        self.seconds = 0.0
        self.stopping = False
        self.losses: list[Tensor] = []
        self.ratios: list[Tensor] = []
        self._began = 0.0
        self._resumed: Checkpoint | None = None

    def begin_with(self, weights: dict[str, Tensor]) -> None:
        """Start from these weights instead of random ones; they must be of the same shape."""
        try:
            self.network.load_state_dict({k: v.float() for k, v in weights.items()})
        except RuntimeError as error:
            raise InputError(
                "the weights to start from belong to another network; "
                "give [network] its widths and blocks, or leave that table out"
            ) from error
        self.average.load_state_dict(self.network.state_dict())

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; raises `InputError` if it belongs to another network."""
        try:
            self.network.load_state_dict(checkpoint.tensors("network"))
            self.average.load_state_dict(checkpoint.tensors("average"))
            discriminator = checkpoint.tensors("discriminator")
            if self.discriminator is not None and discriminator:
                self.discriminator.load_state_dict(discriminator)
        except RuntimeError as error:
            raise InputError(
                f"cannot resume: the checkpoint in {checkpoint.folder.parent} is of another "
                "network; begin anew with --no-resume, or in another folder"
            ) from error
        self.step, self.seconds = checkpoint.step, checkpoint.seconds
        self._resumed = checkpoint

    def configure_optimizers(self) -> Any:
        """AdamW for the network, Adam for the discriminator."""
        optim = self.recipe.optim
        optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                self.network.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay
            )
        ]
        if self.discriminator is not None:
            rate = self.recipe.loss.gan_learning_rate
            optimisers.append(
                torch.optim.Adam(self.discriminator.parameters(), lr=rate, betas=(0.5, 0.999))
            )
        if self._resumed is not None:
            for (part, net), optimiser in zip(self._trained(), optimisers, strict=True):
                name = "moments" if part == "network" else f"{part}-moments"
                restore_moments(net, optimiser, self._resumed.tensors(name), self.step)
        return optimisers

    def _trained(self) -> list[tuple[str, nn.Module]]:
        found: list[tuple[str, nn.Module]] = [("network", self.network)]
        if self.discriminator is not None:
            found.append(("discriminator", self.discriminator))
        return found

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, see `tem_live.models.lightning_checkpoint`."""
        optimisers = self.optimizers()
        listed = optimisers if isinstance(optimisers, list) else [optimisers]
        found: dict[str, dict[str, Tensor]] = {"average": dict(self.average.state_dict())}
        for (part, net), optimiser in zip(self._trained(), listed, strict=True):
            name = "moments" if part == "network" else f"{part}-moments"
            found[part] = dict(net.state_dict())
            found[name] = moments_of(net, optimiser.optimizer)
        return found

    # -- the clock --------------------------------------------------------------------------

    def rate(self) -> float:
        """Learning rate now."""
        return self.recipe.optim.rate(self.step, self.seconds)

    def finished(self) -> bool:
        """Whether the time or the steps are used up."""
        return self.recipe.optim.finished(self.step, self.seconds)

    def on_train_start(self) -> None:
        """Start the clock where the last run left it."""
        self._began = time.monotonic() - self.seconds
        # BatchNorm and the like would differ; there are none, but modes are kept apart anyway.
        self.average.eval()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate."""
        rate = self.rate()
        optimisers = self.optimizers()
        first = optimisers[0] if isinstance(optimisers, list) else optimisers
        for group in first.optimizer.param_groups:
            group["lr"] = rate

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Read the clock; devices that went apart by it would learn at different rates."""
        seconds = time.monotonic() - self._began
        if self.trainer.world_size > 1:
            seconds = self.trainer.strategy.broadcast(seconds)
            self.stopping = bool(self.trainer.strategy.broadcast(self.stopping))
        self.seconds = seconds
        if self.finished() or self.stopping:
            self.trainer.should_stop = True

    # -- the step ---------------------------------------------------------------------------

    def forward(self, frames: Tensor) -> Tensor:
        """Restore frames with the network as it is now; see `restored_frames`."""
        return restored_frames(self.network, frames)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take one step."""
        optimisers = self.optimizers()
        listed = optimisers if isinstance(optimisers, list) else [optimisers]
        taught = None if self.teacher is None else self.teacher(batch.frames, self.step)
        restored = self.forward(batch.frames)
        # Losses are sums over many pixels: in full precision.
        with torch.autocast(restored.device.type, enabled=False):
            said = (restored, batch.targets, batch.scale)
            loss: Tensor = self.loss(*said) if taught is None else self.taught_loss(*said, taught)
            adversarial = self._judged(restored, batch.targets)
            if adversarial is not None:
                loss = loss + self.recipe.loss.gan_weight * adversarial[1]
        listed[0].zero_grad()
        self.manual_backward(loss, retain_graph=adversarial is not None)
        self.clip_gradients(
            listed[0].optimizer,
            gradient_clip_val=self.recipe.optim.clip_norm,
            gradient_clip_algorithm="norm",
        )
        if adversarial is not None:
            listed[1].zero_grad()
            self.manual_backward(adversarial[0])
            listed[1].step()
        listed[0].step()
        self.step += 1
        self._follow()
        with torch.no_grad():
            ratio = (restored - batch.targets).square().mean(dim=(1, 2, 3)) / batch.scale
            self.ratios.append(ratio.clamp_min(1e-6).log().mean())
            self.losses.append(loss.detach())
        return loss.detach()

    def _judged(self, restored: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """Losses of the discriminator and, from it, of the network; None before the stage."""
        if self.discriminator is None or self.step < self.recipe.loss.gan_from_step:
            return None
        fake, real = unit_contrast(restored, targets)
        judge = self.discriminator
        own, _ = relativistic_losses(judge(real), judge(fake.detach()))
        judge.requires_grad_(False)
        _, network = relativistic_losses(judge(real), judge(fake))
        judge.requires_grad_(True)
        return own, network

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.recipe.optim.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.network.parameters()), 1.0 - decay
        )
