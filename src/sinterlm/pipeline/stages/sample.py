"""The stages ``sample-sources``, ``sample-target`` and ``sample-held-out``: ask models and keep their answers.

They differ in who is asked which prompts (:attr:`~sinterlm.pipeline.fusion.Fusion.rounds`), and in what decides that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import ClassVar

from sinterlm.errors import InputError
from sinterlm.models import Fingerprint
from sinterlm.pipeline.ask import engine_of
from sinterlm.pipeline.forecast import Forecast, StagePlan
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.sample import sample
from sinterlm.pipeline.sampling_cost import estimate_sampling
from sinterlm.pipeline.stage import RunContext, Stage, StageResult
from sinterlm.records import Dropped
from sinterlm.sampling.protocol import HoldsAnswers
from sinterlm.streams import Spool


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
        return estimate_sampling(self.name, forecast.asked(self._round), forecast)

    def work(self, run: RunContext) -> StageResult:
        """Sample what the store lacks."""
        prompts = run.prompts(*self._round.parts)
        result = sample(run, self.name, self._round.requests, prompts, must_answer=self.is_for_training)
        unused = Spool(self._find_unused(run) if self.is_for_training else ())
        return StageResult(result.counts, chain(result.dropped, unused))

    def _find_unused(self, run: RunContext) -> Iterator[Dropped]:
        """A drop for every recorded answer that no prompt of the run has a use for."""
        for request in self._round.requests:
            with closing(engine_of(run, request)) as engine:
                if isinstance(engine, HoldsAnswers):
                    for subject, index, reason in engine.unused(run.split(), num_samples=request.num_samples):
                        yield Dropped(subject, self.name, reason, f"{request.participant.name}, index {index}")


class SampleSources(Sample):
    """Training answers of the sources."""

    round_name = "sources"
    needs = ("prompts",)

    def check(self, inputs: Inputs) -> None:
        """Check also that no two sources that are asked at the same time would be asked for the same answers.

        Raises:
            InputError: Two are, so each answer would be paid for twice and kept once.
        """
        super().check(inputs)
        names: dict[str, str] = {}
        for request in self._round.requests:
            if not request.participant.config.runs_elsewhere:
                continue
            name = request.participant.name
            other = names.setdefault(request.identity() or name, name)
            if other != name:
                raise InputError(
                    f"sources.{other} and sources.{name} ask the same model in the same way, so every answer would be "
                    "paid for twice and stored once. Make them one source with several base_url, or remove one; if "
                    "different weights answer, give each source its own revision"
                )

    def configuration(self, fingerprint: Fingerprint) -> object:
        """How every source is asked, and that the preference part is not asked here, if it is not."""
        asked = {request.participant.name: describe_request(request, fingerprint) for request in self._round.requests}
        return [asked, "without preference"] if self._fusion.gathers else asked


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
