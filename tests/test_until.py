"""Prompts are asked until enough of them have given a row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sinterlm.errors import BudgetError, InputError
from sinterlm.formats import read_prompts, read_row_ids, read_rows
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.stage import stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.pipeline.stages.gather import next_number
from sinterlm.pipeline.stages.prompts import split_parts
from sinterlm.pipeline.status import status_of
from sinterlm.recipe.load import load_recipe
from tests.chat_server import Answer, ScriptedServer, serve

RECIPE = """\
output: FOLDER/run
workspace: FOLDER
prompts: {path: prompts.jsonl, split: {sft: 0}}
target: {model: someone/small-1b, samples: {engine: recorded, path: own.jsonl}}
sources:
  half: {engine: endpoint, model: m, base_url: URL, price: {output: 1.0}, sampling: {num_samples: 1}, concurrency: 1}
scorer: {kind: exact-match}
preference:
  m: {select: {kind: wrpo}, objective: {kind: wrpo}}
until: {rows: 10}
"""
NUM_PROMPTS = 60


@pytest.fixture
def ids() -> list[str]:
    """The prompts in the split's order."""
    return []


@pytest.fixture
def server(ids: list[str]) -> Iterator[ScriptedServer]:
    """A model that is right on every second prompt in the split's order."""

    def script(request: dict[str, Any]) -> Answer:
        number = int(re.findall(r"\d+", request["messages"][-1]["content"])[0])
        content = str(number + 1) if ids.index(f"p{number}") % 2 == 0 else "no"
        choices = [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 10, "completion_tokens": 1000}
        return Answer(body=json.dumps({"choices": choices, "model": "m", "usage": usage}))

    with serve(script) as server:
        yield server


@pytest.fixture
def recipe(server: ScriptedServer, ids: list[str], tmp_path: Path) -> Path:
    prompts = [
        {"id": f"p{number}", "prompt": f"What is {number} plus 1?", "answers": [str(number + 1)]}
        for number in range(NUM_PROMPTS)
    ]
    own = [{"prompt_id": each["id"], "response": text} for each in prompts for text in (*each["answers"], "nothing")]
    for name, lines in {"prompts": prompts, "own": own}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(tmp_path)).replace("URL", server.url))
    read = load_recipe(path).recipe
    ids += [prompt.id for prompt in split_parts(read, read_prompts(read.prompts.path))["preference"]]
    return path


def carry_out(recipe: Path, *overrides: str, until: str = "select-m") -> Fusion:
    fusion = Fusion(load_recipe(recipe, overrides).recipe)
    run_fusion(fusion, SilentReporter(), until=until)
    return fusion


def rows_of(fusion: Fusion) -> set[str]:
    return read_row_ids(fusion.rows_path("m"))


def counts_of(fusion: Fusion) -> dict[str, Any]:
    (gather,) = (stage for stage in status_of(fusion.output)["stages"] if stage["name"] == "gather")
    return dict(gather["counts"])


@pytest.mark.parametrize("score", ["all", "on-demand"])
def test_prompts_are_asked_until_there_are_enough_rows(
    recipe: Path, server: ScriptedServer, ids: list[str], score: str
) -> None:
    """10 prompts give 5 rows, so as many again are asked: 20 prompts, 10 rows."""
    fusion = carry_out(recipe, f"score={score}")
    assert rows_of(fusion) == set(ids[:20:2])
    assert len(server.requests) == 20
    counts = counts_of(fusion)
    assert (counts["prompts"], counts["rows"], counts["half answers"]) == (20, 10, 20)
    assert [stage["name"] for stage in status_of(fusion.output)["stages"]] == [
        "prompts", "sample-sources", "score-sources", "gather", "select-m", "train-m", "report",
    ]  # fmt: skip
    more = carry_out(recipe, "until.rows=12", f"score={score}")  # 12 give 6, 24 give 12
    assert rows_of(more) == set(ids[:24:2])
    assert len(server.requests) == 24, "the first 20 are stored"


