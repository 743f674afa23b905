"""Combination: several scorers as one.

weighted-sum    the weighted sum of the parts' scores
gate            the last part's score, for answers that pass all the others: a verifier first, then a reward model
rank            the first part decides; the second decides between answers that it rates alike, and so on

A score belongs to one answer and is stored under it, so no rule looks at other answers: ``rank`` is an order of scores,
written as a number, and not an answer's place among those that happen to be sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sinterlm.errors import InputError
from sinterlm.explain import Problem, unknown_name
from sinterlm.records import Score, digest
from sinterlm.scoring.protocol import NO_SCORE, NOT_A_NUMBER, Exchange, Scorer, answers_at_once, no_score
from sinterlm.scoring.settings import BuildPart, PartPath, ScorerSettings, find_unread_keys

if TYPE_CHECKING:
    Part = ScorerSettings  # any form of the table, in which this one is (see scorers.py)

Rule = Literal["weighted-sum", "gate", "rank"]


class Combination(ScorerSettings):
    """Several scorers as one."""

    kind: Literal["combination"]
    rule: Rule
    """How their scores become one."""
    parts: Annotated[dict[str, Part], Field(min_length=2)]
    """At least two scorers by any name, combinations too; for ``gate`` and ``rank`` their order matters."""
    weights: dict[str, float] = {}
    """With ``rule: weighted-sum``: weights by the part's name; default: 1."""
    failing_value: float | None = None
    """With ``rule: gate``: the score of answers that fail, which the last part is then not asked about."""
    step: Annotated[float, Field(gt=0)] = 1.0
    """With ``rule: rank``: scores that round to the same multiple of it are alike."""

    description: ClassVar = (
        "several scorers as one: a weighted sum, a gate (a verifier first), or a rank (ties go to the next)"
    )

    @property
    def title(self) -> str:
        """The rule and what it combines."""
        return f"{self.rule} of {', '.join(part.title for part in self.parts.values())}"

    def children(self) -> dict[PartPath, ScorerSettings]:
        """The parts."""
        return {("parts", name): part for name, part in self.parts.items()}

    def find_problems(self) -> Iterator[Problem]:
        """Keys of another rule, and weights of unknown parts."""
        yield from find_unread_keys(self, "rule", {"weights": "weighted-sum", "failing_value": "gate", "step": "rank"})
        for name in sorted(self.weights.keys() - self.parts.keys()):
            yield Problem(("weights", name), unknown_name(name, self.parts, "part"))
        yield from super().find_problems()

    def build(self, build_part: BuildPart) -> CombinationScorer:
        """The rule over the scorers of its parts."""
        return CombinationScorer(
            self.rule,
            {name: build_part(part) for name, part in self.parts.items()},
            weights=self.weights,
            failing_value=self.failing_value,
            step=self.step,
        )


