"""Bad input ends with a clear message and the design's exit code, and leaves nothing half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sinterlm import cli
from tests.tiny_fusion import write_tiny_fusion


class Outcome(NamedTuple):
    code: int
    said: str
    """What stood on standard error, on one line."""
    printed: str


Command = Callable[..., Outcome]


@pytest.fixture
def sinterlm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process: its exit code and what it said."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sinterlm", *map(str, arguments)])
        capsys.readouterr()
        code = cli.exit_code()
        printed, said = capsys.readouterr()
        return Outcome(code, " ".join(said.split()), printed)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_tiny_fusion(tmp_path)


def test_missing_model_package(sinterlm: Command, recipe: Path) -> None:
    outcome = sinterlm("run", recipe, "target.model=gguf:no_such_package/model.gguf")
    assert outcome.code == 2
    assert "no_such_package" in outcome.said
    assert "pip install" in outcome.said
    assert not (recipe.parent / "run" / "recipe.yaml").exists()


def test_unknown_model_folder(sinterlm: Command, recipe: Path) -> None:
    outcome = sinterlm("run", recipe, "sources.tiny.model=./no/such/folder")
    assert outcome.code == 2
    assert "no/such/folder" in outcome.said


def test_empty_prompt_file(sinterlm: Command, recipe: Path) -> None:
    (recipe.parent / "questions.jsonl").write_text("\n")
    outcome = sinterlm("run", recipe)
    assert outcome.code == 2
    assert "questions.jsonl" in outcome.said
    assert "no prompt" in outcome.said


def test_one_id_with_two_contents(sinterlm: Command, recipe: Path) -> None:
    questions = recipe.parent / "questions.jsonl"
    questions.write_text(
        '{"id": "a", "prompt": "one?"}\n{"id": "b", "prompt": "two?"}\n{"id": "a", "prompt": "three?"}\n'
    )
    outcome = sinterlm("run", recipe)
    assert outcome.code == 2
    assert "questions.jsonl" in outcome.said
    assert "'a'" in outcome.said
    assert "3" in outcome.said


def test_a_source_that_gives_only_empty_answers(sinterlm: Command, recipe: Path) -> None:
    questions = [json.loads(line) for line in (recipe.parent / "questions.jsonl").read_text().splitlines()]
    (recipe.parent / "answers.jsonl").write_text(
        "".join(json.dumps({"prompt_id": row["id"], "response": ""}) + "\n" for row in questions)
    )
    outcome = sinterlm("run", recipe, "--until", "sample-sources")
    assert outcome.code == 3
    assert "old-answers" in outcome.said
    assert "empty" in outcome.said


def test_no_quadruple_remains_and_mending_the_recipe_goes_on(sinterlm: Command, recipe: Path) -> None:
    """Every answer of the target is cut by the limit, so none is eligible unless the policy says so."""
    arguments = ("run", recipe, "sft.train.max_steps=1", "--until", "select-wrpo")
    outcome = sinterlm(*arguments, "preference.wrpo.select.truncated=drop", "target.sampling.max_new_tokens=1")
    assert outcome.code == 3
    assert "select-wrpo" in outcome.said
    assert "fewer-than-two-different-target-answers" in outcome.said
    assert not (recipe.parent / "run" / "rows" / "wrpo.parquet").exists()
    mended = sinterlm(*arguments, "preference.wrpo.select.truncated=keep", "target.sampling.max_new_tokens=1")
    assert mended.code == 0, mended.said
    assert "train-sft ..." not in mended.printed, "what was done is not done again"


@pytest.mark.parametrize(
    ("objective", "row", "named"),
    [
        ("dpo", {"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}]}, "rejected"),
        ("wrpo", {"prompt": "q", "chosen": "a", "rejected": "b"}, "chosen_source"),
        ("sft", {"prompt": "q", "completion": ""}, "empty"),
        ("dpo", {"prompt": "q", "chosen": "a", "rejected": "b", "weight": "heavy"}, "weight"),
    ],
)  # fmt: skip
def test_a_row_of_the_wrong_shape(
    sinterlm: Command, tmp_path: Path, recipe: Path, objective: str, row: dict[str, object], named: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    model, output = recipe.parent / "models" / "target", tmp_path / "out"
    outcome = sinterlm("train", "--objective", objective, "--model", model, "--data", rows, "--output", output)
    assert outcome.code == 2
    assert "rows.jsonl" in outcome.said
    assert named in outcome.said
    assert not output.exists()


def test_unknown_recipe_key_and_unknown_stage(sinterlm: Command, recipe: Path) -> None:
    outcome = sinterlm("run", recipe, "preference.wrpo.objective.alhpa=0.3")
    assert outcome.code == 2
    assert "alpha" in outcome.said
    outcome = sinterlm("run", recipe, "--until", "trian-sft")
    assert outcome.code == 2
    assert "train-sft" in outcome.said
    outcome = sinterlm("run", recipe, "--only", "evaluate")
    assert outcome.code == 2
    assert "not done yet" in outcome.said


def test_status_of_a_folder_that_holds_no_run(sinterlm: Command, tmp_path: Path) -> None:
    outcome = sinterlm("status", tmp_path)
    assert outcome.code == 2
    assert "holds no run" in outcome.said


def test_usage_errors_end_with_2(sinterlm: Command) -> None:
    assert sinterlm("run").code == 2
    assert sinterlm("no-such-command").code == 2
    assert sinterlm("list", "nonsense").code == 2


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_then_resumed(recipe: Path, sent: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "sinterlm", "run", str(recipe), "--until", "train-sft"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("train-sft ..."):
            break
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "the same command" in said
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "sample-sources ..." not in resumed.stdout


@pytest.fixture(params=["400k", "700k", "1200k", "1600k"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system that is full after sampling, or in one of the trainings."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={request.param}", "tmpfs"]
    mounted = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_stops_with_75_and_loses_nothing(sinterlm: Command, recipe: Path, small_disk: Path) -> None:
    outcome = sinterlm("run", recipe, f"output={small_disk / 'run'}")
    assert outcome.code == 75, outcome
    assert "free some space" in outcome.said
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    resumed = sinterlm("run", recipe, f"output={small_disk / 'run'}")
    assert resumed.code == 0, resumed.said
    for line in outcome.printed.splitlines():
        if " done in " in line:
            assert f"{line.split()[0]} ..." not in resumed.printed, "what was done is not done again"
