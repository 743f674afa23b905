"""A whole fusion of tiny models through the command: what it makes, what it shares, what a change redoes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinterlm.formats import read_rows
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import Reporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.stage import stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.recipe.load import load_recipe
from sinterlm.store import Store
from tests.tiny_fusion import write_tiny_fusion

STAGES = [
    "prompts", "sample-sources", "score-sources", "select-sft", "train-sft", "sample-target", "score-target",
    "select-wrpo", "train-wrpo", "select-dpo", "train-dpo", "sample-held-out", "score-held-out", "evaluate", "report",
]  # fmt: skip
MODELS = ["tiny", "shots", "old-answers", "target", "target-sft", "target-sft-wrpo", "target-sft-dpo"]


class Lines(Reporter):
    """Keeps what a run says."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(Console(quiet=True))
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def fuse(recipe: Path, *overrides: str) -> tuple[list[str], Lines]:
    """Carry out the recipe in this process: the stages done now, and what was said."""
    reporter = Lines()
    return run_fusion(Fusion(load_recipe(recipe, overrides).recipe), reporter), reporter


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that has been carried out once."""
    path = write_tiny_fusion(tmp_path_factory.mktemp("fusion"))
    done, _ = fuse(path)
    assert done == STAGES
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
    assert summary["held_out"]["old-answers"]["exact_match"] == 1
    compared = {(entry["model"], entry["other"]) for entry in summary["held_out_differences"]}
    assert compared >= {(model, other) for model in MODELS[4:] for other in MODELS[:4]}
    gap = next(
        entry for entry in summary["held_out_differences"]
        if (entry["model"], entry["other"], entry["metric"]) == ("target-sft-wrpo", "old-answers", "exact_match")
    )  # fmt: skip
    assert gap["difference"] == pytest.approx(summary["held_out"]["target-sft-wrpo"]["exact_match"] - 1)


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
    done, reporter = fuse(recipe)
    assert done == []
    assert reporter.lines == []


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
        ("evaluation.held_out.max_new_tokens=3", STAGES[11:]),
    ],
)
def test_a_change_invalidates_exactly_what_depends_on_it(recipe: Path, override: str, first_redone: list[str]) -> None:
    keys = stage_keys(build_stages(Fusion(load_recipe(recipe, ()).recipe), str))
    changed = stage_keys(build_stages(Fusion(load_recipe(recipe, (override,)).recipe), str))
    assert [name for name in keys if keys[name] != changed[name]] == first_redone


def test_an_output_that_was_deleted_is_made_again(recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe.parent / "run", copy)
    before = (copy / "target-sft-dpo" / "model.safetensors").read_bytes()
    shutil.rmtree(copy / "target-sft-dpo")
    done, _ = fuse(recipe, f"output={copy}")
    assert done == ["train-dpo"]
    assert (copy / "target-sft-dpo" / "model.safetensors").read_bytes() == before


def test_until_and_only(recipe: Path, tmp_path: Path) -> None:
    fusion = Fusion(load_recipe(recipe, (f"output={tmp_path / 'out'}",)).recipe)
    assert run_fusion(fusion, Lines(), until="score-sources") == STAGES[:3]
    assert run_fusion(fusion, Lines(), only="select-sft") == ["select-sft"]


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


def test_list_and_help_without_torch() -> None:
    for arguments in (("--help",), ("list", "objectives", "--json"), ("list", "engines")):
        listed = sinterlm(*arguments)
        assert listed.returncode == 0
        assert not [line for line in listed.stderr.splitlines() if line.endswith(" torch")]
    objectives = json.loads(sinterlm("list", "objectives", "--json").stdout)
    assert {"sft", "dpo", "wrpo"} <= {entry["name"] for entry in objectives}
    for what in ("policies", "scorers", "engines"):
        assert all(entry["name"] for entry in json.loads(sinterlm("list", what, "--json").stdout))
