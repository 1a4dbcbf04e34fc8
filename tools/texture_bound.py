"""What no restorer can take away: the error that the texture of a support film leaves.

    python tools/texture_bound.py [--dose 5]

The speckle of an amorphous film is random. Even who knows its power spectrum at each place can only
weigh its waves, and Wiener's filter, which does that best, leaves S N / (S + N) of each (S its
power, N that of the counting noise): of a Gaussian texture no restorer leaves less. Here the
spectrum is that of each patch of the truth itself, which is more than anybody could know, and the
film is what differs little from its surroundings; particles and their edges count as if they could
be restored without any error. What is printed is therefore too small rather than too large.

Printed for the nanoparticles of the targets (`tem_live.models.evaluate_targets`), Poisson noise:
that least error over the one of the best Gaussian, and the largest dose gain it allows.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import numpy.typing as npt
from arguments import positive
from scipy import ndimage

from tem_live.models import cameras, scores, testscenes
from tem_live.models.blurs import best_gaussian, gaussian_blur
from tem_live.models.scores_waves import hann

_PATCH_PX = 16
# Texture is finer than this blur; coarser waves count as if they were known.
_DETAIL_PX = 8.0
# The film: what a blur of so many px leaves of it scatters little about the median around it.
_SMOOTH_PX, _AROUND_PX, _STEP_PX, _SIGMAS = 3.0, 132, 4, 4.0
_MAD_TO_SIGMA = 1.4826


def film_of(truth: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Where a truth (H, W) is film or a wide hole, and neither particle nor edge."""
    smooth = gaussian_blur(truth, _SMOOTH_PX).astype(np.float64)
    coarse = smooth[::_STEP_PX, ::_STEP_PX]
    level = ndimage.median_filter(coarse, _AROUND_PX // _STEP_PX, mode="reflect")
    off = np.abs(coarse - level)
    film = off < _SIGMAS * _MAD_TO_SIGMA * float(np.median(off))
    whole = np.kron(film, np.ones((_STEP_PX, _STEP_PX), np.bool_))
    return np.asarray(whole[: smooth.shape[0], : smooth.shape[1]])


def least_error(
    truth: npt.ArrayLike, noise_variance: float, film: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Mean squared error that no restorer falls below, and the share of the frame that is film.

    Parameters
    ----------
    truth : array_like
        (H, W), the frame without noise.
    noise_variance : float
        Of a pixel of the film, in the square of that unit.
    film : ndarray
        bool (H, W), see `film_of`.

    Returns
    -------
    error : float
        Over the whole frame; 0 where no patch of 16 x 16 px is all film.
    share : float
        Of pixels that are film.
    """
    texture = np.asarray(truth, np.float64) - gaussian_blur(truth, _DETAIL_PX)
    window = hann((_PATCH_PX, _PATCH_PX))
    left = []
    for y in range(0, texture.shape[0] - _PATCH_PX + 1, _PATCH_PX // 2):
        for x in range(0, texture.shape[1] - _PATCH_PX + 1, _PATCH_PX // 2):
            patch = slice(y, y + _PATCH_PX), slice(x, x + _PATCH_PX)
            if film[patch].all():
                power = np.abs(np.fft.fft2(texture[patch] * window, norm="ortho")) ** 2
                left.append(float((power * noise_variance / (power + noise_variance)).mean()))
    share = float(film.mean())
    return (share * float(np.mean(left)) if left else 0.0), share


def study(dose: float) -> list[str]:
    """A line for each scene."""
    scenes = {
        "scene file of the simulator": testscenes.simulator_nanoparticles(),
        "test scene": testscenes.reference_scene("nanoparticles"),
    }
    lines = []
    for name, scene in scenes.items():
        rng = np.random.default_rng(0)
        frame, truth, _ = cameras.expose(rng, scene, dose, cameras.Camera())
        blurred, _ = best_gaussian(truth, frame)
        film = film_of(truth)
        least, share = least_error(truth, float(truth[film].mean()), film)
        lines.append(
            f"{name}, {dose:g} e-/px: film {share:.0%} of the frame; error ratio at least "
            f"{least / scores.mse(truth, blurred):.2f}, dose gain at most "
            f"{scores.mse(truth, frame) / max(least, 1e-30):.0f}"
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dose", type=positive, default=5.0, help="e-/px")
    sys.stdout.write("\n".join(study(parser.parse_args(argv).dose)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
