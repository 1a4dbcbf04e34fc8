"""Shutter and stage of the Micro-Manager whose camera `pycromanager_bridge` reads."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from tem_live.drivers.pycromanager_bridge import FAMILY as FAMILY
from tem_live.drivers.pycromanager_bridge import PycromanagerCamera
from tem_live.drivers.pycromanager_link import Link
from tem_live.errors import DeviceError, DisconnectedError, RefusedError


class PycromanagerColumnOptions(BaseModel):
    """The column has no fields of its own: its devices are those of the camera's Micro-Manager."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PycromanagerShutter:
    """Micro-Manager's current shutter as the beam blanker. Its auto shutter is switched off.

    Parameters
    ----------
    options : PycromanagerColumnOptions
        None yet.
    camera : PycromanagerCamera
        Whose Micro-Manager the shutter belongs to; it need not be open.
    """

    Options: ClassVar[type[BaseModel]] = PycromanagerColumnOptions

    def __init__(self, options: PycromanagerColumnOptions, camera: object) -> None:
        if not isinstance(camera, PycromanagerCamera):
            raise RefusedError(
                'column.driver = "pycromanager" works with camera.driver = "pycromanager" alone'
            )
        self._bridge = camera.bridge
        self._reply_timeout_s = camera.reply_timeout_s

    def open(self) -> None:
        """See `Column`."""
        link = self._bridge.hold(self)
        try:
            self._ask(link, "shutter", take=True)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `Column`."""
        self._bridge.release(self, self._reply_timeout_s)

    @property
    def blanked(self) -> bool:
        """Whether the shutter says that it is closed; False whenever that cannot be asked."""
        link = self._bridge.current
        if link is None:
            return False
        try:
            return not self._ask(link, "shutter")["open"]
        except DeviceError:
            return False

    def set_blanked(self, blanked: bool) -> None:
        """See `Blanker`. A link that was lost is made again for it."""
        link = self._bridge.current
        if link is not None:
            try:
                self._set(link, blanked)
            except DisconnectedError:
                if not blanked or link.alive:
                    raise
            else:
                return
        link = self._bridge.hold(self)
        self._ask(link, "shutter", take=True)
        self._set(link, blanked)

    def _set(self, link: Link, blanked: bool) -> None:
        if self._ask(link, "set_shutter", open=not blanked)["open"] == blanked:
            raise RefusedError("the shutter does not follow; check its adapter")

    def _ask(self, link: Link, do: str, **fields: Any) -> dict[str, Any]:
        return link.ask(do, self._reply_timeout_s, **fields)


class PycromanagerColumn(PycromanagerShutter):
    """The shutter, and Micro-Manager's current XY stage.

    Parameters
    ----------
    options, camera
        As for `PycromanagerShutter`.
    """

    def open(self) -> None:
        """See `Column`."""
        super().open()
        try:
            _ = self.stage_position_um
        except BaseException:
            self.close()
            raise

    @property
    def stage_position_um(self) -> tuple[float, float]:
        """See `Stage`."""
        found = self._ask(self._bridge.hold(self), "stage")
        return found["x_um"], found["y_um"]

    def move_stage(self, x_um: float, y_um: float) -> tuple[float, float]:
        """See `Stage`. A stage that takes longer than a minute counts as hung."""
        if not (np.isfinite(x_um) and np.isfinite(y_um)):
            raise RefusedError(f"the stage cannot go to ({x_um:g}, {y_um:g}) µm")
        link = self._bridge.hold(self)
        found = link.ask("move_stage", 60.0 + self._reply_timeout_s, x_um=x_um, y_um=y_um)
        return found["x_um"], found["y_um"]
