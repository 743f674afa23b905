"""Rows that grow behind a shared prefix, as in sampling, without a copy of the prefix per row.

Legend: B rows, H key heads, G query heads per key head, T new tokens of a row, P tokens of the prefix, S own tokens of
a row (the new ones included), D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinterlm.attention.products import scores_of, softmax_of, sums_of
from sinterlm.attention.visibility import Visibility, bias_of

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prefix:
    """Tokens that rows begin with, and their keys and values in each layer, of shapes (H, P, D).

    These are the keys and values that attention sees. A cache may hold something else (latents), or nothing if layers
    share them.
    """

    tokens: tuple[int, ...]
    layers: Mapping[int, KeysAndValues]
    """By the layer's number."""

    def first(self, count: int) -> Prefix:
        """The prefix cut to its first ``count`` tokens."""
        layers = {layer: (keys[:, :count], values[:, :count]) for layer, (keys, values) in self.layers.items()}
        return Prefix(self.tokens[:count], layers)


@dataclass
class NewTokens:
    """The new tokens of rows in one call of the model, and what they attend to."""

    prefix: Prefix
    positions_BS: Tensor
    positions_BT: Tensor
    met: dict[int, KeysAndValues] | None = None
    """If it is a dictionary, it receives each layer's keys and values of the first row."""
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def prefix_of(self, layer: int, key: Tensor, value: Tensor) -> KeysAndValues:
        """The prefix's keys and values in a layer; without a prefix, none of the heads of ``key`` and ``value``."""
        return self.prefix.layers[layer] if self.prefix.tokens else (key[0, :, :0], value[0, :, :0])

    def bias(self, window: int | None) -> Tensor:
        """The bias added to scores, shape (B, T, P + S); all layers with the same window use the same one."""
        if window not in self._biases:
            positions_P = torch.arange(len(self.prefix.tokens), device=self.positions_BS.device)
            keys = torch.cat([positions_P.expand(len(self.positions_BS), -1), self.positions_BS], dim=1)
            self._biases[window] = bias_of(Visibility(self.positions_BT, keys).is_hidden(window))
        return self._biases[window]


def attend_in_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    new_tokens: NewTokens,
    layer: int,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of each row's new tokens to the prefix and to the row's own tokens.

    Args:
        query: Shape (B, H * G, T, D).
        key: Shape (B, H, S, D).
        value: Shape (B, H, S, D).
        new_tokens: The tokens that the queries belong to.
        layer: Number of the layer.
        scaling: Factor of the scores.
        window: A token sees this many tokens, itself included; None: all.
        softcap: Bound of the scores in architectures that have one.

    Returns:
        Shape (B, T, H * G, D).
    """
    if new_tokens.met is not None:
        new_tokens.met[layer] = key[0], value[0]
    prefix_keys, prefix_values = new_tokens.prefix_of(layer, key, value)
    num_rows, num_heads, num_new, size = query.shape
    # The query heads of a key head lie side by side, so they are further queries of the key head, head after head.
    grouped = query.reshape(num_rows, key.shape[1], -1, size).transpose(0, 1) * scaling
    scores = scores_of(grouped, [prefix_keys, key.transpose(0, 1)]).float()
    by_token = scores.unflatten(2, (-1, num_new))
    weights = softmax_of(by_token, new_tokens.bias(window)[:, None], softcap).view_as(scores).to(value.dtype)
    output = sums_of(weights, [prefix_values, value.transpose(0, 1)])
    return output.transpose(0, 1).reshape(num_rows, num_heads, num_new, -1).transpose(1, 2).contiguous()
