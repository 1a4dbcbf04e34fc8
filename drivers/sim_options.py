"""Fields of ``[camera]`` of the simulated camera and of the simulated scan."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.sim_scenes import Motion, Scene, SceneName, make_scene


class StrictOptions(BaseModel):
    """Options that cannot be changed, have no unknown fields and no numbers that are none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SpecimenOptions(StrictOptions):
    """What both have: a specimen, and how frames of it are kept. See the classes below."""

    scene: SceneName = "nanoparticles"
    specimen_pixel_nm: float = Field(default=0.2, gt=0, le=1000)
    drift_nm_per_s: tuple[float, float] = (0.05, 0.08)
    wander_nm: float = Field(default=1.0, ge=0, le=100)
    critical_fluence_e_per_A2: float = Field(default=150.0, gt=0)
    buffer_frames: int = Field(default=128, ge=1, le=4096)
    seed: int = Field(default=1, ge=0)

    @property
    def drift_px_s(self) -> tuple[float, float]:
        """Drift of the specimen, (dy, dx) in pixels per second."""
        dy, dx = self.drift_nm_per_s
        return dy / self.specimen_pixel_nm, dx / self.specimen_pixel_nm

    def lay_out(self, field: tuple[int, int]) -> Scene:
        """The specimen on a field of (height, width) pixels."""
        return make_scene(
            self.scene,
            field,
            self.specimen_pixel_nm,
            Motion(self.drift_px_s, self.wander_nm / self.specimen_pixel_nm),
            self.critical_fluence_e_per_A2,
            self.seed,
        )


class SimCameraOptions(SpecimenOptions):
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

    sensor_height_px: int = Field(default=512, ge=16, le=4096)
    sensor_width_px: int = Field(default=512, ge=16, le=4096)
    beam_e_per_px_s: float = Field(default=100.0, ge=0, le=1e7)
    mean_transmission: float | None = Field(default=None, gt=0, le=1)
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


class SimStemOptions(SpecimenOptions):
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

    scan_height_px: int = Field(default=512, ge=16, le=4096)
    scan_width_px: int = Field(default=512, ge=16, le=4096)
    beam_pA: float = Field(default=5.0, ge=0, le=1e5)
    detector: Literal["dark-field", "bright-field"] = "dark-field"
    collected: float = Field(default=0.5, ge=0, le=1)
    background: float = Field(default=0.02, ge=0, le=1)
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
