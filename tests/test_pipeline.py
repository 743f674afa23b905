"""A whole fusion of tiny models through the command: what it makes, what it shares, what a change reruns."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import traceback
from contextlib import closing
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinterlm import cli
from sinterlm.errors import InputError
from sinterlm.formats import read_rows
from sinterlm.objectives import losses
from sinterlm.pipeline.compare import compare_runs
from sinterlm.pipeline.export import export_rows
from sinterlm.pipeline.finished import rewrite_report
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.metrics import read_metrics
from sinterlm.pipeline.progress import SilentReporter, show_counts
from sinterlm.pipeline.run import Outcome, run_fusion
from sinterlm.pipeline.stage import stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.pipeline.status import status_of
from sinterlm.recipe.load import load_recipe
from sinterlm.store import Store
from sinterlm.terminal.status import print_status
from sinterlm.terminal.terminal import Terminal
from tests.tiny_fusion import write_tiny_fusion

pytestmark = pytest.mark.xdist_group("pipeline")  # the tests' shared fixtures are made once, in one process

STAGES = [
    "prompts", "sample-sources", "score-sources", "select-sft", "train-sft", "sample-target", "score-target",
    "select-wrpo", "train-wrpo", "select-dpo", "train-dpo", "sample-held-out", "score-held-out", "evaluate", "report",
]  # fmt: skip
MODELS = ["tiny", "shots", "old-answers", "target", "target-sft", "target-sft-wrpo", "target-sft-dpo"]


class Lines(SilentReporter):
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def fuse(recipe: Path, *overrides: str) -> tuple[Outcome, Lines]:
    """Run the recipe in this process; returns what was done, what is left, and what was reported."""
    reporter = Lines()
    return run_fusion(Fusion(load_recipe(recipe, overrides).recipe), reporter), reporter


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that has been run once."""
    path = write_tiny_fusion(tmp_path_factory.mktemp("fusion"))
    outcome, _ = fuse(path)
    assert outcome == (STAGES, [])
    return path


@pytest.fixture
def run(recipe: Path) -> Path:
    return recipe.parent / "run"


