"""A simulated microscope: camera, column and specimen that behave like real ones.

The camera runs on the wall clock and waits for nobody: frames that are not fetched pile up in a
buffer of limited depth and are lost beyond it. What a frame shows is computed only when it is
fetched, from its number, the seed, and what the beam did during its exposure.

Noise enters where it does in a camera: incident dose, transmission of the specimen, Poisson
statistics of the electrons, spread of the energy that each leaves, blur of the detector (which
correlates the noise of neighbours), gain and its pattern, dark current, hot and dead pixels,
binning, X-ray hits, read noise, noise of whole rows, pedestal, clipping.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage, special

from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    FrameMeta,
    Roi,
)
from tem_live.drivers.sim_run import SimRun
from tem_live.drivers.sim_scenes import Motion, Plane, Scene, SceneName, Window, make_scene
from tem_live.errors import (
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)

EXPOSURE_RANGE_S = (0.001, 10.0)
BINNINGS = (1, 2, 4)
SATURATION_COUNTS = 65535
ELEMENTARY_CHARGE_C = 1.602176634e-19
"""Exact; SI brochure, 9th edition, section 2.2."""


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SimMicroscope:
    """The beam that camera and column share: its dose rate, its blanker, and its history.

    Thread-safe. The history makes it possible to ask later how much a past exposure got. The beam
    is parallel: magnifying more lights no less of the specimen, and a pixel gets fewer electrons.
    Below the magnification at the start the lit area grows with the field, at the same dose rate.

    Parameters
    ----------
    pixel_size_nm : float
        Size of an unbinned pixel at the specimen in nm, unmagnified.
    dose_rate_e_per_A2_s : float
        Incident dose rate at the start, in e-/A^2/s.
    clock : callable
        Time in seconds from any origin.
    beam_area_nm2 : float
        How much of the specimen the beam lights, evenly, in nm², at the start.
    """

    def __init__(
        self,
        pixel_size_nm: float,
        dose_rate_e_per_A2_s: float,
        clock: Callable[[], float] = time.perf_counter,
        beam_area_nm2: float = 1e4,
    ) -> None:
        self.image_shift_nm = (0.0, 0.0)
        """(x, y) of the specimen in nm that the middle of the sensor looks at, with no stage."""
        self._zoom = 1.0
        self._stage_um = (0.0, 0.0)
        self._beam_shift_nm = (0.0, 0.0)
        self._beam_area_nm2 = beam_area_nm2
        self.blanker_latency_s = 0.0
        """How long the beam stays on after it was blanked."""
        self._unzoomed_nm = pixel_size_nm
        self._off_at = -math.inf
        self.clock = clock
        self._lock = threading.Lock()
        self._rate = dose_rate_e_per_A2_s
        self._blanked = False
        self._powered = False
        self._times = [clock()]
        self._rates = [0.0]
        self._fluences = [0.0]
        # Which discs (x, y, radius in nm) have taken how much, and of the present one since when.
        self._lit: dict[tuple[float, float, float], float] = {}
        self._lit_since = 0.0

    def power_on(self) -> None:
        """Let the beam reach the specimen, unless blanked; idempotent."""
        with self._lock:
            self._powered = True
            self._note()

    @property
    def blanked(self) -> bool:
        """Whether the beam is off the specimen."""
        return self._blanked

    @property
    def zoom(self) -> float:
        """How many times more than at the start is magnified."""
        return self._zoom

    @zoom.setter
    def zoom(self, zoom: float) -> None:
        with self._lock:
            self._leave_disc()
            self._zoom = zoom

    @property
    def stage_um(self) -> tuple[float, float]:
        """(x, y) of the stage in µm: how far the specimen is to the right, and down."""
        return self._stage_um

    @stage_um.setter
    def stage_um(self, stage_um: tuple[float, float]) -> None:
        with self._lock:
            self._leave_disc()
            self._stage_um = stage_um

    @property
    def beam_shift_nm(self) -> tuple[float, float]:
        """(x, y) of the beam at the specimen in nm; 0 is what the camera looks at unshifted."""
        return self._beam_shift_nm

    @beam_shift_nm.setter
    def beam_shift_nm(self, beam_shift_nm: tuple[float, float]) -> None:
        with self._lock:
            self._leave_disc()
            self._beam_shift_nm = beam_shift_nm

    @property
    def pixel_size_nm(self) -> float:
        """Size of an unbinned pixel at the specimen in nm, as it is magnified now."""
        return self._unzoomed_nm / self.zoom

    @property
    def beam_area_nm2(self) -> float:
        """Illuminated area in nm²; it grows with the field below the magnification at the start."""
        return self._beam_area_nm2 / min(self.zoom, 1.0) ** 2

    @property
    def current_A(self) -> float:
        """Current of the whole beam below the blanker in ampere."""
        with self._lock:
            self._settle()
            rate_e_per_s = self._rates[-1] * self.beam_area_nm2 * 100
        return rate_e_per_s * ELEMENTARY_CHARGE_C

    def set_blanked(self, blanked: bool) -> None:
        """Blank, which takes `blanker_latency_s`, or unblank, at once."""
        with self._lock:
            self._settle()
            if blanked and not self._blanked:
                self._off_at = self.clock() + self.blanker_latency_s
            self._blanked = blanked
            self._note()

    @property
    def dose_rate_e_per_A2_s(self) -> float:
        """Incident dose rate with the beam unblanked, in e-/A^2/s."""
        return self._rate

    def set_dose_rate(self, dose_rate_e_per_A2_s: float) -> None:
        """Set the incident dose rate in e-/A^2/s, at once."""
        with self._lock:
            self._rate = dose_rate_e_per_A2_s
            self._note()

    @property
    def true_fluence_e_per_A2(self) -> float:
        """What the specimen has taken until now in e-/A^2, between frames included."""
        return self.fluence_at(self.clock())

    def fluence_at(self, time_s: float) -> float:
        """What the specimen had or will have taken at a time of `clock`, in e-/A^2."""
        with self._lock:
            return self._fluence_at(time_s)

    def _fluence_at(self, time_s: float) -> float:
        self._settle()
        last = max(bisect_right(self._times, time_s) - 1, 0)
        since_s = max(time_s - self._times[last], 0.0)
        return self._fluences[last] + since_s * self._rates[last]

    def place_fluence_e_per_A2(self, x_nm: float, y_nm: float) -> float:
        """What a place of the specimen has taken until now in e-/A^2.

        Parameters
        ----------
        x_nm, y_nm : float
            From the middle of the sensor without stage and image shift, to the right and down. The
            specimen's own drift is left out.
        """
        with self._lock:
            self._leave_disc()
            return sum(
                fluence
                for (x, y, radius_nm), fluence in self._lit.items()
                if math.hypot(x_nm - x, y_nm - y) <= radius_nm
            )

    def _leave_disc(self) -> None:
        """Write down what the disc that is lit has taken, before another one is."""
        (right_um, down_um), (x_nm, y_nm) = self._stage_um, self._beam_shift_nm
        radius_nm = math.sqrt(self.beam_area_nm2 / math.pi)
        disc = x_nm - 1000 * right_um, y_nm - 1000 * down_um, radius_nm
        now = self._fluence_at(self.clock())
        if now > self._lit_since:
            self._lit[disc] = self._lit.get(disc, 0.0) + now - self._lit_since
            self._lit_since = now

    def _note(self) -> None:
        now = self.clock()
        self._settle(now)
        late = self._blanked and now < self._off_at
        self._turn(now, self._rate if self._powered and (late or not self._blanked) else 0.0)

    def _settle(self, now: float | None = None) -> None:
        """Write down that a late blanker has taken the beam off, if it has by now."""
        if self._blanked and self._rates[-1] and (now or self.clock()) >= self._off_at:
            self._turn(max(self._off_at, self._times[-1]), 0.0)

    def _turn(self, time_s: float, rate_e_per_A2_s: float) -> None:
        fluence = self._fluences[-1] + (time_s - self._times[-1]) * self._rates[-1]
        self._times.append(time_s)
        self._rates.append(rate_e_per_A2_s)
        self._fluences.append(fluence)
        # Nobody asks for the far past; a script that blanks for days must not fill the memory.
        if len(self._times) > 100_000:
            for history in (self._times, self._rates, self._fluences):
                del history[:50_000]


class SimCamera:
    """Simulated camera; see the module's text.

    Parameters
    ----------
    options : SimCamera.Options
        Sensor, specimen and noise.
    """

    class Options(_Options):
        """Fields of ``[camera]`` with ``driver = "sim"``.

        Attributes
        ----------
        scene : {"nanoparticles", "lattice", "damage", "vacuum"}
            The specimen.
        sensor_height_px, sensor_width_px : int
            Unbinned sensor.
        specimen_pixel_nm : float
            Size of an unbinned pixel at the specimen in nm, which the camera reports.
        beam_e_per_px_s : float
            Incident dose rate per unbinned pixel before a column sets another one.
        mean_transmission : float or None
            The illumination is raised so that the mean over the field is this fraction of the
            empty beam's dose: with 1 the dose that was set is what the camera measures. None lets
            the specimen absorb what it absorbs.
        drift_nm_per_s : tuple of float
            Drift of the specimen (dy, dx) in nm/s.
        wander_nm : float
            Amplitude of the particles' random walk in nm; 0 lets them stand still.
        critical_fluence_e_per_A2 : float
            Of the scene ``damage``: where 1/e of its first Bragg contrast is left, in e-/A^2.
        gain_counts_per_electron : float
            Mean gain. It becomes ``CameraState.counts_per_electron``.
        gain_spread : float
            Relative standard deviation of the gain from pixel to pixel.
        energy_spread : float
            Relative standard deviation of the signal of one electron (Landau, Swank); it raises
            the variance by 1 + energy_spread².
        mtf_sigma_px : float
            Standard deviation of the detector's blur in unbinned pixels.
        dark_e_per_px_s : float
            Dark current in electrons per unbinned pixel and second.
        read_noise_e : float
            Read noise of an unbinned pixel in electrons rms.
        row_noise_e : float
            Noise that all pixels of a row share, in electrons rms.
        hot_pixels, dead_pixels : int
            How many, at places that stay.
        hot_e_per_s : float
            Mean dark current of a hot pixel in electrons per second.
        xrays_per_frame : float
            Mean number of X-ray hits in a frame of the whole sensor while the beam is on.
        xray_e : float
            Mean signal of such a hit in electrons.
        pedestal_counts : float
            Pedestal in counts, added once to each pixel as binned.
        readout_s : float
            Gap between two exposures in seconds; the beam is on during it.
        buffer_frames : int
            Frames that the camera keeps for a slow reader before it loses the oldest.
        seed : int
            Of everything that is random. The same calls give the same frames.
        """

        scene: SceneName = "nanoparticles"
        sensor_height_px: int = Field(default=512, ge=16, le=4096)
        sensor_width_px: int = Field(default=512, ge=16, le=4096)
        specimen_pixel_nm: float = Field(default=0.2, gt=0, le=1000)
        beam_e_per_px_s: float = Field(default=100.0, ge=0, le=1e7)
        mean_transmission: float | None = Field(default=None, gt=0, le=1)
        drift_nm_per_s: tuple[float, float] = (0.05, 0.08)
        wander_nm: float = Field(default=1.0, ge=0, le=100)
        critical_fluence_e_per_A2: float = Field(default=150.0, gt=0)
        gain_counts_per_electron: float = Field(default=40.0, gt=0, le=1e4)
        gain_spread: float = Field(default=0.01, ge=0, le=0.3)
        energy_spread: float = Field(default=0.0, ge=0, le=2)
        mtf_sigma_px: float = Field(default=0.45, ge=0, le=5)
        dark_e_per_px_s: float = Field(default=0.02, ge=0, le=1e5)
        read_noise_e: float = Field(default=0.7, ge=0, le=1e3)
        row_noise_e: float = Field(default=0.05, ge=0, le=1e3)
        hot_pixels: int = Field(default=8, ge=0)
        dead_pixels: int = Field(default=4, ge=0)
        hot_e_per_s: float = Field(default=400.0, ge=0, le=1e6)
        xrays_per_frame: float = Field(default=1.0, ge=0, le=1e5)
        xray_e: float = Field(default=60.0, ge=0, le=1e5)
        pedestal_counts: float = Field(default=100.0, ge=0, le=60000)
        readout_s: float = Field(default=0.0, ge=0, le=10)
        buffer_frames: int = Field(default=128, ge=1, le=4096)
        seed: int = Field(default=1, ge=0)

    def __init__(self, options: Options) -> None:
        self.options = options
        area_A2 = (options.specimen_pixel_nm * 10) ** 2
        # A disc of 1.2 times the diagonal of the field.
        diagonal_nm = math.hypot(*self._sensor) * options.specimen_pixel_nm
        self.microscope = SimMicroscope(
            options.specimen_pixel_nm,
            options.beam_e_per_px_s / area_A2,
            beam_area_nm2=math.pi / 4 * (1.2 * diagonal_nm) ** 2,
        )
        """The beam; `SimColumn` steers it."""
        self._lock = threading.Lock()
        self._open = False
        self._run: SimRun | None = None
        self._runs = 0
        self._specimen_time_s = 0.0
        self._detector: Detector | None = None
        self._scene: Scene | None = None
        self._brightness = 1.0
        self._state = self._state_of(CameraSettings(0.1), (0, 0, *self._sensor))

    @property
    def _sensor(self) -> tuple[int, int]:
        return self.options.sensor_height_px, self.options.sensor_width_px

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera.capabilities`."""
        self._must_be_open()
        return CameraCapabilities(
            name="simulated camera",
            sensor_shape=self._sensor,
            dtype=np.dtype(np.uint16),
            exposure_range_s=EXPOSURE_RANGE_S,
            binnings=BINNINGS,
            has_roi=True,
        )

    @property
    def true_fluence_e_per_A2(self) -> float:
        """See `HasTrueFluence`."""
        return self.microscope.true_fluence_e_per_A2

    @property
    def scene(self) -> Scene:
        """The specimen. Raises `NotConnectedError` before the first `open`."""
        if self._scene is None:
            raise NotConnectedError("the simulated camera was never opened; call open() first")
        return self._scene

    def open(self) -> None:
        """See `Camera.open`; lays out specimen and detector the first time."""
        if self._scene is None:
            options, pixel_nm = self.options, self.options.specimen_pixel_nm
            dy, dx = options.drift_nm_per_s
            motion = Motion((dy / pixel_nm, dx / pixel_nm), options.wander_nm / pixel_nm)
            scene = make_scene(
                options.scene,
                self._sensor,
                pixel_nm,
                motion,
                options.critical_fluence_e_per_A2,
                options.seed,
            )
            self._detector = Detector(options)
            if options.mean_transmission is not None:
                whole = scene.transmission(Window(0, 0, *self._sensor), 0.0, 0.0)
                self._brightness = options.mean_transmission / float(whole.mean())
            self._scene = scene
        self._open = True
        self.microscope.power_on()

    def close(self) -> None:
        """See `Camera.close`; the specimen and what it has taken stay."""
        self.stop()
        self._open = False

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera.configure`."""
        capabilities = self.capabilities
        if self._run is not None:
            raise RefusedError("the camera is running; stop it before it is configured")
        self._state = self._state_of(settings, check_settings(settings, capabilities))
        return self._state

    def start(self, frames: int | None = None) -> None:
        """See `Camera.start`."""
        self._must_be_open()
        if frames is not None and frames < 1:
            raise RefusedError(f"a series of {frames} frames is none; ask for at least 1")
        self.stop()
        with self._lock:
            now = self.microscope.clock()
            self._run = SimRun(self._runs, now, self._specimen_time_s, frames)
            self._runs += 1

    def stop(self) -> None:
        """See `Camera.stop`."""
        with self._lock:
            run, self._run = self._run, None
            if run is not None:
                # The specimen's clock counts the frames that were fetched and not the seconds, so
                # that the same calls show the same motion.
                interval_s = self._state.frame_interval_s
                self._specimen_time_s = run.specimen_time_s + run.next * interval_s
                run.stopped.set()

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera.read_into`."""
        self._must_be_open()
        run, state = self._run, self._state
        if run is None:
            raise DisconnectedError("the camera is stopped; start it before reading a frame")
        check_buffer(buffer, state.frame_shape, state.dtype)
        sequence = run.await_frame(
            self.microscope.clock,
            state.frame_interval_s,
            self.options.buffer_frames,
            timeout_s,
            "camera",
        )
        return self._expose(buffer, run, state, sequence)

    def truth(self, meta: FrameMeta) -> npt.NDArray[np.float32]:
        """Expected electrons per pixel of a frame of this camera.

        Parameters
        ----------
        meta : FrameMeta
            As `read_into` gave it; only its ``raw`` is used.

        Returns
        -------
        ndarray
            (H, W) float32 in e-/px as binned, blurred as the detector does, with no noise, dark
            current or defects.
        """
        raw = meta.raw
        roi: Roi = tuple(raw["roi"])
        expected = self._expected(
            roi,
            raw["specimen_time_s"],
            raw["fluence_e_per_A2"],
            raw.get("zoom", 1.0),
            raw.get("stage_um", (0.0, 0.0)),
            raw.get("beam_shift_nm", (0.0, 0.0)),
            raw.get("image_shift_nm", (0.0, 0.0)),
        )
        expected *= np.float32(raw["incident_e_per_px"])
        return _binned(self._noise.blurred(expected), raw["binning"])

    @property
    def _noise(self) -> Detector:
        if self._detector is None:
            raise NotConnectedError("the simulated camera was never opened; call open() first")
        return self._detector

    def _must_be_open(self) -> None:
        if not self._open:
            raise NotConnectedError("the simulated camera is closed; open it first")

    def _state_of(self, settings: CameraSettings, roi: Roi) -> CameraState:
        options, binning = self.options, settings.binning
        exposure_s = round(settings.exposure_s, 6)
        return CameraState(
            exposure_s=exposure_s,
            binning=binning,
            roi=roi,
            frame_shape=(roi[2] // binning, roi[3] // binning),
            dtype=np.dtype(np.uint16),
            frame_interval_s=exposure_s + options.readout_s,
            pixel_size_nm=self.microscope.pixel_size_nm * binning,
            counts_per_electron=options.gain_counts_per_electron,
            offset_counts=options.pedestal_counts,
            saturation_counts=SATURATION_COUNTS,
        )

    def _expected(
        self,
        roi: Roi,
        time_s: float,
        fluence_e_per_A2: float,
        zoom: float,
        stage_um: Sequence[float],
        beam_shift_nm: Sequence[float],
        image_shift_nm: Sequence[float],
    ) -> Plane:
        """Transmission of a region and of what its pixels get from beyond it by the blur."""
        # In whole pixels, which no stage is better than.
        right, down = (
            round((1000 * stage - image) / self.options.specimen_pixel_nm)
            for stage, image in zip(stage_um, image_shift_nm, strict=True)
        )
        margin = self._noise.margin
        top, left, height, width = roi
        window = Window(top - margin, left - margin, height + 2 * margin, width + 2 * margin)
        if zoom == 1.0:
            moved = window._replace(top=window.top - down, left=window.left - right)
            expected = self.scene.transmission(moved, time_s, fluence_e_per_A2)
        else:
            field = Window(-down, -right, *self._sensor)
            expected = zoomed(
                self.scene.transmission(field, time_s, fluence_e_per_A2), window, zoom
            )
        if self._brightness != 1.0:
            expected *= np.float32(self._brightness)
        # Where the beam is on the sensor.
        seen_nm = [b - i for b, i in zip(beam_shift_nm, image_shift_nm, strict=True)]
        if any(seen_nm):
            self._darken_beyond(expected, window, zoom, seen_nm)
        return expected

    def _darken_beyond(
        self, expected: Plane, window: Window, zoom: float, beam_nm: Sequence[float]
    ) -> None:
        """Take away what is outside of the lit disc; ``beam_nm`` is from the sensor's middle."""
        pixel_nm = self.options.specimen_pixel_nm / zoom
        height, width = self._sensor
        x = (np.arange(window.width) + window.left + 0.5 - width / 2) * pixel_nm
        y = (np.arange(window.height) + window.top + 0.5 - height / 2) * pixel_nm
        distance = np.hypot(x[None, :] - beam_nm[0], y[:, None] - beam_nm[1])
        expected[distance > math.sqrt(self.microscope.beam_area_nm2 / math.pi)] = 0

    def _expose(
        self, buffer: npt.NDArray[Any], run: SimRun, state: CameraState, sequence: int
    ) -> FrameMeta:
        begin_s = run.began_s + sequence * state.frame_interval_s
        before = self.microscope.fluence_at(begin_s)
        dose_e_per_A2 = self.microscope.fluence_at(begin_s + state.exposure_s) - before
        # Nine digits: the last bits depend on when the run began, and frames shall not.
        incident = float(f"{dose_e_per_A2 * (self.microscope.pixel_size_nm * 10) ** 2:.9g}")
        specimen_time_s = (
            run.specimen_time_s + sequence * state.frame_interval_s + state.exposure_s / 2
        )
        fluence = before + dose_e_per_A2 / 2
        zoom = self.microscope.zoom
        stage_um, shift_nm = self.microscope.stage_um, self.microscope.beam_shift_nm
        image_nm = self.microscope.image_shift_nm
        expected = self._expected(
            state.roi, specimen_time_s, fluence, zoom, stage_um, shift_nm, image_nm
        )
        expected *= np.float32(incident)
        rng = np.random.Generator(np.random.SFC64([self.options.seed, run.number, sequence]))
        self._noise.detect(expected, state, rng, buffer)
        return FrameMeta(
            sequence=sequence,
            host_time_s=time.time(),
            exposure_s=state.exposure_s,
            device_time_s=begin_s,
            raw={
                "roi": list(state.roi),
                "binning": state.binning,
                "specimen_time_s": specimen_time_s,
                "incident_e_per_px": incident,
                "fluence_e_per_A2": fluence,
                **({} if zoom == 1.0 else {"zoom": zoom}),
                **({"stage_um": list(stage_um)} if any(stage_um) else {}),
                **({"beam_shift_nm": list(shift_nm)} if any(shift_nm) else {}),
                **({"image_shift_nm": list(image_nm)} if any(image_nm) else {}),
            },
        )


