from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from tem_live.session import Session
from tests.tem_live.fakes import FakeCamera

FIRST, LAST = 300, 1300


def test_nothing_is_kept_of_a_frame(
    tmp_path: Path, camera: FakeCamera, fake_session: Callable[..., Session]
) -> None:
    kept: list[int] = []

    def look(sequence: int) -> None:
        if sequence == FIRST:
            tracemalloc.start()
        elif sequence == LAST:
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0])

    camera.before_frame = look
    camera.shape = (16, 16)
    session = fake_session(restorer={"model": "gaussian"}, pipeline={"slots": 8})
    session.record(tmp_path / "run.zarr")
    try:
        session.start(frames=LAST + 1)
        assert session.wait(60.0)
    finally:
        tracemalloc.stop()
    assert session.stats().frames == LAST + 1
    # Kept are the latencies of the last 4096 frames, 32 bytes each, the ids of those recorded, and
    # what is under way. The metadata of each frame would be 0.4 MB.
    assert kept[0] < 150_000
