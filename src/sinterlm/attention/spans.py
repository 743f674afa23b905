"""Spans: runs of tokens that one or more sequences share, one after another in an unpadded line.

Spans form a forest, e.g. a system prompt, the prompts that begin with it, and their responses. A token sees the spans
above its own and its own span up to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, takewhile

Span = tuple[int, int]
"""The number of tokens of a span, and the number of its parent: an earlier span, or -1."""
Spans = tuple[Span, ...]
"""The spans of a line in order. Plain tuples of integers pass unchanged through the wrappers of a model's forward."""


def span_starts(spans: Spans) -> list[int]:
    """The place in the line at which each span begins."""
    return [0, *accumulate(length for length, _ in spans)][:-1]


def ancestors(spans: Sequence[Span], span: int) -> list[int]:
    """The spans above ``span``, from the root down."""
    parent = spans[span][1]
    return [] if parent < 0 else [*ancestors(spans, parent), parent]


def positions(spans: Sequence[Span]) -> list[int]:
    """The position of each token in its sequence: the number of other tokens that it sees."""
    before = [sum(spans[ancestor][0] for ancestor in ancestors(spans, span)) for span in range(len(spans))]
    return [start + index for start, (length, _) in zip(before, spans, strict=True) for index in range(length)]


def count_shared(sequences: Sequence[Sequence[int]]) -> int:
    """Count the tokens with which all sequences begin."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))
