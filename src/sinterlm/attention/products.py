"""Attention to keys in parts: those that all sibling sequences share, and each sibling's own.

    weights = softmax over all parts of (query . key), where the query sees the key
    output  = sum over all parts of weights times values

Shared keys meet the queries of all siblings in one matrix product per head. Own keys are a batch of products, one per
head and sibling. Grouped queries (several query heads per key head) count as further queries of the key head.

Legend: H key heads, N siblings, Q queries of a sibling (its new tokens times the query heads of a key head), K keys,
P keys of one part, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def scores_of(queries: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """The products of queries and keys, part after part.

    Args:
        queries: Shape (H, N, Q, D).
        keys: One tensor per part, shape (H, P, D) if the siblings share it, otherwise (H, N, P, D).

    Returns:
        Shape (H, N, Q, K).
    """
    return torch.cat([_restored(_batch(queries, part) @ _keys(part).mT, queries, part) for part in keys], -1)


def softmax_of(scores: Tensor, bias: Tensor, softcap: float | None) -> Tensor:
    """The weights of keys.

    Args:
        scores: Shape (..., K).
        bias: Broadcasts to the scores; -inf for a key that the query does not see, otherwise 0.
        softcap: Bound of the scores in architectures that have one.
    """
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores + bias.to(scores.dtype)).softmax(-1)


def sums_of(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """The sums of values by weights; shape (H, N, Q, D).

    Args:
        weights: Shape (H, N, Q, K).
        values: Like the keys of :func:`scores_of`.
    """
    parts = zip(_split(weights, values), values, strict=True)
    return reduce(torch.add, [_restored(_batch(part, states) @ _keys(states), part, states) for part, states in parts])


def add_sums_to_keys(weights: Tensor, queries: Tensor, into: Sequence[Tensor]) -> None:
    """Add to each key of ``into`` the weighted sum of the queries: for gradients, :func:`sums_of` transposed."""
    for part, states in zip(_split(weights, into), into, strict=True):
        product = _batch(part, states).mT @ _batch(queries, states)
        states += product if states.dim() == 3 else _restored(product, queries, states)


def _split(weights: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    split: Sequence[Tensor] = weights.split([part.shape[-2] for part in parts], -1)
    return split


def _keys(states: Tensor) -> Tensor:
    """The keys of a part as the right side of a batched product."""
    return states if states.dim() == 3 else _in_memory_order(states, states).flatten(0, 1)


def _batch(queries: Tensor, states: Tensor) -> Tensor:
    """Queries (H, N, Q, ...) as the left side: a batch is a head of all siblings, or a head of one sibling."""
    return queries.flatten(1, 2) if states.dim() == 3 else _in_memory_order(queries, states).flatten(0, 1)


def _restored(product: Tensor, queries: Tensor, states: Tensor) -> Tensor:
    """A batched product in the shape (H, N, Q, ...)."""
    if states.dim() == 3:
        of_siblings: Tensor = product.unflatten(1, queries.shape[1:3])
        return of_siblings
    return _in_memory_order(product.unflatten(0, _in_memory_order(queries, states).shape[:2]), states)


def _in_memory_order(tensor: Tensor, states: Tensor) -> Tensor:
    """Swap heads and siblings if ``states`` hold sibling after sibling; flattening would otherwise copy them."""
    return tensor.transpose(0, 1) if states.stride(0) < states.stride(1) else tensor
