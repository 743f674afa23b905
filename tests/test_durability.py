"""Done means on disk: what counts as finished survives a power cut, and what was damaged later is never used."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from sinterlm.errors import InputError
from sinterlm.files import FINISHED, atomic_folder, find_model_damage, temporary_folder
from sinterlm.models import cached_fingerprint, fingerprint, load_model, load_tokenizer
from sinterlm.records import Message, RowResponse, TrainingRow
from sinterlm.training.checkpoints import CheckpointManifest, newest_whole_checkpoint
from sinterlm.training.output_folder import Claim, _describe_changes
from sinterlm.training.reference import ReferenceCache
from sinterlm.training.train import train
from tests.tiny import save_tiny

ROWS = [
    TrainingRow(
        f"p{index}",
        (Message("user", f"What is the opposite of {index}?"),),
        (RowResponse(f"cold {index * 7}", "chosen"), RowResponse(f"hot {index}", "rejected")),
    )
    for index in range(8)
]
ARGUMENTS: Mapping[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "learning_rate": 1e-3,
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "save_steps": 2,
}


def run(
    model: Path,
    output: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    cache_dir: Path | None = None,
    **changes: Any,
) -> None:
    train(
        ROWS,
        model=str(model),
        objective="dpo",
        output_dir=output,
        arguments={**ARGUMENTS, **changes},
        seed=1,
        cache_dir=cache_dir,
        say=say,
    )


def interrupted(model: Path, output: Path, *, after: int, **changes: Any) -> None:
    """A training that ends after a step, once its checkpoint is written."""

    class Interrupting(CheckpointManifest):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == after + 1:
                raise KeyboardInterrupt

    with patch("sinterlm.training.train.CheckpointManifest", Interrupting), pytest.raises(KeyboardInterrupt):
        run(model, output, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "out"
    run(model, output)
    return output


@pytest.fixture(scope="module")
def stopped(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With checkpoints of steps 2 and 4."""
    output = tmp_path_factory.mktemp("stopped") / "out"
    interrupted(model, output, after=4)
    return output


# --- a power cut -----------------------------------------------------------------------------------------------------


class StrictDisk:
    """A disk that keeps only synced data: a file's bytes and a folder's names as of their last sync.

    A file whose name was synced and whose bytes were not has zeros.
    """

    def __init__(self) -> None:
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, list[tuple[str, os.stat_result]]] = {}
        self.on_names: Callable[[Path], None] = lambda folder: None

    def fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(path) as entries:
                self._names[status.st_ino] = [(entry.name, entry.stat()) for entry in entries]
            self.on_names(path)
        else:
            self._bytes[status.st_ino] = path.read_bytes()

    def image(self, folder: Path, copy: Path) -> Path:
        """Write ``folder`` to ``copy`` as a power cut at this moment would leave it."""
        copy.mkdir(parents=True)
        for name, status in self._names.get(folder.stat().st_ino, []):
            if stat.S_ISDIR(status.st_mode):
                if (folder / name).is_dir():
                    self.image(folder / name, copy / name)
            else:
                (copy / name).write_bytes(self._bytes.get(status.st_ino, b"\0" * status.st_size))
        return copy


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> StrictDisk:
    if sys.platform != "linux":
        pytest.skip("finds the files of descriptors in Linux's /proc")
    disk = StrictDisk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


@pytest.mark.parametrize("changes", [{}, {"lora_r": 2}], ids=["full", "lora"])
def test_whatever_counts_survives_a_power_cut(
    changes: dict[str, Any], disk: StrictDisk, model: Path, tmp_path: Path
) -> None:
    """Each moment at which the name of a manifest or of the finished model's record is on disk."""
    output, images = tmp_path / "new" / "out", tmp_path / "images"
    checked: list[str] = []

    def check(folder: Path) -> None:
        if not (folder / "manifest.json").exists() and not (folder == output and (output / FINISHED).exists()):
            return
        image = disk.image(tmp_path, images / str(len(checked))) / "new" / "out"
        if folder == output:
            assert find_model_damage(image) is None
            assert json.loads((image / FINISHED).read_text())["files"].keys() >= {"model.safetensors", "metrics.jsonl"}
            checked.append("model")
        else:
            whole = newest_whole_checkpoint(image / "checkpoints")
            assert whole is not None
            assert whole.name == folder.name
            step = int(folder.name.rpartition("-")[2])
            assert len((image / "metrics.jsonl").read_text().splitlines()) == step
            checked.append(folder.name)

    disk.on_names = check
    run(model, output, **changes)
    assert list(dict.fromkeys(checked)) == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "model"]


