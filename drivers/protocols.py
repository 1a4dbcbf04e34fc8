"""What a camera, a column and their frames look like to the rest of the program.

A driver is a plain class that has these methods; it inherits nothing. What a column can do is told
by what it implements (`Blanker`, `DoseRateControl`, `Magnification`, ...), never by a flag.
`ColumnParts` asks once. Life of a camera::

    camera = SimCamera(SimCamera.Options(...))   # touches no hardware
    camera.open()                                # connects
    state = camera.configure(CameraSettings(exposure_s=0.05))   # sets, reads back, reports
    camera.start()                               # free run, or start(n) for n frames
    meta = camera.read_into(buffer, timeout_s=1.0)              # once a frame, any number of times
    camera.stop()                                # idempotent
    camera.close()                               # idempotent, from any state

All methods but `close` are called from one thread at a time. `close` may come from another one and
must make a waiting `read_into` return or raise within about a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

Roi = tuple[int, int, int, int]
"""Region of interest (top, left, height, width) in unbinned sensor pixels."""


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """What the user asks of a camera.

    Attributes
    ----------
    exposure_s : float
        Exposure time of one frame in seconds.
    binning : int
        Side of the square of sensor pixels that are summed into one; 1 is no binning.
    roi : Roi or None
        Read-out region in unbinned sensor pixels; None is the whole sensor.
    """

    exposure_s: float
    binning: int = 1
    roi: Roi | None = None


@dataclass(frozen=True, slots=True)
class CameraCapabilities:
    """What a camera can be asked for; known once it is open.

    Attributes
    ----------
    name : str
        Model or device name as the device tells it.
    sensor_shape : tuple of int
        (height, width) of the unbinned sensor in pixels.
    dtype : numpy dtype
        Data type of the frames that `Camera.read_into` delivers.
    exposure_range_s : tuple of float
        Shortest and longest exposure in seconds that are accepted.
    binnings : tuple of int
        Binnings that are accepted, 1 included.
    has_roi : bool
        Whether a read-out region can be set.
    has_exposure : bool
        Whether the exposure can be set at all (a folder of files has none).
    counting_rate_limit_e_per_px_s : float or None
        Of a counting camera: dose rate in e-/px/s of an unbinned pixel above which it counts
        noticeably fewer electrons than came, because two that coincide are counted as one. None
        for an integrating camera, or where it is not known.
    """

    name: str
    sensor_shape: tuple[int, int]
    dtype: np.dtype[Any]
    exposure_range_s: tuple[float, float]
    binnings: tuple[int, ...] = (1,)
    has_roi: bool = False
    has_exposure: bool = True
    counting_rate_limit_e_per_px_s: float | None = None


@dataclass(frozen=True, slots=True)
class CameraState:
    """What the camera took of the settings, read back from the device.

    Attributes
    ----------
    exposure_s, binning, roi
        As in `CameraSettings`, as the device reports them. ``roi`` is never None.
    frame_shape : tuple of int
        (height, width) of the frames to come, in binned pixels.
    dtype : numpy dtype
        Their data type.
    frame_interval_s : float
        Time from one frame to the next in seconds, the exposure and the read-out gap.
    pixel_size_nm : float or None
        Size of one **binned** pixel at the specimen in nm, where the device knows it.
    counts_per_electron : float or None
        Gain, where the device knows it.
    offset_counts : float
        Nominal pedestal in counts that the device adds to every pixel; 0 where unknown.
    saturation_counts : float or None
        Counts at which a pixel is full, where known.
    masked_counts : float or None
        Value of pixels that were not measured (masked, or between two chips), where there is one.
    """

    exposure_s: float
    binning: int
    roi: Roi
    frame_shape: tuple[int, int]
    dtype: np.dtype[Any]
    frame_interval_s: float
    pixel_size_nm: float | None = None
    counts_per_electron: float | None = None
    offset_counts: float = 0.0
    saturation_counts: float | None = None
    masked_counts: float | None = None


@dataclass(frozen=True, slots=True)
class FrameMeta:
    """What a camera says about one frame.

    Attributes
    ----------
    sequence : int
        Number of the frame as the device counts, from 0 at `Camera.start`. A jump means that
        the device lost frames.
    host_time_s : float
        Time of arrival, ``time.time()`` of this computer in seconds.
    exposure_s : float
        Exposure of this frame in seconds.
    device_time_s : float or None
        The device's own clock in seconds, from an origin of its own.
    pixel_size_nm : float or None
        Size of a pixel at the specimen, where the frame itself carries it (a file).
    dose_e_per_px : float or None
        Mean electrons per pixel, where the camera itself measures them.
    raw : mapping
        Everything else that the device told, JSON-able.
    """

    sequence: int
    host_time_s: float
    exposure_s: float
    device_time_s: float | None = None
    pixel_size_nm: float | None = None
    dose_e_per_px: float | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Camera(Protocol):
    """A source of frames. See the module's text for its life and threads.

    Attributes
    ----------
    Options : pydantic model, ``extra="forbid"``
        The driver's own fields of the profile's ``[camera]`` table; the constructor's argument.
    """

    Options: ClassVar[type[BaseModel]]

    @property
    def capabilities(self) -> CameraCapabilities:
        """What can be asked for. Raises `NotConnectedError` while closed."""

    def open(self) -> None:
        """Connect. Raises `NotConnectedError` with the reason and the remedy."""

    def close(self) -> None:
        """Stop and disconnect; idempotent, never raises for a device that is gone."""

    def configure(self, settings: CameraSettings) -> CameraState:
        """Set everything, read it back and report it. The camera is stopped when it is called.

        Raises `RefusedError` for what the device does not accept; the state is then unchanged.
        """

    def start(self, frames: int | None = None) -> None:
        """Begin a series of ``frames`` frames, or one without end."""

    def stop(self) -> None:
        """End the series; idempotent."""

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """Wait for the next frame and write it into ``buffer``.

        Parameters
        ----------
        buffer : ndarray
            C-contiguous, of `CameraState.frame_shape` and `CameraState.dtype`.
        timeout_s : float
            How long to wait, in seconds.

        Raises
        ------
        DeviceTimeoutError
            No frame came in time; the camera is still good and may be read again.
        DisconnectedError
            The device is gone, or the camera was closed or stopped meanwhile.
        OverflowedError
            The device lost frames because they were not fetched fast enough.
        EndOfFrames
            The series (``start(n)``, or the last file without looping) has ended.
        """


class EndOfFrames(Exception):  # noqa: N818 - an event, like StopIteration, and not an error
    """The camera has delivered the last frame of its series."""


@runtime_checkable
class HasTruth(Protocol):
    """A simulated camera that knows what a frame would show without noise."""

    def truth(self, meta: FrameMeta) -> npt.NDArray[np.float32]:
        """Expected electrons per pixel of that frame, (H, W) float32, the camera's MTF included."""


