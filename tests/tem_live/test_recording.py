from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tem_live import image_chunks
from tem_live import recording as module
from tem_live.errors import InputError, RecordingError
from tem_live.recording import Recorder, read_recording
from tem_live.recovery import recover

RNG = np.random.default_rng(11)
RAW = RNG.poisson(40, (12, 20, 24)).astype(np.uint16)
RESTORED = (RAW / 3.0).astype(np.float32)
META = {"exposure_s": 0.1, "drift_px": (0.5, float("nan")), "raw": {"gain": np.float32(2)}}


def started(path: Path, **attributes: Any) -> Recorder:
    recorder = Recorder(path, attributes)
    recorder.start((20, 24), np.uint16, 0.25, 0.1)
    return recorder


def written(path: Path, frames: int = 5) -> Recorder:
    """A recorder that wrote some frames, of which each second is restored, and is still open."""
    recorder = started(path)
    for number in range(frames):
        recorder.write_raw(100 + number, RAW[number], META)
        if number % 2:
            recorder.write_restored(100 + number, RESTORED[number])
    return recorder


# ----------------------------------------------------------------------------------------- writing


def test_plain_zarr_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a" / "run.zarr"
    with started(path, profile={"name": "sim"}, program="tem_live 0.1.0") as recorder:
        for number, raw in enumerate(RAW):
            recorder.write_raw(7 + number, raw, META)
            if number != 4:
                recorder.write_restored(7 + number, RESTORED[number])
        assert recorder.frames == 12

    root = zarr.open_group(path, mode="r")
    assert sorted(root) == ["raw", "restored"]  # listing it warns of nothing: warnings are errors
    np.testing.assert_array_equal(root["raw/0"][:], RAW)
    assert root["raw/0"].chunks == (1, 20, 24)
    skipped = np.isnan(root["restored/0"][:]).all(axis=(1, 2))
    assert np.flatnonzero(skipped).tolist() == [4]
    np.testing.assert_array_equal(root["restored/0"][5], RESTORED[5])
    assert root.attrs["complete"] is True
    assert root.attrs["frames"] == 12
    assert root.attrs["profile"] == {"name": "sim"}
    assert "started" in root.attrs


def test_images_are_ome_ngff_with_units(tmp_path: Path) -> None:
    with written(tmp_path / "run.zarr"):
        pass
    for name in ("raw", "restored"):
        ome = zarr.open_group(tmp_path / "run.zarr" / name, mode="r").attrs["ome"]
        assert ome["version"] == "0.5"
        scales = ome["multiscales"][0]
        assert [axis["name"] for axis in scales["axes"]] == ["t", "y", "x"]
        assert [axis.get("unit") for axis in scales["axes"]] == [
            "second",
            "nanometer",
            "nanometer",
        ]
        assert scales["datasets"] == [
            {
                "path": "0",
                "coordinateTransformations": [{"type": "scale", "scale": [0.1, 0.25, 0.25]}],
            }
        ]


