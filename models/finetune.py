"""Go on training a shipped restorer on one's own data, and say what came of it.

A part of the data is held out. Only if the new restorer is better there, by more than chance, is
it published: written with a card to where restorers are found by name.

This module imports torch inside its functions only.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.models.cards import ModelCard, Score, sha256_of, write_card
from tem_live.models.pairs import Example, OwnData, load_own
from tem_live.models.restorers import imported_folder, list_restorers, load_restorer
from tem_live.models.training import Progress, Recipe, checked_recipe, writing_to
from tem_live.paths import written_whole

if TYPE_CHECKING:
    import threading

    from torch import Tensor

__all__ = ["Gain", "Outcome", "finetune", "held_out_gain", "own_recipe", "split", "weights_of"]

Array = npt.NDArray[np.float32]
Restore = Callable[[Array], Array]

# Differences are averaged over blocks of this side, which are then taken as independent.
_BLOCK_PX = 32
# A gain counts where it is more than this many standard errors.
_SURE = 2.0


@dataclass(frozen=True)
class Gain:
    """What a restorer gained on data that was held out.

    Attributes
    ----------
    error_before_e2, error_after_e2 : float or None
        Mean squared error of the start restorer and of the new one, less the noise of the
        reference; None where that noise is not known (long exposures).
    gain_e2, standard_error_e2 : float
        By how much the error fell, and how sure that is; both in e-^2.
    """

    error_before_e2: float | None
    error_after_e2: float | None
    gain_e2: float
    standard_error_e2: float

    @property
    def better(self) -> bool:
        """Whether the gain stands out of chance."""
        return self.gain_e2 > _SURE * self.standard_error_e2

    def __str__(self) -> str:
        text = f"{self.gain_e2:+.4f} ± {self.standard_error_e2:.4f} e-²"
        if self.error_before_e2 is not None and self.error_before_e2 > 0.0:
            text += f" ({self.gain_e2 / self.error_before_e2:+.0%} of the error)"
        return text


@dataclass(frozen=True)
class Outcome:
    """What a fine-tuning ended with.

    Attributes
    ----------
    name : str
        Of the new restorer.
    kind : str
        "pairs", "series" or "frame".
    gain : Gain or None
        On what was held out; None where nothing was.
    path : Path or None
        Weights of the published restorer; None where it was no better, or nobody can tell.
    weights : Path
        The weights in any case, without a card.
    steps : int
        Steps taken.
    seconds, cpu_seconds : float
        All of it: time passed, and time of this process on the processor.
    warnings : tuple of str
        What the user should know.
    """

    name: str
    kind: str
    gain: Gain | None
    path: Path | None
    weights: Path
    steps: int
    seconds: float
    cpu_seconds: float
    warnings: tuple[str, ...]

    def message(self) -> str:
        """One plain line."""
        if self.gain is None:
            return (
                "nothing tells whether it gained: not published; give another frame of the same "
                "place with --check, or a series"
            )
        where = "the frame" if self.kind == "frame" else f"the {self.kind}"
        told = f"error on {where} held out fell by {self.gain}"
        if self.path is not None:
            return f"{told}: published as {self.name}"
        if self.gain.gain_e2 > 0.0:
            return f"{told}, which may be chance: not published"
        return f"no gain, {told}: not published, keep the restorer you have"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able copy."""
        return {
            **asdict(self),
            "path": None if self.path is None else str(self.path),
            "weights": str(self.weights),
            "published": self.path is not None,
            "message": self.message(),
        }


def weights_of(name: str) -> dict[str, Tensor]:
    """Weights of an installed restorer, or of a .safetensors path, to start a training from.

    Of one that sees a frame from several sides they are those of a single view.

    Raises
    ------
    InputError
        It is not one of our networks.
    """
    _, weights = _network_of(name, ("network", "views"))
    return weights


def _network_of(
    name: str, kinds: Sequence[str] = ("network",)
) -> tuple[ModelCard, dict[str, Tensor]]:
    restorer = load_restorer(Path(name) if name.endswith(".safetensors") else name, "cpu")
    network = getattr(restorer, "_network", None)
    if restorer.card.kind not in kinds or restorer.card.network != "dose_unet" or network is None:
        raise InputError(f"{name} is no network of ours that can be trained on here; use fast")
    return restorer.card, {k: v.clone() for k, v in network.state_dict().items()}


