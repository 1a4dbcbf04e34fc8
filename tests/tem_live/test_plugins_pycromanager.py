"""Restored frames handed back to a Micro-Manager acquisition, with pycromanager's real one."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tem_live.errors import InputError
from tem_live.models import load_restorer
from tem_live.plugins import process_fn
from tem_live.plugins.image_processor import RestoringProcessor
from tests.drivers.servers.micromanager import free_port

pytest.importorskip("pymmcore", reason="pymmcore is not installed")
adapters = pytest.importorskip("mm_test_adapters", reason="no device adapters: mm-test-adapters")

FLUX = 20.0
OFFSET = 99.0
FRAMES = 3


@pytest.fixture(scope="module")
def core() -> Iterator[Any]:
    from pycromanager import Core, start_headless, stop_headless

    before = set(threading.enumerate())
    start_headless(str(adapters.device_adapter_path()), "MMConfig_demo.cfg", python_backend=True)
    core = Core()
    for name, value in {
        "PixelType": "16bit", "BitDepth": "16", "OnCameraCCDXSize": "96", "OnCameraCCDYSize": "64",
        "Mode": "Noise", "Photon Flux": str(FLUX),
    }.items():  # fmt: skip
        core.set_property("Camera", name, value)
    core.set_exposure(2.0)
    yield core
    stop_headless()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


@pytest.fixture(scope="module")
def restorer() -> Any:
    return load_restorer("fast", "cpu")


def acquire(processor: RestoringProcessor, attach: bool = False, frames: int = FRAMES) -> Any:
    from pycromanager import Acquisition, multi_d_acquisition_events

    with Acquisition(image_process_fn=processor) as acquisition:
        if attach:
            processor.attach(acquisition)
        acquisition.acquire(multi_d_acquisition_events(num_time_points=frames))
    return acquisition.get_dataset()


class Spy(RestoringProcessor):
    """Keeps the images that it was given."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given: dict[int, npt.NDArray[Any]] = {}

    def __call__(self, image: npt.NDArray[Any], metadata: dict[str, Any]) -> Any:
        self.given[metadata["Axes"]["time"]] = image.copy()
        return super().__call__(image, metadata)


def test_an_acquisition_gets_restored_images_with_its_metadata(core: Any, restorer: Any) -> None:
    spy = Spy(restorer, counts_per_electron=1.0, offset_counts=OFFSET)
    dataset = acquire(spy)
    for time in range(FRAMES):
        image = dataset.read_image(time=time)
        told = dataset.read_metadata(time=time)
        electrons = spy.given[time].astype(np.float32) - OFFSET
        expected = np.rint(100 * restorer.restore(electrons))
        assert image.dtype == np.uint16
        assert np.array_equal(image, expected)
        assert np.std(image / 100) < 0.5 * np.std(electrons)
        assert told["tem_live-restored"] is True
        assert told["tem_live-model"] == "fast"
        assert told["tem_live-counts_per_electron"] == 100
        assert told["tem_live-dose_e_per_px"] == pytest.approx(FLUX * 2.0, rel=0.05)
        # What Micro-Manager says is kept.
        assert told["Axes"]["time"] == time
        assert told["Camera"] == "Camera"


def test_raw_and_restored_are_channels(core: Any, restorer: Any) -> None:
    spy = Spy(restorer, counts_per_electron=1.0, offset_counts=OFFSET, output="both")
    dataset = acquire(spy, attach=True)
    for time in range(FRAMES):
        raw = dataset.read_image(time=time, channel="raw")
        assert np.array_equal(raw, spy.given[time])
        restored = dataset.read_image(time=time, channel="restored")
        assert restored.mean() / 100 == pytest.approx(raw.mean() - OFFSET, rel=0.02)
        assert dataset.read_metadata(time=time, channel="raw")["tem_live-restored"] is False
        assert dataset.read_metadata(time=time, channel="restored")["tem_live-restored"] is True


def test_both_is_a_list_for_the_java_backend(restorer: Any) -> None:
    processor = RestoringProcessor(restorer, counts_per_electron=1.0, output="both")
    image = np.full((32, 32), 7, np.uint16)
    metadata = {"Axes": {"time": 0, "channel": "BF"}, "PixelType": "GRAY16"}
    raw, restored = processor(image, metadata)
    assert raw[0] is image
    assert raw[1]["Axes"] == {"time": 0, "channel": "BF raw"}
    assert restored[1]["Axes"] == {"time": 0, "channel": "BF restored"}
    assert restored[0].dtype == np.uint16
    assert metadata == {"Axes": {"time": 0, "channel": "BF"}, "PixelType": "GRAY16"}


