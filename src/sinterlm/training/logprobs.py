"""Log-probabilities of responses: the language-model head on response positions only, in chunks.

Logits of the whole vocabulary exist for one chunk of positions at a time, and never in float32 as a whole. The head is
the model's own, soft-capping and scaling included, because it is run by the model's own forward.
Shapes: N sequences on P lines of U tokens (see ``packing.py``), M response tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, groupby
from types import MethodType
from typing import Any, Literal, NamedTuple, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from sinterlm.attention.plug import CannotShareError, attend_as_before, plug_in
from sinterlm.attention.trial import sharing_on_trial
from sinterlm.chat import EncodedExample
from sinterlm.errors import InputError, out_of_memory
from sinterlm.training.packing import Layout, one_to_a_line, shared

logger = logging.getLogger(__name__)

MAX_CHUNK_LOGITS = 2**28
"""Logits that exist at once: 512 MB in bfloat16, and their gradient as much again. Up to so many are kept for the
backward pass; more are computed again, which costs Gemma 3 270M, with its 262,144 tokens, a quarter more time a step on
a CPU."""

BLOCK_LOGITS = 2**17
"""Logits that are turned to float32 at once: few enough for a processor's cache, and for memory that is used again."""


SharePrompt = Literal["auto", "on", "off"]


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
    model: PreTrainedModel, *, predictors: Tensor, targets: Tensor, lengths: Tensor, **inputs: Any
) -> Tensor:
    """Log-probability of every sequence's response, given its prompt; called with a ``SequenceBatch``.

    Args:
        model: a causal language model of Transformers.
        predictors: (M,) positions in [0, P * U) whose hidden states predict response tokens.
        targets: (M,) the response tokens, sequence by sequence.
        lengths: (N,) response tokens of each sequence.
        inputs: what the model itself reads, (P, U), and the spans of a shared layout, by which it then attends.

    Returns:
        (N,), float32, summed over response tokens.
    """
    return _logps_of(model, _decoded(model, **inputs), predictors=predictors, targets=targets, lengths=lengths)


