"""The camera of one session as it is set, and what its counts and pixels mean then.

Whatever changes that (a setting of the camera, the magnification, a reference, a calibration of the
dose) has `CameraSetup.configure` lay out a new `Stream`. Each figure is taken from whoever knows it
best: the profile and the calibrations before the devices themselves.
"""

from __future__ import annotations

from collections.abc import Callable

from tem_live.beam import Beam
from tem_live.calibration import Calibrator
from tem_live.drivers.protocols import Camera, CameraSettings, CameraState
from tem_live.errors import InputError
from tem_live.frames import Backend, FrameRing
from tem_live.pipeline import Stream
from tem_live.profiles import Profile
from tem_live.references import References
from tem_live.whereabouts import Field


class CameraSetup:
    """See the module's text. What talks to the camera is called on its thread.

    Parameters
    ----------
    profile : Profile
        The instrument.
    camera : Camera
        Its camera.
    backend : Backend
        Where the frames live.
    beam : Beam
        Tells the magnification, and by which calibration electrons are booked.
    warn : callable of str
        Told of what is not known or not used.

    Attributes
    ----------
    settings : CameraSettings
        As last asked for, which the camera took; at first as the profile has them.
    references : References
        Dark and gain references.
    """

    def __init__(
        self,
        profile: Profile,
        camera: Camera,
        backend: Backend,
        beam: Beam,
        warn: Callable[[str], None],
    ) -> None:
        given = profile.camera
        self._profile = profile
        self._camera = camera
        self._backend = backend
        self._beam = beam
        self._warn = warn
        self.settings = CameraSettings(given.exposure_s, given.binning, given.roi)
        self.references = References(profile, warn)

    def configure(self, wanted: CameraSettings, old: Stream | None) -> Stream:
        """Set the camera, and lay out its frames' memory and calibration.

        Parameters
        ----------
        wanted : CameraSettings
            What to ask the camera for.
        old : Stream or None
            The one before, whose ring goes on where frames of the same shape and type come; None
            for the first one, whose references have to fit.

        Raises
        ------
        DeviceError
            The camera refuses or fails.
        InputError
            The frames need more memory than there is; the camera is as it was.
        CalibrationError
            A reference that the profile names is missing, broken, or (at first) does not fit.
        """
        state = self._camera.configure(wanted)
        pixel_size_nm = self._pixel_size_nm(state)
        if old and (old.ring.shape, old.ring.dtype) == (state.frame_shape, state.dtype):
            ring = old.ring
        else:
            slots = self._profile.pipeline.slots
            try:
                ring = FrameRing(self._backend, slots, state.frame_shape, state.dtype)
            except InputError:
                if old is not None:
                    # The frames of before go on.
                    self._camera.configure(self.settings)
                raise
        gain = self._counts_per_electron(state)
        references = self.references.fitting(state, insist=old is None)
        dark, flat = references.get("dark"), references.get("gain")
        calibrator = Calibrator(
            self._backend.xp,
            state.frame_shape,
            counts_per_electron=gain or 1.0,
            offset_counts=self.offset_counts(state),
            dark=dark.image if dark else None,
            gain=flat.image if flat else None,
            replace_defects=self._profile.calibration.defects,
            xray_sigma=self._profile.calibration.xray_sigma,
            masked_counts=state.masked_counts,
        )
        if gain is None and old is None:
            self._warn(
                "the gain is unknown: 1 count is taken for 1 electron; "
                "set camera.counts_per_electron"
            )
        self.settings = wanted
        return Stream(state, ring, calibrator, pixel_size_nm, gain)

    def reopen(self) -> None:
        """Let go of a camera that was lost, and take it again."""
        self._camera.close()
        self._camera.open()

    def offset_counts(self, state: CameraState) -> float:
        """Counts of a pixel that no electron hit."""
        given = self._profile.camera.offset_counts
        return state.offset_counts if given is None else given

    def field(self, stream: Stream) -> Field | None:
        """The field of view at the specimen, where the pixel size is known."""
        if not stream.pixel_size_nm:
            return None
        top, left, height, width = stream.state.roi
        rows, columns = self._camera.capabilities.sensor_shape
        size_nm = stream.pixel_size_nm / stream.state.binning
        return Field(
            width * size_nm,
            height * size_nm,
            (left + width / 2 - columns / 2) * size_nm,
            (top + height / 2 - rows / 2) * size_nm,
        )

    def _counts_per_electron(self, state: CameraState) -> float | None:
        calibration = self._beam.calibration
        calibrated = calibration.counts_per_electron if calibration else None
        return self._profile.camera.counts_per_electron or calibrated or state.counts_per_electron

    def _pixel_size_nm(self, state: CameraState) -> float | None:
        """Size of a binned pixel at the specimen in nm."""
        beam, given = self._beam, self._profile.camera.pixel_size_nm
        if beam.magnification:
            calibrated = beam.magnifications.pixel_size_nm(beam.magnification)
            if calibrated is not None:
                return calibrated * state.binning
        if given is not None:
            start, now = beam.magnification_at_start, beam.magnification
            return given * state.binning * (start / now if start and now else 1.0)
        column = beam.parts.magnification
        if state.pixel_size_nm is not None or column is None or column.pixel_size_nm is None:
            return state.pixel_size_nm
        return column.pixel_size_nm * state.binning
