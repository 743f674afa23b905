"""Rows of tokens that a model has read: what is the same in several rows is read once.

All rows begin with one prefix, which is kept once. Prompts with a common opening (the wording of a question, say) are
one row until they part, and rows of like length are read together, so that little is padded.

Legend: B rows, S tokens of a row behind the prefix, T new tokens of a row, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from itertools import groupby, takewhile
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from sinterlm.sampling.prefix_attention import NOWHERE, Prefix, Sight

TOKENS_AT_ONCE = 2048
"""Tokens that one call of the model reads, over all rows: bounds the memory of attention scores."""
SHORTEST_OPENING = 4
"""Tokens that prompts must have in common to be one row until they part."""


class Rows:
    """The keys and values of every row's own tokens, and where these stand.

    Padding may stand anywhere in a row: its position keeps it out of sight.

    Args:
        model: a model with our attention.
        prefix: what every row begins with.
        count: how many rows; they have no tokens of their own yet.
    """

    def __init__(self, model: PreTrainedModel, prefix: Prefix, count: int) -> None:
        self._model = model
        self._prefix = prefix
        self._positions_BS = torch.empty((count, 0), dtype=torch.long, device=model.device)
        self._cache = DynamicCache()

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, shape (B, heads, S, size)."""
        return [(keys, values) for keys, values, *_ in self._cache]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be there several times."""
        self._cache.batch_select_indices(rows)
        self._positions_BS = self._positions_BS[rows]

    def next_logits(self, tokens_B: Tensor) -> Tensor:
        """Append one token to every row; returns the logits of what follows, shape (B, V)."""
        sight = self._make_room(self._next_positions()[:, None])
        output = self._model(
            input_ids=tokens_B[:, None],
            position_ids=sight.positions_BT,
            past_key_values=self._cache,
            logits_to_keep=1,
            sight=sight,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def read(self, tokens: Sequence[Sequence[int]]) -> None:
        """Append tokens to every row: to each as many as are given for it, which may be none."""
        by_length = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        parts = []
        for _, group in groupby(by_length, key=lambda row: _length_class(len(tokens[row]))):
            rows = list(group)
            part = copy(self)
            part._cache = copy(self._cache)
            part._cache.layers = [copy(layer) for layer in self._cache.layers]
            part.select(torch.tensor(rows, device=self._model.device))
            part._read_padded([tokens[row] for row in rows])
            parts.append(part)
        self._join(parts)
        self.select(torch.tensor(by_length, device=self._model.device).argsort())

    def _read_padded(self, tokens: Sequence[Sequence[int]]) -> None:
        tokens_BT = pad_sequence([torch.tensor(row, dtype=torch.long) for row in tokens], batch_first=True)
        lengths = torch.tensor([len(row) for row in tokens])[:, None]
        slots = torch.arange(tokens_BT.shape[1])
        positions_BT = torch.where(slots < lengths, self._next_positions().cpu()[:, None] + slots, NOWHERE)
        ...

    def _next_positions(self) -> Tensor:
        return len(self._prefix.tokens) + (self._positions_BS < NOWHERE).sum(1)
