"""Log-probabilities of responses: the language-model head runs only on response positions, in chunks.

Logits of the whole vocabulary exist for one chunk of positions at a time, and never in float32 as a whole. The head is
the model's own, soft-capping and scaling included, because it is run by the model's own forward.
Shapes: N sequences on P lines of U tokens (see ``packing.py``), M response tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MethodType
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from sinterlm.attention.plug import attend_as_before
from sinterlm.chat import EncodedExample
from sinterlm.errors import InputError
from sinterlm.training.decoder import decoded, decoder_replaced
from sinterlm.training.packing import Layout
from sinterlm.training.router import router_loss
from sinterlm.training.token_logps import target_logps

MAX_CHUNK_LOGITS = 2**28
"""Logits that exist at once: 512 MB in bfloat16, and their gradient as much again. Up to this many are kept for the
backward pass; more are recomputed. For Gemma 3 270M, with its 262,144 tokens, a step then takes a quarter longer on a
CPU."""


def response_logps(
    model: PreTrainedModel, *, predictors: Tensor, targets: Tensor, lengths: Tensor, **inputs: Any
) -> Tensor:
    """Log-probability of each sequence's response given its prompt; called with a ``SequenceBatch``.

    Args:
        model: A causal language model of Transformers.
        predictors: (M,) positions in [0, P * U) whose hidden states predict response tokens.
        targets: (M,) the response tokens, sequence by sequence.
        lengths: (N,) response tokens of each sequence.
        inputs: What the model itself reads, (P, U), and the spans of a shared layout, if it has one.

    Returns:
        (N,), float32, summed over response tokens.
    """
    return _logps_of(model, decoded(model, **inputs), predictors=predictors, targets=targets, lengths=lengths)


def response_logps_and_router_loss(
    model: PreTrainedModel, *, occurrences: Tensor, predictors: Tensor, targets: Tensor, lengths: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """:func:`response_logps`, and how unevenly a mixture's router spreads the batch's tokens over its experts.

    The loss is the model's own (Fedus et al., arXiv 2101.03961, equations 4 to 6), without its coefficient. A token
    counts once per sequence that holds it, so that sharing prompts changes nothing.

    Raises:
        InputError: The model computes no such loss.
    """
    outputs = decoded(model, **inputs, output_router_logits=True)
    loss = router_loss(model, outputs, occurrences)
    if loss is None:
        raise InputError(f"{type(model).__name__} gives no loss of a mixture's router")
    return _logps_of(model, outputs, predictors=predictors, targets=targets, lengths=lengths), loss


def _logps_of(
    model: PreTrainedModel, outputs: BaseModelOutput, *, predictors: Tensor, targets: Tensor, lengths: Tensor
) -> Tensor:
    hidden = cast(Tensor, outputs.last_hidden_state).flatten(0, 1).index_select(0, predictors)
    chunk_size = max(1, MAX_CHUNK_LOGITS // model.config.get_text_config().vocab_size)
    chunks = list(zip(torch.split(hidden, chunk_size), torch.split(targets, chunk_size), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        token_logps = [_token_logps(model, outputs, *chunk) for chunk in chunks]
    else:
        token_logps = [
            cast(Tensor, checkpoint(_token_logps, model, outputs, *chunk, use_reentrant=False)) for chunk in chunks
        ]
    sequences = torch.arange(len(lengths), device=lengths.device)
    owners = torch.repeat_interleave(sequences, lengths, output_size=len(targets))
    logps = torch.cat(token_logps)
    return logps.new_zeros(len(lengths)).index_add(0, owners, logps)


def _token_logps(model: PreTrainedModel, outputs: BaseModelOutput, hidden: Tensor, targets: Tensor) -> Tensor:
    """(M,) log-probabilities of ``targets``; ``hidden`` (M, H) replaces the hidden states of the decoder's outputs."""
    with decoder_replaced(model, replace(outputs, last_hidden_state=cast(Any, hidden[None]))):
        # The class's forward, since the instance's may be `attach_response_logps`'s own.
        logits = type(model).forward(model, input_ids=targets[None], use_cache=False).logits.squeeze(0)
    return target_logps(logits, targets)


def attach_response_logps(model: PreTrainedModel) -> None:
    """Let ``model(**sequence_batch)`` return :func:`response_logps`; without ``predictors`` it computes as before.

    It replaces the model's own forward, so the wrappers of distributed training, mixed precision and PEFT keep working.
    A deep copy of the model does the same with its own weights; a pickled one has its class's forward again.
    """
    # A method called `forward`: copying binds it to the copy, and pickle looks its name up in the class.
    model.forward = MethodType(forward, model)


def forward(model: PreTrainedModel, *args: Any, predictors: Tensor | None = None, **kwargs: Any) -> Any:
    """The class's own forward; with ``predictors``, :func:`response_logps`; ``occurrences`` add the router's loss."""
    if predictors is None:
        attend_as_before(model)
        return type(model).forward(model, *args, **kwargs)
    if "occurrences" in kwargs:
        return response_logps_and_router_loss(model, predictors=predictors, **kwargs)
    return response_logps(model, predictors=predictors, **kwargs)


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """The precision of the model's matrix products: autocast's if it is on, otherwise that of the weights."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def logps_of_rows(model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]], layout: Layout) -> Tensor:
    """(N,) log-probabilities of the rows' responses, without gradient or dropout."""
    was_training = model.training
    model.train(False)
    batch = send_to_device(layout(rows, pad_token_id=0), model.device)
    with torch.no_grad():
        logps = response_logps(model, **batch)
    attend_as_before(model)
    model.train(was_training)
    return logps
