"""The figures of a selection: who gave its answers, how good and how long they are, how far apart, how weighted."""

from __future__ import annotations

import math
from array import array
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
    return tally_rows(selection.rows, dict(Counter(drop.reason for drop in selection.dropped).most_common()))


def tally_rows(rows: Iterable[TrainingRow], drops: Mapping[str, int]) -> SelectionTally:
    """The figures of a selection. Its rows are read once, as a stream; only their numbers are kept.

    Args:
        rows: The rows.
        drops: The number of drops by reason, most first.
    """
    num_rows = 0
    roles: dict[Role | None, _Role] = {}
    margins = {pair: _Margin() for pair in PAIRS}
    weights = _Weights()
    for row in rows:
        num_rows += 1
        for response in row.responses:
            roles.setdefault(response.role, _Role()).add(response)
        for pair, margin in margins.items():
            margin.add(_find_pairs(*pair, row))
        weights.add(_weights_of(row))
    return SelectionTally(
        num_rows=num_rows,
        roles=[own.tally(role) for role, own in roles.items()],
        margins=[margin.tally(*pair) for pair, margin in margins.items() if margin.characters],
        weights=weights.tally(),
        drops=drops,
    )


class _Role:
    """What is kept of the responses of one role."""

    def __init__(self) -> None:
        self.num_characters = 0
        self.scores = array("d")
        self.sources: Counter[str] = Counter()

    def add(self, response: RowResponse) -> None:
        self.num_characters += len(response.content)
        self.sources[response.source] += 1
        if response.score is not None:
            self.scores.append(response.score)

    def tally(self, role: Role | None) -> RoleTally:
        num_responses = self.sources.total()
        return RoleTally(
            role=role,
            num_responses=num_responses,
            mean_score=fmean(self.scores) if self.scores else None,
            mean_characters=self.num_characters / num_responses,
            sources=dict(self.sources.most_common()),
        )


class _Margin:
    """What is kept of the pairs of two roles."""

    def __init__(self) -> None:
        self.scores = array("d")
        self.characters = array("q")

    def add(self, pairs: Iterable[tuple[RowResponse, RowResponse]]) -> None:
        for better, worse in pairs:
            self.characters.append(len(better.content) - len(worse.content))
            if better.score is not None and worse.score is not None:
                self.scores.append(better.score - worse.score)

    def tally(self, chosen: Role, rejected: Role) -> MarginTally:
        return MarginTally(
            chosen,
            rejected,
            num_pairs=len(self.characters),
            score=_spread(self.scores) if self.scores else None,
            characters=_spread(self.characters),
        )


class _Weights:
    """What is kept of the weights within rows."""

    def __init__(self) -> None:
        self.entropies = array("d")
        self.largest = array("d")
        self.num_weights = 0
        self.sources: dict[str, float] = {}

    def add(self, weights: Sequence[tuple[str, float]]) -> None:
        if not weights:
            return
        values = [weight for _, weight in weights]
        self.entropies.append(_entropy(values))
        self.largest.append(max(values))
        self.num_weights += len(values)
        for source, weight in weights:
            self.sources[source] = self.sources.get(source, 0) + weight

    def tally(self) -> WeightTally | None:
        num_rows = len(self.entropies)
        if not num_rows:
            return None
        shares = {source: weight / num_rows for source, weight in self.sources.items()}
        return WeightTally(
            mean_entropy=fmean(self.entropies),
            mean_num_weights=self.num_weights / num_rows,
            mean_largest=fmean(self.largest),
            sources=dict(sorted(shares.items(), key=lambda item: -item[1])),
        )


def _find_pairs(chosen: Role, rejected: Role, row: TrainingRow) -> Iterator[tuple[RowResponse, RowResponse]]:
    for better in row.responses:
        if better.role == chosen:
            for worse in row.responses:
                if worse.role == rejected and worse.group == better.group:
                    yield better, worse


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
