"""Nucleus sampling by inverse transform: a distribution and a uniform number give a token.

Legend: B rows, V vocabulary, K likeliest tokens in order, D draws from a row.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_ORDERED = 1024
"""Tokens of a row that are brought into order first; a whole vocabulary is slow to sort."""


def draw_uniforms(seed: int, prompt_hash: str, index: int, count: int) -> NDArray[np.float64]:
    """Give the uniform numbers of one answer, one a token; they depend on its key alone.

    Args:
        seed: the sampling seed.
        prompt_hash: names the prompt's content.
        index: the sample index.
        count: how many; fewer are the beginning of more.

    Returns:
        Numbers in [0, 1), shape (count,).
    """
    key = hashlib.sha256(f"{seed}:{prompt_hash}:{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big"))).random(count)


def draw_tokens(
    probabilities_BV: Tensor, uniforms_BD: Tensor, *, top_p: float, num_ordered: int = NUM_ORDERED
) -> Tensor:
    """Draw from the smallest set of likeliest tokens whose mass reaches ``top_p`` (Holtzman et al., arXiv 1904.09751).

    The set's tokens are laid side by side, the likeliest first, each as wide as it is probable; a uniform number points
    at one of them. Only the ``num_ordered`` likeliest are brought into order, and the whole row where their mass falls
    short of ``top_p``, so that the result is exact.

    Args:
        probabilities_BV: float32 distributions over the vocabulary, shape (B, V).
        uniforms_BD: float64 numbers in [0, 1), one for each draw from a row, shape (B, D).
        top_p: mass that is kept, in (0, 1].
        num_ordered: how many of the likeliest tokens are brought into order at first.

    Returns:
        Token ids, shape (B, D).
    """
    if top_p >= 1:  # all tokens are in the set, in whatever order
        mass_BV = probabilities_BV.double().cumsum(-1)
        return _locate(mass_BV, uniforms_BD * mass_BV[:, -1:])
    num_ordered = min(num_ordered, probabilities_BV.shape[-1])
    likeliest = probabilities_BV.topk(num_ordered)
    mass_BK = likeliest.values.double().cumsum(-1)
    last_B1 = (mass_BK < top_p).sum(-1, keepdim=True).clamp(max=num_ordered - 1)  # the token that reaches top_p is in
    tokens_BD = likeliest.indices.gather(-1, _locate(mass_BK, uniforms_BD * mass_BK.gather(-1, last_B1)))
    falls_short_B = mass_BK[:, -1] < top_p
    if num_ordered < probabilities_BV.shape[-1] and falls_short_B.any():
        short = probabilities_BV[falls_short_B], uniforms_BD[falls_short_B]
        tokens_BD[falls_short_B] = draw_tokens(*short, top_p=top_p, num_ordered=probabilities_BV.shape[-1])
    return tokens_BD


def _locate(mass_BK: Tensor, points_BD: Tensor) -> Tensor:
    """Index of the interval that each point lies in: the first whose cumulative mass exceeds it."""
    return torch.searchsorted(mass_BK, points_BD, right=True).clamp(max=mass_BK.shape[-1] - 1)
