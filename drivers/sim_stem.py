"""A simulated scanning microscope: a probe that writes the image pixel by pixel, as a camera.

It shows the specimens of `tem_live.drivers.sim_scenes` as STEM and shares with the simulated camera
the beam's history and the statistics of counting. Like that one it runs on the wall clock and waits
for nobody; what a frame shows is computed when it is fetched.

Time is the scan's: a line takes the fly-back time and then the dwell time once a pixel, a frame its
lines. The exposure that is set is the time of a frame, and the dwell time follows from it. Each
line sees the specimen where it is then, and gets the electrons of its own time: a beam that is
blanked amid a frame leaves the lines after that dark.

The probe is beside its place by jitter, which is tied from line to line, and by the first-order
answer of the scan coil to the step of the fly-back; cold emission flickers from line to line. The
detector counts what it gets (Poisson), spreads the signal of each electron, trails into the pixels
that follow, and its amplifier adds noise and an offset a line.
"""

from __future__ import annotations

import threading
import time
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage, signal

from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    FrameMeta,
)
from tem_live.drivers.sim import PoissonTable, SimMicroscope, spread_energies
from tem_live.drivers.sim_run import SimRun
from tem_live.drivers.sim_scenes import Motion, Plane, Scene, SceneName, Window, make_scene
from tem_live.errors import (
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)

DWELL_RANGE_S = (5e-8, 1e-3)
SATURATION_COUNTS = 65535
ELECTRONS_PER_S_PER_PA = 1e-12 / 1.602176634e-19
"""Electrons per second in one picoampere; the charge is exact (SI, 2019)."""