class CombinationScorer:
    """Scores by a rule over the scores of other scorers, which the detail holds by name.

    Args:
        rule: See above.
        parts: Scorers by name; for ``gate`` and ``rank`` their order matters.
        weights: For ``weighted-sum``, by the name of a part; 1 by default.
        failing_value: For ``gate``: the score of answers that do not pass; the last part is then not asked about them.
            With None it scores them too; they still do not pass.
        step: For ``rank``: scores that round to the same multiple of it are alike.
    """

    def __init__(
        self,
        rule: Rule,
        parts: Mapping[str, Scorer],
        *,
        weights: Mapping[str, float] | None = None,
        failing_value: float | None = None,
        step: float = 1.0,
    ) -> None:
        self._rule = rule
        self._parts = parts
        self._weights = {name: (weights or {}).get(name, 1.0) for name in parts}
        self._failing_value = failing_value
        self._step = step

    @cached_property
    def identity(self) -> str:
        """Names the rule, the settings that it reads, and the parts."""
        settings = {"weighted-sum": self._weights, "gate": self._failing_value, "rank": self._step}[self._rule]
        parts = [[name, part.identity] for name, part in self._parts.items()]
        return digest({"scorer": "combination", "rule": self._rule, "settings": settings, "parts": parts})

    @property
    def needs_answers(self) -> bool:
        """True if any of the parts needs them."""
        return any(part.needs_answers for part in self._parts.values())

    @property
    def answers_at_once(self) -> int:
        """As many as one of the parts likes."""
        return answers_at_once(*self._parts.values())

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Let the parts score, then combine.

        Raises:
            InputError: A part of a gate neither passes nor fails an answer; and whatever the parts raise.
        """
        found: list[dict[str, Score]] = [{} for _ in exchanges]
        for name, part in self._parts.items():
            asked = [place for place in range(len(exchanges)) if not self._is_settled(found[place])]
            scores = part.score([exchanges[place] for place in asked]) if asked else []
            for place, score in zip(asked, scores, strict=True):
                found[place][name] = score
        return [self._combine(entry, scores) for entry, scores in zip(exchanges, found, strict=True)]

    def close(self) -> None:
        """Release what the parts hold."""
        for part in self._parts.values():
            part.close()

    def _is_settled(self, scores: Mapping[str, Score]) -> bool:
        """Whether the parts so far decide the score of an answer."""
        return any(math.isnan(score.value) for score in scores.values()) or (
            self._rule == "gate"
            and self._failing_value is not None
            and any(score.passed is False for score in scores.values())
        )

    def _combine(self, exchange: Exchange, scores: Mapping[str, Score]) -> Score:
        detail = {"parts": {name: _describe(score) for name, score in scores.items()}}
        for name, score in scores.items():
            if math.isnan(score.value):
                problem = f"{name}: {score.detail.get('problem', NOT_A_NUMBER)}"
                return no_score(exchange, self.identity, score.detail.get("reason", NO_SCORE), problem, detail)
        value, passed = self._apply(exchange, scores)
        return Score(exchange.response.id, self.identity, value, passed, detail)

    def _apply(self, exchange: Exchange, scores: Mapping[str, Score]) -> tuple[float, bool | None]:
        """The rule: what the combination scores, and whether the answer passes."""
        if self._rule == "weighted-sum":
            return sum(self._weights[name] * score.value for name, score in scores.items()), None
        if self._rule == "rank":
            values = [score.value for score in scores.values()]
            return rank_value(values, step=self._step), next(iter(scores.values())).passed
        *checks, last = self._parts
        for name in checks:
            if name in scores and scores[name].passed is None:
                raise InputError(
                    f"scorer combination: its part {name} neither passes nor fails prompt {exchange.prompt.id}; "
                    "every part of a gate but the last must be a verifier, such as exact-match"
                )
        passed = all(name in scores and scores[name].passed for name in checks)
        if not passed and self._failing_value is not None:
            return self._failing_value, False
        return scores[last].value, passed


def rank_value(values: Sequence[float], *, step: float) -> float:
    """A number that sorts like ``values``: by the first, and among alike ones by those that follow.

    All but the last are rounded to multiples of ``step``, and what follows is fitted between one multiple and the next:

        v = step * (round(v_1 / step) + s(v_2, ...)),  s(x) = (1 + x / (1 + |x|)) / 2, which rises from 0 to 1

    >>> rank_value([7.0, 0.0], step=1.0) < rank_value([7.0, 3.0], step=1.0) < rank_value([8.0, -3.0], step=1.0)
    True
    """
    return reduce(lambda rest, value: step * (round(value / step) + _squash(rest)), reversed(values))


def _squash(value: float) -> float:
    return (1 + value / (1 + abs(value))) / 2


def _describe(score: Score) -> dict[str, Any]:
    value = None if math.isnan(score.value) else score.value  # JSON has no NaN
    return {"value": value, "passed": score.passed, "detail": dict(score.detail)}
