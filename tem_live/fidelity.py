"""Quality of restored frames without a reference: the restored half against the raw other half.

Two frames (or halves of a counted frame) a and b show the same specimen with independent noise.
The restored a is compared with the *raw* b, and b's noise is taken off. Two restored halves would
share the restorer's prior and agree on whatever it invents; here they only serve to find just that:
what both restored halves show and neither raw half does.

Because the noise of b is independent of the restored a, r(a), and of the truth s,

    E (r(a) - b)² = (r(a) - s)² + var(b),

so the mean squared error is estimated without bias (Batson & Royer, Noise2Self, ICML 2019, prop. 1;
Lehtinen et al., Noise2Noise, ICML 2018). var(b) is b itself where electrons are counted and else
half the mean square of a - b. In Fourier space, ring by ring,

    s's power = Re a b*        what r(a) has of s = Re r(a) b*
    correlation of r(a) with s = Re r(a) b* / sqrt(|r(a)|² Re a b*)

which is a Fourier ring correlation with the noiseless truth: its threshold is 0.5, the counterpart
of 0.143 between two noisy halves (Rosenthal & Henderson, J. Mol. Biol. 333 (2003) 721).

Limits: a fixed pattern of the camera is in a and b alike and counts as specimen (it is looked
for); what moves between a and b counts as error; thinned halves have half the dose, so what is
said of them is a lower bound for the whole frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tem_live import fidelity_spectra as spectra
from tem_live.errors import InputError
from tem_live.fidelity_spectra import HANN, SIGMAS_PX, SURE, Floats, Plane, Rings, Tiles

__all__ = [
    "Fidelity",
    "FidelityMeter",
    "PairFigures",
    "Verdict",
    "judge_counted",
    "judge_successive",
    "thinned",
]

Verdict = Literal["good", "doubtful", "invented structure"]
Restore = Callable[[Plane], Plane]
# A restored frame, its own raw frame where that is at hand, and the raw other one.
_Way = tuple[Plane, Plane | None, Plane]

INVENTED_SHARE = 1.0 / 3.0
"""Share of what both restored halves show in a ring that the raw halves may lack."""

_LEAST_PX = 64
# Single waves: there are a hundred thousand coefficients, so more certainty is asked for. A
# restorer may strengthen a wave that is there, but not to twice its amplitude.
_SURE_WAVE = 6.0
_WAVE_SHARE = 0.5
# And a wave weaker than this, over the raw noise, is none to speak of: a restorer that passes one
# chance peak of the noise leaves less in common between the halves.
_LEAST_WAVE = 3.0
# A wave of the raw frames this far above their noise is beyond doubt, and lost where the restored
# frame keeps less than this share of its amplitude.
_LOST_OVER_NOISE, _LOST_SHARE = 16.0, 0.15
# What is weaker than this share of the raw noise's power is no structure to speak of.
_LEAST_POWER = 0.01
_LONGEST_WAVE_PX = 40.0


@dataclass(frozen=True)
class Fidelity:
    """How far a restored frame can be believed.

    Attributes
    ----------
    verdict : {"good", "doubtful", "invented structure"}
        See ``reason`` and the rule in `FidelityMeter.estimate`.
    reason : str
        Why, in one line.
    judged : str
        ``"half of the electrons"`` for thinned frames, else ``"whole frames"``.
    frames : int
        Pairs that went in.
    dose_e_per_px : float
        Mean of the frames that were judged (of a half, for halves).
    mse_e2 : float
        Estimated mean squared error of the restored frame in e-², without bias; by chance it may
        be negative.
    mse_error_e2 : float
        Standard error of it.
    gaussian_mse_e2 : float
        The same of the best Gaussian blur.
    under_gaussian_e2, under_gaussian_error_e2 : float
        By how much the restorer's error is under the blur's, and the standard error of that. The
        noise of the raw half cancels, so this is known far better than either.
    equivalent_dose_e_per_px : float or None
        Dose of a raw frame with the same error (relative to its mean), noise taken as
        proportional to the dose; None while the error cannot be told from 0.
    equivalent_dose_at_least_e_per_px : float
        The same for the error plus two standard errors.
    frc_nm, frc_px : float or None
        Finest period that is resolved; None where nothing is, or the pixel size is unknown.
    frequency, correlation : ndarray (K,)
        Ring by ring, cycles per pixel and correlation of the restored frame with the truth; NaN
        where the raw frames hold nothing that could be correlated with.
    invented_e : float
        Root mean square of what was found invented, in e-/px; 0 where nothing was.
    invented_periods_px : tuple of float
        Periods of it.
    fixed_pattern : float
        Variance that the finest detail of a and b shares, over that of their noise.
    """

    verdict: Verdict
    reason: str
    judged: str
    frames: int
    dose_e_per_px: float
    mse_e2: float
    mse_error_e2: float
    gaussian_mse_e2: float
    under_gaussian_e2: float
    under_gaussian_error_e2: float
    equivalent_dose_e_per_px: float | None
    equivalent_dose_at_least_e_per_px: float
    frc_nm: float | None
    frc_px: float | None
    frequency: Floats
    correlation: Floats
    invented_e: float
    invented_periods_px: tuple[float, ...]
    fixed_pattern: float


@dataclass(frozen=True)
class PairFigures:
    """What one pair told by itself; whoever follows a change weighs several of them anew.

    Attributes
    ----------
    dose_e_per_px : float
        Mean of its frames.
    noise_e2 : float
        Variance of the raw half.
    mse_e2, mse_error_e2 : float
        Mean squared error of the restored half without bias, and its standard error.
    frequency : ndarray (K,)
        Of the rings, in cycles per pixel.
    count : ndarray (K,)
        Independent coefficients of each ring.
    signal, noise, restored, confirmed : ndarray (K,)
        Power per coefficient in e-²: what the raw halves share (Re a b*), of their noise, of the
        restored halves, and what restored and raw other half share (Re r(a) b*).
    """

    dose_e_per_px: float
    noise_e2: float
    mse_e2: float
    mse_error_e2: float
    frequency: Floats
    count: Floats
    signal: Floats
    noise: Floats
    restored: Floats
    confirmed: Floats


def thinned(counts: npt.NDArray[Any], rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Deal the electrons of a counted frame out to two halves, each electron by the toss of a coin.

    Parameters
    ----------
    counts : ndarray (H, W)
        Whole electrons per pixel: Poisson counts. The halves are then independent Poisson frames
        (thinning; Kingman, Poisson Processes, 1993, section 5.1). That holds for nothing else:
        counts of an integrating camera, calibrated or not, must not be thinned.
    rng : Generator
        Of the tosses.

    Returns
    -------
    (first, second) : ndarray (H, W) float32
        Their sum is ``counts``.

    Raises
    ------
    InputError
        The values are negative or no whole numbers.
    """
    whole = np.rint(counts)
    if not np.all(np.isfinite(counts)) or np.any(np.abs(counts - whole) > 1e-3) or whole.min() < 0:
        raise InputError(
            "only whole electrons can be dealt out to halves; for an integrating camera compare "
            "successive frames"
        )
    first = rng.binomial(whole.astype(np.int64), 0.5)
    return first.astype(np.float32), (whole - first).astype(np.float32)


