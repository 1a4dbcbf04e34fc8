"""Instrument profiles: what is connected and how it starts, as TOML checked by pydantic.

A profile is found by name (the user's folder first, then those shipped in `tem_live.config`) or by
path. ``camera`` and ``column`` tables hold common fields next to those of the named driver; the
driver's own `Options` model checks the latter, so a misspelt key is refused by name.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticCustomError

from tem_live.coincidence import Counting, CountingModel
from tem_live.errors import InputError, ProfileError
from tem_live.ledger_reading import check_area

_Model = TypeVar("_Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Open(BaseModel):
    """A table that also holds fields of a driver, which the driver checks."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def options(self) -> dict[str, Any]:
        """The fields that belong to the driver."""
        return dict(self.__pydantic_extra__ or {})


class CameraProfile(_Open):
    """``[camera]``: the driver, the first settings, and what the device itself may not know.

    Attributes
    ----------
    driver : str
        Name of an entry point of the group ``tem_live.cameras``.
    exposure_s : float
        Exposure at the start, in seconds.
    binning : int
        Binning at the start.
    roi : (top, left, height, width) or None
        Read-out region in unbinned pixels.
    pixel_size_nm : float or None
        Size of an unbinned pixel at the specimen in nm; overrides what the device says.
    counts_per_electron : float or None
        Gain; overrides what the device says.
    offset_counts : float or None
        Pedestal in counts; overrides what the device says.
    timeout_s : float
        How long past its exposure a frame may take before the run fails, in seconds.
    overflow : {"stop", "count"}
        What a lost raw frame does: stop the run with the beam blanked, or only be counted.
    counting_resolution_s : float or None
        Of a counting camera: the time within which two electrons in a pixel are counted as one, in
        seconds, for the loss by coincidence (`tem_live.coincidence`); the dead time of a pixel, or
        one internal frame. None for an integrating camera, or where it is not known.
    counting_model : {"binary", "nonparalysable", "paralysable"}
        How they are.
    counting_footprint_px : float
        Unbinned pixels in which one electron hides another.
    """

    driver: str
    exposure_s: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    binning: int = Field(default=1, ge=1)
    roi: tuple[int, int, int, int] | None = None
    pixel_size_nm: float | None = Field(default=None, ge=1e-6, le=1e9)
    counts_per_electron: float | None = Field(default=None, ge=1e-9, le=1e9)
    offset_counts: float | None = Field(default=None, allow_inf_nan=False)
    timeout_s: float = Field(default=5.0, gt=0, le=3600)
    overflow: Literal["stop", "count"] = "stop"
    counting_resolution_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    counting_model: CountingModel = "binary"
    counting_footprint_px: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def counting(self) -> Counting | None:
        """How the camera counts; None where that is not known."""
        if self.counting_resolution_s is None:
            return None
        return Counting(self.counting_resolution_s, self.counting_model, self.counting_footprint_px)


class ColumnProfile(_Open):
    """``[column]``: what steers the beam; ``driver = "none"`` where nothing does.

    Attributes
    ----------
    driver : str
        Name of an entry point of the group ``tem_live.columns``, or ``"none"``.
    dose_rate_e_per_px_s : float or None
        Incident dose rate to set at the start, in e-/px/s of an **unbinned** pixel; None leaves it.
    stage_axes : ((a, b), (c, d))
        How far the image of the specimen goes to the right for a step of stage x and y (a, b), and
        down (c, d), each as a part of that step: a rotation, mirrored or not. For the fluence map.
    """

    driver: str = "none"
    dose_rate_e_per_px_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    stage_axes: tuple[tuple[FiniteFloat, FiniteFloat], tuple[FiniteFloat, FiniteFloat]] = (
        (1.0, 0.0),
        (0.0, 1.0),
    )


class BeamMonitorProfile(_Open):
    """``[beam_monitor]``: what measures the beam's current; ``driver = "none"`` where nothing does.

    Attributes
    ----------
    driver : str
        Name of an entry point of the group ``tem_live.beam_monitors``, or ``"none"``.
    """

    driver: str = "none"


