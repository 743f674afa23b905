"""Every record of the data flow; read this file first.

    Prompt -> Response -> Score -> Candidates -> TrainingRow | Dropped

Records are frozen and joined by id, never by position. *Score* is what a verifier, reward model or judge gives;
*reward* is the internal reward of the policy, which no record in this file contains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

Role = Literal["chosen", "rejected", "chosen_source", "chosen_target", "rejected_source"]
FinishReason = Literal["stop", "length", "prompt-too-long", "prompt-refused"]
"""``length``: the token limit, or the end of the model's context, cut the answer. The last two: no answer exists,
because the prompt left no room for one, or because the chat template (or few-shot prompt) refused it."""
PROMPT_TOO_LONG: Final = "prompt-too-long"
PROMPT_REFUSED: Final = "prompt-refused"
NOT_ASKED: Final = (PROMPT_TOO_LONG, PROMPT_REFUSED)
"""Finish reasons of prompts that the model cannot be asked; the store keeps them, so that they are not tried again."""
IMPORT: Final = "import"
"""The stage in records that ``sinterlm import`` has dropped."""


def digest(content: object) -> str:
    """SHA-256 (hex) of ``content`` as canonical JSON: the only way in which Sinter identifies content.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class Message(NamedTuple):
    """One turn of a conversation, e.g. ``Message("user", "What is the capital of France?")``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that every model is asked to continue.

    Example: ``Prompt("capital-france", (Message("user", "What is the capital of France?"),), ("Paris",), "capitals")``
    """

    id: str
    """Unique within a run; by default the hash of the content."""
    messages: tuple[Message, ...]
    answers: tuple[str, ...] = ()
    """Accepted answers, or tests of code, for scorers that check; empty for open prompts."""
    domain: str = ""
    """Domain, by which figures are also reported; empty for none."""
    _hashes: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Hashes that were already computed."""

    @property
    def content_hash(self) -> str:
        """Hash of the messages, so that recipes with other ids share answers; accepted answers do not count."""
        return self._hashes.get("content") or self._hashes.setdefault("content", digest(list(map(list, self.messages))))

    @property
    def answers_hash(self) -> str:
        """Hash of the accepted answers, which is part of the key of every stored score."""
        return self._hashes.get("answers") or self._hashes.setdefault("answers", digest(list(self.answers)))


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How a model is sampled. ``temperature=0`` means greedy."""

    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0
    repetition_penalty: float = 1.0
    """Above 1, tokens that are already in the prompt or the answer become less likely (arXiv 1909.05858, 4.1)."""


@dataclass(frozen=True, slots=True)
class Response:
    """One generated answer: one per prompt, source and sample index.

    Example: ``Response("9f..", "capital-france", "gemma", 0, "Paris", "stop", 131, 2, SamplingSettings())``
    """

    id: str
    """Hash of source identity, prompt content and sample index (see :func:`response_id`)."""
    prompt_id: str
    source: str
    """The model's name in the recipe: a source's, or ``target``, ``target-sft``, ..."""
    index: int
    """Sample index, from 0."""
    content: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    """Tokens of the prompt as this model saw it (few-shot prefix included); 0 if unknown."""
    num_tokens: int
    """Tokens of the answer, counted by this model's own tokenizer; 0 if unknown."""
    sampling: SamplingSettings | None = None
    """None for answers recorded elsewhere."""
    reasoning: str = ""
    """What a server gave as reasoning beside the answer; it is no part of the answer."""
    served_by: str = ""
    """The model as the server named it, with the server's fingerprint if it gives one; empty for other engines."""


class Usage(NamedTuple):
    """Requests to servers, and tokens as the servers count them.

    >>> Usage(1, 20, 0, 5) + Usage(1, 20, 16, 7)
    Usage(requests=2, prompt_tokens=40, cached_tokens=16, new_tokens=12)
    """

    requests: int = 0
    """Requests that were sent, repeated ones included."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt tokens that the server had in its cache."""
    new_tokens: int = 0
    """Tokens written, those of reasoning included."""

    def __add__(self, other: object) -> Usage:
        """The sum of each figure."""
        assert isinstance(other, Usage)
        return Usage(*(mine + its for mine, its in zip(self, other, strict=True)))