def test_it_makes_what_it_promises(run: Path) -> None:
    assert {path.name for path in run.iterdir()} >= {
        "recipe.yaml", "store.sqlite", "summary.json", "report.html", "rows",
        "target-sft", "target-sft-wrpo", "target-sft-dpo",
    }  # fmt: skip
    assert sorted(path.name for path in (run / "rows").iterdir()) == ["dpo.parquet", "sft.parquet", "wrpo.parquet"]
    for name in MODELS[4:]:
        files = {path.name for path in (run / name).iterdir()}
        assert files >= {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"}
        assert "checkpoints" not in files
        AutoModelForCausalLM.from_pretrained(run / name)
        assert AutoTokenizer.from_pretrained(run / name).chat_template


def test_no_card_and_no_report_names_a_folder_of_this_machine(run: Path) -> None:
    texts = [*run.rglob("README.md"), run / "report.html", run / "summary.json"]
    assert len(texts) == 5
    assert [path for path in texts if str(run.parent) in path.read_text()] == []


def test_summary_has_the_contracts_shape(run: Path) -> None:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    assert list(summary["stages"]) == STAGES[:-1]
    assert all(stage["peak_memory_bytes"] > 1e6 for stage in summary["stages"].values())
    assert summary["seconds"] == pytest.approx(sum(stage["seconds"] for stage in summary["stages"].values()), abs=0.1)
    assert list(summary["held_out"]) == MODELS
    for figures in summary["held_out"].values():
        assert figures["n"] == 8
        assert 0 <= figures["low"] <= figures["exact_match"] <= figures["high"] <= 1
        assert 0 <= figures["contains_low"] <= figures["contains"] <= figures["contains_high"] <= 1
    with Store(run / "store.sqlite", read_only=True) as store:
        numbers = [int(prompt.id.split("-")[1]) for prompt in store.prompts(".", "held_out")]
    recorded = summary["held_out"]["old-answers"]
    assert recorded["exact_match"] == sum(number % 4 in (0, 1) for number in numbers) / 8
    assert recorded["contains"] == sum(number % 4 != 3 for number in numbers) / 8
    assert 0 < recorded["exact_match"] < recorded["contains"] < 1, "the split shows all three kinds of answers"
    compared = {(entry["model"], entry["other"]) for entry in summary["held_out_differences"]}
    assert compared >= {(model, other) for model in MODELS[4:] for other in MODELS[:4]}
    gap = next(
        entry for entry in summary["held_out_differences"]
        if (entry["model"], entry["other"], entry["metric"]) == ("target-sft-wrpo", "old-answers", "exact_match")
    )  # fmt: skip
    ours, theirs = (summary["held_out"][name]["exact_match"] for name in ("target-sft-wrpo", "old-answers"))
    assert gap["difference"] == pytest.approx(ours - theirs)


def test_internal_rewards_of_held_out_quadruples(run: Path) -> None:
    """The figures of evaluation.json, compared with Transformers' log-probabilities from the saved models."""
    figures = json.loads((run / "evaluation.json").read_text())
    assert figures["num_quadruples"] >= 2
    accuracies = figures["reward_accuracies"]["target-sft-wrpo"]
    assert {name: rate["n"] for name, rate in accuracies.items()} == dict.fromkeys(
        ("source_chosen", "target_chosen", "chosen"), figures["num_quadruples"]
    )
    assert list(figures["average_logps"]) == ["target", "target-sft", "target-sft-wrpo", "target-sft-dpo"]
    with Store(run / "store.sqlite", read_only=True) as store:
        prompts = {prompt.id: prompt for prompt in store.prompts(".", "held_out")}
        passing = sorted(prompt_id for prompt_id in prompts if int(prompt_id.split("-")[1]) % 4 in (0, 1))
    # Only the recorded source ever passes, so y_ws is the accepted answer for every question that it gets right.
    model = AutoModelForCausalLM.from_pretrained(run / "target-sft")
    tokenizer = AutoTokenizer.from_pretrained(run / "target-sft")
    expected = []
    for prompt_id in passing:
        messages = [("system", "Answer with one word."), *prompts[prompt_id].messages]
        chat = [{"role": role, "content": content} for role, content in messages]
        prompt_ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        chat.append({"role": "assistant", "content": prompts[prompt_id].answers[0]})
        ids = tokenizer.apply_chat_template(chat, return_dict=False)
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        answer = range(len(prompt_ids), len(ids))
        expected.append(float(sum(logps[position - 1, ids[position]] for position in answer)) / len(answer))
    found = figures["average_logps"]["target-sft"]["chosen_source"]
    assert set(np.round(found, 4)) <= set(np.round(expected, 4))


def test_every_prompt_is_in_one_part_and_every_training_prompt_is_a_row_or_a_drop(run: Path) -> None:
    with Store(run / "store.sqlite", read_only=True) as store:
        parts = {part: {p.id for p in store.prompts(".", part)} for part in ("held_out", "sft", "preference")}
        dropped = list(store.dropped("."))
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 32
    for name, part in (("sft", "sft"), ("wrpo", "preference"), ("dpo", "preference")):
        rows = {row.prompt_id for row in read_rows(run / "rows" / f"{name}.parquet")}
        drops = {drop.subject for drop in dropped if drop.stage == f"select-{name}"}
        assert rows | drops == parts[part]
        assert not rows & drops


def test_rows_carry_the_targets_system_prompt_and_their_origin(run: Path) -> None:
    for row in read_rows(run / "rows" / "wrpo.parquet"):
        assert [message.role for message in row.messages] == ["system", "user"]
        assert row.messages[0].content == "Answer with one word."
        assert [response.role for response in row.responses] == ["chosen_source", "chosen_target", "rejected"]
        assert row.with_role("chosen_source").source in MODELS[:3]
        assert row.with_role("rejected").source == "target-sft"


def test_the_same_command_again_does_nothing(recipe: Path) -> None:
    outcome, reporter = fuse(recipe)
    assert outcome == ([], [])
    assert reporter.lines == []


def test_sampled_answers_are_stored_with_the_lengths_of_prompt_and_answer(recipe: Path) -> None:
    """A plan takes its means from them."""
    tokenizer = AutoTokenizer.from_pretrained(recipe.parent / "models" / "source")
    with closing(sqlite3.connect(recipe.parent / "run" / "store.sqlite")) as connection:
        query = "SELECT content, num_prompt_tokens, num_tokens FROM responses WHERE num_tokens > 0"
        stored = connection.execute(query).fetchall()
    question = len(tokenizer("What is 1 plus 2?")["input_ids"])
    assert stored
    assert all(num_prompt_tokens > question for _, num_prompt_tokens, _ in stored)
    assert all(num_tokens <= 6 for _, _, num_tokens in stored)


def test_a_second_recipe_in_the_workspace_samples_no_source_again(recipe: Path, tmp_path: Path) -> None:
    workspace = recipe.parent / "run"
    _, reporter = fuse(recipe, f"output={tmp_path / 'second'}", f"workspace={workspace}", "sft.train.max_steps=1")
    sampled = next(line for line in reporter.lines if line.startswith("sample-sources done"))
    for source in MODELS[:3]:
        assert f"{source} sampled now: 0" in sampled
    scored = next(line for line in reporter.lines if line.startswith("score-sources done"))
    assert "scored now: 0" in scored
    assert "  train-sft: trains on cpu, float32" in reporter.lines
    assert "  target-sft: loaded on cpu, float32" in reporter.lines
    target = next(line for line in reporter.lines if line.startswith("sample-target done"))
    assert "target-sft sampled now: 0" not in target, "a retrained target never meets its predecessor's answers"


def test_sampled_once_and_fused_many_ways(recipe: Path, tmp_path: Path) -> None:
    """Every other policy on recorded answers, after SFT on weighted answers; only the target is sampled."""
    train = "train: {max_steps: 1, max_length: 128}"
    weighted = "temperature: 0.1, truncated: keep"
    methods = {
        "fusepo": f"select: {{kind: fusepo, {weighted}}}, objective: {{kind: fusepo}}",
        "fusepo-rloo": f"select: {{kind: fusepo-rloo, {weighted}}}, objective: {{kind: fusepo-rloo}}",
        "fusechat3": "select: {kind: fusechat3, window: none, truncated: keep}, objective: {kind: ln-dpo}",
        "rloo": "select: {kind: rloo, truncated: keep}, objective: {kind: rloo}",
        "untuned": "select: {kind: wrpo, sources: [tiny], rejected_source: true, truncated: keep}, "
        "objective: {kind: wrpo, rejected_mix: true}, target_samples: target",
    }
    outcome, reporter = fuse(
        recipe,
        f"output={tmp_path / 'ways'}",
        f"workspace={recipe.parent / 'run'}",
        f"sft={{select: {{kind: fusesft, {weighted}}}, objective: {{kind: fusesft}}, {train}}}",
        f"preference={{{', '.join(f'{name}: {{{method}, {train}}}' for name, method in methods.items())}}}",
        "evaluation={}",
    )
    assert outcome.left == []
    said = {line.split(" done")[0]: line for line in reporter.lines if " done" in line}
    assert all(f"{source} sampled now: 0" in said["sample-sources"] for source in MODELS[:3])
    assert "target sampled now: " in said["sample-target"]
    assert "target-sft sampled now: " in said["sample-target"]

    rows = {name: read_rows(tmp_path / "ways" / "rows" / f"{name}.parquet") for name in ("sft", *methods)}
    speakers = {
        name: {(answer.role, answer.source) for row in own for answer in row.responses} for name, own in rows.items()
    }
    assert speakers["sft"] <= {("chosen", source) for source in MODELS[:3]}
    assert {source for _, source in speakers["fusepo"]} <= {"tiny", "shots"}, "one recorded answer makes no pair"
    assert {source for _, source in speakers["fusepo-rloo"]} <= {"tiny", "shots"}
    assert speakers["rloo"] == {(None, "target-sft")}
    assert speakers["untuned"] == {
        ("chosen_source", "tiny"),
        ("rejected_source", "tiny"),
        ("chosen_target", "target"),
        ("rejected", "target"),
    }
    summary = json.loads((tmp_path / "ways" / "summary.json").read_text())
    for name, selected in summary["selections"].items():
        assert selected["num_rows"] == len(rows[name])
        assert (selected["weights"] is None) == (rows[name][0].responses[0].weight is None)
    assert list(summary["selections"]) == ["sft", *methods]
    assert summary["selections"]["fusepo"]["drops"]["fewer-than-two-different-source-answers"] > 0
    margins = summary["selections"]["fusechat3"]["margins"]
    assert [(margin["chosen"], margin["rejected"]) for margin in margins] == [("chosen", "rejected")]
    assert margins[0]["score"]["tenth"] > 0


def test_a_target_whose_answers_no_policy_reads_is_not_sampled(recipe: Path) -> None:
    method = "select: {kind: fusepo, temperature: 1.0}, objective: {kind: fusepo}"
    fusion = Fusion(load_recipe(recipe, (f"preference={{fusepo: {{{method}}}}}",)).recipe)
    stages = {stage.name: stage for stage in build_stages(fusion)}
    assert not {"sample-target", "score-target"} & stages.keys()
    assert stages["select-fusepo"].needs == ("score-sources",)
    assert fusion.fused == fusion.model_of("fusepo"), "its rows hold the sources' answers"


def test_how_the_target_is_sampled_decides_the_held_out_quadruples_where_no_rows_need_it(recipe: Path) -> None:
    method = "preference={fusepo: {select: {kind: fusepo, temperature: 1.0}, objective: {kind: fusepo}}}"
    before, after = (
        stage_keys(build_stages(Fusion(load_recipe(recipe, (method, *changes)).recipe)), str)
        for changes in ((), ("target.sampling.num_samples=4",))
    )
    assert [name for name in before if before[name] != after[name]] == STAGES[11:]


@pytest.mark.parametrize(
    ("override", "first_redone"),
    [
        ("seed=4", STAGES),
        ("sources.tiny.sampling.temperature=0.9", STAGES[1:]),
        ("scorer={kind: exact-match}", STAGES[2:]),
        ("sft.train.learning_rate=2e-3", STAGES[4:]),
        ("target.prompt.system=Be brief.", STAGES[3:]),
        ("target.sampling.temperature=0.9", STAGES[5:]),
        ("preference.wrpo.objective.alpha=0.1", ["train-wrpo", *STAGES[11:]]),
        ("preference.dpo.select.ties=first", ["select-dpo", "train-dpo", *STAGES[11:]]),
        ("preference.dpo.target_samples=target-sft", []),
        ("preference.dpo.target_samples=target", ["sample-target", "score-target", *STAGES[7:]]),
        ("evaluation.held_out.max_new_tokens=3", STAGES[11:]),
    ],
)
def test_a_change_invalidates_exactly_what_depends_on_it(recipe: Path, override: str, first_redone: list[str]) -> None:
    keys = stage_keys(build_stages(Fusion(load_recipe(recipe, ()).recipe)), str)
    changed = stage_keys(build_stages(Fusion(load_recipe(recipe, (override,)).recipe)), str)
    assert [name for name in keys if keys[name] != changed[name]] == first_redone


def test_an_output_that_was_deleted_is_made_again(recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe.parent / "run", copy)
    before = (copy / "target-sft-dpo" / "model.safetensors").read_bytes()
    shutil.rmtree(copy / "target-sft-dpo")
    outcome, _ = fuse(recipe, f"output={copy}")
    assert outcome == (["train-dpo"], [])
    assert (copy / "target-sft-dpo" / "model.safetensors").read_bytes() == before


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def states(folder: Path) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in status_of(folder)["stages"]}