class FidelityMeter:
    """Collects pairs of frames and says how good the restored ones are.

    Parameters
    ----------
    pixel_size_nm : float or None
        Size of a pixel at the specimen, for ``frc_nm``.
    counted : bool
        The raw frames are Poisson counts (halves by `thinned`). False for successive frames of
        any camera.
    """

    def __init__(self, pixel_size_nm: float | None = None, counted: bool = False) -> None:
        self._pixel_size_nm = pixel_size_nm
        self._counted = counted
        self.reset()

    def reset(self) -> None:
        """Begin anew: another specimen, dose or restorer."""
        self._pairs = 0
        self._shape: tuple[int, ...] = ()
        # Of whole frames, and of the part that two moved ones share.
        self._rings = Rings((0, 0))
        self._part = Rings((0, 0))
        self._count: Floats = np.zeros(0)
        self._error = Tiles()
        self._lead = Tiles()
        self._noise = Tiles()
        self._mean = 0.0
        self._blur_errors = np.zeros(len(SIGMAS_PX))
        self._wave_pairs = 0
        self._wave_shared: Floats = np.zeros(0)
        self._wave_confirmed: Floats = np.zeros(0)
        self._wave_signal: Floats = np.zeros(0)
        self._sums: dict[str, Floats] = {}
        self._last: PairFigures | None = None

    @property
    def last_pair(self) -> PairFigures | None:
        """What the pair that was added last told by itself; None before the first."""
        return self._last

    def add(
        self,
        raw_a: npt.NDArray[Any],
        raw_b: npt.NDArray[Any],
        restored_a: npt.NDArray[Any],
        restored_b: npt.NDArray[Any],
        shift_px: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Take in a pair.

        Parameters
        ----------
        raw_a, raw_b : ndarray (H, W)
            Electrons per pixel, unrestored, noise independent of each other.
        restored_a, restored_b : ndarray (H, W)
            The same, each restored by itself (no average over frames).
        shift_px : (dy, dx)
            Where the specimen of b lies relative to a, positive down and to the right. Frames are
            moved by a phase in Fourier space, which leaves the power of the noise alone.

        Raises
        ------
        InputError
            The frames differ in shape from each other or from the pairs before, are smaller than
            64 px, hold no electrons, or hold values that are not finite.
        """
        frames = [np.asarray(f, np.float32) for f in (raw_a, raw_b, restored_a, restored_b)]
        shape = frames[0].shape
        if any(frame.shape != shape for frame in frames) or len(shape) != 2:
            raise InputError("raw and restored frames of a pair must all have the same shape")
        if self._shape and shape != self._shape:
            raise InputError(
                f"the frame size changed from {self._shape} to {shape}; begin the judgement anew"
            )
        if min(shape) < _LEAST_PX:
            raise InputError(f"fidelity needs frames of at least {_LEAST_PX} px, got {shape}")
        if not all(np.isfinite(frame).all() for frame in frames):
            raise InputError("a frame holds values that are not finite; calibrate it first")
        a, b, restored_a, restored_b = frames
        mean_a, mean_b = (float(frame.mean(dtype=np.float64)) for frame in (a, b))
        if not (mean_a > 0 and mean_b > 0):
            raise InputError("a frame without electrons cannot be judged; unblank the beam")
        if not self._counted:
            # The beam is never quite steady; half of the difference to either.
            middle = 0.5 * (mean_a + mean_b)
            a, restored_a = (
                a * np.float32(middle / mean_a),
                restored_a * np.float32(middle / mean_a),
            )
            b, restored_b = (
                b * np.float32(middle / mean_b),
                restored_b * np.float32(middle / mean_b),
            )
        pattern_a, pattern_b = a, b
        ways: list[_Way]
        if shift_px != (0.0, 0.0):
            # a onto b, and for the way back b onto a.
            margin = 16 * (1 + int((max(abs(s) for s in shift_px) + 4) // 16))
            if min(shape) < _LEAST_PX + 2 * margin:
                raise InputError("the specimen moved out of the field between the two frames")
            inner = (slice(margin, -margin),) * 2
            moved_a, moved_restored_a = (spectra.moved(f, shift_px)[inner] for f in (a, restored_a))
            back_restored_b = spectra.moved(restored_b, (-shift_px[0], -shift_px[1]))[inner]
            still_a, still_restored_b = a[inner], restored_b[inner]
            a, b, restored_a = moved_a, b[inner], moved_restored_a
            ways = [(restored_a, a, b), (back_restored_b, None, still_a)]
            restored_b = still_restored_b
        else:
            ways = [(restored_a, a, b), (restored_b, b, a)]
        self._shape = shape
        self._take(a, b, restored_a, restored_b, ways, (pattern_a, pattern_b))

    def _take(
        self,
        a: Plane,
        b: Plane,
        restored_a: Plane,
        restored_b: Plane,
        ways: Sequence[_Way],
        unmoved: tuple[Plane, Plane],
    ) -> None:
        self._pairs += 1
        self._mean += 0.5 * float(a.mean(dtype=np.float64) + b.mean(dtype=np.float64))
        noise = 0.5 * (a + b) if self._counted else 0.5 * (a - b) ** 2
        self._noise.add(noise)
        self._blur_errors += spectra.blurred_errors(a, b)
        sigma = SIGMAS_PX[int(self._blur_errors.argmin())]
        error = np.zeros(a.shape, np.float32)
        for restored, _, other in ways:
            error += (restored - other) ** 2 / np.float32(len(ways))
        self._error.add(error - noise)
        pair_error = Tiles()
        pair_error.add(error - noise)
        # Only where the blur of the same frame is at hand: one way of a moved pair.
        lead = np.zeros(a.shape, np.float32)
        blurred = [(r, o, m) for r, m, o in ways if m is not None]
        for restored, other, own in blurred:
            blur = spectra.blurred(own, sigma)
            lead += ((blur - other) ** 2 - (restored - other) ** 2) / np.float32(len(blurred))
        self._lead.add(lead)
        parts = self._add_spectra(a, b, restored_a, restored_b, unmoved)
        self._last = PairFigures(
            dose_e_per_px=0.5 * float(a.mean(dtype=np.float64) + b.mean(dtype=np.float64)),
            noise_e2=float(noise.mean(dtype=np.float64)),
            mse_e2=pair_error.mean,
            mse_error_e2=pair_error.error,
            frequency=self._part.frequency,
            count=self._part.count / HANN,
            signal=parts["signal"],
            noise=parts["noise"],
            restored=parts["restored"],
            confirmed=parts["confirmed"],
        )

    def _add_spectra(
        self,
        a: Plane,
        b: Plane,
        restored_a: Plane,
        restored_b: Plane,
        unmoved: tuple[Plane, Plane],
    ) -> dict[str, Floats]:
        if not self._sums:
            self._rings = Rings(unmoved[0].shape)
            self._count = np.zeros_like(self._rings.count)
        if self._part.shape != a.shape:
            self._part = Rings(a.shape)
            # Another drift leaves another inner part: single waves are looked for anew in it.
            self._wave_pairs = 0
            self._wave_shared = np.zeros(self._part.radius.shape)
            self._wave_confirmed = np.zeros(self._part.radius.shape)
            self._wave_signal = np.zeros(self._part.radius.shape)
        rings = self._part
        fa, fb, ra, rb = (spectra.half_spectrum(frame) for frame in (a, b, restored_a, restored_b))
        shared = spectra.cross(ra, rb)
        confirmed = 0.5 * (spectra.cross(ra, fb) + spectra.cross(rb, fa))
        self._wave_pairs += 1
        self._wave_shared += shared
        self._wave_confirmed += confirmed
        signal = spectra.cross(fa, fb)
        self._wave_signal += signal
        parts = {
            "signal": rings.mean(signal),
            "noise": rings.mean(0.5 * spectra.power(fa - fb)),
            "restored": rings.mean(0.5 * (spectra.power(ra) + spectra.power(rb))),
            "confirmed": rings.mean(confirmed),
            "shared": rings.mean(shared),
        }
        if unmoved[0] is not a:
            pa, pb = (spectra.half_spectrum(frame) for frame in unmoved)
            parts["pattern"] = self._rings.mean(spectra.cross(pa, pb))
        else:
            parts["pattern"] = parts["signal"]
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + self._rings.resampled(value)
        self._count += self._rings.count * (rings.pixels / self._rings.pixels)
        return parts

    def estimate(self) -> Fidelity:
        """Judge what was taken in so far.

        The rule of the verdict, first match:

        - ``invented structure``: in some ring of periods under 40 px the restored halves share
          structure of which the raw halves lack more than a third, with 5 standard deviations; or
          they share a single wave of which the raw halves lack more than half, with 6.
        - ``doubtful``: the error is larger than that of the best Gaussian blur (by 2 standard
          errors); or the camera's fixed pattern is as strong as the error, so that the estimate
          means nothing; or the raw frames share a wave (16 times their noise's power) of which
          the restored ones keep less than 0.15; or nothing at all is resolved.
        - ``good``: else.

        Raises
        ------
        InputError
            No pair was taken in yet.
        """
        if not self._pairs:
            raise InputError("fidelity is judged on pairs of frames; add at least one")
        mean = self._mean / self._pairs
        mse, mse_error = self._error.mean, self._error.error
        lead, lead_error = self._lead.mean, self._lead.error
        noise = self._noise.mean
        sums = {name: value / self._pairs for name, value in self._sums.items()}
        frequency, count = self._rings.frequency, self._count / HANN
        correlation, resolved = spectra.correlation_with_truth(sums, count)
        period = spectra.finest_period(frequency, correlation, resolved)
        invented, periods = self._invented(sums, frequency, count)
        pattern, pattern_sure = spectra.fixed_pattern(sums, frequency, count)
        at_least = mean * noise / max(mse + 2 * mse_error, 1e-12)
        equivalent = mean * noise / mse if mse > 2 * mse_error else None
        verdict: Verdict = "good"
        reason = "the raw half confirms what the restored half shows"
        if invented > 0:
            verdict = "invented structure"
            reason = (
                f"the restored frames show structure ({invented:.2g} e-/px rms, period "
                f"{periods[0]:.3g} px) that the raw frames do not have"
            )
        elif lead < -2 * lead_error:
            verdict = "doubtful"
            reason = (
                f"the error, {mse:.3g} e-², is larger than that of a Gaussian blur, "
                f"{mse + lead:.3g} e-²"
            )
        elif not self._counted and pattern_sure and pattern * noise > max(mse, mse_error):
            verdict = "doubtful"
            reason = (
                f"{pattern:.1%} of the noise repeats from frame to frame: take a gain reference"
            )
        elif (lost := self._lost_wave(sums)) is not None:
            verdict = "doubtful"
            reason = (
                f"the restored frames lose a wave of {lost:.3g} px that the raw frames share: "
                "specimen, or a pattern of the camera"
            )
        elif period is None:
            verdict = "doubtful"
            reason = "nothing is resolved: there is too little specimen, or too little dose"
        return Fidelity(
            verdict=verdict,
            reason=reason,
            judged="half of the electrons" if self._counted else "whole frames",
            frames=self._pairs,
            dose_e_per_px=mean,
            mse_e2=mse,
            mse_error_e2=mse_error,
            gaussian_mse_e2=mse + lead,
            under_gaussian_e2=lead,
            under_gaussian_error_e2=lead_error,
            equivalent_dose_e_per_px=equivalent,
            equivalent_dose_at_least_e_per_px=at_least,
            frc_nm=period * self._pixel_size_nm if period and self._pixel_size_nm else None,
            frc_px=period,
            frequency=frequency,
            correlation=correlation,
            invented_e=invented,
            invented_periods_px=periods,
            fixed_pattern=pattern,
        )

    def _invented(
        self, sums: dict[str, Floats], frequency: Floats, count: Floats
    ) -> tuple[float, tuple[float, ...]]:
        """Root mean square of what is invented in e-/px, and its periods, strongest first."""
        rings = self._rings
        lacking = sums["shared"] - sums["confirmed"]
        chance = np.sqrt(sums["restored"] * (sums["noise"] + sums["restored"]) / (2 * count))
        # The longest periods hold the illumination, which drifts.
        ring = (frequency > 1.0 / _LONGEST_WAVE_PX) & (lacking > _LEAST_POWER * sums["noise"])
        ring &= (lacking > SURE * chance) & (lacking > INVENTED_SHARE * sums["shared"])
        # A half spectrum: each coefficient stands for two.
        power = 2.0 * float((lacking * rings.count)[ring].sum()) / rings.pixels
        strength, period = (lacking * rings.count)[ring], 1.0 / frequency[ring]
        wave = self._unconfirmed_waves(sums)
        if wave.any():
            waves = (self._wave_shared - self._wave_confirmed)[wave] / self._wave_pairs
            power = max(power, 2.0 * float(waves.sum()) / self._part.pixels)
            if not period.size:
                strength, period = waves, 1.0 / self._part.radius[wave]
        order = np.argsort(-strength)
        return float(np.sqrt(power)), tuple(float(p) for p in period[order])

    def _lost_wave(self, sums: dict[str, Floats]) -> float | None:
        """Period in px of the strongest wave that the raw frames share and the restored lose."""
        part = self._part
        noise = part.spread(part.resampled(sums["noise"])) * self._wave_pairs
        lost = (self._wave_signal > _LOST_OVER_NOISE * noise) & (
            self._wave_confirmed < _LOST_SHARE * self._wave_signal
        )
        lost &= (part.radius > 1.0 / _LONGEST_WAVE_PX) & (part.radius <= 0.5)
        if not lost.any():
            return None
        return float(1.0 / part.radius[lost][self._wave_signal[lost].argmax()])

    def _unconfirmed_waves(self, sums: dict[str, Floats]) -> npt.NDArray[np.bool_]:
        """Coefficients that the restored halves share and the raw halves lack."""
        rings, pairs = self._part, self._wave_pairs
        lacking = self._wave_shared - self._wave_confirmed
        noise = rings.spread(rings.resampled(sums["noise"]))
        # Noise that the restorer left in each half.
        left = np.maximum(sums["restored"] - sums["shared"], 0.0)
        left = rings.spread(rings.resampled(left))
        variance = np.maximum(self._wave_shared, 0) * (2 * left + noise)
        variance += pairs * left * (left + noise)
        found = lacking > _SURE_WAVE * np.sqrt(0.5 * variance)
        found &= lacking > np.maximum(_WAVE_SHARE * self._wave_shared, _LEAST_WAVE * noise * pairs)
        found &= (rings.radius > 1.0 / _LONGEST_WAVE_PX) & (rings.radius <= 0.5)
        return np.asarray(found, np.bool_)


def judge_counted(
    restore: Restore,
    frames: npt.NDArray[Any],
    rng: np.random.Generator,
    pixel_size_nm: float | None = None,
) -> Fidelity:
    """Judge a restorer on counted frames, (N, H, W) or (H, W), by halves of each.

    What is judged is the restored half: the whole frame has twice the dose and is better. Errors
    are those of `thinned` and `FidelityMeter`.
    """
    meter = FidelityMeter(pixel_size_nm, counted=True)
    for frame in frames if frames.ndim == 3 else frames[None]:
        a, b = thinned(frame, rng)
        meter.add(a, b, restore(a), restore(b))
    return meter.estimate()


def judge_successive(
    restore: Restore,
    frames: npt.NDArray[Any],
    shifts_px: npt.NDArray[Any] | None = None,
    pixel_size_nm: float | None = None,
) -> Fidelity:
    """Judge a restorer on successive frames of any camera.

    Parameters
    ----------
    restore : callable
        (H, W) to (H, W), electrons per pixel.
    frames : ndarray (N, H, W)
        Electrons per pixel, N of 2 or more; disjoint pairs are used.
    shifts_px : ndarray (N, 2) or None
        Shift of each frame since the first, (dy, dx).
    pixel_size_nm : float or None
        Size of a pixel.

    Raises
    ------
    InputError
        There is no pair, or see `FidelityMeter.add`.
    """
    if frames.ndim != 3 or len(frames) < 2:
        raise InputError(
            "successive frames are judged in pairs; give (N, H, W) with N of 2 or more"
        )
    meter = FidelityMeter(pixel_size_nm)
    for index in range(0, len(frames) - 1, 2):
        a, b = (np.asarray(frames[index + k], np.float32) for k in (0, 1))
        shift = (0.0, 0.0)
        if shifts_px is not None:
            step = np.asarray(shifts_px[index + 1], float) - np.asarray(shifts_px[index], float)
            shift = (float(step[0]), float(step[1]))
        meter.add(a, b, restore(a), restore(b), shift)
    return meter.estimate()
