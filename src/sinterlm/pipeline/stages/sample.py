"""The stages ``sample-sources``, ``sample-target`` and ``sample-held-out``: ask models and keep their answers.

They differ in who is asked which prompts (:attr:`~sinterlm.pipeline.fusion.Fusion.rounds`), and in what decides that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import ClassVar

from sinterlm.models import Fingerprint, cached_fingerprint
from sinterlm.models.flops import Flops, add_flops
from sinterlm.pipeline.ask import engine_of
from sinterlm.pipeline.forecast import (
    CHARACTERS_PER_TOKEN,
    SAMPLING,
    USUAL_ANSWER_TOKENS,
    USUAL_PROMPT_TOKENS,
    Forecast,
    Part,
    StagePlan,
    count_characters,
    hours,
)
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.sample import sample
from sinterlm.pipeline.stage import RunContext, Stage, StageResult
from sinterlm.records import Dropped, response_id
from sinterlm.sampling.protocol import HoldsAnswers
from sinterlm.selection.split import Parts
from sinterlm.store import Store

BYTES_PER_ANSWER = 600
"""What an answer takes in the store besides its text: key, indices, settings and score."""


class Sample(Stage):
    """Asks every participant of a round for the answers that the store does not have."""

    round_name: ClassVar[str]
    is_for_training: ClassVar[bool] = True
    """Whether rows are made of the answers: a participant that answers nothing is then an error, and recorded answers
    that no prompt has a use for are counted."""

    def __init__(self, fusion: Fusion) -> None:
        self._fusion = fusion
        self._round = fusion.rounds[self.round_name]
        self.name = f"sample-{self.round_name}"

    def check(self, inputs: Inputs) -> None:
        """Check that this machine has what the engines need, such as the files that they read."""
        for participant in {request.participant: None for request in self._round.requests}:
            participant.config.check(participant.name)

    def estimate(self, forecast: Forecast) -> StagePlan:
        """The answers that the store does not have."""
        return estimate_sampling(self.name, forecast.asked(self._round), forecast.store)

    def work(self, run: RunContext) -> StageResult:
        """Sample what the store lacks."""
        prompts = run.prompts(*self._round.parts)
        result = sample(run, self.name, self._round.requests, prompts, must_answer=self.is_for_training)
        unused = self._find_unused(run) if self.is_for_training else ()
        return StageResult(result.counts, [*result.dropped, *unused])

    def _find_unused(self, run: RunContext) -> Iterator[Dropped]:
        """A drop for every recorded answer that no prompt of the run has a use for."""
        for request in self._round.requests:
            with closing(engine_of(run, request)) as engine:
                if isinstance(engine, HoldsAnswers):
                    prompts = run.prompts(*Parts._fields)
                    for subject, index, reason in engine.unused(prompts, num_samples=request.num_samples):
                        yield Dropped(subject, self.name, reason, f"{request.participant.name}, index {index}")


class SampleSources(Sample):
    """Training answers of the sources."""

    round_name = "sources"
    needs = ("prompts",)

    def configuration(self, fingerprint: Fingerprint) -> object:
        """How every source is asked."""
        return {request.participant.name: describe_request(request, fingerprint) for request in self._round.requests}


class SampleTarget(Sample):
    """Training answers of the target: of every form of it that a preference method compares."""

    round_name = "target"

    def __init__(self, fusion: Fusion) -> None:
        super().__init__(fusion)
        self.needs = ("prompts", *fusion.sampled_starts)
        self.reads_target = any(request.participant.weights is not None for request in self._round.requests)

    def configuration(self, fingerprint: Fingerprint) -> object:
        """How the target is asked, and in which forms; their weights are the results of earlier stages."""
        asked = self._fusion.for_training(self._fusion.answering_for(self._fusion.target))
        return [
            describe_request(asked, fingerprint),
            [request.participant.name for request in self._round.requests],
        ]


class SampleHeldOut(Sample):
    """Evaluation answers of every model, and training answers to the held-out questions for internal rewards."""

    round_name = "held-out"
    is_for_training = False
    reads_target = True

    def __init__(self, fusion: Fusion, *, after: Iterable[str]) -> None:
        super().__init__(fusion)
        self.needs = tuple(after)

    def configuration(self, fingerprint: Fingerprint) -> object:
        """What no earlier stage's key holds: how the target is evaluated and, if no row holds its answers, sampled."""
        fusion = self._fusion
        asked = describe_request(fusion.for_evaluation(fusion.target), fingerprint)
        if not fusion.recipe.preference or fusion.sampled_targets:
            return asked
        return [asked, describe_request(fusion.for_training(fusion.answering_for(fusion.target)), fingerprint)]


def describe_request(request: SamplingRequest, fingerprint: Fingerprint) -> object:
    """What decides the answers to a request."""
    return [request.identity(fingerprint), request.num_samples, request.participant.config.domains]


def estimate_sampling(name: str, asked: Sequence[tuple[SamplingRequest, Part]], store: Store | None) -> StagePlan:
    """The cost of the answers that the store does not have."""
    calls = prompt_tokens = new_tokens = disk_bytes = 0
    texts_are_known = True
    flops: list[Flops | None] = []
    for request, part in asked:
        config = request.participant.config
        if request.settings is None:
            continue  # recorded answers cost nothing
        if part is None:
            return StagePlan(name, figures=SAMPLING)
        identity = request.identity(cached_fingerprint)
        stored = store.response_ids(identity) if store and identity else set()
        means = store.mean_tokens(identity) if store and identity else None
        prefix = len(config.prompt_prefix()) / CHARACTERS_PER_TOKEN
        if isinstance(part, int):
            missing, length = part * request.num_samples, float(USUAL_PROMPT_TOKENS * CHARACTERS_PER_TOKEN)
        else:
            lacking = [
                prompt
                for prompt in part
                for index in range(request.num_samples)
                if not stored or response_id(identity or "", prompt.content_hash, index) not in stored
            ]
            missing = len(lacking)
            length = sum(map(count_characters, lacking)) / max(missing, 1)
        limit = request.settings.max_new_tokens
        per_prompt, per_answer = means or (prefix + length / CHARACTERS_PER_TOKEN, limit)
        texts_are_known &= means is not None or not missing or not isinstance(part, int)
        calls += missing
        prompt_tokens += round(missing * per_prompt)
        new_tokens += round(missing * per_answer)
        disk_bytes += round(missing * (BYTES_PER_ANSWER + per_answer * CHARACTERS_PER_TOKEN))
        usual = per_answer if means else min(per_answer, USUAL_ANSWER_TOKENS)
        flops.append(config.flops(prompt_tokens=missing * per_prompt, new_tokens=missing * usual))
    known_tokens = prompt_tokens if texts_are_known else None
    return StagePlan(name, False, SAMPLING, calls, known_tokens, new_tokens, disk_bytes, hours(add_flops(flops)))
