"""A second reward model for evaluation, so the figures do not share the bias of the one used for selection."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from sinterlm.formats import read_prompts, read_recorded, read_rows
from sinterlm.pipeline.finished import read_only
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.report import read_report
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.status import status_of
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Response
from sinterlm.scoring.combination import Combination
from sinterlm.scoring.exact_match import ExactMatch
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.reward_model import RewardModel
from sinterlm.scoring.settings import ScorerSettings, build_scorer
from sinterlm.store import Store
from tests.test_pipeline import Lines
from tests.tiny import save_tiny_reward_model
from tests.tiny_fusion import write_tiny_fusion


def test_held_out_answers_are_scored_by_the_second_reward_model_and_by_no_other(tmp_path: Path) -> None:
    recipe = write_tiny_fusion(tmp_path)
    first, second = str(tmp_path / "models" / "reward"), str(save_tiny_reward_model(tmp_path / "second", seed=9))
    fusion = Fusion(
        load_recipe(
            recipe,
            [
                "sources={old-answers: {engine: recorded, path: answers.jsonl}}",
                f"evaluation.held_out.scorer={{kind: reward-model, model: {second}}}",
                "sft=null",
                "preference={}",
            ],
        ).recipe
    )
    run_fusion(fusion, Lines())

    summary = json.loads((fusion.output / "summary.json").read_text())
    assert summary["scorers"] == {"training": "reward-model reward", "held_out": "reward-model second"}
    page = (fusion.output / "report.html").read_text()
    assert "scored by reward-model reward" in page
    assert "scored by reward-model second" in page

    prompts = {prompt.id: prompt for prompt in read_prompts(recipe.parent / "questions.jsonl")}
    answers = {answer.prompt_id: answer.content for answer in read_recorded(recipe.parent / "answers.jsonl")}
    with Store(fusion.store_path, read_only=True) as store:
        parts = {
            part: [prompt.id for prompt in store.prompts(fusion.run_name, part)] for part in ("preference", "held_out")
        }

    def mean(model: str, part: str) -> float:
        answered = [
            Exchange(prompts[key], Response(key, key, "old-answers", 0, answers[key], "stop", 0, 0))
            for key in parts[part]
        ]
        scores = build_scorer(RewardModel(kind="reward-model", model=model)).score(answered)
        return sum(score.value for score in scores) / len(scores)

    assert summary["held_out"]["old-answers"]["score"] == pytest.approx(mean(second, "held_out"), abs=1e-5)
    assert abs(mean(first, "held_out") - mean(second, "held_out")) > 1e-3
    counts = summary["stages"]["score-sources"]["counts"]
    assert counts["mean score"] == pytest.approx(mean(first, "preference"), abs=1e-3)


def test_recorded_answers_stand_for_the_targets_in_the_held_out_quadruples(tmp_path: Path) -> None:
    """The source passes if the question's number mod 4 is 0 or 1 (:func:`tests.tiny_fusion.recorded_answer`).

    These give a quadruple, with the target's two recorded answers in it. What is measured of the target is its own
    greedy answer.
    """
    recipe = write_tiny_fusion(tmp_path, num_questions=24)
    prompts = read_prompts(tmp_path / "questions.jsonl")
    numbers = {prompt.id: number for number, prompt in enumerate(prompts)}
    recorded = {
        prompt.id: (prompt.answers[0] if number % 2 == 0 else "perhaps", "dunno")
        for number, prompt in enumerate(prompts)
    }
    lines = [
        {"prompt_id": key, "response": text, "index": index}
        for key, texts in recorded.items()
        for index, text in enumerate(texts)
    ]
    (tmp_path / "target.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = [
        "sources={old-answers: {engine: recorded, path: answers.jsonl}}",
        "target.samples={engine: recorded, path: target.jsonl, num_samples: 2}",
        "scorer={kind: exact-match}",
        "sft=null",
        "preference={wrpo: {select: {kind: wrpo}, objective: {kind: wrpo}, train: {max_steps: 1, max_length: 128}}}",
    ]
    fusion = Fusion(load_recipe(recipe, changes).recipe)
    run_fusion(fusion, Lines())

    figures = json.loads((fusion.output / "evaluation.json").read_text())
    with closing(Store(fusion.store_path, read_only=True)) as store:
        run = read_only(fusion, store)
        held_out = store.prompts(fusion.run_name, "held_out")
        data = read_report(run)
        asked = list(data.parts["held_out"])
        own = {answer.response.prompt_id: answer for answer in data.held_out.answers["target"]} if data.held_out else {}
    expected = [prompt.id for prompt in held_out if numbers[prompt.id] % 4 in (0, 1)]
    assert 0 < len(expected) < len(held_out)
    assert figures["num_quadruples"] == len(expected)
    (accuracies,) = figures["reward_accuracies"].values()
    assert {rate["n"] for rate in accuracies.values()} == {len(expected)}
    assert {name: len(each["target"]) for name, each in figures["average_logps"].items()} == {
        "target": 2 * len(expected),
        "target-wrpo": 2 * len(expected),
    }
    shown = {each.prompt.id: [answer.response.content for answer in each.target] for each in asked}
    assert shown == {prompt.id: list(recorded[prompt.id]) for prompt in held_out}
    assert own.keys() == shown.keys()
    assert all(answer.response.content not in shown[key] for key, answer in own.items()), "the model's, not the file's"
    assert figures["models"]["target"]["exact_match"]["value"] == 0.0
    row = read_rows(fusion.rows_path("wrpo"))[0]
    assert [answer.content for answer in row.responses[1:]] in (
        list(recorded[row.prompt_id]),
        list(recorded[row.prompt_id])[::-1],
    )

    def state_of_evaluation() -> str:
        (state,) = (stage["state"] for stage in status_of(fusion.output)["stages"] if stage["name"] == "evaluate")
        return str(state)

    assert state_of_evaluation() == "done"
    changed = json.loads((tmp_path / "target.jsonl").read_text().splitlines()[0]) | {"response": "something else"}
    (tmp_path / "target.jsonl").write_text(json.dumps(changed) + "\n")
    assert state_of_evaluation() == "outdated"


def test_a_scorer_is_called_by_its_kind_and_model() -> None:
    reward_model = RewardModel(kind="reward-model", model="org/reward-model")
    assert ExactMatch(kind="exact-match").title == "exact-match"
    parts: dict[str, ScorerSettings] = {"right": ExactMatch(kind="exact-match"), "good": reward_model}
    gate = Combination(kind="combination", rule="gate", parts=parts)
    assert gate.title == "gate of exact-match, reward-model org/reward-model"
