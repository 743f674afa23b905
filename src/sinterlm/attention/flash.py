"""Attention by spans on a GPU in half precision: variable-length flash attention with fewer queries than keys."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, cast

import torch
from torch import Tensor

from sinterlm.attention.spans import Spans, ancestors, span_starts


class Segments(NamedTuple):
    """The spans as variable-length attention takes them: each has queries and keys, aligned at their ends."""

    keys: Tensor
    """Tokens of the line, segment by segment: the ancestors', then the span's own."""
    query_bounds: Tensor
    key_bounds: Tensor
    max_queries: int
    max_keys: int


@lru_cache(maxsize=8)
def segments(spans: Spans, device: torch.device) -> Segments:
    """A segment for every span."""
    starts = span_starts(spans)
    keys = [
        [
            place
            for part in (*ancestors(spans, span), span)
            for place in range(starts[part], starts[part] + spans[part][0])
        ]
        for span in range(len(spans))
    ]
    num_queries, num_keys = [length for length, _ in spans], list(map(len, keys))
    return Segments(
        keys=torch.tensor([place for part in keys for place in part], device=device),
        query_bounds=torch.tensor([0, *accumulate(num_queries)], dtype=torch.int32, device=device),
        key_bounds=torch.tensor([0, *accumulate(num_keys)], dtype=torch.int32, device=device),
        max_queries=max(num_queries),
        max_keys=max(num_keys),
    )


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, *, spans: Spans, scaling: float, window: int | None
) -> Tensor:
    """Attention by spans; (T, H * G, D) and (T, H, D) to (T, H * G, D)."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  # newer than the oldest torch that CPUs need

    parts = segments(spans, query.device)
    return cast(
        Tensor,
        varlen_attn(
            query,
            key.index_select(0, parts.keys),
            value.index_select(0, parts.keys),
            parts.query_bounds,
            parts.key_bounds,
            parts.max_queries,
            parts.max_keys,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
        ),
    )