RestoreBinning = Literal[1, 2, 4, 8]
RESTORE_BINNINGS: tuple[int, ...] = get_args(RestoreBinning)


class RestorerProfile(_Strict):
    """``[restorer]``: the model that restores the live frames; ``model = "none"`` for no model.

    Attributes
    ----------
    model, device, precision
        See `tem_live.models.load_restorer`.
    binning : {1, 2, 4, 8}
        Frames are binned by this factor before they are restored, and enlarged after; raw frames
        stay as they are. For cameras with more pixels than the machine restores live.
    """

    model: str = "fast"
    device: str = "auto"
    precision: Literal["auto", "float32", "float16", "int8"] = "auto"
    binning: RestoreBinning = 1


class CalibrationProfile(_Strict):
    """``[calibration]``: references and the treatment of defects.

    Attributes
    ----------
    dark, gain : str or None
        Reference files made by ``tem-live calibrate``. None takes the one that was last made for
        this profile, if it fits the frames.
    defects : bool
        Replace pixels that the references show to be dead, hot or without gain.
    xray_sigma : float
        Replace single pixels that stand this many standard deviations above their surroundings
        (X-ray hits); 0 switches it off.
    """

    dark: str | None = None
    gain: str | None = None
    defects: bool = True
    xray_sigma: float = Field(default=0.0, ge=0)


class DoseProfile(_Strict):
    """``[dose]``: the budget, what it is counted on, and the detector's limit.

    Attributes
    ----------
    budget_e_per_A2 : float or None
        Fluence of the specimen area in e-/A^2 at which the run stops with the beam blanked; None
        for no limit.
    area : str or None
        Name of the specimen area, such as ``grid3-square5``: what earlier sessions booked on it
        counts on. None begins at 0.
    warn_fraction : float
        Part of the budget at which the user is warned.
    incident_rate_e_per_A2_s : float or None
        Incident dose rate at the specimen with the beam on, in e-/A^2/s, where the column does not
        tell one and it was measured otherwise.
    max_rate_e_per_px_s : float or None
        Dose rate in e-/px/s of an **unbinned** pixel that the detector may take; above it the beam
        is blanked.
    coincidence_loss : float
        Part of the electrons that a counting camera may lose before the user is warned.
    """

    budget_e_per_A2: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    area: str | None = None
    warn_fraction: float = Field(default=0.8, gt=0, le=1)
    incident_rate_e_per_A2_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_rate_e_per_px_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    coincidence_loss: float = Field(default=0.05, gt=0, lt=1)

    @field_validator("area")
    @classmethod
    def _names_a_folder(cls, value: str | None) -> str | None:
        try:
            return None if value is None else check_area(value)
        except InputError as error:
            raise PydanticCustomError("area", "{why}", {"why": str(error)}) from None


class ModeProfile(_Strict):
    """``[modes.NAME]``: a named set of optics, such as search, view, focus and record.

    What is not given stays as it is.

    Attributes
    ----------
    magnification : float or None
        Nominal magnification.
    spot_size : int or None
        Spot size.
    dose_rate_e_per_px_s : float or None
        Incident dose rate in e-/px/s of an **unbinned** pixel at that magnification.
    beam_shift_nm : (x, y) or None
        Shift of the beam at the specimen in nm.
    image_shift_nm : (x, y) or None
        What the camera looks at, in nm at the specimen: with the same as ``beam_shift_nm`` the
        beam is in the middle of the camera. If one mode looks beside, all of them must tell it.
    area : str or None
        For optics that light a place beside the specimen area, as for focusing: what they cost is
        booked on an area of its own, whose name is this one behind that of the specimen area.
        Every mode of the profile must then tell its beam shift.
    exposure_s : float or None
        Exposure of a frame in seconds.
    binning : int or None
        Binning.
    """

    magnification: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    spot_size: int | None = Field(default=None, ge=1)
    dose_rate_e_per_px_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    beam_shift_nm: tuple[FiniteFloat, FiniteFloat] | None = None
    image_shift_nm: tuple[FiniteFloat, FiniteFloat] | None = None
    area: str | None = Field(default=None, pattern=r"^[\w+-]{1,16}$")
    exposure_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    binning: int | None = Field(default=None, ge=1)


