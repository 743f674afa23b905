"""Every selection policy with lists and loops, written from the papers' rules and from no other code.

An answer is a :class:`A`; a chosen one is a tuple of role, source, index, group and weight; a prompt without a row
gives None. Only the records and the names of the options are shared with the tested code.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sinterlm.records import Candidates, Scored


class A(NamedTuple):
    """One answer; ``place`` is its position among all answers, which are ordered by source."""

    place: int
    source: str
    sample: int
    text: str
    score: float
    verdict: bool | None
    cut: bool
    hash: str


class Rules(NamedTuple):
    """The options of all policies."""

    seed: int
    ties: str = "hash"
    truncated: str = "drop"


Part = tuple[str | None, str, int, str, float | None]
Row = list[Part] | None
Window = Sequence[float] | str | None


def read(answers: Sequence[Scored], rules: Rules, sources: Collection[str] | None, num_samples: int | None) -> list[A]:
    """The eligible answers of those that take part."""
    found = []
    for place, (response, score) in enumerate(answers):
        key = json.dumps([rules.seed, response.prompt_id, response.source, response.index], separators=(",", ":"))
        answer = A(
            place,
            response.source,
            response.index,
            response.content,
            score.value,
            score.passed,
            response.finish_reason == "length",
            hashlib.sha256(key.encode()).hexdigest(),
        )
        takes_part = sources is None or answer.source in sources
        takes_part = takes_part and (num_samples is None or answer.sample < num_samples)
        has_score = answer.score == answer.score and answer.score not in (math.inf, -math.inf)
        if takes_part and has_score and answer.text.strip() and (rules.truncated == "keep" or not answer.cut):
            found.append(answer)
    return found


def is_better(one: A, other: A) -> bool:
    """Passing, then unchecked, then failing; among equals the higher score."""
    order = [False, None, True]
    if one.verdict is not other.verdict:
        return order.index(one.verdict) > order.index(other.verdict)
    return one.score > other.score


def extreme(answers: Sequence[A], rules: Rules, beats: Callable[[A, A], bool]) -> A:
    """The answer that none beats; if there are several, the first or the one with the smallest hash."""
    unbeaten = [answer for answer in answers if not any(beats(other, answer) for other in answers)]
    return min(unbeaten, key=lambda answer: answer.place if rules.ties == "first" else answer.hash)


def best(answers: Sequence[A], rules: Rules) -> A:
    return extreme(answers, rules, is_better)


def worst(answers: Sequence[A], rules: Rules) -> A:
    return extreme(answers, rules, lambda one, other: is_better(other, one))


def ranked(answers: Sequence[A], rules: Rules) -> list[A]:
    """The best, then the best with another text, and so on."""
    order: list[A] = []
    while left := [answer for answer in answers if answer.text not in [chosen.text for chosen in order]]:
        order.append(best(left, rules))
    return order


def by_source(answers: Sequence[A]) -> list[list[A]]:
    return [[a for a in answers if a.source == name] for name in dict.fromkeys(a.source for a in answers)]


def lies_inside(window: Window, high: A, low: A) -> bool:
    """1 for passed and 0 for failed are not scores; every window is used as written, except for rounding."""
    if (
        window is None
        or isinstance(window, str)
        or all(a.verdict is not None and a.score == a.verdict for a in (high, low))
    ):
        return True
    return window[0] - 1e-9 <= high.score - low.score <= window[1] + 1e-9


def pair(answers: Sequence[A], rules: Rules, *, window: Window = None, tied: str = "drop") -> tuple[A, A] | None:
    """The worst, and the best with another text."""
    if not answers:
        return None
    low = worst(answers, rules)
    others = [answer for answer in answers if answer.text != low.text]
    if not others or low.verdict is True:
        return None
    high = best(others, rules)
    if tied == "drop" and (high.verdict is False or not is_better(high, low)):
        return None
    return (high, low) if lies_inside(window, high, low) else None


def softmax(scores: Sequence[float], temperature: float) -> list[float]:
    if temperature == 0:
        return [(score == max(scores)) / scores.count(max(scores)) for score in scores]
    exponentials = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [exponential / sum(exponentials) for exponential in exponentials]


def part(role: str | None, answer: A, group: str = "", weight: float | None = None) -> Part:
    return role, answer.source, answer.sample, group, weight


def at_least(min_margin: float | None) -> Window:
    return None if min_margin is None else [min_margin, math.inf]


def wrpo(
    case: Candidates,
    rules: Rules,
    *,
    rank: int = 1,
    rejected_source: bool = False,
    target_ties: str = "keep",
    min_margin: float | None = None,
    **taking_part: Any,
) -> Row:
    answers = read(case.sources, rules, **taking_part)
    order = ranked(answers, rules)
    found = pair(read(case.target, rules, None, None), rules, window=at_least(min_margin), tied=target_ties)
    if len(order) < rank or order[rank - 1].verdict is False or found is None:
        return None
    source = order[rank - 1]
    row = [part("chosen_source", source), part("chosen_target", found[0]), part("rejected", found[1])]
    if rejected_source:
        others = [a for a in answers if a.source == source.source and a.text != source.text]
        low = worst(others, rules) if others else None
        if low is None or low.verdict is True or not is_better(source, low):
            return None
        row.append(part("rejected_source", low))
    return row


def best_of_sources(case: Candidates, rules: Rules, **taking_part: Any) -> Row:
    answers = [answer for answer in read(case.sources, rules, **taking_part) if answer.verdict is not False]
    return [part("chosen", best(answers, rules))] if answers else None


def fusesft(
    case: Candidates, rules: Rules, *, temperature: float, keep: str, num_responses: int, **taking_part: Any
) -> Row:
    answers = [answer for answer in read(case.sources, rules, **taking_part) if answer.verdict is not False]
    if keep == "each-source":
        answers = [best(own, rules) for own in by_source(answers)]
    kept = ranked(answers, rules)[:num_responses]
    weights = softmax([answer.score for answer in kept], temperature) if kept else []
    return [part("chosen", answer, "", weight) for answer, weight in zip(kept, weights, strict=True)] or None


def fusepo(case: Candidates, rules: Rules, *, temperature: float, min_margin: float | None, **taking_part: Any) -> Row:
    sources = by_source(read(case.sources, rules, **taking_part))
    found = [p for own in sources if (p := pair(own, rules, window=at_least(min_margin)))]
    weights = softmax([high.score for high, _ in found], temperature) if found else []
    row: list[Part] = []
    for (high, low), weight in zip(found, weights, strict=True):
        row += [part("chosen", high, high.source, weight), part("rejected", low, high.source, weight)]
    return row or None


def fusepo_rloo(case: Candidates, rules: Rules, *, temperature: float, **taking_part: Any) -> Row:
    groups = [own for own in by_source(read(case.sources, rules, **taking_part)) if len(own) > 1]
    if not any(own[0].score != answer.score for own in groups for answer in own):
        return None
    weights = softmax([max(answer.score for answer in own) for own in groups], temperature)
    return [
        part(None, answer, answer.source, weight) for own, weight in zip(groups, weights, strict=True) for answer in own
    ]


def fusechat3(
    case: Candidates, rules: Rules, *, window: Window, windows: Mapping[str, Window], **taking_part: Any
) -> Row:
    here = windows.get(case.prompt.domain, window)
    sources = by_source(read(case.sources, rules, **taking_part))
    found = {p[0]: p[1] for own in sources if (p := pair(own, rules, window=here))}
    if not found:
        return None
    high = best(list(found), rules)
    return [part("chosen", high), part("rejected", found[high])]


def on_policy(case: Candidates, rules: Rules, *, min_margin: float | None) -> Row:
    found = pair(read(case.target, rules, None, None), rules, window=at_least(min_margin))
    return found and [part("chosen", found[0]), part("rejected", found[1])]


def rloo(case: Candidates, rules: Rules) -> Row:
    answers = read(case.target, rules, None, None)
    if len({answer.score for answer in answers}) < 2:
        return None
    return [part(None, answer) for answer in answers]


POLICIES: Mapping[str, Callable[..., Row]] = {
    "best-of-sources": best_of_sources,
    "fusesft": fusesft,
    "wrpo": wrpo,
    "fusepo": fusepo,
    "fusepo-rloo": fusepo_rloo,
    "fusechat3": fusechat3,
    "on-policy": on_policy,
    "rloo": rloo,
}
