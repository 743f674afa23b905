"""Judge: scores by the verdicts of a language model behind the OpenAI protocol.

A score belongs to one answer and is stored under it, so answers are compared with a fixed baseline and not with each
other: what else was sampled must not change it. Its mean over prompts is then the win rate over the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sinterlm.endpoint import OPENAI_URL, Endpoint, Reply
from sinterlm.errors import SinterError
from sinterlm.files import file_sha256
from sinterlm.records import Score, digest
from sinterlm.scoring.judge.methods import Comparison, Grading, Method
from sinterlm.scoring.judge.prompts import OVERALL, WORDING, Mode, ResponseFormat
from sinterlm.scoring.judge.verdicts import MAX_SHOWN, InvalidVerdict, describe_form, read_verdict
from sinterlm.scoring.protocol import INVALID_VERDICT, Exchange, no_score


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
        revision: Names the weights that judge, wherever they are served; None names the server instead.
        base_url: See :class:`~sinterlm.endpoint.Endpoint`, for this and what follows.
        api_key_env: The environment variable that holds the key.
        concurrency: Requests at once, at most.
        max_retries: How often one request is repeated.
        timeout_seconds: Limit of one reply.
    """

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
        revision: str | None = None,
        base_url: str = OPENAI_URL,
        api_key_env: str | None = None,
        concurrency: int = 16,
        max_retries: int = 8,
        timeout_seconds: float = 300.0,
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
        self._served_by = base_url if revision is None else revision
        self._endpoint = Endpoint(
            base_url,
            api_key_env=api_key_env,
            concurrency=concurrency,
            max_retries=max_retries,
            timeout_seconds=timeout_seconds,
        )

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
            TryAgainError: The server cannot be reached, or keeps failing. Like every error of a server, it has the
                scores of the answers that were judged before it (``scored``).
        """
        texts = [self._method.requests(entry) for entry in exchanges]
        distinct = list(dict.fromkeys(text for pair in texts for text in pair))
        replies: dict[str, Reply] = {}
        try:
            self._endpoint.ask(
                list(map(self._request, distinct)), lambda place, reply: replies.update({distinct[place]: reply})
            )
        except SinterError as error:
            error.scored = [
                (entry.prompt.id, self._score_one(entry, [replies[text] for text in pair]))
                for entry, pair in zip(exchanges, texts, strict=True)
                if replies.keys() >= set(pair)
            ]
            raise
        return [
            self._score_one(entry, [replies[text] for text in pair])
            for entry, pair in zip(exchanges, texts, strict=True)
        ]

    def close(self) -> None:
        """Nothing is held."""

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
