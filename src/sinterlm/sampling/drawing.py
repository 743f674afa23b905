"""From logits to tokens: nucleus sampling by inverse transform, in which a uniform number gives a token.

An answer's uniform numbers depend on its key alone, so its tokens are the same in every batch.

Legend: B rows, V vocabulary, K likeliest tokens in order, D draws from a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PROBABILITIES_AT_ONCE = 2**24
"""Entries of the distributions that tokens are drawn from at once: bounds the memory of a large vocabulary."""
NUM_ORDERED = 1024
"""Tokens of a row that are sorted first; a whole vocabulary is slow to sort."""


def draw_uniforms(seed: int, prompt_hash: str, index: int, count: int) -> NDArray[np.float64]:
    """The uniform numbers of one answer, one per token; they depend on its key alone.

    Args:
        seed: The sampling seed.
        prompt_hash: Names the prompt's content.
        index: The sample index.
        count: How many; a smaller count gives the beginning of a larger one.

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
    at one of them. Only the ``num_ordered`` likeliest are sorted, or the whole row if their mass falls short of
    ``top_p``, so the result is exact.

    Args:
        probabilities_BV: Float32 distributions over the vocabulary, shape (B, V).
        uniforms_BD: Float64 numbers in [0, 1), one for each draw from a row, shape (B, D).
        top_p: Mass that is kept, in (0, 1].
        num_ordered: How many of the likeliest tokens are sorted at first.

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


def check_finite(logits: Tensor) -> None:
    """Check the largest logit of every row; others may be -inf, which forbids a token.

    Raises:
        FloatingPointError: A row has a NaN or an infinite one.
    """
    if not logits.amax(-1).isfinite().all():
        raise FloatingPointError("logits are not finite")


def penalise(logits_BV: Tensor, said: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Make tokens that were said already less likely (Keskar et al., arXiv 1909.05858, section 4.1)."""
    is_said_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    for row, tokens in enumerate(said):
        is_said_BV[row, torch.tensor(tokens, device=logits_BV.device)] = True
    return torch.where(is_said_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def draw(
    logits_BV: Tensor,
    histories: Sequence[Sequence[int]],
    points: NDArray[np.float64],
    temperature: float,
    top_p: float,
) -> list[tuple[int, int, int]]:
    """A token for every sample, as (row, sample, token); ``points`` has a uniform number for each sample."""
    if temperature == 0:
        likeliest = logits_BV.argmax(-1).tolist()
        drawn = [[token] * len(samples) for token, samples in zip(likeliest, histories, strict=True)]
    else:
        if logits_BV.device.type == "mps":  # has no float64
            logits_BV = logits_BV.cpu()
        uniforms_BD = pad_sequence([torch.from_numpy(points[samples]) for samples in histories], batch_first=True)
        uniforms_BD = uniforms_BD.to(logits_BV.device)
        drawn = []
        num_rows = max(1, PROBABILITIES_AT_ONCE // logits_BV.shape[-1])
        for start in range(0, len(histories), num_rows):
            part = slice(start, start + num_rows)
            probabilities_BV = torch.softmax(logits_BV[part].float() / temperature, dim=-1)
            drawn += draw_tokens(probabilities_BV, uniforms_BD[part], top_p=top_p).tolist()
    return [
        (row, sample, token)
        for row, (samples, tokens) in enumerate(zip(histories, drawn, strict=True))
        for sample, token in zip(samples, tokens, strict=False)  # rows with fewer samples are padded
    ]