@runtime_checkable
class HasTrueFluence(Protocol):
    """A simulated camera that knows what its specimen has really taken."""

    @property
    def true_fluence_e_per_A2(self) -> float:
        """Incident fluence until now in e-/A^2, beam between and without frames included."""


@runtime_checkable
class Column(Protocol):
    """A microscope column. What it can do is told by which of the protocols below it has too.

    The constructor takes its options and the opened camera (a simulated or vendor column often
    lives behind the same connection).
    """

    Options: ClassVar[type[BaseModel]]

    def open(self) -> None:
        """Connect; the beam is left as it is. Raises `NotConnectedError`."""

    def close(self) -> None:
        """Disconnect; idempotent. The beam is left as it is: the session blanks it first."""


@runtime_checkable
class Blanker(Protocol):
    """A column that can take the beam off the specimen. Thread-safe: blanking never waits long."""

    @property
    def blanked(self) -> bool:
        """Whether the beam is off the specimen, read back from the device."""

    def set_blanked(self, blanked: bool) -> None:
        """Blank or unblank. Raises a `DeviceError` when it cannot be confirmed."""


@runtime_checkable
class Simulated(Protocol):
    """A column that exists in this process alone: no beam is left on when the program is killed."""

    @property
    def simulated(self) -> bool:
        """Whether it is simulated as it is set up now."""


@runtime_checkable
class BlankerLatency(Protocol):
    """A blanker that tells how late it is."""

    @property
    def blanker_latency_s(self) -> float:
        """Seconds that the beam may stay on after `Blanker.set_blanked` has returned."""


@runtime_checkable
class DoseRate(Protocol):
    """A column that tells the dose rate at the specimen."""

    @property
    def dose_rate_e_per_A2_s(self) -> float:
        """Incident dose rate at the specimen in e-/A^2/s with the beam unblanked, read back."""


@runtime_checkable
class DoseRateControl(DoseRate, Protocol):
    """A column whose dose rate at the specimen can be read and set."""

    def set_dose_rate(self, dose_rate_e_per_A2_s: float) -> float:
        """Set the incident dose rate; returns what the column took, in e-/A^2/s."""


@runtime_checkable
class SpotSize(Protocol):
    """A column whose spot size (the excitation of the first condenser lens) can be set.

    It sets the beam's current: by the makers' custom a higher number is less of it.
    """

    @property
    def spot_sizes(self) -> tuple[int, ...]:
        """The numbers that are accepted, ascending."""

    @property
    def spot_size(self) -> int:
        """The number, read back."""

    def set_spot_size(self, spot_size: int) -> int:
        """Set it; returns what the column took. Raises `RefusedError` for what it does not."""


@runtime_checkable
class Magnification(Protocol):
    """A column whose magnification can be set, and means a pixel size."""

    @property
    def magnification(self) -> float:
        """Nominal magnification, read back."""

    @property
    def pixel_size_nm(self) -> float | None:
        """Calibrated size of an **unbinned** camera pixel at the specimen in nm; None: unknown."""

    def set_magnification(self, magnification: float) -> float:
        """Set it; returns what the column took. Raises `RefusedError` for what it does not."""