def test_an_unknown_pixel_size_has_no_unit(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run.zarr", {}) as recorder:
        recorder.start((4, 4), "u1", None, 0.1)
        recorder.write_raw(0, np.zeros((4, 4), np.uint8), {})
    assert read_recording(tmp_path / "run.zarr").segments[0].pixel_size_nm is None


def test_metadata_is_strict_json_a_line_a_frame(tmp_path: Path) -> None:
    with written(tmp_path / "run.zarr") as recorder:
        # On disk at once, not at the end.
        lines = (recorder.path / "raw/0/frames.jsonl").read_text().splitlines()
    assert len(lines) == 5

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    first = json.loads(lines[0], parse_constant=refuse)
    assert first == {
        "index": 0,
        "frame_id": 100,
        "exposure_s": 0.1,
        "drift_px": [0.5, None],
        "raw": {"gain": 2.0},
    }


def test_read_recording(tmp_path: Path) -> None:
    with written(tmp_path / "run.zarr"):
        pass
    recording = read_recording(tmp_path / "run.zarr")
    segment = recording.segments[0]
    assert recording.complete
    assert recording.frames == 5
    assert [line["frame_id"] for line in segment.frames] == [100, 101, 102, 103, 104]
    assert (segment.pixel_size_nm, segment.frame_interval_s) == (0.25, 0.1)
    np.testing.assert_array_equal(segment.raw[3], RAW[3])
    assert segment.restored is not None
    np.testing.assert_array_equal(segment.restored[3], RESTORED[3])


def test_other_frames_begin_another_segment(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    binned = RAW[:, ::2, ::2].astype(np.int32)
    with started(path) as recorder:
        recorder.write_raw(0, RAW[0], {})
        recorder.start((20, 24), np.uint16, 0.25, 0.1)  # nothing changed: no new segment
        recorder.write_raw(1, RAW[1], {})
        recorder.start((10, 12), np.int32, 0.5, 0.1)
        recorder.write_raw(2, binned[2], {})
        recorder.write_restored(1, RESTORED[1])  # late, of the segment before
        recorder.write_restored(2, RESTORED[2, ::2, ::2])
    root = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(root["raw/0"][:], RAW[:2])
    np.testing.assert_array_equal(root["restored/0"][1], RESTORED[1])
    np.testing.assert_array_equal(root["segment_1/raw/0"][0], binned[2])
    np.testing.assert_array_equal(root["segment_1/restored/0"][0], RESTORED[2, ::2, ::2])
    recording = read_recording(path)
    assert [part.pixel_size_nm for part in recording.segments] == [0.25, 0.5]
    assert recording.frames == 3


def test_arrays_grow_beyond_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_chunks, "_BLOCK", 3)
    with written(tmp_path / "run.zarr", 12):
        pass
    root = zarr.open_group(tmp_path / "run.zarr", mode="r")
    np.testing.assert_array_equal(root["raw/0"][:], RAW)
    assert root["restored/0"].shape == RAW.shape


@pytest.mark.parametrize("kind", ["u1", ">u2", "<i2", "i4", "u4", "f4", "f8"])
def test_types_and_views(tmp_path: Path, kind: str) -> None:
    frame = RAW[0].astype(kind)[::2, ::-1]
    with Recorder(tmp_path / "run.zarr", {}) as recorder:
        recorder.start(frame.shape, frame.dtype, None, 1.0)
        recorder.write_raw(0, frame, {})
    found = zarr.open_group(tmp_path / "run.zarr", mode="r")["raw/0"]
    assert found.dtype == np.dtype(kind).newbyteorder("<")
    np.testing.assert_array_equal(found[0], frame)


def test_without_restored_frames_there_is_no_restored_image(tmp_path: Path) -> None:
    with started(tmp_path / "run.zarr") as recorder:
        recorder.write_raw(0, RAW[0], {})
    assert list(zarr.open_group(tmp_path / "run.zarr", mode="r")) == ["raw"]


def test_a_pair_is_never_split(tmp_path: Path) -> None:
    with started(tmp_path / "run.zarr") as recorder:
        recorder.write_restored(3, RESTORED[3])  # its raw frame was before the recording
        recorder.write_raw(4, RAW[4], {})
    assert list(zarr.open_group(tmp_path / "run.zarr", mode="r")) == ["raw"]


def test_a_recording_without_frames(tmp_path: Path) -> None:
    Recorder(tmp_path / "run.zarr", {}).close()
    assert read_recording(tmp_path / "run.zarr").frames == 0
    assert recover(tmp_path / "run.zarr").complete


@pytest.mark.parametrize("what", ["folder", "file"])
def test_nothing_is_overwritten(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run.zarr"
    path.mkdir() if what == "folder" else path.write_text("mine")
    with pytest.raises(InputError, match="exists and is not overwritten"):
        Recorder(path, {})


def test_no_folder_can_be_made_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        Recorder(tmp_path / "file" / "run.zarr", {})


def test_misuse_is_told(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.zarr", {})
    with pytest.raises(RecordingError, match="call start"):
        recorder.write_raw(0, RAW[0], {})
    with pytest.raises(InputError, match="complex128"):
        recorder.start((4, 4), complex, None, 1.0)
    recorder.start((4, 4), np.uint16, None, 1.0)
    with pytest.raises(RecordingError, match="announced"):
        recorder.write_raw(0, RAW[0], {})
    recorder.close()
    recorder.close()
    with pytest.raises(RecordingError, match="is closed"):
        recorder.write_raw(0, RAW[0, :4, :4], {})


# ------------------------------------------------------------------------------------ broken disks


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk full"), (errno.EIO, "the disk failed")]
)
@pytest.mark.parametrize("where", ["raw", "restored", "lines"])
def test_a_broken_disk_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, words: str
) -> None:
    path = tmp_path / "run.zarr"
    recorder = written(path, 5)

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    def use() -> None:
        if where == "restored":
            recorder.write_restored(104, RESTORED[4])
        else:
            recorder.write_raw(105, RAW[5], META)

    with monkeypatch.context() as broken:
        if where == "lines":
            broken.setattr(module._Segment, "append", fail)
        else:
            broken.setattr(image_chunks, "write_whole", fail)
        with pytest.raises(RecordingError) as error:
            use()
    message = str(error.value)
    assert message.startswith(f"{words}")
    assert f"5 frames are kept in {path}" in message
    assert "\n" not in message
    assert error.value.exit_code == 3
    with pytest.raises(RecordingError, match="has failed"):
        recorder.write_raw(106, RAW[6], META)
    recorder.close()

    root = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(root["raw/0"][:], RAW[:5])
    assert root.attrs["complete"] is False
    report = recover(path)
    assert (report.frames, report.restored, report.complete) == (5, 2, False)


@pytest.mark.parametrize("left", ["nothing", "chunks", "all but the lines"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps files that are open")
def test_a_recording_that_is_removed_is_told_and_does_not_come_back_in_parts(
    tmp_path: Path, left: str
) -> None:
    path = tmp_path / "run.zarr"
    recorder = written(path)
    if left == "nothing":
        shutil.rmtree(path)
    elif left == "chunks":
        (path / "raw/0/zarr.json").unlink()
    else:
        (path / "raw/0/frames.jsonl").unlink()
    before = sorted(path.rglob("*"))
    with pytest.raises(RecordingError, match="was removed or moved while it was written"):
        recorder.write_raw(200, RAW[5], META)
    recorder.close()
    assert sorted(path.rglob("*")) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps files that are open")
def test_a_recording_that_was_removed_is_not_closed_as_complete(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    recorder = written(path)
    shutil.rmtree(path)
    with pytest.raises(RecordingError, match="was removed or moved"):
        recorder.close()
    assert not path.exists()


def test_a_disk_that_is_full_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(RecordingError, match="disk full"):
        Recorder(tmp_path / "run.zarr", {})


LIMITED = """
import resource, sys
import numpy as np
from tem_live.errors import RecordingError
from tem_live.recording import Recorder

recorder = Recorder(sys.argv[1], {})
recorder.start((16, 16), np.uint16, None, 0.1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    for number in range(1000):
        recorder.write_raw(number, np.full((16, 16), number, np.uint16), {"text": "x" * 150})
except RecordingError as error:
    recorder.close()
    print(number)
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for the size of files")
def test_a_file_system_that_refuses_amid_a_line(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    number, message = done.stdout.splitlines()
    frames = int(number)
    assert 50 < frames < 150
    assert f"disk full: {frames} frames are kept in {path}" in message
    root = zarr.open_group(path, mode="r")
    assert root["raw/0"][:, 3, 3].tolist() == list(range(frames))
    assert recover(path).frames == frames
    assert [line["index"] for line in read_recording(path).segments[0].frames] == list(
        range(frames)
    )


# --------------------------------------------------------------------------------- killed programs

ENDLESS = """
import sys
import numpy as np
from tem_live.recording import Recorder

recorder = Recorder(sys.argv[1], {"profile": {"name": "killed"}})
recorder.start((64, 48), np.uint16, 0.5, 0.01)
print("ready", flush=True)
for number in range(10**9):
    recorder.write_raw(number, np.full((64, 48), number % 65536, np.uint16), {"exposure_s": 0.01})
    if number % 3:
        recorder.write_restored(number, np.full((64, 48), number, np.float32))
"""


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.4])
def test_a_killed_program_loses_the_frame_at_hand_at_most(tmp_path: Path, after_s: float) -> None:
    path = tmp_path / "run.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        time.sleep(after_s)
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()
    lines = (path / "raw/0/frames.jsonl").read_bytes().count(b"\n")

    report = recover(path)
    assert not report.complete
    assert report.frames == lines
    assert report.path == path

    root = zarr.open_group(path, mode="r")
    assert root["raw/0"].shape == (lines, 64, 48)
    assert root["raw/0"][:, 5, 5].tolist() == [number % 65536 for number in range(lines)]
    if lines > 2:
        restored = root["restored/0"][:, 5, 5]
        expected = np.where(np.arange(lines) % 3, np.arange(lines), np.nan)
        # The last one may have been on its way.
        np.testing.assert_array_equal(restored[:-1], expected[:-1])
        assert report.restored == np.isfinite(restored).sum()
    assert not list(path.rglob("*.part"))
    assert root.attrs["profile"] == {"name": "killed"}

    again = recover(path)
    assert (again.frames, again.complete) == (lines, False)


def test_a_recording_in_use_is_not_mended(tmp_path: Path) -> None:
    recorder = written(tmp_path / "run.zarr")
    with pytest.raises(InputError, match="still being written"):
        recover(tmp_path / "run.zarr")
    recorder.close()
    assert recover(tmp_path / "run.zarr").complete


def abandoned(path: Path, frames: int = 6) -> None:
    """A recording whose program is gone, as a kill leaves it."""
    recorder = written(path, frames)
    for segment in recorder._segments:
        segment._lines.close()


def chunk(path: Path, name: str, index: int) -> Path:
    return path / name / "0" / "c" / str(index) / "0" / "0"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda file: file.write_bytes(b""), lambda file: file.unlink()]
)
def test_a_torn_last_frame_is_dropped(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    path = tmp_path / "run.zarr"
    abandoned(path)
    damage(chunk(path, "raw", 5))
    report = recover(path)
    assert (report.frames, report.restored, report.complete) == (5, 2, False)
    assert len(report.lost) == 1
    root = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(root["raw/0"][:], RAW[:5])
    assert root["restored/0"].shape[0] == 5
    assert not chunk(path, "restored", 5).exists()
    assert len(read_recording(path).segments[0].frames) == 5


def test_a_damaged_frame_amid_whole_ones_keeps_its_place(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    written(path, 6).close()
    flip(chunk(path, "raw", 2))
    report = recover(path)
    assert (report.frames, report.complete) == (5, False)
    assert "1 raw frames" in report.lost[0]
    root = zarr.open_group(path, mode="r")
    assert root["raw/0"].shape[0] == 6
    assert not root["raw/0"][2].any()
    np.testing.assert_array_equal(root["raw/0"][3:], RAW[3:6])
    assert [line.get("lost", False) for line in read_recording(path).segments[0].frames] == [
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert (recover(path).frames, recover(path).lost) == (5, report.lost[1:])


def test_a_damaged_restored_frame_costs_no_raw_one(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    written(path, 6).close()
    flip(chunk(path, "restored", 3))
    report = recover(path)
    assert (report.frames, report.restored, report.complete) == (6, 2, False)
    root = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(root["raw/0"][:], RAW[:6])
    assert np.isnan(root["restored/0"][3]).all()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_metadata_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("cut") / "run.zarr"
    abandoned(path)
    lines = path / "raw/0/frames.jsonl"
    content = lines.read_bytes()
    left = content[: data.draw(st.integers(0, len(content)))]
    lines.write_bytes(left)
    # Two things may be said of the last one: it lacks the newline only, or is torn.
    whole = left.count(b"\n") + (left != b"" and content[len(left) : len(left) + 1] == b"\n")
    assert recover(path).frames == whole
    root = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(root["raw/0"][:], RAW[:whole])


def test_one_that_is_in_order_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    written(path).close()
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    report = recover(path)
    assert (report.frames, report.restored, report.complete, report.lost) == (5, 2, True, ())
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def make_foreign(path: Path) -> None:
    zarr.create_group(path)


def make_garbage(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{")


@pytest.mark.parametrize(
    "make",
    [lambda path: None, Path.mkdir, lambda path: path.write_text("x"), make_foreign, make_garbage],
)
@pytest.mark.parametrize("use", [recover, read_recording])
def test_what_is_no_recording(
    tmp_path: Path, make: Callable[[Path], Any], use: Callable[[Path], Any]
) -> None:
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(InputError, match="thing") as error:
        use(path)
    assert "\n" not in str(error.value)


def test_no_name_of_a_frame_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interned = []

    def intern(text: str) -> str:
        interned.append(text)
        return text

    with Recorder(tmp_path / "run.zarr", {}) as recorder:
        recorder.start((16, 16), np.uint16, None, 0.05)
        recorder.write_raw(0, np.zeros((16, 16), np.uint16), {})
        recorder.write_restored(0, np.zeros((16, 16), np.float32))
        monkeypatch.setattr(sys, "intern", intern)
        for frame_id in range(1, 250):
            recorder.write_raw(frame_id, np.zeros((16, 16), np.uint16), {})
            recorder.write_restored(frame_id, np.zeros((16, 16), np.float32))
        monkeypatch.undo()
    assert len(set(interned)) < 100
