"""Attention by spans: a query sees its span's ancestors and its own span up to itself.

A span is a run of tokens; spans form a forest (a system prompt, the prompts that begin with it, their responses) and
lie one after another in one unpadded line. On CUDA in half precision this is variable-length flash attention with
fewer queries than keys. Elsewhere it is computed here, in blocks: siblings meet the keys of their ancestors in one
product, and their own keys in a batch. The backward pass computes the weights again, block by block.

Legend: T tokens of the line, U of the line in which spans are padded, H key heads, G query heads a key head, D head
size, N siblings, L queries of each in a block, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, reduce
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from sinterlm.errors import InputError

Span = tuple[int, int]
"""Tokens of a span, and the number of its parent (an earlier span; -1: none)."""
Spans = tuple[Span, ...]
"""Those of a line, in its order. Plain tuples of integers: they travel through a model's forward as they are."""

_PREFIX = "sinter-spans-over-"
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_NOT_COMPUTED = ("attention_mask", "s_aux", "position_bias")
"""What some architectures hand to their attention and this one leaves out."""
_BLOCK_QUERIES = 128
_BLOCK_PAIRS = 2**17
"""Queries times keys of a block, of one head: their scores stay in a processor's cache."""
_LENGTH_MULTIPLE = 16
"""Lengths that matrix products like: on a CPU in bf16, 304 keys take half the time of 300."""
_UNIT_TOKENS = (0, 320)
"""A span and its descendants are computed as one, under a mask, up to so many tokens: of these, what costs less."""
_BLOCK_COST = 2**15
"""What a block costs beside its queries times keys, in these: its calls, which are many where spans are short."""
_LIKE_LENGTHS = 0.7
"""Siblings are padded to one length where the shorter has at least this share of the longer."""


class UnsupportedModelError(InputError):
    """The model's layers do something else than attend to all earlier tokens or to a window of them."""


def attend_by_spans(model: PreTrainedModel) -> None:
    """Make the model attend by :func:`attend`, which needs every call to name its spans.

    Raises:
        UnsupportedModelError: its layers cannot.
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation.startswith(_PREFIX):
        return
    others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if model._is_stateful or others or not model._can_set_attn_implementation():
        raise UnsupportedModelError(f"its layers are {', '.join(sorted(others)) or 'no plain attention'}")
    # The name keeps what it replaces; none of them is saved with the model.
    name = _PREFIX + config._attn_implementation
    AttentionInterface.register(name, attend)
    model.set_attn_implementation(name)


def attend_as_before(model: PreTrainedModel) -> None:
    """Undo :func:`attend_by_spans`."""
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
    spans: Spans,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Softmax attention of one line of spans, as Transformers' attention interface asks for it.

    Args:
        module: the attention layer.
        query: shape (1, H * G, T, D).
        key: shape (1, H, T, D).
        value: shape (1, H, T, D).
        attention_mask: none: Transformers makes none for an attention of one's own, and a layer's own is not computed.
        spans: of the line, T tokens together.
        scaling: factor of the scores; 1 / sqrt(D) unless given.
        sliding_window: a token sees this many, itself included; all unless given.
        softcap: bound of the scores, where the architecture has one.
        others: what else the model hands over.

    Returns:
        Shape (1, T, H * G, D), and no weights.
    """
    others["attention_mask"] = attention_mask
    if unknown := [name for name in _NOT_COMPUTED if others.get(name) is not None]:
        raise UnsupportedModelError(f"{type(module).__name__} needs {', '.join(unknown)} in its attention")
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    heads = [states[0].transpose(0, 1).to(dtype) for states in (query, key, value)]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if device == "cuda" and dtype in (torch.bfloat16, torch.float16) and softcap is None:
        output = flash_attention(*heads, spans=spans, scaling=scaling, window=sliding_window)
    else:
        output = blocked_attention(*heads, spans=spans, scaling=scaling, window=sliding_window, softcap=softcap)
    return output[None], None


def span_starts(spans: Spans) -> list[int]:
    """Where each span begins in the line."""
    return [0, *accumulate(length for length, _ in spans)][:-1]


def ancestors(spans: Sequence[Span], span: int) -> list[int]:
    """The spans before ``span``, from the root."""
    parent = spans[span][1]
    return [] if parent < 0 else [*ancestors(spans, parent), parent]


def positions(spans: Sequence[Span]) -> list[int]:
    """Of each token: how many it sees but itself."""
    before = [sum(spans[ancestor][0] for ancestor in ancestors(spans, span)) for span in range(len(spans))]
    return [start + index for start, (length, _) in zip(before, spans, strict=True) for index in range(length)]


# --- variable-length flash attention ---------------------------------------------------------------------------------


