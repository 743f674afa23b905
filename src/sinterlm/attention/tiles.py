"""Cuts a line of spans into tiles: queries of sibling units, and the keys that they meet.

A unit is one span, or a short span with all its descendants, computed as one under a mask. Units below the same span
and of similar length are siblings: they are padded to one length and computed together. Tiles are small enough for
their scores to stay in a processor's cache.

Legend: T tokens of the line, U places of the padded line, H key heads, G query heads per key head, D head size,
N siblings, L queries of each in a tile, K keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sinterlm.attention.spans import Spans, ancestors
from sinterlm.attention.visibility import NOWHERE, Visibility, bias_of

_TILE_QUERIES = 128
_TILE_PAIRS = 2**17
"""Queries times keys of a tile, of one head: their scores stay in a processor's cache."""
_LENGTH_MULTIPLE = 16
"""Matrix products are faster at multiples of this: on a CPU in bf16, 304 keys take half the time of 300."""
_UNIT_TOKENS = (0, 320)
"""A span and its descendants are one unit if they have at most this many tokens; the cheaper limit is taken."""
_TILE_COST = 2**15
"""The fixed cost of a tile's calls, in units of queries times keys; it matters if spans are short."""
_SIMILAR_LENGTHS = 0.7
"""Siblings are padded to one length if the shorter has at least this share of the longer."""


class Tile(NamedTuple):
    """Queries [start, stop) of each of ``num_siblings`` units, which begin at ``first`` and are ``length`` apart."""

    first: int
    num_siblings: int
    length: int
    start: int
    stop: int
    shared: tuple[tuple[int, int], ...]
    """Places of the keys that all siblings meet: parts of their ancestors, each (start, stop)."""
    own: int
    """A query meets the keys of its own unit from here to ``stop``."""
    bias: Tensor
    """(N or 1, L, 1, K): 0 for a key that a query sees, -inf for any other."""

    @property
    def num_keys(self) -> int:
        """Keys that a query meets, seen or not."""
        return sum(stop - start for start, stop in self.shared) + self.stop - self.own

    def queries(self, states: Tensor) -> Tensor:
        """(H, N, L * G, D) of states (H, U, G, D)."""
        return self._siblings(states, self.start, self.stop).flatten(2, 3)

    def keys(self, states: Tensor) -> list[Tensor]:
        """(H, K, D) of each shared part, and (H, N, K, D) of the units' own; of states (H, U, D)."""
        shared = [states.narrow(1, start, stop - start) for start, stop in self.shared]
        return [*shared, self._siblings(states, self.own, self.stop)]

    def _siblings(self, states: Tensor, start: int, stop: int) -> Tensor:
        """(H, N, stop - start, ...): places [start, stop) of each unit; of states (H, U, ...)."""
        group = states.narrow(1, self.first, self.num_siblings * self.length)
        units: Tensor = group.unflatten(1, (self.num_siblings, self.length))
        return units.narrow(2, start, stop - start)


class Tiling(NamedTuple):
    """A line cut into tiles."""

    source: Tensor
    """(U,): the token of the line at a place of the padded line; any token for padding."""
    places: Tensor
    """(T,): the place of each token in the padded line."""
    padding: Tensor
    """The places that hold no token."""
    tiles: tuple[Tile, ...]

    def spread(self, states: Tensor, num_heads: int) -> Tensor:
        """(T, H * G, D) to (H, U, G, D); padding repeats a token."""
        grouped: Tensor = states.index_select(0, self.source).unflatten(1, (num_heads, -1))
        return grouped.transpose(0, 1).contiguous()

    def gather(self, states: Tensor) -> Tensor:
        """(H, U, G, D) to (T, H * G, D)."""
        return states.transpose(0, 1).index_select(0, self.places).flatten(1, 2)


