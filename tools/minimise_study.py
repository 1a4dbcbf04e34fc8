"""The dose loop against fixed doses on the simulated specimen that fades, scored with its truth.

    python tools/minimise_study.py --seeds 1,2,3,4,5

The camera of `sim-damage` runs on a clock that this script turns, so the figures do not depend on
the machine. A frame is good where the restored frame is correlated with the truth by 0.5 or more
at the wanted period (or, with --equivalent-dose, where its true error is as small). Fixed doses are
tried from a fine ladder, and the best one is chosen afterwards with the truth: the one that gives
most good frames. The loop knows no truth.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from arguments import count, counts, positive
from scipy import ndimage

from tem_live.calibration import Calibrator
from tem_live.damage import DamageMeter
from tem_live.drivers.protocols import CameraSettings
from tem_live.drivers.sim import SimCamera
from tem_live.errors import TemLiveError
from tem_live.fidelity import FidelityMeter
from tem_live.fidelity_spectra import THRESHOLD
from tem_live.instrument import make_camera
from tem_live.minimise import DoseController
from tem_live.minimise_targets import EquivalentDose, Resolution, Target
from tem_live.models import load_restorer
from tem_live.paths import check_target
from tem_live.profiles import load_profile
from tem_live.state import Frame, FrameInfo
from tem_live.watch import Pair

START_E_PER_PX = 5.0
"""What the profile ships with, and where the loop begins; it never goes over it."""

STRIDE = 6
"""Frames from one judged pair to the next, at 20 frames a second on a quarter of a core."""

DELAY = 2
"""Frames that pass while a pair is judged and the dose is set."""

LADDER = tuple(float(d) for d in START_E_PER_PX / 1.25 ** np.arange(13))
Restore = Callable[[np.ndarray], np.ndarray]


class Microscope:
    """Camera, beam and specimen of a profile, on a clock of their own."""

    def __init__(self, seed: int, size: int) -> None:
        profile = load_profile(
            "sim-damage",
            {
                "camera.seed": seed,
                "camera.sensor_height_px": size,
                "camera.sensor_width_px": size,
            },
        )
        self._camera = cast(SimCamera, make_camera(profile))
        self._beam = self._camera.microscope
        self._now = self._beam.clock()
        self._beam.clock = lambda: self._now
        self._beam.set_blanked(True)
        self._camera.open()
        self._state = self._camera.configure(CameraSettings(profile.camera.exposure_s))
        assert self._state.counts_per_electron is not None
        assert self._state.pixel_size_nm is not None
        self._calibrator = Calibrator(
            np,
            self._state.frame_shape,
            counts_per_electron=self._state.counts_per_electron,
            offset_counts=self._state.offset_counts,
            xray_sigma=profile.calibration.xray_sigma,
        )
        self._counts = np.zeros(self._state.frame_shape, self._state.dtype)
        self.pixel_size_nm = self._state.pixel_size_nm
        self.frames = 0

    @property
    def fluence(self) -> float:
        """What the specimen has taken, e-/A^2."""
        return float(self._beam.true_fluence_e_per_A2)

    @property
    def critical(self) -> float:
        """Of the fringes of 1 nm, e-/A^2."""
        return float(self._camera.options.critical_fluence_e_per_A2)

    def expose(self, dose_e_per_px: float, frames: int) -> None:
        """Let frames pass that nobody looks at."""
        area_A2 = (10 * self.pixel_size_nm) ** 2
        self._beam.set_dose_rate(dose_e_per_px / self._state.exposure_s / area_A2)
        self._beam.set_blanked(False)
        self._now += frames * self._state.frame_interval_s
        self._beam.set_blanked(True)
        self.frames += frames

    def take(self, dose_e_per_px: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Electrons and truth of a frame, and the fluence in its middle."""
        before = self.fluence
        self._camera.start(1)
        self.expose(dose_e_per_px, 1)
        meta = self._camera.read_into(self._counts, 1.0)
        electrons = np.zeros(self._counts.shape, np.float32)
        self._calibrator.apply(self._counts, electrons)
        return electrons, self._camera.truth(meta), 0.5 * (before + self.fluence)


