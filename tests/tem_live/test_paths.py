from __future__ import annotations

import os
from pathlib import Path

import pytest

from tem_live.errors import InputError
from tem_live.paths import check_target, numbered, written_whole


def test_numbers_go_on(tmp_path: Path):
    (tmp_path / "sim_001.zarr").mkdir()
    assert numbered(tmp_path, "sim", ".zarr") == tmp_path / "sim_002.zarr"


def test_a_file_and_nothing_are_targets_and_the_folder_is_made(tmp_path: Path):
    (tmp_path / "old").write_text("old")
    for name in ("old", "new", "a/b/new"):
        assert check_target(tmp_path / name) == tmp_path / name
    assert (tmp_path / "a/b").is_dir()
    assert (tmp_path / "old").read_text() == "old"


def test_what_is_no_file_is_no_target(tmp_path: Path):
    (tmp_path / "file").write_text("")
    targets = [tmp_path, Path(), tmp_path / "file/x", tmp_path / ("x" * 300)]
    if hasattr(os, "mkfifo"):
        # As a device: replaced by a file it would be gone.
        os.mkfifo(tmp_path / "fifo")
        targets.append(tmp_path / "fifo")
    for target in targets:
        with pytest.raises(InputError, match=r"is not a file|cannot be written"):
            check_target(target)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    with written_whole(path) as part:
        part.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(OSError, match="full"), written_whole(path) as part:  # noqa: PT012
        part.write_text("half of the sec")
        raise OSError("the disk is full")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path], "what was written of it takes no room"
