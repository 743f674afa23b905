"""The cache of keys and values of rows of tokens that share a prefix: what several rows share is read once.

All rows begin with one prefix, which is kept once. Prompts with a common opening (the wording of a question, say) are
one row until they part, and rows of similar length are read together to save padding.

Legend: B rows, S tokens of a row after the prefix, T new tokens of a row, V vocabulary, H key heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sinterlm.attention.rows import KeysAndValues, NewTokens, Prefix
from sinterlm.attention.spans import count_shared
from sinterlm.attention.visibility import NOWHERE

TOKENS_AT_ONCE = 2048
"""Tokens that one call of the model reads, over all rows: bounds the memory of attention scores."""
SHORTEST_OPENING = 4
"""Tokens that prompts must have in common to be one row until they part."""


@dataclass(frozen=True)
class CachedRows:
    """The keys and values of the rows' own tokens, and the tokens' positions.

    Padding may be anywhere in a row: its position, ``NOWHERE``, keeps it out of sight.
    """

    prefix: Prefix
    positions_BS: Tensor
    layers: tuple[KeysAndValues, ...] = ()
    """What the cache holds of each layer: mostly keys and values, of shapes (B, H, S, D)."""

    def select(self, rows: Tensor) -> CachedRows:
        """These rows, in this order; a row may be chosen several times."""
        layers = tuple((keys[rows], values[rows]) for keys, values in self.layers)
        return CachedRows(self.prefix, self.positions_BS[rows], layers)

    def next_positions(self) -> Tensor:
        """The position of each row's next token, shape (B,)."""
        return len(self.prefix.tokens) + (self.positions_BS < NOWHERE).sum(1)


@torch.inference_mode()
def compute_prefix(model: PreTrainedModel, tokens: Sequence[int]) -> Prefix:
    """Read tokens, if there are any, as a prefix of rows to come."""
    met: dict[int, KeysAndValues] = {}
    _read_padded(model, _empty_rows(model, Prefix((), {}), 1), [tokens], met=met)
    return Prefix(tuple(tokens), met)


def read_prompts(model: PreTrainedModel, prefix: Prefix, prompts: Sequence[Sequence[int]]) -> CachedRows:
    """Read prompts, one per row; the prefix is used as far as all of them begin with it."""
    shared = count_shared([prefix.tokens, *prompts])
    rests = [prompt[shared:] for prompt in prompts]
    openings, opening_of = _find_openings(rests)
    rows = _read(model, _empty_rows(model, prefix.first(shared), len(openings)), openings)
    rows = rows.select(torch.tensor(opening_of, device=model.device))
    return _read(model, rows, [rest[len(openings[i]) :] for rest, i in zip(rests, opening_of, strict=True)])


def next_logits(model: PreTrainedModel, rows: CachedRows, tokens_B: Tensor) -> tuple[Tensor, CachedRows]:
    """Read one more token in every row.

    Returns:
        The logits of the next token, shape (B, V), and the longer rows.
    """
    output, rows = _extend(model, rows, tokens_B[:, None], rows.next_positions()[:, None], logits_to_keep=1)
    return output.logits[:, -1], rows


def _empty_rows(model: PreTrainedModel, prefix: Prefix, count: int) -> CachedRows:
    return CachedRows(prefix, torch.empty((count, 0), dtype=torch.long, device=model.device))


def _find_openings(rests: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """What neighbours in alphabetical order have in common.

    Returns:
        The openings, and for every rest the number of its opening, which may be all of it.
    """
    openings: list[Sequence[int]] = []
    opening_of = [0] * len(rests)
    for position in sorted(range(len(rests)), key=lambda position: list(rests[position])):
        rest = rests[position]
        shared = count_shared([openings[-1], rest]) if openings else 0
        if shared >= SHORTEST_OPENING:
            openings[-1] = rest[:shared]
        else:
            openings.append(rest)
        opening_of[position] = len(openings) - 1
    return openings, opening_of


def _read(model: PreTrainedModel, rows: CachedRows, tokens: Sequence[Sequence[int]]) -> CachedRows:
    """Append to every row its new tokens, if it has any."""
    by_length = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
    parts = []
    for _, group in groupby(by_length, key=lambda row: _length_class(len(tokens[row]))):
        members = list(group)
        where = torch.tensor(members, device=model.device)
        parts.append((where, _read_padded(model, rows.select(where), [tokens[row] for row in members])))
    return _reunite(parts)


def _length_class(length: int) -> int:
    """Lengths of one class differ by a fifth at most."""
    return int(4 * math.log2(1 + length))


def _read_padded(
    model: PreTrainedModel,
    rows: CachedRows,
    tokens: Sequence[Sequence[int]],
    *,
    met: dict[int, KeysAndValues] | None = None,
) -> CachedRows:
    """Append tokens to every row, padded at the end, as many columns at once as the bound allows."""
    tokens_BT = pad_sequence([torch.tensor(row, dtype=torch.long) for row in tokens], batch_first=True).to(model.device)
    lengths = torch.tensor([len(row) for row in tokens], device=model.device)[:, None]
    columns = torch.arange(tokens_BT.shape[1], device=model.device)
    positions_BT = torch.where(columns < lengths, rows.next_positions()[:, None] + columns, NOWHERE)
    width = max(1, TOKENS_AT_ONCE // len(tokens))
    for start in range(0, tokens_BT.shape[1], width):
        new = slice(start, start + width)
        _, rows = _extend(model.base_model, rows, tokens_BT[:, new], positions_BT[:, new], met=met)
    return rows


def _extend(
    module: torch.nn.Module,
    rows: CachedRows,
    tokens_BT: Tensor,
    positions_BT: Tensor,
    *,
    met: dict[int, KeysAndValues] | None = None,
    **options: Any,
) -> tuple[Any, CachedRows]:
    """Run the model, or its part below the head, on new tokens; returns its output and the longer rows."""
    cache = DynamicCache()
    for keys, values in rows.layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    positions_BS = torch.cat([rows.positions_BS, positions_BT], dim=1)
    output = module(
        input_ids=tokens_BT,
        # Position embeddings may be a table, or may depend on the furthest position: padding gets one that exists.
        position_ids=positions_BT.masked_fill(positions_BT == NOWHERE, 0),
        past_key_values=cache,
        new_tokens=NewTokens(rows.prefix, positions_BS, positions_BT, met),
        **options,
    )
    return output, CachedRows(rows.prefix, positions_BS, tuple((keys, values) for keys, values, *_ in cache))


def _reunite(parts: Sequence[tuple[Tensor, CachedRows]]) -> CachedRows:
    """Put rows that were read apart back where each part says, padded at the end; some may have no tokens at all."""
    count = sum(len(where) for where, _ in parts)
    width = max(part.positions_BS.shape[1] for _, part in parts)
    longest = max((part for _, part in parts), key=lambda part: part.positions_BS.shape[1])
    positions_BS = longest.positions_BS.new_full((count, width), NOWHERE)
    layers = tuple(
        (keys.new_zeros((count, *keys.shape[1:])), values.new_zeros((count, *values.shape[1:])))
        for keys, values in longest.layers
    )
    for where, part in parts:
        own = slice(part.positions_BS.shape[1])
        positions_BS[where, own] = part.positions_BS
        for (keys, values), (part_keys, part_values) in zip(layers, part.layers, strict=False):
            keys[where, :, own] = part_keys
            values[where, :, own] = part_values
    return CachedRows(longest.prefix, positions_BS, layers)
