"""The stage ``evaluate``: every figure on the held-out questions, in ``evaluation.json``.

Rates with intervals, paired differences, and the internal rewards of quadruples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from sinterlm.chat import EncodedExample, UnfitAnswer, encode_example
from sinterlm.context import context_length
from sinterlm.evaluation.figures import Evaluation, Figures, compute_figures
from sinterlm.evaluation.rewards import QuadrupleRewards, RewardAccuracies, reward_accuracies
from sinterlm.files import atomic_write
from sinterlm.models import Fingerprint, load_model, load_tokenizer
from sinterlm.objectives.named import ResolvedObjective
from sinterlm.pipeline.candidates import candidates_of
from sinterlm.pipeline.fusion import QUADRUPLE_ROLES, Fusion, Participant
from sinterlm.pipeline.grid_store import settle
from sinterlm.pipeline.score import scored_answers
from sinterlm.pipeline.stage import RunContext, Shown, Stage, StageResult
from sinterlm.pipeline.summary import read_evaluation
from sinterlm.records import Dropped, Prompt, Role, Score, TrainingRow
from sinterlm.report import data as page
from sinterlm.template import TemplateOptions, TemplateRefusal

if TYPE_CHECKING:
    from sinterlm.training.sequence_logps import SequenceLogp

    _Logps = Mapping[str, Sequence[Mapping[Role, SequenceLogp]]]
    # By model, one mapping per quadruple from an answer's role to its log-probability.


class Evaluate(Stage):
    """Computes rates, paired differences and internal rewards."""

    name = "evaluate"
    needs = ("score-held-out",)
    reads_inputs = False

    def __init__(self, fusion: Fusion) -> None:
        self._fusion = fusion
        self.outputs = (fusion.output / "evaluation.json",)

    def configuration(self, fingerprint: Fingerprint) -> object:
        """Nothing besides the stages before it."""
        return None

    def work(self, run: RunContext) -> StageResult:
        """Compute every figure of the held-out part and write ``evaluation.json``."""
        fusion = run.fusion
        prompts, development = run.prompts("held_out"), run.prompts("development")
        evaluation = Evaluation(_figures(run, prompts), _figures(run, development) if development else None)
        dropped: Sequence[Dropped] = ()
        if fusion.recipe.preference:
            quadruples, dropped = _quadruples(run, prompts)
            examples = _encode_quadruples(fusion, quadruples) if quadruples else []
            evaluation = replace(evaluation, num_quadruples=len(examples))
            if examples:
                logps = _logps_of_models(run, examples)
                evaluation = replace(
                    evaluation, reward_accuracies=_reward_accuracies(fusion, logps), average_logps=_average_logps(logps)
                )
        with atomic_write(fusion.output / "evaluation.json") as path:
            path.write_text(json.dumps(evaluation.to_json(), indent=1))
        return StageResult({"questions": len(prompts), "models": len(evaluation.held_out.models)}, dropped)

    def show(self, run: RunContext) -> Shown:
        """The figures of every model, the differences between models, and every model's greedy answers."""
        evaluation = read_evaluation(run.fusion)
        summary = {
            "held_out": evaluation.held_out.flatten(),
            "held_out_differences": evaluation.held_out.to_json()["differences"],
            "reward_accuracies": evaluation.to_json().get("reward_accuracies", {}),
            **({"development": evaluation.development.flatten()} if evaluation.development else {}),
        }
        held_out = self._show_held_out(run, evaluation)
        average_logps = [
            page.AverageLogps(model, cast(Any, responses), values)
            for model, by_responses in evaluation.average_logps.items()
            for responses, values in by_responses.items()
        ]

        def fill(data: page.ReportData) -> page.ReportData:
            return replace(
                data,
                held_out=held_out,
                average_logps=average_logps,
                reward_accuracies=evaluation.reward_accuracies,
            )

        return Shown(summary, fill)

    def _show_held_out(self, run: RunContext, evaluation: Evaluation) -> page.HeldOut | None:
        if not evaluation.held_out.models:
            return None
        fusion, scorer = self._fusion, self._fusion.rounds["held-out"].scorer
        prompts = run.prompts("held_out")
        scored = {
            participant.name: scored_answers(run, scorer, fusion.for_evaluation(participant), prompts)
            for participant in fusion.participants
            if participant.is_there
        }
        return page.HeldOut(
            scorer=scorer.title,
            figures=evaluation.held_out,
            answers={name: [answer for own in answers.values() for answer in own] for name, answers in scored.items()},
            featured=fusion.fused.name if fusion.fused else "",
        )


def _figures(run: RunContext, prompts: Sequence[Prompt]) -> Figures:
    """The figures of every model on ``prompts``."""
    fusion = run.fusion
    return compute_figures(
        {participant.name: held_out_scores(run, prompts, participant) for participant in fusion.participants},
        {prompt.id: prompt.domain for prompt in prompts},
        fused=[model.name for model in fusion.trained],
    )


