"""How much of a restorer's error on a real pair of frames could be learnt from them.

    python tools/pair_study.py FOLDER [--counts-per-electron 44] [--model fast]

Errors are those of ``tem-live evaluate --pair``, in e-^2, of frame 1 against frame 2. Corrections
are linear: of the restored frame and of what was taken away, each blurred by several widths, those
weights are found that bring it closest to the other frame. Found on the left halves of both frames
and applied to the right halves, and the other way round, they tell what can be learnt; found on the
very pixels that they are scored on they tell what cannot be passed, whatever is learnt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from arguments import positive
from scipy import ndimage

from tem_live.errors import TemLiveError
from tem_live.models import load_restorer, scores
from tem_live.models.real_images import load_pair

Array = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

_WIDTHS_PX = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def own_wiener(frame: Array) -> Array:
    """Wiener filter by rings of spatial frequency, its noise the mean power beyond 0.35 /px."""
    height, width = frame.shape
    mean = float(frame.mean())
    spectrum = np.fft.fft2(frame - mean)
    power = np.abs(spectrum) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    noise = float(power[radius > 0.35].mean())
    ring = np.minimum((radius * min(height, width)).astype(np.int64), min(height, width) // 2)
    members = np.maximum(np.bincount(ring.ravel()), 1)
    level = np.bincount(ring.ravel(), weights=power.ravel()) / members
    gain = np.maximum(1.0 - noise / np.maximum(level, 1e-12), 0.0)
    return np.asarray(np.fft.ifft2(spectrum * gain[ring]).real + mean, dtype=np.float32)


def features(frame: Array, restored: Array) -> Matrix:
    """What may be added to the restored frame, (pixels, features)."""
    taken, relative = frame - restored, restored - restored.mean()
    images = [np.ones_like(taken), relative, taken]
    for width in _WIDTHS_PX:
        images.append(ndimage.gaussian_filter(restored, width) - restored)
        images.append(ndimage.gaussian_filter(taken, width))
    return np.stack([image.ravel() for image in images], axis=1).astype(np.float64)


def lacking_detail(a: Array, b: Array, finest_px: float) -> tuple[float, float, float]:
    """Of what two restorations lack alike, the part finer than a period.

    Parameters
    ----------
    a, b : ndarray
        What was taken away from either frame.
    finest_px : float
        Period in pixels.

    Returns
    -------
    tuple of float
        That part in e-^2, its standard error, and the noise that is as fine, in e-^2.
    """
    one, other = np.fft.fft2(a) / a.size, np.fft.fft2(b) / a.size
    height, width = a.shape
    fine = (
        np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]) > 1.0 / finest_px
    )
    cross = (one * other.conj()).real[fine]
    power = 0.5 * (np.abs(one) ** 2 + np.abs(other) ** 2)[fine]
    # Two coefficients that are conjugates of each other say the same.
    error = float(power.mean()) * float(np.sqrt(cross.size))
    return float(cross.sum()), error, float(power.sum())


def weights(parts: list[tuple[Matrix, Matrix]]) -> Matrix:
    """Least squares over several (features, wanted)."""
    left = sum(x.T @ x for x, _ in parts)
    right = sum(x.T @ y for x, y in parts)
    found = np.asarray(np.linalg.lstsq(left, right, rcond=1e-10)[0], dtype=np.float64)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python tools/pair_study.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="with frame_1.tif and frame_2.tif")
    parser.add_argument("--counts-per-electron", type=positive, default=44.0)
    parser.add_argument("--model", default="fast")
    options = parser.parse_args(argv)
    try:
        a, b = load_pair(options.folder, options.counts_per_electron)
        restorer = load_restorer(options.model, "cpu", precision="float32")
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    noise = 0.5 * scores.mse(a, b)
    restored = [np.asarray(restorer.restore(frame), dtype=np.float32) for frame in (a, b)]
    before = scores.mse(b, restored[0]) - noise
    both = 0.5 * (before + scores.mse(a, restored[1]) - noise)
    sys.stdout.write(f"{options.model}: {before:.4f} e-^2, both ways {both:.4f}\n")
    taken_a, taken_b = a - restored[0], b - restored[1]
    common = float(np.mean(taken_a.astype(float) * taken_b))
    fine, doubt, power = lacking_detail(taken_a, taken_b, finest_px=6.0)
    sys.stdout.write(
        f"what both lack: {common:.4f} e-^2, of it {fine:.4f} ± {doubt:.4f} finer than 6 px, where "
        f"the noise has {power:.1f}\n"
    )
    wiener = [own_wiener(frame) for frame in (a, b)]
    there, back = scores.mse(b, wiener[0]) - noise, scores.mse(a, wiener[1]) - noise
    sys.stdout.write(
        f"Wiener filter of each frame: {there:.4f}, both ways {(there + back) / 2:.4f}\n"
    )

    wanted = [(b - restored[0]).ravel().astype(float), (a - restored[1]).ravel().astype(float)]
    made = [features(frame, r) for frame, r in zip((a, b), restored, strict=True)]
    found = weights([(made[0], wanted[0])])
    fallen = float(np.mean(wanted[0] ** 2) - np.mean((wanted[0] - made[0] @ found) ** 2))
    chance = made[0].shape[1] * noise / a.size
    sys.stdout.write(
        f"{made[0].shape[1]} weights found on the pixels they are scored on: falls by "
        f"{fallen:.4f} e-^2, of which {chance:.4f} by chance alone\n"
    )
    left = np.zeros(a.shape, dtype=np.bool_)
    left[:, : a.shape[1] // 2] = True
    gains = []
    for seen in (left.ravel(), ~left.ravel()):
        found = weights([(x[seen], y[seen]) for x, y in zip(made, wanted, strict=True)])
        for x, y in zip(made, wanted, strict=True):
            rest = y[~seen]
            gains.append(float(np.mean(rest**2) - np.mean((rest - x[~seen] @ found) ** 2)))
    shown = ", ".join(f"{gain:+.4f}" for gain in gains)
    sys.stdout.write(
        "found on one half of both frames, applied to the other: falls by "
        f"{np.mean(gains):.4f} e-^2 ({shown})\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
