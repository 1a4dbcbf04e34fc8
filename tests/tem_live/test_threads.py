from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading

import pytest

from tem_live.threads import arithmetic_on, stand_back, switch_quickly

CODE = (
    "import os; from tem_live.threads import let_threads_sleep; {before}; let_threads_sleep(); "
    "print(os.environ.get('OMP_WAIT_POLICY'))"
)


def policy(before: str = "pass", **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(before=before)],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def test_threads_sleep_unless_the_user_chose_or_torch_is_loaded():
    assert policy() == "PASSIVE"
    assert policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
    assert policy(before="import torch") == "None"


@pytest.mark.parametrize(("command", "expected"), [("train", "None"), ("run", "PASSIVE")])
def test_only_a_training_does_not_have_its_threads_sleep(command: str, expected: str) -> None:
    code = (
        f"import os, sys; sys.argv = ['tem-live', {command!r}, '--help']\n"
        "from tem_live.cli.program import main\n"
        "try: main()\n"
        "except SystemExit: print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    clean = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == expected


def test_python_threads_take_turns_quickly():
    before = sys.getswitchinterval()
    try:
        switch_quickly()
        assert sys.getswitchinterval() == pytest.approx(5e-4)
    finally:
        sys.setswitchinterval(before)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have nice values on Linux alone")
def test_only_the_thread_that_asks_stands_back():
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    mine, seen = nice(), []

    def work() -> None:
        stand_back()
        seen.append(nice())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [min(mine + 5, 19)]
    assert nice() == mine


FAULTS = """
import resource, sys
import numpy as np
from tem_live.threads import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def frame():
    planes = [np.ones(int(sys.argv[2]), np.float32) for _ in range(3)]
    return sum(float(plane[0]) for plane in planes)
frame(), frame()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    frame()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="of the GNU C library alone")
@pytest.mark.parametrize("pixels", [1 << 20, 1 << 24])
def test_memory_of_one_frame_is_kept_for_the_next(pixels):
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how, str(pixels)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 100 < faults("leave")


RESIDENT = """
import os
import numpy as np
from tem_live.threads import keep_memory, return_memory
keep_memory()
def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
planes = [np.ones(1 << 22, np.float32) for _ in range(10)]
after = np.ones(1 << 10)
del planes
kept = resident_mb()
return_memory()
print(kept - resident_mb())
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="of the GNU C library alone")
def test_memory_that_was_kept_is_returned_from_beneath_what_is_used():
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) > 150.0


HEAPS = """
import ctypes, sys, threading
import numpy as np
from tem_live.threads import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
meet = threading.Barrier(4)
def work():
    meet.wait()
    np.ones(1 << 20, np.float32)
    meet.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="of the GNU C library alone")
def test_threads_share_one_heap(tmp_path):
    def heaps(how: str) -> int:
        out = tmp_path / how
        subprocess.run([sys.executable, "-c", HEAPS, how, str(out)], check=True)
        return out.read_text().count("<heap ")

    assert heaps("keep") == 1 < heaps("leave")


LATER = """
import resource, sys, threading
import numpy as np
from tem_live.threads import keep_memory, share_one_heap
if sys.argv[1] == "shared":
    share_one_heap()
def in_threads(work, count=4):
    meet = threading.Barrier(count)
    def run():
        meet.wait()
        work()
        meet.wait()
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
in_threads(lambda: bytearray(1 << 10))
keep_memory()
found = []
def frames():
    def frame():
        return float(np.ones(1 << 24, np.float32)[0])
    frame(), frame()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(5):
        frame()
    found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
for _ in range(4):
    in_threads(frames, 1)
print(max(found))
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="of the GNU C library alone")
def test_threads_that_were_there_before_leave_no_heaps_for_those_to_come():
    def faults(how: str) -> int:
        command = [sys.executable, "-c", LATER, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("shared") < 100 < faults("own")


def test_arithmetic_is_on_so_many_cores_for_a_while():
    import torch

    before = torch.get_num_threads()
    other = before + 1
    with arithmetic_on(other):
        assert torch.get_num_threads() == other
        with arithmetic_on(None):
            assert torch.get_num_threads() == other
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="it failed"), arithmetic_on(other):
        raise ValueError("it failed")
    assert torch.get_num_threads() == before
