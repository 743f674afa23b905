"""The engine that runs a model in this process, on the CPU or one GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from accelerate.utils import release_memory
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sinterlm.chat import FewShot, end_token_ids
from sinterlm.errors import InputError
from sinterlm.models import describe_placement, load_model, load_tokenizer
from sinterlm.records import Message, Prompt, SamplingSettings
from sinterlm.sampling.asking import Asking
from sinterlm.sampling.decoding import decode
from sinterlm.sampling.nucleus import draw_uniforms
from sinterlm.sampling.prefix_attention import Prefix, plug_in
from sinterlm.sampling.protocol import Generation, Item
from sinterlm.sampling.rows import compute_prefix, count_shared

BATCH_TOKENS = 16_384
CHARACTERS_PER_TOKEN = 3
"""A low estimate, by which batches are cut before any tokenizer is loaded."""
PROBES = ("a", "1")
"""Two questions that have nothing in common: what their encodings begin with together, every prompt begins with."""


class _Loaded(NamedTuple):
    model: PreTrainedModel
    asking: Asking
    prefix: Prefix


class TransformersEngine:
    """Samples a causal language model, asked by its chat template or by a few-shot completion prompt.

    An answer ends at the template's end-of-turn or an eos, a few-shot answer also where the text that follows
    ``{answer}`` in the template begins. Its content has neither special tokens nor white space around it; its token
    count includes the token that ended it.

    Args:
        model: hub name, folder or ``gguf:PACKAGE/FILE.gguf``.
        few_shot: the completion prompt; by chat template unless given.
        system: system prompt for messages that have none; with a chat template only.
        settings: how tokens are drawn.
        device: ``auto`` or a torch device.
        dtype: ``auto`` or a torch dtype's name. Device and dtype change an answer by rounding only, so they are no part
            of the identity.
        on_loaded: is told where the weights came to lie, e.g. ``cpu, float32``.
        batch_tokens: roughly the tokens of a batch: prompts and answers of all its samples.
    """

    def __init__(
        self,
        model: str,
        *,
        few_shot: FewShot | None,
        system: str | None,
        settings: SamplingSettings,
        device: str = "auto",
        dtype: str = "auto",
        on_loaded: Callable[[str], None] | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        if few_shot is not None and system is not None:
            raise InputError(f"model {model}: a few-shot prompt has no place for a system prompt; give one of the two")
        self._name = model
        self._few_shot = few_shot
        self._system = system
        self._settings = settings
        self._device = device
        self._dtype = dtype
        self._on_loaded = on_loaded
        self._batch_tokens = batch_tokens
        self._loaded: _Loaded | None = None

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """Put prompts of like length together, and all samples of a prompt into one batch."""
        ordered = sorted(items, key=lambda item: (_length(item.prompt), item.prompt.id, item.index))
        batches: list[list[Item]] = []
        room = 0
        for _, group in groupby(ordered, key=lambda item: item.prompt.id):
            samples = list(group)
            prompt_tokens = _length(samples[0].prompt) // CHARACTERS_PER_TOKEN
            needed = len(samples) * (prompt_tokens + self._settings.max_new_tokens)
            if not batches or needed > room:
                batches.append([])
                room = self._batch_tokens
            batches[-1].extend(samples)
            room -= needed
        return batches

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Answer batch after batch; the first loads the weights."""
        for batch in batches:
            yield self._answer(self._load(), batch)

    def close(self) -> None:
        """Release the weights."""
        self._loaded = None
        release_memory()

    def _load(self) -> _Loaded:
        if self._loaded is None:
            model = load_model(self._name, device=self._device, dtype=self._dtype)
            plug_in(model)
            tokenizer = load_tokenizer(self._name)
            end_tokens = end_token_ids(tokenizer) | _generation_ends(model)
            asking = Asking(tokenizer, self._few_shot, self._system, end_tokens)
            probes = [asking.encode(Prompt("", (Message("user", probe),))) for probe in PROBES]
            self._loaded = _Loaded(model, asking, compute_prefix(model, probes[0][: count_shared(probes)]))
            if self._on_loaded is not None:
                self._on_loaded(describe_placement(model))
        return self._loaded

    def _answer(self, loaded: _Loaded, batch: Sequence[Item]) -> list[Generation]:
        model, asking, prefix = loaded
        settings = self._settings
        prompts = {item.prompt.id: item.prompt for item in batch}
        encoded = {name: asking.encode(prompt) for name, prompt in prompts.items()}
        answers = decode(
            model,
            prefix,
            [encoded[item.prompt.id] for item in batch],
            np.stack([_uniforms(settings, item) for item in batch]),
            temperature=settings.temperature,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            is_finished=asking.is_finished,
        )
        return [
            Generation(
                prompt_id=item.prompt.id,
                index=item.index,
                content=asking.read(tokens),
                finish_reason="stop" if asking.is_finished(tokens) else "length",
                num_prompt_tokens=len(encoded[item.prompt.id]),
                num_tokens=len(tokens),
            )
            for item, tokens in zip(batch, answers, strict=True)
        ]


def _uniforms(settings: SamplingSettings, item: Item) -> NDArray[np.float64]:
    return draw_uniforms(settings.seed, item.prompt.content_hash, item.index, settings.max_new_tokens)


def _length(prompt: Prompt) -> int:
    """Characters of what is asked; what all prompts have in common takes no room of its own."""
    return sum(len(message.content) for message in prompt.messages)


def _generation_ends(model: PreTrainedModel) -> set[int]:
    """The tokens at which the model's own generation config stops."""
    config = model.generation_config
    ends = config.eos_token_id if config is not None else None
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
