"""The simulated camera: on the wall clock, it waits for nobody.

Frames that are not fetched pile up in a buffer of limited depth and are lost beyond it. What a
frame shows is computed only when it is fetched, from its number, the seed, and what the beam did
during its exposure.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.drivers.checks import check_settings
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    FrameMeta,
    Roi,
)
from tem_live.drivers.sim_chance import frame_generator
from tem_live.drivers.sim_detector import Detector, binned
from tem_live.drivers.sim_microscope import SimMicroscope
from tem_live.drivers.sim_options import SimCameraOptions
from tem_live.drivers.sim_readout import SATURATION_COUNTS
from tem_live.drivers.sim_run import SimRun
from tem_live.drivers.sim_scenes import Scene
from tem_live.drivers.sim_source import SimSource
from tem_live.drivers.sim_view import Optics, View
from tem_live.drivers.sim_windows import Plane, Window

EXPOSURE_RANGE_S = (0.001, 10.0)
BINNINGS = (1, 2, 4)


class SimCamera(SimSource):
    """Simulated camera; see the module's text.

    Parameters
    ----------
    options : SimCamera.Options
        Sensor, specimen and noise.
    """

    Options = SimCameraOptions

    def __init__(self, options: SimCameraOptions) -> None:
        self.options = options
        area_A2 = (options.specimen_pixel_nm * 10) ** 2
        # A disc of 1.2 times the diagonal of the field.
        diagonal_nm = math.hypot(*self._sensor) * options.specimen_pixel_nm
        microscope = SimMicroscope(
            options.specimen_pixel_nm,
            options.beam_e_per_px_s / area_A2,
            beam_area_nm2=math.pi / 4 * (1.2 * diagonal_nm) ** 2,
        )
        super().__init__(microscope, options.buffer_frames, "camera")
        self._parts: tuple[View, Detector] | None = None
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
    def scene(self) -> Scene:
        """The specimen. Raises `NotConnectedError` before the first `open`."""
        return self._laid_out[0].scene

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera.configure`."""
        capabilities = self.capabilities
        self._series.must_stand()
        self._state = self._state_of(settings, check_settings(settings, capabilities))
        return self._state

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
        expected = self._expected(
            tuple(raw["roi"]),
            raw["specimen_time_s"],
            raw["fluence_e_per_A2"],
            raw["incident_e_per_px"],
            Optics.from_raw(raw),
        )
        _, detector = self._laid_out
        return binned(detector.blurred(expected), raw["binning"])

    @property
    def _laid_out(self) -> tuple[View, Detector]:
        if self._parts is None:
            raise self._never_opened()
        return self._parts

    def _lay_out(self) -> None:
        if self._parts is not None:
            return
        options = self.options
        scene = options.lay_out(self._sensor)
        if options.mean_transmission is not None:
            whole = scene.transmission(Window(0, 0, *self._sensor), 0.0, 0.0)
            self._brightness = options.mean_transmission / float(whole.mean())
        view = View(scene, self._sensor, options.specimen_pixel_nm, self.microscope)
        self._parts = view, Detector(options)

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
        specimen_time_s: float,
        fluence_e_per_A2: float,
        incident_e_per_px: float,
        optics: Optics,
    ) -> Plane:
        """Electrons of a region and of what its pixels get from beyond it by the blur."""
        view, detector = self._laid_out
        margin = detector.margin
        top, left, height, width = roi
        window = Window(top - margin, left - margin, height + 2 * margin, width + 2 * margin)
        expected = view.share(window, specimen_time_s, fluence_e_per_A2, optics)
        expected *= np.float32(self._brightness * incident_e_per_px)
        return expected

    def _expose(
        self, buffer: npt.NDArray[Any], run: SimRun, state: CameraState, sequence: int
    ) -> FrameMeta:
        begin_s = run.begin_s(sequence)
        before = self.microscope.fluence_at(begin_s)
        dose_e_per_A2 = self.microscope.fluence_at(begin_s + state.exposure_s) - before
        # Nine digits: the last bits depend on when the run began, and frames shall not.
        incident = float(f"{dose_e_per_A2 * (self.microscope.pixel_size_nm * 10) ** 2:.9g}")
        specimen_time_s = run.specimen_time_s(sequence) + state.exposure_s / 2
        fluence = before + dose_e_per_A2 / 2
        optics = Optics.of(self.microscope)
        expected = self._expected(state.roi, specimen_time_s, fluence, incident, optics)
        rng = frame_generator(self.options.seed, run.number, sequence)
        _, detector = self._laid_out
        detector.detect(expected, state, rng, buffer)
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
                **optics.to_raw(),
            },
        )
