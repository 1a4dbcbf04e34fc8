from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tem_live.errors import InputError
from tem_live.files import open_movie
from tem_live.models import ModelCard
from tem_live.recording import Recorder
from tem_live.restore_files import restore_files

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
RNG = np.random.default_rng(8)
FRAMES = RNG.integers(100, 900, (3, 10, 14)).astype(np.uint16)


class Doubling:
    """Stands in for a restorer: what it made can be told from what it was given."""

    name = "doubling"

    def __init__(self) -> None:
        self.calls = 0

    def restore(self, counts: Any, out: Any = None) -> Any:
        assert counts.dtype == np.float32
        assert counts.ndim == 2
        self.calls += 1
        return counts * 2


class Breaking(Doubling):
    def restore(self, counts: Any, out: Any = None) -> Any:
        if self.calls == 1:
            raise InputError("the model broke")
        return super().restore(counts)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "movie.npy"
    path.parent.mkdir()
    np.save(path, FRAMES)
    return path


def frames_of(path: Path) -> Any:
    with open_movie(path) as movie:
        return np.stack([movie.frame(index) for index in range(len(movie))])


def own_metadata(path: Path) -> dict[str, Any]:
    with open_movie(path) as movie:
        found = movie.metadata.get("tem_live") or movie.metadata["attributes"]["tem_live"]
        assert isinstance(found, dict)
        return found


@pytest.mark.parametrize("name", ["out.tif", "out.tiff", "out.mrc", "out.npy", "out.zarr"])
def test_one_file_to_one_file(source: Path, tmp_path: Path, name: str) -> None:
    told: list[tuple[int, int, str]] = []
    (result,) = restore_files(
        [source],
        tmp_path / name,
        Doubling(),
        counts_per_electron=10.0,
        offset_counts=100.0,
        progress=lambda *what: told.append(what),
    )
    expected = (FRAMES - 100.0) / 10 * 2
    np.testing.assert_allclose(frames_of(tmp_path / name), expected, rtol=1e-6)
    assert result.destination == tmp_path / name
    assert (result.frames, result.model) == (3, "doubling")
    assert (result.counts_per_electron, result.gain_from) == (10.0, "given")
    assert result.offset_counts == 100.0
    assert result.notes == ()
    assert told == [(1, 3, "movie.npy"), (2, 3, "movie.npy"), (3, 3, "movie.npy")]
    own = own_metadata(tmp_path / name)
    assert own["model"] == "doubling"
    assert own["source"] == "movie.npy"
    assert own["counts_per_electron"] == 10.0
    assert own["original"] == {"format": "NumPy"}


def test_a_gain_that_nobody_knows_is_said_to_be_assumed(source: Path, tmp_path: Path) -> None:
    (result,) = restore_files([source], tmp_path / "out.npy", Doubling())
    assert (result.counts_per_electron, result.gain_from) == (1.0, "assumed")
    assert len(result.notes) == 1
    assert "--counts-per-electron" in result.notes[0]
    np.testing.assert_array_equal(frames_of(tmp_path / "out.npy"), FRAMES * 2.0)


@pytest.mark.parametrize(("counts_per_electron", "told"), [(10.0, False), (1e12, True)])
def test_a_dose_beyond_those_of_the_training_is_told(
    source: Path, tmp_path: Path, counts_per_electron: float, told: bool
) -> None:
    class Carded(Doubling):
        card = ModelCard(name="mine", title="", doses_e_per_px=(0.1, 1e4))

    (result,) = restore_files(
        [source], tmp_path / "out.npy", Carded(), counts_per_electron=counts_per_electron
    )
    assert ["0.1 to 10000 e-/px that mine was trained on" in note for note in result.notes] == (
        [True] if told else []
    )


def test_what_was_restored_is_in_electrons(source: Path, tmp_path: Path) -> None:
    restore_files([source], tmp_path / "once.tif", Doubling(), counts_per_electron=10.0)
    (result,) = restore_files([tmp_path / "once.tif"], tmp_path / "twice.tif", Doubling())
    assert (result.counts_per_electron, result.gain_from) == (1.0, "file")


