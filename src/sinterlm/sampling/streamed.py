"""Batches for an engine that streams its answers: one for each prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from sinterlm.errors import TryAgainError
from sinterlm.sampling.protocol import Generation, Item, Streams


def batches_by_prompt(items: Sequence[Item]) -> list[list[Item]]:
    """One batch for each prompt."""
    return [list(group) for _, group in groupby(items, key=lambda item: item.prompt.id)]


def sample_streamed(engine: Streams, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
    """Answer one batch after the other.

    Raises:
        TryAgainError: An answer failed after all retries.
    """
    for batch in batches:
        found = {}
        for answered in engine.stream(batch):
            for failure in answered.failures:
                raise TryAgainError(f"prompt {failure.prompt_id}: {failure.kind} ({failure.detail})")
            found.update({(each.prompt_id, each.index): each for each in answered.generations})
        yield [found[item.prompt.id, item.index] for item in batch]
