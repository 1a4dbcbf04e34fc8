"""What is reached of what the machine can do."""

import mmap

import pytest

from tem_live import bench_limits
from tem_live.models.macs import Work


class Restorer:
    precision = "float16"

    def __init__(self, work):
        self._work = work

    def work(self, shape):
        assert shape == (512, 512)
        return self._work


LIMITS = bench_limits.Limits(gmac_s=100.0, copy_GB_s=10.0, upload_GB_s=None)


@pytest.mark.parametrize(
    ("work", "fraction"),
    [
        # 50 GMAC/s of 100; a fifth of the bytes.
        (Work(macs=10**9, planes=2 * 10**7, weights=0), 0.5),
        # 2 bytes a number, 1e9 bytes a frame: all of half of the rate.
        (Work(macs=10**6, planes=9 * 10**7, weights=10**7), 1.0),
    ],
)
def test_the_slower_of_products_and_bytes_bounds_the_rate(work, fraction):
    found = bench_limits.roofline_fraction(Restorer(work), (512, 512), 50.0, LIMITS)
    assert found == pytest.approx(fraction)


def test_a_restorer_without_a_network_has_no_roofline():
    assert bench_limits.roofline_fraction(Restorer(None), (512, 512), 50.0, LIMITS) is None


def test_stages_are_held_against_a_copy():
    stages = {"calibrate": 1.2, "upload": 1e-4, "download": 0.8, "restore": 30.0}
    found = bench_limits.copy_fractions(stages, 10**6, LIMITS)
    assert found == {
        "calibrate": pytest.approx(0.5),
        "upload": None,
        "download": pytest.approx(1.0),
    }
    gpu = bench_limits.copy_fractions(stages, 10**6, LIMITS._replace(upload_GB_s=20.0))
    assert gpu["upload"] == pytest.approx(1000.0)
    assert gpu["download"] == pytest.approx(0.25)


def test_limits_are_measured(monkeypatch):
    monkeypatch.setattr(bench_limits, "_BYTES", 1 << 20)
    monkeypatch.setattr(bench_limits, "REPEATS", 2)
    found = bench_limits.machine_limits("cpu")
    assert found.gmac_s > 0.0
    assert found.copy_GB_s > 0.0
    assert found.upload_GB_s is None


def test_memory_grows_by_what_is_taken():
    before = bench_limits.resident_MB()
    # From the system: the allocator may have kept as much from tests before.
    with mmap.mmap(-1, 64 << 20) as taken:
        taken.write(bytes(1) * len(taken))
        assert bench_limits.resident_MB() - before > 32.0