class Segments(NamedTuple):
    """The spans as variable-length attention wants them: each has queries and keys, aligned at their ends."""

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
    """Attention by spans on a GPU, in half precision; (T, H * G, D) and (T, H, D) to (T, H * G, D)."""
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


# --- blocks of plain products ----------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Queries [start, stop) of each of ``num_siblings`` units, which lie ``length`` apart from ``first`` on."""

    first: int
    num_siblings: int
    length: int
    start: int
    stop: int
    shared: tuple[tuple[int, int], ...]
    """Places of the keys that all of them meet: parts of their ancestors, each (start, stop)."""
    own: int
    """Of its own unit a query meets the keys from here to ``stop``."""
    bias: Tensor
    """(N or 1, L, 1, K): 0 where a query sees a key, and -inf where it does not."""

    @property
    def widths(self) -> list[int]:
        """How many of the K keys belong to each shared part, and to the own unit."""
        return [*(stop - start for start, stop in self.shared), self.stop - self.own]

    def siblings(self, states: Tensor, start: int, stop: int) -> Tensor:
        """(H, N, stop - start, ...): that part of each unit; states (H, U, ...)."""
        group = states.narrow(1, self.first, self.num_siblings * self.length)
        units: Tensor = group.unflatten(1, (self.num_siblings, self.length))
        return units.narrow(2, start, stop - start)

    def queries(self, states: Tensor) -> Tensor:
        """(H, N, L, G, D) of states (H, U, G, D)."""
        return self.siblings(states, self.start, self.stop)

    def keys(self, states: Tensor) -> list[Tensor]:
        """Of states (H, U, D): (H, K, D) of each shared part, and (H, N, K, D) of the units' own."""
        shared = [states.narrow(1, start, stop - start) for start, stop in self.shared]
        return [*shared, self.siblings(states, self.own, self.stop)]


class Plan(NamedTuple):
    """How a line is computed in blocks."""

    source: Tensor
    """(U,): the token of the line that stands at a place of the padded line; any where it is padding."""
    places: Tensor
    """(T,): the place in the padded line of each token."""
    padding: Tensor
    """The places that hold no token."""
    blocks: tuple[Block, ...]


def _padded(length: int) -> int:
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


class Unit(NamedTuple):
    """A span, or one with all its descendants where these are short: one attention with a mask of its own."""

    spans: tuple[int, ...]
    length: int
    """Tokens, padded."""


def _units(spans: Spans, max_tokens: int) -> list[Unit]:
    """The forest in units; a unit comes after those of its ancestors."""
    totals = [length for length, _ in spans]
    for span in reversed(range(len(spans))):
        if spans[span][1] >= 0:
            totals[spans[span][1]] += totals[span]
    members: dict[int, list[int]] = {}
    roots: list[int] = []
    for span, (_, parent) in enumerate(spans):
        joins = parent >= 0 and totals[roots[parent]] <= max_tokens
        roots.append(roots[parent] if joins else span)
        members.setdefault(roots[span], []).append(span)
    return [Unit(tuple(unit), _padded(sum(spans[span][0] for span in unit))) for unit in members.values()]


def _like_siblings(spans: Spans, max_tokens: int) -> Iterator[list[Unit]]:
    """Units below one span and of like length, the longest of them first; parents come before children."""
    children: dict[int, list[Unit]] = {}
    for unit in _units(spans, max_tokens):
        children.setdefault(spans[unit.spans[0]][1], []).append(unit)
    for family in children.values():
        family.sort(key=lambda unit: -unit.length)
        while family:
            like = [unit for unit in family if unit.length >= _LIKE_LENGTHS * family[0].length]
            yield like
            del family[: len(like)]


