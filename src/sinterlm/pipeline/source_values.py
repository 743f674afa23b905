"""The value of each source of a run, from the answers and scores that it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sinterlm.pipeline.candidates import candidates_of
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.stage import RunContext
from sinterlm.records import Candidates
from sinterlm.selection.ranking import Truncated
from sinterlm.selection.source_values import SourceValue, value_sources


def training_candidates(run: RunContext) -> Iterator[Candidates]:
    """The prompts that sources have answered for training: those of preference methods first."""
    fusion = run.fusion
    for part in reversed(fusion.training_parts):
        yield from candidates_of(run, run.prompts(part), fusion.answers_to(part))


def read_source_values(run: RunContext) -> list[SourceValue]:
    """What each source adds to the best answers."""
    names = [source.name for source in run.fusion.sources]
    truncated = _truncated(run.fusion)
    return value_sources(training_candidates(run), names, seed=run.fusion.recipe.seed, truncated=truncated)


def describe_values(values: Sequence[SourceValue]) -> dict[str, dict[str, Any]]:
    """The values as ``summary.json`` writes them, by source."""
    num_chosen = sum(value.num_chosen for value in values)
    return {
        value.source: {
            "answers": value.num_answers,
            "mean_score": value.mean_score,
            "share": value.num_chosen / num_chosen if num_chosen else None,
            "alone": value.num_alone,
            "best_with": value.means and value.means[0],
            "best_without": value.means and value.means[1],
        }
        for value in values
    }


def _truncated(fusion: Fusion) -> Truncated:
    """Whether the last training takes answers that the token limit cut."""
    rules = [getattr(training.select, "truncated", "drop") for training in fusion.trainings.values()]
    return "keep" if rules and rules[-1] == "keep" else "drop"
