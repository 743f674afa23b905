"""The figures of a selection: who gave its answers, how good and how long they are, how far apart, how weighted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

from sinterlm.records import Role, RowResponse, Selection, TrainingRow

PAIRS: tuple[tuple[Role, Role], ...] = (
    ("chosen", "rejected"),
    ("chosen_source", "rejected"),
    ("chosen_target", "rejected"),
    ("chosen_source", "rejected_source"),
)
"""The roles that objectives compare."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and quantiles of figures, e.g. ``Spread(0.04, 0.01, 0.03, 0.09)``."""

    mean: float
    tenth: float
    """A tenth of the figures are at most this."""
    median: float
    ninetieth: float


@dataclass(frozen=True, slots=True)
class RoleTally:
    """The responses of one role."""

    role: Role | None
    num_responses: int
    mean_score: float | None
    """None if rows carry no scores."""
    mean_characters: float
    sources: Mapping[str, int]
    """The number of responses by source, most first."""


@dataclass(frozen=True, slots=True)
class MarginTally:
    """The pairs of two roles: within a group if rows have groups."""

    chosen: Role
    rejected: Role
    num_pairs: int
    score: Spread | None
    """Score of the chosen answer minus that of the rejected; None if rows carry no scores."""
    characters: Spread
    """Length of the chosen answer minus that of the rejected."""


@dataclass(frozen=True, slots=True)
class WeightTally:
    """The weights within rows, of responses or, if rows have groups, of groups; each row's are taken to sum to 1."""

    mean_entropy: float
    """In nats: 0 if one has all the weight, log n if n weights are equal."""
    mean_num_weights: float
    mean_largest: float
    sources: Mapping[str, float]
    """Share of the whole weight, most first."""


@dataclass(frozen=True, slots=True)
class SelectionTally:
    """All figures of one selection."""

    num_rows: int
    roles: Sequence[RoleTally]
    margins: Sequence[MarginTally]
    weights: WeightTally | None
    """None if rows have no weights."""
    drops: Mapping[str, int]
    """By reason, most first."""


def tally_selection(selection: Selection) -> SelectionTally:
    """The figures of a selection, from its rows and drops alone."""
    responses = [response for row in selection.rows for response in row.responses]
    roles = dict.fromkeys(response.role for response in responses)
    pairs = [(chosen, rejected) for chosen, rejected in PAIRS if {chosen, rejected} <= roles.keys()]
    return SelectionTally(
        num_rows=len(selection.rows),
        roles=[_tally_role(role, [response for response in responses if response.role == role]) for role in roles],
        margins=[_tally_margin(*pair, selection.rows) for pair in pairs],
        weights=_tally_weights(selection.rows),
        drops=dict(Counter(drop.reason for drop in selection.dropped).most_common()),
    )


def _tally_role(role: Role | None, responses: Sequence[RowResponse]) -> RoleTally:
    scores = [response.score for response in responses if response.score is not None]
    return RoleTally(
        role=role,
        num_responses=len(responses),
        mean_score=fmean(scores) if scores else None,
        mean_characters=fmean(len(response.content) for response in responses),
        sources=dict(Counter(response.source for response in responses).most_common()),
    )


def _tally_margin(chosen: Role, rejected: Role, rows: Iterable[TrainingRow]) -> MarginTally:
    pairs = [pair for row in rows for pair in _find_pairs(chosen, rejected, row)]
    scores = [
        better.score - worse.score for better, worse in pairs if better.score is not None and worse.score is not None
    ]
    return MarginTally(
        chosen,
        rejected,
        num_pairs=len(pairs),
        score=_spread(scores) if scores else None,
        characters=_spread([len(better.content) - len(worse.content) for better, worse in pairs]),
    )


def _find_pairs(chosen: Role, rejected: Role, row: TrainingRow) -> Iterator[tuple[RowResponse, RowResponse]]:
    for better in row.responses:
        if better.role == chosen:
            for worse in row.responses:
                if worse.role == rejected and worse.group == better.group:
                    yield better, worse


def _tally_weights(rows: Iterable[TrainingRow]) -> WeightTally | None:
    by_row = [weights for row in rows if (weights := _weights_of(row))]
    if not by_row:
        return None
    totals: dict[str, float] = {}
    for weights in by_row:
        for source, weight in weights:
            totals[source] = totals.get(source, 0) + weight / len(by_row)
    values = [[weight for _, weight in weights] for weights in by_row]
    return WeightTally(
        mean_entropy=fmean(map(_entropy, values)),
        mean_num_weights=fmean(map(len, values)),
        mean_largest=fmean(map(max, values)),
        sources=dict(sorted(totals.items(), key=lambda item: -item[1])),
    )


def _weights_of(row: TrainingRow) -> list[tuple[str, float]]:
    """Source and weight of every weighted response, or of one per group, over their sum; empty without weights."""
    weights = {
        response.group or number: (response.source, response.weight)  # all members carry their group's weight
        for number, response in enumerate(row.responses)
        if response.weight is not None
    }
    total = math.fsum(weight for _, weight in weights.values())
    return [(source, weight / total) for source, weight in weights.values()] if total else []


def _entropy(weights: Iterable[float]) -> float:
    return -math.fsum(weight * math.log(weight) for weight in weights if weight) + 0.0  # not -0.0


def _spread(figures: Sequence[float]) -> Spread:
    at_least_two = figures if len(figures) > 1 else [*figures, *figures]
    tenth, *_, median, _, _, _, ninetieth = quantiles(at_least_two, n=10, method="inclusive")
    return Spread(fmean(figures), tenth, median, ninetieth)
