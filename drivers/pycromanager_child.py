"""The process that talks to Micro-Manager for `pycromanager_bridge`, and may be killed at any time.

pycromanager waits for ever for a server that is gone, so the program itself never calls it: it
starts ``python -m tem_live.drivers.pycromanager_child`` and speaks with it in lines of JSON.
Standard input brings commands, and slots of the shared memory that are free again; standard output
answers, and tells of frames as they are written into the memory::

    <- {"id": 7, "do": "configure", "exposure_s": 0.05, "binning": 1, "roi": [0, 0, 512, 512]}
    -> {"id": 7, "is": {"exposure_s": 0.05, ...}}          or "refused", "absent", "failed": text
    -> {"run": 2, "slot": 3, "tags": {...}, "time": 1783.2}           <- {"free": 3}
    -> {"run": 2, "ended": "overflow", "text": "..."}      and {"beat": 1} while nothing comes

A process of our own instead of one of `multiprocessing`: that one runs the user's script again.
When standard input ends, because the program has, a running sequence is stopped and this ends.
The core is MMCore with pycromanager's names (https://pycro-manager.readthedocs.io/), either
Micro-Manager's own (Java) or one in this process (Python).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import threading
import time
from typing import Any, TextIO

from tem_live.drivers.pycromanager_pump import Pump, Say, attach, said

_STAGE_POLL_S = 0.02
_WITHOUT_END = 2**31 - 1
"""Length of a free run. Only finite sequences report that the circular buffer overflowed."""
_LAST_WILL_S = 5.0
_CONNECT_MS = 1000
_DTYPES = {1: "uint8", 2: "uint16", 4: "uint32"}
_LANES = {"shutter": "beam", "set_shutter": "beam", "stage": "stage", "move_stage": "stage"}
"""Commands that do not wait behind those of the camera, nor blanking behind a stage that moves."""


class RefusedHere(Exception):  # noqa: N818 - it becomes the program's RefusedError
    """Micro-Manager does not accept it."""


class AbsentHere(Exception):  # noqa: N818 - it becomes the program's NotConnectedError
    """There is no Micro-Manager, or no such device."""


class Bridge:
    """Micro-Manager's core, by the commands of the module's text; each method is one."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._core: Any = None
        self._label = ""
        self._pump: Pump | None = None
        self._pump_lock = threading.Lock()
        self._sensor = (0, 0)
        self._started = False

    # ----------------------------------------------------------------------------------- commands

    def hello(self) -> dict[str, Any]:
        """Load the client, which takes long on a busy computer."""
        import mmpycorex

        return {"client": mmpycorex.__version__}

    def connect(
        self, backend: str, port: int, path: str | None, config_file: str | None, buffer_MB: int
    ) -> dict[str, Any]:
        """Get the core."""
        # pycromanager.Core, and what pycromanager.start_headless does but for an acquisition engine
        # that nobody needs here; importing these alone takes a fifth of the time.
        from mmpycorex import Core, create_core_instance

        if backend == "python":
            try:
                create_core_instance(
                    mm_app_path=path,
                    config_file=config_file,
                    python_backend=True,
                    buffer_size_mb=buffer_MB,
                )
            except Exception as error:
                raise AbsentHere(f"Micro-Manager's core does not start: {said(error)}") from None
            self._core = Core()
        else:
            try:
                self._core = Core(port=port, timeout=_CONNECT_MS)
            except Exception as error:
                raise AbsentHere(said(error)) from None
        return {"version": str(self._core.get_version_info())}

    def open(
        self, camera: str | None, properties: dict[str, Any], take_over: bool
    ) -> dict[str, Any]:
        """Take the camera and say what it is."""
        core = self._core
        if camera is not None:
            with _as(AbsentHere, f"there is no camera '{camera}' in Micro-Manager"):
                core.set_camera_device(camera)
        self._label = str(core.get_camera_device() or "")
        if not self._label:
            raise AbsentHere(
                "Micro-Manager has no camera; choose one in its hardware configuration"
            )
        if core.is_sequence_running():
            if not take_over:
                raise AbsentHere(
                    "Micro-Manager's camera is in use: stop its Live mode, or the other program, "
                    "or set camera.take_over = true, which does so"
                )
            core.stop_sequence_acquisition()
        for name, value in properties.items():
            with _as(RefusedHere, f"camera property '{name}' = {value!r} is refused"):
                core.set_property(self._label, name, str(value))
        if core.get_number_of_components() != 1:
            raise AbsentHere("a colour camera is no use here; set a grey pixel type")
        core.clear_roi()
        binning = self._binning()
        self._sensor = (core.get_image_height() * binning, core.get_image_width() * binning)
        low, high = self._exposure_range_s()
        return {
            "name": f"{core.get_device_library(self._label)} {core.get_device_name(self._label)}",
            "sensor": self._sensor,
            "dtype": self._dtype(),
            "exposure_range_s": [low, high],
            "binnings": self._binnings(),
        }

    def configure(self, exposure_s: float, binning: int, roi: list[int]) -> dict[str, Any]:
        """Set the camera and read it back; what was set before holds again where it refuses."""
        core = self._core
        before = self._binning(), self._roi(), core.get_exposure()
        try:
            self._set(exposure_s, binning, roi)
        except Exception as error:
            with contextlib.suppress(Exception):
                self._set(before[2] / 1e3, before[0], before[1])
            raise RefusedHere(f"Micro-Manager refuses the settings: {said(error)}") from None
        pixel_um = float(core.get_pixel_size_um())
        return {
            "exposure_s": core.get_exposure() / 1e3,
            "binning": self._binning(),
            "roi": self._roi(),
            "shape": [int(core.get_image_height()), int(core.get_image_width())],
            "dtype": self._dtype(),
            "bit_depth": int(core.get_image_bit_depth()),
            "pixel_size_nm": 1e3 * pixel_um if pixel_um > 0 else None,
        }

    def start(
        self,
        run: int,
        frames: int | None,
        memory: str,
        slots: int,
        shape: list[int],
        dtype: str,
    ) -> dict[str, Any]:
        """Begin a sequence into the shared memory of that name."""
        core = self._core
        if core.is_sequence_running():
            raise RefusedHere(
                "Micro-Manager's camera is in use by another program or its Live mode; stop that"
            )
        shared = attach(memory)
        try:
            core.start_sequence_acquisition(_WITHOUT_END if frames is None else frames, 0.0, True)
        except Exception as error:
            shared.close()
            raise RefusedHere(f"Micro-Manager refuses the start: {said(error)}") from None
        self._started = True
        with self._pump_lock:
            height, width = shape
            self._pump = Pump(core, shared, slots, (height, width), dtype, frames, run, self._say)
        return {}

    def stop(self) -> dict[str, Any]:
        """End the sequence."""
        with self._pump_lock:
            pump, self._pump = self._pump, None
        if pump is not None:
            pump.halt()
        if self._started:
            self._started = False
            if self._core.is_sequence_running():
                self._core.stop_sequence_acquisition()
        return {}

    def shutter(self, take: bool = False) -> dict[str, Any]:
        """The shutter's name and whether it is open; ``take`` ends Micro-Manager's auto shutter."""
        core = self._core
        name = str(core.get_shutter_device() or "")
        if not name:
            raise AbsentHere("Micro-Manager has no shutter set; name one in its configuration")
        # It would open the shutter with each sequence, whoever wants the beam blanked.
        if take and core.get_auto_shutter():
            core.set_auto_shutter(False)
        return {"name": name, "open": bool(core.get_shutter_open())}

    def set_shutter(self, open: bool) -> dict[str, Any]:
        """Move the shutter and read it back."""
        with _as(RefusedHere, "Micro-Manager refuses the shutter"):
            self._core.set_shutter_open(open)
        return {"open": bool(self._core.get_shutter_open())}

    def stage(self) -> dict[str, Any]:
        """Where the XY stage stands, in micrometres."""
        core = self._core
        name = str(core.get_xy_stage_device() or "")
        if not name:
            raise AbsentHere("Micro-Manager has no XY stage set; name one in its configuration")
        with _as(RefusedHere, "Micro-Manager cannot read the stage"):
            return {"x_um": float(core.get_x_position()), "y_um": float(core.get_y_position())}

    def move_stage(self, x_um: float, y_um: float) -> dict[str, Any]:
        """Move the XY stage, wait, and read it back."""
        core = self._core
        with _as(RefusedHere, "Micro-Manager refuses to move the stage"):
            core.set_xy_position(x_um, y_um)
            # Not wait_for_device: Micro-Manager's server answers nobody else meanwhile.
            while core.device_busy(core.get_xy_stage_device()):
                time.sleep(_STAGE_POLL_S)
        return self.stage()

    def free(self, slot: int) -> None:
        """A slot of the running sequence is free again."""
        with self._pump_lock:
            if self._pump is not None:
                self._pump.free(slot)

    def leave(self) -> dict[str, Any]:
        """End all; the core is given up."""
        core = self._core
        if core is not None:
            self.stop()
            self._core = None
            # MMCore in this process: its adapters must go before the process does.
            if hasattr(core, "unload_all_devices") and not hasattr(core, "_hash_code"):
                core.unload_all_devices()
        return {}

    # --------------------------------------------------------------------------------- internals

    def _set(self, exposure_s: float, binning: int, roi: list[int]) -> None:
        core = self._core
        if self._binning() != binning:
            core.set_property(self._label, "Binning", self._binning_word(binning))
        core.clear_roi()
        top, left, height, width = (n // binning for n in roi)
        if (top, left, height, width) != (0, 0, *(n // binning for n in self._sensor)):
            core.set_roi(left, top, width, height)
        core.set_exposure(1e3 * exposure_s)

    def _roi(self) -> list[int]:
        """(top, left, height, width) in unbinned pixels."""
        found = self._core.get_roi()
        if hasattr(found, "width"):
            # java.awt.Rectangle
            left, top, width, height = found.x, found.y, found.width, found.height
        else:
            left, top, width, height = found
        binning = self._binning()
        return [int(n) * binning for n in (top, left, height, width)]

    def _exposure_range_s(self) -> tuple[float, float]:
        core, label = self._core, self._label
        low, high = 1e-6, 3600.0
        if core.has_property(label, "Exposure") and core.has_property_limits(label, "Exposure"):
            low = max(low, core.get_property_lower_limit(label, "Exposure") / 1e3)
            high = core.get_property_upper_limit(label, "Exposure") / 1e3
        return low, high

    def _binning_words(self) -> list[str]:
        core = self._core
        if not core.has_property(self._label, "Binning"):
            return []
        words = core.get_allowed_property_values(self._label, "Binning")
        # mmcorej.StrVector
        if hasattr(words, "size"):
            words = [words.get(index) for index in range(words.size())]
        return [str(word) for word in words]

    def _binnings(self) -> list[int]:
        return sorted({_side(word) for word in self._binning_words()}) or [1]

    def _binning(self) -> int:
        if not self._core.has_property(self._label, "Binning"):
            return 1
        return _side(str(self._core.get_property(self._label, "Binning")))

    def _binning_word(self, binning: int) -> str:
        """How the adapter writes it: some say "2x2"."""
        return next((w for w in self._binning_words() if _side(w) == binning), str(binning))

    def _dtype(self) -> str:
        size = int(self._core.get_bytes_per_pixel())
        if size not in _DTYPES:
            raise AbsentHere(f"pixels of {size} bytes are no use here; set a grey pixel type")
        return _DTYPES[size]


@contextlib.contextmanager
def _as(kind: type[Exception], what: str) -> Any:
    try:
        yield
    except (AbsentHere, RefusedHere):
        raise
    except Exception as error:
        raise kind(f"{what}: {said(error)}") from None


def _side(word: str) -> int:
    return int(word.split("x")[0])


class _Lane:
    """Carries commands out one after the other, on a thread of its own."""

    def __init__(self, bridge: Bridge, say: Say) -> None:
        self._bridge = bridge
        self._say = say
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, command: dict[str, Any]) -> None:
        self._inbox.put(command)

    def _work(self) -> None:
        while True:
            self.answer(self._inbox.get())

    def answer(self, command: dict[str, Any]) -> None:
        number = command.pop("id")
        try:
            result = getattr(self._bridge, command.pop("do"))(**command)
        except RefusedHere as error:
            reply = {"refused": str(error)}
        except AbsentHere as error:
            reply = {"absent": str(error)}
        except Exception as error:
            reply = {"failed": said(error)}
        else:
            reply = {"is": result}
        self._say({"id": number, **reply})


def main() -> None:
    """Serve until standard input ends or the program says to leave; never returns."""
    # What pycromanager or an adapter prints must not get between the messages.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    # pyjavaz registers one for each image; this process ends without them.
    atexit.register = _forget  # type: ignore[assignment]
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        _send(replies, lock, message)

    bridge = Bridge(say)
    lanes = {name: _Lane(bridge, say) for name in ("camera", "beam", "stage")}
    with open(0, encoding="utf-8", closefd=False) as commands:
        for line in commands:
            command = json.loads(line)
            if "free" in command:
                bridge.free(command["free"])
            else:
                lanes[_LANES.get(command["do"], "camera")].put(command)
    # Either it has left in order, or the program is gone: then the camera must not go on.
    last = threading.Thread(target=_last_will, args=(bridge,), daemon=True)
    last.start()
    last.join(_LAST_WILL_S)
    # Not by sys.exit: pyjavaz waits there for a server that may be gone.
    os._exit(0)


def _last_will(bridge: Bridge) -> None:
    with contextlib.suppress(Exception):
        bridge.leave()


def _forget(function: Any, *_: Any, **__: Any) -> Any:
    return function


def _send(replies: TextIO, lock: threading.Lock, message: dict[str, Any]) -> None:
    # The program may be gone: then nobody is told.
    with lock, contextlib.suppress(OSError, ValueError):
        replies.write(json.dumps(message) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
