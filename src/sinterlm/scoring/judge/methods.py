"""How an answer is judged: what the judge is asked, and what its verdicts are worth.

grade       one grade from 1 to 10 (as MT-Bench, arXiv 2306.05685)
rubric      a grade for each criterion; the score is their mean
pairwise    the win rate against a baseline answer, asked in both orders (as Arena-Hard, arXiv 2406.11939):
            a win is 1, a tie 1/2, a loss 0, and the score is the mean of the two; orders that disagree make 1/2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from sinterlm.errors import InputError
from sinterlm.formats import read_recorded
from sinterlm.scoring.judge.prompts import HIGHEST, LOWEST, comparison_request, grading_request
from sinterlm.scoring.judge.verdicts import Verdict, verdict_form
from sinterlm.scoring.protocol import Exchange
from sinterlm.thoughts import has_thoughts, split_thoughts

_POINTS = {"A": 1.0, "tie": 0.5, "B": 0.0}


class Method(Protocol):
    """How an answer is judged: what the judge is asked, and what its verdicts are worth."""

    verdict: type[Verdict]
    """The form of a reply."""

    def requests(self, exchange: Exchange) -> list[str]:
        """What the judge is asked about one answer."""
        ...

    def value(self, verdicts: Sequence[Mapping[str, Any]]) -> float:
        """The score that the verdicts give, one for each request."""
        ...


class Grading:
    """A grade for each criterion; the score is their mean."""

    def __init__(self, criteria: Mapping[str, str], *, explain: bool) -> None:
        self._criteria = criteria
        self._explain = explain
        self.verdict = verdict_form(
            dict.fromkeys(criteria, Annotated[int, Field(ge=LOWEST, le=HIGHEST)]), explain=explain
        )

    def requests(self, exchange: Exchange) -> list[str]:
        """One: the answer by itself."""
        return [grading_request(exchange.prompt, exchange.response.content, self._criteria, explain=self._explain)]

    def value(self, verdicts: Sequence[Mapping[str, Any]]) -> float:
        """The mean grade."""
        (verdict,) = verdicts
        return sum(float(verdict[name]) for name in self._criteria) / len(self._criteria)


class Comparison:
    """Two games against a baseline answer: once the answer is A, once it is B.

    Thoughts of the baseline are shown only beside an answer that comes with its own.
    """

    def __init__(self, baseline: Path | None, *, explain: bool) -> None:
        self._baseline = baseline
        self._explain = explain
        self.verdict = verdict_form({"verdict": Literal["A", "B", "tie"]}, explain=explain)

    def requests(self, exchange: Exchange) -> list[str]:
        """Two: the answer first, then the baseline first."""
        prompt, ours, theirs = exchange.prompt, exchange.response.content, self._baseline_of(exchange)
        if not has_thoughts(ours):
            theirs = split_thoughts(theirs).answer
        return [
            comparison_request(prompt, *pair, with_reference=self._baseline is not None, explain=self._explain)
            for pair in ((ours, theirs), (theirs, ours))
        ]

    def value(self, verdicts: Sequence[Mapping[str, Any]]) -> float:
        """The mean of the two games; in the second one the answer is B."""
        first, second = (_POINTS[verdict["verdict"]] for verdict in verdicts)
        return (first + 1 - second) / 2

    def _baseline_of(self, exchange: Exchange) -> str:
        prompt = exchange.prompt
        if self._baseline is None:
            if not prompt.answers:
                raise InputError(
                    f"prompt {prompt.id}: no accepted answer to compare with; give the prompt `answers`, or the judge "
                    "a file of baseline answers (`baseline`)"
                )
            return prompt.answers[0]
        for key in ((prompt.id, None), (None, prompt.content_hash)):
            if key in self._baseline_answers:
                return self._baseline_answers[key]
        raise InputError(
            f"{self._baseline}: no baseline answer to prompt {prompt.id}; expected a line with its `prompt_id` or "
            "`prompt`, and `response`"
        )

    @cached_property
    def thinks(self) -> bool:
        """Whether any answer of the baseline file has thoughts."""
        return self._baseline is not None and any(map(has_thoughts, self._baseline_answers.values()))

    @cached_property
    def _baseline_answers(self) -> dict[tuple[str | None, str | None], str]:
        """The file's answers by prompt id or content hash."""
        assert self._baseline is not None
        answers: dict[tuple[str | None, str | None], str] = {}
        for answer in read_recorded(self._baseline):
            key = (answer.prompt_id, answer.content_hash)
            if key in answers:
                raise InputError(
                    f"{self._baseline}: two answers to prompt {answer.prompt_id or answer.content_hash}; expected one "
                    "baseline answer to each prompt"
                )
            answers[key] = answer.content
        return answers
