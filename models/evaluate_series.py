"""What frames before are worth: `python -m tem_live.models.evaluate_series`.

Two questions to a temporal restorer. On drifting test scenes: how many times smaller is its mean
squared error than that of the single-frame restorer on the same frames, after it has seen a dozen?
And where a particle vanishes: how much of it is still there in the next frame?
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tem_live.errors import TemLiveError
from tem_live.models.restorers import Restorer, load_restorer
from tem_live.models.scores import mse
from tem_live.models.testscenes import TEST_SCENES, reference_scene

__all__ = ["drifting_gain", "main", "particle_left"]

Array = npt.NDArray[np.float32]

SPEEDS_PX = (0.0, 0.1, 0.5, 5.0)
PARTICLES = ((4, 0.6), (4, 0.3), (8, 0.5), (8, 0.2), (15, 0.4), (15, 0.1))
"""Radius in pixels and contrast of the particle that vanishes."""
_JUDGED = 3
_DIRECTION = (0.565, 0.825)


def _drifting(scene: str, size: int, dose: float, speed_px: float, frames: int) -> Iterator[Array]:
    """Expected electrons of a test scene that moves by so many pixels a frame."""
    margin = int(np.ceil(speed_px * frames)) + 8
    large = reference_scene(scene, size + 2 * margin, 0)
    for step in range(frames):
        shift = [speed_px * step * part for part in _DIRECTION]
        moved = ndimage.shift(large, shift, order=5, mode="nearest")
        inside = moved[margin : margin + size, margin : margin + size]
        yield np.asarray(dose * np.maximum(inside, 0.0), dtype=np.float32)


def drifting_gain(
    series: Restorer,
    single: Restorer,
    scene: str,
    speed_px: float,
    size: int = 384,
    dose: float = 5.0,
    frames: int = 14,
    seed: int = 1,
) -> float:
    """MSE of ``single`` over that of ``series`` on the last frames of a drifting scene.

    Parameters
    ----------
    series, single : Restorer
        The temporal one, reset before, and the one it is compared with.
    scene : str
        Name in `TEST_SCENES`.
    speed_px : float
        Drift per frame in pixels.
    size, frames : int
        Side of the frames in pixels, and their number; the last three are judged.
    dose : float
        Electrons per pixel, Poisson.
    seed : int
        Of the noise.
    """
    rng = np.random.default_rng(seed)
    errors: list[tuple[float, float]] = []
    _reset(series)
    for step, truth in enumerate(_drifting(scene, size, dose, speed_px, frames)):
        frame = rng.poisson(truth).astype(np.float32)
        restored = series.restore(frame)
        if step >= frames - _JUDGED:
            errors.append((mse(truth, single.restore(frame)), mse(truth, restored)))
    alone, together = np.mean(errors, axis=0)
    return float(alone / together)


def particle_left(
    series: Restorer, radius_px: float, contrast: float, dose: float = 5.0, seed: int = 0
) -> float:
    """Share of a particle's contrast that is left in the first frame without it.

    Parameters
    ----------
    series : Restorer
        Reset before; it sees ten frames with the particle, then one without.
    radius_px, contrast : float
        The particle; eight others stay.
    dose : float
        Electrons per pixel, Poisson.
    seed : int
        Of the noise.
    """
    size = 256
    y, x = np.mgrid[:size, :size]

    def absorb(image: Array, at: tuple[float, float], radius: float, share: float) -> Array:
        distance = np.hypot(y - at[0], x - at[1]) - radius
        return np.asarray(image * (1 - share / (1 + np.exp(distance / 0.8))), dtype=np.float32)

    gone = np.full((size, size), dose, dtype=np.float32)
    for i in range(4):
        gone = absorb(gone, (60 + 40 * i, 60), 8, 0.4)
        gone = absorb(gone, (60 + 40 * i, 200), 14, 0.3)
    there = absorb(gone, (128, 128), radius_px, contrast)
    place = np.hypot(y - 128, x - 128) < radius_px
    rng = np.random.default_rng(seed)
    _reset(series)
    for _ in range(10):
        series.restore(rng.poisson(there).astype(np.float32))
    after = series.restore(rng.poisson(gone).astype(np.float32))
    return float((gone - after)[place].mean() / (gone - there)[place].mean())


def _reset(restorer: Restorer) -> None:
    reset = getattr(restorer, "reset", None)
    if reset is not None:
        reset()


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables as JSON; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tem_live.models.evaluate_series",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--model", default="video")
    parser.add_argument("--single", default="fast")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=3, help="of the vanishing particle")
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: give 1 or more")
    try:
        series = load_restorer(options.model, options.device)
        single = load_restorer(options.single, options.device)
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    gains = {
        speed: {name: round(drifting_gain(series, single, name, speed), 2) for name in TEST_SCENES}
        for speed in SPEEDS_PX
    }
    left = {
        f"radius {radius} px, contrast {contrast}": [
            round(particle_left(series, radius, contrast, seed=seed), 3)
            for seed in range(options.seeds)
        ]
        for radius, contrast in PARTICLES
    }
    result = {
        "gain": gains,
        "gain_geometric_mean": {
            speed: round(float(np.exp(np.mean(np.log(list(by_scene.values()))))), 2)
            for speed, by_scene in gains.items()
        },
        "particle_left": left,
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
