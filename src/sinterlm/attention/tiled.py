"""Attention by spans in tiles of plain matrix products: on any device, in any precision.

The backward pass recomputes the weights, tile by tile, so none are kept.

Legend: T tokens of the line, U places of the padded line, H key heads, G query heads per key head, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sinterlm.attention.products import add_sums_to_keys, scores_of, softmax_of, sums_of
from sinterlm.attention.spans import Spans
from sinterlm.attention.tiles import Tile, cut_into_tiles


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    spans: Spans,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention by spans; (T, H * G, D) and (T, H, D) to (T, H * G, D)."""
    apply: Callable[..., Tensor] = _TiledAttention.apply
    return apply(query, key, value, spans, scaling, window, softcap)


def _weights(scores: Tensor, tile: Tile, softcap: float | None) -> Tensor:
    """Softmax over the keys that a query sees; scores (H, N, L * G, K)."""
    by_token = scores.unflatten(2, (tile.stop - tile.start, -1))
    return softmax_of(by_token, tile.bias, softcap).view_as(scores)


class _TiledAttention(torch.autograd.Function):
    """:func:`tiled_attention` and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spans: Spans,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            tiling = cut_into_tiles(spans, window, query.device)
            num_heads = key.shape[1]
            queries = tiling.spread(query * scaling, num_heads)
            keys, values = (tiling.spread(states, num_heads).flatten(2) for states in (key, value))
            outputs = torch.empty_like(queries)
            for part in tiling.tiles:
                weights = _weights(scores_of(part.queries(queries), part.keys(keys)), part, softcap)
                part.queries(outputs).copy_(sums_of(weights, part.keys(values)))
            ctx.save_for_backward(queries, keys, values)
            ctx.settings = (tiling, scaling, softcap)
            return tiling.gather(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values = ctx.saved_tensors
        tiling, scaling, softcap = ctx.settings
        with torch.autocast(queries.device.type, enabled=False):
            grad = tiling.spread(gradients[0], len(keys)).index_fill_(1, tiling.padding, 0)
            grad_queries = torch.empty_like(queries)
            # At least float32, because many tiles add to one key.
            wide = torch.promote_types(keys.dtype, torch.float32)
            grad_keys, grad_values = (torch.zeros_like(states, dtype=wide) for states in (keys, values))
            for part in tiling.tiles:
                part_queries, part_grad = part.queries(queries), part.queries(grad)
                with torch.enable_grad():
                    scores = scores_of(part_queries, part.keys(keys)).requires_grad_()
                    weights = _weights(scores, part, softcap)
                add_sums_to_keys(weights.detach(), part_grad, part.keys(grad_values))
                (grad_scores,) = torch.autograd.grad(weights, scores, scores_of(part_grad, part.keys(values)))
                part.queries(grad_queries).copy_(sums_of(grad_scores, part.keys(keys)))
                add_sums_to_keys(grad_scores, part_queries, part.keys(grad_keys))
            return (
                tiling.gather(grad_queries) * scaling,
                tiling.gather(grad_keys.to(keys.dtype)[:, :, None]),
                tiling.gather(grad_values.to(values.dtype)[:, :, None]),
                *(None,) * 4,
            )
