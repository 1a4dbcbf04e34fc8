"""How many counts an electron is, and how many electrons come in: measured, compared, kept.

Counts per electron come from photon transfer: pairs of frames with the beam blanked and at several
doses. The incident dose rate at the specimen has up to three sources that know nothing of each
other, and are shown side by side:

- ``column``: what the column tells;
- ``current``: the beam's current on a cup or screen, over the illuminated area;
- ``vacuum``: what the camera detects with no specimen in the beam.

The result is kept with its date and conditions, by profile, and used by the sessions that follow.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from tem_live.dose import dose_rate_per_A2_from_current, per_A2, per_pixel
from tem_live.errors import CalibrationError, InputError, RefusedError
from tem_live.paths import check_target, written_whole

if TYPE_CHECKING:
    from tem_live.photon_transfer import NoisePoint
    from tem_live.session import Session

RateSource = Literal["column", "current", "vacuum"]
SOURCES: tuple[RateSource, ...] = ("column", "current", "vacuum")

DOSE_STEPS = (0.5, 1.0, 2.0, 4.0)
"""Doses of the lit pairs over the present one; photon transfer wants a factor of 5 or more."""
PAIRS = 2
"""Pairs of frames at each dose."""
READINGS = 3
"""Readings of the current that are averaged."""


class DoseCalibration(BaseModel):
    """What was measured, and under which conditions.

    Attributes
    ----------
    profile : str
        Name of the instrument's profile.
    taken : str
        Local date and time, ISO 8601.
    counts_per_electron : float or None
        By photon transfer; None where it was not measured.
    counts_interval : (low, high) or None
        Its 95 % interval.
    offset_counts, read_noise_counts : float or None
        Pedestal and read noise in counts.
    assumptions : tuple of str
        What photon transfer assumed.
    rates_e_per_A2_s : dict
        Incident dose rate in e-/A^2/s by source.
    disagreement : float or None
        Highest over lowest of them, less 1; None with fewer than two.
    use : {"column", "current", "vacuum"} or None
        Which one is booked by.
    current_A, beam_area_nm2 : float or None
        What the second is made of.
    exposure_s, binning, pixel_size_nm, spot_size, magnification
        Conditions. The pixel is as it was binned.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str
    taken: str
    counts_per_electron: float | None
    counts_interval: tuple[float, float] | None
    offset_counts: float | None
    read_noise_counts: float | None
    assumptions: tuple[str, ...]
    rates_e_per_A2_s: dict[RateSource, float]
    disagreement: float | None
    use: RateSource | None
    current_A: float | None
    beam_area_nm2: float | None
    exposure_s: float
    binning: int
    pixel_size_nm: float | None
    spot_size: int | None
    magnification: float | None

    @property
    def rate_e_per_A2_s(self) -> float | None:
        """The incident dose rate that is booked by, under the conditions above."""
        return None if self.use is None else self.rates_e_per_A2_s[self.use]

    @property
    def column_factor(self) -> float:
        """By how much the column's own figure is multiplied; 1 where it is trusted or silent."""
        told, measured = self.rates_e_per_A2_s.get("column"), self.rate_e_per_A2_s
        return measured / told if told and measured else 1.0

    def rate(
        self, told_e_per_A2_s: float | None, spot_size: int | None, magnification: float | None
    ) -> float | None:
        """The dose rate in e-/A^2/s to book by.

        Parameters
        ----------
        told_e_per_A2_s : float or None
            What column or profile say now.
        spot_size, magnification
            As they are now; where the column is silent the calibration holds for its own alone.
        """
        if told_e_per_A2_s is not None:
            return told_e_per_A2_s * self.column_factor
        if (spot_size, magnification) != (self.spot_size, self.magnification):
            return None
        return self.rate_e_per_A2_s

    def save(self, path: Path) -> Path:
        """Write it as JSON, replacing an older one whole. Raises `InputError`."""
        check_target(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as part:
                part.write_text(self.model_dump_json(indent=2), encoding="utf-8")
        except OSError as error:
            raise CalibrationError(f"{path} cannot be written: {error.strerror}") from None
        return path

    @classmethod
    def load(cls, path: Path) -> DoseCalibration:
        """Read what `save` wrote. Raises `CalibrationError`."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CalibrationError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError:
            raise CalibrationError(
                f"{path} is no dose calibration; take a new one with 'tem-live calibrate dose'"
            ) from None


def calibration_path(profile: str) -> Path:
    """Where the dose calibration of a profile is kept."""
    folder = Path(platformdirs.user_data_dir("tem_live", appauthor=False)) / "calibration"
    return folder / profile / "dose.json"


def saved_calibration(profile: str) -> DoseCalibration | None:
    """The one that was last kept for a profile; None for none. Raises `CalibrationError`."""
    path = calibration_path(profile)
    return DoseCalibration.load(path) if path.is_file() else None


def calibrate_dose(
    session: Session,
    *,
    vacuum: bool = False,
    beam_area_nm2: float | None = None,
    excess_noise: float | None = None,
    use: RateSource | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> DoseCalibration:
    """Measure counts per electron and dose rate with what the instrument has.

    Parameters
    ----------
    session : Session
        Open and not running. Its exposure and dose rate are changed and set back.
    vacuum : bool
        There is no specimen in the beam: what the camera detects is what comes in.
    beam_area_nm2 : float, optional
        Illuminated area at the specimen in nm², where the column does not know it.
    excess_noise : float, optional
        See `tem_live.photon_transfer.estimate_gain`.
    use : {"column", "current", "vacuum"}, optional
        Which rate to book by; by default the first there is.
    progress : callable of str
        Told what is being done.

    Returns
    -------
    DoseCalibration
        Neither kept nor used yet: see `DoseCalibration.save`, `Session.use_dose_calibration`.

    Raises
    ------
    CalibrationError
        The frames do not tell the gain.
    InputError
        ``use`` names a source that there is not.
    DeviceError
        A device failed.
    """
    from tem_live.photon_transfer import check_excess_noise

    # What cannot come to anything is refused before the specimen pays for it.
    if excess_noise is not None:
        check_excess_noise(excess_noise)
    if beam_area_nm2 is not None and not 0 < beam_area_nm2 < math.inf:
        raise InputError(f"an illuminated area of {beam_area_nm2:g} nm² is none")
    if vacuum and not session.state.pixel_size_nm:
        raise RefusedError("the pixel size is unknown; set camera.pixel_size_nm")
    if use is not None:
        _check_source(use, _sources(session, vacuum, beam_area_nm2))
    # What an earlier calibration said must not find its way into this one.
    earlier = session.dose_calibration
    session.use_dose_calibration(None)
    try:
        return _calibrated(session, vacuum, beam_area_nm2, excess_noise, use, progress)
    finally:
        session.use_dose_calibration(earlier)


def _calibrated(
    session: Session,
    vacuum: bool,
    beam_area_nm2: float | None,
    excess_noise: float | None,
    use: RateSource | None,
    progress: Callable[[str], None],
) -> DoseCalibration:
    from tem_live.photon_transfer import estimate_gain

    before = session.state
    points, counts_per_s = _points(session, progress)
    found = estimate_gain(points, excess_noise=excess_noise)
    rates: dict[RateSource, float] = {}
    told = session.state.dose_rate_e_per_px_s
    if told is not None and before.pixel_size_nm:
        rates["column"] = per_A2(told, before.pixel_size_nm)
    area_nm2 = session.beam_area_nm2 if beam_area_nm2 is None else beam_area_nm2
    current_A = None
    if session.profile.beam_monitor.driver != "none":
        progress("current")
        current_A = statistics.fmean(session.read_current() for _ in range(READINGS))
        if area_nm2 is not None:
            rates["current"] = dose_rate_per_A2_from_current(current_A, area_nm2)
    if vacuum:
        assert before.pixel_size_nm, "looked at before"
        rates["vacuum"] = per_A2(counts_per_s / found.counts_per_electron, before.pixel_size_nm)
    if use is not None:
        _check_source(use, list(rates))
    return DoseCalibration(
        profile=session.profile.name,
        taken=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        counts_per_electron=found.counts_per_electron,
        counts_interval=found.interval,
        offset_counts=found.offset_counts,
        read_noise_counts=found.read_noise_counts,
        assumptions=found.assumptions,
        rates_e_per_A2_s=rates,
        disagreement=disagreement(list(rates.values())),
        use=use or next(iter(rates), None),
        current_A=current_A,
        beam_area_nm2=area_nm2,
        exposure_s=before.exposure_s,
        binning=before.binning,
        pixel_size_nm=before.pixel_size_nm,
        spot_size=before.spot_size,
        magnification=before.magnification,
    )


def _points(session: Session, progress: Callable[[str], None]) -> tuple[list[NoisePoint], float]:
    """Noise against mean of pairs of frames, dark and at several doses.

    Returns
    -------
    points : list of NoisePoint
        Of all pairs.
    counts_per_s : float
        Mean of a lit pixel, without its offset, in counts/s at the dose rate as it is set.
    """
    from tem_live.photon_transfer import noise_points

    before = session.state
    counting = session.capabilities.counting_rate_limit_e_per_px_s is not None
    floor = -math.inf if counting else None
    progress("dark frames")
    dark = session.take_raw(2 * PAIRS, blanked=True)
    offset = statistics.fmean(float(frame.mean(dtype=np.float64)) for frame in dark)
    points: list[NoisePoint] = []
    for first, second in _pairs(dark):
        points += noise_points(first, second, floor_counts=floor, dark=True)
    counts_per_s: list[float] = []
    try:
        for step in DOSE_STEPS:
            try:
                share = _set_dose(session, before.dose_rate_e_per_px_s, before.exposure_s, step)
            except RefusedError as error:
                progress(f"{step:g} times the dose is left out: {error}")
                continue
            progress(f"frames of {step:g} times the dose")
            lit = session.take_raw(2 * PAIRS)
            for first, second in _pairs(lit):
                points += noise_points(
                    first, second, floor_counts=floor, saturation_counts=before.saturation_counts
                )
            seconds = session.exposure_s * share
            counts_per_s += [(float(f.mean(dtype=np.float64)) - offset) / seconds for f in lit]
    finally:
        _set_dose(session, before.dose_rate_e_per_px_s, before.exposure_s, 1.0)
    if not counts_per_s:
        raise CalibrationError("the instrument accepts none of the doses, so there is no frame")
    return points, statistics.fmean(counts_per_s)


def disagreement(rates: Sequence[float]) -> float | None:
    """Highest over lowest, less 1; None with fewer than two, infinite if one of them is 0."""
    if len(rates) < 2:
        return None
    return max(rates) / min(rates) - 1 if min(rates) > 0 else math.inf


def as_rows(calibration: DoseCalibration) -> list[dict[str, object]]:
    """The rates side by side, for people: each in both units, and relative to the one in use."""
    used, pixel_nm = calibration.rate_e_per_A2_s, calibration.pixel_size_nm
    return [
        {
            "source": source,
            "e-/Å²/s": rate,
            "e-/px/s": per_pixel(rate, pixel_nm) if pixel_nm else None,
            "relative": rate / used if used else None,
            "in use": source == calibration.use,
        }
        for source, rate in calibration.rates_e_per_A2_s.items()
    ]


def _sources(session: Session, vacuum: bool, beam_area_nm2: float | None) -> list[RateSource]:
    """Where a dose rate can come from, as far as that is known before anything is measured."""
    area_nm2 = session.beam_area_nm2 if beam_area_nm2 is None else beam_area_nm2
    monitored = session.profile.beam_monitor.driver != "none"
    there: dict[RateSource, bool] = {
        "column": session.dose_rate is not None,
        "current": monitored and area_nm2 is not None,
        "vacuum": vacuum,
    }
    return [source for source, is_there in there.items() if is_there]


def _check_source(use: RateSource, there: Sequence[RateSource]) -> None:
    if use not in there:
        raise InputError(
            f"there is no dose rate from '{use}'; there is {', '.join(there) or 'none'}"
        )


def _set_dose(
    session: Session, rate_e_per_px_s: float | None, exposure_s: float, step: float
) -> float:
    """Multiply the dose of a frame by ``step``, by the dose rate where the column steers it.

    Returns
    -------
    float
        By how much the dose rate was multiplied; the rest is exposure.
    """
    if rate_e_per_px_s is not None and session.can_set_dose_rate:
        session.dose_rate = rate_e_per_px_s * step
        return (session.dose_rate or 0.0) / rate_e_per_px_s if rate_e_per_px_s else 1.0
    session.exposure_s = exposure_s * step
    return 1.0


def _pairs(
    frames: Sequence[npt.NDArray[Any]],
) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    return list(zip(frames[::2], frames[1::2], strict=True))
