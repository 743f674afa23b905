"""A reward model: the one output of a sequence-classification model that reads the whole dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from accelerate.utils import release_memory
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinterlm.chat import encode_conversation, end_token_ids
from sinterlm.errors import InputError
from sinterlm.models import fingerprint, load_reward_model, load_tokenizer
from sinterlm.records import Message, Score, digest
from sinterlm.scoring.protocol import Answered


class _Loaded(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class _Encoded(NamedTuple):
    tokens: list[int]
    is_truncated: bool


class RewardModelScorer:
    """Scores by any sequence-classification model with one output, which reads with its own tokenizer and template.

    The output is read at the last token of the dialogue. A dialogue that is too long loses the end of its answer, never
    what stands before or what the template writes behind it; the detail then says ``truncated``.

    Args:
        model: hub name or folder.
        max_length: tokens of the longest dialogue that the model reads whole.
        batch_size: dialogues in one call of the model; it changes a score by rounding only.
        device: ``auto`` or a torch device.
        dtype: ``auto`` or a torch dtype's name.
    """

    def __init__(
        self, model: str, *, max_length: int, batch_size: int, device: str = "auto", dtype: str = "auto"
    ) -> None:
        self._name = model
        self._max_length = max_length
        self._batch_size = batch_size
        self._device = device
        self._dtype = dtype
        self._loaded: _Loaded | None = None

    @property
    def identity(self) -> str:
        """Names weights, template and the length at which answers are cut."""
        return digest({"scorer": "reward-model", "weights": fingerprint(self._name), "max_length": self._max_length})

    @property
    def needs_answers(self) -> bool:
        """Open prompts are scored as well."""
        return False

    def score(self, answered: Sequence[Answered]) -> list[Score]:
        """Score every response; the first call loads the weights.

        Raises:
            InputError: The model has several outputs, or a prompt leaves no room for its answer.
        """
        loaded = self._load()
        encoded = [self._encode(loaded.tokenizer, entry) for entry in answered]
        # Like lengths together, so that little is padded.
        order = sorted(range(len(encoded)), key=lambda position: len(encoded[position].tokens))
        values: dict[int, float] = {}
        for start in range(0, len(order), self._batch_size):
            positions = order[start : start + self._batch_size]
            tokens = [encoded[position].tokens for position in positions]
            values.update(zip(positions, _outputs(loaded, tokens), strict=True))
        identity = self.identity
        return [
            Score(entry.response.id, identity, values[position], None, {"truncated": True} if cut else {})
            for position, (entry, (_, cut)) in enumerate(zip(answered, encoded, strict=True))
        ]

    def close(self) -> None:
        """Release the weights."""
        self._loaded = None
        release_memory()

    def _load(self) -> _Loaded:
        if self._loaded is None:
            model = load_reward_model(self._name, device=self._device, dtype=self._dtype)
            if model.config.num_labels != 1:
                raise InputError(
                    f"reward model {self._name}: {model.config.num_labels} outputs; expected a sequence-classification "
                    "model with one (num_labels: 1)"
                )
            tokenizer = load_tokenizer(self._name)
            text_config = model.config.get_text_config()
            if text_config.pad_token_id is None:
                # Without one the model reads its output at the last token; so it does with one that ends no dialogue.
                text_config.pad_token_id = min(set(range(len(tokenizer))) - end_token_ids(tokenizer))
            self._loaded = _Loaded(model, tokenizer)
        return self._loaded

    def _encode(self, tokenizer: PreTrainedTokenizerBase, answered: Answered) -> _Encoded:
        """The whole dialogue as tokens, its answer cut where it does not fit."""
        messages = answered.prompt.messages
        tokens = encode_conversation(tokenizer, (*messages, Message("assistant", answered.response.content)))
        excess = len(tokens) - self._max_length
        if excess <= 0:
            return _Encoded(tokens, is_truncated=False)
        # What an empty answer leaves standing is the template's: the header before an answer, and the tail behind it.
        frame = encode_conversation(tokenizer, (*messages, Message("assistant", "")))
        num_head = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(frame, tokens, strict=False)))
        end = len(tokens) - (len(frame) - num_head)
        if len(frame) >= self._max_length:
            raise InputError(
                f"prompt {answered.prompt.id}: {len(frame)} tokens without an answer, of {self._max_length} that the "
                f"reward model {self._name} may read; raise the scorer's max_length, or leave the prompt out"
            )
        return _Encoded(tokens[: end - excess] + tokens[end:], is_truncated=True)


@torch.inference_mode()
def _outputs(loaded: _Loaded, dialogues: Sequence[Sequence[int]]) -> list[float]:
    """The model's output for every dialogue, padded at the end."""
    model = loaded.model
    padding = model.config.get_text_config().pad_token_id
    tokens = pad_sequence([torch.tensor(dialogue) for dialogue in dialogues], batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(dialogue) for dialogue in dialogues])[:, None]
    mask = torch.arange(tokens.shape[1]) < lengths
    outputs = model(input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
    values: list[float] = outputs.logits[:, 0].float().tolist()
    return values
