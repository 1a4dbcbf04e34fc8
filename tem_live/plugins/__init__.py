"""tem_live within other programs: restored frames for Micro-Manager and viewers of pymmcore-plus.

`process_fn` is an ``image_process_fn`` for a pycromanager acquisition: Micro-Manager acquires, and
gets each image back restored. `restored_camera` goes the other way: a session of tem_live acquires,
and its restored frames are a camera of pymmcore-plus, which its viewers show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tem_live.plugins.image_processor import Output, RestoringProcessor
    from tem_live.session import Session

__all__ = ["process_fn", "restored_camera"]


def process_fn(
    model: str = "fast",
    *,
    counts_per_electron: float,
    offset_counts: float = 0.0,
    output: Output = "restored",
    output_counts_per_electron: float | None = None,
    device: str = "auto",
) -> RestoringProcessor:
    """An ``image_process_fn`` for ``pycromanager.Acquisition``.

    Parameters
    ----------
    model : str
        Name of a restorer, or the path of its weights.
    counts_per_electron, offset_counts : float
        The camera's gain, and the pedestal that it adds to every pixel.
    output : {"restored", "both"}
        Hand back the restored image in place of the raw one, or both as two channels.
    output_counts_per_electron : float, optional
        Counts that stand for one electron in the restored image, which has the raw one's type; by
        default 100, and the camera's own gain where that is more or a pixel has 8 bits.
    device : str
        ``auto``, ``cpu`` or ``cuda``.

    Returns
    -------
    RestoringProcessor
        Call it with an image and its metadata.

    Raises
    ------
    ModelError
        The restorer is unknown or broken.
    InputError
        A gain is not a positive number.
    """
    from tem_live.models import load_restorer
    from tem_live.plugins.image_processor import RestoringProcessor

    return RestoringProcessor(
        load_restorer(model, device),
        counts_per_electron=counts_per_electron,
        offset_counts=offset_counts,
        output=output,
        output_counts_per_electron=output_counts_per_electron,
    )


def restored_camera(
    session: Session, *, counts_per_electron: float = 100.0, drives: bool = False
) -> Any:
    """A session's restored frames as a camera of pymmcore-plus.

    Parameters
    ----------
    session : Session
        Open; it stays the caller's to close.
    counts_per_electron : float
        Counts that stand for one electron in the 16 bit images.
    drives : bool
        Whether the viewer's snap and live start a run of the session, **which lets the beam onto
        the specimen**. False shows the frames of runs that are started in tem_live.

    Returns
    -------
    pymmcore_plus.experimental.unicore.CameraDevice
        For ``UniMMCore.loadPyDevice``.

    Raises
    ------
    NotConnectedError
        pymmcore-plus is not installed.
    """
    from tem_live.errors import NotConnectedError

    try:
        from tem_live.plugins.camera_device import RestoredCamera
    except ImportError:
        raise NotConnectedError(
            'this needs pymmcore-plus: pip install "tem-live[pymmcore-plus]"'
        ) from None
    return RestoredCamera(session, counts_per_electron, drives)