@dataclass(frozen=True)
class Scale:
    """Scores a restored frame with the truth: 1 or more is good."""

    resolution_nm: float | None
    equivalent_dose: float | None
    pixel_size_nm: float = 0.1

    def target(self) -> Target:
        """What the loop is told to reach."""
        if self.resolution_nm is not None:
            return Resolution(self.resolution_nm)
        assert self.equivalent_dose is not None
        return EquivalentDose(self.equivalent_dose)

    def score(self, electrons: np.ndarray, restored: np.ndarray, truth: np.ndarray) -> float:
        """Quality over the wanted one."""
        if self.equivalent_dose is not None:
            error, noise = (float(np.mean((f - truth) ** 2)) for f in (restored, electrons))
            return float(truth.mean()) * noise / error / self.equivalent_dose
        assert self.resolution_nm is not None
        height, width = truth.shape
        window = np.outer(np.hanning(height + 1)[:-1], np.hanning(width + 1)[:-1])
        a, b = (np.fft.rfft2((f - f.mean()) * window) for f in (restored, truth))
        radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        number = min(height, width) // 2
        ring = np.minimum(np.round(radius * 2 * number).astype(int), number + 1).ravel()
        means = [
            ndimage.uniform_filter1d(np.bincount(ring, v.ravel())[1 : number + 1], 3)
            for v in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)
        ]
        correlation = means[0] / np.sqrt(means[1] * means[2])
        frequency = np.arange(1, number + 1) / (2 * number * self.pixel_size_nm)
        fine = frequency >= 1 / self.resolution_nm - (frequency[1] - frequency[0])
        return float(correlation[fine].max()) / THRESHOLD


@dataclass(frozen=True)
class Series:
    """Good frames against fluence, frame by frame looked at."""

    dose: float | None
    frames: list[int]
    fluence: list[float]
    doses: list[float]
    scores: list[float]

    def good_frames(self) -> tuple[int, float]:
        """How many frames were good, and the fluence at the last of them."""
        total, at, before = 0, 0.0, 0
        for frames, fluence, score in zip(self.frames, self.fluence, self.scores, strict=True):
            if score >= 1:
                total += frames - before
                at = fluence
            before = frames
        return total, at

    def fluence_for(self, wanted: int) -> float:
        """Fluence at which so many frames had been good; infinite where they never were."""
        total, before, spent = 0, 0, 0.0
        for frames, fluence, score in zip(self.frames, self.fluence, self.scores, strict=True):
            if score >= 1:
                if total + frames - before >= wanted:
                    share = (wanted - total) / (frames - before)
                    return spent + share * (fluence - spent)
                total += frames - before
            before, spent = frames, fluence
        return math.inf


def fixed(seed: int, size: int, dose: float, scale: Scale, restore: Restore, points: int) -> Series:
    """A run at one dose, until the fringes are gone."""
    microscope = Microscope(seed, size)
    series = Series(dose, [], [], [], [])
    stride = max(1, round(1.2 * microscope.critical / dose / points))
    bad = 0
    while bad < 4 and microscope.fluence < 3 * microscope.critical:
        microscope.expose(dose, stride - 1)
        electrons, truth, _ = microscope.take(dose)
        score = scale.score(electrons, restore(electrons), truth)
        _append(series, microscope, dose, score)
        bad = 0 if score >= 1 else bad + 1
    return series