Series = npt.NDArray[np.float64]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SimStem:
    """Simulated scan; see the module's text.

    Parameters
    ----------
    options : SimStem.Options
        Scan, specimen, detector.
    """

    class Options(_Options):
        """Fields of ``[camera]`` with ``driver = "sim-stem"``.

        Attributes
        ----------
        scene : {"nanoparticles", "lattice", "damage", "vacuum"}
            The specimen.
        scan_height_px, scan_width_px : int
            Lines of a frame and pixels of a line.
        specimen_pixel_nm : float
            Distance of two pixels at the specimen in nm.
        beam_pA : float
            Current of the probe before a column sets another one, in pA.
        detector : {"dark-field", "bright-field"}
            What is seen: ``collected`` times the share of electrons that the specimen scatters
            away, or the share that it lets through.
        collected : float
            Share of the scattered electrons that hit the dark-field detector.
        background : float
            Share of the incident electrons that the dark-field detector sees in vacuum.
        drift_nm_per_s : tuple of float
            Drift of the specimen (dy, dx) in nm/s; it acts within a frame, line by line.
        wander_nm : float
            Amplitude of the particles' random walk in nm, from frame to frame.
        critical_fluence_e_per_A2 : float
            Of the scene ``damage``: where 1/e of its first Bragg contrast is left, in e-/A^2.
        fly_back_s : float
            Time before each line in which the probe returns, in seconds; the beam is on.
        settling_s : float
            Time constant of the scan coil in seconds: t after it was sent back by a line of W
            pixels the probe is still W exp(-t / settling_s) pixels too far; 0 is at once.
        jitter_x_px, jitter_y_px : float
            Standard deviation of a line's displacement along and across the lines in pixels.
        jitter_correlation : float
            Correlation of the displacements of successive lines; lines k apart its k-th power.
        flicker : float
            Relative standard deviation of the beam's current from line to line.
        decay_s : float
            Time constant of the detector's light in seconds; it trails into the next pixels.
        energy_spread : float
            Relative standard deviation of the signal of one electron; it raises the variance by
            1 + energy_spread².
        amplifier_noise_e : float
            White noise of the amplifier per pixel, in electrons rms.
        row_noise_e : float
            Offset that all pixels of a line share, in electrons rms.
        gain_counts_per_electron : float
            Mean gain. It becomes ``CameraState.counts_per_electron``.
        pedestal_counts : float
            Pedestal in counts.
        buffer_frames : int
            Frames that are kept for a slow reader before the oldest is lost.
        seed : int
            Of everything that is random. The same calls give the same frames.
        """

        scene: SceneName = "nanoparticles"
        scan_height_px: int = Field(default=512, ge=16, le=4096)
        scan_width_px: int = Field(default=512, ge=16, le=4096)
        specimen_pixel_nm: float = Field(default=0.2, gt=0, le=1000)
        beam_pA: float = Field(default=5.0, ge=0, le=1e5)
        detector: Literal["dark-field", "bright-field"] = "dark-field"
        collected: float = Field(default=0.5, ge=0, le=1)
        background: float = Field(default=0.02, ge=0, le=1)
        drift_nm_per_s: tuple[float, float] = (0.05, 0.08)
        wander_nm: float = Field(default=1.0, ge=0, le=100)
        critical_fluence_e_per_A2: float = Field(default=150.0, gt=0)
        fly_back_s: float = Field(default=60e-6, ge=0, le=0.1)
        settling_s: float = Field(default=15e-6, ge=0, le=0.1)
        jitter_x_px: float = Field(default=0.6, ge=0, le=20)
        jitter_y_px: float = Field(default=0.2, ge=0, le=20)
        jitter_correlation: float = Field(default=0.6, ge=0, le=1)
        flicker: float = Field(default=0.01, ge=0, le=0.5)
        decay_s: float = Field(default=0.3e-6, ge=0, le=0.01)
        energy_spread: float = Field(default=0.3, ge=0, le=2)
        amplifier_noise_e: float = Field(default=0.2, ge=0, le=1e3)
        row_noise_e: float = Field(default=0.03, ge=0, le=1e3)
        gain_counts_per_electron: float = Field(default=100.0, gt=0, le=1e4)
        pedestal_counts: float = Field(default=200.0, ge=0, le=60000)
        buffer_frames: int = Field(default=16, ge=1, le=4096)
        seed: int = Field(default=1, ge=0)

    def __init__(self, options: Options) -> None:
        self.options = options
        self.microscope = SimMicroscope(
            options.specimen_pixel_nm,
            options.beam_pA * ELECTRONS_PER_S_PER_PA / self.field_A2,
        )
        """The beam, as a dose rate averaged over the field; `SimStemColumn` steers it."""
        self._lock = threading.Lock()
        self._open = False
        self._run: SimRun | None = None
        self._runs = 0
        self._specimen_time_s = 0.0
        self._scene: Scene | None = None
        self._detector = ScanDetector(options)
        self._timing = Timing(*self._shape, options.fly_back_s, 1e-6)
        self._state = self._state_of(self._timing)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.options.scan_height_px, self.options.scan_width_px

    @property
    def field_A2(self) -> float:
        """Area of the scanned field in square angstrom."""
        height, width = self._shape
        return height * width * (self.options.specimen_pixel_nm * 10) ** 2

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera.capabilities`."""
        self._must_be_open()
        low, high = (
            Timing(*self._shape, self.options.fly_back_s, dwell_s).frame_s
            for dwell_s in DWELL_RANGE_S
        )
        return CameraCapabilities(
            name="simulated scan",
            sensor_shape=self._shape,
            dtype=np.dtype(np.uint16),
            exposure_range_s=(low, high),
        )

    @property
    def true_fluence_e_per_A2(self) -> float:
        """See `HasTrueFluence`."""
        return self.microscope.true_fluence_e_per_A2

    @property
    def scene(self) -> Scene:
        """The specimen. Raises `NotConnectedError` before the first `open`."""
        if self._scene is None:
            raise NotConnectedError("the simulated scan was never opened; call open() first")
        return self._scene

    def open(self) -> None:
        """See `Camera.open`; lays out the specimen the first time."""
        if self._scene is None:
            options, pixel_nm = self.options, self.options.specimen_pixel_nm
            dy, dx = self._drift_px_s
            self._scene = make_scene(
                options.scene,
                self._shape,
                pixel_nm,
                Motion((dy, dx), options.wander_nm / pixel_nm),
                options.critical_fluence_e_per_A2,
                options.seed,
            )
        self._open = True
        self.microscope.power_on()

    def close(self) -> None:
        """See `Camera.close`; the specimen and what it has taken stay."""
        self.stop()
        self._open = False

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera.configure`; the dwell time is what the exposure leaves, in whole ns."""
        capabilities = self.capabilities
        if self._run is not None:
            raise RefusedError("the scan is running; stop it before it is configured")
        check_settings(settings, capabilities)
        height, width = self._shape
        fly_back_s = self.options.fly_back_s
        dwell_s = round((settings.exposure_s / height - fly_back_s) / width, 9)
        self._timing = Timing(height, width, fly_back_s, dwell_s)
        self._state = self._state_of(self._timing)
        return self._state

    def start(self, frames: int | None = None) -> None:
        """See `Camera.start`."""
        self._must_be_open()
        if frames is not None and frames < 1:
            raise RefusedError(f"a series of {frames} frames is none; ask for at least 1")
        self.stop()
        with self._lock:
            self._run = SimRun(self._runs, self.microscope.clock(), self._specimen_time_s, frames)
            self._runs += 1

    def stop(self) -> None:
        """See `Camera.stop`."""
        with self._lock:
            run, self._run = self._run, None
            if run is not None:
                # Frames that were fetched and not seconds, so that the same calls show the same.
                self._specimen_time_s = run.specimen_time_s + run.next * self._timing.frame_s
                run.stopped.set()

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera.read_into`."""
        self._must_be_open()
        run, timing = self._run, self._timing
        if run is None:
            raise DisconnectedError("the scan is stopped; start it before reading a frame")
        check_buffer(buffer, self._state.frame_shape, self._state.dtype)
        sequence = run.await_frame(
            self.microscope.clock,
            timing.frame_s,
            self.options.buffer_frames,
            timeout_s,
            "scan",
        )
        return self._expose(buffer, run, timing, sequence)

    def truth(self, meta: FrameMeta) -> npt.NDArray[np.float32]:
        """Expected electrons per pixel of a frame of this scan, without what the scan does to it.

        Parameters
        ----------
        meta : FrameMeta
            As `read_into` gave it; only its ``raw`` is used.

        Returns
        -------
        ndarray
            (H, W) float32 in detected e-/px: the specimen as it was amid the frame, every pixel at
            its place, no drift, jitter, fly-back, flicker, trail, noise or offset. Lines that were
            blanked are dark.
        """
        raw = meta.raw
        window = Window(0, 0, *self._shape)
        share = self._detected(window, raw["specimen_time_s"], raw["fluence_e_per_A2"])
        return share * _unfolded(raw["incident_lines"], window.height)[:, None]

    def _must_be_open(self) -> None:
        if not self._open:
            raise NotConnectedError("the simulated scan is closed; open it first")

    @property
    def _drift_px_s(self) -> tuple[float, float]:
        dy, dx = self.options.drift_nm_per_s
        return dy / self.options.specimen_pixel_nm, dx / self.options.specimen_pixel_nm

    def _state_of(self, timing: Timing) -> CameraState:
        options = self.options
        return CameraState(
            exposure_s=timing.frame_s,
            binning=1,
            roi=(0, 0, *self._shape),
            frame_shape=self._shape,
            dtype=np.dtype(np.uint16),
            frame_interval_s=timing.frame_s,
            pixel_size_nm=options.specimen_pixel_nm,
            counts_per_electron=options.gain_counts_per_electron,
            offset_counts=options.pedestal_counts,
            saturation_counts=SATURATION_COUNTS,
        )

    def _detected(self, window: Window, time_s: float, fluence_e_per_A2: float) -> Plane:
        """Share of the incident electrons that the detector sees, never negative."""
        options = self.options
        share = self.scene.transmission(window, time_s, fluence_e_per_A2)
        if options.detector == "dark-field":
            np.subtract(1, share, out=share)
            # Fresnel fringes let more through than there was: nothing is scattered there.
            np.maximum(share, 0, out=share)
            share *= np.float32(options.collected)
            share += np.float32(options.background)
        return share

    def _expose(
        self, buffer: npt.NDArray[Any], run: SimRun, timing: Timing, sequence: int
    ) -> FrameMeta:
        options = self.options
        rng = np.random.Generator(np.random.SFC64([options.seed, run.number, sequence]))
        begin_s = run.began_s + sequence * timing.frame_s
        incident = self._incident_lines(begin_s, timing)
        specimen_time_s = run.specimen_time_s + (sequence + 0.5) * timing.frame_s
        fluence = self.microscope.fluence_at(begin_s + timing.frame_s / 2)

        dy, dx = displacements(options, timing, self._drift_px_s, rng)
        margin_y, margin_x = (int(np.ceil(np.abs(shift).max())) + 3 for shift in (dy, dx))
        height, width = self._shape
        window = Window(-margin_y, -margin_x, height + 2 * margin_y, width + 2 * margin_x)
        plane = self._detected(window, specimen_time_s, fluence)
        y = np.arange(height)[:, None] + margin_y + dy[:, None]
        x = np.arange(width)[None, :] + margin_x + dx
        expected = probed(plane, y, x)
        expected *= _unfolded(incident, height)[:, None]
        self._detector.detect(expected, timing.dwell_s, rng, buffer)
        return FrameMeta(
            sequence=sequence,
            host_time_s=time.time(),
            exposure_s=timing.frame_s,
            device_time_s=begin_s,
            raw={
                "dwell_s": timing.dwell_s,
                "specimen_time_s": specimen_time_s,
                "incident_e_per_px": float(_unfolded(incident, height).mean(dtype=np.float64)),
                "incident_lines": incident,
                "fluence_e_per_A2": fluence,
            },
        )

    def _incident_lines(self, begin_s: float, timing: Timing) -> list[list[float]]:
        """Incident e-/px as [first line, e-/px] wherever it changes."""
        per_pixel = self.field_A2 / timing.width
        lines: list[list[float]] = []
        for line in range(timing.height):
            line_s = begin_s + line * timing.line_s + timing.fly_back_s
            taken = self.microscope.fluence_at(line_s + timing.width * timing.dwell_s)
            taken -= self.microscope.fluence_at(line_s)
            # Six digits: the last bits depend on when the run began, and frames shall not.
            electrons = float(f"{taken * per_pixel:.6g}")
            if not lines or lines[-1][1] != electrons:
                lines.append([line, electrons])
        return lines


