"""A preview: a few prompts through all stages but training, what each source adds, and a plan made from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sinterlm import cli
from sinterlm.errors import BudgetError
from sinterlm.pipeline.fusion import Fusion, load_fusion
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.preview import read_preview
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.stages import build_stages
from sinterlm.pipeline.status import status_of
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Candidates, Prompt, Response, Score, Scored
from sinterlm.selection.source_values import value_sources
from sinterlm.store import Store
from tests.chat_server import Answer, ScriptedServer, serve

NUM_PROMPTS = 60
RECIPE = """\
output: FOLDER/run
prompts: {path: prompts.jsonl, split: {sft: 0}}
target: {model: someone/small-1b, samples: {engine: recorded, path: own.jsonl}}
sources:
  good: {engine: endpoint, model: good, base_url: URL, price: {input: 2.0, output: 10.0}, sampling: {num_samples: 2}}
  poor: {engine: endpoint, model: poor, base_url: URL, price: {input: 0.5, output: 1.0}, sampling: {num_samples: 2}}
scorer: {kind: exact-match}
preference:
  m: {select: {kind: wrpo}, objective: {kind: wrpo}}
"""


def script(request: dict[str, Any]) -> Answer:
    """The good model is right, the poor one for even questions; longer questions have longer answers."""
    question = request["messages"][-1]["content"]
    number = int(re.findall(r"\d+", question)[0])
    is_right = request["model"] == "good" or number % 2 == 0
    choices = [
        {"message": {"role": "assistant", "content": str(number + 1) if is_right else "no"}, "finish_reason": "stop"}
        for _ in range(request.get("n", 1))
    ]
    usage = {"prompt_tokens": 20 + number % 7, "completion_tokens": (30 + 2 * (number % 11)) * len(choices)}
    return Answer(body=json.dumps({"choices": choices, "model": request["model"], "usage": usage}))


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with serve(script) as server:
        yield server


@pytest.fixture
def recipe(server: ScriptedServer, tmp_path: Path) -> Path:
    server.requests.clear()
    prompts = [
        {"id": f"p{number}", "prompt": f"What is {number} plus 1?", "answers": [str(number + 1)]}
        for number in range(NUM_PROMPTS)
    ]
    own = [
        {"prompt_id": prompt["id"], "response": text} for prompt in prompts for text in (*prompt["answers"], "nothing")
    ]
    for name, lines in {"prompts": prompts, "own": own}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(tmp_path)).replace("URL", server.url))
    return path


def fusion_of(recipe: Path, *overrides: str) -> Fusion:
    return Fusion(load_recipe(recipe, overrides).recipe)


def spent_on(fusion: Fusion, run: str) -> dict[str, float]:
    with closing(Store(fusion.store_path, read_only=True)) as store:
        return {spent.model: spent.money for spent in store.ledger(run)}


def test_a_preview_trains_nothing_and_its_answers_are_not_paid_for_again(
    recipe: Path, server: ScriptedServer, tmp_path: Path
) -> None:
    done = CliRunner().invoke(cli.app, ["run", str(recipe), "--preview"], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(server.requests) == 2 * 10, "a request a prompt and source, for both samples"
    preview = tmp_path / "run" / "preview"
    assert [stage["name"] for stage in status_of(preview)["stages"]] == [
        "prompts", "sample-sources", "score-sources", "sample-target", "score-target", "select-m", "report",
    ]  # fmt: skip
    assert {stage["state"] for stage in status_of(preview)["stages"]} == {"done"}
    assert (preview / "report.html").is_file()
    values = json.loads((preview / "summary.json").read_text())["source_values"]
    good, poor = values["good"], values["poor"]
    assert (good["answers"], good["mean_score"], good["best_with"], poor["best_without"]) == (20, 1.0, 1.0, 1.0)
    assert good["best_without"] == poor["mean_score"], "the poor model's two answers are alike"
    assert good["share"] + poor["share"] == 1.0
    assert "share of y_ws" in done.output
    asked = {request["messages"][0]["content"] for request in server.requests}
    run_fusion(fusion_of(recipe), SilentReporter(), until="select-m")
    assert len(server.requests) == 2 * NUM_PROMPTS
    assert {request["messages"][0]["content"] for request in server.requests[20:]}.isdisjoint(asked)


@pytest.mark.parametrize(("arguments", "number"), [(["--preview", "3"], 3), (["--preview", "seed=1"], 10)])
def test_the_number_of_prompts_may_be_given(
    recipe: Path, server: ScriptedServer, arguments: list[str], number: int
) -> None:
    done = CliRunner().invoke(cli.app, ["run", str(recipe), *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(server.requests) == 2 * number


def test_a_plan_from_a_preview_is_within_a_fifth_of_what_is_then_paid(recipe: Path) -> None:
    fusion = fusion_of(recipe)
    run_fusion(fusion.for_preview(10), SilentReporter())
    left = read_preview(fusion).left_to_ask
    assert plan_fusion(fusion).to_json() == read_preview(fusion).plan.to_json(), "a run's own preview is its pilot"
    planned = {name: model.money for name, model in left.items()}
    assert {model.calls for model in left.values()} == {2 * (NUM_PROMPTS - 10)}
    run_fusion(fusion, SilentReporter(), until="sample-sources")
    paid = spent_on(fusion, fusion.run_name)
    assert planned == {name: pytest.approx(money, rel=0.2) for name, money in paid.items()}
    assert plan_fusion(fusion).stages[1].done


def test_a_preview_and_its_run_share_a_budget(recipe: Path) -> None:
    """The preview takes two thirds of the budget, the run half as much as the preview and what is under way then."""
    fusion = fusion_of(recipe)
    preview = fusion.for_preview(30)
    assert (preview.paying_runs, fusion.paying_runs) == ((".", "preview"), (".", "preview"))
    run_fusion(preview, SilentReporter())
    money = sum(spent_on(fusion, "preview").values())
    limited = fusion_of(
        recipe, f"budget.money={1.5 * money}", "sources.good.concurrency=1", "sources.poor.concurrency=1"
    )
    with pytest.raises(BudgetError, match="budget is reached"):
        run_fusion(limited, SilentReporter(), until="sample-sources")
    assert 0.5 * money <= sum(spent_on(fusion, ".").values()) < 0.8 * money


def test_a_preview_stands_for_trained_forms_by_the_target_itself(recipe: Path, tmp_path: Path) -> None:
    sft = "sft={select: {kind: best-of-sources}}"
    fusion = fusion_of(
        recipe, sft, "prompts.split={held_out: 5, sft: 0.5}", "target.samples=null",
        "evaluation={held_out: {scorer: {kind: exact-match}}}",
    )  # fmt: skip
    preview = fusion.for_preview(2)
    assert [participant.name for participant in preview.sampled_targets] == ["target"]
    assert [participant.name for participant in preview.participants] == ["good", "poor", "target"]
    assert [stage.name for stage in build_stages(preview)] == [
        "prompts", "sample-sources", "score-sources", "select-sft", "sample-target", "score-target", "select-m",
        "sample-held-out", "score-held-out", "report",
    ]  # fmt: skip
    run_fusion(preview, SilentReporter(), until="select-sft")
    again = load_fusion(tmp_path / "run" / "preview")
    assert (again.recipe.preview, again.run_name, again.store_path) == (2, "preview", fusion.store_path)


def scored(prompt: str, source: str, index: int, value: float, passed: bool | None = None) -> Scored:
    key = f"{prompt}-{source}-{index}"
    return Scored(Response(key, prompt, source, index, key, "stop", 1, 1), Score(key, "s", value, passed))


def candidates(prompt: str, *answers: tuple[str, float], passed: bool | None = None) -> Candidates:
    found = [scored(prompt, source, index, value, passed) for index, (source, value) in enumerate(answers)]
    return Candidates(Prompt(prompt, ()), tuple(found))


def test_the_value_of_a_source_by_hand() -> None:
    """The best scores are 3 (a), 5 (b), 4 (a; nobody else answers) and 2 (c).

    Without a they would be 1, 5 and 2 on the prompts that others answer; without b 3, 2, 2; without c 3, 5, 1.
    """
    given = [
        candidates("p0", ("a", 3.0), ("a", 0.0), ("b", 1.0)),
        candidates("p1", ("a", 2.0), ("b", 5.0)),
        candidates("p2", ("a", 4.0)),
        candidates("p3", ("b", 1.0), ("c", 2.0)),
        candidates("p4"),
    ]
    a, b, c, d = value_sources(iter(given), ["a", "b", "c", "d"], seed=0, truncated="drop")
    assert [value.num_chosen for value in (a, b, c, d)] == [2, 1, 1, 0]
    assert [value.num_answers for value in (a, b, c, d)] == [4, 3, 1, 0]
    assert (a.mean_score, d.mean_score) == (9 / 4, None)
    assert (a.num_alone, a.means) == (1, (10 / 3, 8 / 3))
    assert b.means == (14 / 4, (3 + 2 + 4 + 2) / 4)
    assert c.means == (14 / 4, (3 + 5 + 4 + 1) / 4)
    assert d.means == (14 / 4, 14 / 4), "a source that answers nothing adds nothing"


def test_a_best_answer_that_fails_is_nobodys() -> None:
    (only,) = value_sources([candidates("p0", ("a", 0.0), passed=False)], ["a"], seed=0, truncated="drop")
    assert (only.num_chosen, only.num_alone, only.means) == (0, 1, None)
