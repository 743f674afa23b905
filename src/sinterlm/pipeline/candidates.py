"""Scored answers joined by prompt: what a selection policy chooses from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from sinterlm.chat import with_system
from sinterlm.pipeline.fusion import PartRequests
from sinterlm.pipeline.score import scored_answers_to, stored_scorer
from sinterlm.pipeline.stage import RunContext
from sinterlm.records import Candidates, Prompt


def candidates_of(run: RunContext, prompts: Sequence[Prompt], asked: PartRequests) -> Iterator[Candidates]:
    """Yield every prompt, with the target's system prompt, and all its scored answers.

    Prompts are yielded one by one, so that the answers of only a few are in memory.
    """
    system = run.fusion.recipe.target.prompt.system
    with closing(stored_scorer(run, asked.scorer)) as stored:
        sources = scored_answers_to(run, stored, asked.sources, prompts)
        targets = scored_answers_to(run, stored, asked.targets, prompts)
        for prompt, of_sources, of_targets in zip(prompts, sources, targets, strict=True):
            messages = with_system(prompt.messages, system)
            yield Candidates(prompt=replace(prompt, messages=messages), sources=of_sources, target=of_targets)
