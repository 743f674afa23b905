"""Every record of the data flow; read this file first.

    Prompt -> Response -> Score -> Candidates -> TrainingRow | Dropped

Records are frozen and joined by id, never by position. *Score* is what a verifier, reward model or judge gives;
*reward* is the internal reward of the policy and never stands in a record of this file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

Role = Literal["chosen", "rejected", "chosen_source", "chosen_target", "rejected_source"]
FinishReason = Literal["stop", "length", "prompt-too-long", "prompt-refused"]
"""``length``: the token limit, or the end of the model's context, cut the answer. The last two: there is no answer,
because the prompt left no room for one, or because the chat template (or few-shot prompt) refused it."""
PROMPT_TOO_LONG: Final = "prompt-too-long"
PROMPT_REFUSED: Final = "prompt-refused"
NOT_ASKED: Final = (PROMPT_TOO_LONG, PROMPT_REFUSED)
"""What the store keeps of a prompt that the model cannot be asked, so that it is not tried again."""
IMPORT: Final = "import"
"""The stage that a record names which ``sinterlm import`` has dropped."""


def digest(content: object) -> str:
    """SHA-256 (hex) of ``content`` as canonical JSON: the one way in which Sinter names content.

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
    """What every model is asked.

    Example: ``Prompt("capital-france", (Message("user", "What is the capital of France?"),), ("Paris",), "capitals")``
    """

    id: str
    """Unique within a run; the hash of the content where the file gives none."""
    messages: tuple[Message, ...]
    answers: tuple[str, ...] = ()
    """Accepted answers, or tests of code, for scorers that check; empty for open prompts."""
    domain: str = ""
    """Family by which figures are also reported; empty for none."""
    _hashes: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Hashes that were asked for: each is computed once."""

    @property
    def content_hash(self) -> str:
        """Names what is asked, so that recipes with other ids share answers; accepted answers do not count."""
        return self._hashes.get("content") or self._hashes.setdefault("content", digest(list(map(list, self.messages))))

    @property
    def answers_hash(self) -> str:
        """Names the accepted answers, which are part of the key of every stored score."""
        return self._hashes.get("answers") or self._hashes.setdefault("answers", digest(list(self.answers)))


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How a model is sampled. ``temperature=0`` means greedy."""

    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0
    repetition_penalty: float = 1.0
    """Above 1, tokens that stand in the prompt or the answer so far become less likely (arXiv 1909.05858, 4.1)."""


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
    """Tokens of the prompt as this model saw it (few-shot prefix included); 0 where unknown."""
    num_tokens: int
    """Tokens of the answer, in this model's own tokens; 0 where unknown."""
    sampling: SamplingSettings | None = None
    """None for answers recorded elsewhere."""


def response_id(source_identity: str, prompt_hash: str, index: int) -> str:
    """The key of a response: who was asked (weights, template, settings), what, and the how-manieth sample."""
    return digest([source_identity, prompt_hash, index])


@dataclass(frozen=True, slots=True)
class Score:
    """What a scorer says of one response.

    Example: ``Score("9f..", "exact-match:2", 1.0, True, {"contains": 1.0})``
    """

    response_id: str
    scorer: str
    """The scorer's identity (kind, settings, weights)."""
    value: float
    passed: bool | None = None
    """Pass-or-fail scorers only; None for graded ones."""
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
    """The answers of the model that is about to be trained; empty before it was sampled."""


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
    """What it counts within its row, for objectives that weigh; a pair's weight stands on all its members."""
    truncated: bool = False
    """Cut by the token limit: gets no end-of-turn token in training."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One prompt and R responses: the unit of training.

    Example (a WRPO quadruple): responses with the roles ``chosen_source``, ``chosen_target`` and ``rejected``.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    """The prompt as the target is asked it, its system prompt included."""
    responses: tuple[RowResponse, ...]
    weight: float = 1.0

    def with_role(self, role: Role) -> RowResponse:
        """The response that has ``role``; KeyError where there is none."""
        for response in self.responses:
            if response.role == role:
                return response
        raise KeyError(role)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something that went no further, where and why. Nothing is dropped without one.

    Example: ``Dropped("capital-france", "select-wrpo", "no-passing-source-answer", "best score 0.0 of 10 answers")``
    """

    subject: str
    """Prompt id, or response id where a single answer was set aside."""
    stage: str
    reason: str
    """A short fixed phrase in lower case with hyphens, by which the report counts."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a selection policy makes of its candidates: every prompt ends up in exactly one of the two."""

    rows: Sequence[TrainingRow]
    dropped: Sequence[Dropped]


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as every run of a workspace shares it: with its whole key, and without any run's names.

    Example: ``StoredResponse("4c..", "b7..", 0, "Paris", "stop", 131, 2, SamplingSettings())``
    """

    identity: str
    """Who was asked, and how."""
    prompt_hash: str
    """As :attr:`Prompt.content_hash`."""
    index: int
    content: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_tokens: int
    sampling: SamplingSettings | None = None
    prompt: tuple[Message, ...] | None = None
    """What was asked, where it is known."""

    @property
    def id(self) -> str:
        """As :attr:`Response.id`."""
        return response_id(self.identity, self.prompt_hash, self.index)


class StoredScore(NamedTuple):
    """A score with the rest of its key."""

    score: Score
    answers_hash: str
    """Stands for the accepted answers of the prompt."""
