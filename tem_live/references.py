"""The dark and gain references of one session: found, checked against the frames, made anew.

A reference that was taken in this session counts; else the file that the profile names; else the
one that ``tem-live calibrate`` keeps for the profile, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.calibration import Kind, Reference, default_path, make_gain
from tem_live.drivers.protocols import CameraState
from tem_live.errors import CalibrationError
from tem_live.profiles import Profile


class References:
    """See the module's text.

    Parameters
    ----------
    profile : Profile
        The instrument.
    warn : callable of str
        Told of a reference that does not fit the frames.
    """

    def __init__(self, profile: Profile, warn: Callable[[str], None]) -> None:
        self._profile = profile
        self._warn = warn
        self._known: dict[Kind, Reference] = {}

    def fitting(self, state: CameraState, insist: bool = False) -> dict[Kind, Reference]:
        """References that fit frames of a camera that is set so.

        Parameters
        ----------
        state : CameraState
            Whose shape, binning and region they are to have.
        insist : bool
            Whether one that the profile names has to fit. If not, the user is told that it is not
            used.

        Raises
        ------
        CalibrationError
            One that the profile names is missing, broken, or (``insist``) does not fit.
        """
        found: dict[Kind, Reference] = {}
        named: dict[Kind, str | None] = {
            "dark": self._profile.calibration.dark,
            "gain": self._profile.calibration.gain,
        }
        for kind, name in named.items():
            reference = self._known.get(kind)
            if reference is None:
                path = Path(name) if name else default_path(self._profile.name, kind)
                if not name and not path.is_file():
                    continue
                reference = Reference.load(path)
                self._known[kind] = reference
            why = reference.mismatch(state.frame_shape, state.binning, state.roi)
            if why is None:
                found[kind] = reference
            elif name and insist:
                raise CalibrationError(f"{why}; take a new one with 'tem-live calibrate {kind}'")
            else:
                self._warn(f"{why}: it is not used")
        return found

    def make(
        self,
        kind: Kind,
        mean_counts: npt.NDArray[np.floating[Any]],
        frames: int,
        state: CameraState,
        offset_counts: float,
    ) -> Reference:
        """A reference of the mean of raw frames, not yet saved or used.

        Parameters
        ----------
        kind : {"dark", "gain"}
            What the frames were.
        mean_counts : ndarray (H, W)
            Their mean in counts.
        frames : int
            How many they were.
        state : CameraState
            How the camera was set for them.
        offset_counts : float
            The pedestal, which counts where no dark reference fits.

        Raises
        ------
        CalibrationError
            The frames do not make a reference.
        """
        if kind == "gain":
            dark = self.fitting(state).get("dark")
            image = make_gain(mean_counts, dark.image if dark else offset_counts)
        else:
            image = mean_counts.astype(np.float32)
        return Reference(kind, image, frames, state.exposure_s, state.binning, state.roi)

    def use(self, reference: Reference) -> None:
        """Take this one from now on for what it is of."""
        self._known[reference.kind] = reference
