"""What an objective reads from a batch: the log-probabilities of its responses, and how they belong together.

Legend: B rows, N responses of all rows, P pairs of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class SequenceLogps(NamedTuple):
    """Log-probabilities of responses: natural logarithm, summed over a response's tokens."""

    policy: Tensor
    """(N,); carries the gradient."""
    reference: Tensor | None = None
    """(N,); None for objectives without a reference."""
    num_tokens: Tensor | None = None
    """(N,); for means over tokens."""

    def at(self, index: Tensor) -> SequenceLogps:
        """The log-probabilities of the responses at ``index``."""
        return SequenceLogps(*(None if values is None else values[index] for values in self))  # type: ignore[arg-type]


class Responses(NamedTuple):
    """N responses of B rows, in one list."""

    logps: SequenceLogps
    rows: Tensor
    """(N,): the row of each response."""
    num_rows: int
    members: Mapping[str, Tensor] = {}
    """By role, (P,) each: the response that has this role in each pair. A row may hold several pairs."""
    weights: Tensor | None = None
    """(N,): the weight of the response, or of its pair, within its row; None weighs all alike."""
    scores: Tensor | None = None
    """(N,): the score of each response; None without a scorer."""
    groups: Tensor | None = None
    """(N,): the group (source) of each response, numbered from 0 over the whole batch; None: each row is one group."""


def any_known(wrong: Tensor) -> bool:
    """Whether any element is true, on a CPU; always false on another device.

    The host would wait for another device after every chunk of a training, although rows are checked when they are
    encoded. There nothing is refused: a mean over no tokens or no responses is 0 / 0, so the loss is not a number.
    """
    return wrong.device.type == "cpu" and bool(wrong.any())


def one_pair_a_row(by_role: Mapping[str, SequenceLogps]) -> Responses:
    """Rows of one pair each, from the log-probabilities by role, (B,) each.

    Raises:
        ValueError: The shapes differ; they would broadcast to a wrong loss.

    >>> one_pair_a_row({role: SequenceLogps(torch.zeros(2)) for role in ("chosen", "rejected")}).rows
    tensor([0, 1, 0, 1])
    """
    shapes = {role: {tuple(values.shape) for values in logps if values is not None} for role, logps in by_role.items()}
    if len(set().union(*shapes.values())) != 1 or any(len(shape) != 1 for shape in set().union(*shapes.values())):
        raise ValueError(f"log-probabilities of shape (B,), the same for every role, were expected; found {shapes}")
    device = next(iter(by_role.values())).policy.device
    num_rows = len(next(iter(by_role.values())).policy)
    columns = zip(*by_role.values(), strict=True)
    logps = SequenceLogps(*(None if any(part is None for part in column) else torch.cat(column) for column in columns))  # type: ignore[arg-type]
    rows = torch.arange(num_rows, device=device)
    members = {role: rows + index * num_rows for index, role in enumerate(by_role)}
    return Responses(logps, rows.repeat(len(by_role)), num_rows, members)
