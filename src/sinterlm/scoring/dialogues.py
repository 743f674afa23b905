"""Dialogues as reward models read them: with the model's own tokenizer and template, and cut.

    prompt and answer -> token ids -> the answer cut if they are too many -> a reading by a model, somewhere

What the template writes around the answer, its header above all, is never cut.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from sinterlm.chat import PLAIN, REFUSED, UnfitAnswer, chat_template_of, encode_answered, encode_conversation
from sinterlm.errors import InputError
from sinterlm.models import describe_options, plain_name
from sinterlm.models.settings import TemplatedModel
from sinterlm.records import PROMPT_TOO_LONG, Message, Score, digest
from sinterlm.scoring.protocol import NO_SCORE, NOT_A_NUMBER, Exchange, no_score
from sinterlm.scoring.settings import AnswerReader, Fingerprint
from sinterlm.settings import Positive
from sinterlm.template import TemplateOptions, TemplateRefusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncate = Literal["end", "middle"]
"""Which part of an answer is cut if it does not fit."""


class DialogueReader(AnswerReader, TemplatedModel):
    """A model that reads the whole dialogue, with its own chat template and tokenizer."""

    max_length: Positive = 4096
    """Limit of prompt and answer together, in tokens; never more than the model has positions for."""
    truncate: Truncate = "end"
    """Which part of an answer is cut if it does not fit."""

    @property
    def title(self) -> str:
        """The kind with the model, so that two reward models are told apart."""
        return f"{self.kind} {plain_name(self.model)}"

    def describe(self, fingerprint: Fingerprint) -> list[object]:
        """As for every scorer; the template's variables and date count only if they change its text."""
        settings, *others = super().describe(fingerprint)
        assert isinstance(settings, dict)
        described = {key: value for key, value in settings.items() if key not in _TEMPLATE_KEYS}
        options = self.template_options
        return [described, *others, *([options] if options else [])]


_TEMPLATE_KEYS = ("chat_template_kwargs", "template_date")


class Dialogue(NamedTuple):
    """A prompt and its answer as token ids."""

    prompt_id: str
    tokens: list[int]
    is_truncated: bool


class TooLong(NamedTuple):
    """A prompt that leaves no room for its answer."""

    num_tokens: int
    """Tokens of the dialogue with an empty answer."""


class Reading(NamedTuple):
    """A model's output for one dialogue."""

    value: float
    detail: Mapping[str, Any] = {}


class Unread(NamedTuple):
    """Why a dialogue has no reading."""

    reason: str
    """See :func:`~sinterlm.scoring.protocol.no_score`."""
    problem: str


class Opened(NamedTuple):
    """What is known of a model once it can be asked."""

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int | None
    """The most tokens that it can read; None if nothing bounds them."""


