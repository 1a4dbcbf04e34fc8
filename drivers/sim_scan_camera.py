"""A simulated scanning microscope: a probe that writes the image pixel by pixel, as a camera.

It shows the specimens of `tem_live.drivers.sim_scenes` as STEM and shares with the simulated camera
the beam's history and the statistics of counting. Like that one it runs on the wall clock and waits
for nobody; what a frame shows is computed when it is fetched.

Time is the scan's: a line takes the fly-back time and then the dwell time once a pixel, a frame its
lines. The exposure that is set is the time of a frame, and the dwell time follows from it. Each
line sees the specimen where it is then, and gets the electrons of its own time: a beam that is
blanked amid a frame leaves the lines after that dark.

The probe is beside its place by jitter, which is tied from line to line, and by the first-order
answer of the scan coil to the step of the fly-back.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.drivers.checks import check_settings
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    FrameMeta,
)
from tem_live.drivers.sim_chance import frame_generator
from tem_live.drivers.sim_microscope import ELECTRONS_PER_S_PER_PA, SimMicroscope
from tem_live.drivers.sim_options import SimStemOptions
from tem_live.drivers.sim_readout import SATURATION_COUNTS
from tem_live.drivers.sim_run import SimRun
from tem_live.drivers.sim_scan import Timing, displacements, probed
from tem_live.drivers.sim_scan_detector import ScanDetector
from tem_live.drivers.sim_scenes import Scene
from tem_live.drivers.sim_source import SimSource
from tem_live.drivers.sim_windows import Plane, Window

DWELL_RANGE_S = (5e-8, 1e-3)


class SimStem(SimSource):
    """Simulated scan; see the module's text.

    Parameters
    ----------
    options : SimStem.Options
        Scan, specimen, detector.
    """

    Options = SimStemOptions

    def __init__(self, options: SimStemOptions) -> None:
        self.options = options
        # The beam is a dose rate averaged over the field.
        microscope = SimMicroscope(
            options.specimen_pixel_nm,
            options.beam_pA * ELECTRONS_PER_S_PER_PA / self.field_A2,
        )
        super().__init__(microscope, options.buffer_frames, "scan")
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
    def scene(self) -> Scene:
        """The specimen. Raises `NotConnectedError` before the first `open`."""
        if self._scene is None:
            raise self._never_opened()
        return self._scene

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera.configure`; the dwell time is what the exposure leaves, in whole ns."""
        capabilities = self.capabilities
        self._series.must_stand()
        check_settings(settings, capabilities)
        height, width = self._shape
        fly_back_s = self.options.fly_back_s
        dwell_s = round((settings.exposure_s / height - fly_back_s) / width, 9)
        self._timing = Timing(height, width, fly_back_s, dwell_s)
        self._state = self._state_of(self._timing)
        return self._state

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

    def _lay_out(self) -> None:
        if self._scene is None:
            self._scene = self.options.lay_out(self._shape)

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
        self, buffer: npt.NDArray[Any], run: SimRun, state: CameraState, sequence: int
    ) -> FrameMeta:
        # What it is set to does not change while it runs.
        options, timing = self.options, self._timing
        rng = frame_generator(options.seed, run.number, sequence)
        begin_s = run.begin_s(sequence)
        incident = self._incident_lines(begin_s, timing)
        specimen_time_s = run.specimen_time_s(sequence) + timing.frame_s / 2
        fluence = self.microscope.fluence_at(begin_s + timing.frame_s / 2)

        dy, dx = displacements(options, timing, options.drift_px_s, rng)
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


def _unfolded(lines: list[list[float]], height: int) -> npt.NDArray[np.float32]:
    """Values of all lines from [first line, value] pairs."""
    values = np.empty(height, np.float32)
    ends = [*lines, [height, 0.0]]
    for (first, value), (last, _) in pairwise(ends):
        values[int(first) : int(last)] = value
    return values
