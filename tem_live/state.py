"""What the program says about a frame, a session and a run: plain, frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.drivers.protocols import Roi
from tem_live.ledger import DoseSource


@dataclass(frozen=True)
class BeamState:
    """What the column was last set to, as read back; None where it has no such control."""

    dose_rate_e_per_A2_s: float | None = None
    blanked: bool | None = None


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """One frame's identity, conditions and dose.

    Attributes
    ----------
    frame_id : int
        Counts from 0 over the session; the one id from the camera to the screen and the file.
    sequence : int
        The device's own count.
    host_time_s : float
        ``time.time()`` at arrival, in seconds.
    exposure_s, binning
        Camera settings of this frame.
    pixel_size_nm : float or None
        Size of one (binned) pixel at the specimen in nm.
    counts_per_electron : float or None
        Gain; None where unknown, electrons are then counts.
    dose_e_per_px : float or None
        Measured mean of the calibrated frame in e-/px.
    fluence_e_per_A2, total_fluence_e_per_A2 : float or None
        Booked for this frame with the time since the frame before, and since the session began,
        in e-/A^2.
    dose_source : {"incident", "detected"}
        What is booked: what came in (the dose rate at the specimen times the time that the beam
        was on), or, where nobody knows that rate, what the camera detected, which is less.
    dose_rate_e_per_px_s : float or None
        Incident dose rate set at the column, per (binned) pixel.
    blanked : bool or None
        Whether the beam was blanked; None where there is no blanker.
    drift_px : (dy, dx) or None
        Shift since the session's first frame in (binned) pixels.
    model : str
        Restorer, ``"none"`` for none.
    restore_binning : int
        What the frame was binned by before it was restored.
    latency_ms : float or None
        From the driver's hand-over to the restored plane.
    roi : Roi or None
        Region (top, left, height, width) that the frame was read from, in unbinned pixels.
    raw : mapping
        What else the device said.
    """

    frame_id: int
    sequence: int
    host_time_s: float
    exposure_s: float
    binning: int
    pixel_size_nm: float | None
    counts_per_electron: float | None
    dose_e_per_px: float | None = None
    fluence_e_per_A2: float | None = None
    total_fluence_e_per_A2: float | None = None
    dose_source: DoseSource = "detected"
    dose_rate_e_per_px_s: float | None = None
    blanked: bool | None = None
    drift_px: tuple[float, float] | None = None
    model: str = "none"
    restore_binning: int = 1
    latency_ms: float | None = None
    roi: Roi | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able copy."""
        return {**asdict(self), "raw": dict(self.raw)}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame with memory of its own.

    Attributes
    ----------
    raw : ndarray (H, W) of the camera's dtype
        Counts, as they are recorded.
    electrons : ndarray (H, W) float32
        Calibrated, unrestored, in e-/px.
    restored : ndarray (H, W) float32 or None
        Restored, in e-/px; None where restoring was skipped or there is no restorer.
    meta : FrameInfo
        Identity, conditions and dose.
    """

    raw: npt.NDArray[Any]
    electrons: npt.NDArray[np.float32]
    restored: npt.NDArray[np.float32] | None
    meta: FrameInfo


@dataclass(frozen=True, slots=True)
class SessionState:
    """Settings as they were read back. None stands for what the instrument does not have.

    ``precision`` is what the model computes in: ``float32``, ``float16`` or ``int8``;
    ``restore_binning`` is what frames are binned by before they are restored.
    """

    exposure_s: float
    binning: int
    roi: Roi
    frame_shape: tuple[int, int]
    frame_interval_s: float
    pixel_size_nm: float | None
    counts_per_electron: float | None
    saturation_counts: float | None
    dose_rate_e_per_px_s: float | None
    blanked: bool | None
    model: str
    device: str
    running: bool
    recording: Path | None
    area: str | None = None
    spot_size: int | None = None
    magnification: float | None = None
    mode: str | None = None
    precision: str | None = None
    restore_binning: int = 1


@dataclass(frozen=True, slots=True)
class RunStats:
    """Figures of the current or last run.

    Attributes
    ----------
    frames : int
        Raw frames taken.
    fps, restore_fps : float
        Raw and restored frames per second.
    restored : int
        Frames restored.
    latency_ms_p50, latency_ms_p99 : float or None
        From the driver's hand-over to the restored plane, over the last 4096 restored frames.
    dropped_raw : int
        Raw frames that were lost.
    restore_skipped, display_skipped : int
        Frames that were not restored, or not shown, to keep up.
    dose_e_per_px : float or None
        Mean of the frames' measured doses.
    fluence_e_per_A2 : float or None
        Booked since the session began, frames or none.
    dose_source : {"incident", "detected"}
        See `FrameInfo`.
    area_fluence_e_per_A2 : float or None
        Booked on this specimen area, earlier sessions included where it has a name.
    budget_e_per_A2 : float or None
        Limit of the area's fluence.
    left_e_per_A2 : float or None
        What is left of it; None without a budget.
    recorded : int
        Raw frames in the current or last recording.
    stop_reason : str or None
        None while running; else ``frames``, ``seconds``, ``budget``, ``user`` or ``error: …``.
    coincidence_loss : float or None
        Part of the electrons that a counting camera does not count since they coincide, where they
        are most; None where it is not known how it counts.
    """

    frames: int = 0
    fps: float = 0.0
    restored: int = 0
    restore_fps: float = 0.0
    latency_ms_p50: float | None = None
    latency_ms_p99: float | None = None
    dropped_raw: int = 0
    restore_skipped: int = 0
    display_skipped: int = 0
    dose_e_per_px: float | None = None
    fluence_e_per_A2: float | None = None
    dose_source: DoseSource = "detected"
    area_fluence_e_per_A2: float | None = None
    budget_e_per_A2: float | None = None
    left_e_per_A2: float | None = None
    recorded: int = 0
    stop_reason: str | None = None
    coincidence_loss: float | None = None


@dataclass(frozen=True, slots=True)
class LoopState:
    """What the dose-minimising loop is doing.

    Attributes
    ----------
    active : bool
        Whether it sets the dose.
    phase : str
        ``measuring``, ``lowering``, ``raising``, ``holding``, ``out of reach`` or ``stopped``.
    target : str
        What is wanted, in words.
    dose_e_per_px : float or None
        Incident dose of a frame as it is set now; the detected one where nobody knows the rate.
    needed_e_per_px : float or None
        The same that would just meet the target.
    confidence : float or None
        Probability that a frame of the present dose meets the target.
    pairs : int
        Pairs of frames that were judged for it.
    text : str
        One line for the user.
    """

    active: bool
    phase: str
    target: str
    dose_e_per_px: float | None = None
    needed_e_per_px: float | None = None
    confidence: float | None = None
    pairs: int = 0
    text: str = ""
