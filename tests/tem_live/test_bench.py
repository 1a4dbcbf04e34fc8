"""The benches measure what they say; no speed is asserted."""

import json
import mmap
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from tem_live import bench, bench_limits, bench_trials
from tem_live.bench import _core_ms, _driver_ms, _page_faults, _torch_bytes
from tem_live.bench_scaling import Cost, cost_by_size, draw
from tem_live.frames import FrameRing, open_backend
from tem_live.profiles import load_profile
from tem_live.session import Session
from tests.tem_live.sims import square


def cost(size: int, ns_per_px: float) -> Cost:
    ms = ns_per_px * size**2 / 1e6
    stages = {"restore": ms, "calibrate": ms / 50, "analyse": ms / 100, "display": ms / 10}
    return {
        "size": size,
        "stages_ms": stages,
        "stages_cpu_ms": stages,
        "ns_per_px": ns_per_px,
        "cpu_ns_per_px": ns_per_px,
    }


def test_each_size_has_its_stages(monkeypatch):
    monkeypatch.setattr("tem_live.bench_scaling.LONGEST_S", 0.01)
    monkeypatch.setattr("tem_live.bench_scaling.TURNS", 2)
    found = cost_by_size([96, 64], "cpu", "gaussian")
    assert [row["size"] for row in found["costs"]] == [64, 96]
    for row in found["costs"]:
        assert set(row["stages_ms"]) == {"calibrate", "restore", "analyse", "display"}
        assert row["ns_per_px"] == pytest.approx(
            1e6 * row["stages_ms"]["restore"] / row["size"] ** 2, rel=0.05
        )
    assert found["left_out"] == {}


def test_sizes_are_compared_by_the_same_number_of_pixels(monkeypatch):
    repeats = set()

    def mean_ms(work, count):
        repeats.add(count)
        return 1.0, 1.0

    monkeypatch.setattr("tem_live.bench_scaling._mean_ms", mean_ms)
    monkeypatch.setattr("tem_live.bench_scaling.LEAST_PX", 128**2)
    cost_by_size([32, 64, 128], "cpu", "none")
    assert repeats == {1, 4, 16}


def test_what_would_take_too_long_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr("tem_live.bench_scaling.LONGEST_S", 0.01)
    monkeypatch.setattr("tem_live.bench_scaling.TURNS", 2)
    monkeypatch.setattr("tem_live.bench_scaling.SLOWEST_S", 1e-9)
    found = cost_by_size([64, 128], "cpu", "none")
    assert [row["size"] for row in found["costs"]] == [64]
    assert set(found["left_out"]) == {"128"}


