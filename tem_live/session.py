"""One live session with one instrument: what scripts, the command line and the GUI all drive.

    with open_session("sim") as session:
        session.exposure_s = 0.02
        for frame in session.frames(10):
            print(frame.meta.frame_id, frame.restored.mean())

The setters block until the device has answered and hold what it took, not what was asked. Signals
are emitted from worker threads. However a run ends, the beam is blanked first (where a blanker
exists), then the frames on their way are processed, then the recording is closed.

The session opens, joins and closes the parts that do the work: the beam, the account of its dose,
the camera as it is set, the threads that frames pass through, and what is made of the frames.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from psygnal import Signal

from tem_live.account import Cost, DoseAccount
from tem_live.areas import Areas
from tem_live.beam import Beam
from tem_live.calibration import Kind, default_path
from tem_live.camera_setup import CameraSetup
from tem_live.detector_guard import DetectorGuard
from tem_live.device_frame import DeviceFrame, DevicePlane
from tem_live.dose import per_A2, per_pixel
from tem_live.dose_calibration import DoseCalibration, saved_calibration
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    HasTrueFluence,
    HasTruth,
    Roi,
)
from tem_live.errors import (
    CalibrationError,
    DeviceError,
    DeviceTimeoutError,
    DisconnectedError,
    InputError,
    NotConnectedError,
    RecordingError,
    RefusedError,
    TemLiveError,
)
from tem_live.fluence_map import Place
from tem_live.frames import Backend, open_backend
from tem_live.in_order import in_order
from tem_live.instrument import (
    given_binned,
    make_beam_monitor,
    make_camera,
    make_column,
    make_restorer,
)
from tem_live.judging import Judging
from tem_live.ledger import Ledger
from tem_live.ledger_map import LedgerMap
from tem_live.live_recording import LiveRecording
from tem_live.paths import check_target
from tem_live.pipeline import Acquisition, Processor, Stream, Writer, take_all
from tem_live.profiles import RESTORE_BINNINGS, Profile, load_profile
from tem_live.raw_frames import each_raw, mean_counts
from tem_live.state import Frame, FrameInfo, RunStats, SessionState
from tem_live.threads import (
    keep_memory,
    let_threads_sleep,
    return_memory,
    set_objects_aside,
    take_objects_back,
)
from tem_live.view import View
from tem_live.whereabouts import Field, Whereabouts

if TYPE_CHECKING:
    from tem_live.minimise import DoseMinimiser, Knob
    from tem_live.minimise_targets import Target
    from tem_live.models import Restorer
    from tem_live.watch import Watch

__all__ = ["Cost", "Frame", "FrameInfo", "RunStats", "Session", "SessionState", "open_session"]

_SETTINGS = (
    "exposure_s",
    "binning",
    "roi",
    "spot_size",
    "magnification",
    "dose_rate",
    "blanked",
    "model",
    "restore_binning",
)


def open_session(
    profile: str | Path | Profile = "sim", overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Session:
    """Open an instrument.

    Parameters
    ----------
    profile : str, Path or Profile
        Name or path of a profile, or a profile that was loaded before.
    overrides : sequence of "key=value" or mapping
        Fields to set over the profile's; see `tem_live.profiles.load_profile`.

    Returns
    -------
    Session
        Open, configured, not running, the beam blanked where a blanker exists.

    Raises
    ------
    TemLiveError
        The profile, a device, a calibration or the restorer is missing or broken.
    """
    if isinstance(profile, Profile):
        return Session(profile)
    return Session(load_profile(profile, overrides))


class Session:
    """See the module's text. Use `open_session` to make one; a context manager.

    Parameters
    ----------
    profile : Profile
        The instrument.

    Attributes
    ----------
    profile : Profile
        As given.
    state_changed : Signal of SessionState
        A setting was read back, a run began or ended, a recording was opened or closed.
    stopped : Signal of str
        A run has ended, with its reason (see `RunStats.stop_reason`).
    message : Signal of (str, str)
        Level (``info``, ``warning``, ``error``) and one line for the user.
    messages : deque of (str, str)
        The last 50 of them, those included that came before anyone could connect.
    """

    state_changed = Signal(SessionState)
    stopped = Signal(str)
    message = Signal(str, str)

    def __init__(self, profile: Profile) -> None:
        let_threads_sleep()
        # Before the restorer is made, whose engine may begin threads.
        keep_memory()
        self.profile = profile
        self._lock = threading.RLock()
        self._closing_once = threading.Lock()
        self._opened = False
        self._closed = False
        self._lost = False
        # What ends all that was begun, the last first, however far the opening comes.
        self._closing = contextlib.ExitStack()
        self._judging = Judging(self, self._restores_singly, self._tell, self._closing.callback)
        self.messages: deque[tuple[str, str]] = deque(maxlen=50)
        self._mode: str | None = None
        # What is quick to refuse comes before the network's weights, and those before a device.
        self._camera = make_camera(profile)
        column = make_column(profile, self._camera)
        self._monitor = make_beam_monitor(profile, self._camera)
        calibration = saved_calibration(profile.name)
        # As it was loaded, and as it is given frames.
        self._whole = make_restorer(profile, profile.restorer.model)
        self._restorer = given_binned(self._whole, profile.restorer.binning)
        self._restore_binning: int = profile.restorer.binning
        device = str(self._restorer.device) if self._restorer else "cpu"
        self._backend: Backend = open_backend(device)
        self._account = DoseAccount(
            self._ledger(profile.dose.area),
            profile.dose.budget_e_per_A2,
            profile.dose.warn_fraction,
            on_warning=lambda text: self._tell("warning", text),
            on_spent=self._on_spent,
        )
        self._beam = Beam(
            profile,
            column,
            self._account,
            calibration,
            why_not=self._why_not_lit,
            on_too_bright=self._on_too_bright,
            tell=self._tell,
        )
        self._setup = CameraSetup(
            profile,
            self._camera,
            self._backend,
            self._beam,
            warn=lambda text: self._tell("warning", text),
        )
        try:
            self._closing.callback(self._beam.release_supervisor)
            self._closing.callback(self._account.close)
            self._open_devices()
            self._guard = DetectorGuard(
                profile.dose.max_rate_e_per_px_s,
                self._camera.capabilities.counting_rate_limit_e_per_px_s,
                on_over=self._on_too_bright,
                on_coincidence=lambda text: self._tell("warning", text),
                counting=profile.camera.counting,
                most_loss=profile.dose.coincidence_loss,
            )
            self._beam.watch_over(self._on_blanked_for_us)
            self._writer = Writer(self._on_recording_error)
            self._closing.callback(self._writer.shut_down)
            self._recording = LiveRecording(
                profile, self._writer, next_frame=lambda: self._acquisition.next_id
            )
            self._processor = Processor(
                self._writer,
                self._account,
                self._guard,
                self._tell,
                profile.pipeline.rolling_mean,
            )
            self._closing.callback(self._processor.shut_down)
            self._processor.set_restorer(self._restorer)
            self._acquisition = Acquisition(
                self._camera,
                self._writer,
                self._processor,
                self._account,
                beam=lambda: self._beam.state,
                blank=self._beam.blank_quietly,
                pause=self._beam.pause,
                timeout_s=profile.camera.timeout_s,
                overflow=profile.camera.overflow,
                on_stopped=self._on_stopped,
            )
            self._closing.callback(self._acquisition.shut_down)
            self._whereabouts = Whereabouts(
                self._beam.parts,
                profile.column.stage_axes,
                self._field,
                next_frame=lambda: self._acquisition.next_id,
                lit=lambda: self._account.clock.on,
                note=self._account.set_place,
                warn=lambda text: self._tell("warning", text),
            )
            self._closing.callback(self._whereabouts.close)
            self._areas = Areas(
                profile,
                self._account,
                self._beam,
                self._whereabouts,
                open_ledger=self._ledger,
                tell=self._tell,
            )
            self._view = View(
                self._beam,
                self._acquisition,
                self._processor,
                self._whereabouts,
                arrived=self._areas.count_beside,
                moved=self._judging.begin_anew,
            )
            self._processor.subscribe(lambda frame: None, self._follow_drift)
            self._set_up()
            self._opened = True
        except BaseException as error:
            self._give_up_opening(error)
            raise

    def _open_devices(self) -> None:
        """Open camera and column, and find out what the column can do."""
        self._closing.callback(self._camera.close)
        self._camera.open()
        if self._monitor is not None:
            # It is opened when it is asked.
            self._closing.callback(self._monitor.close)
        self._closing.callback(self._beam.close_column)
        self._beam.open_column()

    def _set_up(self) -> None:
        """Blank the beam, and set the instrument as the profile says."""
        self._beam.read()
        self._beam.blank_quietly()
        self._configure_again()
        self._set_unbinned_rate(self.profile.column.dose_rate_e_per_px_s)
        self._beam.read()
        self._areas.look_back()

    def _give_up_opening(self, error: BaseException) -> None:
        """Blank, and close what was opened. Raises `DeviceError` where the beam stays on."""
        self._closed = True
        try:
            self._beam.blank_unfinished()
        except Exception as failure:
            raise DeviceError(
                f"{error}; and THE BEAM COULD NOT BE BLANKED, close the valves: {failure}"
            ) from error
        finally:
            self._closing.close()

    # ---------------------------------------------------------------------------------- reading

    @property
    def capabilities(self) -> CameraCapabilities:
        """What the camera can be asked for."""
        return self._camera.capabilities

    @property
    def state(self) -> SessionState:
        """Settings as last read back; does not ask a device."""
        stream, beam = self._stream, self._beam.state
        rate = beam.dose_rate_e_per_A2_s
        pixel_size_nm = stream.pixel_size_nm
        return SessionState(
            exposure_s=stream.state.exposure_s,
            binning=stream.state.binning,
            roi=stream.state.roi,
            frame_shape=stream.state.frame_shape,
            frame_interval_s=stream.state.frame_interval_s,
            pixel_size_nm=pixel_size_nm,
            counts_per_electron=stream.counts_per_electron,
            saturation_counts=stream.state.saturation_counts,
            dose_rate_e_per_px_s=(
                None if rate is None or not pixel_size_nm else per_pixel(rate, pixel_size_nm)
            ),
            blanked=beam.blanked,
            model=self._restorer.name if self._restorer else "none",
            device=self._backend.name,
            running=self._acquisition.running,
            recording=self._recording.path,
            area=self._account.area,
            spot_size=self._beam.spot_size,
            magnification=self._beam.magnification,
            mode=self._mode,
            precision=self._restorer.precision if self._restorer else None,
            restore_binning=self._restore_binning,
        )

    def stats(self) -> RunStats:
        """Figures of the current or last run."""
        acquisition, processor = self._acquisition, self._processor
        latencies = np.array(processor.latencies_ms)
        return RunStats(
            frames=acquisition.frames,
            fps=acquisition.fps,
            restored=processor.restored,
            restore_fps=processor.restore_fps,
            latency_ms_p50=float(np.percentile(latencies, 50)) if latencies.size else None,
            latency_ms_p99=float(np.percentile(latencies, 99)) if latencies.size else None,
            dropped_raw=acquisition.dropped_raw,
            restore_skipped=processor.restore_skipped,
            display_skipped=processor.display_skipped,
            dose_e_per_px=(
                processor.dose_sum / processor.dose_frames if processor.dose_frames else None
            ),
            fluence_e_per_A2=self._account.fluence_e_per_A2,
            dose_source=self._account.source,
            area_fluence_e_per_A2=self._account.area_fluence_e_per_A2,
            budget_e_per_A2=self._account.budget_e_per_A2,
            left_e_per_A2=self._account.left_e_per_A2,
            recorded=self._writer.recorded,
            stop_reason=acquisition.stop_reason,
            coincidence_loss=self._coincidence_loss(),
        )

    def _coincidence_loss(self) -> float | None:
        """As the last frame shows it; before there is one, as the incident dose rate has it."""
        guard, rate = self._guard, self._rate_e_per_px_s()
        if guard.loss is not None or guard.counting is None or rate is None:
            return guard.loss
        return guard.counting.loss(rate)

    @property
    def recording_error(self) -> RecordingError | None:
        """Why the last recording ended early, or None."""
        return self._recording.error

    @property
    def run_error(self) -> TemLiveError | None:
        """What ended the last run, or None where it ended as it should."""
        return self._acquisition.error

    def newest(self) -> Frame | None:
        """Newest frame that was not taken yet, restored if a model runs; never waits."""
        return self._processor.newest()

    def newest_on_device(self) -> DeviceFrame | None:
        """As `newest`, for a display: the planes stay on their device."""
        return self._processor.newest_on_device()

    def rolling_mean(self) -> npt.NDArray[np.float32] | None:
        """Rolling mean of the unrestored electrons, (H, W) float32 in e-/px, or None."""
        return self._processor.rolling_mean()

    def rolling_mean_on_device(self) -> DevicePlane | None:
        """As `rolling_mean`, for a display."""
        return self._processor.rolling_mean_on_device()

    def truth(self, meta: FrameInfo) -> npt.NDArray[np.float32] | None:
        """What a simulated camera knows: noiseless electrons of a frame, (H, W); else None."""
        from tem_live.drivers.protocols import FrameMeta

        if not isinstance(self._camera, HasTruth):
            return None
        return self._camera.truth(
            FrameMeta(meta.sequence, meta.host_time_s, meta.exposure_s, raw=meta.raw)
        )

    @property
    def true_fluence_e_per_A2(self) -> float | None:
        """What a simulated specimen has really taken since it was made, in e-/A^2; else None."""
        return (
            self._camera.true_fluence_e_per_A2 if isinstance(self._camera, HasTrueFluence) else None
        )

    @property
    def exposes_nothing(self) -> bool:
        """Whether what is steered here takes no beam onto a specimen that exists.

        The column is a simulated one, or there is no blanker: taking frames changes nothing then.
        """
        return self._beam.parts.blanker is None or self._beam.simulated

    @property
    def can_set_dose_rate(self) -> bool:
        """Whether the column steers the dose rate."""
        return self._beam.parts.dose_rate_control is not None

    @property
    def beam_area_nm2(self) -> float | None:
        """Illuminated area at the specimen in nm², where the column knows it."""
        area = self._beam.parts.beam_area
        return None if area is None else area.beam_area_nm2

    def cost(self, exposure_s: float | None = None, frames: int = 1) -> Cost:
        """What frames would cost the specimen, and what is left of the budget.

        Parameters
        ----------
        exposure_s : float, optional
            Exposure of a frame in seconds; by default as it is set.
        frames : int
            How many, taken as one run.

        Returns
        -------
        Cost
            Read-out gaps, the time from unblanking to the first exposure as it was last measured,
            and the blanker's latency included.
        """
        state = self._stream.state
        exposure = state.exposure_s if exposure_s is None else exposure_s
        gap_s = max(state.frame_interval_s - state.exposure_s, 0.0)
        beam_on_s = frames * (exposure + gap_s) + self._acquisition.lead_s
        beam_on_s += self._account.latency_s
        return self._account.cost(beam_on_s, frames * exposure)

    # ---------------------------------------------------------------------------------- setting

    @property
    def exposure_s(self) -> float:
        """Exposure of a frame in seconds."""
        return self._stream.state.exposure_s

    @exposure_s.setter
    def exposure_s(self, value: float) -> None:
        self.apply(exposure_s=value)

    @property
    def binning(self) -> int:
        """Side of the square of sensor pixels summed into one."""
        return self._stream.state.binning

    @binning.setter
    def binning(self, value: int) -> None:
        self.apply(binning=value)

    @property
    def roi(self) -> Roi:
        """Read-out region (top, left, height, width) in unbinned pixels; set None for all."""
        return self._stream.state.roi

    @roi.setter
    def roi(self, value: Roi | None) -> None:
        self.apply(roi=value)

    @property
    def dose_rate(self) -> float | None:
        """Incident dose rate in e-/px/s of a (binned) pixel; None where no column steers it."""
        return self.state.dose_rate_e_per_px_s

    @dose_rate.setter
    def dose_rate(self, value: float) -> None:
        self.apply(dose_rate=value)

    @property
    def blanked(self) -> bool | None:
        """Whether the beam is off the specimen; None where there is no blanker."""
        return self._beam.state.blanked

    @blanked.setter
    def blanked(self, value: bool) -> None:
        self.apply(blanked=value)

    @property
    def model(self) -> str:
        """Name of the restorer, ``"none"`` for none; set it to a name or the path of weights."""
        return self._restorer.name if self._restorer else "none"

    @model.setter
    def model(self, value: str) -> None:
        self.apply(model=value)

    @property
    def restore_binning(self) -> int:
        """What frames are binned by before they are restored: 1, 2, 4 or 8."""
        return self._restore_binning

    @restore_binning.setter
    def restore_binning(self, value: int) -> None:
        self.apply(restore_binning=value)

    @property
    def area(self) -> str | None:
        """Name of the specimen area that is booked on; set it when another one is in the beam."""
        return self._account.area

    @area.setter
    def area(self, value: str | None) -> None:
        self._must_be_open()
        another = value != self.area
        named, self._areas.named = self._areas.named, value
        try:
            self._areas.book_on(value)
        except BaseException:
            # Refused: what is in the beam is still what it was.
            self._areas.named = named
            raise
        if another:
            self._judging.begin_anew()
        self._announce()

    @property
    def place(self) -> Place | None:
        """What of the specimen is in view and lit; None as long as the pixel size is unknown."""
        return self._whereabouts.place

    def fluence_map(self, most_bytes: int | None = None) -> LedgerMap:
        """What each place of the area has taken; see `tem_live.fluence_map`.

        Parameters
        ----------
        most_bytes : int, optional
            About how much of the ledger to read at most, so that a look costs no more than it may;
            the next one goes on.

        Returns
        -------
        LedgerMap
            Read up to now. Always the same one as long as the area is; to be asked for and looked
            at on one thread.

        Raises
        ------
        RecordingError
            The ledger cannot be read.
        """
        return self._areas.fluence_map(most_bytes)

    @property
    def stage_position_um(self) -> tuple[float, float] | None:
        """(x, y) of the stage in µm, read back; None where no column steers it."""
        return None if self._beam.parts.stage is None else self._beam.parts.stage.stage_position_um

    def move_stage(self, x_um: float, y_um: float) -> tuple[float, float]:
        """Move the stage; the beam is blanked, and no frame taken, while it moves.

        Parameters
        ----------
        x_um, y_um : float
            Where to, in µm.

        Returns
        -------
        (x, y)
            Where it stands, in µm.

        Raises
        ------
        RefusedError
            There is no stage, or it does not go there.
        DeviceError
            It failed. The beam stays blanked.
        """
        self._must_be_open()
        stands = self._view.move_stage(x_um, y_um)
        self._announce()
        return stands

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the profile's sets of optics, in its order."""
        return tuple(self.profile.modes)

    @property
    def mode(self) -> str | None:
        """The set of optics that was last used, None once a setting of its kind was changed."""
        return self._mode

    def use_mode(self, name: str) -> SessionState:
        """Change to a named set of optics; the beam is blanked while they change.

        Parameters
        ----------
        name : str
            One of `modes`.

        Returns
        -------
        SessionState
            As read back.

        Raises
        ------
        RefusedError
            There is no such mode, a device does not accept a value, or there is no such device.
            The beam stays blanked.
        DeviceError
            A device failed; the beam stays blanked.
        """
        mode = self.profile.modes.get(name)
        if mode is None:
            known = f"modes: {', '.join(self.modes)}" if self.modes else "the profile has no modes"
            raise RefusedError(f"there is no mode '{name}'; {known}")
        self._must_be_open()
        since = self._beam.emergencies
        lit = self._beam.state.blanked is False
        of_a_run = self._acquisition.running
        if lit:
            self._beam.set_blanked(True)
        changes = mode.model_dump(
            include={"magnification", "spot_size", "exposure_s", "binning"}, exclude_none=True
        )
        # One after the other: the pixel that the dose rate is given for is that of the new optics.
        self.apply(**changes)
        self._set_unbinned_rate(mode.dose_rate_e_per_px_s)
        # The camera first: if it is refused, the beam still lights what it is booked on.
        if mode.image_shift_nm is not None:
            self._view.shift_image(mode.image_shift_nm)
        if mode.beam_shift_nm is not None:
            self._view.shift_beam(mode.beam_shift_nm)
        self._whereabouts.look()
        area = self._areas.of_mode(name, mode)
        if area != self.area:
            self._areas.book_on(area)
            self._announce()
        self._mode = name
        # A run that ended meanwhile took its beam with it.
        if lit and (not of_a_run or self._acquisition.running):
            self._beam.unblank(since)
            if of_a_run and not self._acquisition.running:
                self._beam.blank_for_good()
        return self._announce()

    def apply(self, **changes: Any) -> SessionState:
        """Change settings; they hold from the next frame on.

        Parameters
        ----------
        **changes
            Any of ``exposure_s``, ``binning``, ``roi``, ``dose_rate`` (e-/px/s of a pixel as it
            is binned now), ``spot_size``, ``magnification``, ``blanked``, ``model``,
            ``restore_binning``.

        Returns
        -------
        SessionState
            As read back.

        Raises
        ------
        RefusedError
            A device does not accept a value, or there is no such device.
        DeviceError, ModelError
            The device failed; the model is unknown or broken.
        """
        unknown = set(changes) - set(_SETTINGS)
        if unknown:
            raise RefusedError(
                f"there is no setting '{min(unknown)}'; settings: {', '.join(_SETTINGS)}"
            )
        self._must_be_open()
        since = self._beam.emergencies
        if set(changes) - {"blanked", "model", "restore_binning"}:
            self._mode = None
        if changes.get("blanked") is True:
            # Off the specimen at once, whatever else is to be changed, and whoever is about to
            # let the beam through again after a pause.
            self._beam.blank_on_request()
        camera = {key: changes[key] for key in ("exposure_s", "binning", "roi") if key in changes}
        if camera:
            wanted = replace(self._setup.settings, **camera)
            with self._lock:
                if self._lost and not self._acquisition.running:
                    self._reconnect()
            try:
                self._acquisition.call(lambda: self._configure(wanted)).result()
            except DeviceError as error:
                self._note_loss(error)
                raise
        if "spot_size" in changes:
            self._beam.set_spot_size(int(changes["spot_size"]))
        if "magnification" in changes:
            magnification = float(changes["magnification"])
            self._acquisition.call(lambda: self._set_magnification(magnification)).result()
        if "dose_rate" in changes:
            self._beam.set_dose_rate(per_A2(float(changes["dose_rate"]), self._pixel_size_nm()))
        if "restore_binning" in changes:
            self._set_restore_binning(changes["restore_binning"])
        if "model" in changes:
            self._set_model(str(changes["model"]))
        if changes.get("blanked") is False:
            self._beam.unblank(since)
        return self._announce()

    def blank_now(self) -> None:
        """Take the beam off the specimen at once, from any thread; never raises.

        It passes everything that waits for a device, and a start that was asked for before does
        not undo it. What came of it is told by `message`.
        """
        if self._beam.blank_now():
            self._announce()

    # ---------------------------------------------------------------------------------- running

    def start(self, frames: int | None = None, seconds: float | None = None) -> None:
        """Unblank (where a blanker exists) and take frames.

        Parameters
        ----------
        frames, seconds : optional
            Length of the run; without both it goes on until `stop`.

        Raises
        ------
        DeviceError
            A device failed, or the beam was blanked by `blank_now` meanwhile; it is blanked.
        """
        self._start(frames, seconds, self._beam.emergencies)

    def _start(self, frames: int | None, seconds: float | None, since: int) -> None:
        with self._lock:
            self._must_be_open()
            if self._acquisition.running:
                raise RefusedError("a run is going on; stop it first")
            if self.area is not None and self._account.ledger_broken:
                raise RecordingError(
                    f"the dose ledger of {self.area} could not be written, and its budget would be "
                    "wrong for ever: free the disk, then set the area again"
                )
            if self._lost:
                self._reconnect()
            set_objects_aside()
            self._acquisition.prepare()
            try:
                self._beam.check_detector()
                self._guard.run_begins()
                self._whereabouts.look()
                self._account.run_begins(frames, self.exposure_s, self.cost(frames=frames or 1))
                self._beam.await_supervisor()
                self._acquisition.start(frames, seconds, lambda: self._beam.let_on(since)).result()
            except BaseException as error:
                # Of an interrupted start the camera's thread knows nothing: it must not go on.
                self._beam.blank_for_good()
                self._acquisition.give_up("user")
                self._note_loss(error)
                take_objects_back()
                raise
        self._announce()

    def stop(self, reason: str = "user") -> None:
        """Blank the beam, end the run and close the recording; returns when all is done."""
        if self._acquisition.running or self._acquisition.starting:
            # For good: a start, or a change of settings, that is under way must not undo it.
            self._beam.blank_for_good()
            self._acquisition.request_stop(reason)
        # A run that ends by itself still has frames on their way.
        self._acquisition.wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until no run is going on; False if ``timeout_s`` passed first."""
        return self._acquisition.wait(timeout_s)

    def subscribe(
        self, receive: Callable[[Frame], None], wants: Callable[[FrameInfo, bool], bool] = take_all
    ) -> Callable[[], None]:
        """Have frames handed to ``receive``, on the processing thread: be quick there.

        Parameters
        ----------
        receive : callable of Frame
            Gets the frame with memory of its own.
        wants : callable of (FrameInfo, restored) to bool, optional
            Which frames to copy and hand over; all by default.

        Returns
        -------
        callable
            Ends the subscription.
        """
        return self._processor.subscribe(receive, wants)

    def frames(self, n: int) -> Iterator[Frame]:
        """Take ``n`` frames and yield each with memory of its own.

        A run that is going on is listened to; else one of ``n`` frames is made for it.

        Raises
        ------
        DeviceError
            The run ended with an error before all had come.
        """
        inbox: queue.SimpleQueue[Frame | str] = queue.SimpleQueue()

        def ended(reason: str) -> None:
            inbox.put(reason)

        own_run = not self._acquisition.running
        if own_run:
            self._acquisition.wait()
        end = self.subscribe(inbox.put)
        self.stopped.connect(ended)
        # Read after subscribing: every frame from this one on is sure to be handed over.
        first = self._acquisition.next_id
        try:
            if own_run:
                self.start(frames=n)
            yield from in_order(inbox, first, n)
        finally:
            end()
            self.stopped.disconnect(ended)
            if own_run:
                self.stop()

    def snap(self) -> Frame:
        """One frame. Raises as `frames`."""
        for frame in self.frames(1):
            return frame
        raise DeviceError(f"no frame was taken ({self.stats().stop_reason})")

    # --------------------------------------------------------------------------------- watching

    def watch(self, fidelity: bool = True, damage: bool = True) -> Watch:
        """Judge the live frames: how far the restored ones can be believed, how the specimen fades.

        Parameters
        ----------
        fidelity, damage : bool
            What to judge. Without a restorer, or with one that uses the frames before, there is no
            fidelity.

        Returns
        -------
        Watch
            Running, until it or the session is closed. Several of the same kind share the work.
        """
        self._must_be_open()
        return self._judging.watch(fidelity, damage)

    def minimise(
        self,
        target_resolution_nm: float | None = None,
        *,
        target: Target | None = None,
        knob: Knob | None = None,
        lowest: float | None = None,
        highest: float | None = None,
        confidence: float = 0.9,
    ) -> DoseMinimiser:
        """Hold the dose of the frames as low as a target allows, from now on.

        Parameters
        ----------
        target_resolution_nm : float, optional
            Period in nm that restored frames must resolve; or ``target``.
        target : Target, optional
            Another one: `tem_live.minimise_targets.EquivalentDose`, `ContrastToNoise`.
        knob : {"dose_rate", "exposure_s"}, optional
            What is set; by default the dose rate where the column steers it.
        lowest, highest, confidence
            See `tem_live.minimise.DoseMinimiser`.

        Returns
        -------
        DoseMinimiser
            Running, until its `stop` or the end of the session.

        Raises
        ------
        InputError
            There is no target, a bound or the confidence is out of range, no restorer runs that
            restores each frame by itself, or the pixel size is unknown.
        RefusedError
            A loop is on already, or a device does not take the first dose.
        """
        self._must_be_open()
        return self._judging.minimise(
            target_resolution_nm, target, knob, lowest, highest, confidence
        )

    @property
    def budget_e_per_A2(self) -> float | None:
        """Fluence in e-/A^2 at which a run stops with the beam blanked; None for no limit."""
        return self._account.budget_e_per_A2

    @budget_e_per_A2.setter
    def budget_e_per_A2(self, value: float | None) -> None:
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"a budget of {value:g} e-/Å² is none; give a positive figure")
        self._account.budget_e_per_A2 = value

    def take_critical_fluence_as_budget(self, cautious: bool = True) -> float:
        """Make the critical fluence that a `watch` found the budget.

        Parameters
        ----------
        cautious : bool
            Take the lower end of its 95 % interval instead of the figure itself.

        Returns
        -------
        float
            The budget in e-/A^2. Where more is spent already, a run stops at its next frame.

        Raises
        ------
        RefusedError
            No critical fluence is known (yet).
        """
        budget = self._judging.critical_fluence_e_per_A2(cautious)
        self.budget_e_per_A2 = budget
        self._tell("info", f"the budget is now {budget:.3g} e-/Å²")
        return budget

    # -------------------------------------------------------------------------------- recording

    def record(self, path: str | Path) -> Path:
        """Record every raw frame from now on, and what is restored of them, to OME-Zarr.

        Parameters
        ----------
        path : str or Path
            A new folder; ``.zarr`` is added where it is missing.

        Returns
        -------
        Path
            Where the recording is.

        Raises
        ------
        InputError
            There is something at ``path``.
        RefusedError
            A recording is going on.
        """
        with self._lock:
            self._must_be_open()
            counts = {
                "counts_per_electron": self._stream.counts_per_electron,
                "offset_counts": self._setup.offset_counts(self._stream.state),
            }
            target = self._recording.begin(Path(path), self._restorer, counts)
        self._announce()
        return target

    def stop_recording(self) -> Path | None:
        """Write what is queued and close the recording; returns its path, None if there is none."""
        with self._lock:
            path = self._recording.forget()
        self._writer.close()
        self._announce()
        return path

    # ------------------------------------------------------------------------------ calibrating

    def take_reference(self, kind: Kind, frames: int = 64, path: Path | None = None) -> Path:
        """Take a dark or gain reference and use it from now on.

        Parameters
        ----------
        kind : {"dark", "gain"}
            Dark: the beam is blanked for it (without a blanker, blank it by hand before). Gain:
            the beam must be on and evenly spread, with no specimen in it.
        frames : int
            Number of frames to average.
        path : Path, optional
            Where to keep it; by default where this profile finds it at the next start.

        Raises
        ------
        InputError
            It cannot be kept there.
        CalibrationError
            The frames do not make a reference.
        DeviceError
            The run ended before all frames had come.
        RefusedError
            A recording is going on: it would hold the reference's frames.
        DisconnectedError
            The session is closed, or was meanwhile.
        """
        if frames < 2:
            raise CalibrationError(f"{frames} frame(s) make no reference; take at least 2")
        since = self._beam.emergencies
        with self._lock:
            self._must_be_open()
            return self._take_reference(kind, frames, path, since)

    def take_raw(self, frames: int, blanked: bool = False) -> list[npt.NDArray[Any]]:
        """Raw frames in counts, uncalibrated, as a calibration needs them.

        Parameters
        ----------
        frames : int
            How many. Two more are taken before them and left out.
        blanked : bool
            With the beam blanked (without a blanker, blank it by hand before).

        Returns
        -------
        list of ndarray (H, W)
            Of the camera's dtype, with memory of their own.

        Raises
        ------
        DeviceError
            The run ended before all had come.
        RefusedError
            A run or a recording is going on.
        """
        since = self._beam.emergencies
        with self._lock:
            self._must_be_open()
            if self._acquisition.running:
                raise RefusedError("a run is going on; stop it first")
            self._must_not_record()
            kept: list[npt.NDArray[Any]] = []
            each_raw(
                self._acquisition,
                self._beam,
                frames,
                blanked,
                since,
                lambda raw: kept.append(raw.copy()),
            )
        return kept

    @property
    def dose_calibration(self) -> DoseCalibration | None:
        """What counts are converted and electrons booked by; None for none."""
        return self._beam.calibration

    def use_dose_calibration(self, calibration: DoseCalibration | None) -> None:
        """Convert counts and book by this calibration from now on; None for none."""
        self._must_be_open()
        self._beam.calibration = calibration
        self._configure_again()
        self._beam.read_rate_again()
        self._announce()

    def read_current(self) -> float:
        """The beam's current in ampere, measured with the beam on; its sign is the instrument's.

        Raises
        ------
        RefusedError
            The profile has no beam monitor, or it has no number.
        DeviceError
            It failed.
        """
        self._must_be_open()
        if self._monitor is None:
            raise RefusedError("this profile has no beam monitor; set beam_monitor.driver")
        self._monitor.open()
        since = self._beam.emergencies
        was_blanked = self._beam.state.blanked
        try:
            if was_blanked:
                self._beam.unblank(since)
            reading = self._monitor.read_current()
        finally:
            if was_blanked:
                self._beam.blank_quietly()
        if reading.current_A is None:
            why = "the current is more than its range" if reading.overflow else "it has no number"
            raise RefusedError(f"the beam monitor does not tell the current: {why}")
        return reading.current_A

    # ---------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Blank the beam, end the run, close the recording and the devices; idempotent."""
        with self._closing_once:
            if self._closed:
                return
            self._closed = True
        self._beam.blank_for_good()
        if self._acquisition.running or self._acquisition.starting:
            self._acquisition.request_stop("user")
        # A start or a calibration that is under way ends by that.
        with self._lock:
            self._beam.blank_for_good()
        self._closing.close()
        self._recording.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --------------------------------------------------------------------------------- internals

    def _ledger(self, area: str | None) -> Ledger:
        return Ledger(area, self.profile.name, self._on_ledger_error)

    @property
    def _stream(self) -> Stream:
        stream = self._acquisition.stream
        assert stream is not None, "configured when opened"
        return stream

    def _must_be_open(self) -> None:
        if self._closed:
            raise DisconnectedError("the session is closed; open a new one")

    def _must_not_record(self) -> None:
        if self._recording.path is not None:
            raise RefusedError(
                "a recording is going on, and frames of a calibration do not belong in it; stop it "
                "first"
            )

    def _take_reference(self, kind: Kind, frames: int, path: Path | None, since: int) -> Path:
        self._must_not_record()
        target = check_target(path or default_path(self.profile.name, kind))
        left: tuple[int | None, float | None] | None = None
        if self._acquisition.running:
            # Not by `stop`, whose blanking is for good: this one is ours to undo.
            self._beam.blank_quietly()
            self._acquisition.request_stop("reference")
            self._acquisition.wait()
            # Unless it has come to its own end just then.
            left = self._acquisition.left if self.stats().stop_reason == "reference" else None
            self._must_be_open()
        mean = mean_counts(
            self._acquisition,
            self._beam,
            frames,
            self._stream.state.frame_shape,
            kind == "dark",
            since,
        )
        state, references = self._stream.state, self._setup.references
        reference = references.make(kind, mean, frames, state, self._setup.offset_counts(state))
        saved = reference.save(target)
        references.use(reference)
        self._configure_again()
        self._tell("info", f"{kind} reference of {frames} frames saved to {saved}")
        if left is not None:
            self._start(*left, since)
        return saved

    def _configure(self, wanted: CameraSettings) -> None:
        """Set the camera and lay out the frames' memory anew; on the camera's thread."""
        before = self._acquisition.stream
        stream = self._setup.configure(wanted, before)
        renewed = before is None or stream.ring is not before.ring
        self._acquisition.stream = stream
        if renewed:
            self._processor.forget()
            del before
            return_memory()
        self._whereabouts.look()

    def _configure_again(self) -> None:
        """The camera as it is set, and what has changed of how its frames are understood."""
        self._acquisition.call(lambda: self._configure(self._setup.settings)).result()

    def _field(self) -> Field | None:
        stream = self._acquisition.stream
        return None if stream is None else self._setup.field(stream)

    def _follow_drift(self, info: FrameInfo, restored: bool) -> bool:
        """Every frame's drift, without a copy of the frame."""
        self._whereabouts.follow(info)
        return False

    def _pixel_size_nm(self) -> float:
        size = self._stream.pixel_size_nm
        if not size:
            raise RefusedError(
                "the pixel size is unknown, so no dose rate can be set; set camera.pixel_size_nm"
            )
        return size

    def _set_unbinned_rate(self, rate_e_per_px_s: float | None) -> None:
        """Set the dose rate of an unbinned pixel, if there is one to set."""
        if rate_e_per_px_s is not None:
            unbinned_nm = self._pixel_size_nm() / self._stream.state.binning
            self._beam.set_dose_rate(per_A2(rate_e_per_px_s, unbinned_nm))

    def _restores_singly(self) -> bool:
        card = self._restorer.card if self._restorer else None
        return self._restorer is not None and (card is None or card.kind != "temporal")

    def _set_magnification(self, magnification: float) -> None:
        self._beam.set_magnification(magnification)
        self._configure(self._setup.settings)

    def _rate_e_per_px_s(self) -> float | None:
        """Incident dose rate of an unbinned pixel in e-/px/s, where it is known."""
        rate, stream = self._beam.state.dose_rate_e_per_A2_s, self._stream
        if rate is None or not stream.pixel_size_nm:
            return None
        return per_pixel(rate, stream.pixel_size_nm / stream.state.binning)

    def _why_not_lit(self) -> str | None:
        """Why the detector does not allow the beam as it is set; None where it does."""
        return self._guard.why_not(self._rate_e_per_px_s())

    def _set_restore_binning(self, binning: Any) -> None:
        if binning not in RESTORE_BINNINGS:
            known = ", ".join(str(known) for known in RESTORE_BINNINGS)
            raise RefusedError(f"frames are restored binned by one of {known}, not by {binning}")
        self._restore_binning = int(binning)
        self._use_restorer(self._whole)

    def _set_model(self, name: str) -> None:
        restorer = make_restorer(self.profile, name)
        if restorer and open_backend(str(restorer.device)).name != self._backend.name:
            raise RefusedError(
                f"model '{name}' would run on {restorer.device}, this session's frames live on "
                f"{self._backend.name}; open the session with that device"
            )
        self._use_restorer(restorer)

    def _use_restorer(self, restorer: Restorer | None) -> None:
        self._whole = restorer
        self._restorer = given_binned(restorer, self._restore_binning)
        self._processor.set_restorer(self._restorer)
        with self._lock:
            self._recording.note_model(self._restorer)

    def _reconnect(self) -> None:
        def again() -> None:
            self._setup.reopen()
            self._configure(self._setup.settings)

        self._acquisition.call(again).result()
        self._lost = False

    def _note_loss(self, error: BaseException) -> None:
        """A camera that is gone is looked for again with the next start or setting."""
        gone = DisconnectedError | NotConnectedError | DeviceTimeoutError
        if isinstance(error, gone) and not self._acquisition.running:
            self._lost = True

    def _on_stopped(self, reason: str) -> None:
        self._recording.forget()
        take_objects_back()
        if reason.startswith("error: "):
            self._lost = True
            # A recording that fails is told at once, before its run has ended.
            if not isinstance(self._acquisition.error, RecordingError):
                self._tell("error", reason.removeprefix("error: "))
        elif reason == "budget":
            self._tell(
                "warning",
                f"the budget of {self._account.budget_e_per_A2:g} e-/Å² is spent: "
                + ("close the valves" if self._beam.parts.blanker is None else "beam blanked"),
            )
        self.stopped.emit(reason)
        self._announce()

    def _on_recording_error(self, error: RecordingError) -> None:
        self._recording.error = error
        self._beam.blank_for_good()
        self._acquisition.request_stop(f"error: {error}", error)
        self._tell("error", str(error))

    def _on_spent(self) -> None:
        """The budget is spent, whether or not a frame has come; on the account's thread."""
        # There may be nothing to run yet: the opening may have found the beam on.
        running = self._opened and (self._acquisition.running or self._acquisition.starting)
        self._beam.blank_quietly()
        if running:
            self._acquisition.request_stop("budget")
            return
        self._tell("warning", "the budget is spent: beam blanked")
        if self._opened:
            self._announce()

    def _on_too_bright(self, text: str) -> None:
        """The detector takes more than it may; from any thread."""
        self._beam.blank_for_good()
        error = RefusedError(f"beam blanked to protect the detector: {text}")
        if self._acquisition.running or self._acquisition.starting:
            self._acquisition.request_stop(f"error: {error}", error)
        else:
            self._tell("error", str(error))

    def _on_blanked_for_us(self) -> None:
        """The process hung, and the supervisor blanked the beam meanwhile."""
        self._beam.tell_last_report()
        # It may have hung before there was a camera to tell of.
        if self._beam.blank_now() and self._opened:
            self._announce()

    def _on_ledger_error(self, error: RecordingError) -> None:
        # A session that is being closed has blanked the beam, and may have let go of the column.
        if self._account.area is not None and not self._closed:
            # The budget of this area would be wrong for ever.
            self._beam.blank_for_good()
            self._acquisition.request_stop(f"error: {error}", error)
        self._tell("error", str(error))

    def _announce(self) -> SessionState:
        state = self.state
        self.state_changed.emit(state)
        return state

    def _tell(self, level: str, text: str) -> None:
        self.messages.append((level, text))
        self.message.emit(level, text)
