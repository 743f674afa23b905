"""A model in this process that reads dialogues, in batches of one width.

A dialogue is padded to a width that its own length decides, never its neighbours': so a model computes it in the same
shape whatever it is batched with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sinterlm.context import context_length
from sinterlm.errors import memory_advice
from sinterlm.models import fingerprint
from sinterlm.models.settings import ChatModel
from sinterlm.scoring.dialogues import Dialogue, DialogueReader, DialogueScorer, Opened, Reading, Truncate
from sinterlm.settings import Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIN_PADDING_STEP = 8


class LoadedReader(DialogueReader, ChatModel):
    """A model on this machine that reads the whole dialogue."""

    batch_tokens: Positive = 16_384
    """About how many tokens are computed at once, padding included."""
    float32_head: bool = True
    """Compute what follows the backbone in float32, whatever ``dtype`` is."""

    placement: ClassVar = {"batch_tokens", "device"}

    def models(self) -> list[str]:
        """The model."""
        return [self.model]

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of a :class:`LoadedScorer`."""
        keys = LoadedReader.model_fields.keys() - {"thoughts"}
        return {key: getattr(self, key) for key in keys}


class Batch(NamedTuple):
    """Dialogues of one width, padded at the end; B dialogues, T tokens."""

    dialogues: Sequence[Dialogue]
    input_ids: Tensor
    """(B, T)."""
    attention_mask: Tensor
    """(B, T), true at the dialogue's own tokens."""


class Loaded(NamedTuple):
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    padding: int
    """The id of the padding token."""


class LoadedScorer(DialogueScorer):
    """Scores by a model in this process.

    Args:
        model: See :class:`~sinterlm.scoring.dialogues.DialogueScorer`, for all that is not named here.
        max_length: See there.
        truncate: See there.
        batch_tokens: About how many tokens are computed at once, padding included; it changes a score by rounding only.
        float32_head: Whether what follows the last hidden state is computed in float32, whatever ``dtype`` is.
        device: ``auto`` or a torch device.
        dtype: ``auto`` or a torch dtype's name. It belongs to the identity, because another precision can change which
            of two close answers is better. What ``auto`` means on a machine does not.
        template: What the chat template needs besides the conversation.
    """

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
        **template: Any,
    ) -> None:
        super().__init__(model, max_length=max_length, truncate=truncate, **template)
        self._batch_tokens = batch_tokens
        self._float32_head = float32_head
        self._device = device
        self._dtype = dtype
        self._loaded: Loaded | None = None

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

    def _identify_model(self) -> dict[str, Any]:
        weights = fingerprint(self._name)
        return {"weights": weights, "float32_head": self._float32_head, "dtype": self._dtype}

    def _open(self) -> Opened:
        if self._loaded is None:
            self._loaded = self._load()
        return Opened(self._loaded.tokenizer, context_length(self._loaded.model))

    def _read_all(self, dialogues: Mapping[int, Dialogue], max_length: int) -> Iterator[list[tuple[int, Reading]]]:
        lengths = {number: len(dialogue.tokens) for number, dialogue in dialogues.items()}
        for numbers in split_batches(lengths, batch_tokens=self._batch_tokens, max_length=max_length):
            with memory_advice(
                f"scoring with model {self._name!r}",
                f"a batch_tokens below {self._batch_tokens}, a max_length below {max_length} or dtype: bfloat16 takes "
                "less",
            ):
                readings = self._read_batch([dialogues[number] for number in numbers], max_length)
            yield list(zip(numbers, readings, strict=True))

    def _read_batch(self, dialogues: Sequence[Dialogue], max_length: int) -> list[Reading]:
        import torch

        assert self._loaded is not None
        width, _ = padded_shape(len(dialogues[0].tokens), max_length)
        batch = pad(dialogues, width=width, padding=self._loaded.padding, device=self._loaded.model.device)
        with torch.inference_mode():
            return self._read(self._loaded, batch)


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
