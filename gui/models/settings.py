"""What the GUI remembers from one start to the next.

How the instrument is set is not remembered: that is the profile's business, and a dose rate must
never come back by surprise.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tem_live.gui.models.view_state import Colours
from tem_live.paths import written_whole


class GuiSettings(BaseModel):
    """Remembered choices; unknown fields (of a newer version) are ignored."""

    model_config = ConfigDict(extra="ignore", validate_assignment=True)

    width: int = Field(default=1280, ge=640, le=16384)
    height: int = Field(default=800, ge=480, le=16384)
    maximised: bool = False
    auto_levels: bool = True
    shared_levels: bool = False
    spectrum: bool = False
    profile: bool = False
    dose: bool = False
    fluence_map: bool = False
    colours: Colours = "grey"
    reference_frames: int = Field(default=32, ge=1, le=100_000)
    record_folder: str = ""


class SettingsStore:
    """The settings' file.

    Parameters
    ----------
    path : Path or None
        The file; None keeps the settings in memory only (screenshots, tests).
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def load(self) -> tuple[GuiSettings, str | None]:
        """Settings, and one line for the user if the file could not be used.

        A broken file never stops the start: it is kept as ``….broken`` and the defaults apply.
        """
        if self.path is None:
            return GuiSettings(), None
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return GuiSettings(), None
        except (OSError, UnicodeDecodeError) as error:
            return GuiSettings(), self._set_aside(str(error))
        try:
            return GuiSettings.model_validate_json(text), None
        except ValidationError as error:
            return GuiSettings(), self._set_aside(error.errors(include_url=False)[0]["msg"])

    def save(self, settings: GuiSettings) -> str | None:
        """Write the settings whole or not at all; one line for the user if that failed."""
        if self.path is None:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self.path) as part:
                part.write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            return f"the settings of the GUI cannot be saved: {error}"
        return None

    def _set_aside(self, reason: str) -> str:
        assert self.path is not None
        aside = self.path.with_name(self.path.name + ".broken")
        try:
            self.path.replace(aside)
        except OSError as error:
            return f"the GUI's settings cannot be read ({reason}) nor set aside: {error}"
        return f"the GUI's settings were unreadable ({reason}); defaults used, old file: {aside}"


def settings_path() -> Path:
    """The user's settings file."""
    return Path(platformdirs.user_config_dir("tem_live", appauthor=False)) / "gui.json"


def recordings_folder(remembered: str = "") -> Path:
    """Folder for recordings: the remembered one, else a folder of ours in the user's home."""
    return Path(remembered) if remembered else Path.home() / "tem_live recordings"


def shown_path(path: Path) -> str:
    """Path as text, the user's home shortened to ``~``."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except ValueError:
        return str(path)


def recording_name(profile: str, when: datetime, kind: Literal[".zarr"] = ".zarr") -> str:
    """Name of a new recording: the profile and the local time, safe on every file system."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in profile) or "recording"
    return f"{safe}_{when:%Y%m%d-%H%M%S}{kind}"
