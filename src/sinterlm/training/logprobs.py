"""Log-probabilities of responses: the language-model head on response positions only, in chunks.

Logits of the whole vocabulary exist for one chunk of positions at a time, in training too (a chunk's logits are
computed again in the backward pass). The head is the model's own, soft-capping and scaling included, because it is run
by the model's own forward.
Shapes: N sequences on P lines of U tokens (see ``packing.py``), M response tokens, H hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from sinterlm.chat import EncodedExample
from sinterlm.training.packing import Layout, one_to_a_line, shared

logger = logging.getLogger(__name__)

MAX_CHUNK_LOGITS = 2**26
"""Logits that exist at once: 256 MB in float32."""


class SequenceLogp(NamedTuple):
    """What a model thinks of one response."""

    logp: float
    """Natural logarithm, summed over tokens."""
    num_tokens: int

    @property
    def mean(self) -> float:
        """Per token."""
        return self.logp / self.num_tokens


def response_logps(
    model: PreTrainedModel, *, predictors: Tensor, targets: Tensor, lengths: Tensor, **inputs: Tensor
) -> Tensor:
    """Log-probability of every sequence's response, given its prompt; called with a ``SequenceBatch``.

    Args:
        model: a causal language model of Transformers.
        predictors: (M,) positions in [0, P * U) whose hidden states predict response tokens.
        targets: (M,) the response tokens, sequence by sequence.
        lengths: (N,) response tokens of each sequence.
        inputs: what the model itself reads, (P, U).

    Returns:
        (N,), float32, summed over response tokens.
    """
    hidden: Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
    hidden = hidden.flatten(0, 1).index_select(0, predictors)
    chunk_size = max(1, MAX_CHUNK_LOGITS // model.config.get_text_config().vocab_size)
    chunks = list(zip(torch.split(hidden, chunk_size), torch.split(targets, chunk_size), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        token_logps = [_token_logps(model, *chunk) for chunk in chunks]
    else:
        token_logps = [cast(Tensor, checkpoint(_token_logps, model, *chunk, use_reentrant=False)) for chunk in chunks]
    sequences = torch.arange(len(lengths), device=lengths.device)
    owners = torch.repeat_interleave(sequences, lengths, output_size=len(targets))
    return torch.zeros(len(lengths), device=hidden.device).index_add(0, owners, torch.cat(token_logps))


def _token_logps(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """(M,) log-probabilities of ``targets`` from hidden states (M, H), in float32 whatever the model's dtype."""
    with _decoder_replaced(model, hidden):
        # The class's forward, since the instance's may be `attach_response_logps`'s own.
        logits = type(model).forward(model, input_ids=targets[None], use_cache=False).logits[0]
    return -cross_entropy(logits.float(), targets, reduction="none")


@contextmanager
def _decoder_replaced(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """Let the model's forward find ``hidden`` where it expects its decoder's output."""
    decoder = model.base_model
    own = decoder.__dict__.get("forward")
    decoder.forward = lambda *args, **kwargs: BaseModelOutputWithPast(last_hidden_state=hidden[None])
    try:
        yield
    finally:
        del decoder.forward
        if own is not None:
            decoder.forward = own


def attach_response_logps(model: PreTrainedModel) -> None:
    """Let ``model(**sequence_batch)`` return :func:`response_logps`; called without ``predictors`` it is as before.

    Inside the model's own forward, the wrappers of distributed training, mixed precision and PEFT keep working.
    """
    forward = model.forward

    def forward_with_logps(*args: Any, predictors: Tensor | None = None, **kwargs: Any) -> Any:
        if predictors is None:
            return forward(*args, **kwargs)
        return response_logps(model, predictors=predictors, **kwargs)

    model.forward = forward_with_logps


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """The precision of the model's matrix products: autocast's where it is on, else that of the weights."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def choose_layout(model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]]) -> Layout:
    """The shared layout if the model computes the same with it, else one sequence to a line.

    A sliding window is counted in positions of the line, so it must not be shorter than any sequence. Beyond that the
    shortest rows are run in both layouts, for what a configuration does not tell (recurrent layers, own masks).

    Args:
        model: a causal language model.
        rows: the examples of each row.
    """
    config = model.config.get_text_config()
    longest = max(_num_tokens(example) for row in rows for example in row)
    window = getattr(config, "sliding_window", None)
    if config._attn_implementation != "sdpa" or (window is not None and window < longest):
        return one_to_a_line
    probe = sorted(rows, key=lambda row: sum(map(_num_tokens, row)))[:2]
    tolerance = 1e-3 if compute_dtype(model) == torch.float32 else 5e-2
    try:
        alike = torch.allclose(
            _logps(model, probe, shared), _logps(model, probe, one_to_a_line), rtol=tolerance, atol=tolerance
        )
    except (RuntimeError, TypeError, ValueError) as error:
        logger.debug("%s does not take the shared layout: %s", type(model).__name__, error)
        alike = False
    if not alike:
        logger.warning("%s: shared prompts are computed once per response", type(model).__name__)
    return shared if alike else one_to_a_line


def sequence_logps(
    model: PreTrainedModel, examples: Sequence[EncodedExample], *, batch_size: int = 32
) -> list[SequenceLogp]:
    """Log-probabilities of many responses, without gradient.

    Args:
        model: a causal language model; its mode (train or eval) is restored.
        examples: prompts and responses as token ids; a prompt that stands in several in a row is computed once.
        batch_size: prompts in one forward pass; they are batched by length.

    Returns:
        One a response, in the order given.
    """
    if not examples:
        return []
    rows = [list(row) for _, row in groupby(examples, key=lambda example: example.prompt_ids)]
    layout = choose_layout(model, rows)
    order = sorted(range(len(rows)), key=lambda index: max(map(_num_tokens, rows[index])))
    results: list[list[SequenceLogp]] = [[] for _ in rows]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        logps = iter(_logps(model, [rows[index] for index in indices], layout).tolist())
        for index in indices:
            results[index] = [SequenceLogp(next(logps), len(example.response_ids)) for example in rows[index]]
    return list(chain.from_iterable(results))


def _logps(model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]], layout: Layout) -> Tensor:
    """(N,) log-probabilities of the rows' responses, without gradient or dropout."""
    was_training = model.training
    model.train(False)
    batch = {name: cast(Tensor, tensor).to(model.device) for name, tensor in layout(rows, pad_token_id=0).items()}
    with torch.no_grad():
        logps = response_logps(model, **batch)
    model.train(was_training)
    return logps


def _num_tokens(example: EncodedExample) -> int:
    return len(example.prompt_ids) + len(example.response_ids)
