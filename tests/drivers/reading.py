"""How the tests of many drivers read a camera: some frames, one, or until it breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tem_live.drivers.protocols import Camera, CameraSettings, FrameMeta
from tem_live.errors import DisconnectedError


def begin(camera: Camera, exposure_s: float = 0.02) -> npt.NDArray[Any]:
    """A free run, and a buffer for its frames."""
    state = camera.configure(CameraSettings(exposure_s))
    camera.start()
    return np.empty(state.frame_shape, state.dtype)


def take(
    camera: Camera, count: int, exposure_s: float = 0.005
) -> tuple[list[npt.NDArray[Any]], list[FrameMeta]]:
    """The first so many frames of a free run, which is stopped then."""
    state = camera.configure(CameraSettings(exposure_s))
    frames = [np.empty(state.frame_shape, state.dtype) for _ in range(count)]
    camera.start()
    metas = [camera.read_into(frame, 2.0) for frame in frames]
    camera.stop()
    return frames, metas


def read_one(camera: Camera, timeout_s: float = 5.0) -> npt.NDArray[Any]:
    """The first frame of a free run, which goes on."""
    buffer = begin(camera, 0.01)
    camera.read_into(buffer, timeout_s)
    return buffer


def read_on(
    camera: Camera, buffer: npt.NDArray[Any], *, at_most: int = 100_000, timeout_s: float = 5.0
) -> None:
    """Until there is an error: what was sent already still comes."""
    for _ in range(at_most):
        camera.read_into(buffer, timeout_s)


def check_second_frame(
    camera: Camera,
    server: Any,
    send: Callable[[int, Any], Any],
    sound: Callable[[int, Any], Any],
    picture: Callable[[int, tuple[int, int]], npt.NDArray[Any]],
    said: str,
) -> None:
    """The first frame of a run comes, the second is refused by name, and the next run is sound.

    Parameters
    ----------
    camera : Camera
        Configured.
    server : object
        With ``send``: what goes out for a number and what a sound one sends.
    send, sound : callable
        How it fails, and how it does not.
    picture : callable
        What a frame shows.
    said : str
        What the error is to say.
    """
    state = camera.configure(CameraSettings(0.01))
    buffer = np.empty(state.frame_shape, state.dtype)
    server.send = send
    camera.start()
    camera.read_into(buffer, 5.0)
    with fails_soon(DisconnectedError, said, 4):
        camera.read_into(buffer, 5.0)
    np.testing.assert_array_equal(buffer, picture(0, state.frame_shape))
    camera.stop()
    server.send = sound
    camera.start(2)
    assert [camera.read_into(buffer, 5.0).sequence for _ in range(2)] == [0, 1]


@contextmanager
def fails_soon(error: type[Exception], words: str, within_s: float) -> Iterator[None]:
    """What is done within fails so, in time, and is told in one line."""
    began = time.monotonic()
    with pytest.raises(error, match=words) as caught:
        yield
    assert time.monotonic() - began < within_s
    assert "\n" not in str(caught.value)
