"""What a policy's log-probabilities say a response is worth: the internal reward, before beta.

Shapes: B rows.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SequenceLogps(NamedTuple):
    """Log-probabilities of one response a row: natural logarithm, summed over the response's tokens."""

    policy: Tensor
    """(B,); carries the gradient."""
    reference: Tensor | None = None
    """(B,); None for objectives without a reference."""
    num_tokens: Tensor | None = None
    """(B,); for what is averaged over tokens."""


def summed_logratio(response: SequenceLogps) -> Tensor:
    """LR(y) = log pi(y|x) - log ref(y|x), summed over tokens (DPO, arXiv 2305.18290, equation 5 without beta).

    Returns:
        (B,).

    Raises:
        ValueError: there is no reference.
    """
    if response.reference is None:
        raise ValueError("a log-ratio needs the reference's log-probabilities; found none")
    return response.policy - response.reference
