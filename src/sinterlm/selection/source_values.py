"""What each source adds to the best answers: its share of them, and how much worse they would be without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sinterlm.records import Candidates, Scored
from sinterlm.selection.ranking import Truncated, fails, select_best, select_eligible


@dataclass(slots=True)
class SourceValue:
    """What one source adds, counted over prompts. Only eligible answers count, as for a selection policy."""

    source: str
    num_answers: int = 0
    total_score: float = 0.0
    num_chosen: int = 0
    """Prompts whose chosen answer (y_ws, the best one of all sources) is its own."""
    num_alone: int = 0
    """Prompts that no other source answers."""
    num_shared: int = 0
    """Prompts that other sources answer too, or alone: over these are the two sums below."""
    best_with: float = 0.0
    best_without: float = 0.0
    """Sums of the best scores with and without it."""

    @property
    def mean_score(self) -> float | None:
        """The mean score of its answers."""
        return self.total_score / self.num_answers if self.num_answers else None

    @property
    def means(self) -> tuple[float, float] | None:
        """The expected best score with it and without it, where other sources answer; None if none does."""
        if not self.num_shared:
            return None
        return self.best_with / self.num_shared, self.best_without / self.num_shared


def value_sources(
    candidates: Iterable[Candidates], sources: Sequence[str], *, seed: int, truncated: Truncated
) -> list[SourceValue]:
    """The value of each source: exact, by leaving its answers out of those that were given.

    A prompt whose best answer fails a pass-or-fail scorer has no chosen answer.

    Args:
        candidates: Every prompt with its sources' scored answers; read once.
        sources: Names of the sources, in the order wanted.
        seed: Breaks ties as the selection does.
        truncated: Whether answers that the token limit cut are eligible.
    """
    values = {source: SourceValue(source) for source in sources}
    for each in candidates:
        eligible = select_eligible(each.sources, truncated=truncated)
        if not eligible:
            continue
        best = select_best(eligible, seed=seed, ties="hash")
        if not fails(best):
            values[best.response.source].num_chosen += 1
        by_source: dict[str, list[Scored]] = {}
        for answer in eligible:
            by_source.setdefault(answer.response.source, []).append(answer)
        for source, value in values.items():
            own = by_source.get(source, [])
            value.num_answers += len(own)
            value.total_score += sum(answer.score.value for answer in own)
            others = [answer for other, answers in by_source.items() if other != source for answer in answers]
            if not others:
                value.num_alone += 1
                continue
            value.num_shared += 1
            value.best_with += best.score.value
            value.best_without += select_best(others, seed=seed, ties="hash").score.value
    return list(values.values())
