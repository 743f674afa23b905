"""Which keys a query sees: those at its own position or before, within the layer's window.

Legend: N sequences (or 1 for all), L queries, K keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NOWHERE = 2**30
"""The position of padding. It comes after every token, so no token sees it."""


class Visibility(NamedTuple):
    """The positions of queries and keys, which decide what a query sees."""

    queries: Tensor
    """(N, L): the position of each query in its sequence."""
    keys: Tensor
    """(N, K)"""
    is_unrelated: Tensor | None = None
    """(N, L, K): true for a key that is in no sequence with the query; None if there is no such key."""

    def is_hidden(self, window: int | None) -> Tensor:
        """(N, L, K): true for a key that the query does not see.

        Args:
            window: A query sees this many positions, its own included; None: all.
        """
        distance = self.queries[:, :, None] - self.keys[:, None, :]
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        return hidden if self.is_unrelated is None else hidden | self.is_unrelated


def bias_of(is_hidden: Tensor) -> Tensor:
    """The bias added to scores: 0, or -inf for a hidden key."""
    return torch.zeros((), device=is_hidden.device).masked_fill(is_hidden, -torch.inf)
