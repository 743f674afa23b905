"""Token by token: many answers to many prompts, where nothing that is the same is computed twice.

The keys and values of what all prompts begin with are computed once for all batches, those of a prompt once for all its
samples. From there on a row of the batch is a *history*: the samples of one prompt that have drawn the same tokens so
far share a row until they part, and a row whose samples have all ended is dropped. So greedy samples never part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sinterlm.sampling.nucleus import draw_tokens
from sinterlm.sampling.prefix_attention import NOWHERE, Prefix, Rows

TOKENS_AT_ONCE = 2048
"""Prompt tokens that one call of the model reads, over all rows: a bound on the memory of attention scores."""


def count_shared(sequences: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all of them begin with."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))


@torch.inference_mode()
def compute_prefix(model: PreTrainedModel, tokens: Sequence[int]) -> Prefix:
    """Run the model over ``tokens``, which may be none, and keep what later tokens attend to."""
    rows = _read(model, Prefix((), ()), [tokens])
    return Prefix(tuple(tokens), tuple((keys[0], values[0]) for keys, values, *_ in rows.cache))


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    uniforms: NDArray[np.float64],
    *,
    temperature: float,
    top_p: float,
    is_finished: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Sample an answer to every prompt; a prompt that stands several times gets as many samples.

    Args:
        model: a causal language model with our attention, whose layers attend to all tokens or to a window of them.
        prefix: what the prompts may begin with; as much of it is used as all of them share.
        prompts: token ids of each, at least one.
        uniforms: a number in [0, 1) for each token that an answer may have, shape (prompts, tokens).
        temperature: 0 takes the likeliest token.
        top_p: mass of the nucleus.
        is_finished: whether an answer, whose last token is new, is whole.

    Returns:
        For every prompt the new tokens, the one that ended the answer included.
    """
    samples_of: dict[tuple[int, ...], list[int]] = {}
    for sample, prompt in enumerate(prompts):
        samples_of.setdefault(tuple(prompt), []).append(sample)
    shared = count_shared([prefix.tokens, *(prompt[:-1] for prompt in samples_of)])
    rows = _read(model, prefix.first(shared), [prompt[shared:-1] for prompt in samples_of])
    inputs = torch.tensor([prompt[-1] for prompt in samples_of], device=model.device)
    positions = torch.tensor([len(prompt) - 1 for prompt in samples_of], device=model.device)
    histories = list(samples_of.values())
    answers: list[list[int]] = [[] for _ in prompts]
    for points in uniforms.T:
        logits = model(**rows.append(inputs[:, None], positions[:, None]), logits_to_keep=1).logits[:, -1]
        parted: dict[tuple[int, int], list[int]] = {}
        for row, sample, token in _draw(logits, histories, points, temperature, top_p):
            answers[sample].append(token)
            parted.setdefault((row, token), []).append(sample)
        growing = {key: samples for key, samples in parted.items() if not is_finished(answers[samples[0]])}
        if not growing:
            break
        parents, inputs = torch.tensor(list(growing), device=model.device).unbind(-1)
        if parents.tolist() != list(range(len(histories))):
            rows.select(parents)
        positions = positions[parents] + 1
        histories = list(growing.values())
    return answers


def _read(model: PreTrainedModel, prefix: Prefix, rests: Sequence[Sequence[int]]) -> Rows:
    """Compute the keys and values of what follows the prefix in every row, padded at the end."""
    rows = Rows(prefix, torch.empty((len(rests), 0), dtype=torch.long, device=model.device))
    tokens = pad_sequence([torch.tensor(rest, dtype=torch.long) for rest in rests], batch_first=True)
    lengths = torch.tensor([len(rest) for rest in rests])[:, None]
    slots = torch.arange(tokens.shape[1])
    positions = torch.where(slots < lengths, len(prefix.tokens) + slots, NOWHERE)
    width = max(1, TOKENS_AT_ONCE // len(rests))
    if tokens.shape[1]:
        for part, places in zip(torch.split(tokens, width, dim=1), torch.split(positions, width, dim=1), strict=True):
            model.base_model(**rows.append(part.to(model.device), places.to(model.device)))
    return rows


def _draw(
    logits: Tensor,
    histories: Sequence[Sequence[int]],
    points: NDArray[np.float64],
    temperature: float,
    top_p: float,
) -> list[tuple[int, int, int]]:
    """A token for every sample, as (row, sample, token)."""
    pairs = [(row, sample) for row, samples in enumerate(histories) for sample in samples]
    rows, samples = torch.tensor(pairs, device=logits.device).unbind(-1)
    if temperature == 0:
        tokens = logits.argmax(-1)[rows]
    else:
        probabilities = torch.softmax(logits.float() / temperature, dim=-1)
        uniforms = torch.from_numpy(points.copy()).to(logits.device)[samples]
        tokens = draw_tokens(probabilities, rows, uniforms, top_p=top_p)
    return [(row, sample, token) for (row, sample), token in zip(pairs, tokens.tolist(), strict=True)]
