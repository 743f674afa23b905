"""Scores on demand, and stages that hold a few answers at a time: rows and drops stay the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sinterlm.formats import read_rows
from sinterlm.pipeline.demand import Demand
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.run import run_fusion
from sinterlm.recipe.load import load_recipe
from sinterlm.records import TrainingRow
from sinterlm.store import Store
from tests.test_pipeline import Lines
from tests.tiny import save_tiny

NUM_PROMPTS = 12
WRPO = "{kind: wrpo, sources: [b]}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded answers of two sources and the target, right and wrong ones; some empty, some cut, some all alike."""
    folder = tmp_path_factory.mktemp("demand")
    save_tiny(folder / "target")
    write_lines(
        folder / "questions.jsonl",
        ({"id": f"p{n}", "prompt": f"What is {n} plus 1?", "answers": [str(n + 1)]} for n in range(NUM_PROMPTS)),
    )
    for source in ("a", "b", "own"):
        write_lines(folder / f"{source}.jsonl", (line for n in range(NUM_PROMPTS) for line in answers(source, n)))
    path = folder / "recipe.yaml"
    path.write_text(
        f"""\
output: {folder}/run
prompts: {{path: questions.jsonl, split: {{sft: 0.5, preference: rest}}}}
target: {{model: {folder}/target, samples: {{engine: recorded, path: own.jsonl}}}}
sources:
  a: {{engine: recorded, path: a.jsonl}}
  b: {{engine: recorded, path: b.jsonl}}
scorer: {{kind: exact-match}}
sft: {{select: {{kind: best-of-sources, sources: [a], num_samples: 2}}, train: {{}}}}
preference:
  wrpo: {{select: {WRPO}, objective: {{kind: wrpo, alpha: 0.5}}, train: {{}}}}
"""
    )
    return path


def answers(source: str, number: int) -> Iterable[Mapping[str, object]]:
    texts = [str(number + 1), f"It is {number + 1}.", f"{number}, I think", "" if number % 3 == 0 else "no idea"]
    if number % 4 == 0:
        texts = texts[:1] * 4
    for index, text in enumerate(texts):
        reason = "length" if index == 2 and number % 2 else "stop"
        yield {"prompt_id": f"p{number}", "source": source, "index": index, "response": text, "finish_reason": reason}


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Result(NamedTuple):
    rows: dict[str, list[TrainingRow]]
    reasons: dict[str, list[tuple[str, str]]]
    """By stage, what was dropped and why."""
    counts: dict[str, Mapping[str, float]]
    num_scores: Counter[str]
    """By source or target."""


def select(recipe: Path, output: Path, *overrides: str) -> Result:
    """Score and select, each stage by its own."""
    fusion = Fusion(load_recipe(recipe, (f"output={output}", *overrides)).recipe)
    run_fusion(fusion, Lines(), until="select-sft")
    names = ["sft", *fusion.recipe.preference]
    stages = [
        *(["sample-target", "score-target"] if "target" in fusion.rounds else []),
        *(f"select-{name}" for name in names[1:]),
    ]
    for stage in stages:
        run_fusion(fusion, Lines(), only=stage)
    with closing(Store(fusion.store_path, read_only=True)) as store:
        reasons: dict[str, list[tuple[str, str]]] = {}
        for drop in store.dropped(fusion.run_name):
            reasons.setdefault(drop.stage, []).append((drop.subject, drop.reason))
        query = """SELECT places.identity FROM scores JOIN places USING (response_id)"""
        who = {fusion.for_training(each).identity(): each.name for each in (*fusion.sources, *fusion.sampled_targets)}
        num_scores = Counter(who[row["identity"]] for row in store._read(query))
        counts = {name: stage.counts for name, stage in store.finished_stages(fusion.run_name).items()}
    return Result({name: read_rows(fusion.rows_path(name)) for name in names}, reasons, counts, num_scores)


