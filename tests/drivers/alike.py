"""What drivers of one kind have to do when something breaks: behind a maker's library, or a server.

A camera that breaks is told in one line and in time, leaves nothing behind, and can be taken again
where that is possible. The words are each driver's own, and how its fake breaks.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from tem_live.drivers.protocols import Camera, CameraSettings, CameraState
from tem_live.errors import DeviceTimeoutError, DisconnectedError, NotConnectedError
from tests.drivers.reading import begin, fails_soon, read_on, take

C = TypeVar("C", bound=Camera)

# ------------------------------------------------------------------------------ makers' libraries


def of_library(
    fake_type: Callable[[], Any], camera_type: Callable[..., C], options_type: Callable[..., Any]
) -> tuple[Callable[..., C], Any, Any]:
    """What the tests of such a driver begin with.

    Returns
    -------
    make : callable of (fake, **options)
        A camera before that fake.
    fake, camera : fixtures
        A fake, and an open camera before it.
    """

    def make(fake: Any, **options: Any) -> C:
        return camera_type(options_type(**options), lambda: fake.library)

    @pytest.fixture
    def fake() -> Iterator[Any]:
        fake = fake_type()
        yield fake
        assert fake.library.errors == []
        assert fake.open_handles == [], "what was opened is closed"
        assert getattr(fake, "queue", []) == [], "no memory of ours is left with the library"

    @pytest.fixture
    def camera(fake: Any) -> Iterator[C]:
        with opened(make(fake)) as camera:
            yield camera

    return make, fake, camera


@contextmanager
def opened(camera: C) -> Iterator[C]:
    """An open camera, which is closed whatever happens."""
    try:
        camera.open()
        yield camera
    finally:
        camera.close()


def check_pictures(fake: Any, frames: list[npt.NDArray[Any]], numbers: list[int]) -> None:
    """The frames show the exposures of these numbers."""
    for number, frame in zip(numbers, frames, strict=True):
        assert np.array_equal(frame, fake.sensor.picture(number))


class LibraryFaults:
    """Tests of a driver of a maker's library; inherit next to the fixtures of `of_library`.

    Attributes
    ----------
    make : staticmethod
        As `of_library` gives it.
    missing : str
        Said where the library is not there.
    keeps : dict of str to str
        Said at opening with no camera, one that is in use, and one that is gone.
    gone : str
        Said when it is unplugged.
    ready : int
        Frames that may still come then, and the one that does not.
    size : str
        Said of frames of another size.
    """

    make: ClassVar[Callable[..., Any]]
    missing: ClassVar[str]
    keeps: ClassVar[dict[str, str]]
    gone: ClassVar[str]
    ready: ClassVar[int] = 1
    size: ClassVar[str]

    def die_silently(self, fake: Any) -> None:
        """From now on it sends nothing and, asked, is not there."""
        raise NotImplementedError

    def change_size(self, fake: Any) -> None:
        """From now on its frames are of another size than was set."""
        raise NotImplementedError

    def test_unplugged_amid_a_run(self, camera: Camera, fake: Any) -> None:
        buffer = begin(camera)
        camera.read_into(buffer, 1.0)
        fake.sensor.present = False
        with fails_soon(DisconnectedError, self.gone, 5):
            read_on(camera, buffer, at_most=self.ready, timeout_s=5.0)
        camera.close()
        if hasattr(fake, "queue"):
            # What is not there can give nothing back.
            fake.queue.clear()

    def test_silent_and_gone_is_told_from_silent(self, camera: Camera, fake: Any) -> None:
        fake.sensor.silent = True
        buffer = begin(camera)
        with pytest.raises(DeviceTimeoutError):
            camera.read_into(buffer, 0.15)
        self.die_silently(fake)
        with pytest.raises(DisconnectedError, match="does not answer"):
            camera.read_into(buffer, 0.15)

    def test_wrong_size_is_named(self, camera: Camera, fake: Any) -> None:
        self.change_size(fake)
        with pytest.raises(DisconnectedError, match=self.size):
            take(camera, 1)

    @pytest.mark.parametrize("why", ["none", "in use", "gone"])
    def test_what_keeps_it_from_opening_is_named(self, fake: Any, why: str) -> None:
        if why == "none":
            fake.cameras = 0
        else:
            fake.sensor.in_use = why == "in use"
            fake.sensor.present = why != "gone"
        camera = type(self).make(fake)
        with pytest.raises(NotConnectedError, match=self.keeps[why]) as caught:
            camera.open()
        assert "\n" not in str(caught.value)
        camera.close()

    def test_without_the_library(self, fake: Any) -> None:
        made = type(type(self).make(fake))
        with pytest.raises(NotConnectedError, match=self.missing) as caught:
            made(made.Options(library="no-such-file.dll")).open()
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- servers


def configured(camera: C, exposure_s: float) -> tuple[C, CameraState, npt.NDArray[Any]]:
    """The camera, open and set, and a buffer for its frames."""
    camera.open()
    state = camera.configure(CameraSettings(exposure_s))
    return camera, state, np.empty(state.frame_shape, state.dtype)


def check_death(
    open_one: Callable[[], Any], end: Callable[[], object], said: str, absent: str
) -> None:
    """A server that ends amid a run leaves nothing behind, and is not found again.

    Parameters
    ----------
    open_one : callable
        Gives what `configured` does.
    end : callable
        Ends the server.
    said, absent : str
        Said amid the run, and at the next opening.
    """
    before = set(threading.enumerate())
    camera, _, buffer = open_one()
    camera.start()
    camera.read_into(buffer, 5.0)
    end()
    with fails_soon(DisconnectedError, said, 4):
        read_on(camera, buffer)
    began = time.monotonic()
    camera.close()
    assert time.monotonic() - began < 2
    assert set(threading.enumerate()) <= before
    with pytest.raises(NotConnectedError, match=absent) as caught:
        camera.open()
    assert "\n" not in str(caught.value)


def check_mute(camera: Camera, mute: threading.Event) -> None:
    """A server that no longer answers is given up, and taken again when it does.

    Parameters
    ----------
    camera : Camera
        Configured, with a short ``reply_timeout_s``.
    mute : Event
        As long as it is set, the server does not answer.
    """
    mute.set()
    with pytest.raises(DisconnectedError, match="does not answer"):
        camera.configure(CameraSettings(0.01))
    began = time.monotonic()
    camera.close()
    assert time.monotonic() - began < 2
    with pytest.raises(NotConnectedError, match="does not answer"):
        camera.open()
    mute.clear()
    camera.open()


def check_pieces(
    camera: Camera,
    server: Any,
    line: Callable[[], socket.socket | None],
    part: int,
    picture: Callable[[int, tuple[int, int]], npt.NDArray[Any]],
) -> None:
    """A frame of which a part comes late outlasts a wait that is over before.

    Parameters
    ----------
    camera : Camera
        Configured.
    server : object
        With ``send``: what goes out for a number and what a sound one sends.
    line : callable
        The connection by which the frames come.
    part : int
        Bytes that come in time.
    picture : callable
        What a frame shows.
    """
    rest: list[bytes] = []

    def begin_with_a_part(number: int, whole: bytes) -> bytes:
        rest.append(whole[part:])
        return whole[:part]

    state = camera.configure(CameraSettings(0.01))
    buffer = np.empty(state.frame_shape, state.dtype)
    server.send = begin_with_a_part
    camera.start(1)
    with pytest.raises(DeviceTimeoutError):
        camera.read_into(buffer, 0.2)
    connection = line()
    assert connection is not None
    connection.sendall(rest[0])
    assert camera.read_into(buffer, 5.0).sequence == 0
    np.testing.assert_array_equal(buffer, picture(0, state.frame_shape))


STRANGERS = [b"HTTP/1.1 200 OK\r\n\r\n[1]", b"SSH-2.0-x\r\n", b""]
"""What programs of other kinds answer to a question over HTTP."""


def check_stranger(answer: bytes, open_one: Callable[[int], object], said: str) -> None:
    """What answers so is no server of the kind that is looked for.

    Parameters
    ----------
    answer : bytes
        One of `STRANGERS`.
    open_one : callable of int
        Opens a camera at that port.
    said : str
        What the error is to say.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                line.recv(4096)
                line.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(NotConnectedError, match=said) as caught:
            open_one(listener.getsockname()[1])
        serving.join()
    assert "\n" not in str(caught.value)