@lru_cache(maxsize=8)
def cut_into_tiles(spans: Spans, window: int | None, device: torch.device) -> Tiling:
    """Places and tiles of a line."""
    first: dict[int, int] = {}
    tiles: list[Tile] = []
    size = 0
    groupings = [list(_similar_siblings(spans, max_tokens)) for max_tokens in _UNIT_TOKENS]
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
        within = _visibility_within(spans, group)
        for start in range(0, length, _TILE_QUERIES):
            template = _tile_of_first(above, within, start, min(start + _TILE_QUERIES, length), window)
            bias = template.bias.to(device)
            count = max(1, _TILE_PAIRS // ((template.stop - start) * template.num_keys))
            for index in range(0, len(group), count):
                num_siblings = min(count, len(group) - index)
                tiles.append(
                    template._replace(
                        first=start_of_group + index * length,
                        num_siblings=num_siblings,
                        length=length,
                        bias=bias if len(bias) == 1 else bias[index : index + num_siblings],
                    )
                )
    places = torch.cat([torch.arange(first[span], first[span] + spans[span][0]) for span in range(len(spans))])
    source = torch.full((size,), -1).index_copy(0, places, torch.arange(len(places)))
    padding = (source < 0).nonzero().flatten()
    return Tiling(source.clamp(min=0).to(device), places.to(device), padding.to(device), tuple(tiles))


# --- which spans are computed together -------------------------------------------------------------------------------


class Unit(NamedTuple):
    """One span, or a short one with all its descendants: one attention under a mask of its own."""

    spans: tuple[int, ...]
    length: int
    """Tokens, padded."""


def _padded(length: int) -> int:
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


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


def _similar_siblings(spans: Spans, max_tokens: int) -> Iterator[list[Unit]]:
    """Units below one span and of similar length, the longest of them first; parents come before children."""
    children: dict[int, list[Unit]] = {}
    for unit in _units(spans, max_tokens):
        children.setdefault(spans[unit.spans[0]][1], []).append(unit)
    for family in children.values():
        family.sort(key=lambda unit: -unit.length)
        while family:
            similar = [unit for unit in family if unit.length >= _SIMILAR_LENGTHS * family[0].length]
            yield similar
            del family[: len(similar)]


def _cost(spans: Spans, group: Sequence[Unit]) -> int:
    """Queries times keys of a group's tiles, and the fixed cost of each tile."""
    length = group[0].length
    above = sum(_padded(spans[ancestor][0]) for ancestor in ancestors(spans, group[0].spans[0]))
    ends = [min(start + _TILE_QUERIES, length) for start in range(0, length, _TILE_QUERIES)]
    pairs = [(stop - start) * (above + stop) for start, stop in zip([0, *ends], ends, strict=False)]
    return sum(len(group) * each + _TILE_COST * -(-len(group) // max(1, _TILE_PAIRS // each)) for each in pairs)


# --- what their tokens see -------------------------------------------------------------------------------------------


def _visibility_within(spans: Spans, group: Sequence[Unit]) -> Visibility:
    """What the tokens of sibling units see within their unit; one for all units if they are single spans."""
    length = group[0].length
    if all(len(unit.spans) == 1 for unit in group):
        tokens = torch.arange(length)[None]
        return Visibility(tokens, tokens, torch.zeros((1, length, length), dtype=torch.bool))
    units = [_relations_of_unit(spans, unit, length) for unit in group]
    positions = torch.stack([unit for unit, _ in units])
    return Visibility(positions, positions, torch.stack([is_unrelated for _, is_unrelated in units]))


def _relations_of_unit(spans: Spans, unit: Unit, length: int) -> tuple[Tensor, Tensor]:
    """Positions (L,), and (L, L): whether the query's span is neither the key's nor below it.

    The last span of the unit contains the padding.
    """
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
    return positions, ~descends[owners][:, owners]


def _tile_of_first(
    above: Sequence[tuple[int, int]], within: Visibility, start: int, stop: int, window: int | None
) -> Tile:
    """What queries [start, stop) of units meet, as the tile of a single unit at place 0.

    Leading keys that no query sees (a sliding window hides them) are left out.

    Args:
        above: First place and length of each ancestor.
        within: What the units' tokens see within their unit.
        start: First query.
        stop: End of the queries, exclusive.
        window: The layer's sliding window.
    """
    offset = sum(length for _, length in above)
    queries = offset + within.queries[:, start:stop]
    ranges: list[tuple[int, int]] = []
    hidden: list[Tensor] = []

    def add(first: int, visibility: Visibility) -> None:
        is_hidden = visibility.is_hidden(window)
        num_keys = is_hidden.shape[-1]
        needed = (~is_hidden).any(0).any(0).nonzero()
        begin = int(needed[0]) // _LENGTH_MULTIPLE * _LENGTH_MULTIPLE if len(needed) else num_keys
        if begin < num_keys:
            ranges.append((first + begin, first + num_keys))
            hidden.append(is_hidden[..., begin:])

    for (first, length), before in zip(above, accumulate((length for _, length in above), initial=0), strict=False):
        keys = torch.arange(_padded(length))
        positions = torch.where(keys < length, before + keys, NOWHERE)
        add(first, Visibility(queries, positions[None].expand(len(queries), -1)))
    assert within.is_unrelated is not None
    add(0, Visibility(queries, offset + within.keys[:, :stop], within.is_unrelated[:, start:stop, :stop]))
    *shared, (begin, _) = ranges
    bias = bias_of(torch.cat(hidden, -1))[:, :, None]
    return Tile(0, 1, stop, start, stop, tuple(shared), begin, bias)
