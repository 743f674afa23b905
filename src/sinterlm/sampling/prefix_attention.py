"""Attention of many rows to a prefix that they share and to tokens of their own, without a copy of the prefix a row.

It is plugged into a model through Transformers' attention interface, so that models stay the library's own. What a
token sees is decided by positions: all that lies before it, or before it within the layer's window.

Legend: B rows, H key heads, G query heads a key head, T new tokens a row, P tokens of the prefix, S own tokens a row
(the new ones included), D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

NOWHERE = 2**30
"""The position of padding: after every token, so that none sees it."""

_PREFIX = "sinter-shared-prefix-over-"
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_NOT_COMPUTED = ("attention_mask", "s_aux", "position_bias")
"""What some architectures hand to their attention and this one leaves out."""


class CannotShareError(Exception):
    """The model's layers do something else than attend to all earlier tokens or to a window of them."""


@dataclass(frozen=True)
class Prefix:
    """Tokens that rows begin with, and their keys and values in each layer, of shapes (H, P, D).

    These are what attention meets. A cache may hold something else (latents), or nothing where layers share.
    """

    tokens: tuple[int, ...]
    layers: Mapping[int, tuple[Tensor, Tensor]]
    """By the layer's number."""

    def first(self, count: int) -> Prefix:
        """The prefix cut to its first ``count`` tokens."""
        layers = {layer: (keys[:, :count], values[:, :count]) for layer, (keys, values) in self.layers.items()}
        return Prefix(self.tokens[:count], layers)


@dataclass
class Sight:
    """What new tokens may attend to, in one call of the model."""

    prefix: Prefix
    positions_BS: Tensor
    positions_BT: Tensor
    met: dict[int, tuple[Tensor, Tensor]] | None = None
    """Gets each layer's keys and values of the first row, if there is such a dictionary."""
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def prefix_of(self, layer: torch.nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix's keys and values in a layer; none, of the heads of ``key`` and ``value``, without a prefix."""
        if not self.prefix.tokens:
            return key[0, :, :0], value[0, :, :0]
        return self.prefix.layers[layer.layer_idx]  # type: ignore[index]  # every attention layer knows its number

    def mask(self, window: int | None) -> Tensor:
        """Whether a new token sees a token, shape (B, 1, T, P + S); one mask serves all layers of a window."""
        if window not in self._masks:
            rows, num_prefix = len(self.positions_BS), len(self.prefix.tokens)
            positions_P = torch.arange(num_prefix, device=self.positions_BS.device)
            seen = torch.cat([positions_P.expand(rows, -1), self.positions_BS], dim=1)[:, None, None, :]
            distance = self.positions_BT[:, None, :, None] - seen
            self._masks[window] = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        return self._masks[window]


def plug_in(model: PreTrainedModel) -> None:
    """Make the model attend by :func:`attend`, which needs every call to say what is in sight.

    Raises:
        CannotShareError: By its configuration, some of its layers do something else.
    """
    config = model.config.get_text_config(decoder=True)
    others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if model._is_stateful or others or not model._can_set_attn_implementation():
        raise CannotShareError(f"its layers are {', '.join(sorted(others)) or 'no plain attention'}")
    if not config._attn_implementation.startswith(_PREFIX):
        # The name keeps what it replaces.
        name = _PREFIX + config._attn_implementation
        AttentionInterface.register(name, attend)
        model.set_attn_implementation(name)


def attend_as_before(model: PreTrainedModel) -> None:
    """Undo :func:`plug_in`."""
    name = model.config.get_text_config(decoder=True)._attn_implementation
    if name.startswith(_PREFIX):
        model.set_attn_implementation(name.removeprefix(_PREFIX))


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sight: Sight,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Softmax attention over the prefix and the row's own tokens, as Transformers' attention interface asks for it.

    Args:
        module: the attention layer, which knows its index.
        query: shape (B, H * G, T, D).
        key: shape (B, H, S, D).
        value: shape (B, H, S, D).
        attention_mask: none: Transformers makes none for an attention of one's own, and a layer's own is not computed.
        sight: prefix and positions.
        scaling: factor of the scores; 1 / sqrt(D) unless given.
        sliding_window: a token sees this many, itself included; all unless given.
        softcap: bound of the scores, where the architecture has one.
        others: what else the model hands over.

    Returns:
        Shape (B, T, H * G, D), and no weights.
    """
    others["attention_mask"] = attention_mask
    if unknown := [name for name in _NOT_COMPUTED if others.get(name) is not None]:
        raise CannotShareError(f"{type(module).__name__} needs {', '.join(unknown)} in its attention")
    if sight.met is not None:
        sight.met[module.layer_idx] = key[0], value[0]  # type: ignore[index]  # every attention layer knows its number
    num_rows, num_heads, num_new, size = query.shape
    prefix_keys, prefix_values = sight.prefix_of(module, key, value)
    grouped = query.reshape(num_rows, key.shape[1], -1, size) * (size**-0.5 if scaling is None else scaling)
    to_prefix = torch.einsum("bhqd,hpd->bhqp", grouped, prefix_keys)
    scores = torch.cat([to_prefix, grouped @ key.transpose(-1, -2)], dim=-1).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = ~sight.mask(sliding_window)
    weights = scores.view(num_rows, num_heads, num_new, -1).masked_fill(hidden, -torch.inf).softmax(-1)
    on_prefix, on_own = torch.split(
        weights.to(value.dtype).view_as(scores), [prefix_keys.shape[1], key.shape[2]], dim=-1
    )
    output = torch.einsum("bhqp,hpd->bhqd", on_prefix, prefix_values) + on_own @ value
    return output.reshape(num_rows, num_heads, num_new, -1).transpose(1, 2).contiguous(), None