def zoomed(field: Plane, window: Window, zoom: float) -> Plane:
    """A window of a periodic field that is magnified about its middle, by linear interpolation.

    Parameters
    ----------
    field : ndarray
        (H, W) float32, one period.
    window : Window
        What to compute, in magnified pixels.
    zoom : float
        How many times a structure is larger than in ``field``.
    """
    if zoom < 1:
        # What falls into one pixel is averaged, for its mean must not change.
        field = ndimage.gaussian_filter(field, 0.4 / zoom, mode="wrap")
    middle = (np.array(field.shape) - 1) / 2
    offset = middle + (np.array(window[:2]) - middle) / zoom
    out: Plane = ndimage.affine_transform(
        field,
        np.full(2, 1 / zoom),
        offset,
        output_shape=(window.height, window.width),
        order=1,
        mode="grid-wrap",
    )
    return out


class Detector:
    """From expected electrons to counts: everything between the specimen and the file.

    Parameters
    ----------
    options : SimCamera.Options
        The noise.
    """

    def __init__(self, options: SimCamera.Options) -> None:
        self._options = options
        self.kernel = blur_kernel(options.mtf_sigma_px)
        self.margin = self.kernel.size // 2
        """Pixels around a region that its blur reaches for."""
        self._poisson = PoissonTable()
        rng = np.random.default_rng([options.seed, 0xDE7EC])
        shape = options.sensor_height_px, options.sensor_width_px
        self._gain = np.float32(options.gain_counts_per_electron) * (
            1 + np.float32(options.gain_spread) * rng.standard_normal(shape, dtype=np.float32)
        )
        defects = min(options.hot_pixels + options.dead_pixels, shape[0] * shape[1])
        places = rng.choice(shape[0] * shape[1], defects, replace=False)
        where = np.stack(np.unravel_index(places, shape), axis=1)
        self.hot = where[: options.hot_pixels]
        """Places of the hot pixels, (N, 2) as (y, x) on the sensor."""
        self.dead = where[options.hot_pixels :]
        """Places of the dead pixels, (N, 2)."""
        self._hot_e_per_s = options.hot_e_per_s * rng.exponential(1.0, len(self.hot))

    def blurred(self, plane: Plane) -> Plane:
        """The detector's blur of a plane that has `margin` more pixels on each side."""
        if not self.margin:
            return plane
        margin, weights = self.margin, self.kernel[self.margin :]
        height, width = (n - 2 * margin for n in plane.shape)
        rows = weights[0] * plane[margin : margin + height]
        for k in range(1, margin + 1):
            both = plane[margin - k :][:height] + plane[margin + k :][:height]
            both *= weights[k]
            rows += both
        out: Plane = weights[0] * rows[:, margin : margin + width]
        for k in range(1, margin + 1):
            both = rows[:, margin - k :][:, :width] + rows[:, margin + k :][:, :width]
            both *= weights[k]
            out += both
        return out

    def detect(
        self,
        expected: Plane,
        state: CameraState,
        rng: np.random.Generator,
        out: npt.NDArray[np.uint16],
    ) -> None:
        """Turn expected electrons into the counts of one frame.

        Parameters
        ----------
        expected : ndarray
            (H + 2 margin, W + 2 margin) float32, electrons per unbinned pixel, unblurred.
        state : CameraState
            Region, binning and exposure.
        rng : Generator
            Of this frame.
        out : ndarray
            Frame shape, uint16; overwritten.
        """
        options, binning = self._options, state.binning
        lit = bool(expected.any())
        electrons = self._poisson.draw(expected, rng)
        if options.energy_spread:
            electrons = spread_energies(electrons, options.energy_spread, rng)
        electrons = self.blurred(electrons)
        top, left, height, width = state.roi
        for y, x in self._inside(self.dead, state.roi):
            electrons[y, x] = 0
        for (y, x), rate in zip(
            self._inside(self.hot, state.roi), self._rates(state.roi), strict=True
        ):
            electrons[y, x] += rng.poisson(rate * state.exposure_s)
        electrons *= self._gain[top : top + height, left : left + width]
        counts = _binned(electrons, binning)
        # From here on in counts of a pixel as binned. The sum of independent normal terms is
        # normal: binning turns sigma into binning * sigma.
        gain = options.gain_counts_per_electron
        self._add_rare(counts, gain, binning * binning * options.dark_e_per_px_s, state, rng)
        if lit and options.xrays_per_frame:
            share = height * width / (options.sensor_height_px * options.sensor_width_px)
            hits = rng.poisson(options.xrays_per_frame * share)
            where = rng.integers(0, counts.size, hits)
            np.add.at(counts.reshape(-1), where, gain * options.xray_e * rng.exponential(1, hits))
        if options.read_noise_e:
            noise = rng.standard_normal(counts.shape, dtype=np.float32)
            noise *= np.float32(options.read_noise_e * gain * binning)
            counts += noise
        if options.row_noise_e:
            rows = rng.standard_normal((counts.shape[0], 1), dtype=np.float32)
            counts += rows * np.float32(options.row_noise_e * gain * binning**1.5)
        # Half a count more makes the truncation below a rounding.
        counts += np.float32(options.pedestal_counts + 0.5)
        np.clip(counts, 0, SATURATION_COUNTS, out=counts)
        np.copyto(out, counts, casting="unsafe")

    def _add_rare(
        self,
        counts: Plane,
        gain: float,
        rate_e_per_s: float,
        state: CameraState,
        rng: np.random.Generator,
    ) -> None:
        """Add Poisson electrons of one expectation everywhere; cheap when they are few."""
        expected = rate_e_per_s * state.exposure_s
        if not expected:
            return
        if expected > 0.1:
            level = np.full(counts.shape, expected, np.float32)
            counts += np.float32(gain) * self._poisson.draw(level, rng)
            return
        # The total is Poisson and each electron falls anywhere: exactly the same statistics.
        where = rng.integers(0, counts.size, rng.poisson(expected * counts.size))
        counts += np.float32(gain) * np.bincount(where, minlength=counts.size).reshape(
            counts.shape
        ).astype(np.float32)

    @staticmethod
    def _within(places: npt.NDArray[np.int64], roi: Roi) -> npt.NDArray[np.bool_]:
        top, left, height, width = roi
        y, x = places[:, 0] - top, places[:, 1] - left
        inside: npt.NDArray[np.bool_] = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return inside

    def _inside(self, places: npt.NDArray[np.int64], roi: Roi) -> npt.NDArray[np.int64]:
        inside: npt.NDArray[np.int64] = places[self._within(places, roi)] - np.array(roi[:2])
        return inside

    def _rates(self, roi: Roi) -> npt.NDArray[np.float64]:
        return self._hot_e_per_s[self._within(self.hot, roi)]