def test_the_rows_are_the_same_whatever_is_stored(recipe: Path, server: ScriptedServer, ids: list[str]) -> None:
    everything = carry_out(recipe, "until=null", f"output={recipe.parent / 'all'}")
    assert rows_of(everything) == set(ids[::2])
    assert len(server.requests) == NUM_PROMPTS
    fusion = carry_out(recipe)
    assert rows_of(fusion) == set(ids[:20:2])
    assert len(server.requests) == NUM_PROMPTS


def test_without_until_the_same_run_asks_the_rest(recipe: Path, server: ScriptedServer, ids: list[str]) -> None:
    carry_out(recipe)
    assert rows_of(carry_out(recipe, "until=null")) == set(ids[::2])
    assert len(server.requests) == NUM_PROMPTS
    assert rows_of(carry_out(recipe)) == set(ids[:20:2])


def test_no_more_candidates_are_asked_than_allowed(recipe: Path, server: ScriptedServer, ids: list[str]) -> None:
    fusion = carry_out(recipe, "until.candidates=15")
    assert len(server.requests) == 15
    assert rows_of(fusion) == set(ids[:15:2])
    assert counts_of(fusion)["rows"] == 8


def test_a_run_that_was_stopped_gives_the_rows_of_one_that_was_not(
    recipe: Path, server: ScriptedServer, ids: list[str]
) -> None:
    """An answer costs a thousandth. The budget is reached in the second portion."""
    with pytest.raises(BudgetError):
        carry_out(recipe, "budget.money=0.012")
    assert 12 <= len(server.requests) < 20
    fusion = carry_out(recipe)
    assert (rows_of(fusion), len(server.requests)) == (set(ids[:20:2]), 20)
    assert [row.prompt_id for row in read_rows(fusion.rows_path("m"))] == ids[:20:2]


def test_a_plan_counts_as_many_candidates_as_are_allowed(recipe: Path) -> None:
    plan = plan_fusion(Fusion(load_recipe(recipe, ["until.candidates=30"]).recipe))
    stages = {stage.name: stage for stage in plan.stages}
    gather = stages["gather"]
    assert stages["sample-sources"].calls == 0
    assert gather.calls == 30 + 30 + 5 * 30, "answers of the source, their scores, and those of up to 5 of the target"
    assert gather.money == pytest.approx(30 * 512 / 1e6), "at most 512 tokens an answer"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("preference={}", "rows of preference methods, and the recipe has none"),
        (
            "preference.m={select: {kind: fusechat3, window: none}, objective: {kind: dpo}}",
            "extra_prompts of sft are known only once all prompts are asked",
        ),
    ],
)
def test_what_cannot_be_counted_beforehand_is_refused(recipe: Path, override: str, problem: str) -> None:
    sft = "sft={select: {kind: best-of-sources}, extra_prompts: {dropped_by: m}}"
    with pytest.raises(InputError, match=problem):
        load_recipe(recipe, [override, *([sft] if "m=" in override else [])])


def test_portions_grow_by_the_rows_of_those_before() -> None:
    """10 of 100 gave 1: 90 more are expected to give the other 9, but a portion at most doubles the prompts."""
    assert next_number(10, num_rows=1, wanted=10, most=1000) == 20
    assert next_number(100, num_rows=99, wanted=100, most=1000) == 110, "not two prompts, which might give none"


def test_prompts_are_gathered_after_fine_tuning_which_does_not_depend_on_them(recipe: Path) -> None:
    overrides = ["sft={select: {kind: best-of-sources}}", "prompts.split.sft=0.5", "target.samples=null"]
    keys = {}
    for rows in (10, 20):
        fusion = Fusion(load_recipe(recipe, [*overrides, f"until.rows={rows}"]).recipe)
        stages = build_stages(fusion)
        assert [stage.name for stage in stages] == [
            "prompts", "sample-sources", "score-sources", "select-sft", "train-sft", "gather", "select-m", "train-m",
            "report",
        ]  # fmt: skip
        assert next(stage for stage in stages if stage.name == "gather").needs == ("score-sources", "train-sft")
        keys[rows] = stage_keys(stages, lambda model: "weights")
    changed = {name for name in keys[10] if keys[10][name] != keys[20][name]}
    assert changed == {"gather", "select-m", "train-m", "report"}