class JavaAcquisition:
    """As much of pycromanager's acquisition as its own loop for the Java backend asks for."""

    def __init__(self) -> None:
        self._event_queue = None
        self.aborted: list[Exception] = []

    def _call_image_process_fn(self, image: Any, metadata: Any) -> Any:
        from pycromanager.acquisition.acquisition_superclass import Acquisition

        return Acquisition._call_image_process_fn(self, image, metadata)

    def abort(self, error: Exception) -> None:
        self.aborted.append(error)


def test_both_goes_through_the_loop_of_the_java_backend(restorer: Any) -> None:
    import zmq
    from pycromanager.acquisition.java_backend_acquisitions import _run_image_processor

    processor = RestoringProcessor(restorer, counts_per_electron=1.0, output="both")
    acquisition, connected = JavaAcquisition(), threading.Event()
    image = np.random.default_rng(1).poisson(20.0, (32, 48)).astype(np.uint16)
    metadata = {"Axes": {"time": 0}, "PixelType": "GRAY16", "Height": 32, "Width": 48}
    mark = b"\x01\x02\x03\x04"
    name = f"@{int.from_bytes(mark, sys.byteorder):x}"
    message = {"metadata": metadata, "pixels": {"type": "short-array", "value": name}}
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        port = push.bind_to_random_port("tcp://127.0.0.1")
        back = free_port()
        loop = threading.Thread(
            target=_run_image_processor,
            args=(acquisition, back, port, connected, processor, None, False),
        )
        loop.start()
        assert connected.wait(30)
        with context.socket(zmq.PULL) as pull:
            pull.setsockopt(zmq.RCVTIMEO, 30_000)
            pull.connect(f"tcp://127.0.0.1:{back}")
            push.send_multipart([json.dumps(message).encode(), mark, image.tobytes()])
            push.send_json({"special": "finished"})
            raw, restored, end = (pull.recv_multipart() for _ in range(3))
        loop.join(30)
    assert not acquisition.aborted
    assert json.loads(end[0]) == {"special": "finished"}
    assert raw[2] == image.tobytes()
    assert json.loads(raw[0])["metadata"]["Axes"] == {"time": 0, "channel": "raw"}
    told = json.loads(restored[0])["metadata"]
    assert told["Axes"] == {"time": 0, "channel": "restored"}
    assert told["tem_live-restored"] is True
    counts = np.frombuffer(restored[2], np.uint16)
    assert counts.mean() / 100 == pytest.approx(image.mean(), rel=0.02)


class Broken:
    name = "broken"

    def restore(self, counts: Any, out: Any = None) -> Any:
        raise RuntimeError("out of\nmemory")


def test_an_acquisition_loses_no_image_to_a_restorer_that_fails(core: Any) -> None:
    broken: Any = Broken()
    spy = Spy(broken, counts_per_electron=1.0)
    dataset = acquire(spy)
    for time in range(FRAMES):
        assert np.array_equal(dataset.read_image(time=time), spy.given[time])
        told = dataset.read_metadata(time=time)
        assert told["tem_live-restored"] is False
        assert told["tem_live-error"] == "out of memory"


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)], ids=["RGB", "float"]
)
def test_what_is_no_grey_image_passes(restorer: Any, image: npt.NDArray[Any]) -> None:
    result, told = RestoringProcessor(restorer, counts_per_electron=1.0)(image, {"Axes": {}})
    assert result is image
    assert told["tem_live-restored"] is False
    assert "grey" in told["tem_live-error"]


def test_counts_never_wrap(restorer: Any) -> None:
    bright = np.full((32, 32), 250, np.uint8)
    result, told = RestoringProcessor(
        restorer, counts_per_electron=1.0, output_counts_per_electron=4.0
    )(bright, {"Axes": {}})
    assert result.dtype == np.uint8
    assert result.min() == 255
    assert told["tem_live-counts_per_electron"] == 4.0


@pytest.mark.parametrize("gain", [0.0, -1.0, float("nan"), float("inf")])
def test_a_gain_that_is_none_is_refused(gain: float) -> None:
    with pytest.raises(InputError, match="counts_per_electron"):
        process_fn("fast", counts_per_electron=gain, device="cpu")
