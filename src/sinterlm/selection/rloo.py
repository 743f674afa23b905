"""RLOO's rows: all of the target's own answers with their scores (arXiv 2402.14740)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from sinterlm.records import Candidates, RowResponse, Selection
from sinterlm.selection.choices import (
    EQUAL_SCORES,
    NoRow,
    collect,
    have_equal_scores,
    to_row_response,
    too_few_to_compare,
)
from sinterlm.selection.ranking import Truncated, select_eligible
from sinterlm.selection.settings import TARGET, SelectionPolicy


class Rloo(SelectionPolicy):
    """All of the target's own answers (RLOO, arXiv 2402.14740)."""

    kind: Literal["rloo"]
    truncated: Truncated = "drop"
    """Whether answers that the token limit cut may be chosen. Kept ones get no end-of-turn token in training."""

    description = "all of the target's own answers with their scores"
    formula = "all y_j"
    paper = "RLOO, arXiv 2402.14740"
    roles = ()
    by_prompt = skips_ineligible = True
    reads = TARGET

    def select(self, candidates: Iterable[Candidates], *, seed: int, stage: str) -> Selection:
        """As :func:`select_rloo`."""
        return select_rloo(candidates, seed=seed, stage=stage, **self.arguments)

    def responses_in_row(self, *, source_samples: Sequence[int], target_samples: int) -> int:
        """All answers of the target."""
        return target_samples


def select_rloo(
    candidates: Iterable[Candidates], *, seed: int, truncated: Truncated = "drop", stage: str = "select-rloo"
) -> Selection:
    """Select all of the target's own answers for every prompt.

    Args:
        candidates: Every prompt's scored answers, in any order; read once.
        seed: Decides nothing here: no answer is chosen before another.
        truncated: Whether answers cut by the token limit take part.
        stage: Named in every :class:`Dropped`.

    Returns:
        Rows with responses without roles, and the prompts whose scores give no advantage.
    """

    def choose(candidate: Candidates) -> Sequence[RowResponse] | NoRow:
        eligible = select_eligible(candidate.target, truncated=truncated)
        if len(eligible) < 2:
            return too_few_to_compare(eligible, candidate.target)
        if have_equal_scores(eligible):
            return NoRow(EQUAL_SCORES, f"{len(eligible)} answers of score {eligible[0].score.value:g}")
        return [to_row_response(answer, None) for answer in eligible]

    return collect(candidates, choose, stage=stage)