def test_a_folder_that_takes_anothers_place_survives_a_power_cut(disk: StrictDisk, tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "a" / "data") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").write_text(content)
    image = disk.image(tmp_path, tmp_path / "image")
    assert (image / "a" / "data" / "deep" / "file").read_text() == "new"


# --- damage ----------------------------------------------------------------------------------------------------------


def zero(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [zero, flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl"])
def test_a_damaged_model_is_never_used(
    name: str, damage: Callable[[Path], None], trained: Path, model: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(trained, tmp_path / "out")
    run(model, output)  # an undamaged copy counts as finished
    damage(output / name)
    expected = rf"out: this trained model is damaged: {name} .*remove it and rerun the command"
    for use in (lambda: run(model, output), lambda: load_tokenizer(str(output)), lambda: load_model(str(output))):
        with pytest.raises(InputError, match=expected):
            use()


def test_the_record_of_a_model_names_it_without_reading_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unrecorded = shutil.copytree(trained, tmp_path / "unrecorded")
    (unrecorded / FINISHED).unlink()
    with patch("sinterlm.models.hashes.file_sha256", side_effect=AssertionError("read")):
        named = fingerprint(str(trained))
        assert cached_fingerprint(str(trained)) == named
        assert cached_fingerprint(str(unrecorded)) is None
    assert fingerprint(str(unrecorded)) == named


def test_a_damaged_record_of_a_model_is_refused(trained: Path, model: Path, tmp_path: Path) -> None:
    output = shutil.copytree(trained, tmp_path / "out")
    zero(output / FINISHED)
    with pytest.raises(InputError, match=f"damaged: {FINISHED} is not the record of a model"):
        run(model, output)


def test_the_card_may_be_edited(trained: Path, model: Path, tmp_path: Path) -> None:
    output = shutil.copytree(trained, tmp_path / "out")
    (output / "README.md").write_text("My model")
    run(model, output)
    assert (output / "README.md").read_text() == "My model"


def test_models_of_earlier_versions_have_no_record_and_are_used(trained: Path, model: Path, tmp_path: Path) -> None:
    output = shutil.copytree(trained, tmp_path / "out")
    stored = json.loads((output / FINISHED).read_text())
    del stored["files"], stored["settings"]
    (output / FINISHED).write_text(json.dumps(stored))
    flip(output / "model.safetensors")
    before = (output / "model.safetensors").read_bytes()
    run(model, output)
    assert (output / "model.safetensors").read_bytes() == before, "finished: not trained again"


@pytest.mark.parametrize("damage", [zero, cut])
def test_damaged_log_probabilities_of_the_reference_are_computed_again(
    damage: Callable[[Path], None], trained: Path, model: Path, tmp_path: Path
) -> None:
    (kept,) = (trained / "reference").iterdir()
    output, cache = tmp_path / "out", tmp_path / "cache"
    cache.mkdir()
    shutil.copy(kept, cache)
    damage(cache / kept.name)
    said: list[str] = []
    run(model, output, cache_dir=cache, say=said.append)
    assert "log-probabilities of the reference: computed" in said
    assert (output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert (cache / kept.name).read_bytes() == kept.read_bytes()


def test_no_flipped_bit_changes_log_probabilities(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "weights")
    rows: Any = [
        {"name": f"row {number}", "input_ids": [number], "num_prompt_tokens": 1, "num_response_tokens": [1, 1]}
        for number in range(8)
    ]
    logps = [[-number - 0.25, -2.5 * number] for number in range(8)]
    cache.write(rows, torch.float32, logps)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert cache.read(rows, torch.float32) in (None, logps)
    path.write_bytes(content)
    assert cache.read(rows, torch.float32) == logps


def test_empty_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = 2**22 + 1  # no process has this number
    for name in (f"sinterlm-{dead}-a", f"sinterlm-{dead}-b", f"sinterlm-{os.getppid()}-a", "sinterlm-notes"):
        (tmp_path / name).mkdir()
    (tmp_path / f"sinterlm-{dead}-b" / "file").touch()
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {
        f"sinterlm-{dead}-b",
        f"sinterlm-{os.getppid()}-a",
        "sinterlm-notes",
    }


@pytest.mark.parametrize("damage", [zero, flip])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_checkpoint_damaged_at_the_same_size_is_left_out(
    name: str, damage: Callable[[Path], None], stopped: Path, tmp_path: Path
) -> None:
    checkpoints = shutil.copytree(stopped / "checkpoints", tmp_path / "checkpoints")
    damage(checkpoints / "checkpoint-4" / name)
    said: list[str] = []
    assert newest_whole_checkpoint(checkpoints, said.append) == checkpoints / "checkpoint-2"
    assert len(said) == 1
    assert "checkpoint-4 is damaged and left out" in said[0]
    assert name in said[0]


@pytest.mark.parametrize("damaged", [["checkpoint-4"], ["checkpoint-4", "checkpoint-2"]])
def test_training_resumes_from_the_newest_checkpoint_that_is_not_damaged(
    damaged: list[str], stopped: Path, trained: Path, model: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    for name in damaged:
        flip(output / "checkpoints" / name / "model.safetensors")
    said: list[str] = []
    run(model, output, say=said.append)
    assert sum("is damaged" in line for line in said) == len(damaged)
    resumed = [line for line in said if line.startswith("resumes from ")]
    assert resumed == ([f"resumes from {output / 'checkpoints' / 'checkpoint-2'}"] if len(damaged) == 1 else [])
    assert (output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", [zero, flip, Path.unlink])
def test_damaged_metrics_of_an_interrupted_training_are_those_of_its_checkpoint(
    damage: Callable[[Path], None], stopped: Path, trained: Path, model: Path, tmp_path: Path
) -> None:
    def read(folder: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: line[name] for name in line if "second" not in name} for line in lines]

    output = shutil.copytree(stopped, tmp_path / "out")
    damage(output / "metrics.jsonl")
    run(model, output)
    assert read(output) == read(trained)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\xff{", b"[]"])
def test_a_damaged_marker_loses_no_checkpoints_without_a_word(
    content: bytes, stopped: Path, model: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    (output / "checkpoints" / "identity").write_bytes(content)
    said: list[str] = []
    with (
        patch("sinterlm.training.train.CheckpointManifest", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        run(model, output, say=said.append)
    assert "is of a training with other rows or settings, interrupted after step 4" in said[0]
    assert newest_whole_checkpoint(output / "checkpoints-aside") is not None


# --- other settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"seed": 1}, "the same settings, by another version of Sinter"),
        ({"seed": 2}, "other settings (seed 2 -> 1)"),
        (None, "other rows or settings"),
    ],
)
def test_what_another_training_differed_in(settings: dict[str, Any] | None, expected: str) -> None:
    assert _describe_changes(Claim("before", settings), Claim("now", {"seed": 1})) == expected


def test_other_settings_are_named_before_checkpoints_are_set_aside(stopped: Path, model: Path, tmp_path: Path) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    changed: dict[str, Any] = {"per_device_train_batch_size": 4, "weight_decay": 0.1}
    said: list[str] = []

    def say(line: str) -> None:
        if "becomes" in line:  # nothing has changed yet
            assert (output / "checkpoints" / "checkpoint-4").exists()
        said.append(line)

    with (
        patch("sinterlm.training.train.CheckpointManifest", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        run(model, output, say=say, **changed)
    assert said[0] == (
        f"{output}/checkpoints is of a training with other settings (per_device_train_batch_size 2 -> 4, weight_decay "
        f"its default -> 0.1), interrupted after step 4; it becomes {output}/checkpoints-aside and is removed when "
        "this training is finished. With those settings again it is resumed from there"
    )
    assert not list((output / "checkpoints").glob("checkpoint-*"))
    assert newest_whole_checkpoint(output / "checkpoints-aside") is not None
    said.clear()
    run(model, output, say=said.append)  # as before
    assert f"resumes from {output / 'checkpoints' / 'checkpoint-4'}" in said
    assert not list(output.glob("checkpoints*"))


def test_a_finished_model_of_other_settings_is_said_to_be_replaced(trained: Path, model: Path, tmp_path: Path) -> None:
    output = shutil.copytree(trained, tmp_path / "out")
    (output / "model-00001-of-00002.safetensors").touch()
    (output / "adapter").mkdir()
    (output / "notes.txt").write_text("mine")
    said: list[str] = []
    run(model, output, say=said.append, max_steps=1)
    assert said[0] == (
        f"{output} holds a model that was trained with other settings (max_steps 6 -> 1); it is replaced when this "
        "training is finished"
    )
    assert find_model_damage(output) is None
    assert {path.name for path in output.iterdir()} == {path.name for path in trained.iterdir()} | {"notes.txt"}


def test_a_marker_of_an_earlier_version_tells_that_something_differs(
    stopped: Path, model: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    (output / "checkpoints" / "identity").write_text("5e" * 32)
    said: list[str] = []
    run(model, output, say=said.append)
    assert "is of a training with other rows or settings, interrupted after step 4" in said[0]