class PoissonTable:
    """Poisson numbers at a few ns each, where numpy's own take 50 and more.

    Walker's alias method on tables for 1024 expectations between 0 and 64, evenly spaced in their
    square root; between two of them one is drawn, which keeps the mean. Above 64 a normal number
    with its first skewness correction serves (error of the distribution function under 1e-3).
    """

    LIMIT = 64.0
    LEVELS = 1024
    OUTCOMES = 128

    def __init__(self) -> None:
        roots = np.linspace(0, np.sqrt(self.LIMIT), self.LEVELS)
        self._per_root = np.float32((self.LEVELS - 1) / np.sqrt(self.LIMIT))
        outcomes = np.arange(self.OUTCOMES)
        means = roots[:, None] ** 2
        logs = special.xlogy(outcomes, means) - means - special.gammaln(outcomes + 1)
        chances = np.exp(logs)
        self._table = _alias_table(chances / chances.sum(axis=1, keepdims=True))

    def draw(self, expected: Plane, rng: np.random.Generator) -> Plane:
        """Poisson numbers of the given expectations (H, W), as float32."""
        if not float(expected.max(initial=0)) > self.LIMIT:
            return self._small(expected, rng)
        normal = rng.standard_normal(expected.shape, dtype=np.float32)
        large: Plane = np.sqrt(expected)
        large *= normal
        large += expected + (normal * normal - 1) / np.float32(6)
        np.rint(np.maximum(large, 0, out=large), out=large)
        few = expected < self.LIMIT
        if few.any():
            large[few] = self._small(expected[few], rng)
        return large

    def _small(self, expected: Plane, rng: np.random.Generator) -> Plane:
        out = np.empty(expected.shape, np.float32)
        flat, flat_out = expected.reshape(-1), out.reshape(-1)
        # In pieces that stay in the processor's cache: twice as fast as all at once.
        piece = 1 << 15
        for begin in range(0, flat.size, piece):
            part = flat[begin : begin + piece]
            bits = rng.integers(0, 1 << 32, part.size, dtype=np.uint32)
            # 10 bits choose between two levels, 7 the cell, 15 its outcome or that one's alias.
            position = np.sqrt(part)
            position *= self._per_root
            position += (bits >> np.uint32(22)).astype(np.float32) * np.float32(1 / 1024)
            index = position.astype(np.int32)
            np.minimum(index, self.LEVELS - 1, out=index)
            cell = bits & np.uint32(127)
            index <<= 7
            index |= cell.view(np.int32)
            entry = self._table.take(index)
            alias = entry & np.uint32(127)
            entry >>= np.uint32(16)
            bits >>= np.uint32(7)
            bits &= np.uint32(0x7FFF)
            np.copyto(alias, cell, where=bits < entry)
            flat_out[begin : begin + piece] = alias
        return out


