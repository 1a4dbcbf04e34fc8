"""From a profile to drivers and the restorer.

Entry points name the classes, so that a package can add its own.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from tem_live.drivers.protocols import BeamMonitor, BesideCamera, Camera, Column
from tem_live.errors import NotConnectedError, ProfileError
from tem_live.profiles import Profile, check_options

if TYPE_CHECKING:
    from tem_live.models import Restorer

CAMERAS = "tem_live.cameras"
COLUMNS = "tem_live.columns"
BEAM_MONITORS = "tem_live.beam_monitors"


def drivers(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group (`CAMERAS`, `COLUMNS`, `BEAM_MONITORS`) by name."""
    return {point.name: point for point in entry_points(group=group)}


def make_camera(profile: Profile) -> Camera:
    """The profile's camera, not yet open.

    Raises
    ------
    ProfileError
        No such driver, or a field that the driver does not know or accept.
    NotConnectedError
        A package that the driver needs is missing.
    """
    driver = _load(CAMERAS, profile.camera.driver, "camera")
    options = check_options(driver.Options, profile.camera.options, "camera")
    return cast(Camera, driver(options))


def make_column(profile: Profile, camera: Camera) -> Column | None:
    """The profile's column, not yet open, or None for ``driver = "none"``. Raises as above."""
    if profile.column.driver == "none":
        return None
    driver = _load(COLUMNS, profile.column.driver, "column")
    options = check_options(driver.Options, profile.column.options, "column")
    return cast(Column, driver(options, camera))


def make_beam_monitor(profile: Profile, camera: Camera) -> BeamMonitor | None:
    """The profile's beam monitor, not yet open, or None for ``driver = "none"``. Raises as above.

    A simulated one next to the simulated camera measures that microscope's beam.
    """
    name = profile.beam_monitor.driver
    if name == "none":
        return None
    driver = _load(BEAM_MONITORS, name, "beam_monitor")
    options = check_options(driver.Options, profile.beam_monitor.options, "beam_monitor")
    monitor = cast(BeamMonitor, driver(options))
    if isinstance(monitor, BesideCamera):
        monitor.beside(camera)
    return monitor


def make_restorer(profile: Profile, model: str) -> Restorer | None:
    """A restorer on the profile's device, by its name or the path of weights; None for ``"none"``.

    Raises
    ------
    ModelError
        It is unknown or broken, or the device is missing.
    """
    if model == "none":
        return None
    from tem_live.models import load_restorer

    return load_restorer(model, profile.restorer.device, profile.restorer.precision)


def given_binned(restorer: Restorer | None, binning: int) -> Restorer | None:
    """The restorer, given frames that are binned by ``binning``; itself where that is 1."""
    if restorer is None or binning == 1:
        return restorer
    from tem_live.models.binned import BinnedRestorer

    return BinnedRestorer(restorer, binning)


def _load(group: str, name: str, what: str) -> Any:
    known = drivers(group)
    if name not in known:
        raise ProfileError(
            f"'{what}.driver' = \"{name}\": no such {what} driver; "
            f"known: {', '.join(sorted(known))}"
        )
    try:
        return known[name].load()
    except ImportError as error:
        raise NotConnectedError(
            f"the {what} driver '{name}' cannot be loaded: {error}; install what it needs "
            "('tem-live doctor' names it)"
        ) from None
