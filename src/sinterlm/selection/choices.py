"""The two choices that policies are made of: the sources' best answer, and the target's best against its worst.

Where there is no such answer, the choice is a :class:`NoRow` that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from sinterlm.records import Candidates, Dropped, Role, RowResponse, Scored, Selection, TrainingRow
from sinterlm.selection.ranking import (
    Ties,
    Truncated,
    is_checked,
    is_truncated,
    passes,
    select_best,
    select_eligible,
    select_worst,
)

TargetTies = Literal["keep", "drop"]

NO_ELIGIBLE_SOURCE_ANSWER = "no-eligible-source-answer"
NO_PASSING_SOURCE_ANSWER = "no-passing-source-answer"
TOO_FEW_TARGET_ANSWERS = "fewer-than-two-different-target-answers"
NO_FAILING_TARGET_ANSWER = "no-failing-target-answer"
TIED_TARGET_ANSWERS = "tied-target-answers"

REASONS = {
    NO_ELIGIBLE_SOURCE_ANSWER: "every answer of every source is empty, without a score, or cut by the token limit",
    NO_PASSING_SOURCE_ANSWER: "no eligible answer of any source passes the scorer",
    TOO_FEW_TARGET_ANSWERS: "the target's eligible answers are fewer than two different texts: no pair",
    NO_FAILING_TARGET_ANSWER: "every eligible answer of the target passes the scorer: nothing to reject",
    TIED_TARGET_ANSWERS: "the target's best answer is no better than its worst (none passes, or all scores are equal)",
}
"""Every reason for which a policy drops a prompt, and what it means."""


class NoRow(NamedTuple):
    """Why a prompt gives no row."""

    reason: str
    detail: str


class TargetPair(NamedTuple):
    """The target's own best and worst answer: different texts."""

    best: Scored
    worst: Scored


def choose_source_answer(answers: Sequence[Scored], *, seed: int, ties: Ties, truncated: Truncated) -> Scored | NoRow:
    """The best-scored answer over all sources (y_ws); with a pass-or-fail scorer it passes."""
    eligible = select_eligible(answers, truncated=truncated)
    if not eligible:
        return NoRow(NO_ELIGIBLE_SOURCE_ANSWER, _describe_ineligible(answers))
    best = select_best(eligible, seed=seed, ties=ties)
    if is_checked(best) and not passes(best):
        return NoRow(NO_PASSING_SOURCE_ANSWER, f"best score {best.score.value:g} of {len(eligible)} eligible answers")
    return best


def choose_target_pair(
    answers: Sequence[Scored], *, seed: int, ties: Ties, target_ties: TargetTies, truncated: Truncated
) -> TargetPair | NoRow:
    """The target's worst answer (y_l) and, among its answers with other texts, the best (y_wt).

    With a pass-or-fail scorer y_l fails. Where y_wt is no better than y_l (none passes, or the graded scores are equal)
    ``target_ties`` decides.
    """
    eligible = select_eligible(answers, truncated=truncated)
    if len({answer.response.content for answer in eligible}) < 2:
        return NoRow(TOO_FEW_TARGET_ANSWERS, f"{len(eligible)} of {len(answers)} answers eligible")
    worst = select_worst(eligible, seed=seed, ties=ties)
    if is_checked(worst) and passes(worst):
        return NoRow(NO_FAILING_TARGET_ANSWER, f"all {len(eligible)} eligible answers pass")
    others = [answer for answer in eligible if answer.response.content != worst.response.content]
    best = select_best(others, seed=seed, ties=ties)
    is_better = passes(best) if is_checked(best) else best.score.value > worst.score.value
    if target_ties == "drop" and not is_better:
        return NoRow(TIED_TARGET_ANSWERS, f"best score {best.score.value:g}, worst {worst.score.value:g}")
    return TargetPair(best, worst)


def collect(
    candidates: Iterable[Candidates],
    choose: Callable[[Candidates], Sequence[RowResponse] | NoRow],
    *,
    stage: str,
) -> Selection:
    """Make one row or one :class:`Dropped` of every prompt, in order; the candidates are read once, as a stream."""
    rows: list[TrainingRow] = []
    dropped: list[Dropped] = []
    for candidate in candidates:
        prompt, choice = candidate.prompt, choose(candidate)
        if isinstance(choice, NoRow):
            dropped.append(Dropped(prompt.id, stage, choice.reason, choice.detail))
        else:
            rows.append(TrainingRow(prompt.id, prompt.messages, tuple(choice)))
    return Selection(rows, dropped)


def to_row_response(answer: Scored, role: Role) -> RowResponse:
    """The part that ``answer`` plays in a row."""
    response = answer.response
    return RowResponse(
        response.content,
        role=role,
        source=response.source,
        index=response.index,
        score=answer.score.value,
        truncated=is_truncated(answer),
    )


def _describe_ineligible(answers: Sequence[Scored]) -> str:
    """How many of ``answers``, none of them eligible, failed by what."""
    num_empty = sum(not answer.response.content.strip() for answer in answers)
    num_truncated = sum(is_truncated(answer) for answer in answers)
    return f"{len(answers)} answers: {num_empty} empty, {num_truncated} cut by the token limit"
