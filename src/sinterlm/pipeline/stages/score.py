"""The stages ``score-sources``, ``score-target`` and ``score-held-out``: a score for every answer of a round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial

from sinterlm.errors import InputError
from sinterlm.models import Fingerprint
from sinterlm.pipeline.demand import Demand
from sinterlm.pipeline.forecast import (
    SCORING,
    Forecast,
    ModelPlan,
    Part,
    StagePlan,
    add,
    count,
    estimate_answer_tokens,
    estimate_prompt_tokens,
    hours,
)
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.score import score, scored_answers_to, stored_scorer
from sinterlm.pipeline.stage import RunContext, Shown, Stage, StageResult
from sinterlm.pipeline.stored_scorer import StoredScorer
from sinterlm.records import Prompt
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.settings import Preflight, ScorerSettings, build_scorer
from sinterlm.store import Store


class Score(Stage):
    """Scores the answers of a round that have no score yet."""

    def __init__(self, fusion: Fusion, round_name: str) -> None:
        self._fusion = fusion
        self._round = fusion.rounds[round_name]
        self.name = f"score-{round_name}"
        self.needs = (f"sample-{round_name}",)
        # A preview tells what every source would be worth, from all scores of its few prompts.
        is_on_demand = fusion.recipe.score == "on-demand" and fusion.trains
        self._demand = Demand(fusion, self._round) if is_on_demand else None

    def configuration(self, fingerprint: Fingerprint) -> object:
        """What decides a score besides the answer, settings, rules, weights and files; and which answers get one."""
        described = self._round.scorer.describe(fingerprint)
        return [described, self._demand.describe()] if self._demand else described

    def check(self, inputs: Inputs) -> None:
        """Check that this machine has what the scorer needs, and every prompt what its scorer reads."""
        scorer = self._round.scorer
        if inputs.is_new(id(scorer)):
            for part in scorer.walk():
                part.check(Preflight(inputs.allow_code, partial(_has_scores, part, inputs.store)))
        for name in self._round.parts:
            if inputs.is_new(id(scorer), name):  # rounds share parts
                _check_answers(scorer, inputs, name)

    def estimate(self, forecast: Forecast) -> StagePlan:
        """The cost of scoring all answers, whatever scores the store has."""
        asked = list(self._asked(forecast))
        note = "at most: stored scores are kept"
        known = [(request, prompts, number) for request, prompts, number in asked if prompts is not None]
        if len(known) < len(asked):
            return StagePlan(self.name, figures=SCORING, note=note)
        calls = sum(count(prompts) * number for _, prompts, number in known)
        tokens = sum(
            number * (estimate_prompt_tokens(prompts) + count(prompts) * estimate_answer_tokens(request))
            for request, prompts, number in known
        )
        models = []
        for part in self._round.scorer.walk():
            if (usage := part.expected_usage(calls, tokens)).requests:
                planned = ModelPlan(part.title, True, calls, usage.prompt_tokens, usage.new_tokens)
                models.append(forecast.with_costs(self.name, planned, usage, part.money))
        return StagePlan(
            self.name,
            figures=SCORING,
            calls=calls,
            money=add([model.money for model in models]),
            seconds=forecast.seconds(self.name, "scored now", calls),
            gpu_hours=hours(self._round.scorer.flops(tokens)),
            models=tuple(models),
            note=note,
        )

    def _asked(self, forecast: Forecast) -> Iterator[tuple[SamplingRequest, Part, int]]:
        """Whose answers are scored, to which prompts, and how many of each."""
        if self._demand is None:
            yield from ((request, prompts, request.num_samples) for request, prompts in forecast.asked(self._round))
            return
        for part in self._round.parts:
            for request, prompts in forecast.asked(self._round._replace(parts=(part,))):
                yield request, prompts, self._demand.most(request, part)

    def work(self, run: RunContext) -> StageResult:
        """Score what has no score."""
        parts = {part: run.prompts(part) for part in self._round.parts}
        prompts = [prompt for own in parts.values() for prompt in own]
        needed = None
        if self._demand:
            part_of = {prompt.id: part for part, own in parts.items() for prompt in own}
            needed = partial(_needed, self._demand, part_of)
        return score(run, self.name, self._round.scorer, self._round.requests, prompts, needed)

    def show(self, run: RunContext) -> Shown:
        """Nothing of its own, but refuse a report that would lack the scores that this stage has given.

        Raises:
            InputError: The scores come from rules, weights or files that the scorer no longer has.
        """
        past = run.store.finished_stages(run.fusion.run_name).get(self.name)
        counts = past.counts if past else {}
        num_scored = counts.get("answers", 0) - counts.get("without a score", 0)
        if num_scored and not self._finds_scores(run):
            raise InputError(
                f"{run.fusion.output}: {self.name} has scored {num_scored:,.0f} answers, but by other rules, weights "
                "or files than the scorer has now, so a report would show none of them. Rerun `sinterlm run`: it "
                "scores the stored answers again and writes the report"
            )
        return Shown()

    def _finds_scores(self, run: RunContext) -> bool:
        requests = [request for request in self._round.requests if request.participant.is_there]
        with closing(stored_scorer(run, self._round.scorer)) as scorer:
            found = scored_answers_to(run, scorer, requests, run.prompts(*self._round.parts))
            return not requests or any(found)  # models that are trained again have no answers yet


def _needed(
    demand: Demand, part_of: Mapping[str, str], request: SamplingRequest, answers: Sequence[Exchange]
) -> list[Exchange]:
    """Those of a model's answers to one prompt that need a score."""
    if not answers:
        return []
    part = part_of[answers[0].prompt.id]
    needed = {response.id for response in demand.needed(request, part, [entry.response for entry in answers])}
    return [entry for entry in answers if entry.response.id in needed]


def _check_answers(scorer: ScorerSettings, inputs: Inputs, part: str) -> None:
    """Check that every prompt of a part has the accepted answers that its scorer needs and that it can read them."""
    prompts = inputs.parts[part]
    path = inputs.fusion.recipe.prompts.path
    by_domain: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_domain.setdefault(prompt.domain, []).append(prompt)
    needing = {domain for domain in by_domain if build_scorer(scorer.for_domain(domain)).needs_answers}
    unanswered = [prompt.id for prompt in prompts if not prompt.answers and prompt.domain in needing]
    if unanswered:
        raise InputError(
            f"{path}: scorer {scorer.kind} needs accepted answers, but {len(unanswered)} prompts of the {part} part "
            f"have none, e.g. {unanswered[0]!r}; add `answers`, or use another scorer"
        )
    for domain, own in by_domain.items():
        for config in scorer.walk(domain):
            if check := getattr(build_scorer(config), "check_prompts", None):
                try:
                    check(own)
                except InputError as error:
                    raise InputError(f"{path}: {error}") from None


def _has_scores(scorer: ScorerSettings, store: Store | None) -> bool:
    return store is not None and StoredScorer(build_scorer(scorer), store).has_scored()
