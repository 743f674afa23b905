"""Counts that the page shows, taken from the run's own records."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, MutableSequence
from dataclasses import dataclass, field
from typing import Literal

from sinterlm.records import Candidates, Dropped, TrainingRow
from sinterlm.report.data import HeldOut, Part
from sinterlm.selection.tally import SelectionTally, tally_rows

Kind = Literal["source", "target", "fused"]


def kind_of(model: str) -> Kind:
    """What a model is, by its name: names that begin with ``target`` are reserved for the target."""
    if model.startswith("target-"):
        return "fused"
    return "target" if model.startswith("target") else "source"


def featured_model(held_out: HeldOut) -> str:
    """The fused model that the page leads with; empty without any."""
    fused = [model for model in held_out.figures.models if kind_of(model) == "fused"]
    return held_out.featured or (fused[-1] if fused else "")


@dataclass
class ScoreTally:
    """The training answers of one model and their scores."""

    model: str
    num_answers: int = 0
    scores: MutableSequence[float] = field(default_factory=lambda: array("d"))
    """Those that are finite numbers."""
    num_passed: int | None = None
    """None for graded scorers."""
    num_prompts: int = 0
    num_prompts_passed: int = 0
    """Prompts with at least one passing answer."""
    num_truncated: int = 0
    num_tokens: int = 0

    @property
    def mean(self) -> float:
        """Mean of the scores; NaN without any."""
        return sum(self.scores) / len(self.scores) if self.scores else math.nan


def tally_scores(asked: Iterable[tuple[Part, Candidates]]) -> list[ScoreTally]:
    """Scores by model over all training prompts, in order of first appearance; held-out answers do not count."""
    tallies: dict[str, ScoreTally] = {}
    for part, candidates in asked:
        if part == "held_out":
            continue
        passed_by: dict[str, bool] = {}
        for response, score in (*candidates.sources, *candidates.target):
            tally = tallies.setdefault(response.source, ScoreTally(response.source))
            tally.num_answers += 1
            if math.isfinite(score.value):
                tally.scores.append(score.value)
            tally.num_truncated += response.finish_reason == "length"
            tally.num_tokens += response.num_tokens
            passed_by[response.source] = passed_by.get(response.source, False) or score.passed is True
            if score.passed is not None:
                tally.num_passed = (tally.num_passed or 0) + score.passed
        for model, passed in passed_by.items():
            tallies[model].num_prompts += 1
            tallies[model].num_prompts_passed += passed
    return list(tallies.values())


def count_source_shares(selections: Mapping[str, SelectionTally], sources: Iterable[str]) -> dict[str, dict[str, int]]:
    """How often each source gave the preferred answer y_ws, by training run (table 1 of arXiv 2412.03187).

    Runs whose rows hold no source's answer as preferred (on-policy pairs) are left out.
    """
    shares = {}
    for name, selection in selections.items():
        counts: Counter[str] = Counter()
        for role in selection.roles:
            if role.role in ("chosen", "chosen_source"):
                counts.update({name: number for name, number in role.sources.items() if kind_of(name) == "source"})
        if counts:
            shares[name] = {source: counts[source] for source in dict.fromkeys((*sources, *counts))}
    return shares


def tally_selections(
    rows: Mapping[str, Iterable[TrainingRow]], drops: Iterable[DropCount]
) -> dict[str, SelectionTally]:
    """The tally of every set of training rows, with what its selection dropped."""
    counts: dict[str, dict[str, int]] = {}
    for drop in drops:
        counts.setdefault(drop.stage, {})[drop.reason] = drop.count
    return {name: tally_rows(selected, counts.get(f"select-{name}", {})) for name, selected in rows.items()}


def count_outcomes(selections: Mapping[str, SelectionTally]) -> dict[str, dict[str, int]]:
    """Drops by reason and selection, the most frequent reason over all selections first."""
    totals: Counter[str] = Counter()
    for selection in selections.values():
        totals.update(selection.drops)
    return {
        reason: {name: selection.drops.get(reason, 0) for name, selection in selections.items()}
        for reason, _ in totals.most_common()
    }


@dataclass(frozen=True, slots=True)
class DropCount:
    """How many were dropped at one stage for one reason, with the first one's detail."""

    stage: str
    reason: str
    count: int
    example: str


def count_drops(dropped: Iterable[Dropped]) -> list[DropCount]:
    """Drops by stage (in order of appearance) and reason (most frequent first)."""
    counts: dict[str, Counter[str]] = {}
    examples: dict[tuple[str, str], str] = {}
    for drop in dropped:
        counts.setdefault(drop.stage, Counter())[drop.reason] += 1
        examples.setdefault((drop.stage, drop.reason), drop.detail)
    return [
        DropCount(stage, reason, number, examples[stage, reason])
        for stage, reasons in counts.items()
        for reason, number in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
