"""Plugs shared attention into a model, through Transformers' attention interface.

The model stays the library's own: its layers call :func:`attend` in place of the library's attention, and each call
names the spans of a line (training) or the new tokens of rows (sampling).

Legend: B rows or 1 line, H key heads, G query heads per key head, T new tokens, S keys, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from sinterlm.attention.flash import flash_attention
from sinterlm.attention.rows import NewTokens, attend_in_rows
from sinterlm.attention.spans import Spans
from sinterlm.attention.tiled import tiled_attention
from sinterlm.errors import InputError

_NAME = "sinter-shared-over-"
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_NOT_COMPUTED = ("attention_mask", "s_aux", "position_bias")
"""Arguments that some architectures pass to their attention and ours does not compute."""


class CannotShareError(InputError):
    """The model's layers do something other than attend to all earlier tokens or to a window of them."""


def plug_in(model: PreTrainedModel) -> None:
    """Make the model attend by :func:`attend`, which needs every call to name its spans or its new tokens.

    Raises:
        CannotShareError: Some of the model's layers attend in another way, according to its configuration.
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation.startswith(_NAME):
        return
    others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if model._is_stateful or others or not model._can_set_attn_implementation():
        raise CannotShareError(f"its layers are {', '.join(sorted(others)) or 'no plain attention'}")
    # The name contains the one that it replaces; it is not saved with the model.
    name = _NAME + config._attn_implementation
    AttentionInterface.register(name, attend)
    model.set_attn_implementation(name)


def attend_as_before(model: PreTrainedModel) -> None:
    """Undo :func:`plug_in`."""
    name = model.config.get_text_config(decoder=True)._attn_implementation
    if name.startswith(_NAME):
        model.set_attn_implementation(name.removeprefix(_NAME))


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: Spans | None = None,
    new_tokens: NewTokens | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Softmax attention, as Transformers' attention interface asks for it.

    Args:
        module: The attention layer.
        query: Shape (B, H * G, T, D).
        key: Shape (B, H, S, D).
        value: Shape (B, H, S, D).
        attention_mask: Must be None: Transformers makes no mask for a custom attention, and a layer's own mask is not
            supported.
        spans: The spans of one line, T tokens in total.
        new_tokens: The new tokens of rows, if there are no spans.
        scaling: Factor of the scores; by default 1 / sqrt(D).
        sliding_window: A token sees this many tokens, itself included; by default all.
        softcap: Bound of the scores in architectures that have one.
        others: Further arguments that the model passes.

    Returns:
        Shape (B, T, H * G, D), and no weights.

    Raises:
        CannotShareError: The layer passes something that is not computed here, or neither spans nor new tokens.
    """
    others["attention_mask"] = attention_mask
    if unknown := [name for name in _NOT_COMPUTED if others.get(name) is not None]:
        raise CannotShareError(f"{type(module).__name__} needs {', '.join(unknown)} in its attention")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if spans is not None:
        return _attend_in_line(query, key, value, spans, scaling, sliding_window, softcap), None
    if new_tokens is None:
        raise CannotShareError(f"{type(module).__name__} does not say which tokens it attends to")
    layer: int = module.layer_idx  # type: ignore[assignment]  # every attention layer knows its number
    output = attend_in_rows(
        query,
        key,
        value,
        new_tokens=new_tokens,
        layer=layer,
        scaling=scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return output, None


def _attend_in_line(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention by spans, by the device's best method; (1, H * G, T, D) and (1, H, T, D) to (1, T, H * G, D)."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    heads = [states[0].transpose(0, 1).to(dtype) for states in (query, key, value)]
    if device == "cuda" and dtype in (torch.bfloat16, torch.float16) and softcap is None:
        return flash_attention(*heads, spans=spans, scaling=scaling, window=window)[None]
    return tiled_attention(*heads, spans=spans, scaling=scaling, window=window, softcap=softcap)[None]
