"""Which answers may be chosen, and which of them is best or worst: the rules that every policy shares.

An empty answer is never eligible, nor is one without a finite score; one that the token limit cut is eligible only if
asked for. A passing answer ranks above an unchecked one, and an unchecked one above a failing one; then the higher
score ranks above the lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from sinterlm.records import Response, Scored, digest

Ties = Literal["hash", "first"]
Truncated = Literal["drop", "keep"]

_STANDING = {True: 1, None: 0, False: -1}
"""The rank of a verdict: passed, not checked, failed."""


def is_truncated(answer: Scored) -> bool:
    """Whether the token limit cut the answer."""
    return answer.response.finish_reason == "length"


def may_be_chosen(response: Response, *, truncated: Truncated) -> bool:
    """Whether an answer is eligible if its score is a number."""
    return bool(response.content.strip()) and (truncated == "keep" or response.finish_reason != "length")


def select_eligible(answers: Iterable[Scored], *, truncated: Truncated) -> list[Scored]:
    """The answers that may become part of a row, in their order."""
    return [
        answer
        for answer in answers
        if may_be_chosen(answer.response, truncated=truncated) and math.isfinite(answer.score.value)
    ]


def passes(answer: Scored) -> bool:
    """Whether a pass-or-fail scorer let the answer pass; False for graded scores."""
    return answer.score.passed is True


def fails(answer: Scored) -> bool:
    """Whether a pass-or-fail scorer refused the answer; False for graded scores."""
    return answer.score.passed is False


def rank(answer: Scored) -> tuple[int, float]:
    """What answers are compared by."""
    score = answer.score
    return _STANDING[score.passed], score.value


def select_best(answers: Sequence[Scored], *, seed: int, ties: Ties) -> Scored:
    """The highest-ranked answer."""
    return _select_extreme(answers, max, seed=seed, ties=ties)


def select_worst(answers: Sequence[Scored], *, seed: int, ties: Ties) -> Scored:
    """The lowest-ranked answer."""
    return _select_extreme(answers, min, seed=seed, ties=ties)


def order_texts(answers: Iterable[Scored], *, seed: int, ties: Ties) -> Iterator[Scored]:
    """One answer for every different text, the highest-ranked first."""
    by_rank: dict[tuple[int, float], list[Scored]] = {}
    for answer in answers:
        by_rank.setdefault(rank(answer), []).append(answer)
    said: set[str] = set()
    for _, tied in sorted(by_rank.items(), reverse=True):
        for answer in _order_tied(tied, seed=seed, ties=ties):
            if answer.response.content not in said:
                said.add(answer.response.content)
                yield answer


def _select_extreme(
    answers: Sequence[Scored],
    extreme: Callable[[Iterable[tuple[int, float]]], tuple[int, float]],
    *,
    seed: int,
    ties: Ties,
) -> Scored:
    ranks = [rank(answer) for answer in answers]
    wanted = extreme(ranks)
    tied = [answer for answer, found in zip(answers, ranks, strict=True) if found == wanted]
    return _order_tied(tied, seed=seed, ties=ties)[0]


def _order_tied(tied: list[Scored], *, seed: int, ties: Ties) -> list[Scored]:
    """Answers of one rank: by hash, or as they come (the papers' argmax and argmin)."""
    if ties == "first" or len(tied) == 1:
        return tied
    return sorted(tied, key=lambda answer: tie_order(answer, seed))


def tie_order(answer: Scored, seed: int) -> str:
    """SHA-256 of (seed, prompt id, source, index): decides ties by chance, yet always the same way."""
    response = answer.response
    return digest([seed, response.prompt_id, response.source, response.index])
