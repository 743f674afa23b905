"""Dialogues as reward models read them: with the model's own tokenizer and template, cut and batched.

    prompt and answer -> token ids -> the answer cut if they are too many -> batches of one width -> readings

What the template writes around the answer, its header above all, is never cut. A dialogue is padded to a width that
its own length decides, never its neighbours': so a model computes it in the same shape whatever it is batched with.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from sinterlm.chat import PLAIN, REFUSED, UnfitAnswer, chat_template_of, encode_answered, encode_conversation
from sinterlm.context import context_length
from sinterlm.errors import InputError, memory_advice
from sinterlm.models import describe_options, fingerprint, plain_name
from sinterlm.models.settings import ChatModel
from sinterlm.records import PROMPT_TOO_LONG, Message, Score, digest
from sinterlm.scoring.protocol import NO_SCORE, NOT_A_NUMBER, Exchange, no_score
from sinterlm.scoring.settings import AnswerReader, Fingerprint
from sinterlm.settings import Positive
from sinterlm.template import TemplateOptions, TemplateRefusal

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIN_PADDING_STEP = 8

Truncate = Literal["end", "middle"]
"""Which part of an answer is cut if it does not fit."""


class DialogueReader(AnswerReader, ChatModel):
    """A model on this machine that reads the whole dialogue, with its own chat template and tokenizer."""

    max_length: Positive = 4096
    """Limit of prompt and answer together, in tokens; never more than the model has positions for."""
    truncate: Truncate = "end"
    """Which part of an answer is cut if it does not fit."""
    batch_tokens: Positive = 16_384
    """About how many tokens are computed at once, padding included."""
    float32_head: bool = True
    """Compute what follows the backbone in float32, whatever ``dtype`` is."""

    placement: ClassVar = {"batch_tokens", "device"}

    @property
    def title(self) -> str:
        """The kind with the model, so that two reward models are told apart."""
        return f"{self.kind} {plain_name(self.model)}"

    def models(self) -> list[str]:
        """The model."""
        return [self.model]

    def describe(self, fingerprint: Fingerprint) -> list[object]:
        """As for every scorer; the template's variables and date count only if they change its text."""
        settings, *others = super().describe(fingerprint)
        assert isinstance(settings, dict)
        described = {key: value for key, value in settings.items() if key not in _TEMPLATE_KEYS}
        options = self.template_options
        return [described, *others, *([options] if options else [])]

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of a :class:`DialogueScorer`."""
        keys = DialogueReader.model_fields.keys() - {"thoughts"}
        return {key: getattr(self, key) for key in keys}


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


class Batch(NamedTuple):
    """Dialogues of one width, padded at the end; B dialogues, T tokens."""

    dialogues: Sequence[Dialogue]
    input_ids: Tensor
    """(B, T)."""
    attention_mask: Tensor
    """(B, T), true at the dialogue's own tokens."""


class Reading(NamedTuple):
    """A model's output for one dialogue."""

    value: float
    detail: Mapping[str, Any] = {}


class Loaded(NamedTuple):
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    padding: int
    """The id of the padding token."""