def response_logps_and_router_loss(
    model: PreTrainedModel, *, occurrences: Tensor, predictors: Tensor, targets: Tensor, lengths: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """:func:`response_logps`, and how unevenly a mixture's router spreads the batch's tokens over its experts.

    The loss is the model's own (Fedus et al., arXiv 2101.03961, equations 4 to 6), without its coefficient. A token
    counts as often as it stands in a sequence, so that sharing prompts changes nothing.

    Raises:
        InputError: the model computes no such loss.
    """
    outputs = _decoded(model, **inputs, output_router_logits=True)
    loss = _router_loss(model, outputs, occurrences)
    if loss is None:
        raise InputError(f"{type(model).__name__} gives no loss of a mixture's router")
    return _logps_of(model, outputs, predictors=predictors, targets=targets, lengths=lengths), loss


def _decoded(model: PreTrainedModel, **inputs: Any) -> BaseModelOutput:
    """What the model makes of its inputs below the head."""
    if "spans" in inputs:
        plug_in(model)
    else:
        attend_as_before(model)
    outputs: BaseModelOutput = _decoder_of(model)(**inputs, use_cache=False)
    return outputs


def _router_loss(model: PreTrainedModel, outputs: BaseModelOutput, occurrences: Tensor) -> Tensor | None:
    """The model's forward computes it from what its routers gave, if it does; its head has nothing to do."""
    nothing = cast(Tensor, outputs.last_hidden_state)[:, :0]
    with _decoder_replaced(model, replace(outputs, last_hidden_state=cast(Any, nothing))):
        output = type(model).forward(
            model,
            input_ids=occurrences[:, :0],
            attention_mask=occurrences,
            use_cache=False,
            output_router_logits=True,
        )
    loss = getattr(output, "aux_loss", None)
    return loss if isinstance(loss, Tensor) else None  # 0 where the model has no experts


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
    """(M,) log-probabilities of ``targets``; ``outputs`` are the decoder's, but for its hidden states (M, H)."""
    with _decoder_replaced(model, replace(outputs, last_hidden_state=cast(Any, hidden[None]))):
        # The class's forward, since the instance's may be `attach_response_logps`'s own.
        logits = type(model).forward(model, input_ids=targets[None], use_cache=False).logits.squeeze(0)
    return target_logps(logits, targets)


def target_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """(M,) log softmax(logits)[target] in float32, of logits (M, V) in any precision."""
    apply: Callable[..., Tensor] = _TargetLogps.apply
    return apply(logits, targets)


class _TargetLogps(torch.autograd.Function):
    """:func:`target_logps` and its gradient, a block of positions at a time.

    The gradient of logit v at a position is (1[v = target] - exp(logit_v - log Z)) times the incoming one: it needs
    the logits in their own precision and log Z only.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_normalisers = torch.cat([torch.logsumexp(block.to(wide), -1) for block in logits.split(_num_rows(logits))])
        ctx.save_for_backward(logits, targets, log_normalisers)
        return logits.gather(-1, targets[:, None]).squeeze(-1).to(wide) - log_normalisers

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets, log_normalisers = ctx.saved_tensors
        (incoming,) = gradients
        result = torch.empty_like(logits)
        rows = (logits, result, log_normalisers[:, None], incoming[:, None])
        for block, into, log_normaliser, factor in zip(
            *(tensor.split(_num_rows(logits)) for tensor in rows), strict=True
        ):
            into.copy_(torch.sub(block.to(factor.dtype), log_normaliser).exp_().mul_(-factor))
        result.scatter_add_(-1, targets[:, None], incoming[:, None].to(result.dtype))
        return result, None


def _num_rows(logits: Tensor) -> int:
    """Positions of one block."""
    return max(1, BLOCK_LOGITS // logits.shape[-1])


def _decoder_of(model: PreTrainedModel) -> nn.Module:
    """What is below the head.

    Some classes do not have it where their own prefix says: Llama 4's language model has it as ``model``, and the model
    for images and text has that language model, head and all, within it.

    Raises:
        InputError: It is nowhere.
    """
    if model.base_model is not model:
        return model.base_model
    inner = model.get_decoder()
    if inner is not model and isinstance(inner, PreTrainedModel):
        return _decoder_of(inner)
    if isinstance(decoder := getattr(model, "model", None), nn.Module):
        return decoder
    raise InputError(_untrainable(model))


def _untrainable(model: PreTrainedModel) -> str:
    return (
        f"a model of the architecture {model.config.model_type} cannot be trained or asked for log-probabilities: what "
        "is below its head is not computed as a whole; choose a model of another architecture"
    )


@contextmanager
def _decoder_replaced(model: PreTrainedModel, outputs: BaseModelOutput) -> Iterator[None]:
    """Let the model's forward find ``outputs`` where it expects its decoder's.

    Raises:
        InputError: it has computed them otherwise, so that its logits are those of other tokens.
    """
    decoder = _decoder_of(model)
    own = decoder.__dict__.get("forward")
    is_used = False

    def forward(*args: Any, **kwargs: Any) -> BaseModelOutput:
        nonlocal is_used
        is_used = True
        return outputs

    decoder.forward = forward
    try:
        yield
        if not is_used:
            raise InputError(_untrainable(model))
    finally:
        del decoder.forward
        if own is not None:
            decoder.forward = own


def attach_response_logps(model: PreTrainedModel) -> None:
    """Let ``model(**sequence_batch)`` return :func:`response_logps`; called without ``predictors`` it is as before.

    Inside the model's own forward, the wrappers of distributed training, mixed precision and PEFT keep working. A deep
    copy of the model computes so, too, with its own weights; a pickled one has its class's forward again.
    """
    # A method of this name: what copies bind to the copy, and what pickle looks up in the class.
    model.forward = MethodType(forward, model)


def forward(model: PreTrainedModel, *args: Any, predictors: Tensor | None = None, **kwargs: Any) -> Any:
    """The class's forward, or :func:`response_logps` where there are ``predictors``; with ``occurrences``, its pair."""
    if predictors is None:
        attend_as_before(model)
        return type(model).forward(model, *args, **kwargs)
    if "occurrences" in kwargs:
        return response_logps_and_router_loss(model, predictors=predictors, **kwargs)
    return response_logps(model, predictors=predictors, **kwargs)


def router_coefficient(
    model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]], *, given: float | None
) -> float:
    """What the loss of the router is weighed with in training; 0 where the model gives none.

    Args:
        model: a causal language model.
        rows: the examples of each row; the shortest is tried.
        given: in place of the coefficient that the model's configuration states.

    Raises:
        InputError: one above 0 is given for a model without such a loss.
    """
    config = model.config.get_text_config()
    has_router = hasattr(config, "output_router_logits")
    coefficient = given if given is not None else getattr(config, "router_aux_loss_coef", None) or 0.0
    if coefficient and has_router and _gives_router_loss(model, min(rows, key=lambda row: sum(map(_num_tokens, row)))):
        return coefficient
    if given:
        raise InputError(
            f"router_aux_loss_coef is {given:g}, but {type(model).__name__} gives no loss of a mixture's router; leave "
            "it out"
        )
    return 0.0


