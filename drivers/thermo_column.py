"""Column of a Thermo Fisher (FEI) microscope through temscript, and its screen's current.

Blanking has a connection and a thread of its own, and waits for nothing else that this program
asks. A ``temscript-server`` however does one thing at a time: behind one that also serves the
camera, blanking waits until the exposure has ended. Start a second one for the column, on another
port. Where the microscope is, and the source of all calls: `temscript_link`.

**Untested on hardware.** Tested against temscript 2.1.0's own server and simulated microscope.
Lengths of temscript are metres. The intensity (C2 excitation) has no unit that means a dose, so a
dose rate cannot be set here. temscript cannot set a magnification but the number of a step: the
steps are walked until the nearest one is found.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.protocols import BeamCurrent
from tem_live.drivers.temscript_link import TemscriptLink, TemscriptOptions
from tem_live.errors import DeviceError, DeviceTimeoutError, RefusedError

_SPOT_SIZES = tuple(range(1, 12))
"""Spot sizes of the scripting interface (temscript's NullMicroscope has these limits)."""
_STEPS_AT_MOST = 60
_POLL_S = 0.05
_RESTS = "READY"


class ThermoColumnOptions(TemscriptOptions):
    """Fields of ``[column]`` with ``driver = "thermo"``, besides those of `TemscriptOptions`.

    Attributes
    ----------
    move_timeout_s : float
        How long the stage may take to move, in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    move_timeout_s: float = Field(default=60.0, gt=0, le=600)


class ThermoColumn:
    """See the module's text.

    Parameters
    ----------
    options : ThermoColumnOptions
        Which microscope.
    camera : object
        Not needed: any camera may go with this column.
    """

    Options: ClassVar[type[BaseModel]] = ThermoColumnOptions

    def __init__(self, options: ThermoColumnOptions, camera: object = None) -> None:
        self._options = options
        self._blanker = TemscriptLink(options)
        self._link = TemscriptLink(options, options.move_timeout_s)
        # Setting and reading back belong together.
        self._blanker_lock = threading.Lock()
        self._lock = threading.Lock()

    def open(self) -> None:
        """See `Column`."""
        try:
            self._blanker.open()
            self._link.open()
        except DeviceError:
            self.close()
            raise

    def close(self) -> None:
        """See `Column`."""
        self._blanker.close()
        self._link.close()

    @property
    def simulated(self) -> bool:
        """Whether it is temscript's simulated microscope in this process."""
        return self._options.route == "null"

    # ---------------------------------------------------------------------------------- the beam

    @property
    def blanked(self) -> bool:
        """See `Blanker`."""
        return bool(self._blanker.ask(lambda microscope: microscope.get_beam_blanked()))

    def set_blanked(self, blanked: bool) -> None:
        """See `Blanker`."""
        with self._blanker_lock:
            # Behind a call that takes its time, a late blank is better than none.
            taken = self._blanker.ask(
                lambda microscope: _blank(microscope, blanked), even_late=blanked
            )
        if taken != blanked:
            raise RefusedError(
                f"the microscope says that the beam is {'' if taken else 'not '}blanked after it "
                f"was told the other; look at its screen"
            )

    @property
    def spot_sizes(self) -> tuple[int, ...]:
        """See `SpotSize`."""
        return _SPOT_SIZES

    @property
    def spot_size(self) -> int:
        """See `SpotSize`."""
        return int(self._link.ask(lambda microscope: microscope.get_spot_size_index()))

    def set_spot_size(self, spot_size: int) -> int:
        """See `SpotSize`."""
        if spot_size not in _SPOT_SIZES:
            raise RefusedError(
                f"spot size {spot_size} is refused; the microscope has {_SPOT_SIZES[0]} to "
                f"{_SPOT_SIZES[-1]}"
            )
        with self._lock:
            self._link.ask(lambda microscope: microscope.set_spot_size_index(spot_size))
            return self.spot_size

    # ------------------------------------------------------------------------------ magnification

    @property
    def magnification(self) -> float:
        """See `Magnification`. Nominal, as the microscope indicates it."""
        value = float(self._link.ask(lambda microscope: microscope.get_indicated_magnification()))
        if value <= 0:
            raise RefusedError(
                "the microscope indicates no magnification; is it in diffraction mode?"
            )
        return value

    @property
    def pixel_size_nm(self) -> float | None:
        """None: the scripting interface has no calibrated size of a camera's pixel."""
        return None

    def set_magnification(self, magnification: float) -> float:
        """See `Magnification`. The nearest step is set, on a logarithmic scale."""
        if not (math.isfinite(magnification) and magnification > 0):
            raise RefusedError(f"a magnification of {magnification:g} is refused")
        with self._lock:
            before = self.magnification
            taken = self._link.ask(
                lambda m: _walk(m, magnification, before), self._options.move_timeout_s
            )
        return taken

    # ---------------------------------------------------------------------------------- the stage

    @property
    def stage_position_um(self) -> tuple[float, float]:
        """See `Stage`."""
        where = self._link.ask(lambda microscope: microscope.get_stage_position())
        return 1e6 * where["x"], 1e6 * where["y"]

    def move_stage(self, x_um: float, y_um: float) -> tuple[float, float]:
        """See `Stage`. The tilt and the height stay as they are."""
        wanted = {"x": 1e-6 * x_um, "y": 1e-6 * y_um}
        longest_s = self._options.move_timeout_s
        with self._lock:
            limits = self._link.ask(lambda microscope: microscope.get_stage_limits())
            for axis, value in wanted.items():
                low, high = limits[axis]
                if not low <= value <= high:
                    raise RefusedError(
                        f"{axis} = {1e6 * value:g} µm is refused; the stage goes from "
                        f"{1e6 * low:g} to {1e6 * high:g} µm"
                    )
            deadline = time.monotonic() + longest_s
            self._link.ask(lambda microscope: microscope.set_stage_position(wanted), longest_s)
            while self._link.ask(lambda microscope: microscope.get_stage_status()) != _RESTS:
                if time.monotonic() > deadline:
                    raise DeviceTimeoutError(f"the stage still moves after {longest_s:g} s")
                time.sleep(_POLL_S)
            return self.stage_position_um

    # -------------------------------------------------------------------------------- beam shift

    @property
    def beam_shift_nm(self) -> tuple[float, float]:
        """See `BeamShift`; as good as the microscope's own calibration."""
        x, y = self._link.ask(lambda microscope: microscope.get_beam_shift())
        return 1e9 * x, 1e9 * y

    def set_beam_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """See `BeamShift`."""
        if not (math.isfinite(x_nm) and math.isfinite(y_nm)):
            raise RefusedError(f"a beam shift of ({x_nm:g}, {y_nm:g}) nm is refused")
        with self._lock:
            self._link.ask(lambda microscope: microscope.set_beam_shift((1e-9 * x_nm, 1e-9 * y_nm)))
            return self.beam_shift_nm

    # ------------------------------------------------------------------------------- image shift

    @property
    def image_shift_nm(self) -> tuple[float, float]:
        """See `ImageShift`; ``Projection.ImageShift``, by the microscope's own calibration."""
        x, y = self._link.ask(lambda microscope: microscope.get_image_shift())
        return 1e9 * x, 1e9 * y

    def set_image_shift(self, x_nm: float, y_nm: float) -> tuple[float, float]:
        """See `ImageShift`."""
        if not (math.isfinite(x_nm) and math.isfinite(y_nm)):
            raise RefusedError(f"an image shift of ({x_nm:g}, {y_nm:g}) nm is refused")
        with self._lock:
            self._link.ask(
                lambda microscope: microscope.set_image_shift((1e-9 * x_nm, 1e-9 * y_nm))
            )
            return self.image_shift_nm


class ThermoScreen:
    """The current on the fluorescent screen, as a beam monitor.

    The microscope's own figure; how good it is depends on its calibration. It counts only while
    the screen is down.

    Parameters
    ----------
    options : TemscriptOptions
        Which microscope.
    """

    Options: ClassVar[type[BaseModel]] = TemscriptOptions

    def __init__(self, options: TemscriptOptions) -> None:
        self._link = TemscriptLink(options)

    def open(self) -> None:
        """See `BeamMonitor`."""
        self._link.open()

    def close(self) -> None:
        """See `BeamMonitor`."""
        self._link.close()

    def read_current(self) -> BeamCurrent:
        """See `BeamMonitor`."""
        position, current = self._link.ask(
            lambda microscope: (microscope.get_screen_position(), microscope.get_screen_current())
        )
        if position != "DOWN":
            raise RefusedError("the screen is not in the beam; lower it to measure the current")
        if not math.isfinite(current):
            raise DeviceError(f"the microscope tells a screen current of {current}")
        raw = {"screen_position": position, "screen_current_A": current}
        return BeamCurrent(current_A=float(current), host_time_s=time.time(), raw=raw)


def _blank(microscope: Any, blanked: bool) -> bool:
    microscope.set_beam_blanked(blanked)
    return bool(microscope.get_beam_blanked())


def _walk(microscope: Any, wanted: float, now: float) -> float:
    """Go to the step of magnification that is nearest; returns what it is."""

    def off(magnification: float) -> float:
        return abs(math.log(magnification / wanted)) if magnification > 0 else math.inf

    direction = 1 if wanted > now else -1
    index = int(microscope.get_magnification_index())
    for _ in range(_STEPS_AT_MOST):
        # What no step is beyond is told by an error, or by standing still.
        with contextlib.suppress(Exception):
            microscope.set_magnification_index(index + direction)
        following = float(microscope.get_indicated_magnification())
        if off(following) >= off(now):
            break
        now, index = following, index + direction
    if int(microscope.get_magnification_index()) != index:
        microscope.set_magnification_index(index)
    return float(microscope.get_indicated_magnification())