def test_damaged_outputs_are_never_shown_and_are_made_again(recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe.parent / "run", copy)
    evaluation, rows, dpo = copy / "evaluation.json", copy / "rows" / "wrpo.parquet", copy / "rows" / "dpo.parquet"
    before = {path: path.read_bytes() for path in (evaluation, rows, dpo)}
    flip(evaluation)
    for read in (rewrite_report, lambda folder: compare_runs([folder]), partial(export_rows, format_name="trl")):
        with pytest.raises(InputError, match=r"evaluation\.json is not what was written.*does evaluate again"):
            read(copy)
    flip(rows)
    dpo.write_bytes(before[dpo][:-1])
    damaged = {"select-dpo": "damaged"}
    assert states(copy) == {stage: "done" for stage in STAGES} | damaged
    outcome, said = fuse(recipe, f"output={copy}")
    assert outcome == (["select-wrpo", "select-dpo", "evaluate"], [])
    assert "select-wrpo is done again: rows/wrpo.parquet is not what was written (its SHA-256 differs)" in said.lines
    assert {path: path.read_bytes() for path in before} == before
    assert states(copy) == {stage: "done" for stage in STAGES}


def test_a_damaged_model_is_not_done_and_not_trained_twice_without_a_word(recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe.parent / "run", copy)
    for name, state in (("training.json", "done"), ("model.safetensors", "done"), ("config.json", "damaged")):
        path = copy / "target-sft" / name
        before = path.read_bytes()
        if name == "training.json":  # still JSON, with another figure
            path.write_bytes(before.replace(b'"num_steps": 6', b'"num_steps": 7'))
        elif name == "model.safetensors":
            path.write_bytes(b"\0" * len(before))
        else:
            path.unlink()
        assert states(copy)["train-sft"] == state
        with pytest.raises(InputError, match=rf"target-sft: this trained model is damaged: .*{name} is "):
            fuse(recipe, f"output={copy}")
        path.write_bytes(before)
    assert fuse(recipe, f"output={copy}")[0] == ([], [])


