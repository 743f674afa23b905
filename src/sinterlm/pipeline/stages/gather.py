"""The stage ``gather``: asks prompts of the preference part until enough of them have given a row (``until``).

Prompts are asked in the split's order, portion by portion. How large a portion is depends only on the rows of those
before it. So the prompts asked, and the rows, are the same whatever the store had before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sinterlm.models import Fingerprint
from sinterlm.pipeline.forecast import SAMPLING, Forecast, Part, StagePlan, add, add_hours
from sinterlm.pipeline.fusion import GATHER, Fusion, SamplingRequest
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.sample import sample
from sinterlm.pipeline.sampling_cost import estimate_sampling
from sinterlm.pipeline.stage import RunContext, Stage, StageResult
from sinterlm.pipeline.stages.sample import describe_request
from sinterlm.pipeline.stages.score import Score
from sinterlm.pipeline.stages.select import Select
from sinterlm.records import Dropped, Prompt
from sinterlm.streams import Spool

LEAST_GROWTH = 0.1
"""A portion has at least this share of the prompts asked before: many small ones would load models again and again."""

ENOUGH_TO_JUDGE = 10
"""A model that answers none of this many prompts is at fault; of fewer, the prompts may be."""


def next_number(num_asked: int, *, num_rows: int, wanted: int, most: int) -> int:
    """How many prompts to have asked next, by the rows that those asked so far have given; at most twice as many.

    >>> next_number(0, num_rows=0, wanted=100, most=1000)
    100
    >>> next_number(100, num_rows=80, wanted=100, most=1000), next_number(100, num_rows=0, wanted=100, most=150)
    (125, 150)
    """
    if not num_asked:
        return min(wanted, most)
    needed = math.ceil((wanted - num_rows) * num_asked / num_rows) if num_rows else num_asked
    return min(most, num_asked + min(num_asked, max(needed, math.ceil(LEAST_GROWTH * num_asked))))


class Gather(Stage):
    """Asks the sources and the target, and scores their answers, until every preference method has enough rows."""

    name = GATHER

    def __init__(self, fusion: Fusion) -> None:
        self._fusion = fusion
        self._rounds = [fusion.rounds[name] for name in fusion.gathered_rounds]
        self._scoring = [Score(fusion, name) for name in fusion.gathered_rounds]
        self._scoring[0].name = "score-sources"  # in the ledger, and in a pilot, it is the same work
        self._selecting = [Select(fusion, method) for method in fusion.recipe.preference]
        self._requests: list[SamplingRequest] = [request for each in self._rounds for request in each.requests]
        self.needs = tuple(dict.fromkeys(("score-sources", *fusion.sampled_starts)))
        targets = fusion.sampled_targets
        self.reads_target = any(target.weights is not None for target in targets)

    def configuration(self, fingerprint: Fingerprint) -> object:
        """How many rows are wanted, how they are selected, and how the target is asked."""
        fusion = self._fusion
        assert fusion.recipe.until
        return [
            fusion.recipe.until.model_dump(),
            [selecting.configuration(fingerprint) for selecting in self._selecting],
            describe_request(fusion.for_training(fusion.answering_for(fusion.target)), fingerprint),
        ]

    def check(self, inputs: Inputs) -> None:
        """Check that this machine has what the engines and the scorer need."""
        for participant in {request.participant: None for request in self._requests}:
            participant.config.check(participant.name)
        for scoring in self._scoring:
            scoring.check(inputs)

    def estimate(self, forecast: Forecast) -> StagePlan:
        """The cost if as many prompts as allowed are asked."""
        until = self._fusion.recipe.until
        assert until
        whole = forecast.parts["preference"]
        most: Part = whole
        if until.candidates is not None and whole is not None:
            most = min(whole, until.candidates) if isinstance(whole, int) else whole[: until.candidates]
        forecast = replace(forecast, parts={**forecast.parts, "preference": most})
        plans = [
            plan
            for each, scoring, stage in zip(
                self._rounds, self._scoring, ("sample-sources", "sample-target"), strict=False
            )
            for plan in (estimate_sampling(stage, forecast.asked(each), forecast), scoring.estimate(forecast))
        ]
        return StagePlan(
            self.name,
            figures=SAMPLING,
            calls=add([plan.calls for plan in plans]),
            prompt_tokens=add([plan.prompt_tokens for plan in plans if "prompt_tokens" in plan.figures]),
            new_tokens=add([plan.new_tokens for plan in plans if "new_tokens" in plan.figures]),
            money=add([plan.money for plan in plans]),
            seconds=add([plan.seconds for plan in plans]),
            disk_bytes=add([plan.disk_bytes for plan in plans if "disk_bytes" in plan.figures]),
            gpu_hours=add_hours([plan.gpu_hours for plan in plans]),
            models=tuple(model for plan in plans for model in plan.models),
            note=f"at most, until there are {until.rows:,} rows",
        )

    def work(self, run: RunContext) -> StageResult:
        """Ask portion after portion."""
        until = self._fusion.recipe.until
        assert until
        prompts = run.store.prompts(run.fusion.run_name, "preference")
        most = min(len(prompts), until.candidates or len(prompts))
        num_asked = num_rows = 0
        result = StageResult({})
        while num_rows < until.rows and num_asked < most:
            before, num_asked = num_asked, next_number(num_asked, num_rows=num_rows, wanted=until.rows, most=most)
            result = self._ask(run, prompts, slice(before, num_asked))
            num_rows = min(self._count_rows(run, selecting, prompts[:num_asked]) for selecting in self._selecting)
            run.reporter.say(f"  {num_rows:,} rows of {num_asked:,} prompts")
        if num_rows < until.rows:
            run.reporter.say(f"  fewer than the {until.rows:,} rows wanted; until.candidates or the part allow no more")
        # Nothing is left to ask for but what has failed, so this counts and lists what became of all prompts.
        result = self._ask(run, prompts, slice(0, num_asked))
        return StageResult({"prompts": num_asked, "rows": num_rows, **result.counts}, result.dropped)

    def _ask(self, run: RunContext, prompts: Sequence[Prompt], window: slice) -> StageResult:
        """Sample and score the answers to some of the prompts."""
        run = run._replace(window=window)
        asked = prompts[window]
        result = sample(run, self.name, self._requests, asked, must_answer=len(asked) >= ENOUGH_TO_JUDGE)
        dropped: Spool[Dropped] = Spool()
        for drop in self._all_dropped(run, result):
            dropped.append(drop)
        return StageResult(result.counts, dropped)

    def _all_dropped(self, run: RunContext, sampled: StageResult) -> Iterator[Dropped]:
        yield from sampled.dropped
        for scoring in self._scoring:
            yield from scoring.work(run).dropped

    def _count_rows(self, run: RunContext, selecting: Select, prompts: Sequence[Prompt]) -> int:
        return sum(1 for _ in selecting.select(run, prompts))
