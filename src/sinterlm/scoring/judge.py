"""Judge: a language model behind the OpenAI protocol that grades answers, or compares each with a baseline.

grade       one grade from 1 to 10 (as MT-Bench, arXiv 2306.05685)
rubric      a grade for each criterion; the score is their mean
pairwise    the win rate against a baseline answer, asked in both orders (as Arena-Hard, arXiv 2406.11939):
            a win is 1, a tie 1/2, a loss 0, and the score is the mean of the two; orders that disagree make 1/2

A score belongs to one answer and is stored under it, so answers are compared with a fixed baseline and not with each
other: what else was sampled must not change it. Its mean over prompts is then the win rate over the baseline.

A verdict is the whole reply, read as one JSON object. Whatever else a reply holds, or lacks, makes it invalid; then the
answer has no score, and the detail says why.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from sinterlm.endpoint import OPENAI_URL, Endpoint, Reply
from sinterlm.errors import InputError, SinterError
from sinterlm.formats import read_recorded
from sinterlm.records import Score, digest
from sinterlm.scoring.judge_prompts import (
    EXPLANATION,
    HIGHEST,
    LOWEST,
    OVERALL,
    WORDING,
    comparison_request,
    grading_request,
)
from sinterlm.scoring.protocol import INVALID_VERDICT, Answered, no_score
from sinterlm.thoughts import has_thoughts, split_thoughts

MAX_SHOWN = 300
"""Characters of an invalid reply that are kept."""

Mode = Literal["grade", "rubric", "pairwise"]
ResponseFormat = Literal["json_schema", "json_object", "text"]

_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)
_POINTS = {"A": 1.0, "tie": 0.5, "B": 0.0}


class Verdict(BaseModel):
    """What a judge replies; nothing is converted, and nothing may stand beside."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Method(Protocol):
    """How an answer is judged: what the judge is asked, and what its verdicts are worth."""

    verdict: type[Verdict]
    """The form of a reply."""

    def requests(self, answered: Answered) -> list[str]:
        """What the judge is asked about one answer."""
        ...

    def value(self, verdicts: Sequence[Mapping[str, Any]]) -> float:
        """The score that verdicts come to, one for each request."""
        ...


class Grading:
    """A grade for each criterion, of which the score is the mean."""

    def __init__(self, criteria: Mapping[str, str], *, explain: bool) -> None:
        self._criteria = criteria
        self._explain = explain
        self.verdict = _verdict_form(
            dict.fromkeys(criteria, Annotated[int, Field(ge=LOWEST, le=HIGHEST)]), explain=explain
        )

    def requests(self, answered: Answered) -> list[str]:
        """One: the answer by itself."""
        return [grading_request(answered.prompt, answered.response.content, self._criteria, explain=self._explain)]

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
        self.verdict = _verdict_form({"verdict": Literal["A", "B", "tie"]}, explain=explain)

    def requests(self, answered: Answered) -> list[str]:
        """Two: the answer first, then the baseline first."""
        prompt, ours, theirs = answered.prompt, answered.response.content, self._baseline_of(answered)
        if not has_thoughts(ours):
            theirs = split_thoughts(theirs).answer
        return [
            comparison_request(prompt, *pair, with_reference=self._baseline is not None, explain=self._explain)
            for pair in ((ours, theirs), (theirs, ours))
        ]

    def value(self, verdicts: Sequence[Mapping[str, Any]]) -> float:
        """The mean of the two games, in the second of which the answer is B."""
        first, second = (_POINTS[verdict["verdict"]] for verdict in verdicts)
        return (first + 1 - second) / 2

    def _baseline_of(self, answered: Answered) -> str:
        prompt = answered.prompt
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