def test_a_finished_run_and_one_of_an_earlier_release_are_read_once(recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe.parent / "run", copy)
    connection = sqlite3.connect(copy / "store.sqlite")
    tables = ("outputs", "details", "ledger", "failures", "notes", "jobs", "drop_counts")
    connection.executescript("".join(f"DROP TABLE {name};" for name in tables) + "PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    assert set(states(copy).values()) == {"done"}
    assert fuse(recipe, f"output={copy}")[0] == ([], [])
    with patch("sinterlm.files.file_sha256", side_effect=AssertionError("read")):
        assert fuse(recipe, f"output={copy}")[0] == ([], [])
    flip(copy / "rows" / "sft.parquet")
    assert fuse(recipe, f"output={copy}")[0] == (["select-sft"], [])


def test_until_and_only(recipe: Path, tmp_path: Path) -> None:
    fusion = Fusion(load_recipe(recipe, (f"output={tmp_path / 'out'}",)).recipe)
    assert run_fusion(fusion, Lines(), until="score-sources") == (STAGES[:3], STAGES[3:])
    assert run_fusion(fusion, Lines(), only="select-sft") == (["select-sft"], STAGES[4:])


def sinterlm(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sinterlm", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_plan_before_and_after_without_torch(recipe: Path, tmp_path: Path) -> None:
    fresh = sinterlm("plan", recipe, f"output={tmp_path / 'fresh'}", "--json")
    assert fresh.returncode == 0, fresh.stderr[-2000:]
    assert "import time" in fresh.stderr
    assert not [line for line in fresh.stderr.splitlines() if line.endswith(" torch")], "plan must not import torch"
    plan = json.loads(fresh.stdout)
    assert not any(stage["done"] for stage in plan["stages"])
    (sampling,) = (stage for stage in plan["stages"] if stage["name"] == "sample-sources")
    assert sampling["calls"] == 24 * (2 + 2), "recorded answers are no calls"
    done = json.loads(sinterlm("plan", recipe, "--json").stdout)
    assert all(stage["done"] for stage in done["stages"])
    assert done["total"]["calls"] == 0
    shared = json.loads(
        sinterlm("plan", recipe, f"output={tmp_path / 'b'}", f"workspace={recipe.parent / 'run'}", "--json").stdout
    )
    assert next(stage for stage in shared["stages"] if stage["name"] == "sample-sources")["calls"] == 0


def test_a_plan_reports_what_is_not_there(recipe: Path, tmp_path: Path) -> None:
    lost = sinterlm("plan", recipe, f"output={tmp_path / 'fresh'}", "prompts.path=gone.jsonl", "--json")
    assert lost.returncode == 0, lost.stderr[-2000:]
    assert any("gone.jsonl" in note for note in json.loads(lost.stdout)["notes"])


def test_status_and_report_from_the_folder_alone(recipe: Path, tmp_path: Path) -> None:
    status = json.loads(sinterlm("status", recipe.parent / "run", "--json").stdout)
    assert [stage["name"] for stage in status["stages"]] == STAGES
    assert {stage["state"] for stage in status["stages"]} == {"done"}
    moved = tmp_path / "moved"
    shutil.copytree(recipe.parent / "run", moved)
    (moved / "report.html").unlink()
    report = sinterlm("report", moved, "--json")
    assert report.returncode == 0, report.stderr[-2000:]
    assert json.loads(report.stdout)["held_out"]["target"]["n"] == 8
    assert (moved / "report.html").stat().st_size > 10_000


def test_a_report_of_a_training_that_was_killed_within_a_line(recipe: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(recipe.parent / "run", moved)
    metrics = moved / "target-sft" / "metrics.jsonl"
    metrics.write_text(f'{metrics.read_text()}{{"step": 7, "lo')
    with Store(moved / "store.sqlite") as store:
        store.forget_stage(".", "train-sft")  # as when it is started again
    (moved / "target-sft" / "training.json").unlink()
    rewrite_report(moved)
    assert "sft" in (moved / "report.html").read_text()
    assert len(read_metrics(moved / "target-sft")) == 6


def test_whole_numbers_are_shown_in_full_and_names_as_they_are() -> None:
    """Not 1.23457e+06, and square brackets are not markup."""
    assert show_counts({"tokens": 1234567, "mean score": 0.32891}) == "tokens: 1234567, mean score: 0.32891"
    entry = {"name": "train-[sft]", "state": "done", "counts": {"[b] answers": 1234567}}
    said = StringIO()
    nothing = {"dropped": {}, "spent": {"models": []}, "failed": [], "notes": []}
    print_status({"output": "runs/[a]", "stages": [entry], **nothing}, Terminal(file=said, width=120))
    assert {"runs/[a]", "train-[sft]", "[b]", "1234567"} <= set(said.getvalue().split())


def test_list_and_help_without_torch() -> None:
    for arguments in (("--help",), ("list", "objectives", "--json"), ("list", "engines")):
        listed = sinterlm(*arguments)
        assert listed.returncode == 0
        assert not [line for line in listed.stderr.splitlines() if line.endswith(" torch")]
    objectives = json.loads(sinterlm("list", "objectives", "--json").stdout)
    assert {"sft", "dpo", "wrpo"} <= {entry["name"] for entry in objectives}
    for what in ("policies", "scorers", "engines"):
        assert all(entry["name"] for entry in json.loads(sinterlm("list", what, "--json").stdout))


def test_recorded_answers_that_nobody_asks_for_are_records(recipe: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    extra = [
        {"prompt_id": "elsewhere", "response": "x"},
        *({"prompt_id": "sum-0-1", "index": k, "response": "1"} for k in (7, 8)),
    ]
    answers.write_text((recipe.parent / "answers.jsonl").read_text() + "".join(json.dumps(row) + "\n" for row in extra))
    old = f"sources.old-answers={{engine: recorded, num_samples: 2, path: {answers}}}"
    fusion = Fusion(load_recipe(recipe, (f"output={tmp_path / 'out'}", old)).recipe)
    run_fusion(fusion, Lines(), until="sample-sources")
    with Store(tmp_path / "out" / "store.sqlite", read_only=True) as store:
        unused = [(drop.subject, drop.reason) for drop in store.dropped(".") if "recorded" in drop.reason]
    assert unused == [("elsewhere", "unmatched-recorded-answer"), ("sum-0-1", "surplus-recorded-answer")]


def test_a_redo_that_was_interrupted_does_not_count_as_the_old_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another recipe overwrites a stage's products and dies before it finishes: the first recipe redoes the stage."""
    copy = tmp_path / "copy"
    shutil.copytree(recipe.parent / "run", copy)
    whole = {name: (copy / name / "model.safetensors").read_bytes() for name in MODELS[4:]}
    with Store(copy / "store.sqlite", read_only=True) as store:
        held_out = store.prompts(".", "held_out")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for change in ("seed=9", "sft.train.learning_rate=5e-3"):
        with monkeypatch.context() as patched:
            patched.setattr(Store, "finish_stage", die)
            with pytest.raises(KeyboardInterrupt):
                fuse(recipe, f"output={copy}", change)
        outcome, _ = fuse(recipe, f"output={copy}")
        assert outcome.done_now, change
        with Store(copy / "store.sqlite", read_only=True) as store:
            assert store.prompts(".", "held_out") == held_out
        assert {name: (copy / name / "model.safetensors").read_bytes() for name in MODELS[4:]} == whole


def test_a_method_that_the_recipe_no_longer_has_is_no_part_of_the_summary(recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe.parent / "run", copy)
    text = recipe.read_text()
    fewer = recipe.with_name("fewer.yaml")
    fewer.write_text(text[: text.index("  dpo:\n")] + text[text.index("evaluation:") :])
    fuse(fewer, f"output={copy}")
    summary = json.loads((copy / "summary.json").read_text())
    assert list(summary["stages"]) == [name for name in STAGES[:-1] if "dpo" not in name]
    assert list(summary["held_out"]) == MODELS[:-1]


def test_two_runs_at_once_the_second_is_refused_by_name(recipe: Path, tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-m", "sinterlm", "run", str(recipe), f"output={tmp_path / 'out'}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    next(line for line in first.stdout if line.startswith("sample-sources ..."))
    for workspace in (tmp_path / "out", tmp_path / "another"):  # the same workspace; or only the same output
        second = sinterlm("run", recipe, f"output={tmp_path / 'out'}", f"workspace={workspace}")
        assert second.returncode == 75
        assert f"process {first.pid}" in second.stderr
    first.kill()
    first.communicate()


def test_status_says_unknown_where_weights_were_not_read_on_this_machine(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    states = {
        stage["name"]: stage["state"]
        for stage in json.loads(sinterlm("status", recipe.parent / "run", "--json").stdout)["stages"]
    }
    assert states["prompts"] == "done"
    assert states["sample-sources"] == "unknown"


def test_a_folder_with_an_odd_name(recipe: Path, tmp_path: Path) -> None:
    """Neither a number nor a comment in YAML."""
    for name in ("2026", "a #1", "x: y"):
        shutil.copytree(recipe.parent / "run", tmp_path / name)
        assert json.loads(sinterlm("status", tmp_path / name, "--json").stdout)["output"] == str(tmp_path / name)


def test_a_run_says_its_own_lines_only(recipe: Path, tmp_path: Path) -> None:
    """No progress bar of a library that loads or writes weights appears between them."""
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "sinterlm",
            "run",
            str(recipe),
            f"output={tmp_path / 'out'}",
            "--until",
            "sample-target",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stderr == ""
    assert "%|" not in said.stdout


@pytest.mark.parametrize("command", ["run", "train"])
def test_the_mathematics_is_a_few_hops_from_the_command(
    command: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files on the stack when a loss is computed are those that the docs name."""
    page = (Path(__file__).parents[1] / "docs" / "data-flow.md").read_text()
    (documented,) = re.findall(rf"^    sinterlm {command}: +(.*)$", page, re.MULTILINE)
    package = Path(cli.__file__).parent
    stacks: list[list[str]] = []

    def looking(*arguments: Any, **named: Any) -> losses.RowLosses:
        frames = [Path(frame.filename) for frame in traceback.extract_stack()]
        modules = [str(path.relative_to(package)) for path in frames if path.is_relative_to(package)]
        stacks.append([name for name, _ in itertools.groupby(modules)])
        return pairwise(*arguments, **named)

    pairwise = losses.pairwise_losses
    monkeypatch.setattr(losses, "pairwise_losses", looking)
    shutil.copytree(recipe.parent / "run", copy := tmp_path / "copy")
    rows, target = copy / "rows" / "dpo.parquet", recipe.parent / "models" / "target"
    arguments: dict[str, list[object]] = {
        "run": [recipe, f"output={copy}", "preference.dpo.train.max_steps=1", "--only", "train-dpo"],
        "train": ["--objective", "dpo", "--model", target, "--data", rows, "--output", copy / "out", "max_steps=1"],
    }
    monkeypatch.setattr("sys.argv", ["sinterlm", command, *map(str, arguments[command])])
    assert cli.exit_code() == 0
    assert stacks[-1] == documented.split(" -> ")
    assert len(stacks[-1]) - 1 == {"run": 5, "train": 3}[command]
