"""log softmax of one token per position, and its gradient, without all logits in float32 at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK_LOGITS = 2**17
"""Logits converted to float32 at once: few enough for a processor's cache and for memory to be reused."""


def target_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """(M,) log softmax(logits)[target] in float32, of logits (M, V) in any precision."""
    apply: Callable[..., Tensor] = _TargetLogps.apply
    return apply(logits, targets)


class _TargetLogps(torch.autograd.Function):
    """:func:`target_logps` and its gradient, a block of positions at a time.

    The gradient of logit v at a position is (1[v = target] - exp(logit_v - log Z)) times the incoming one. It needs
    only log Z and the logits in their own precision.
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
    """The number of positions in one block."""
    return max(1, BLOCK_LOGITS // logits.shape[-1])