class JudgeScorer:
    """Scores by the verdicts of a language model.

    Args:
        model: as the server names it.
        mode: ``grade``, ``rubric`` or ``pairwise``.
        rubric: criteria by name, for ``rubric``.
        baseline: a file of recorded answers, one to each prompt, for ``pairwise``; None compares with the prompt's
            first accepted answer.
        explain: whether the judge gives reasons before its verdict; they stand in the detail.
        temperature: of the judge; ``none`` leaves it to the server.
        max_tokens: of one reply.
        response_format: how the server is told of the verdict's form; the reply is checked in any case.
        extra_body: what else the server understands.
        revision: names the weights that judge, wherever they are served; None names the server instead.
        base_url: as :class:`~sinterlm.endpoint.Endpoint` has it; so too what follows.
        api_key_env: the environment variable that holds the key.
        concurrency: most requests at once.
        max_retries: of one request.
        timeout_seconds: of one reply.
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
            **_response_format(response_format, self._method.verdict),
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

        A name alone does not say which weights judge: many servers answer to any. Where the recipe gives their
        revision, it does not matter where they are served.
        """
        return digest(
            {
                "scorer": "judge",
                "model": self._model,
                "served_by": self._served_by,
                "mode": self._mode,
                "criteria": self._criteria,
                "baseline": self._baseline and hashlib.sha256(self._baseline.read_bytes()).hexdigest(),
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

    def score(self, answered: Sequence[Answered]) -> list[Score]:
        """SamplingRequest the judge about every answer; about equal answers to one prompt once.

        Raises:
            InputError: There is no baseline answer to a prompt, or the server refuses the request.
            CredentialsError: There is no key, or the server refuses it.
            TryAgainError: The server cannot be reached, or keeps failing. As any error of a server's, it has the scores
                of the answers that were judged before it (``scored``).
        """
        texts = [self._method.requests(entry) for entry in answered]
        distinct = list(dict.fromkeys(text for pair in texts for text in pair))
        replies: dict[str, Reply] = {}
        try:
            self._endpoint.ask(
                list(map(self._request, distinct)), lambda place, reply: replies.update({distinct[place]: reply})
            )
        except SinterError as error:
            error.scored = [
                (entry.prompt.id, self._score_one(entry, [replies[text] for text in pair]))
                for entry, pair in zip(answered, texts, strict=True)
                if replies.keys() >= set(pair)
            ]
            raise
        return [
            self._score_one(entry, [replies[text] for text in pair])
            for entry, pair in zip(answered, texts, strict=True)
        ]

    def close(self) -> None:
        """Nothing is held."""

    def _request(self, text: str) -> dict[str, Any]:
        return {"model": self._model, "messages": [{"role": "user", "content": text}], **self._settings}

    def _score_one(self, answered: Answered, replies: Sequence[Reply]) -> Score:
        judge = next((reply.model for reply in replies if reply.model), self._model)
        try:
            verdicts = [read_verdict(self._method.verdict, reply) for reply in replies]
        except InvalidVerdict as error:
            shown = [reply.content[:MAX_SHOWN] for reply in replies]
            return no_score(answered, self.identity, INVALID_VERDICT, str(error), {"judge": judge, "replies": shown})
        value = self._method.value(verdicts)
        return Score(answered.response.id, self.identity, value, None, {"judge": judge, "verdicts": verdicts})


class InvalidVerdict(Exception):
    """A reply that is no verdict; says why."""


def read_verdict(form: type[Verdict], reply: Reply) -> dict[str, Any]:
    """The verdict that is the whole of a reply, but for the judge's thoughts before it and a code fence around it.

    Raises:
        InvalidVerdict: The reply is none, or more than one.
    """
    if reply.problem:
        raise InvalidVerdict(reply.problem)
    text = reply.content.strip()
    if not text.startswith(("{", "`")):  # a verdict may quote the tags of thoughts
        text = split_thoughts(text).answer.strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    try:
        fields = json.loads(text, object_pairs_hook=_unambiguous)
        if not isinstance(fields, dict):
            raise ValueError("it is none")
        return form.model_validate(fields).model_dump(by_alias=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidVerdict(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidVerdict(f"the reply is not one JSON object ({error}): {_shown(text)}") from None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _verdict_form(fields: Mapping[str, Any], *, explain: bool) -> type[Verdict]:
    """The form of a verdict with these fields, by any name, the explanation before them."""
    named = {**({EXPLANATION: str} if explain else {}), **fields}
    # A field's own name must be an identifier that no model has already; a criterion's may be any text.
    attributes: dict[str, Any] = {
        f"field_{number}": (kind, Field(alias=name)) for number, (name, kind) in enumerate(named.items())
    }
    return create_model("Verdict", __base__=Verdict, **attributes)


def _response_format(name: ResponseFormat, form: type[Verdict]) -> dict[str, Any]:
    """What tells the server of the verdict's form."""
    if name == "json_schema":
        schema = {"name": "verdict", "strict": True, "schema": form.model_json_schema()}
        return {"response_format": {"type": name, "json_schema": schema}}
    return {"response_format": {"type": name}}


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")