def _cost(spans: Spans, group: Sequence[Unit]) -> int:
    """Queries times keys of a group's blocks, and what these cost themselves."""
    length = group[0].length
    above = sum(_padded(spans[ancestor][0]) for ancestor in ancestors(spans, group[0].spans[0]))
    ends = [min(start + _BLOCK_QUERIES, length) for start in range(0, length, _BLOCK_QUERIES)]
    pairs = [(stop - start) * (above + stop) for start, stop in zip([0, *ends], ends, strict=False)]
    return sum(len(group) * each + _BLOCK_COST * -(-len(group) // _siblings_of_block(each)) for each in pairs)


def _siblings_of_block(pairs: int) -> int:
    """How many units, of so many queries times keys each, are one block."""
    return max(1, _BLOCK_PAIRS // pairs)


@lru_cache(maxsize=8)
def plan(spans: Spans, window: int | None, device: torch.device) -> Plan:
    """Places and blocks of a line."""
    first: dict[int, int] = {}
    blocks: list[Block] = []
    size = 0
    groupings = [list(_like_siblings(spans, max_tokens)) for max_tokens in _UNIT_TOKENS]
    for group in min(groupings, key=lambda groups: sum(_cost(spans, group) for group in groups)):
        length = group[0].length
        start_of_group = size
        for unit in group:
            place = size
            for span in unit.spans:
                first[span] = place
                place += spans[span][0]
            size += length
        above = [(first[ancestor], spans[ancestor][0]) for ancestor in ancestors(spans, group[0].spans[0])]
        sight = _sight(spans, group)
        for start in range(0, length, _BLOCK_QUERIES):
            block = _block(above, sight, start, min(start + _BLOCK_QUERIES, length), window)
            bias = block.bias.to(device)
            count = max(1, _BLOCK_PAIRS // ((block.stop - start) * sum(block.widths)))
            for index in range(0, len(group), count):
                num_siblings = min(count, len(group) - index)
                blocks.append(
                    block._replace(
                        first=start_of_group + index * length,
                        num_siblings=num_siblings,
                        length=length,
                        bias=bias if len(bias) == 1 else bias[index : index + num_siblings],
                    )
                )
    places = torch.cat([torch.arange(first[span], first[span] + spans[span][0]) for span in range(len(spans))])
    source = torch.full((size,), -1).index_copy(0, places, torch.arange(len(places)))
    padding = (source < 0).nonzero().flatten()
    return Plan(source.clamp(min=0).to(device), places.to(device), padding.to(device), tuple(blocks))


class Sight(NamedTuple):
    """What the tokens of sibling units see within their unit; one for all of them where they see alike."""

    positions: Tensor
    """(N or 1, L): of each token, from the unit's first on."""
    seen: Tensor
    """(N or 1, L, L), true where a token (second axis) sees another."""


def _sight(spans: Spans, group: Sequence[Unit]) -> Sight:
    length = group[0].length
    tokens = torch.arange(length)
    causal = tokens[:, None] >= tokens
    if all(len(unit.spans) == 1 for unit in group):
        return Sight(tokens[None], causal[None])
    found = [_sight_of_unit(spans, unit, length) for unit in group]
    return Sight(torch.stack([unit for unit, _ in found]), torch.stack([seen & causal for _, seen in found]))


def _sight_of_unit(spans: Spans, unit: Unit, length: int) -> tuple[Tensor, Tensor]:
    """Positions (L,), and whether a token's span is (or descends from) another's (L, L); padding prolongs the last."""
    number = {span: index for index, span in enumerate(unit.spans)}
    lengths = [spans[span][0] for span in unit.spans]
    lengths[-1] += length - sum(lengths)
    descends = torch.eye(len(number), dtype=torch.bool)
    before = [0] * len(number)
    for span, index in number.items():
        if (parent := number.get(spans[span][1])) is not None:
            descends[index] |= descends[parent]
            before[index] = before[parent] + spans[unit.spans[parent]][0]
    owners = torch.repeat_interleave(torch.arange(len(number)), torch.tensor(lengths))
    positions = torch.cat([start + torch.arange(count) for start, count in zip(before, lengths, strict=True)])
    return positions, descends[owners][:, owners]


def _block(above: Sequence[tuple[int, int]], sight: Sight, start: int, stop: int, window: int | None) -> Block:
    """What queries [start, stop) of units meet, below ancestors (first place and length); at place 0, alone.

    First keys that none of them sees, for a sliding window, are left out.
    """
    lengths = [length for _, length in above]
    offset = sum(lengths)
    queries = offset + sight.positions[:, start:stop, None]
    ranges: list[tuple[int, int]] = []
    hidden: list[Tensor] = []

    def add(first: int, distances: Tensor, is_hidden: Tensor) -> None:
        if window is not None:
            is_hidden = is_hidden | (distances >= window)
        num_keys = is_hidden.shape[-1]
        needed = (~is_hidden).any(0).any(0).nonzero()
        begin = int(needed[0]) // _LENGTH_MULTIPLE * _LENGTH_MULTIPLE if len(needed) else num_keys
        if begin < num_keys:
            ranges.append((first + begin, first + num_keys))
            hidden.append(is_hidden[..., begin:])

    for (first, length), before in zip(above, accumulate(lengths, initial=0), strict=False):
        keys = torch.arange(_padded(length))
        distances = queries - (before + keys)
        add(first, distances, (keys >= length).expand_as(distances))
    own = offset + sight.positions[:, None, :stop]
    add(0, queries - own, ~sight.seen[:, start:stop, :stop])
    *shared, (begin, _) = ranges
    bias = torch.zeros(()).where(~torch.cat(hidden, -1), -torch.inf)[:, :, None]
    return Block(0, 1, stop, start, stop, tuple(shared), begin, bias)


def _spread(states: Tensor, line: Plan, num_heads: int) -> Tensor:
    """(T, H * G, D) to (H, U, G, D); padding repeats a token."""
    grouped: Tensor = states.index_select(0, line.source).unflatten(1, (num_heads, -1))
    return grouped.transpose(0, 1).contiguous()


def _gather(states: Tensor, line: Plan) -> Tensor:
    """(H, U, G, D) to (T, H * G, D)."""
    return states.transpose(0, 1).index_select(0, line.places).flatten(1, 2)


def _products(block: Block, left: Tensor, right: Tensor) -> Tensor:
    """Between queries' states (H, U, G, D) and those of the keys that they meet (H, U, D): (H, N * L * G, K)."""
    queries = block.queries(left)
    parts = [_rows(queries, keys) @ _columns(keys).transpose(1, 2) for keys in block.keys(right)]
    return torch.cat([part.view(len(left), -1, part.shape[-1]) for part in parts], -1)


def _rows(queries: Tensor, keys: Tensor) -> Tensor:
    """Queries (H, N, L, G, ...) as the left side of a product: a batch is a head, or a span's where keys are."""
    return queries.reshape(len(_columns(keys)), -1, queries.shape[-1])


def _columns(keys: Tensor) -> Tensor:
    """Keys (H, K, D) or (H, N, K, D) as the right side of a product."""
    return keys.flatten(0, -3)


def _weights(scores: Tensor, block: Block, softcap: float | None) -> Tensor:
    """Softmax over the keys that a query sees; scores (H, N * L * G, K)."""
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    _, length, _, num_keys = block.bias.shape
    biased = scores.view(len(scores), block.num_siblings, length, -1, num_keys) + block.bias.to(scores.dtype)
    return biased.softmax(-1).view_as(scores)


def _from_keys(block: Block, weights: Tensor, states: Tensor) -> Tensor:
    """Sums of the keys' states (H, U, D) by weights (H, N * L * G, K): (H, N, L, G, D)."""
    shape = (len(states), block.num_siblings, block.stop - block.start, -1, states.shape[-1])
    sums: list[Tensor] = [
        (part.reshape(len(columns), -1, part.shape[-1]) @ columns).view(shape)
        for part, columns in zip(weights.split(block.widths, -1), map(_columns, block.keys(states)), strict=True)
    ]
    return reduce(torch.add, sums)


def _add_from_queries(block: Block, weights: Tensor, states: Tensor, into: Tensor) -> None:
    """Add the sums of the queries' states (H, U, G, D) by weights (H, N * L * G, K) to keys' (H, U, D)."""
    queries = block.queries(states)
    for part, keys in zip(weights.split(block.widths, -1), block.keys(into), strict=True):
        rows = _rows(queries, keys)
        keys += (part.reshape(*rows.shape[:2], -1).transpose(1, 2) @ rows).view_as(keys)


def blocked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    spans: Spans,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention by spans on any device, in any precision; (T, H * G, D) and (T, H, D) to (T, H * G, D)."""
    apply: Callable[..., Tensor] = _BlockedAttention.apply
    return apply(query, key, value, spans, scaling, window, softcap)


class _BlockedAttention(torch.autograd.Function):
    """:func:`blocked_attention` and its gradients, for which the weights are computed again."""

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
            line = plan(spans, window, query.device)
            num_heads = key.shape[1]
            queries = _spread(query * scaling, line, num_heads)
            keys, values = (_spread(states, line, num_heads).flatten(2) for states in (key, value))
            outputs = torch.empty_like(queries)
            for block in line.blocks:
                weights = _weights(_products(block, queries, keys), block, softcap)
                block.queries(outputs).copy_(_from_keys(block, weights, values))
            ctx.save_for_backward(queries, keys, values)
            ctx.settings = (line, scaling, softcap)
            return _gather(outputs, line)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values = ctx.saved_tensors
        line, scaling, softcap = ctx.settings
        with torch.autocast(queries.device.type, enabled=False):
            grad = _spread(gradients[0], line, len(keys)).index_fill_(1, line.padding, 0)
            grad_queries = torch.empty_like(queries)
            # Many blocks add to a key.
            wide = torch.promote_types(keys.dtype, torch.float32)
            grad_keys, grad_values = (torch.zeros_like(states, dtype=wide) for states in (keys, values))
            for block in line.blocks:
                with torch.enable_grad():
                    scores = _products(block, queries, keys).requires_grad_()
                    weights = _weights(scores, block, softcap)
                _add_from_queries(block, weights.detach(), grad, grad_values)
                (grad_scores,) = torch.autograd.grad(weights, scores, _products(block, grad, values))
                block.queries(grad_queries).copy_(_from_keys(block, grad_scores, keys))
                _add_from_queries(block, grad_scores, queries, grad_keys)
            return (
                _gather(grad_queries, line) * scaling,
                _gather(grad_keys.to(keys.dtype)[:, :, None], line),
                _gather(grad_values.to(values.dtype)[:, :, None], line),
                *(None,) * 4,
            )
