"""Bad input ends with a clear message and the right exit code, and leaves nothing half written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from sinterlm import cli
from sinterlm.formats.yaml_file import read_yaml
from sinterlm.scoring import mathematics
from sinterlm.scoring.code import sandbox
from tests.tiny_fusion import write_tiny_fusion


class Outcome(NamedTuple):
    code: int
    said: str
    """The text on standard error, joined into one line."""
    printed: str


Command = Callable[..., Outcome]


@pytest.fixture
def sinterlm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process: its exit code and output."""

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
    """The limit cuts every answer of the target, so by default none is eligible."""
    arguments = ("run", recipe, "sft.train.max_steps=1", "--until", "select-wrpo")
    outcome = sinterlm(*arguments, "preference.wrpo.select.truncated=drop", "target.sampling.max_new_tokens=1")
    assert outcome.code == 3
    assert "select-wrpo" in outcome.said
    assert "fewer-than-two-different-target-answers" in outcome.said
    assert not (recipe.parent / "run" / "rows" / "wrpo.parquet").exists()
    mended = sinterlm(*arguments, "preference.wrpo.select.truncated=keep", "target.sampling.max_new_tokens=1")
    assert mended.code == 0, mended.said
    assert "train-sft ..." not in mended.printed, "finished stages are not repeated"


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