def loop(
    seed: int, size: int, scale: Scale, restore: Restore, confidence: float
) -> tuple[Series, str]:
    """The loop, until it says that the target is out of reach."""
    microscope = Microscope(seed, size)
    series = Series(None, [], [], [], [])
    controller = DoseController(
        scale.target(), START_E_PER_PX / 100, START_E_PER_PX, confidence=confidence
    )
    damage = DamageMeter(microscope.pixel_size_nm)
    dose = controller.first(START_E_PER_PX)
    phase = "measuring"
    while phase != "out of reach" and microscope.fluence < 3 * microscope.critical:
        frames, seen = [], []
        for _ in range(2):
            electrons, truth, middle = microscope.take(dose)
            restored = restore(electrons)
            damage.update(electrons, middle)
            info = FrameInfo(len(series.frames), 0, 0.0, 0.05, 1, microscope.pixel_size_nm, 1.0)
            frames.append(Frame(electrons, electrons, restored, info))
            seen.append(restored)
        score = scale.score(electrons, restored, truth)
        meter = FidelityMeter(microscope.pixel_size_nm)
        meter.add(frames[0].electrons, frames[1].electrons, seen[0], seen[1])
        assert meter.last_pair is not None
        controller.observe(dose, controller.target.read(Pair(*frames), meter.last_pair))
        microscope.expose(dose, DELAY)
        decision = controller.decide(dose)
        phase = decision.phase
        before, dose = dose, decision.dose_e_per_px
        microscope.expose(dose, STRIDE - 2 - DELAY)
        _append(series, microscope, before, score)
    return series, damage.estimate().text


def _append(series: Series, microscope: Microscope, dose: float, score: float) -> None:
    series.frames.append(microscope.frames)
    series.fluence.append(microscope.fluence)
    series.doses.append(dose)
    series.scores.append(score)


def _row(looped: Series, tried: Sequence[Series]) -> dict[str, float]:
    """The loop against the best fixed dose in hindsight, and against the shipped setting."""
    best = max(tried, key=lambda series: series.good_frames()[0])
    most, spent = best.good_frames()
    shipped, shipped_spent = tried[0].good_frames()
    frames, _ = looped.good_frames()
    return {
        "loop_frames": frames,
        "loop_share_good": frames / looped.frames[-1],
        "best_dose": best.dose or math.nan,
        "best_frames": most,
        "best_fluence": spent,
        "loop_fluence": looped.fluence_for(most),
        "frames_ratio": frames / most,
        "fluence_ratio": spent / looped.fluence_for(most),
        "shipped_frames": shipped,
        "shipped_fluence": shipped_spent,
        "loop_fluence_shipped": looped.fluence_for(shipped),
        "shipped_ratio": shipped_spent / looped.fluence_for(shipped),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=counts, default=[1, 2, 3, 4, 5], metavar="1,2,...")
    parser.add_argument("--model", default="gaussian")
    parser.add_argument("--resolution", type=positive, default=1.0, metavar="NM")
    parser.add_argument("--equivalent-dose", type=positive, metavar="E_PER_PX")
    parser.add_argument("--size", type=count, default=512, help="side of the frames in pixels")
    parser.add_argument("--confidence", type=positive, default=0.9)
    parser.add_argument("--points", type=count, default=24, help="frames scored of a fixed dose")
    parser.add_argument("--only-loop", action="store_true")
    parser.add_argument("--out", type=Path, help="write everything here, as JSON")
    given = parser.parse_args(argv)
    try:
        if given.out:
            check_target(given.out)
        study(given)
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def study(given: argparse.Namespace) -> None:
    """Print a row a seed."""
    restore = load_restorer(given.model, device="cpu").restore
    scale = Scale(None if given.equivalent_dose else given.resolution, given.equivalent_dose)
    kept, rows = [], []
    for seed in given.seeds:
        looped, text = loop(seed, given.size, scale, restore, given.confidence)
        frames, fluence = looped.good_frames()
        print(
            f"seed {seed}: loop: {frames} good frames ({frames / looped.frames[-1]:.0%} of all), "
            f"the last at {fluence:.0f} e-/A^2; {text}",
            flush=True,
        )
        if given.only_loop:
            continue
        tried = [fixed(seed, given.size, d, scale, restore, given.points) for d in LADDER]
        row = _row(looped, tried)
        rows.append(row)
        kept.append({"seed": seed, "loop": vars(looped), "fixed": [vars(s) for s in tried]})
        print("    " + "  ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    for key in ("frames_ratio", "fluence_ratio", "shipped_ratio") if rows else ():
        mean = math.exp(sum(math.log(row[key]) for row in rows) / len(rows))
        print(f"{key}: geometric mean {mean:.2f}")
    if given.out:
        given.out.write_text(json.dumps(kept))


if __name__ == "__main__":
    sys.exit(main())