def _alias_table(chances: npt.NDArray[np.float64]) -> npt.NDArray[np.uint32]:
    """Walker's tables by Marsaglia's "Robin Hood": (levels * outcomes), threshold << 16 | alias.

    Parameters
    ----------
    chances : ndarray
        (levels, outcomes), each row adding up to 1.
    """
    levels, outcomes = chances.shape
    share = chances * outcomes
    threshold = np.ones_like(share)
    alias = np.tile(np.arange(outcomes, dtype=np.uint32), (levels, 1))
    row = np.arange(levels)
    poor = share.copy()
    for _ in range(outcomes - 1):
        giver, taker = share.argmax(axis=1), poor.argmin(axis=1)
        has = poor[row, taker]
        threshold[row, taker] = np.minimum(has, 1)
        alias[row, taker] = giver
        share[row, giver] -= np.maximum(1 - has, 0)
        poor[row, giver] = share[row, giver]
        poor[row, taker] = np.inf
        share[row, taker] = -np.inf
    steps = np.rint(threshold * 0x8000).astype(np.uint32)
    table: npt.NDArray[np.uint32] = ((steps << np.uint32(16)) | alias).reshape(-1)
    return table


def spread_energies(electrons: Plane, spread: float, rng: np.random.Generator) -> Plane:
    """Let each electron leave a signal of its own: mean 1, relative standard deviation ``spread``.

    The sum of n gamma-distributed signals is one gamma number of shape n / spread², taken here by
    the approximation of Wilson and Hilferty (Proc. Natl. Acad. Sci. 17 (1931) 684).
    """
    shape = np.maximum(electrons / np.float32(spread**2), np.float32(1e-6))
    ninth = 1 / (9 * shape)
    normal = rng.standard_normal(electrons.shape, dtype=np.float32)
    root = 1 - ninth + normal * np.sqrt(ninth)
    signal: Plane = (np.maximum(root, 0) ** 3 * electrons).astype(np.float32)
    signal[electrons <= 0] = 0
    return signal


