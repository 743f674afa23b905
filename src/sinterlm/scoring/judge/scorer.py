"""Judge: scores by the verdicts of a language model behind the OpenAI protocol.

A score belongs to one answer and is stored under it, so answers are compared with a fixed baseline and not with each
other: what else was sampled must not change it. Its mean over prompts is then the win rate over the baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinterlm.endpoint.settings import BuildEndpoint
from sinterlm.errors import SinterError
from sinterlm.files import file_sha256
from sinterlm.records import Score, Usage, digest
from sinterlm.scoring.judge.methods import Comparison, Grading, Method
from sinterlm.scoring.judge.prompts import OVERALL, WORDING, Mode, ResponseFormat
from sinterlm.scoring.judge.verdicts import MAX_SHOWN, InvalidVerdict, describe_form, read_verdict
from sinterlm.scoring.protocol import INVALID_VERDICT, Exchange, Given, Supply, in_order, no_score

if TYPE_CHECKING:
    from sinterlm.endpoint import Endpoint, Reply

ANSWERS_AT_ONCE = 512


class JudgeScorer:
    """Scores by the verdicts of a language model.

    Args:
        model: Its name on the server.
        mode: ``grade``, ``rubric`` or ``pairwise``.
        rubric: Criteria by name, for ``rubric``.
        baseline: A file of recorded answers, one to each prompt, for ``pairwise``; None compares with the prompt's
            first accepted answer.
        explain: Whether the judge gives reasons before its verdict; the detail holds them.
        temperature: The judge's; ``none`` leaves it to the server.
        max_tokens: Limit of one reply.
        response_format: How the server is told the form of a verdict; the reply is checked in any case.
        extra_body: Further fields of every request.
        served_by: Names the weights that judge, or else where they are served.
        build_endpoint: Builds the client of the servers; called with what takes its notes.
    """

    answers_at_once = ANSWERS_AT_ONCE

    def __init__(
        self,
        model: str,
        *,
        mode: Mode,
        rubric: Mapping[str, str] | None = None,
        baseline: Path | None = None,
        explain: bool = True,
        temperature: float | Literal["none"] = 0.0,
        max_tokens: int = 2048,
        response_format: ResponseFormat = "json_schema",
        extra_body: Mapping[str, Any] | None = None,
        served_by: str,
        build_endpoint: BuildEndpoint,
    ) -> None:
        self._model = model
        self._mode = mode
        self._criteria = {"grade": OVERALL, "rubric": rubric or {}, "pairwise": {}}[mode]
        self._baseline = baseline
        self._explain = explain
        self._method: Method = (
            Comparison(baseline, explain=explain) if mode == "pairwise" else Grading(self._criteria, explain=explain)
        )
        self._settings = {
            **({} if temperature == "none" else {"temperature": temperature}),
            "max_completion_tokens": max_tokens,
            **describe_form(response_format, self._method.verdict),
            "extra_body": dict(extra_body or {}),
        }
        self._served_by = served_by
        self._build_endpoint = build_endpoint
        self._notes: list[str] = []

    @cached_property
    def identity(self) -> str:
        """Names the judge and where it is served (or its revision), its words, method and settings; never a key.

        A name alone does not say which weights judge: many servers answer to any name. If the recipe gives their
        revision, it does not matter where they are served.
        """
        return digest(
            {
                "scorer": "judge",
                "model": self._model,
                "served_by": self._served_by,
                "mode": self._mode,
                "criteria": self._criteria,
                "baseline": self._baseline and file_sha256(self._baseline),
                "explain": self._explain,
                "words": WORDING,
                "settings": self._settings,
                **({"baseline_thoughts": "beside thoughts"} if self._baseline_thinks else {}),
            }
        )

    @property
    def _baseline_thinks(self) -> bool:
        return isinstance(self._method, Comparison) and self._method.thinks

    @property
    def needs_answers(self) -> bool:
        """A comparison without a file of baseline answers is with the prompt's accepted answer."""
        return self._mode == "pairwise" and self._baseline is None

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Ask the judge about every answer; about equal answers to one prompt only once.

        Raises:
            InputError: There is no baseline answer to a prompt, or the server refuses the request.
            CredentialsError: There is no key, or the server refuses it.
            TryAgainError: The server cannot be reached, or keeps failing.
        """
        return in_order(self.stream(exchanges))

    def stream(self, exchanges: Sequence[Exchange], supply: Supply = iter) -> Iterator[Given]:
        """See :class:`~sinterlm.scoring.protocol.StreamsScores`; a score needs all replies about its answer."""
        texts = [self._method.requests(entry) for entry in exchanges]
        places: dict[str, list[int]] = {}
        for place, own in enumerate(texts):
            for text in dict.fromkeys(own):
                places.setdefault(text, []).append(place)
        distinct = list(places)
        replies: dict[str, Reply] = {}
        try:
            for answered in self._endpoint.chat(supply(map(self._request, distinct))):
                replies |= {distinct[number]: reply for number, reply in answered}
                touched = sorted({place for number, _ in answered for place in places[distinct[number]]})
                whole = [place for place in touched if replies.keys() >= set(texts[place])]
                scores = [
                    (place, self._score_one(exchanges[place], [replies[text] for text in texts[place]]))
                    for place in whole
                ]
                yield Given(scores, sum((reply.usage for _, reply in answered), Usage()), self._take_notes())
        except SinterError:
            yield Given((), notes=self._take_notes())
            raise

    def close(self) -> None:
        """Nothing is held."""

    @cached_property
    def _endpoint(self) -> Endpoint:
        return self._build_endpoint(self._notes.append)

    def _take_notes(self) -> list[str]:
        notes = self._notes[:]
        del self._notes[: len(notes)]
        return notes

    def _request(self, text: str) -> dict[str, Any]:
        return {"model": self._model, "messages": [{"role": "user", "content": text}], **self._settings}

    def _score_one(self, exchange: Exchange, replies: Sequence[Reply]) -> Score:
        judge = next((reply.model for reply in replies if reply.model), self._model)
        try:
            verdicts = [read_verdict(self._method.verdict, reply) for reply in replies]
        except InvalidVerdict as error:
            shown = [reply.content[:MAX_SHOWN] for reply in replies]
            return no_score(exchange, self.identity, INVALID_VERDICT, str(error), {"judge": judge, "replies": shown})
        value = self._method.value(verdicts)
        return Score(exchange.response.id, self.identity, value, None, {"judge": judge, "verdicts": verdicts})