class Spent(NamedTuple):
    """A line of the ledger: what one model has cost one stage of a run."""

    stage: str
    model: str
    """A source's name in the recipe, the target's or one of its trained forms, or a scorer's title."""
    usage: Usage
    items: int
    """Answers or verdicts received."""
    money: float
    """By the price in the recipe; 0 without one."""
    seconds: float = 0.0
    """How long the model was at work."""


class Failure(NamedTuple):
    """One answer that a model did not give. The next command asks for it again."""

    prompt_id: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    kind: str
    """A short fixed phrase in lower case with hyphens, by which failures are counted, e.g. ``timed-out``."""
    detail: str = ""


def response_id(source_identity: str, prompt_hash: str, index: int) -> str:
    """The key of a response: who was asked (weights, template, settings), what, and the sample index."""
    return digest([source_identity, prompt_hash, index])


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's score of one response.

    Example: ``Score("9f..", "exact-match:2", 1.0, True, {"contains": 1.0})``
    """

    response_id: str
    scorer: str
    """The scorer's identity (kind, settings, weights)."""
    value: float
    passed: bool | None = None
    """Whether the response passed; None for scorers that grade."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the scorer found, e.g. ``contains`` of the exact-match scorer."""


class Scored(NamedTuple):
    """A response and its score."""

    response: Response
    score: Score


@dataclass(frozen=True, slots=True)
class Candidates:
    """All scored answers to one prompt, from which a selection policy makes training rows."""

    prompt: Prompt
    sources: tuple[Scored, ...]
    """Every source's answers."""
    target: tuple[Scored, ...] = ()
    """The answers of the model that is about to be trained; empty before it is sampled."""


@dataclass(frozen=True, slots=True)
class RowResponse:
    """One response of a training row.

    Example: ``RowResponse("Paris", role="chosen_source", source="gemma", index=3, score=1.0)``
    """

    content: str
    role: Role | None = None
    source: str = ""
    index: int = 0
    score: float | None = None
    group: str = ""
    """Responses of one group belong to one pair (FusePO: the source's name)."""
    weight: float | None = None
    """Weight within its row, for objectives that read weights; all members of a pair have the pair's weight."""
    truncated: bool = False
    """Whether the token limit cut it: it then gets no end-of-turn token in training."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One prompt and R responses: the unit of training.

    Example (a WRPO quadruple): responses with the roles ``chosen_source``, ``chosen_target`` and ``rejected``.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    """The prompt as the target sees it, including its system prompt."""
    responses: tuple[RowResponse, ...]
    weight: float = 1.0

    def with_role(self, role: Role) -> RowResponse:
        """The response that has ``role``.

        Raises:
            KeyError: No response has it.
        """
        for response in self.responses:
            if response.role == role:
                return response
        raise KeyError(role)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something that was dropped, where and why. Nothing is dropped without such a record.

    Example: ``Dropped("capital-france", "select-wrpo", "no-passing-source-answer", "best score 0.0 of 10 answers")``
    """

    subject: str
    """Prompt id, or response id if a single answer was dropped."""
    stage: str
    reason: str
    """A short fixed phrase in lower case with hyphens, by which the report counts."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """The result of a selection policy: every prompt ends up in exactly one of the two."""

    rows: Sequence[TrainingRow]
    dropped: Sequence[Dropped]


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as all runs of a workspace share it: with its whole key, but without any run's names.

    Example: ``StoredResponse("4c..", "b7..", 0, "Paris", "stop", 131, 2, SamplingSettings())``
    """

    identity: str
    """Who was asked, and how."""
    prompt_hash: str
    """See :attr:`Prompt.content_hash`."""
    index: int
    content: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_tokens: int
    sampling: SamplingSettings | None = None
    prompt: tuple[Message, ...] | None = None
    """What was asked, if it is known."""
    reasoning: str = ""
    """See :attr:`Response.reasoning`."""
    served_by: str = ""
    """See :attr:`Response.served_by`."""

    @property
    def id(self) -> str:
        """See :attr:`Response.id`."""
        return response_id(self.identity, self.prompt_hash, self.index)


class StoredScore(NamedTuple):
    """A score with the rest of its key."""

    score: Score
    answers_hash: str
    """See :attr:`Prompt.answers_hash`."""
