"""From encoded rows to the tensors of a forward pass, in chunks of about equal size.

Shapes: B rows, N responses of all rows, P pairs of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, TypedDict

import torch
from torch import Tensor

from sinterlm.objectives.responses import Responses, SequenceLogps
from sinterlm.training.encoding import EncodedRow, row_examples
from sinterlm.training.packing import Layout, SequenceBatch, shared


class RowBatch(TypedDict):
    """The rows of one forward pass."""

    sequences: SequenceBatch
    num_tokens: Tensor
    """(N,): tokens of each response."""
    rows: Tensor
    """(N,): the row of each response."""
    members: dict[str, Tensor]
    """By role, (P,) each: the response that has it in each pair."""
    weights: Tensor | None
    """(N,)."""
    scores: Tensor | None
    """(N,)."""
    groups: Tensor
    """(N,): numbered over the whole batch."""
    reference_logps: Tensor | None
    """(N,)."""
    row_weights: Tensor
    """(B,): the factor of each row's loss."""
    row_counts: Tensor
    """(B,): what each row adds to the denominator of the step's loss."""
    num_row_tokens: Tensor
    """(B,): tokens of the prompt, counted once, and of the responses."""
    names: list[str]
    """The names of the rows, for messages."""


class RowCollator:
    """Collates encoded rows into :class:`RowBatch` chunks, in the plain dictionary that Transformers expects.

    A device batch is computed in chunks of whole rows, so that its memory depends on the tokens of a chunk and not on
    the number of rows.

    Args:
        layout: How the sequences lie in tensors.
        pad_token_id: Any token of the vocabulary; padding is never attended to.
        counts: Whether a row counts as one in the step's loss, or by its weighted response tokens.
        chunk_tokens: About how many tokens are computed at once; a row is never cut.
        for_router: Whether the loss of a mixture's router is needed.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        pad_token_id: int,
        counts: Literal["rows", "tokens"],
        chunk_tokens: int,
        for_router: bool = False,
    ) -> None:
        self._for_router = for_router
        self._layout = layout
        self._pad_token_id = pad_token_id
        self._counts = counts
        self._chunk_tokens = chunk_tokens

    def __call__(self, rows: list[EncodedRow]) -> dict[str, list[RowBatch]]:
        """Collate a device batch."""
        sizes = [len(row["input_ids"]) if self._layout is shared else _unshared_tokens(row) for row in rows]
        return {"chunks": [self._collate(chunk) for chunk in cut_into_chunks(rows, sizes, self._chunk_tokens)]}

    def _collate(self, rows: Sequence[EncodedRow]) -> RowBatch:
        offsets = [0, *accumulate(len(row["num_response_tokens"]) for row in rows)]
        num_groups = [0, *accumulate(max(row["groups"]) + 1 for row in rows)]
        roles = dict.fromkeys(role for row in rows for pair in row["pairs"] for role in pair)
        weights = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        counts = [1.0 if self._counts == "rows" else _weighted_tokens(row) for row in rows]
        return RowBatch(
            sequences=self._layout(
                [row_examples(row) for row in rows], pad_token_id=self._pad_token_id, for_router=self._for_router
            ),
            num_tokens=torch.tensor([count for row in rows for count in row["num_response_tokens"]]),
            rows=torch.tensor([index for index, row in enumerate(rows) for _ in row["num_response_tokens"]]),
            members={
                role: torch.tensor([offsets[i] + pair[role] for i, row in enumerate(rows) for pair in row["pairs"]])
                for role in roles
            },
            weights=_of_responses([row["weights"] for row in rows]),
            scores=_of_responses([row["scores"] for row in rows]),
            groups=torch.tensor([num_groups[i] + group for i, row in enumerate(rows) for group in row["groups"]]),
            reference_logps=_of_responses([row["reference_logps"] or None for row in rows]),
            row_weights=weights,
            row_counts=weights * torch.tensor(counts),
            num_row_tokens=torch.tensor([len(row["input_ids"]) for row in rows]),
            names=[row["name"] for row in rows],
        )


def _weighted_tokens(row: EncodedRow) -> float:
    """Sum over the row's responses of weight times tokens."""
    weights = row["weights"] or [1.0] * len(row["num_response_tokens"])
    return sum(weight * count for weight, count in zip(weights, row["num_response_tokens"], strict=True))


def _of_responses(values_of_rows: Sequence[list[float] | None]) -> Tensor | None:
    """(N,): the values of all rows; None if the rows have none."""
    known = [values for values in values_of_rows if values is not None]
    return torch.tensor([value for values in known for value in values], dtype=torch.float32) if known else None


def _unshared_tokens(row: EncodedRow) -> int:
    """Tokens of the row with its prompt before every response."""
    return sum(row["num_prompt_tokens"] + count for count in row["num_response_tokens"])


def cut_into_chunks(rows: Sequence[EncodedRow], sizes: Sequence[int], chunk_tokens: int) -> list[list[EncodedRow]]:
    """Cut the rows, in order, into as few chunks as the budget allows, each of about the same number of tokens.

    Args:
        rows: The rows of a device batch.
        sizes: Tokens of each row, as they are computed.
        chunk_tokens: About how many tokens a chunk may have.

    >>> [len(chunk) for chunk in cut_into_chunks([EncodedRow()] * 8, [300] * 8, chunk_tokens=1000)]
    [3, 2, 3]
    """
    num_chunks = math.ceil(sum(sizes) / chunk_tokens)
    chunks: list[list[EncodedRow]] = [[] for _ in range(num_chunks)]
    for row, size, end in zip(rows, sizes, accumulate(sizes), strict=True):
        middle = (end - size / 2) / sum(sizes)
        chunks[int(middle * num_chunks)].append(row)
    return [chunk for chunk in chunks if chunk]


def num_occurrences(batch: RowBatch) -> Tensor:
    """The number of tokens over which the loss of a mixture's router is a mean; 0 if no row counts."""
    occurrences = batch["sequences"].get("occurrences", torch.zeros(1))
    return occurrences.sum() * (batch["row_weights"] > 0).any()


def responses_of(batch: RowBatch, policy_logps: Tensor) -> Responses:
    """What an objective reads: the batch, and the policy's log-probabilities of its responses, (N,)."""
    return Responses(
        logps=SequenceLogps(policy_logps, batch["reference_logps"], batch["num_tokens"]),
        rows=batch["rows"],
        num_rows=len(batch["names"]),
        members=batch["members"],
        weights=batch["weights"],
        scores=batch["scores"],
        groups=batch["groups"],
    )