@torch.no_grad()
def _gives_router_loss(model: PreTrainedModel, row: Sequence[EncodedExample]) -> bool:
    """Whether it does, whatever its configuration says."""
    batch = send_to_device(one_to_a_line([row], pad_token_id=0, for_router=True), model.device)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    try:
        outputs = _decoded(model, **inputs, output_router_logits=True)
        return _router_loss(model, outputs, batch["occurrences"]) is not None
    except Exception as error:  # whatever a model does that does not know the question
        if out_of_memory(error):
            raise
        return False


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """The precision of the model's matrix products: autocast's where it is on, else that of the weights."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def choose_layout(
    model: PreTrainedModel,
    rows: Sequence[Sequence[EncodedExample]],
    *,
    share_prompt: SharePrompt = "auto",
) -> Layout:
    """The shared layout if the model computes the same with it, else one sequence to a line.

    What a configuration does not tell (recurrent layers, masks of a model's own) shows when a few short rows are run
    in both layouts.

    Args:
        model: a causal language model.
        rows: the examples of each row.
        share_prompt: whether a model that cannot is told in the log ("auto") or is an error ("on"), or nothing is
            tried ("off").

    Raises:
        InputError: ``share_prompt`` is "on" and the model cannot, or it computes something else where it is padded.
    """
    if share_prompt == "off":
        return one_to_a_line
    probe = _probe(rows, window=getattr(model.config.get_text_config(), "sliding_window", None))
    try:
        with sharing_on_trial(model):
            _compare_layouts(model, probe)
            if compute_dtype(model) != model.dtype and model.device.type != "cuda":
                # In half precision the check must let pass what rounding does, and with it a small mistake. (On CUDA
                # float32 would be computed by another attention, or not at all.)
                with torch.autocast(model.device.type, enabled=False):
                    _compare_layouts(model, probe)
    except CannotShareError as error:
        problem = error
    else:
        return shared
    if share_prompt == "on":
        raise InputError(
            f"{type(model).__name__} cannot share prompts between responses: {problem}; set share_prompt to auto"
        ) from problem
    logger.warning("%s: shared prompts are computed once per response (%s)", type(model).__name__, problem)
    _check_padding(model, probe)
    return one_to_a_line


def _probe(rows: Sequence[Sequence[EncodedExample]], *, window: int | None) -> list[Sequence[EncodedExample]]:
    """The two shortest rows; the shortest of several responses, and one longer than the window if there are such."""
    ordered = sorted(rows, key=lambda row: sum(map(_num_tokens, row)))
    several = [row for row in ordered if len(row) > 1]
    longer = [row for row in ordered if window is not None and max(map(_num_tokens, row)) > window]
    return [*ordered[:2], *several[:1], *longer[:1]]


def _compare_layouts(model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]]) -> None:
    """Compute the rows' log-probabilities in both layouts.

    Raises:
        CannotShareError: they differ by more than rounding.
    """
    packed, plain = (_logps(model, rows, layout) for layout in (shared, one_to_a_line))
    # Half precision rounds logits of some 20 by 0.06, so that an answer of a few tokens moves by up to 0.9 (measured on
    # 363 answers of a tuned SmolLM2, either layout against float32).
    tolerance = 1e-3 if compute_dtype(model) == torch.float32 else 1.0
    if not torch.allclose(packed, plain, rtol=min(tolerance, 5e-2), atol=tolerance):
        raise CannotShareError(f"log-probabilities differ by {float((packed - plain).abs().max()):.3g}")


def _check_padding(model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]]) -> None:
    """Compute the rows' log-probabilities side by side and one by one, in float32, where rounding hides nothing.

    Raises:
        InputError: they differ.
    """
    if model.dtype != torch.float32:
        return
    with torch.autocast(model.device.type, enabled=False):
        padded = _logps(model, rows, one_to_a_line)
        alone = torch.cat([_logps(model, [[example]], one_to_a_line) for row in rows for example in row])
    if not torch.allclose(padded, alone, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise InputError(
            f"a model of the architecture {model.config.model_type} cannot be trained or asked for log-probabilities: "
            f"they differ by {float((padded - alone).abs().max()):.3g} where shorter sequences are padded; choose a "
            "model of another architecture"
        )


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
    batch = send_to_device(layout(rows, pad_token_id=0), model.device)
    with torch.no_grad():
        logps = response_logps(model, **batch)
    attend_as_before(model)
    model.train(was_training)
    return logps


def _num_tokens(example: EncodedExample) -> int:
    return len(example.prompt_ids) + len(example.response_ids)