def held_out_scores(run: RunContext, prompts: Sequence[Prompt], participant: Participant) -> dict[str, Score]:
    """The score of the model's one evaluation answer, by prompt id; prompts without a scored answer are missing."""
    scorer = run.fusion.rounds["held-out"].scorer
    scored = scored_answers(run, scorer, run.fusion.for_evaluation(participant), prompts)
    return {prompt_id: answers[0].score for prompt_id, answers in scored.items()}


def _quadruples(run: RunContext, prompts: Sequence[Prompt]) -> tuple[Sequence[TrainingRow], Sequence[Dropped]]:
    """Quadruples of the held-out questions, selected as the recipe selects them for training; for measurement only."""
    fusion = run.fusion
    candidates = candidates_of(run, prompts, fusion.answers_to("held_out"))
    selection = fusion.quadruple_policy.select(candidates, seed=fusion.recipe.seed, stage="evaluate")
    return selection.rows, selection.dropped


def _logps_of_models(run: RunContext, examples: Sequence[Sequence[EncodedExample]]) -> _Logps:
    """The log-probabilities of the quadruples' answers under every form of the target."""
    models = (run.fusion.target, *run.fusion.trained)
    logps = {}
    with run.reporter.task("log-probabilities", len(models), "models") as task:
        for model in models:
            assert model.weights is not None
            logps[model.name] = _row_logps(model.weights, examples)
            task.advance(1)
    return logps


def _reward_accuracies(fusion: Fusion, logps: _Logps) -> dict[str, RewardAccuracies]:
    """How often each preference-trained model's internal reward ranks the quadruples correctly."""
    accuracies = {}
    for method in fusion.recipe.preference:
        chosen = settle(fusion, method).objective
        objective = chosen.resolve()
        policy, reference = logps[fusion.model_of(method).name], logps[fusion.start_of(method).name]
        columns = [_internal_rewards(objective, policy, reference, role) for role in QUADRUPLE_ROLES]
        rewards = [QuadrupleRewards(*row) for row in zip(*columns, strict=True)]
        alpha = float(objective.values.get("alpha", 0.0))
        accuracies[fusion.model_of(method).name] = reward_accuracies(rewards, alpha=alpha)
    return accuracies


def _average_logps(logps: _Logps) -> dict[str, dict[str, list[float]]]:
    """By model, the mean log-probabilities per token of y_ws and of the target's two answers."""
    return {
        name: {
            "chosen_source": [row["chosen_source"].mean for row in rows],
            "target": [row[role].mean for row in rows for role in ("chosen_target", "rejected")],
        }
        for name, rows in logps.items()
    }


def _internal_rewards(
    objective: ResolvedObjective,
    policy: Sequence[Mapping[Role, SequenceLogp]],
    reference: Sequence[Mapping[Role, SequenceLogp]],
    role: Role,
) -> list[float]:
    """The reward of each row's answer with ``role``, without beta, which scales all rewards equally."""
    import torch

    from sinterlm.objectives import SequenceLogps, internal_rewards

    logps = SequenceLogps(
        torch.tensor([row[role].logp for row in policy], dtype=torch.float64),
        torch.tensor([row[role].logp for row in reference], dtype=torch.float64),
        torch.tensor([row[role].num_tokens for row in policy]),
    )
    rewards: list[float] = internal_rewards(objective, logps).tolist()
    return rewards


def _encode_quadruples(fusion: Fusion, rows: Sequence[TrainingRow]) -> list[list[EncodedExample]]:
    """Encode the answers of every row that the target could be trained on, in the order of the roles.

    All forms of the target share its tokenizer and template.
    """
    target = fusion.recipe.target
    tokenizer = load_tokenizer(target.model)
    options = TemplateOptions.of(target.chat_template_kwargs, target.template_date)
    encoded = []
    for row in rows:
        with suppress(UnfitAnswer, TemplateRefusal):  # training drops and counts such rows
            responses = [row.with_role(role) for role in QUADRUPLE_ROLES]
            encoded.append(
                [
                    encode_example(
                        tokenizer, row.messages, response.content, truncated=response.truncated, options=options
                    )
                    for response in responses
                ]
            )
    return encoded


def _row_logps(location: str, rows: Sequence[Sequence[EncodedExample]]) -> list[dict[Role, SequenceLogp]]:
    """The log-probabilities of every row's answers under the model at ``location``, by role."""
    from sinterlm.training.sequence_logps import sequence_logps  # imports torch

    # Rewards are small differences of large sums: half precision would lose them.
    model = load_model(location, dtype="float32")
    context = context_length(model) or sys.maxsize
    examples = [
        # A source's answer may be longer than what the target can read.
        example._replace(response_ids=example.response_ids[: context - len(example.prompt_ids)])
        for row in rows
        for example in row
    ]
    logps = iter(sequence_logps(model, examples))
    return [{role: next(logps) for role in QUADRUPLE_ROLES} for _ in rows]
