"""What restoring costs around the network, in ms of a thread's processor time.

    OMP_NUM_THREADS=1 python tools/around_network.py [--sides 256,512,1024] [--seconds 3]

Frames of 5 e-/px, of a soft pattern and of the test scene `crystal`, whose lattice is taken out and
given back. The network answers from memory, so that it is what is around it that is measured, with
the cache as it leaves it to a degree only. The least and the median of the turns are shown.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from arguments import positive, sides

from tem_live import threads
from tem_live.models import load_restorer
from tem_live.models.testscenes import reference_scene


def main() -> None:
    """Print one line for each side and scene."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=sides, default=[256, 512, 1024, 2048])
    parser.add_argument("--seconds", type=positive, default=3.0, help="time for each line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threads.keep_memory()
    restorer = load_restorer("fast", "cpu")
    network = restorer._run  # type: ignore[attr-defined]
    answers: dict[torch.Size, torch.Tensor] = {}
    spent = [0.0]

    def remembered(blocks: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        start = time.thread_time()
        if blocks.shape not in answers:
            answers[blocks.shape] = network(blocks, *conditions).clone()
        answer = answers[blocks.shape].clone(memory_format=torch.preserve_format)
        spent[0] += time.thread_time() - start
        return answer

    restorer._run = remembered  # type: ignore[attr-defined]
    for side in options.sides:
        y, x = np.mgrid[:side, :side]
        crystal = np.tile(reference_scene("crystal", 512), (-(-side // 512),) * 2)[:side, :side]
        soft = 1.0 + 0.3 * np.sin(x / 40.0) * np.cos(y / 31.0)
        for name, scene in (("soft", soft), ("crystal", crystal)):
            frame = np.random.default_rng(0).poisson(5.0 * scene).astype(np.float32)
            out = np.empty_like(frame)
            answers.clear()
            restorer.restore(frame, out=out)
            times: list[float] = []
            end = time.monotonic() + options.seconds
            while time.monotonic() < end or len(times) < 3:
                spent[0] = 0.0
                start = time.thread_time()
                restorer.restore(frame, out=out)
                times.append(1e3 * (time.thread_time() - start - spent[0]))
            least, median = min(times), float(np.median(times))
            print(
                f"{side} {name}: least {least:.2f}, median {median:.2f} ms, "
                f"{1e6 * least / side**2:.1f} ns per px",
                flush=True,
            )


if __name__ == "__main__":
    main()