class DialogueScorer(ABC):
    """Scores by a model that reads the whole dialogue.

    Args:
        model: Hub name or folder.
        max_length: Tokens of the longest dialogue that is read whole; no more than the model has positions for.
        truncate: Whether an answer that does not fit loses its end or its middle; the detail then says ``truncated``.
        batch_tokens: About how many tokens are computed at once, padding included; it changes a score by rounding only.
        float32_head: Whether what follows the last hidden state is computed in float32, whatever ``dtype`` is.
        device: ``auto`` or a torch device.
        dtype: ``auto`` or a torch dtype's name. It belongs to the identity, because another precision can change which
            of two close answers is better. What ``auto`` means on a machine does not.
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
        batch_tokens: int,
        float32_head: bool,
        device: str = "auto",
        dtype: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        template_date: str | None = None,
    ) -> None:
        self._name = model
        self._max_length = max_length
        self._truncate = truncate
        self._batch_tokens = batch_tokens
        self._float32_head = float32_head
        self._device = device
        self._dtype = dtype
        self._chat_template_kwargs = chat_template_kwargs
        self._template_date = template_date
        self._options = TemplateOptions.of(chat_template_kwargs, template_date)
        self._loaded: Loaded | None = None

    @cached_property
    def identity(self) -> str:
        """Names kind, weights, template, how answers are cut, and the precision.

        Computed once: a hub name is looked up on the hub.
        """
        return digest(
            {
                "scorer": self.kind,
                "weights": fingerprint(self._name),
                "max_length": self._max_length,
                "truncate": self._truncate,
                "float32_head": self._float32_head,
                "dtype": self._dtype,
                **describe_options(self._name, self._chat_template_kwargs, self._template_date),
            }
        )

    @property
    def needs_answers(self) -> bool:
        """Open prompts are scored as well."""
        return False

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Score every response; the first call loads the weights.

        An answer has no score if its prompt leaves no room for it, or if the model's output is not finite.

        Raises:
            InputError: The model cannot be loaded, is of another kind, or has no chat template.
        """
        if self._loaded is None:
            self._loaded = self._load_checked()
        max_length = min(self._max_length, context_length(self._loaded.model) or self._max_length)
        scores: dict[int, Score] = {}
        dialogues: dict[int, Dialogue] = {}
        for place, entry in enumerate(exchanges):
            try:
                found = encode_dialogue(
                    self._loaded.tokenizer, entry, self._options, max_length=max_length, truncate=self._truncate
                )
            except UnfitAnswer as error:
                scores[place] = no_score(entry, self.identity, error.reason, str(error), {})
                continue
            except TemplateRefusal as error:
                scores[place] = no_score(entry, self.identity, REFUSED, str(error), {})
                continue
            if isinstance(found, Dialogue):
                dialogues[place] = found
            else:
                problem = (
                    f"{found.num_tokens} tokens without an answer, of {max_length} that the model {self._name} "
                    "may read (max_length)"
                )
                scores[place] = no_score(entry, self.identity, PROMPT_TOO_LONG, problem, {})
        lengths = {place: len(dialogue.tokens) for place, dialogue in dialogues.items()}
        for places in split_batches(lengths, batch_tokens=self._batch_tokens, max_length=max_length):
            batch = [dialogues[place] for place in places]
            with memory_advice(
                f"scoring with model {self._name!r}",
                f"a batch_tokens below {self._batch_tokens}, a max_length below {max_length} or dtype: bfloat16 takes "
                "less",
            ):
                readings = self._read_batch(batch, max_length)
            for place, reading in zip(places, readings, strict=True):
                scores[place] = self._score_one(exchanges[place], dialogues[place], reading)
        return [scores[place] for place in range(len(exchanges))]

    def close(self) -> None:
        """Release the weights."""
        from accelerate.utils import release_memory

        self._loaded = None
        release_memory()

    @abstractmethod
    def _load(self) -> Loaded:
        """The model with its tokenizer."""

    @abstractmethod
    def _read(self, loaded: Loaded, batch: Batch) -> list[Reading]:
        """The model's output for every dialogue of the batch."""

    def _load_checked(self) -> Loaded:
        loaded = self._load()
        if chat_template_of(loaded.tokenizer) is None:
            raise InputError(
                f"model {self._name}: its tokenizer has no chat template, by which a reward model reads prompt and "
                "answer; put the one that it was trained with into its folder as chat_template.jinja"
            )
        return loaded

    def _score_one(self, exchange: Exchange, dialogue: Dialogue, reading: Reading) -> Score:
        if not math.isfinite(reading.value):
            return no_score(exchange, self.identity, NO_SCORE, NOT_A_NUMBER, {})
        detail = {**reading.detail, **({"truncated": True} if dialogue.is_truncated else {})}
        return Score(exchange.response.id, self.identity, reading.value, None, detail)

    def _read_batch(self, dialogues: Sequence[Dialogue], max_length: int) -> list[Reading]:
        import torch

        assert self._loaded is not None
        width, _ = padded_shape(len(dialogues[0].tokens), max_length)
        batch = pad(dialogues, width=width, padding=self._loaded.padding, device=self._loaded.model.device)
        with torch.inference_mode():
            return self._read(self._loaded, batch)


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


def padded_shape(length: int, max_length: int) -> tuple[int, bool]:
    """The width that a dialogue is padded to, and whether that adds anything; its own length decides both.

    Widths go up by 8 tokens, or an eighth at most. At least one token is padded, because kernels differ with
    and without a mask, unless that would exceed ``max_length``, which may be all the positions that the model has.
    """
    step = max(MIN_PADDING_STEP, (1 << length.bit_length()) // 16)
    width = (length // step + 1) * step
    return (width, True) if width <= max_length else (length, False)


def split_batches(lengths: Mapping[int, int], *, batch_tokens: int, max_length: int) -> Iterator[list[int]]:
    """Split dialogues into batches of one shape and at most ``batch_tokens`` tokens, or one dialogue.

    Args:
        lengths: In tokens, by a number that names the dialogue.
        batch_tokens: Padding included.
        max_length: See :func:`padded_shape`.

    Yields:
        The dialogues of a batch, by their numbers.
    """
    shapes = {number: padded_shape(length, max_length) for number, length in lengths.items()}
    for (width, _), numbers in groupby(sorted(shapes, key=shapes.__getitem__), key=shapes.__getitem__):
        batch = list(numbers)
        size = max(1, batch_tokens // width)
        yield from (batch[start : start + size] for start in range(0, len(batch), size))


def pad(dialogues: Sequence[Dialogue], *, width: int, padding: int, device: torch.device) -> Batch:
    """Dialogues as one tensor of ``width`` columns, padded at the end."""
    import torch

    input_ids = torch.full((len(dialogues), width), padding)
    lengths = torch.tensor([len(dialogue.tokens) for dialogue in dialogues])
    for row, dialogue in zip(input_ids, dialogues, strict=True):
        row[: len(dialogue.tokens)] = torch.tensor(dialogue.tokens)
    mask = torch.arange(width) < lengths[:, None]
    return Batch(dialogues, input_ids.to(device), mask.to(device))
