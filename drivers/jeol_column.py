"""Column of a JEOL microscope through PyJEM's module ``TEM3``: blanker, spot size, magnification.

All requests are short and go through one thread, in order; blanking waits for one of them at most.
Calls: ``Def3.SetBeamBlank`` and ``GetBeamBlank`` (1 is blanked), ``EOS3.SelectSpotSize`` and
``GetSpotSize`` (from 0, where the microscope's own screen counts from 1, as PyJEM's sample
application says), ``EOS3.GetMagValue`` (value, unit, label), ``UpSelector`` and ``DownSelector``.

**Untested on hardware.** Tested against a fake module of PyJEM's shape. Left out, because their
units were not found: the stage, the beam shift and the image shift.
"""

from __future__ import annotations

import math
import threading
from typing import Any, ClassVar

from pydantic import BaseModel

from tem_live.drivers.pyjem_link import Connect, PyJemLink, PyJemOptions
from tem_live.errors import RefusedError

_SPOT_SIZES = tuple(range(1, 9))
"""PyJEM's 0 to 7, as the microscope shows them."""
_STEPS_AT_MOST = 60


class JeolColumn:
    """See the module's text.

    Parameters
    ----------
    options : PyJemOptions
        Which microscope.
    camera : object
        Not needed: any camera may go with this column.
    connect : callable or None
        Gives the module ``TEM3``; None imports PyJEM's.
    """

    Options: ClassVar[type[BaseModel]] = PyJemOptions

    def __init__(
        self, options: PyJemOptions, camera: object = None, connect: Connect | None = None
    ) -> None:
        self._link = PyJemLink(options, "TEM3", connect)
        self._simulated = options.route == "offline"
        self._deflectors: Any = None
        self._optics: Any = None
        self._lock = threading.Lock()

    def open(self) -> None:
        """See `Column`."""
        self._link.open()
        try:
            self._deflectors, self._optics = self._link.ask(lambda tem: (tem.Def3(), tem.EOS3()))
            # Somebody answers.
            _ = self.blanked
        except BaseException:
            self._link.close()
            raise

    def close(self) -> None:
        """See `Column`."""
        self._link.close()

    @property
    def simulated(self) -> bool:
        """Whether it is PyJEM's own simulation."""
        return self._simulated

    @property
    def blanked(self) -> bool:
        """See `Blanker`."""
        return bool(self._link.ask(lambda _: int(self._deflectors.GetBeamBlank())))

    def set_blanked(self, blanked: bool) -> None:
        """See `Blanker`."""
        # Behind a call that takes its time, a late blank is better than none.
        if self._link.ask(lambda _: self._blank(blanked), even_late=blanked) != blanked:
            raise RefusedError(
                f"the microscope says that the beam is {'not ' if blanked else ''}blanked after "
                "it was told the other; look at its screen"
            )

    def _blank(self, blanked: bool) -> bool:
        self._deflectors.SetBeamBlank(int(blanked))
        return bool(int(self._deflectors.GetBeamBlank()))

    @property
    def spot_sizes(self) -> tuple[int, ...]:
        """See `SpotSize`."""
        return _SPOT_SIZES

    @property
    def spot_size(self) -> int:
        """See `SpotSize`."""
        return self._link.ask(lambda _: int(self._optics.GetSpotSize())) + 1

    def set_spot_size(self, spot_size: int) -> int:
        """See `SpotSize`."""
        if spot_size not in _SPOT_SIZES:
            raise RefusedError(f"spot size {spot_size} is refused; the microscope has 1 to 8")
        with self._lock:
            self._link.ask(lambda _: self._optics.SelectSpotSize(spot_size - 1))
            return self.spot_size

    @property
    def magnification(self) -> float:
        """See `Magnification`. Nominal, as the microscope indicates it."""
        value, unit, label = self._link.ask(lambda _: self._optics.GetMagValue())
        if str(unit).upper() != "X":
            raise RefusedError(
                f"the microscope indicates {label} and no magnification; set an imaging mode"
            )
        return float(value)

    @property
    def pixel_size_nm(self) -> float | None:
        """None: not known here; set ``pixel_size_nm`` in the profile."""
        return None

    def set_magnification(self, magnification: float) -> float:
        """See `Magnification`. Step by step to the nearest one, on a logarithmic scale."""
        if not (math.isfinite(magnification) and magnification > 0):
            raise RefusedError(f"a magnification of {magnification:g} is refused")

        def off(value: float) -> float:
            return abs(math.log(value / magnification))

        with self._lock:
            now = self.magnification
            up = magnification > now
            for _ in range(_STEPS_AT_MOST):
                self._step(up)
                following = self.magnification
                if off(following) >= off(now):
                    # One too far, or no further step: it stands still.
                    if following != now:
                        self._step(not up)
                    break
                now = following
            return self.magnification

    def _step(self, up: bool) -> None:
        self._link.ask(lambda _: self._optics.UpSelector() if up else self._optics.DownSelector())