@runtime_checkable
class BeamArea(Protocol):
    """A column that knows how much of the specimen is lit: with the current, a dose rate."""

    @property
    def beam_area_nm2(self) -> float | None:
        """Illuminated area at the specimen in nm^2; None where it is not calibrated."""


@runtime_checkable
class Stage(Protocol):
    """A column whose stage can be moved."""

    @property
    def stage_position_um(self) -> tuple[float, float]:
        """(x, y) of the stage in µm, read back."""

    def move_stage(self, x_um: float, y_um: float) -> tuple[float, float]:
        """Move it there and wait; returns (x, y) where it stands, in µm."""


@runtime_checkable
class BeamShift(Protocol):
    """A column whose beam can be shifted across the specimen."""

    @property
    def beam_shift_nm(self) -> tuple[float, float]:
        """(x, y) of the beam's shift at the specimen in nm, read back."""

    def set_beam_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """Shift it; returns what the column took, (x, y) in nm."""


@runtime_checkable
class ImageShift(Protocol):
    """A column that can let the camera look beside, with the stage and the beam where they are.

    The deflectors are below the specimen: what is lit does not change. With the same image shift
    and `BeamShift` the beam is in the middle of the camera.
    """

    @property
    def image_shift_nm(self) -> tuple[float, float]:
        """(x, y) at the specimen in nm, read back: what the middle of the camera looks at."""

    def set_image_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """Shift it; returns what the column took, (x, y) in nm."""


@dataclass(frozen=True, slots=True)
class ColumnParts:
    """What a column can do, found out once; each None where it cannot.

    Asking for a protocol may ask the device (Python 3.11 looks at the properties themselves), so
    this is done when a column was just opened, and never on the way to blanking the beam.
    """

    blanker: Blanker | None = None
    blanker_latency: BlankerLatency | None = None
    dose_rate: DoseRate | None = None
    dose_rate_control: DoseRateControl | None = None
    spot_size: SpotSize | None = None
    magnification: Magnification | None = None
    beam_area: BeamArea | None = None
    stage: Stage | None = None
    beam_shift: BeamShift | None = None
    image_shift: ImageShift | None = None

    @classmethod
    def of(cls, column: object) -> ColumnParts:
        """The parts of an opened column; none of None."""
        return cls(
            column if isinstance(column, Blanker) else None,
            column if isinstance(column, BlankerLatency) else None,
            column if isinstance(column, DoseRate) else None,
            column if isinstance(column, DoseRateControl) else None,
            column if isinstance(column, SpotSize) else None,
            column if isinstance(column, Magnification) else None,
            column if isinstance(column, BeamArea) else None,
            column if isinstance(column, Stage) else None,
            column if isinstance(column, BeamShift) else None,
            column if isinstance(column, ImageShift) else None,
        )


@dataclass(frozen=True, slots=True)
class BeamCurrent:
    """One reading of the beam's current.

    Attributes
    ----------
    current_A : float or None
        The current in ampere with the instrument's sign (electrons caught by a Faraday cup read
        negative on most); None where the instrument has no number, so that none can be booked.
    host_time_s : float
        ``time.time()`` of this computer in seconds when the reading had come.
    device_time_s : float or None
        The device's own clock in seconds, from an origin of its own.
    overflow : bool
        The current was more than the range measures; ``current_A`` is None.
    flags : tuple of str
        What else the device says about the reading, in words.
    raw : mapping
        The device's answer, JSON-able.
    """

    current_A: float | None
    host_time_s: float
    device_time_s: float | None = None
    overflow: bool = False
    flags: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class BeamMonitor(Protocol):
    """An instrument that measures the beam's current, on a Faraday cup or on the screen.

    The constructor takes its options and touches no hardware. Thread-safe. One that may be
    simulated can be a `BesideCamera` too.
    `tem_live.dose.dose_rate_from_current` makes a dose rate of the reading.
    """

    Options: ClassVar[type[BaseModel]]

    def open(self) -> None:
        """Connect and set the instrument up; idempotent. Raises `NotConnectedError`."""

    def close(self) -> None:
        """Disconnect; idempotent, from any thread, never raises for a device that is gone."""

    def read_current(self) -> BeamCurrent:
        """Measure once.

        Raises
        ------
        DeviceTimeoutError
            No answer came in time; the instrument may be asked again.
        DisconnectedError, NotConnectedError
            The device is gone, or not back yet. It is found by itself once it is back.
        RefusedError
            The instrument is set such that it does not measure the beam.
        DeviceError
            The answer made no sense. No number is ever made of it.
        """


@runtime_checkable
class BesideCamera(Protocol):
    """A beam monitor that wants to know whose beam it measures."""

    def beside(self, camera: object) -> None:
        """The camera of the same instrument; told before `BeamMonitor.open`."""
