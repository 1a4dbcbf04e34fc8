from __future__ import annotations

import platform
import subprocess
import sys
import threading
from unittest.mock import MagicMock

import numpy as np
import pytest

from tem_live.errors import InputError, ModelError
from tem_live.frames import FrameRing, NumpyBackend, open_backend

UINT16 = np.dtype(np.uint16)


def make_ring(slots: int = 3) -> FrameRing:
    return FrameRing(NumpyBackend(), slots, (8, 12), UINT16)


def test_slots_are_given_until_none_is_left():
    ring = make_ring(2)
    first, second = ring.acquire(), ring.acquire()
    assert first is not None
    assert second is not None
    assert first is not second
    assert ring.acquire() is None
    ring.release(first)
    assert ring.acquire() is first


def test_more_than_the_machine_has_is_told_in_one_line():
    with pytest.raises(InputError, match=r"take .* GB, more than there is; lower pipeline\.slots"):
        FrameRing(NumpyBackend(), 1 << 20, (8192, 8192), UINT16)


PAGES = """
import resource
import numpy as np
from tem_live.frames import FrameRing, NumpyBackend
ring = FrameRing(NumpyBackend(), 8, (512, 512), np.dtype(np.uint16))
slots = [ring.acquire() for _ in range(8)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for slot in slots:
    for plane in (slot.host, slot.electrons, slot.restored):
        plane.fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="counts its page faults")
def test_memory_of_all_slots_is_there_before_the_first_frame():
    command = [sys.executable, "-c", PAGES]
    faults = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # 5120 pages; a ring that got them as they are needed would grow with the longest wait.
    assert faults < 100


RETURNED = """
from pathlib import Path
import numpy as np
from tem_live.frames import FrameRing, NumpyBackend
def resident_MB():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) // 1024
backend = NumpyBackend()
before = resident_MB()
ring = FrameRing(backend, 24, (1024, 1024), np.dtype(np.uint16))
full = resident_MB()
del ring
print(full - before, resident_MB() - before)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="reads what Linux tells of memory")
def test_memory_goes_back_with_the_ring():
    command = [sys.executable, "-c", RETURNED]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    taken_MB, left_MB = map(int, told.split())
    assert taken_MB >= 239
    assert left_MB < 20


def test_slot_is_free_only_when_the_last_holder_lets_go():
    ring = make_ring(1)
    slot = ring.acquire()
    assert slot is not None
    ring.retain(slot)
    ring.release(slot)
    assert ring.free == 0
    ring.release(slot)
    assert ring.free == 1


def test_releasing_too_often_is_a_bug_that_shows():
    ring = make_ring(1)
    slot = ring.acquire()
    assert slot is not None
    ring.release(slot)
    with pytest.raises(ValueError, match="more often"):
        ring.release(slot)
    with pytest.raises(ValueError, match="free slot"):
        ring.retain(slot)


def test_acquire_waits_for_a_slot_that_becomes_free():
    ring = make_ring(1)
    slot = ring.acquire()
    assert slot is not None
    threading.Timer(0.05, ring.release, [slot]).start()
    assert ring.acquire(timeout_s=5.0) is slot


def test_torch_sees_the_memory_of_the_planes():
    slot = make_ring().acquire()
    assert slot is not None
    slot.electrons[:] = 3.0
    slot.torch_restored.copy_(slot.torch_electrons * 2)
    assert (slot.restored == 6.0).all()
    assert slot.torch_electrons.data_ptr() == slot.electrons.ctypes.data


def test_on_the_cpu_host_and_raw_are_one_array():
    slot = make_ring().acquire()
    assert slot is not None
    assert slot.host is slot.raw


def test_cuda_without_cuda_is_refused_in_one_line():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ModelError, match="cuda") as caught:
        open_backend("cuda")
    assert "\n" not in str(caught.value)


def test_another_gpu_than_the_first_is_refused_and_the_way_told():
    with pytest.raises(ModelError, match="CUDA_VISIBLE_DEVICES=1"):
        open_backend("cuda:1")


def test_on_the_cpu_a_plane_is_on_the_host():
    backend = NumpyBackend()
    plane = backend.zeros((8, 12))
    assert backend.on_host(plane) is plane
    assert not np.shares_memory(backend.download(plane), plane)


@pytest.mark.gpu
def test_what_is_shown_of_a_frame_on_the_gpu_is_that_frame():
    pytest.importorskip("cupy")
    from tem_live.device_frame import DeviceFrame

    backend = open_backend("cuda")
    ring = FrameRing(backend, 2, (1024, 2048), UINT16)
    slot = ring.acquire()
    assert slot is not None
    random = np.random.default_rng(0)
    for _ in range(10):
        slot.host[:] = random.poisson(5.0, slot.host.shape)
        backend.upload(slot.host, slot.raw)
        with backend.compute():
            backend.xp.multiply(slot.raw, backend.xp.float32(0.5), out=slot.electrons)
            slot.torch_restored.copy_(slot.torch_electrons * 2)
        backend.finish()
        slot.is_restored = True
        frame = DeviceFrame.copy_of(slot, backend, MagicMock())
        expected = slot.host.astype(np.float32)
        # The slot's memory is the next frame's while this one is still looked at.
        with backend.compute():
            slot.electrons.fill(-1.0)
            slot.torch_restored.fill_(-1.0)
        assert frame.restored is not None
        np.testing.assert_array_equal(frame.electrons.part(), expected / 2)
        means = expected.reshape(256, 4, 512, 4).mean(axis=(1, 3))
        np.testing.assert_allclose(frame.restored.part(factor=4), means, rtol=1e-5)
        part = frame.restored.part(slice(100, 300), slice(7, 400))
        np.testing.assert_array_equal(part, expected[100:300, 7:400])
        assert frame.electrons.at(1000, 2001) == expected[1000, 2001] / 2


@pytest.mark.gpu
def test_planes_on_the_gpu_are_shared_with_torch_and_uploads_are_ordered():
    pytest.importorskip("cupy")
    backend = open_backend("cuda")
    ring = FrameRing(backend, 4, (512, 512), UINT16)
    for value in range(20):
        slot = ring.acquire()
        assert slot is not None
        slot.host[:] = value
        backend.upload(slot.host, slot.raw)
        with backend.compute():
            backend.xp.multiply(slot.raw, backend.xp.float32(2), out=slot.electrons)
            slot.torch_restored.copy_(slot.torch_electrons)
        backend.finish()
        assert (backend.download(slot.restored) == 2 * value).all()
        ring.release(slot)
