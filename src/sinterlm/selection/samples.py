"""Rows of all samples with their scores, for objectives that make advantages of them.

RLOO compares the target's own samples (arXiv 2402.14740), FusePO-RLOO those of each source (arXiv 2504.06562).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sinterlm.records import Candidates, RowResponse, Scored, Selection
from sinterlm.selection.choices import (
    EQUAL_SCORES,
    TOO_FEW_ANSWERS_TO_COMPARE,
    NoRow,
    PartialRow,
    collect,
    group_by_source,
    to_row_response,
)
from sinterlm.selection.ranking import Truncated, select_eligible
from sinterlm.selection.weights import source_weights


def select_rloo(
    candidates: Iterable[Candidates], *, seed: int, truncated: Truncated = "drop", stage: str = "select-rloo"
) -> Selection:
    """Select all of the target's own answers for every prompt.

    Args:
        candidates: every prompt's scored answers, in any order; read once.
        seed: decides nothing here: no answer is chosen before another.
        truncated: whether answers cut by the token limit take part.
        stage: named in every :class:`Dropped`.

    Returns:
        Rows with responses without roles, and the prompts whose scores give no advantage.
    """

    def choose(candidate: Candidates) -> Sequence[RowResponse] | NoRow:
        eligible = select_eligible(candidate.target, truncated=truncated)
        if len(eligible) < 2:
            return _too_few(eligible, candidate.target)
        if _are_equal(eligible):
            return NoRow(EQUAL_SCORES, f"{len(eligible)} answers of score {eligible[0].score.value:g}")
        return [to_row_response(answer, None) for answer in eligible]

    return collect(candidates, choose, stage=stage)


def select_fusepo_rloo(
    candidates: Iterable[Candidates],
    *,
    seed: int,
    temperature: float,
    sources: Collection[str] | None = None,
    num_samples: int | None = None,
    truncated: Truncated = "drop",
    stage: str = "select-fusepo-rloo",
) -> Selection:
    """Select all answers of every source; a source weighs exp(R / t) / sum of exp(R / t), R its best score.

    A source with fewer than two eligible answers is left out of the row, and the weights are those of the others. A
    prompt is dropped where the scores of every source are equal among themselves.

    Args:
        candidates: every prompt's scored answers, in any order; read once.
        seed: decides nothing here: no answer is chosen before another.
        temperature: t, in units of the scores (see :func:`~sinterlm.selection.weights.softmax_weights`).
        sources: names of those that take part; all unless given.
        num_samples: so many samples of each source take part, by index; all unless given.
        truncated: whether answers cut by the token limit take part.
        stage: named in every :class:`Dropped`.

    Returns:
        Rows with responses without roles in groups named after the sources, the weight of a source on all of its
        group, and the prompts that give none and sources that rows go without.
    """

    def choose(candidate: Candidates) -> PartialRow | NoRow:
        groups, left_out = [], []
        for source, own in group_by_source(candidate.sources).items():
            eligible = select_eligible(own, truncated=truncated)
            if len(eligible) < 2:
                reason, detail = _too_few(eligible, own)
                left_out.append(NoRow(reason, f"{source}: {detail}"))
            else:
                groups.append(eligible)
        if not groups:
            return NoRow(TOO_FEW_ANSWERS_TO_COMPARE, "; ".join(drop.detail for drop in left_out) or "no answers")
        if all(map(_are_equal, groups)):
            return NoRow(EQUAL_SCORES, f"within each of {len(groups)} sources")
        answers = [answer for group in groups for answer in group]
        weights = source_weights(answers, temperature=temperature)
        responses = [
            to_row_response(answer, None, group=source, weight=weights[source])
            for answer in answers
            for source in [answer.response.source]
        ]
        return PartialRow(responses, left_out)

    return collect(candidates, choose, stage=stage, sources=sources, num_samples=num_samples)


def _too_few(eligible: Sequence[Scored], answers: Sequence[Scored]) -> NoRow:
    return NoRow(TOO_FEW_ANSWERS_TO_COMPARE, f"{len(eligible)} of {len(answers)} answers eligible")


def _are_equal(answers: Sequence[Scored]) -> bool:
    return len({answer.score.value for answer in answers}) == 1
