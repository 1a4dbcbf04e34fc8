"""What a quicker arithmetic adds to a restorer's error.

    python tools/precision_study.py [--model fast] [--size 512] [--precision auto]

Mean squared error over that in float32 on the six test scenes, geometric mean and worst scene, and
the difference of the two results (root mean square) over the standard deviation of the frame.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
from arguments import count
from printing import print_lines

from tem_live.errors import InputError
from tem_live.models import cameras, load_restorer, scores, testscenes
from tem_live.models.evaluate import CAMERAS

_DOSES_E_PER_PX = (1.0, 5.0, 20.0, 100.0)


def study(model: str, size: int, precision: str) -> Iterator[str]:
    """A line for each camera and dose."""
    if size < 32:
        raise InputError(f"scenes of {size} px are too small; take 32 or more")
    quick = load_restorer(model, "cpu", precision)  # type: ignore[arg-type]
    exact = load_restorer(model, "cpu", "float32")
    yield f"{model}: {quick.precision} by {quick.engine} over float32, {size} x {size}"
    for camera, parameters in CAMERAS.items():
        for dose in _DOSES_E_PER_PX:
            ratios, distances = [], []
            for number, name in enumerate(testscenes.TEST_SCENES):
                rng = np.random.default_rng([number, int(dose)])
                scene = testscenes.reference_scene(name, size)
                frame, truth, _ = cameras.expose(rng, scene, dose, parameters)
                found, right = quick.restore(frame), exact.restore(frame)
                ratios.append(scores.mse(truth, found) / scores.mse(truth, right))
                distances.append(float(np.sqrt(np.mean((found - right) ** 2)) / frame.std()))
            mean = float(np.exp(np.mean(np.log(ratios))))
            yield (
                f"{camera:8} {dose:5g} e-/px  {mean:.4f} (worst {max(ratios):.4f})  "
                f"difference {np.mean(distances):.4f} of the noise"
            )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="fast")
    parser.add_argument("--size", type=count, default=512)
    parser.add_argument("--precision", default="auto", choices=("auto", "int8", "float16"))
    options = parser.parse_args(argv)
    return print_lines(study(options.model, options.size, options.precision))


if __name__ == "__main__":
    sys.exit(main())
