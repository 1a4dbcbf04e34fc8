"""The recording of a live session: where it is, what it says of its models, and why it ended.

The frames themselves go to it through `tem_live.pipeline.Writer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tem_live import __version__
from tem_live.errors import InputError, RecordingError, RefusedError
from tem_live.pipeline import Writer
from tem_live.profiles import Profile

if TYPE_CHECKING:
    from tem_live.models import Restorer


class LiveRecording:
    """See the module's text. Its methods are called one at a time.

    Parameters
    ----------
    profile : Profile
        The instrument; recorded as a whole.
    writer : Writer
        What writes.
    next_frame : callable
        Gives the id of the next frame.

    Attributes
    ----------
    path : Path or None
        Where frames are recorded to now.
    error : RecordingError or None
        Why the last recording ended early.
    """

    def __init__(self, profile: Profile, writer: Writer, next_frame: Callable[[], int]) -> None:
        self._profile = profile
        self._writer = writer
        self._next_frame = next_frame
        self._models: list[dict[str, Any]] = []
        self.path: Path | None = None
        self.error: RecordingError | None = None

    def begin(self, path: Path, restorer: Restorer | None, counts: Mapping[str, Any]) -> Path:
        """Record from the next frame on; see `Session.record`.

        Parameters
        ----------
        path : Path
            As the user gave it.
        restorer : Restorer or None
            What restores the frames.
        counts : mapping
            What they mean: attributes of the recording.
        """
        from tem_live.recording import Recorder

        if self.path is not None:
            raise RefusedError(f"already recording to {self.path}; stop that first")
        self._writer.check_free()
        if not path.name:
            raise InputError(f"{str(path)!r} is no name for a recording; give one")
        target = path if path.suffix == ".zarr" else path.with_name(path.name + ".zarr")
        model = _facts(restorer)
        self._models = [{"from_frame": self._next_frame(), **model}]
        recorder = Recorder(
            target,
            {
                "program": f"tem_live {__version__}",
                "profile": self._profile.model_dump(mode="json"),
                **model,
                "models": self._models,
                **counts,
            },
        )
        self.error = None
        self._writer.open(recorder)
        self.path = target
        return target

    def note_model(self, restorer: Restorer | None) -> None:
        """Say in the recording, if there is one, what restores the frames from now on."""
        if self.path is not None:
            self._models = [*self._models, {"from_frame": self._next_frame(), **_facts(restorer)}]
            self._writer.note({"models": self._models})

    def forget(self) -> Path | None:
        """It has ended, or is ended by whoever asks; where it was, None if there was none."""
        path, self.path = self.path, None
        return path


def _facts(restorer: Restorer | None) -> dict[str, Any]:
    """What a recording says of the restorer, and what it computes in."""
    if restorer is None:
        return {
            "model": "none",
            "model_sha256": None,
            "restore_binning": 1,
            "precision": None,
            "engine": None,
            "device": None,
        }
    return {
        "model": restorer.name,
        "model_sha256": restorer.card.sha256,
        "restore_binning": restorer.binning,
        "precision": restorer.precision,
        "engine": restorer.engine,
        "device": str(restorer.device),
    }
