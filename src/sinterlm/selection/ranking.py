"""Which answers may be chosen, and which of them is best or worst: the rules that every policy shares.

An empty answer is never eligible, nor one whose score is no finite number; one that the token limit cut only if asked
for. A passing answer ranks above a failing one, then the higher score above the lower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from sinterlm.records import Scored, digest

Ties = Literal["hash", "first"]
Truncated = Literal["drop", "keep"]


def is_truncated(answer: Scored) -> bool:
    """Whether the token limit cut the answer."""
    return answer.response.finish_reason == "length"


def select_eligible(answers: Iterable[Scored], *, truncated: Truncated) -> list[Scored]:
    """The answers that may become part of a row, in their order."""
    return [
        answer
        for answer in answers
        if answer.response.content.strip()
        and math.isfinite(answer.score.value)
        and (truncated == "keep" or not is_truncated(answer))
    ]


def is_checked(answer: Scored) -> bool:
    """Whether a pass-or-fail scorer judged the answer."""
    return answer.score.passed is not None


def passes(answer: Scored) -> bool:
    """Whether a pass-or-fail scorer let the answer pass; False for graded scores."""
    return answer.score.passed is True


def fails(answer: Scored) -> bool:
    """Whether a pass-or-fail scorer refused the answer; False for graded scores."""
    return answer.score.passed is False


def rank(answer: Scored) -> tuple[bool, float]:
    """What answers are compared by."""
    return passes(answer), answer.score.value


def select_best(answers: Sequence[Scored], *, seed: int, ties: Ties) -> Scored:
    """The highest-ranked answer."""
    return _select_ranked(answers, max(map(rank, answers)), seed=seed, ties=ties)


def select_worst(answers: Sequence[Scored], *, seed: int, ties: Ties) -> Scored:
    """The lowest-ranked answer."""
    return _select_ranked(answers, min(map(rank, answers)), seed=seed, ties=ties)


def order_texts(answers: Sequence[Scored], *, seed: int, ties: Ties) -> Iterator[Scored]:
    """One answer of every different text, the highest-ranked first: what is said twice counts once."""
    left = answers
    while left:
        best = select_best(left, seed=seed, ties=ties)
        yield best
        left = [answer for answer in left if answer.response.content != best.response.content]


def _select_ranked(answers: Sequence[Scored], wanted: tuple[bool, float], *, seed: int, ties: Ties) -> Scored:
    """One answer of rank ``wanted``: the smallest hash, or the first in order (the papers' argmax and argmin)."""
    tied = [answer for answer in answers if rank(answer) == wanted]
    if ties == "first" or len(tied) == 1:
        return tied[0]
    return min(tied, key=lambda answer: tie_order(answer, seed))


def tie_order(answer: Scored, seed: int) -> str:
    """SHA-256 of (seed, prompt id, source, index): decides ties by chance, yet always the same way."""
    response = answer.response
    return digest([seed, response.prompt_id, response.source, response.index])