def test_the_plot_has_a_line_for_each_stage(tmp_path):
    measured = {
        "model": "fast",
        "precision": "int8",
        "device": "cpu",
        "costs": [cost(256, 150.0), cost(512, 140.0), cost(1024, 300.0)],
    }
    root = ElementTree.parse(draw(measured, tmp_path / "new" / "cost.svg")).getroot()
    lines = [node for node in root.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 4
    heights = [float(pair.split(",")[1]) for pair in lines[0].get("points").split()]
    # More is higher up, where y is smaller.
    assert heights[1] > heights[0] > heights[2]


def test_names_of_lines_that_end_together_do_not_lie_on_one_another(tmp_path):
    measured = {"model": "fast", "precision": "int8", "device": "cpu", "costs": [cost(256, 150.0)]}
    for costs in measured["costs"]:
        costs["stages_cpu_ms"] = dict.fromkeys(costs["stages_ms"], 1.0)
    root = ElementTree.parse(draw(measured, tmp_path / "cost.svg")).getroot()
    names = [node for node in root.iter() if node.text in measured["costs"][0]["stages_ms"]]
    heights = sorted(float(node.get("y")) for node in names)
    assert len(heights) == 4
    assert min(b - a for a, b in pairwise(heights)) >= 12


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_fresh_memory_is_counted():
    def touch() -> None:
        # Straight from the system, which the allocator may not have to ask; in pages of 2 MiB
        # where there are such.
        with mmap.mmap(-1, 64 << 20) as memory:
            np.frombuffer(memory, np.uint8).max()

    fresh = _page_faults(touch)
    none = _page_faults(lambda: None)
    assert fresh is not None
    assert none is not None
    assert none + 10 < fresh


PROFILED = """
from tem_live.bench import _torch_bytes, silence_profiler
silence_profiler()
import torch
before = torch.ones(1000)
def work():
    global before
    before = torch.ones(2000)
print(_torch_bytes(work))
"""


def test_the_profiler_writes_nothing_of_its_own():
    command = [sys.executable, "-c", PROFILED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 8000
    assert done.stderr == ""


def test_bytes_of_torch_are_counted():
    import torch

    assert _torch_bytes(lambda: torch.ones(1000)) >= 4000
    assert _torch_bytes(lambda: None) == 0


def test_time_of_a_core_is_taken_in_turns(monkeypatch):
    class Counting:
        def __init__(self, name: str) -> None:
            self.name = name

        def restore(self, counts, out):
            turns.append(self.name)

    turns: list[str] = []
    monkeypatch.setattr("tem_live.bench.TURNS", 2)
    found = _core_ms({"a": Counting("a"), "b": Counting("b")}, 16)
    assert turns == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


def test_restorers_are_compared_in_one_run(monkeypatch):
    monkeypatch.setattr(bench_trials, "TRIAL_S", 0.2)
    monkeypatch.setattr(bench, "RESTORE_S", 0.05)
    monkeypatch.setattr(bench_limits, "REPEATS", 2)
    monkeypatch.setattr(bench, "TURNS", 1)
    monkeypatch.setattr(bench_limits, "_BYTES", 1 << 16)
    monkeypatch.setattr(bench, "SLOWEST_MS", 1e-6)
    seen = []
    first_ms = bench._first_ms
    monkeypatch.setattr(bench, "_first_ms", lambda *inputs: seen.append(None) or first_ms(*inputs))
    found = bench.compared(64, "cpu", ["gaussian", "none"])
    assert len(seen) == len(bench.PEERS)  # once, not once for each
    assert [each["model"] for each in found] == ["gaussian", "none"]
    for each in found:
        assert set(each["memory_MB"]) == {"began", "restored", "recorded"}
        assert set(each["peers_skipped"]) == set(bench.PEERS)
        assert set(each["peer_ratio"].values()) == {None}
        assert set(each["core_ms"]) == {each["model"]}
        assert each["roofline_fraction"] is None
        assert each["copy_fraction"]["upload"] is None
        assert each["copy_fraction"]["calibrate"] > 0.0
        assert each["ceiling_copy_GB_s"] > 0.0
        assert json.dumps(each)


def trial(restored_fps, held):
    return bench_trials.Trial(held, restored_fps, 1.0, 2.0, 0, "cpu")


@pytest.mark.parametrize(
    ("able_fps", "found_fps", "steps"),
    [
        (100.0, 20.0, [20.0]),
        # A little too fast: a small step. Far too fast: what came, or half.
        (19.0, 18.0, [20.0, 18.0]),
        (12.0, 11.88, [20.0, 13.2, 11.88]),
        (6.0, 5.94, [20.0, 10.0, 6.6, 5.94]),
        (0.01, None, [20.0, 10.0, 5.0, 2.5, 2.0]),
    ],
)
def test_the_highest_rate_is_found_in_few_trials(able_fps, found_fps, steps):
    tried = []

    def at(rate_fps):
        tried.append(rate_fps)
        return trial(min(able_fps, rate_fps), rate_fps <= able_fps)

    rate_fps, last = bench_trials.highest_rate(at, 20.0, 2.0)
    assert rate_fps == found_fps
    assert tried == pytest.approx(steps)
    assert last.held is (found_fps is not None)


def test_at_any_rate_a_frame_has_the_same_dose(monkeypatch):
    monkeypatch.setattr(bench_trials, "TRIAL_S", 0.2)
    doses = []

    class Noted(Session):
        def start(self, *given):
            doses.append(self.dose_rate * self.exposure_s)
            super().start(*given)

    profile = load_profile(
        "sim",
        ["camera.sensor_height_px=64", "camera.sensor_width_px=64", "restorer.model=gaussian"],
    )
    with Noted(profile) as session:
        rate_fps, found = bench_trials.end_to_end(session, 8.0)
    assert rate_fps is not None
    assert found.held
    # Once to warm up, at half of the rate.
    assert len(doses) >= 2
    assert doses == pytest.approx([5.0] * len(doses), rel=1e-3)


@pytest.mark.parametrize(
    ("restored", "restore_fps", "held"), [(8, 2.0, True), (8, 1.6, False), (6, 2.0, False)]
)
def test_a_rate_is_held_where_frames_do_not_queue_up(restored, restore_fps, held):
    figures = SimpleNamespace(
        frames=8, fps=2.0, restored=restored, restore_fps=restore_fps, dropped_raw=0,
        latency_ms_p50=1.0, latency_ms_p99=2.0,
    )  # fmt: skip
    session = SimpleNamespace(
        start=lambda *_: None, wait=lambda: None, stats=lambda: figures, model="fast",
        state=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    assert bench_trials._run(session, 2.0, 8, None).held is held


@pytest.mark.parametrize(("first_fps", "exposures_s"), [(0.01, [10.0]), (1e6, [2e-3, 1e-3])])
def test_a_rate_that_the_camera_has_not_is_not_asked_for(monkeypatch, first_fps, exposures_s):
    tried = []

    def run(session, rate_fps, frames, folder):
        tried.append(session.exposure_s)
        return trial(rate_fps, True)

    monkeypatch.setattr(bench_trials, "_run", run)
    with Session(load_profile("sim", {**square(64), "restorer.model": "none"})) as session:
        rate_fps, _ = bench_trials.end_to_end(session, first_fps)
    assert list(dict.fromkeys(tried)) == pytest.approx(exposures_s)
    assert rate_fps == pytest.approx(1.0 / exposures_s[-1])


def test_what_takes_long_is_repeated_less_often(monkeypatch):
    monkeypatch.setattr(bench_limits, "LONGEST_S", 0.0)
    calls = []
    bench_limits.median_ms(lambda: calls.append(None))
    assert len(calls) == 6


def test_the_driver_is_measured_with_electrons():
    profile = load_profile("sim", ["camera.sensor_height_px=64", "camera.sensor_width_px=64"])
    slot = FrameRing(open_backend("cpu"), 1, (64, 64), np.dtype(np.uint16)).acquire()
    assert _driver_ms(profile, slot) > 0.0
    # 100 counts are the offset; about 5 e-/px of 40 counts each come on top.
    assert slot.host.mean() > 150.0