class MagnificationProfile(_Strict):
    """An entry of ``[[magnifications]]``: what was measured at a magnification.

    Attributes
    ----------
    magnification : float
        Nominal, as the column tells it.
    pixel_size_nm : float or None
        Size of an unbinned pixel at the specimen in nm.
    beam_area_nm2 : float or None
        Illuminated area at the specimen in nm², as the beam is spread at this magnification.
    """

    magnification: float = Field(gt=0, allow_inf_nan=False)
    pixel_size_nm: float | None = Field(default=None, ge=1e-6, le=1e9)
    beam_area_nm2: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class PipelineProfile(_Strict):
    """``[pipeline]``: buffers and analysis.

    Attributes
    ----------
    slots : int
        Frames that the ring holds. More slots ride out longer stalls of the disk; each takes 10
        bytes a pixel of a 16 bit camera, all of it before the first frame.
    rolling_mean : int
        Number of frames in the rolling mean that the display can show; 1 is none.
    """

    slots: int = Field(default=24, ge=4, le=4096)
    rolling_mean: int = Field(default=8, ge=1, le=1024)


class Profile(_Strict):
    """One instrument. See the classes of its tables for the fields."""

    # It is part of the names of recordings and calibrations.
    name: str = Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$", max_length=100)
    title: str = ""
    description: str = ""
    camera: CameraProfile
    column: ColumnProfile = ColumnProfile()
    beam_monitor: BeamMonitorProfile = BeamMonitorProfile()
    restorer: RestorerProfile = RestorerProfile()
    calibration: CalibrationProfile = CalibrationProfile()
    dose: DoseProfile = DoseProfile()
    modes: dict[str, ModeProfile] = Field(default_factory=dict)
    magnifications: tuple[MagnificationProfile, ...] = ()
    pipeline: PipelineProfile = PipelineProfile()

    @field_validator("modes")
    @classmethod
    def _light_what_they_book(cls, value: dict[str, ModeProfile]) -> dict[str, ModeProfile]:
        aside = next((name for name, mode in value.items() if mode.area is not None), None)
        for name, mode in value.items():
            # A beam that is left where another mode shifted it would be booked on the wrong area.
            if aside is not None and mode.beam_shift_nm is None:
                raise PydanticCustomError(
                    "beam_shift",
                    "mode '{name}' needs beam_shift_nm, since mode '{aside}' has an area beside",
                    {"name": name, "aside": aside},
                )
        looks = next((name for name, mode in value.items() if any(mode.image_shift_nm or ())), None)
        for name, mode in value.items():
            # Nor must a camera be left looking beside what it is to record.
            if looks is not None and mode.image_shift_nm is None:
                raise PydanticCustomError(
                    "image_shift",
                    "mode '{name}' needs image_shift_nm, since mode '{looks}' looks beside",
                    {"name": name, "looks": looks},
                )
        return value


def user_folder() -> Path:
    """Folder of the user's own profiles; the GUI and ``tem-live profiles`` show it."""
    return Path(platformdirs.user_config_dir("tem_live", appauthor=False)) / "profiles"


def profile_names() -> list[str]:
    """Names that `load_profile` finds, the user's and the shipped ones, sorted."""
    shipped = {
        entry.name.removesuffix(".toml")
        for entry in resources.files("tem_live.config").iterdir()
        if entry.name.endswith(".toml")
    }
    own = {path.stem for path in user_folder().glob("*.toml")}
    return sorted(shipped | own)