def test_on_demand_gives_the_same_rows_for_fewer_scores(recipe: Path, tmp_path: Path) -> None:
    every = select(recipe, tmp_path / "all")
    demanded = select(recipe, tmp_path / "demanded", "score=on-demand")
    assert demanded.rows == every.rows
    assert {stage: drops for stage, drops in demanded.reasons.items() if stage.startswith("select")} == {
        stage: drops for stage, drops in every.reasons.items() if stage.startswith("select")
    }
    assert every.num_scores.total() == NUM_PROMPTS // 2 * 4 * 5  # two sources to all prompts, the target to half
    # Of a, 2 of 4 answers to the prompts for SFT; of b, no cut or empty ones, and only to preference prompts; of the
    # target, nothing if all of its answers are the same.
    assert 0 < demanded.num_scores["a"] <= NUM_PROMPTS // 2 * 2
    assert 0 < demanded.num_scores["b"] < NUM_PROMPTS // 2 * 4
    assert 0 < demanded.num_scores["target"] < NUM_PROMPTS // 2 * 4
    left = every.num_scores.total() - demanded.num_scores.total()
    assert sum(demanded.counts[f"score-{name}"]["not needed"] for name in ("sources", "target")) == left


def test_what_one_method_leaves_another_may_need(recipe: Path, tmp_path: Path) -> None:
    more = "preference.more={select: {kind: fusechat3, truncated: keep}, objective: {kind: dpo, beta: 0.1}, train: {}}"
    every, demanded = (
        select(recipe, tmp_path / how, more, f"score={how}", "preference.wrpo.select={kind: on-policy}",
               "preference.wrpo.objective={kind: dpo, beta: 0.1}")
        for how in ("all", "on-demand")
    )  # fmt: skip
    assert demanded.rows == every.rows
    assert demanded.rows["more"]


def test_a_change_of_what_is_needed_scores_the_rest(recipe: Path, tmp_path: Path) -> None:
    few = select(recipe, tmp_path / "run", "score=on-demand")
    more = select(recipe, tmp_path / "run", "score=on-demand", "sft.select.num_samples=4")
    assert more.num_scores["a"] > few.num_scores["a"]
    assert more.counts["score-sources"]["scored now"] == more.num_scores["a"] - few.num_scores["a"]
    again = select(recipe, tmp_path / "run")
    assert again.num_scores.total() == NUM_PROMPTS // 2 * 4 * 5


def test_a_plan_counts_what_policies_look_at(recipe: Path, tmp_path: Path) -> None:
    def calls(*overrides: str) -> dict[str, Any]:
        planned = plan_fusion(Fusion(load_recipe(recipe, (f"output={tmp_path}", *overrides)).recipe))
        return {stage.name: stage.calls for stage in planned.stages if stage.name.startswith("score")}

    half = NUM_PROMPTS // 2
    assert calls() == {"score-sources": NUM_PROMPTS * 10, "score-target": half * 5}
    assert calls("score=on-demand") == {"score-sources": half * 2 + half * 5, "score-target": half * 5}


def test_evaluation_answers_always_need_scores(recipe: Path, tmp_path: Path) -> None:
    """Of the answers for quadruples, those to held-out questions that the method's policy looks at."""
    overrides = (
        f"output={tmp_path}",
        "score=on-demand",
        "prompts.split.held_out=2",
        "evaluation.held_out={scorer: {kind: exact-match}}",
    )
    fusion = Fusion(load_recipe(recipe, overrides).recipe)
    asked = fusion.rounds["held-out"]
    demand = Demand(fusion, asked)
    most = [
        (request.participant.name, [demand.most(request, part) for part in ("held_out", "development")])
        for request in asked.requests
    ]
    models = ["a", "b", "target", "target-sft", "target-sft-wrpo"]
    assert most[: len(models)] == [(name, [1, 1]) for name in models]
    assert most[len(models) :] == [("a", [0, 0]), ("b", [5, 0]), ("target", [5, 0])]


@pytest.mark.parametrize("score", ["all", "on-demand"])
def test_windows_change_nothing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: str) -> None:
    whole = select(recipe, tmp_path / "whole", f"score={score}")
    monkeypatch.setattr("sinterlm.pipeline.score.WINDOW", 7)
    monkeypatch.setattr("sinterlm.pipeline.score.READING_BATCH", 2)
    monkeypatch.setattr("sinterlm.pipeline.stages.select.SELECTED_AT_ONCE", 3)
    monkeypatch.setattr("sinterlm.formats.row_files.ROW_GROUP", 2)
    monkeypatch.setattr("sinterlm.streams.SPOOL_BYTES", 1)
    monkeypatch.setattr("sinterlm.store.store.CHUNK", 5)
    assert select(recipe, tmp_path / "windows", f"score={score}") == whole
