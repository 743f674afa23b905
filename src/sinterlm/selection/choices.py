"""The choices that policies are made of: one of the sources' best answers, and a model's best against its worst.

A choice that finds no such answer is a :class:`NoRow`, which says why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple

from sinterlm.records import Candidates, Dropped, Role, RowResponse, Scored, Selection, TrainingRow
from sinterlm.selection.margins import Window, is_inside, score_margin
from sinterlm.selection.ranking import (
    Ties,
    Truncated,
    fails,
    is_truncated,
    order_texts,
    passes,
    select_best,
    select_eligible,
    select_worst,
)
from sinterlm.selection.ranking import rank as rank_of

PairTies = Literal["keep", "drop"]


class PairReasons(NamedTuple):
    """The reasons for which a model's answers give no pair."""

    too_few: str
    none_fails: str
    tied: str
    margin: str


TARGET_PAIR = PairReasons(
    too_few="fewer-than-two-different-target-answers",
    none_fails="no-failing-target-answer",
    tied="tied-target-answers",
    margin="target-margin-outside-window",
)
SOURCE_PAIR = PairReasons(
    too_few="fewer-than-two-different-source-answers",
    none_fails="no-failing-source-answer",
    tied="tied-source-answers",
    margin="source-margin-outside-window",
)
NO_ELIGIBLE_SOURCE_ANSWER = "no-eligible-source-answer"
NO_PASSING_SOURCE_ANSWER = "no-passing-source-answer"
NO_SOURCE_ANSWER_OF_RANK = "no-source-answer-of-that-rank"
NO_SOURCE_PAIR = "no-source-pair"
NO_REJECTED_SOURCE_ANSWER = "no-rejected-source-answer"
TOO_FEW_ANSWERS_TO_COMPARE = "fewer-than-two-answers-to-compare"
EQUAL_SCORES = "equal-scores"

REASONS = {
    NO_ELIGIBLE_SOURCE_ANSWER: "every answer of every source is empty, without a score, or cut by the token limit",
    NO_PASSING_SOURCE_ANSWER: "no eligible answer of any source passes the scorer (or none of the rank asked for)",
    NO_SOURCE_ANSWER_OF_RANK: "the sources' eligible answers are fewer different texts than the rank asked for",
    NO_REJECTED_SOURCE_ANSWER: "the source of the chosen answer gave no worse one to reject beside it",
    NO_SOURCE_PAIR: "no source gave a better and a worse answer that may be compared",
    SOURCE_PAIR.too_few: "a source's eligible answers are fewer than two different texts: the row goes without it",
    SOURCE_PAIR.none_fails: "every eligible answer of a source passes the scorer: the row goes without it",
    SOURCE_PAIR.tied: "a source's best answer is no better than its worst: the row goes without it",
    SOURCE_PAIR.margin: "the scores of a source's best and worst answer are too close or too far: the row goes without",
    TARGET_PAIR.too_few: "the target's eligible answers are fewer than two different texts: no pair",
    TARGET_PAIR.none_fails: "every eligible answer of the target passes the scorer: nothing to reject",
    TARGET_PAIR.tied: "the target's best answer is no better than its worst (none passes, or all scores are equal)",
    TARGET_PAIR.margin: "the scores of the target's best and worst answer are closer than min_margin",
    TOO_FEW_ANSWERS_TO_COMPARE: "fewer than two eligible answers of one model: there is no advantage over others",
    EQUAL_SCORES: "all scores that would be compared are equal: no answer has an advantage",
}
"""The reasons for which the policies of Sinter drop a prompt, or leave a source out of its row; and their meaning."""


class NoRow(NamedTuple):
    """Why a prompt gives no row, or a source no part of one."""

    reason: str
    detail: str


class PartialRow(NamedTuple):
    """A row that some source gave no part of."""

    responses: Sequence[RowResponse]
    left_out: Sequence[NoRow]


class BestAndWorst(NamedTuple):
    """A model's own best and worst answer: different texts."""

    best: Scored
    worst: Scored


class SourcePairs(NamedTuple):
    """The pairs of all sources that have one, and why others have none."""

    pairs: Sequence[BestAndWorst]
    left_out: Sequence[NoRow]


def choose_source_answer(
    answers: Sequence[Scored], *, seed: int, ties: Ties, truncated: Truncated, rank: int = 1
) -> Scored | NoRow:
    """The best-scored answer over all sources (y_ws), or the ``rank``-th best; with a pass-or-fail scorer it passes.

    Ranks are counted over different texts.
    """
    eligible = select_eligible(answers, truncated=truncated)
    if not eligible:
        return NoRow(NO_ELIGIBLE_SOURCE_ANSWER, _describe_ineligible(answers))
    ordered = order_texts(eligible, seed=seed, ties=ties)
    chosen = next(islice(ordered, rank - 1, None), None)
    if chosen is None:
        return NoRow(NO_SOURCE_ANSWER_OF_RANK, f"{len(eligible)} of {len(answers)} answers eligible")
    if fails(chosen):
        return NoRow(NO_PASSING_SOURCE_ANSWER, f"best score {chosen.score.value:g} of {len(eligible)} eligible answers")
    return chosen