def load_profile(
    name_or_path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Profile:
    """Read and check a profile.

    Parameters
    ----------
    name_or_path : str or Path
        A name as `profile_names` lists it, or the path of a TOML file.
    overrides : sequence of "key=value" or mapping of key to value
        Fields to set over the file, keys dotted: ``camera.exposure_s=0.2``. Text values are read
        as TOML where they are valid TOML, else as plain text.

    Raises
    ------
    ProfileError
        The profile is missing or no TOML, or a field is unknown or out of range.
    """
    text, origin = _find(str(name_or_path))
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{origin} is not valid TOML: {error}; correct that line") from None
    tables.setdefault("name", Path(origin).stem)
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split, overrides)
    for key, value in pairs:
        _set(tables, key, value)
    return _validated(Profile, tables, origin)


def check_options(model: type[_Model], options: Mapping[str, Any], where: str) -> _Model:
    """Build a driver's ``Options`` from the fields of its table.

    Parameters
    ----------
    model : type of BaseModel
        The driver's ``Options``.
    options : mapping
        The fields that the common part of the table does not know.
    where : str
        What to call the table in an error: "camera", "column" or "beam_monitor".

    Raises
    ------
    ProfileError
        A field is unknown, missing or out of range.
    """
    return _validated(model, dict(options), where, prefix=where, known=_common_fields(where))


def _find(name: str) -> tuple[str, str]:
    path = Path(name)
    if path.suffix == ".toml" or "/" in name or "\\" in name:
        return _read(path), str(path)
    known = profile_names()
    if name in known:
        own = user_folder() / f"{name}.toml"
        if own.is_file():
            return _read(own), str(own)
        shipped = resources.files("tem_live.config") / f"{name}.toml"
        return shipped.read_text(encoding="utf-8"), f"{name}.toml"
    raise ProfileError(
        f"no profile named '{name}'{_closest(name, known)} (or give the path of a .toml file)"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProfileError(
            f"profile {path} does not exist; 'tem-live profiles' lists the known ones"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path} cannot be read: {error}") from None


def _split(pair: str) -> tuple[str, Any]:
    key, sign, value = pair.partition("=")
    if not sign or not key.strip():
        raise ProfileError(f"--set {pair!r} is not KEY=VALUE, such as camera.exposure_s=0.2")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _set(tables: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    table = tables
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ProfileError(f"--set {key}: '{parent}' is a value, not a table")
        table = inner
    table[last] = value


def _validated(
    model: type[_Model],
    tables: dict[str, Any],
    origin: str,
    prefix: str = "",
    known: Iterable[str] = (),
) -> _Model:
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = [str(part) for part in first["loc"]]
        key = ".".join([prefix, *path] if prefix else path)
        if first["type"] == "extra_forbidden":
            names = [*_fields(model, path[:-1]), *known]
            what = f"unknown key '{key}'{_closest(path[-1], names)}"
        elif first["type"] == "missing":
            what = f"'{key}' is missing"
        elif isinstance(first["input"], dict):
            what = f"'{key}': {_lower(first['msg'])}"
        else:
            given = json.dumps(first["input"], default=str)
            what = f"'{key}' = {given}: {_lower(first['msg'])}{_unit_hint(key, first['input'])}"
        raise ProfileError(f"{origin}: {what}") from None


def _common_fields(where: str) -> list[str]:
    tables: dict[str, type[BaseModel]] = {
        "camera": CameraProfile,
        "column": ColumnProfile,
        "beam_monitor": BeamMonitorProfile,
    }
    return list(tables[where].model_fields) if where in tables else []


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _closest(word: str, known: Iterable[str]) -> str:
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f", did you mean '{near[0]}'?"
    return f"; there are {', '.join(names)}" if names else ""


def _unit_hint(key: str, value: Any) -> str:
    # "100 ms" in a field of seconds: name the unit, since that is the usual slip.
    units = {"_s": "seconds", "_nm": "nm", "_A2": "e-/A^2", "_px_s": "e-/px/s"}
    if not isinstance(value, str):
        return ""
    for ending in ("_px_s", "_A2", "_nm", "_s"):
        if key.endswith(ending):
            return f"; give a plain number in {units[ending]}"
    return ""


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
