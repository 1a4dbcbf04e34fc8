"""Training with Lightning: steps, kills, resuming, precision, the adversarial stage."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tem_live.errors import InputError
from tem_live.models import data_scenes, load_restorer, publish, training, trim
from tem_live.models.data_device import Batch
from tests.models.test_training import RECIPE, scene_bank

pytest.importorskip("lightning")

from tem_live.models import lightning_checkpoint, lightning_data, lightning_run

pytestmark = pytest.mark.usefixtures("one_thread")


def write_recipe(folder: Path, **replaced: str) -> Path:
    text = RECIPE
    for old, new in replaced.items():
        assert old in text or old == "more"
        text = text + new if old == "more" else text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def steps(count: int) -> dict[str, str]:
    return {"max_steps = 3": f"max_steps = {count}"}


def state(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "latest.json").read_text(encoding="utf-8")))


@pytest.mark.timeout(300)  # the first to import Lightning
def test_train_resume_publish_restore(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder, seen = tmp_path / "out", list[training.Progress]()
    recipe = write_recipe(tmp_path)
    lightning_run.train(recipe, folder, device="cpu", progress=seen.append)
    assert seen[-1].step == state(folder)["step"] == 3
    assert seen[-1].minutes > 0.0
    recipe = write_recipe(tmp_path, **steps(5))
    weights = lightning_run.train(recipe, folder, device="cpu", resume=True, progress=seen.append)
    assert seen[-1].step == state(folder)["step"] == 5
    suffixes = {p.suffix for p in folder.rglob("*") if p.is_file()}
    assert suffixes == {".safetensors", ".json", ".jsonl", ".npy"}
    assert len(list(folder.glob("step-*"))) == 1
    # Nothing is left to do: the same weights come back at once.
    before = load_file(weights)
    assert lightning_run.train(recipe, folder, device="cpu", resume=True) == weights
    for name, tensor in load_file(weights).items():
        np.testing.assert_array_equal(tensor, before[name])
    publish.publish(folder, recipe, tmp_path / "cards", default=False, title="Tiny")
    restorer = load_restorer(tmp_path / "cards" / "tiny.safetensors", "cpu")
    assert restorer.restore(np.random.default_rng(0).random((40, 50))).shape == (40, 50)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    from tem_live.models.openvino_scales import without_scales

    stop = threading.Event()
    stop.set()  # each call takes one step, writes a checkpoint and ends
    recipe = write_recipe(tmp_path, **steps(1000))
    for number in (1, 2):
        cut = lightning_run.train(recipe, tmp_path / "cut", device="cpu", resume=True, stop=stop)
        assert state(tmp_path / "cut")["step"] == number
    recipe = write_recipe(tmp_path, **steps(2))
    whole = lightning_run.train(recipe, tmp_path / "whole", device="cpu")
    for name, tensor in without_scales(load_file(whole)).items():
        # The schedules differ a little (1000 steps against 2), and moments are kept in bfloat16.
        np.testing.assert_allclose(tensor, load_file(cut)[name], atol=4e-3)


def test_a_kill_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    lightning_run.train(write_recipe(tmp_path), folder, device="cpu")
    recipe = write_recipe(tmp_path, **steps(4))
    whole = lightning_checkpoint._save_part

    def killed(target: Path, part: str, tensors: dict[str, torch.Tensor]) -> None:
        if part == "network":
            raise SystemExit("killed")
        whole(target, part, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(lightning_checkpoint, "_save_part", killed)
        with pytest.raises(SystemExit):
            lightning_run.train(recipe, folder, device="cpu", resume=True)
    assert state(folder)["step"] == 3
    lightning_run.train(recipe, folder, device="cpu", resume=True)
    assert state(folder)["step"] == 4


def test_the_average_follows(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    lightning_run.train(write_recipe(tmp_path, **steps(2)), folder, device="cpu")
    found = lightning_checkpoint.latest(folder)
    assert found is not None
    network, average = found.tensors("network"), found.tensors("average")
    assert any(not torch.equal(network[name], average[name]) for name in network)
    # The decay begins at (1 + 1) / (10 + 1): the average is near the network, not at its start.
    torch.testing.assert_close(network["head.weight"], average["head.weight"], atol=2e-3, rtol=0)


def test_large_networks_are_kept_in_files_of_16_mb(tmp_path: Path) -> None:
    big = {f"w{i}": torch.full((1_000_000,), float(i)) for i in range(9)}
    lightning_checkpoint.write(tmp_path, {"network": big}, step=7, seconds=1.0, recipe={})
    files = list((tmp_path / "step-0000007").iterdir())
    assert {f.name for f in files} == {
        "network.safetensors", "network-2.safetensors", "network-3.safetensors"
    }  # fmt: skip
    assert max(f.stat().st_size for f in files) <= lightning_checkpoint.MOST_BYTES
    found = lightning_checkpoint.latest(tmp_path)
    assert found is not None
    tensors = found.tensors("network")
    assert {name: float(t[0]) for name, t in tensors.items()} == {f"w{i}": i for i in range(9)}


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        tensors = {"w": torch.full((4,), value)}
        lightning_checkpoint.write(tmp_path, {"network": tensors}, step=7, seconds=value, recipe={})
        found = lightning_checkpoint.latest(tmp_path)
        assert found is not None
        assert float(found.tensors("network")["w"][0]) == found.seconds == value
        assert len(list(tmp_path.glob("step-*"))) == 1


@pytest.mark.parametrize("text", ["{", "{}", '{"folder": "step-9", "step": 9, "seconds": 1}'])
def test_a_broken_pointer_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "latest.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="delete"):
        lightning_checkpoint.latest(tmp_path)


def test_damage_is_one_line(tmp_path: Path) -> None:
    folder, recipe = tmp_path / "out", write_recipe(tmp_path)
    lightning_run.train(recipe, folder, device="cpu")
    longer = write_recipe(tmp_path, **steps(4))
    (weights,) = folder.glob("step-*/average.safetensors")
    weights.write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"average\.safetensors is damaged"):
        lightning_run.train(longer, folder, device="cpu", resume=True)
    (scenes,) = folder.glob("scenes-*.npy")
    scenes.write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"scenes in .* are damaged"):
        lightning_run.train(longer, folder, device="cpu")
    scenes.unlink()
    lightning_run.train(longer, folder, device="cpu")
    assert state(folder)["step"] == 4


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(InputError, match="cannot write to"):
        lightning_run.train(recipe, recipe, device="cpu")


def test_another_network_is_refused(tmp_path: Path) -> None:
    lightning_run.train(write_recipe(tmp_path), tmp_path / "out", device="cpu")
    other = write_recipe(tmp_path, **{"[8, 16]": "[12, 16]"})
    with pytest.raises(InputError, match="cannot resume"):
        lightning_run.train(other, tmp_path / "out", device="cpu", resume=True)


@pytest.mark.parametrize(
    ("replaced", "part"),
    [
        ({"seed = 3": "seed = 4"}, "seed"),
        ({"scenes = 4": "scenes = 5"}, "data"),
        ({"more": "[loss]\nname = 'l1'\n"}, "loss"),
    ],
)
def test_another_training_is_not_taken_for_this_one(
    tmp_path: Path, replaced: dict[str, str], part: str
) -> None:
    # It is done already: without a word its weights would pass for those of the other recipe.
    lightning_run.train(write_recipe(tmp_path), tmp_path / "out", device="cpu")
    other = write_recipe(tmp_path, **replaced)
    with pytest.raises(InputError, match=f"another '{part}'.*--no-resume"):
        lightning_run.train(other, tmp_path / "out", device="cpu", resume=True)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ('[machine]\nprecision = "bf16-mixed"\n', "network"),
        ('[loss]\nname = "lobato"\ngan_weight = 0.01\ngan_from_step = 1\n', "discriminator"),
        ('[loss]\nname = "one-minus-ssim"\n[machine]\nworkers = 1\n', "network"),
    ],
)
def test_precision_losses_and_workers(tmp_path: Path, more: str, part: str) -> None:
    folder, seen = tmp_path / "out", list[training.Progress]()
    recipe = write_recipe(tmp_path, more=more)
    lightning_run.train(recipe, folder, device="cpu", progress=seen.append)
    assert seen[-1].step == 3
    assert np.isfinite(seen[-1].loss)
    found = lightning_checkpoint.latest(folder)
    assert found is not None
    assert all(torch.isfinite(t.float()).all() for t in found.tensors(part).values())
    assert found.tensors(part)
    if part == "discriminator":
        assert found.tensors("discriminator-moments")
        recipe = write_recipe(tmp_path, more=more, **steps(4))
        lightning_run.train(recipe, folder, device="cpu", resume=True)
        assert state(folder)["step"] == 4


def test_a_teacher_is_learned_from_and_not_kept(tmp_path: Path) -> None:
    folder, seen = tmp_path / "out", list[training.Progress]()
    taught = {"more": '[loss]\nteacher = "fast"\n'}
    lightning_run.train(
        write_recipe(tmp_path, **taught), folder, device="cpu", progress=seen.append
    )
    assert seen[-1].step == 3
    assert np.isfinite(seen[-1].loss)
    lightning_run.train(write_recipe(tmp_path), tmp_path / "alone", device="cpu")
    found, alone = (lightning_checkpoint.latest(one) for one in (folder, tmp_path / "alone"))
    assert found is not None
    assert alone is not None
    other = alone.tensors("network")
    assert any(not torch.equal(tensor, other[k]) for k, tensor in found.tensors("network").items())
    recipe = write_recipe(tmp_path, **taught, **steps(4))
    lightning_run.train(recipe, folder, device="cpu", resume=True)
    found = lightning_checkpoint.latest(folder)
    assert found is not None
    assert not [name for name in found.tensors("network") if "teacher" in name]
    with pytest.raises(InputError, match="another 'loss'"):
        lightning_run.train(write_recipe(tmp_path, **steps(5)), folder, device="cpu", resume=True)


def test_a_teacher_sees_the_frame_from_eight_sides() -> None:
    from tem_live.models import teacher

    network = trim.network_of(load_restorer("fast", "cpu", "float32"))
    frame = torch.poisson(torch.full((1, 1, 64, 96), 5.0), torch.Generator().manual_seed(0))
    seen = [teacher.Teacher(network)(frame, step) for step in range(9)]
    torch.testing.assert_close(seen[8], seen[0])
    for one in seen:
        assert one.shape == frame.shape
        assert not one.requires_grad
    for one in seen[1:8]:
        # Other errors of the same picture: the frame lies the right way round again.
        assert 0.0 < float((one - seen[0]).std()) < 0.5 * float((one - frame).std())


def test_a_teacher_that_cannot_teach_is_one_line(tmp_path: Path) -> None:
    for name, says in (("nobody", "nobody"), ("none", "none")):
        recipe = write_recipe(tmp_path, more=f'[loss]\nteacher = "{name}"\n')
        with pytest.raises(InputError, match=says) as raised:
            lightning_run.train(recipe, tmp_path / "out", device="cpu")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("cores", "thread"), [(1, "MainThread"), (64, "batches")])
def test_batches_are_made_ahead_where_a_core_is_free(
    monkeypatch: pytest.MonkeyPatch, cores: int, thread: str
) -> None:
    made: list[str] = []

    class Maker:
        def make(self, step: int, rank: int = 0) -> Batch:
            made.append(threading.current_thread().name)
            return Batch(torch.tensor(step), torch.tensor(rank), torch.tensor(0))

    monkeypatch.setattr("os.cpu_count", lambda: cores)
    batches = iter(lightning_data._Batches(Maker(), 5, 2))
    found = [next(batches) for _ in range(3)]
    batches.close()
    assert [(int(batch.frames), int(batch.targets)) for batch in found] == [(5, 2), (6, 2), (7, 2)]
    assert set(made) == {thread}


def test_scan_families_train(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, **{"scenes = 4": 'scenes = 4\nfamily = "stem"'})
    lightning_run.train(recipe, tmp_path / "out", device="cpu")
    assert state(tmp_path / "out")["step"] == 3


def test_scenes_are_the_same_on_one_core_and_on_two(tmp_path: Path) -> None:
    recipe = training.load_recipe(write_recipe(tmp_path, **{"scenes = 4": "scenes = 40"}))
    expected = scene_bank(40, 64, 3)
    for processes in (1, 2):
        path = data_scenes.scene_file(recipe, tmp_path / str(processes), processes)
        np.testing.assert_array_equal(np.load(path), expected)


def test_what_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    with pytest.raises(InputError, match="--devices"):
        lightning_run.train(recipe, tmp_path / "o", device="cpu", devices=0)
    monkeypatch.setattr(lightning_run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tem-live\[train\]"):
        lightning_run.train(recipe, tmp_path / "o", device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_from_cpu_to_gpu_and_back(tmp_path: Path) -> None:
    for count, device in ((2, "cpu"), (4, "cuda"), (6, "cpu")):
        recipe = write_recipe(tmp_path, **steps(count))
        lightning_run.train(recipe, tmp_path / "out", device=device, resume=True)
        assert state(tmp_path / "out")["step"] == count


def test_every_shipped_recipe_is_valid() -> None:
    folder = Path(training.__file__).parent / "recipes"
    for path in sorted(folder.glob("*.toml")):
        recipe = training.load_recipe(path)
        assert recipe.own is None or recipe.start is not None
        assert recipe.data.scene_px >= max(recipe.data.crops_px)
