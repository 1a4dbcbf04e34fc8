"""Everything that tem_live raises on purpose.

Each message is one line that says what was wrong and what to do about it. The command line prints
that line and exits with ``exit_code``; the GUI shows it in its message bar. Anything that is not a
`TemLiveError` is a bug of ours.
"""

from __future__ import annotations

from typing import ClassVar


class TemLiveError(Exception):
    """Base of all errors of tem_live; one line, ``exit_code`` for the command line."""

    exit_code: ClassVar[int] = 1


class InputError(TemLiveError):
    """What the user gave (a path, a value, a file's content) cannot be used."""

    exit_code: ClassVar[int] = 2


class ProfileError(InputError):
    """An instrument profile is missing, broken, or sets something that does not exist."""


class CalibrationError(InputError):
    """A calibration file or reference does not fit the camera or cannot be computed."""


class ModelError(InputError):
    """A restorer is unknown, its weights are damaged, or the device it asks for is absent."""


class RecordingError(TemLiveError):
    """A recording cannot be written any further; what was written before is kept."""

    exit_code: ClassVar[int] = 3


class RawFrameLostError(TemLiveError):
    """A raw frame could not be taken or stored and the profile forbids losing one."""

    exit_code: ClassVar[int] = 3


class DeviceError(TemLiveError):
    """Something about a device; base of the errors that drivers raise."""

    exit_code: ClassVar[int] = 3


class NotConnectedError(DeviceError):
    """The device is absent, not reachable, or was not opened."""


class RefusedError(DeviceError):
    """The device (or its driver) does not accept a setting."""


class DeviceTimeoutError(DeviceError):
    """The device did not answer or deliver a frame in time."""


class OverflowedError(DeviceError):
    """The device's own buffer overflowed: frames were lost before the driver saw them."""


class DisconnectedError(DeviceError):
    """The device was there and is gone."""


def reason(error: BaseException) -> str:
    """What an error that is none of ours says, as a part of one line of ours."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:160]
