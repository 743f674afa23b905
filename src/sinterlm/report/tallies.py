"""Counts that the page shows, taken from the run's own records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sinterlm.records import Candidates, Dropped, Selection, TrainingRow
from sinterlm.report.data import HeldOut, Part
from sinterlm.selection.tally import SelectionTally, tally_selection

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
    scores: list[float] = field(default_factory=list)
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


def tally_scores(parts: Mapping[Part, Sequence[Candidates]]) -> list[ScoreTally]:
    """Scores by model over all training prompts, in order of first appearance; held-out answers do not count."""
    tallies: dict[str, ScoreTally] = {}
    for candidates in _training_candidates(parts):
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


def _training_candidates(parts: Mapping[Part, Sequence[Candidates]]) -> Iterable[Candidates]:
    for part, prompts in parts.items():
        if part != "held_out":
            yield from prompts


def count_source_shares(rows: Mapping[str, Sequence[TrainingRow]], sources: Iterable[str]) -> dict[str, dict[str, int]]:
    """How often each source gave the preferred answer y_ws, by training run (table 1 of arXiv 2412.03187).

    Runs whose rows hold no source's answer as preferred (on-policy pairs) are left out.
    """
    shares = {}
    for name, selected in rows.items():
        counts = Counter(
            response.source
            for row in selected
            for response in row.responses
            if response.role in ("chosen", "chosen_source") and kind_of(response.source) == "source"
        )
        if counts:
            shares[name] = {source: counts[source] for source in dict.fromkeys((*sources, *counts))}
    return shares


def tally_selections(
    rows: Mapping[str, Sequence[TrainingRow]], dropped: Sequence[Dropped]
) -> dict[str, SelectionTally]:
    """The tally of every set of training rows, with what its selection dropped."""
    return {
        name: tally_selection(Selection(selected, [drop for drop in dropped if drop.stage == f"select-{name}"]))
        for name, selected in rows.items()
    }


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


def count_drops(dropped: Sequence[Dropped]) -> list[DropCount]:
    """Drops by stage (in order of appearance) and reason (most frequent first)."""
    counts = Counter((drop.stage, drop.reason) for drop in dropped)
    stages = {stage: position for position, stage in enumerate(dict.fromkeys(drop.stage for drop in dropped))}
    examples = {(drop.stage, drop.reason): drop.detail for drop in reversed(dropped)}
    ordered = sorted(counts.items(), key=lambda item: (stages[item[0][0]], -item[1], item[0][1]))
    return [DropCount(stage, reason, count, examples[stage, reason]) for (stage, reason), count in ordered]