def test_what_does_not_fit_is_said_before_the_first_answer(sinterlm: Command, recipe: Path, tmp_path: Path) -> None:
    """Each of these would otherwise fail hours later, in training or evaluation."""
    questions = recipe.parent / "questions.jsonl"
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    unanswered = recipe.parent / "unanswered.jsonl"
    unanswered.write_text("".join(json.dumps({"id": row["id"], "prompt": row["prompt"]}) + "\n" for row in rows))
    no_template = tmp_path / "no-template"
    shutil.copytree(recipe.parent / "models" / "target", no_template)
    for path in no_template.glob("*.jinja"):
        path.unlink()
    settings = json.loads((no_template / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (no_template / "tokenizer_config.json").write_text(json.dumps(settings))
    for override, named in {
        "prompts.path=unanswered.jsonl": "accepted answers",
        f"target.model={no_template}": "chat template",
        "prompts.split.held_out=0.01": "held_out",
        "sources.old-answers.path=gone.jsonl": "gone.jsonl",
        "preference.wrpo.train.optim=no-such-optimizer": "no-such-optimizer",
    }.items():
        outcome = sinterlm("run", recipe, override)
        assert outcome.code == 2, (override, outcome)
        assert named in outcome.said
        assert "sample-sources" not in outcome.printed


@pytest.mark.parametrize(
    "override",
    [
        "scorer={kind: code}",
        "scorer={kind: by-domain, domains: {even: {kind: code}}, other: {kind: exact-match}}",
        "evaluation.held_out.scorer={kind: code}",
    ],
)
def test_a_missing_sandbox_is_said_before_the_first_answer(
    sinterlm: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setattr(sandbox, "_PROBE", "print([0])")  # as if the first attempt to break out had succeeded
    outcome = sinterlm("run", recipe, override)
    assert outcome.code == 6
    assert "programs in answers are not run without one" in outcome.said
    assert "sample-sources" not in outcome.printed
    assert not (recipe.parent / "run" / "recipe.yaml").exists()


def test_a_missing_package_of_a_scorer_is_said_before_the_first_answer(
    sinterlm: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mathematics, "find_spec", lambda name: None)
    outcome = sinterlm("run", recipe, "scorer={kind: mathematics}")
    assert outcome.code == 2
    assert "pip install 'sinterlm[math]'" in outcome.said
    assert "sample-sources" not in outcome.printed
    assert not (recipe.parent / "run" / "recipe.yaml").exists()


def test_an_output_that_cannot_be_written(sinterlm: Command, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    for output in ("a-file", "a-file/run"):
        outcome = sinterlm("run", recipe, f"output={tmp_path / output}")
        assert outcome.code == 2, outcome
        assert "a-file" in outcome.said


def test_a_damaged_summary_is_named(sinterlm: Command, recipe: Path) -> None:
    arguments = ("run", recipe, "sft.train.max_steps=1", "preference={}")
    assert sinterlm(*arguments).code == 0
    summary = recipe.parent / "run" / "summary.json"
    summary.write_text("{")
    outcome = sinterlm(*arguments)
    assert outcome.code == 2
    assert "summary.json" in outcome.said
    summary.unlink()
    assert sinterlm(*arguments).code == 0


def test_scores_that_are_no_numbers(sinterlm: Command, recipe: Path) -> None:
    """A broken reward model is refused if it scores nothing, and its answers are never chosen."""
    weights = recipe.parent / "models" / "reward" / "model.safetensors"
    tensors = load_file(weights)
    tensors["score.weight"] = torch.full_like(tensors["score.weight"], float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    for _ in range(2):  # the second run finds what the first has stored
        outcome = sinterlm("run", recipe, "--until", "select-sft")
        assert outcome.code == 3
        assert "reward-model" in outcome.said


def test_until_and_only_exclude_each_other(sinterlm: Command, recipe: Path) -> None:
    assert sinterlm("run", recipe, "--until", "prompts", "--only", "prompts").code == 2


def test_a_part_of_a_run_does_not_show_an_older_outcome(sinterlm: Command, recipe: Path) -> None:
    assert "left to do: sample-sources" in sinterlm("run", recipe, "--until", "prompts").printed


@pytest.mark.parametrize("stage", ["sample-sources", "train-sft"])
def test_no_space_left_in_a_stage(sinterlm: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Like the test on a small disk below, but without mounting one: the first write of a stage finds no space."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if stage == "sample-sources":
            patched.setattr("sinterlm.store.Store.add_responses", full)
        else:
            patched.setattr("transformers.Trainer.save_model", full)
        outcome = sinterlm("run", recipe, "--until", stage)
    assert outcome.code == 75
    assert "free some space" in outcome.said.lower()
    assert sinterlm("run", recipe, "--until", stage).code == 0


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
    assert "rerun the command" in said
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "sample-sources ..." not in resumed.stdout


@pytest.fixture(params=["400k", "700k", "1200k", "1600k"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system that fills up after sampling, or during one of the trainings."""
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
    assert "free some space" in outcome.said.lower()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    resumed = sinterlm("run", recipe, f"output={small_disk / 'run'}")
    assert resumed.code == 0, resumed.said
    for line in outcome.printed.splitlines():
        if " done in " in line:
            assert f"{line.split()[0]} ..." not in resumed.printed, "finished stages are not repeated"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"api_key_env": "sk-canary-0123456789abcdef"}, "sources.served.api_key_env"),
        ({"api_key_env": "a canary!"}, "sources.served.api_key_env"),
        ({"model": "hf_canary0123456789abcdefghijklmnop"}, "sources.served.model"),
        ({"api_key": "canary"}, "sources.served.api_key"),
        ({"extra_body": {"tags": ["x", "Bearer canary.abc"]}}, "sources.served.extra_body.tags[1]"),
        ({"extra_body": {"Authorization": "canary"}}, "sources.served.extra_body.Authorization"),
        ({"base_url": "https://user:canary@host/v1"}, "sources.served.base_url"),
        ({"base_url": "https://host/v1?key=AIzacanary0123456789abcdefghijklmnopqrs"}, "sources.served.base_url"),
    ],
)
@pytest.mark.parametrize("is_override", [False, True], ids=["in the file", "on the command line"])
def test_a_key_in_a_recipe_is_refused_and_not_shown(
    sinterlm: Command, recipe: Path, change: dict[str, Any], place: str, is_override: bool
) -> None:
    served = {"engine": "endpoint", "model": "m", **change}
    if is_override:
        arguments = [f"sources.served={json.dumps(served)}"]
    else:
        content = read_yaml(recipe).value
        recipe.write_text(json.dumps({**content, "sources": {"served": served}}))
        arguments = []
    code, said, _ = sinterlm("plan", recipe, *arguments)
    assert code == 2
    assert place in said
    assert "environment variable" in said or "without a key or password" in said
    assert "canary" not in said