def test_gain_and_offset_of_our_own_recording(tmp_path: Path) -> None:
    attributes = {"counts_per_electron": 20.0, "offset_counts": 100.0}
    with Recorder(tmp_path / "run.zarr", attributes) as recorder:
        recorder.start((10, 14), np.uint16, 0.3, 0.05)
        for number, frame in enumerate(FRAMES):
            recorder.write_raw(number, frame, {})
    (result,) = restore_files([tmp_path / "run.zarr"], tmp_path / "out.zarr", Doubling())
    assert (result.counts_per_electron, result.offset_counts) == (20.0, 100.0)
    assert (result.gain_from, result.pixel_size_nm) == ("file", 0.3)
    with open_movie(tmp_path / "out.zarr") as movie:
        assert (movie.pixel_size_nm, movie.frame_interval_s) == (0.3, 0.05)
        np.testing.assert_allclose(movie.frame(0), (FRAMES[0] - 100.0) / 10, rtol=1e-6)


def test_several_files_to_a_folder(source: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in" / "b.tif", FRAMES[0])
    tifffile.imwrite(tmp_path / "in" / "movie.tif", FRAMES[1])
    sources = [source, tmp_path / "in" / "b.tif", tmp_path / "in" / "movie.tif"]
    results = restore_files(sources, tmp_path / "out", Doubling())
    assert [result.source for result in results] == sources
    # Two sources are called "movie": their suffixes tell them apart.
    names = ["movie.npy.tif", "b.tif", "movie.tif.tif"]
    assert [result.destination for result in results] == [tmp_path / "out" / n for n in names]
    np.testing.assert_array_equal(frames_of(tmp_path / "out" / "b.tif")[0], FRAMES[0] * 2.0)
    with tifffile.TiffFile(tmp_path / "out" / "movie.npy.tif") as file:
        assert file.is_ome


def test_one_file_to_a_folder_that_exists(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (result,) = restore_files([source], tmp_path / "out", Doubling())
    assert result.destination == tmp_path / "out" / "movie.tif"


def test_a_folder_as_one_movie(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(FRAMES):
        tifffile.imwrite(tmp_path / "in" / f"{number}.tif", frame)
    (tmp_path / "in" / "x.tif").write_bytes(b"broken")
    (result,) = restore_files([tmp_path / "in"], tmp_path / "out.tif", Doubling(), 1.0)
    assert result.frames == 3
    assert [note for note in result.notes if "left out" in note and "x.tif" in note]


def test_nothing_is_overwritten_unless_asked(source: Path, tmp_path: Path) -> None:
    for name in ("out.npy", "out.zarr"):
        target = tmp_path / name
        restore_files([source], target, Doubling(), 1.0)
        with pytest.raises(InputError, match="exists"):
            restore_files([source], target, Doubling(), 2.0)
        assert frames_of(target)[0, 0, 0] == FRAMES[0, 0, 0] * 2
        restore_files([source], target, Doubling(), 2.0, overwrite=True)
        assert frames_of(target)[0, 0, 0] == FRAMES[0, 0, 0]


def test_a_source_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    alias = source.parent / "." / "movie.npy"
    tifffile.imwrite(tmp_path / "in" / "b.tif", FRAMES[0])
    for sources, target in (
        ([source], source),
        ([alias], source),
        ([source.parent], source.parent / "new.tif"),
        ([tmp_path / "in" / "b.tif"], tmp_path / "in"),
    ):
        with pytest.raises(InputError, match="source"):
            restore_files(sources, target, Doubling(), overwrite=True)
    assert source.read_bytes() == before
    assert sorted(file.name for file in source.parent.iterdir()) == ["b.tif", "movie.npy"]


def test_a_failure_leaves_no_half_file(source: Path, tmp_path: Path) -> None:
    for name in ("out.tif", "out.npy", "out.mrc", "out.zarr"):
        with pytest.raises(InputError, match="the model broke"):
            restore_files([source], tmp_path / name, Breaking())
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("sources", "target", "words"),
    [
        ([], "out.tif", "no files"),
        (["absent.tif"], "out.tif", "absent.tif does not exist"),
        (["in/movie.npy"], "out.dm4", r"cannot write '\.dm4'"),
        (["in/movie.npy", "in/movie.npy"], "out", "two sources"),
        (["in/movie.npy", "in/b.npy"], "out.tif", "give a folder"),
        (["in/movie.npy", "in/b.npy"], "in/b.npy", "one file|source"),
        (["in/bad.tif"], "out.tif", "bad.tif"),
        (["in/movie.npy", "in/bad.tif"], "out", "bad.tif"),
    ],
)
def test_bad_requests_are_refused_before_any_work(
    source: Path, tmp_path: Path, sources: list[str], target: str, words: str
) -> None:
    np.save(tmp_path / "in" / "b.npy", FRAMES)
    (tmp_path / "in" / "bad.tif").write_bytes(b"II*\0broken")
    restorer = Doubling()
    with pytest.raises(InputError, match=words) as error:
        restore_files([tmp_path / name for name in sources], tmp_path / target, restorer)
    assert "\n" not in str(error.value)
    assert restorer.calls == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts_per_electron": 0.0},
        {"counts_per_electron": -3.0},
        {"counts_per_electron": float("nan")},
        {"offset_counts": float("inf")},
    ],
)
def test_values_out_of_range(source: Path, tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        restore_files([source], tmp_path / "out.tif", Doubling(), **wrong)


@pytest.mark.parametrize("kind", ["u1", ">i2", "i4", "u4", "f4", "f8", "?"])
def test_types_of_counts(tmp_path: Path, kind: str) -> None:
    data = (FRAMES % 100).astype(kind)
    np.save(tmp_path / "in.npy", data)
    restore_files([tmp_path / "in.npy"], tmp_path / "out.npy", Doubling(), 4.0, 10.0)
    expected = (data.astype(np.float64) - 10) / 2
    np.testing.assert_allclose(frames_of(tmp_path / "out.npy"), expected, rtol=1e-6)


def test_pixels_that_the_detector_did_not_measure(tmp_path: Path) -> None:
    from tem_live.models import load_restorer

    plain = np.random.default_rng(1).poisson(5.0, (1, 96, 96)).astype(np.uint32)
    masked = plain.copy()
    masked[:, 40] = masked[:, 3, 4] = np.iinfo(np.uint32).max
    restored = {}
    for name, frames in (("plain", plain), ("masked", masked)):
        np.save(tmp_path / f"{name}.npy", frames)
        restore_files(
            [tmp_path / f"{name}.npy"],
            tmp_path / f"{name}.tif",
            load_restorer("fast", device="cpu"),
            counts_per_electron=1.0,
        )
        restored[name] = frames_of(tmp_path / f"{name}.tif")
    assert restored["masked"].mean() == pytest.approx(5.0, rel=0.05)
    assert np.abs(restored["masked"] - restored["plain"]).max() < 1.0


def test_the_real_pair(tmp_path: Path) -> None:
    pair = SHARED / "lowdose_pair"
    if not pair.exists():
        pytest.skip(f"{pair} is not here")
    results = restore_files(sorted(pair.glob("*.tif")), tmp_path / "out", Doubling())
    for result in results:
        assert result.gain_from == "file"
        assert result.counts_per_electron == pytest.approx(44, rel=1e-6)
        with open_movie(result.destination) as movie:
            assert movie.pixel_size_nm == pytest.approx(2.98846, rel=1e-5)
            expected = tifffile.imread(result.source) / 44.0 * 2
            np.testing.assert_allclose(movie.frame(0), expected, rtol=1e-5)
