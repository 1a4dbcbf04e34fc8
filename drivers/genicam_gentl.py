"""A GenICam camera through its GenTL producer, with the library harvesters.

Any camera whose maker supplies a ``.cti`` file: GigE Vision, USB3 Vision, CoaXPress, Camera Link.
Library: https://github.com/genicam/harvesters.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tem_live.drivers.genicam_link import Block, Value, plane
from tem_live.errors import DisconnectedError, NotConnectedError, RefusedError

PATHS = "GENICAM_GENTL64_PATH"
"""Where the GenTL standard says that producers are found: folders."""
_AVAILABLE = (2, 3, 4)
_WRITABLE = (2, 4)
"""Access modes of GenApi: not implemented 0, not available 1, write only, read only, both."""


class GenTL:
    """See the module's text; an open connection.

    Parameters
    ----------
    producer : str
        A ``.cti`` file; "" for those in the folders of ``GENICAM_GENTL64_PATH``.
    device : str
        Identifier, serial number, user name or model of the camera; "" for the only one.
    buffers : int
        Images that the producer can hold while nobody fetches them.
    """

    def __init__(self, producer: str, device: str, buffers: int) -> None:
        try:
            from genicam import genapi, gentl
            from harvesters.core import Harvester
        except ImportError:
            raise NotConnectedError(
                'GenICam needs harvesters: pip install "tem-live[genicam]"'
            ) from None
        # What matters of it is raised here.
        logging.getLogger("harvesters.core").setLevel(logging.CRITICAL)
        self._genapi, self._gentl = genapi, gentl
        self._name = "camera"
        self._acquirer: Any = None
        # The producer writes into it again as soon as it has it back.
        self._held: Any = None
        self._harvester: Any = Harvester()
        try:
            for file in _producers(producer):
                self._add(file)
            self._harvester.update()
            found = self._choose(device)
            acquirer = self._acquirer = self._open(found)
            acquirer.num_buffers = max(buffers, acquirer.min_num_buffers)
            self._nodes: Any = acquirer.remote_device.node_map
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """See `Link`."""
        return self._name

    def has(self, feature: str) -> bool:
        """See `Link`."""
        return self._access(feature) in _AVAILABLE

    def writable(self, feature: str) -> bool:
        """See `Link`."""
        return self._access(feature) in _WRITABLE

    def get(self, feature: str) -> Value:
        """See `Link`."""
        node = self._node(feature)
        value: Value = self._asked(feature, lambda: node.value)
        return value

    def set(self, feature: str, value: Value) -> None:
        """See `Link`."""
        node = self._node(feature)
        self._asked(f"{feature} = {value!r}", lambda: setattr(node, "value", value))

    def limits(self, feature: str) -> tuple[float, float, float]:
        """See `Link`."""
        node = self._node(feature)
        low, high = self._asked(feature, lambda: (float(node.min), float(node.max)))
        step = self._asked(feature, lambda: _step(node))
        return low, high, step

    def entries(self, feature: str) -> list[str]:
        """See `Link`."""
        node = self._node(feature)
        found: list[str] = self._asked(
            feature,
            lambda: [e.symbolic for e in node.entries if e.get_access_mode() in _AVAILABLE],
        )
        return found

    def start(self) -> None:
        """See `Link`."""
        self._asked("AcquisitionStart", self._acquirer.start)

    def stop(self) -> None:
        """See `Link`."""
        self._held = None
        if self._acquirer is not None:
            with contextlib.suppress(Exception):
                self._acquirer.stop()

    def fetch(self, wait_s: float) -> Block | None:
        """See `Link`."""
        # It waits for ever where it shall not wait at all.
        self._give_back()
        wait_s = max(wait_s, 0.001)
        fetched = self._asked("an image", lambda: self._acquirer.try_fetch(timeout=wait_s))
        if fetched is None:
            return None
        self._held = fetched
        block: Block = self._asked("an image", lambda: self._block(fetched))
        return block

    def check(self) -> None:
        """See `Link`: a producer tells nothing by itself."""

    def probe(self) -> None:
        """See `Link`: nor is there a question that every producer answers in time."""

    def close(self) -> None:
        """See `Link`."""
        acquirer, self._acquirer = self._acquirer, None
        harvester, self._harvester = self._harvester, None
        for end in (acquirer and acquirer.destroy, harvester and harvester.reset):
            if end is not None:
                with contextlib.suppress(Exception):
                    end()

    # --------------------------------------------------------------------------------- internals

    def _add(self, file: Path) -> None:
        try:
            self._harvester.add_file(str(file), check_existence=True, check_validity=True)
        except OSError as error:
            raise NotConnectedError(
                f"{file} is no GenTL producer that can be loaded ({_one_line(error)}); "
                "set camera.producer to the .cti file of the camera's maker"
            ) from None

    def _choose(self, device: str) -> Any:
        found = self._harvester.device_info_list
        labels = [_labels(info) for info in found]
        matching = [i for i, words in enumerate(labels) if not device or device in words]
        known = ", ".join(words[0] for words in labels) or "none"
        if not matching:
            which = f"camera '{device}'" if device else "camera"
            raise NotConnectedError(
                f"the GenTL producer finds no {which} (it finds {known}); switch it on, close "
                "other programs on it, or set camera.device and camera.producer"
            )
        if len(matching) > 1:
            raise NotConnectedError(
                f"the GenTL producer finds more than one camera; set camera.device to one of "
                f"{', '.join(labels[i][0] for i in matching)}"
            )
        return found[matching[0]]

    def _open(self, found: Any) -> Any:
        words = _labels(found)
        self._name = f"{_told(found, 'vendor')} {_told(found, 'model')}".strip() or words[0]
        try:
            with _own_interrupts():
                return self._harvester.create(found)
        except (self._gentl.AccessDeniedException, self._gentl.ResourceInUseException):
            raise NotConnectedError(
                f"the camera {words[0]} is in use; close the other program on it"
            ) from None
        except Exception as error:
            raise NotConnectedError(
                f"the camera {words[0]} cannot be opened ({_one_line(error)}); switch it off and on"
            ) from None

    def _give_back(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._asked("an image", held.queue)

    def _node(self, feature: str) -> Any:
        if self._acquirer is None:
            raise DisconnectedError("the camera was closed")
        if not self._nodes.has_node(feature):
            raise RefusedError(f"the camera has no feature '{feature}'")
        return getattr(self._nodes, feature)

    def _access(self, feature: str) -> int:
        if self._acquirer is None or not self._nodes.has_node(feature):
            return 0
        node = getattr(self._nodes, feature)
        mode: int = self._asked(feature, node.get_access_mode)
        return mode

    def _block(self, buffer: Any) -> Block:
        image = buffer.payload.components[0]
        return Block(
            number=int(buffer.module.frame_id),
            pixel_format=str(image.data_format),
            pixels=plane(image.data, int(image.height), int(image.width)),
            device_time_s=self._seconds(buffer),
            raw={"block": int(buffer.module.frame_id)},
        )

    def _seconds(self, buffer: Any) -> float | None:
        try:
            return float(buffer.timestamp_ns) / 1e9
        except self._gentl.GenericException:
            return None

    def _asked(self, what: str, question: Callable[[], Any]) -> Any:
        """Ask the library; what it raises is said in the words of this program."""
        genapi = self._genapi
        try:
            return question()
        except (
            genapi.RuntimeException,
            genapi.TimeoutException,
            self._gentl.GenericException,
        ) as e:
            raise DisconnectedError(
                f"the camera {self._name} is gone ({_one_line(e)}); switch it on and reconnect"
            ) from None
        except (genapi.GenericException, AttributeError, IndexError, TypeError, ValueError) as e:
            raise RefusedError(f"the camera refuses {what} ({_one_line(e)})") from None


def is_found(producer: str, device: str) -> bool:
    """Whether a producer finds such a camera; it is not opened.

    Raises
    ------
    NotConnectedError
        The producer is missing.
    """
    try:
        from harvesters.core import Harvester
    except ImportError:
        return False
    harvester = Harvester()
    try:
        for file in _producers(producer):
            harvester.add_file(str(file))
        harvester.update()
        return any(not device or device in _labels(info) for info in harvester.device_info_list)
    finally:
        harvester.reset()


def _producers(producer: str) -> list[Path]:
    if producer:
        file = Path(producer).expanduser()
        if not file.is_file():
            raise NotConnectedError(f"there is no GenTL producer {file}; correct camera.producer")
        return [file]
    folders = [Path(word) for word in os.environ.get(PATHS, "").split(os.pathsep) if word]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.cti"))]
    if not files:
        raise NotConnectedError(
            f"no GenTL producer is installed ({PATHS} names no folder with a .cti file); install "
            "the camera maker's software, or set camera.producer"
        )
    return files


def _labels(info: Any) -> list[str]:
    words = [_told(info, word) for word in ("id_", "serial_number", "user_defined_name", "model")]
    return [word for word in words if word] or ["unknown"]


def _told(info: Any, word: str) -> str:
    try:
        return str(getattr(info, word) or "")
    except Exception:
        # Producers refuse the words that they do not know, each in its own way.
        return ""


def _step(node: Any) -> float:
    # A float has an increment or none, an integer always has one.
    has: Callable[[], bool] | None = getattr(node, "has_inc", None)
    return float(node.inc) if has is None or has() else 0.0


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """The library takes Ctrl-C away from the program: it is given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _one_line(error: BaseException) -> str:
    # The library appends where in its sources it stood.
    text = " ".join(str(error).split()).split(" : ")[0].split(" (file '")[0]
    return text[:200] or type(error).__name__
