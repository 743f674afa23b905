"""A second reward model for evaluation, so that the figures do not share the bias of the one that selected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sinterlm.formats import read_prompts, read_recorded
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.run import run_fusion
from sinterlm.recipe.build import build_scorer
from sinterlm.recipe.load import load_recipe
from sinterlm.recipe.schema import Combination, ExactMatch, RewardModel, Scorer, scorer_title
from sinterlm.records import Response
from sinterlm.scoring.protocol import Answered
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
                "sft.train.max_steps=1",
                "preference={}",
            ],
        ).recipe
    )
    run_fusion(fusion, Lines())

    summary = json.loads((fusion.output / "summary.json").read_text())
    assert summary["scorers"] == {"training": f"reward-model {first}", "held_out": f"reward-model {second}"}
    page = (fusion.output / "report.html").read_text()
    assert f"scored by reward-model {first}" in page
    assert f"scored by reward-model {second}" in page

    prompts = {prompt.id: prompt for prompt in read_prompts(recipe.parent / "questions.jsonl")}
    answers = {answer.prompt_id: answer.content for answer in read_recorded(recipe.parent / "answers.jsonl")}
    with Store(fusion.store_path, read_only=True) as store:
        parts = {part: [prompt.id for prompt in store.prompts(fusion.run_name, part)] for part in ("sft", "held_out")}

    def mean(model: str, part: str) -> float:
        answered = [
            Answered(prompts[key], Response(key, key, "old-answers", 0, answers[key], "stop", 0, 0))
            for key in parts[part]
        ]
        scores = build_scorer(RewardModel(kind="reward-model", model=model)).score(answered)
        return sum(score.value for score in scores) / len(scores)

    assert summary["held_out"]["old-answers"]["score"] == pytest.approx(mean(second, "held_out"), abs=1e-5)
    assert abs(mean(first, "held_out") - mean(second, "held_out")) > 1e-3
    counts = summary["stages"]["score-sources"]["counts"]
    assert counts["mean score"] == pytest.approx(mean(first, "sft"), abs=1e-3)


def test_a_scorer_is_called_by_its_kind_and_model() -> None:
    reward_model = RewardModel(kind="reward-model", model="org/reward-model")
    assert scorer_title(ExactMatch(kind="exact-match")) == "exact-match"
    parts: dict[str, Scorer] = {"right": ExactMatch(kind="exact-match"), "good": reward_model}
    gate = Combination(kind="combination", rule="gate", parts=parts)
    assert scorer_title(gate) == "gate of exact-match, reward-model org/reward-model"