class DialogueScorer(ABC):
    """Scores by a model that reads the whole dialogue.

    Args:
        model: Hub name or folder.
        max_length: Tokens of the longest dialogue that is read whole; no more than the model has positions for.
        truncate: Whether an answer that does not fit loses its end or its middle; the detail then says ``truncated``.
        chat_template_kwargs: Variables of the chat template.
        template_date: What the chat template uses as today's date, e.g. 2026-11-30.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        model: str,
        *,
        max_length: int,
        truncate: Truncate,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        template_date: str | None = None,
    ) -> None:
        self._name = model
        self._max_length = max_length
        self._truncate = truncate
        self._chat_template_kwargs = chat_template_kwargs
        self._template_date = template_date
        self._options = TemplateOptions.of(chat_template_kwargs, template_date)

    @cached_property
    def identity(self) -> str:
        """Names kind, weights, template, and how answers are cut.

        Computed once: a hub name is looked up on the hub.
        """
        return digest(
            {
                "scorer": self.kind,
                "max_length": self._max_length,
                "truncate": self._truncate,
                **self._identify_model(),
                **describe_options(self._name, self._chat_template_kwargs, self._template_date),
            }
        )

    @property
    def needs_answers(self) -> bool:
        """Open prompts are scored as well."""
        return False

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Score every response; the first call loads what is needed.

        An answer has no score if its prompt leaves no room for it, or if the model's output is not finite.

        Raises:
            InputError: The model cannot be loaded or asked, is of another kind, or has no chat template.
        """
        scores = dict(pair for some in self._score_all(exchanges) for pair in some)
        return [scores[place] for place in range(len(exchanges))]

    @abstractmethod
    def close(self) -> None:
        """Release what is held."""

    def _score_all(self, exchanges: Sequence[Exchange]) -> Iterator[list[tuple[int, Score]]]:
        """Scores as they come, each with the position of its answer."""
        opened = self._open()
        if chat_template_of(opened.tokenizer) is None:
            raise InputError(
                f"model {self._name}: its tokenizer has no chat template, by which a reward model reads prompt and "
                "answer; put the one that it was trained with into its folder as chat_template.jinja"
            )
        max_length = min(self._max_length, opened.max_tokens or self._max_length)
        dialogues: dict[int, Dialogue] = {}
        unread: list[tuple[int, Score]] = []
        for place, entry in enumerate(exchanges):
            found = self._encode(opened.tokenizer, entry, max_length)
            if isinstance(found, Dialogue):
                dialogues[place] = found
            else:
                unread.append((place, no_score(entry, self.identity, found.reason, found.problem, {})))
        yield unread
        for readings in self._read_all(dialogues, max_length):
            yield [(place, self._score_one(exchanges[place], dialogues[place], reading)) for place, reading in readings]

    @abstractmethod
    def _identify_model(self) -> dict[str, Any]:
        """What names the weights, and how they are computed with."""

    @abstractmethod
    def _open(self) -> Opened:
        """The model's tokenizer; the first call loads what is needed."""

    @abstractmethod
    def _read_all(
        self, dialogues: Mapping[int, Dialogue], max_length: int
    ) -> Iterator[Sequence[tuple[int, Reading | Unread]]]:
        """The model's output for every dialogue, by the number that names it: as they come, in any order."""

    def _encode(self, tokenizer: PreTrainedTokenizerBase, exchange: Exchange, max_length: int) -> Dialogue | Unread:
        try:
            found = encode_dialogue(tokenizer, exchange, self._options, max_length=max_length, truncate=self._truncate)
        except UnfitAnswer as error:
            return Unread(error.reason, str(error))
        except TemplateRefusal as error:
            return Unread(REFUSED, str(error))
        if isinstance(found, Dialogue):
            return found
        problem = (
            f"{found.num_tokens} tokens without an answer, of {max_length} that the model {self._name} may read "
            "(max_length)"
        )
        return Unread(PROMPT_TOO_LONG, problem)

    def _score_one(self, exchange: Exchange, dialogue: Dialogue, reading: Reading | Unread) -> Score:
        if isinstance(reading, Unread):
            return no_score(exchange, self.identity, reading.reason, reading.problem, {})
        if not math.isfinite(reading.value):
            return no_score(exchange, self.identity, NO_SCORE, NOT_A_NUMBER, {})
        detail = {**reading.detail, **({"truncated": True} if dialogue.is_truncated else {})}
        return Score(exchange.response.id, self.identity, reading.value, None, detail)


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    exchange: Exchange,
    options: TemplateOptions = PLAIN,
    *,
    max_length: int,
    truncate: Truncate,
) -> Dialogue | TooLong:
    """The whole dialogue as token ids; the answer is cut so that there are ``max_length`` at most.

    What remains with an empty answer belongs to the template: the header before an answer and the tail after it.

    Raises:
        UnfitAnswer: The model would read other words than the answer's.
        TemplateRefusal: Its template refuses the conversation.
    """
    prompt, response = exchange
    tokens = encode_answered(tokenizer, prompt.messages, response.content, options)
    excess = len(tokens) - max_length
    if excess <= 0:
        return Dialogue(prompt.id, tokens, is_truncated=False)
    frame = encode_conversation(tokenizer, (*prompt.messages, Message("assistant", "")), options)
    if len(frame) >= max_length:
        return TooLong(len(frame))
    start = _num_common(frame, tokens)
    end = len(tokens) - _num_common(frame[start:][::-1], tokens[start:][::-1])
    kept = end - start - excess
    stays = kept if truncate == "end" else (kept + 1) // 2
    return Dialogue(prompt.id, tokens[: start + stays] + tokens[start + stays + excess :], is_truncated=True)


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
