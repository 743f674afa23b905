"""Scored answers joined by prompt: what a selection policy chooses among."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from sinterlm.chat import with_system
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.pipeline.score import scored_answers_to, stored_scorer
from sinterlm.pipeline.stage import RunContext
from sinterlm.records import Candidates, Prompt
from sinterlm.scoring.settings import ScorerSettings


def candidates_of(
    run: RunContext,
    prompts: Sequence[Prompt],
    scorer: ScorerSettings,
    *,
    sources: Sequence[SamplingRequest],
    targets: Sequence[SamplingRequest] = (),
) -> Iterator[Candidates]:
    """Every prompt with all its scored answers; the prompt as the target is asked it, its system prompt included.

    Prompt by prompt, so that the answers of only a few are in memory.
    """
    system = run.fusion.recipe.target.prompt.system
    with closing(stored_scorer(run, scorer)) as stored:
        of_sources, of_targets = (scored_answers_to(run, stored, requests, prompts) for requests in (sources, targets))
        for prompt, from_sources, from_target in zip(prompts, of_sources, of_targets, strict=True):
            yield Candidates(
                prompt=replace(prompt, messages=with_system(prompt.messages, system)),
                sources=from_sources,
                target=from_target,
            )
