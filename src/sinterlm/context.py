"""How many tokens a model can read; a longer text is meaningless to it, or breaks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""The names under which configurations state it; if there are several, the largest counts."""
_STRETCHED = ("dynamic", "yarn")
"""Rotary embeddings whose ``factor`` may multiply the number of positions."""
_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that change for all rows of a batch if its longest row is longer than in pre-training."""


def context_length(model: PreTrainedModel) -> int | None:
    """The maximum number of tokens that the model can read; None if nothing bounds it.

    That is the configuration's number of positions, stretched by rotary scaling. Attention windows do not bound it.
    """
    stretched = stated_context_length(model.config)
    bounds = [stretched] if stretched else []
    return min([*bounds, *_table_lengths(model)], default=None)


def length_of_plain_positions(config: PreTrainedConfig) -> int | None:
    """The maximum length of a row whose positions do not depend on other rows' lengths; None if they never do."""
    config = config.get_text_config(decoder=True)
    lengths = [
        scaling.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or _positions(config)
        for scaling in _rotary_scalings(config)
        if scaling.get("rope_type") in _BY_LENGTH
    ]
    return min((int(length) for length in lengths if length), default=None)


def _positions(config: PreTrainedConfig) -> int | None:
    stated = [getattr(config, name, None) for name in _NAMES]
    return max((number for number in stated if isinstance(number, int) and number > 0), default=None)


def stated_context_length(config: PreTrainedConfig) -> int | None:
    """The number of positions that a configuration states, stretched by rotary scaling; None if it states none."""
    config = config.get_text_config(decoder=True)
    positions = _positions(config)
    if positions is None:
        return None
    # Some configurations state the number before stretching and some the number after it: the larger one is meant.
    return max(
        [positions]
        + [
            int(scaling["factor"] * (scaling.get("original_max_position_embeddings") or positions))
            for scaling in _rotary_scalings(config)
            if scaling.get("rope_type") in _STRETCHED and scaling.get("factor")
        ]
    )


def _rotary_scalings(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """The settings of rotary embeddings: one for all layers, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    yield from [found] if "rope_type" in found else [each for each in found.values() if isinstance(each, Mapping)]


def _table_lengths(model: PreTrainedModel) -> Iterator[int]:
    """The lengths of tables of learned positions that begin after the position of padding, as RoBERTa's do."""
    from torch import nn  # noqa: PLC0415  # the command line must not wait for torch

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            yield module.num_embeddings - module.padding_idx - 1
