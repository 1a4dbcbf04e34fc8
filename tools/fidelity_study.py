"""How well fidelity is told without a reference: beside the truth, where there is one.

    python tools/fidelity_study.py [--model fast] [--dose 5] [--sections counted verdicts camera]

- `counted`: the halves of two Poisson frames of each test scene; error, equivalent dose and
  resolution as `tem_live.fidelity.judge_counted` tells them, and as they are.
- `verdicts`: what is said of the model, of a Gaussian blur, of the raw frame, and of the model with
  a lattice of two waves of 5 % added that is nowhere in the specimen; three doses.
- `camera`: two pairs of successive frames of the simulated camera (blur, read noise) at that dose.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from arguments import positive
from printing import print_lines

from tem_live import fidelity_spectra as spectra
from tem_live.drivers.protocols import CameraSettings
from tem_live.drivers.sim import SimCamera
from tem_live.fidelity import judge_counted, judge_successive, thinned
from tem_live.models import load_restorer
from tem_live.models.testscenes import TEST_SCENES, reference_scene

Array = npt.NDArray[np.float32]
Restore = Callable[[Array], Array]

SIDE_PX = 512
DOSES = (1.0, 5.0, 20.0)
CAMERA_SCENES: dict[str, dict[str, object]] = {
    "nanoparticles": {"scene": "nanoparticles"},
    "lattice": {"scene": "lattice", "specimen_pixel_nm": 0.03, "drift_nm_per_s": (3.5, -2.0)},
    "damage": {"scene": "damage", "specimen_pixel_nm": 0.03},
}
_OFFSET_COUNTS, _COUNTS_PER_ELECTRON, _EXPOSURE_S = 100, 40, 0.01


def poisson_frames(scene: str, dose: float) -> tuple[Array, npt.NDArray[np.int64]]:
    """Truth (H, W) of a test scene, and two frames of it (2, H, W), in electrons."""
    truth = np.asarray(dose * reference_scene(scene, SIDE_PX), np.float32)
    # Each scene has noise of its own: with one seed for all, its chance would be that of all.
    rng = np.random.default_rng([1, *scene.encode()])
    return truth, rng.poisson(np.stack([truth] * 2))


def resolved_px(restored: Array, truth: Array) -> float | None:
    """Finest period in px whose ring correlates with the truth by half; None where none does."""
    rings = spectra.Rings(truth.shape)
    first, second = (spectra.half_spectrum(frame) for frame in (restored, truth))
    shared = rings.mean(spectra.cross(first, second))
    powers = rings.mean(spectra.power(first)) * rings.mean(spectra.power(second))
    correlation = shared / np.sqrt(np.maximum(powers, 1e-300))
    above = correlation >= spectra.THRESHOLD
    return spectra.finest_period(rings.frequency, correlation, above)


def counted(restore: Restore, dose: float) -> Iterator[str]:
    """A line a scene of the table in docs/dose.md."""
    yield "| scene | MSE of a half, e-² | true | equivalent dose, e-/px | true | px | true |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for scene in TEST_SCENES:
        truth, frames = poisson_frames(scene, dose)
        seed = [7, *scene.encode()]
        found = judge_counted(restore, frames, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        halves = [restore(half) for frame in frames for half in thinned(frame, rng)]
        error = float(np.mean([np.mean((half - truth / 2) ** 2) for half in halves]))
        finest = resolved_px(halves[0], np.asarray(truth / 2, np.float32))
        least = found.equivalent_dose_at_least_e_per_px
        equivalent = found.equivalent_dose_e_per_px
        yield (
            f"| {scene.replace('_', ' ')} | {found.mse_e2:.3f} ± {found.mse_error_e2:.3f} "
            f"| {error:.3f} | {f'over {least:.0f}' if equivalent is None else f'{equivalent:.0f}'} "
            f"| {(dose / 2) ** 2 / error:.0f} | {_px(found.frc_px)} | {_px(finest)} |"
        )


def _px(period: float | None) -> str:
    return "none" if period is None else f"{period:.2g}"


def verdicts(name: str, restore: Restore) -> Iterator[str]:
    """A line a method: how often each verdict fell, and why not `good`."""
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX] / SIDE_PX
    waves = np.cos(2 * np.pi * (37 * x + 11 * y)) + np.cos(2 * np.pi * (37 * y - 11 * x))

    def inventing(frame: Array) -> Array:
        return np.asarray(restore(frame) + 0.05 * frame.mean() * waves, np.float32)

    methods: dict[str, Restore] = {
        name: restore,
        "gaussian": load_restorer("gaussian", device="cpu").restore,
        "none": load_restorer("none", device="cpu").restore,
        f"{name} and a lattice": inventing,
    }
    for label, method in methods.items():
        said: Counter[str] = Counter()
        why = []
        for scene in TEST_SCENES:
            for dose in DOSES:
                _, frames = poisson_frames(scene, dose)
                found = judge_counted(method, frames, np.random.default_rng(7))
                said[found.verdict] += 1
                if label == name and found.verdict != "good":
                    why.append(f"{scene}, {dose:g} e-/px: {found.reason}")
        yield f"{label}: " + ", ".join(f"{count} {verdict}" for verdict, count in said.items())
        yield from (f"    {line}" for line in why)


def camera(restore: Restore, dose: float) -> Iterator[str]:
    """A line a scene of the simulated camera: error of whole frames as told, and as it is."""
    for label, options in CAMERA_SCENES.items():
        frames, truths, shifts = _camera_frames(dose, options)
        found = judge_successive(restore, frames, shifts)
        error = np.mean(
            [np.mean((restore(f) - t) ** 2) for f, t in zip(frames, truths, strict=True)]
        )
        yield (
            f"sim, {label}: {found.mse_e2:.3f} ± {found.mse_error_e2:.3f} e-² "
            f"(true {error:.3f}), {found.verdict}"
        )


def _camera_frames(
    dose: float, options: dict[str, object], count: int = 4
) -> tuple[Array, Array, npt.NDArray[np.float64]]:
    """Electrons, truths and shifts of an integrating camera."""
    plain = {
        "sensor_height_px": SIDE_PX, "sensor_width_px": SIDE_PX, "hot_pixels": 0, "dead_pixels": 0,
        "xrays_per_frame": 0.0, "mean_transmission": 1.0, "seed": 2,
    }  # fmt: skip
    sim = SimCamera(SimCamera.Options.model_validate(plain | options))
    sim.open()
    try:
        state = sim.configure(CameraSettings(_EXPOSURE_S))
        pixel_nm = sim.options.specimen_pixel_nm
        sim.microscope.set_dose_rate(dose / _EXPOSURE_S / (10 * pixel_nm) ** 2)
        sim.start(count)
        counts = np.zeros(state.frame_shape, state.dtype)
        frames, truths = [], []
        for _ in range(count):
            meta = sim.read_into(counts, 5.0)
            frames.append((counts.astype(np.float32) - _OFFSET_COUNTS) / _COUNTS_PER_ELECTRON)
            truths.append(sim.truth(meta))
    finally:
        sim.close()
    step = np.array(sim.options.drift_nm_per_s) * _EXPOSURE_S / pixel_nm
    return np.stack(frames), np.stack(truths), np.arange(count)[:, None] * step


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sections = ("counted", "verdicts", "camera")
    parser.add_argument("--model", default="fast", help="name or path of a restorer")
    parser.add_argument("--dose", type=positive, default=5.0, help="e-/px of the whole frames")
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    given = parser.parse_args(arguments)
    return print_lines(_lines(given.model, given.dose, given.sections))


def _lines(model: str, dose: float, sections: list[str]) -> Iterator[str]:
    restore = load_restorer(model, device="cpu").restore
    if "counted" in sections:
        yield from counted(restore, dose)
    if "verdicts" in sections:
        yield from verdicts(model, restore)
    if "camera" in sections:
        yield from camera(restore, dose)


if __name__ == "__main__":
    sys.exit(main())