def own_recipe(
    start: str,
    folder: str | Path,
    *,
    name: str | None = None,
    minutes: float = 12.0,
    counts_per_electron: float | None = None,
    offset_counts: float = 0.0,
    check: str | Path | None = None,
    kind: str = "auto",
    reduce: int = 1,
) -> Recipe:
    """The recipe of ``tem-live train --from START --data FOLDER``.

    Raises
    ------
    InputError
        A value that no recipe may have.
    """
    stem = Path(start).stem
    return checked_recipe(
        {
            "name": name or f"{stem}-own",
            "start": start,
            "own": {
                "folder": str(folder),
                "kind": kind,
                "check": None if check is None else str(check),
                "counts_per_electron": counts_per_electron,
                "offset_counts": offset_counts,
                "reduce": reduce,
            },
            "data": {"scenes": 64, "crops_px": [128], "batch_px": 65_536},
            "loss": {"name": "noisy-target"},
            "optim": {
                "max_minutes": minutes,
                "learning_rate": 6e-4,
                "warmup_steps": 20,
                "ema": 0.99,
                "checkpoint_minutes": 2.0,
            },
        },
        "own data",
    )


def finetune(
    recipe: Recipe,
    folder: Path,
    *,
    target: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Train on one's own data and publish what is better than before.

    Parameters
    ----------
    recipe : Recipe
        With `own` and `start`.
    folder : Path
        Of the run: checkpoints, log, weights.
    target : Path, optional
        Where a better restorer is published; by default where restorers are found by name.
    resume, device, devices, progress, stop
        See `tem_live.models.lightning_run.train`.

    Raises
    ------
    InputError
        The data or the recipe cannot be used, or the name is taken by a restorer that ships.
    """
    began, cpu = time.monotonic(), time.process_time()
    own = recipe.own
    if own is None or recipe.start is None:
        raise InputError("to go on training, a recipe needs start and the table [own]")
    if recipe.name in {c.name for c in list_restorers() if not _is_imported(c.name)}:
        raise InputError(f"{recipe.name!r} is the name of a restorer that ships; give another")
    if target is not None and target.exists() and not target.is_dir():
        raise InputError(f"cannot publish to {target}: it is a file; name a folder")
    from tem_live.models.data_device import DeviceBatches
    from tem_live.models.data_own import OwnBatches
    from tem_live.models.data_scenes import open_scenes
    from tem_live.models.lightning_run import fit

    start = recipe.start
    card, weights = _network_of(start)
    recipe = _with_network_of(card, recipe)
    before = _restore_with(load_restorer(start, device))
    data = load_own(own, before)
    training, held_out = split(data, own.held_out)
    simulated = None
    if own.simulated > 0.0:
        dose = float(np.mean([e.frame.mean() for e in training]))
        near = recipe.data.model_copy(update={"dose_core": (0.5 * dose, 2.0 * dose)})
        with writing_to(folder):
            bank = open_scenes(recipe, folder, processes=1)
        simulated = DeviceBatches(near, recipe.seed, bank, "cpu")
    maker = OwnBatches(
        training,
        before,
        simulated,
        share=own.simulated,
        batch_px=recipe.data.batch_px,
        crop_px=max(recipe.data.crops_px),
        seed=recipe.seed,
    )
    path = fit(
        recipe,
        folder,
        resume=resume,
        device=device,
        devices=devices,
        progress=progress,
        stop=stop,
        weights=weights,
        maker=maker,
    )
    trial = folder / "trial"
    placed, steps = _place(path, trial, recipe, card)
    gain = None
    if held_out:
        gain = held_out_gain(before, _restore_with(load_restorer(placed, device)), held_out)
    published = None
    if gain is not None and gain.better:
        published, _ = _place(path, target or imported_folder(), recipe, card, data, gain)
    shutil.rmtree(trial, ignore_errors=True)
    return Outcome(
        name=recipe.name,
        kind=data.kind,
        gain=gain,
        path=published,
        weights=path,
        steps=steps,
        seconds=time.monotonic() - began,
        cpu_seconds=time.process_time() - cpu,
        warnings=data.warnings,
    )


def _is_imported(name: str) -> bool:
    return (imported_folder() / f"{name}.json").is_file()


def _with_network_of(card: ModelCard, recipe: Recipe) -> Recipe:
    """The network's shape is that of the start, whatever the recipe says."""
    shape = {k: v for k, v in card.architecture.items() if k in type(recipe.network).model_fields}
    network = type(recipe.network).model_validate(shape)
    return recipe.model_copy(update={"network": network})


def _restore_with(restorer: Any) -> Restore:
    return lambda frame: np.asarray(restorer.restore(frame), dtype=np.float32)


def split(data: OwnData, share: float) -> tuple[list[Example], list[Example]]:
    """Divide into what is trained on and what is held out.

    The last pairs or successive frames are held out. Of a series, the frame between the two parts
    is in neither. Of single frames nothing is: only another frame of the same place can tell what
    was gained (`OwnData.check`).
    """
    examples = list(data.examples)
    if data.kind == "frame":
        return examples, [data.check] if data.check is not None else []
    count = min(max(1, round(share * len(examples))), len(examples) - 1)
    # In a series the target of one example is the frame of the next.
    gap = 1 if data.kind == "series" and len(examples) - count > 1 else 0
    return examples[: len(examples) - count - gap], examples[len(examples) - count :]


def held_out_gain(before: Restore, after: Restore, examples: Sequence[Example]) -> Gain:
    """Compare two restorers on examples that neither has seen.

    With a target y of independent noise, mean((r - y)²) is the error of r plus the noise of y, and
    the difference of two restorers is free of the latter. The standard error is that of the means
    of blocks of 32 px.
    """
    blocks: list[float] = []
    errors: list[tuple[float, float]] = []
    for example in examples:
        y = example.target
        assert y is not None, "held out examples have a target"
        old, new = _squares(before(example.frame), y), _squares(after(example.frame), y)
        # Both frames have this noise where they are as noisy as each other.
        noise = 0.5 * float(np.mean((example.frame - y) ** 2))
        errors.append((float(old.mean()) - noise, float(new.mean()) - noise))
        blocks += _block_means(old - new)
    spread = float(np.std(blocks, ddof=1)) if len(blocks) > 1 else math.inf
    known = errors and _equally_noisy(examples)
    return Gain(
        error_before_e2=float(np.mean([a for a, _ in errors])) if known else None,
        error_after_e2=float(np.mean([b for _, b in errors])) if known else None,
        gain_e2=float(np.mean(blocks)),
        standard_error_e2=spread / math.sqrt(len(blocks)),
    )


def _squares(restored: Array, reference: Array) -> npt.NDArray[np.float64]:
    """Squared differences; those of a ruined network are large, but numbers."""
    limit = 1e6 * max(float(np.abs(reference).max()), 1.0)
    sound = np.nan_to_num(restored.astype(np.float64), nan=limit, posinf=limit, neginf=-limit)
    return np.asarray((np.clip(sound, -limit, limit) - reference) ** 2)


def _equally_noisy(examples: Sequence[Example]) -> bool:
    """Whether targets are frames like the others, and not long exposures."""
    rough = [
        (float(np.std(np.diff(e.frame))), float(np.std(np.diff(e.target))))
        for e in examples
        if e.target is not None
    ]
    return all(0.8 < b / max(a, 1e-9) < 1.25 for a, b in rough)


def _block_means(image: npt.NDArray[np.float64]) -> list[float]:
    rows = max(image.shape[0] // _BLOCK_PX, 1)
    columns = max(image.shape[1] // _BLOCK_PX, 1)
    return [
        float(block.mean())
        for band in np.array_split(image, rows, axis=0)
        for block in np.array_split(band, columns, axis=1)
    ]


def _place(
    weights: Path,
    target: Path,
    recipe: Recipe,
    start: ModelCard,
    data: OwnData | None = None,
    gain: Gain | None = None,
) -> tuple[Path, int]:
    """Copy weights beside a card of their own; returns their place and the steps."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as stream:
        steps = int(stream.metadata()["step"])
    placed = target / weights.name
    with writing_to(target), written_whole(placed) as part:
        shutil.copyfile(weights, part)
    score: tuple[Score, ...] = ()
    if data is not None and gain is not None:
        figures = {
            "gain_e2": round(gain.gain_e2, 5),
            "standard_error_e2": round(gain.standard_error_e2, 5),
            "error_before_e2": gain.error_before_e2,
            "error_after_e2": gain.error_after_e2,
        }
        score = (
            Score(
                data=f"own {data.kind}, held out from the training",
                camera="real",
                extra={k: v for k, v in figures.items() if v is not None},
                command=f"tem-live train --from {recipe.start} --data ...",
            ),
        )
    kind = "images" if data is None else data.kind
    card = start.model_copy(
        update={
            "name": recipe.name,
            "title": f"{start.name}, trained on with own {kind}",
            "version": "1",
            "default": False,
            "scores": score,
            "training": f"{steps} steps from {start.name} version {start.version}",
            "recipe": json.dumps(recipe.model_dump(mode="json"), indent=2),
            "source": f"{start.name}, SHA-256 {start.sha256}",
            "weights": "",
            "sha256": sha256_of(placed),
            "limits": (*start.limits, "Trained on one user's data: score it anew on any other."),
        }
    )
    write_card(placed.with_suffix(".json"), card)
    return placed, steps