def blur_kernel(sigma_px: float) -> npt.NDArray[np.float32]:
    """Gaussian blur integrated over pixels, odd length, float32, sum 1; [1] for sigma 0."""
    if sigma_px == 0:
        return np.ones(1, np.float32)
    reach = max(1, int(np.ceil(3 * sigma_px - 0.5)))
    edges = (np.arange(-reach, reach + 2) - 0.5) / (sigma_px * np.sqrt(2))
    weights = np.diff(special.erf(edges))
    kernel: npt.NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return kernel


def _binned(plane: Plane, binning: int) -> Plane:
    if binning == 1:
        return plane
    height, width = (n // binning for n in plane.shape)
    blocks = plane[: height * binning, : width * binning].reshape(height, binning, width, binning)
    summed: Plane = blocks.sum(axis=(1, 3), dtype=np.float32)
    return summed


class SimColumn:
    """The column of the simulated microscope: all that a column can have.

    Parameters
    ----------
    options : SimColumn.Options
        Range of the dose rate, and how the column is found.
    camera : SimCamera
        The camera of the same microscope.

    Raises
    ------
    NotConnectedError
        The camera is another one than the simulated.
    """

    class Options(_Options):
        """Fields of ``[column]`` with ``driver = "sim"``.

        Attributes
        ----------
        max_dose_rate_e_per_A2_s : float
            Highest dose rate that is accepted, in e-/A^2/s; the lowest is 0.
        found_blanked : bool
            Whether the beam is off the specimen when the program connects.
        blanker_latency_s : float
            How long the beam stays on after it was blanked, in seconds.
        magnification : float
            Nominal magnification at which a pixel is ``camera.specimen_pixel_nm`` large.
        """

        max_dose_rate_e_per_A2_s: float = Field(default=1e6, gt=0, le=1e9)
        found_blanked: bool = True
        blanker_latency_s: float = Field(default=0.0, ge=0, le=5)
        magnification: float = Field(default=50_000.0, gt=0, le=1e8)

    STAGE_UM = 1000.0
    """How far the stage goes in each direction."""
    BEAM_SHIFT_NM = 10_000.0
    """How far the beam can be shifted in each direction."""
    IMAGE_SHIFT_NM = 10_000.0
    """How far the image can be shifted in each direction."""
    ZOOMS = (1 / 16, 16.0)
    """Range of the magnification relative to that of the options."""

    def __init__(self, options: Options, camera: object) -> None:
        if not isinstance(camera, SimCamera):
            raise NotConnectedError(
                'the simulated column belongs to the simulated camera; set camera.driver = "sim", '
                'or column.driver = "none"'
            )
        self._options = options
        self._microscope = camera.microscope
        self._microscope.blanker_latency_s = options.blanker_latency_s
        self._spot_size = 3
        self._open = False
        if options.found_blanked:
            self._microscope.set_blanked(True)

    @property
    def simulated(self) -> bool:
        """Always."""
        return True

    def open(self) -> None:
        """See `Column.open`."""
        self._open = True

    def close(self) -> None:
        """See `Column.close`."""
        self._open = False

    @property
    def blanked(self) -> bool:
        """Whether the beam is off the specimen."""
        self._must_be_open()
        return self._microscope.blanked

    def set_blanked(self, blanked: bool) -> None:
        """Blank or unblank; takes effect at once, in the middle of an exposure too."""
        self._must_be_open()
        self._microscope.set_blanked(blanked)

    @property
    def dose_rate_e_per_A2_s(self) -> float:
        """Incident dose rate with the beam unblanked, in e-/A^2/s."""
        self._must_be_open()
        return self._microscope.dose_rate_e_per_A2_s

    def set_dose_rate(self, dose_rate_e_per_A2_s: float) -> float:
        """Set the incident dose rate in e-/A^2/s. Raises `RefusedError` out of range."""
        self._must_be_open()
        highest = self._options.max_dose_rate_e_per_A2_s
        if not 0 <= dose_rate_e_per_A2_s <= highest:
            raise RefusedError(
                f"dose rate {dose_rate_e_per_A2_s:g} e-/Å²/s is out of range; "
                f"the column takes 0 to {highest:g}"
            )
        self._microscope.set_dose_rate(float(dose_rate_e_per_A2_s))
        return self._microscope.dose_rate_e_per_A2_s

    @property
    def blanker_latency_s(self) -> float:
        """See `BlankerLatency`."""
        return self._options.blanker_latency_s

    @property
    def beam_area_nm2(self) -> float:
        """See `BeamArea`."""
        return self._microscope.beam_area_nm2

    @property
    def stage_position_um(self) -> tuple[float, float]:
        """See `Stage`. What the specimen has taken is one figure for all of it."""
        self._must_be_open()
        return self._microscope.stage_um

    def move_stage(self, x_um: float, y_um: float) -> tuple[float, float]:
        """See `Stage`; at once."""
        self._must_be_open()
        if not all(abs(value) <= self.STAGE_UM for value in (x_um, y_um)):
            raise RefusedError(
                f"({x_um:g}, {y_um:g}) µm is out of range; the stage goes {self.STAGE_UM:g} µm "
                "in each direction"
            )
        self._microscope.stage_um = float(x_um), float(y_um)
        return self._microscope.stage_um

    @property
    def beam_shift_nm(self) -> tuple[float, float]:
        """See `BeamShift`."""
        self._must_be_open()
        return self._microscope.beam_shift_nm

    def set_beam_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """See `BeamShift`; what the disc of the beam leaves is dark."""
        self._must_be_open()
        if not all(abs(value) <= self.BEAM_SHIFT_NM for value in (x_nm, y_nm)):
            raise RefusedError(
                f"({x_nm:g}, {y_nm:g}) nm is out of range; the beam can be shifted by "
                f"{self.BEAM_SHIFT_NM:g} nm in each direction"
            )
        self._microscope.beam_shift_nm = float(x_nm), float(y_nm)
        return self._microscope.beam_shift_nm

    @property
    def image_shift_nm(self) -> tuple[float, float]:
        """See `ImageShift`."""
        self._must_be_open()
        return self._microscope.image_shift_nm

    def set_image_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """See `ImageShift`; the beam stays on the specimen where it is."""
        self._must_be_open()
        if not all(abs(value) <= self.IMAGE_SHIFT_NM for value in (x_nm, y_nm)):
            raise RefusedError(
                f"({x_nm:g}, {y_nm:g}) nm is out of range; the image can be shifted by "
                f"{self.IMAGE_SHIFT_NM:g} nm in each direction"
            )
        self._microscope.image_shift_nm = float(x_nm), float(y_nm)
        return self._microscope.image_shift_nm

    @property
    def spot_sizes(self) -> tuple[int, ...]:
        """See `SpotSize`."""
        return tuple(range(1, 12))

    @property
    def spot_size(self) -> int:
        """See `SpotSize`."""
        self._must_be_open()
        return self._spot_size

    def set_spot_size(self, spot_size: int) -> int:
        """See `SpotSize`; the next higher number halves the current."""
        self._must_be_open()
        if spot_size not in self.spot_sizes:
            raise RefusedError(f"spot size {spot_size} is out of range; there are 1 to 11")
        rate = self.dose_rate_e_per_A2_s * 2.0 ** (self._spot_size - spot_size)
        self.set_dose_rate(rate)
        self._spot_size = spot_size
        return spot_size

    @property
    def magnification(self) -> float:
        """See `Magnification`."""
        self._must_be_open()
        return self._options.magnification * self._microscope.zoom

    @property
    def pixel_size_nm(self) -> float:
        """See `Magnification`."""
        self._must_be_open()
        return self._microscope.pixel_size_nm

    def set_magnification(self, magnification: float) -> float:
        """See `Magnification`. The dose rate per area stays: the beam is parallel."""
        self._must_be_open()
        low, high = (zoom * self._options.magnification for zoom in self.ZOOMS)
        if not low <= magnification <= high:
            raise RefusedError(
                f"magnification {magnification:g} is out of range; "
                f"the column takes {low:g} to {high:g}"
            )
        self._microscope.zoom = magnification / self._options.magnification
        return self.magnification

    def _must_be_open(self) -> None:
        if not self._open:
            raise NotConnectedError("the simulated column is closed; open it first")