def choose_pair(
    answers: Sequence[Scored],
    reasons: PairReasons,
    *,
    seed: int,
    ties: Ties,
    truncated: Truncated,
    tied: PairTies = "drop",
    window: Window | None = None,
) -> BestAndWorst | NoRow:
    """A model's worst answer (y_l) and, among its answers with other texts, the best (y_w).

    With a pass-or-fail scorer y_l fails. If y_w is no better than y_l (none passes, or the graded scores are equal),
    ``tied`` decides. Given a ``window``, the difference of their scores lies in it.
    """
    eligible = select_eligible(answers, truncated=truncated)
    if len({answer.response.content for answer in eligible}) < 2:
        return NoRow(reasons.too_few, f"{len(eligible)} of {len(answers)} answers eligible")
    worst = select_worst(eligible, seed=seed, ties=ties)
    if passes(worst):
        return NoRow(reasons.none_fails, f"all {len(eligible)} eligible answers pass")
    others = [answer for answer in eligible if answer.response.content != worst.response.content]
    best = select_best(others, seed=seed, ties=ties)
    if tied == "drop" and (fails(best) or rank_of(best) == rank_of(worst)):
        return NoRow(reasons.tied, f"best score {best.score.value:g}, worst {worst.score.value:g}")
    if window is not None and not is_inside(window, best, worst):
        return NoRow(reasons.margin, f"margin {score_margin(best, worst):g}")
    return BestAndWorst(best, worst)


def choose_source_pairs(
    answers: Sequence[Scored], *, seed: int, ties: Ties, truncated: Truncated, window: Window | None
) -> SourcePairs:
    """Best against worst of every source by itself."""
    pairs, left_out = [], []
    for source, own in group_by_source(answers).items():
        pair = choose_pair(own, SOURCE_PAIR, seed=seed, ties=ties, truncated=truncated, window=window)
        if isinstance(pair, NoRow):
            left_out.append(NoRow(pair.reason, f"{source}: {pair.detail}"))
        else:
            pairs.append(pair)
    return SourcePairs(pairs, left_out)


def no_source_pair(left_out: Sequence[NoRow]) -> NoRow:
    """Says that no source gave a pair, and why not."""
    return NoRow(NO_SOURCE_PAIR, "; ".join(f"{drop.detail} ({drop.reason})" for drop in left_out) or "no answers")


def too_few_to_compare(eligible: Sequence[Scored], answers: Sequence[Scored]) -> NoRow:
    """Says that fewer than two of the ``answers`` are eligible: none has an advantage over others."""
    return NoRow(TOO_FEW_ANSWERS_TO_COMPARE, f"{len(eligible)} of {len(answers)} answers eligible")


def have_equal_scores(answers: Sequence[Scored]) -> bool:
    """Whether all scores are the same: no answer has an advantage."""
    return len({answer.score.value for answer in answers}) == 1


def group_by_source(answers: Iterable[Scored]) -> dict[str, list[Scored]]:
    """The answers of every source, in the order of their first answers."""
    groups: dict[str, list[Scored]] = {}
    for answer in answers:
        groups.setdefault(answer.response.source, []).append(answer)
    return groups


def collect(
    candidates: Iterable[Candidates],
    choose: Callable[[Candidates], Sequence[RowResponse] | PartialRow | NoRow],
    *,
    stage: str,
    sources: Collection[str] | None = None,
    num_samples: int | None = None,
) -> Selection:
    """Make one row of every prompt, or say why it has none, in order; the candidates are read once, as a stream.

    Args:
        candidates: Every prompt's scored answers.
        choose: Which of one prompt's answers become a row, or why none do.
        stage: Named in every :class:`Dropped`.
        sources: Names of the sources that ``choose`` sees; all by default.
        num_samples: How many samples of each source it sees, the first by index; all by default.
    """
    rows: list[TrainingRow] = []
    dropped: list[Dropped] = []
    for candidate in candidates:
        prompt, choice = candidate.prompt, choose(_restrict(candidate, sources, num_samples))
        if isinstance(choice, NoRow):
            dropped.append(Dropped(prompt.id, stage, choice.reason, choice.detail))
            continue
        responses, left_out = choice if isinstance(choice, PartialRow) else (choice, ())
        rows.append(TrainingRow(prompt.id, prompt.messages, tuple(responses)))
        dropped += (Dropped(prompt.id, stage, drop.reason, drop.detail) for drop in left_out)
    return Selection(rows, dropped)


def to_row_response(answer: Scored, role: Role | None, *, group: str = "", weight: float | None = None) -> RowResponse:
    """The part that ``answer`` plays in a row."""
    response = answer.response
    return RowResponse(
        response.content,
        role=role,
        source=response.source,
        index=response.index,
        score=answer.score.value,
        group=group,
        weight=weight,
        truncated=is_truncated(answer),
    )


def _restrict(candidate: Candidates, sources: Collection[str] | None, num_samples: int | None) -> Candidates:
    if sources is None and num_samples is None:
        return candidate
    kept = (
        answer
        for answer in candidate.sources
        if (sources is None or answer.response.source in sources)
        and (num_samples is None or answer.response.index < num_samples)
    )
    return replace(candidate, sources=tuple(kept))


def _describe_ineligible(answers: Sequence[Scored]) -> str:
    """How many of ``answers``, none of them eligible, failed for which reason."""
    num_empty = sum(not answer.response.content.strip() for answer in answers)
    num_truncated = sum(is_truncated(answer) for answer in answers)
    return f"{len(answers)} answers: {num_empty} empty, {num_truncated} cut by the token limit"
