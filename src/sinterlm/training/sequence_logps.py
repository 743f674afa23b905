"""The log-probabilities that a model gives to many responses, without training it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from typing import NamedTuple

from transformers import PreTrainedModel

from sinterlm.chat import EncodedExample
from sinterlm.training.layout_choice import choose_layout
from sinterlm.training.logprobs import logps_of_rows
from sinterlm.training.packing import num_tokens


class SequenceLogp(NamedTuple):
    """The log-probability that a model gives to one response."""

    logp: float
    """Natural logarithm, summed over tokens."""
    num_tokens: int

    @property
    def mean(self) -> float:
        """The mean log-probability per token."""
        return self.logp / self.num_tokens


def sequence_logps(
    model: PreTrainedModel, examples: Sequence[EncodedExample], *, batch_size: int = 32
) -> list[SequenceLogp]:
    """Log-probabilities of many responses, without gradient.

    Args:
        model: A causal language model; its mode (train or eval) is restored.
        examples: Prompts and responses as token ids; a prompt that neighbours share is computed once.
        batch_size: Prompts in one forward pass; they are batched by length.

    Returns:
        One per response, in the order given.
    """
    if not examples:
        return []
    rows = [list(row) for _, row in groupby(examples, key=lambda example: example.prompt_ids)]
    layout = choose_layout(model, rows)
    order = sorted(range(len(rows)), key=lambda index: max(map(num_tokens, rows[index])))
    results: list[list[SequenceLogp]] = [[] for _ in rows]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        logps = iter(logps_of_rows(model, [rows[index] for index in indices], layout).tolist())
        for index in indices:
            results[index] = [SequenceLogp(next(logps), len(example.response_ids)) for example in rows[index]]
    return list(chain.from_iterable(results))