class Timing(NamedTuple):
    """When a scan is where.

    Attributes
    ----------
    height, width : int
        Lines of a frame, pixels of a line.
    fly_back_s : float
        Before each line, in seconds.
    dwell_s : float
        On each pixel, in seconds.
    """

    height: int
    width: int
    fly_back_s: float
    dwell_s: float

    @property
    def line_s(self) -> float:
        """From the begin of a line's fly-back to that of the next one's, in seconds."""
        return self.fly_back_s + self.width * self.dwell_s

    @property
    def frame_s(self) -> float:
        """All lines, in seconds."""
        return round(self.height * self.line_s, 9)


def _unfolded(lines: list[list[float]], height: int) -> npt.NDArray[np.float32]:
    """Values of all lines from [first line, value] pairs."""
    values = np.empty(height, np.float32)
    ends = [*lines, [height, 0.0]]
    for (first, value), (last, _) in pairwise(ends):
        values[int(first) : int(last)] = value
    return values


def displacements(
    options: SimStem.Options,
    timing: Timing,
    drift_px_s: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[Series, Series]:
    """How far the probe is from where a pixel should be, as the specimen sees it.

    Jitter is a stationary first-order autoregressive series over the lines, x_i = ρ x_(i-1) +
    sqrt(1 - ρ²) σ e_i: variance σ², correlation ρ^k (Box, Jenkins & Reinsel, Time Series Analysis,
    section 3.2.3). Drift moves the specimen on from where it is amid the frame. The fly-back's
    rest is W exp(-(fly-back + (j + 1/2) dwell) / settling) at pixel j.

    Returns
    -------
    dy : ndarray
        float64 (H,), pixels.
    dx : ndarray
        float64 (H, W), pixels.
    """
    rho = options.jitter_correlation
    noise = rng.standard_normal((2, timing.height))
    noise[:, 1:] *= np.sqrt(1 - rho**2)
    jitter_y, jitter_x = signal.lfilter([1.0], [1.0, -rho], noise, axis=1)
    # The middle of line i, less the middle of the frame.
    since_s = (np.arange(timing.height) + 0.5) * timing.line_s - timing.frame_s / 2
    dy = options.jitter_y_px * jitter_y - drift_px_s[0] * since_s
    dx = options.jitter_x_px * jitter_x - drift_px_s[1] * since_s
    settling_s = max(options.settling_s, 1e-12)
    pixel_s = timing.fly_back_s + (np.arange(timing.width) + 0.5) * timing.dwell_s
    rest = timing.width * np.exp(-pixel_s / settling_s)
    return np.asarray(dy), np.asarray(dx[:, None] + rest[None, :])


def probed(plane: Plane, y: Series, x: Series) -> Plane:
    """A plane at (y, x), which are broadcast; cubic splines, limited to the plane's values."""
    places = np.broadcast_arrays(y, x)
    seen = ndimage.map_coordinates(plane, places, order=3, mode="nearest", output=np.float32)
    limited: Plane = np.clip(seen, plane.min(), plane.max(), out=seen)
    return limited


def trail(decay_s: float, dwell_s: float) -> tuple[float, float, float]:
    """Shares of an electron's light that fall into its own pixel and into the next ones.

    Electrons come evenly during the dwell time d and shine with the time constant τ. With
    r = τ / d and q = exp(-1 / r) the integrals over the pixels' times are c0 = 1 - r (1 - q) and,
    in the k-th pixel after it, c1 q^(k-1) with c1 = r (1 - q)²; they add up to 1.

    Returns
    -------
    tuple of float
        (c0, c1, q).
    """
    ratio = decay_s / dwell_s
    if ratio == 0.0:
        return 1.0, 0.0, 0.0
    gone = float(-np.expm1(-1 / ratio))
    return 1 - ratio * gone, ratio * gone**2, 1 - gone


@cache
def _poisson_table() -> PoissonTable:
    """The one table of constants: it takes longer to make than a frame."""
    return PoissonTable()


class ScanDetector:
    """From expected electrons to counts.

    Parameters
    ----------
    options : SimStem.Options
        The noise.
    """

    LEAD_DECAYS = 8
    """Time constants before a line in which the detector already sees its first pixel."""

    def __init__(self, options: SimStem.Options) -> None:
        self._options = options
        self._poisson = _poisson_table()

    def detect(
        self,
        expected: Plane,
        dwell_s: float,
        rng: np.random.Generator,
        out: npt.NDArray[np.uint16],
    ) -> None:
        """Turn expected electrons into the counts of one frame.

        Parameters
        ----------
        expected : ndarray
            (H, W) float32, electrons per pixel; overwritten.
        dwell_s : float
            Time on a pixel in seconds.
        rng : Generator
            Of this frame.
        out : ndarray
            (H, W) uint16; overwritten.
        """
        options = self._options
        height, width = expected.shape
        if options.flicker:
            current = 1 + options.flicker * rng.standard_normal((height, 1), dtype=np.float32)
            expected *= np.maximum(current, 0)
        c0, c1, q = trail(options.decay_s, dwell_s)
        # What the probe has seen before the line trails into it: it waits at the first pixel.
        lead = min(int(np.ceil(self.LEAD_DECAYS * options.decay_s / dwell_s)), 4 * width)
        seen = np.concatenate([np.repeat(expected[:, :1], lead, axis=1), expected], axis=1)
        electrons = self._poisson.draw(seen, rng)
        if options.energy_spread:
            electrons = spread_energies(electrons, options.energy_spread, rng)
        if c1:
            trailed = signal.lfilter([c0, c1 - q * c0], [1.0, -q], electrons, axis=1)
            electrons = np.asarray(trailed, dtype=np.float32)
        counts = electrons[:, lead:]
        if options.amplifier_noise_e:
            noise = rng.standard_normal(counts.shape, dtype=np.float32)
            counts = counts + np.float32(options.amplifier_noise_e) * noise
        if options.row_noise_e:
            rows = rng.standard_normal((height, 1), dtype=np.float32)
            counts = counts + np.float32(options.row_noise_e) * rows
        counts = counts * np.float32(options.gain_counts_per_electron)
        # Half a count more makes the truncation below a rounding.
        counts += np.float32(options.pedestal_counts + 0.5)
        np.clip(counts, 0, SATURATION_COUNTS, out=counts)
        np.copyto(out, counts, casting="unsafe")


class SimStemColumn:
    """The column of the simulated scan: a fast blanker, and the probe's current as a dose rate.

    The dose rate is the probe's current spread over the scanned field. The beam stays on during the
    fly-back, so a pixel gets the dose rate times its area times the time of a frame, less the share
    of the fly-back: current times dwell time.

    Parameters
    ----------
    options : SimStemColumn.Options
        Range of the dose rate, and how the column is found.
    camera : SimStem
        The scan of the same microscope.

    Raises
    ------
    NotConnectedError
        The camera is another one than the simulated scan.
    """

    class Options(_Options):
        """Fields of ``[column]`` with ``driver = "sim-stem"``.

        Attributes
        ----------
        max_dose_rate_e_per_A2_s : float
            Highest dose rate that is accepted, in e-/A^2/s; the lowest is 0.
        found_blanked : bool
            Whether the beam is off the specimen when the program connects.
        """

        max_dose_rate_e_per_A2_s: float = Field(default=1e6, gt=0, le=1e9)
        found_blanked: bool = True

    def __init__(self, options: Options, camera: object) -> None:
        if not isinstance(camera, SimStem):
            raise NotConnectedError(
                'the column "sim-stem" belongs to the simulated scan; '
                'set camera.driver = "sim-stem", or column.driver = "none"'
            )
        self._options = options
        self._scan = camera
        self._open = False
        if options.found_blanked:
            camera.microscope.set_blanked(True)

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
        return self._beam.blanked

    def set_blanked(self, blanked: bool) -> None:
        """Blank or unblank; takes effect at once, amid a frame too."""
        self._beam.set_blanked(blanked)

    @property
    def beam_pA(self) -> float:
        """The probe's current with the beam unblanked, in pA."""
        return self.dose_rate_e_per_A2_s * self._scan.field_A2 / ELECTRONS_PER_S_PER_PA

    @property
    def dose_rate_e_per_A2_s(self) -> float:
        """Incident dose rate with the beam unblanked, averaged over the field, in e-/A^2/s."""
        return self._beam.dose_rate_e_per_A2_s

    def set_dose_rate(self, dose_rate_e_per_A2_s: float) -> float:
        """Set the incident dose rate in e-/A^2/s. Raises `RefusedError` out of range."""
        highest = self._options.max_dose_rate_e_per_A2_s
        beam = self._beam
        if not 0 <= dose_rate_e_per_A2_s <= highest:
            raise RefusedError(
                f"dose rate {dose_rate_e_per_A2_s:g} e-/Å²/s is out of range; "
                f"the column takes 0 to {highest:g}"
            )
        beam.set_dose_rate(float(dose_rate_e_per_A2_s))
        return beam.dose_rate_e_per_A2_s

    @property
    def _beam(self) -> SimMicroscope:
        if not self._open:
            raise NotConnectedError("the simulated column is closed; open it first")
        return self._scan.microscope
