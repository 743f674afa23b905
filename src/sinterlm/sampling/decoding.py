"""Many answers to many prompts, token by token; what is the same is computed once.

A row of the batch is a *history*: the samples of a prompt share a row while they have drawn the same tokens, and part
at the first token that differs. A row whose samples have all ended is dropped. So a prompt is read once for all its
samples, and greedy samples never part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sinterlm.attention.rows import Prefix
from sinterlm.sampling.drawing import check_finite, draw, penalise
from sinterlm.sampling.prefix_cache import next_logits, read_prompts


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    uniforms: NDArray[np.float64],
    *,
    temperature: float,
    top_p: float,
    repetition_penalty: float = 1.0,
    most_tokens: Sequence[int] | None = None,
    is_finished: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Sample an answer to every prompt; a prompt that is given several times gets as many samples.

    Args:
        model: A causal language model with our attention, whose layers attend to all tokens or to a window of them.
        prefix: What the prompts may begin with; the part that all of them share is used.
        prompts: Token ids of each, at least one.
        uniforms: A number in [0, 1) for each token that an answer may have, shape (prompts, tokens).
        temperature: 0 takes the likeliest token.
        top_p: Mass of the nucleus.
        repetition_penalty: Divides positive logits of tokens of the prompt and the answer so far, and
            multiplies negative ones; 1 changes nothing.
        most_tokens: The limit of each answer, if it is below the number of uniform numbers.
        is_finished: Whether an answer is complete; its last token is new.

    Returns:
        For every prompt the new tokens, the one that ended the answer included.

    Raises:
        FloatingPointError: Logits are not finite.
    """
    most_tokens = most_tokens or [uniforms.shape[1]] * len(prompts)
    samples_of: dict[tuple[int, ...], list[int]] = {}
    for sample, prompt in enumerate(prompts):
        samples_of.setdefault(tuple(prompt), []).append(sample)
    rows = read_prompts(model, prefix, [prompt[:-1] for prompt in samples_of])
    inputs = torch.tensor([prompt[-1] for prompt in samples_of], device=model.device)
    histories = list(samples_of.values())
    answers: list[list[int]] = [[] for _ in prompts]
    for points in uniforms.T:
        logits, rows = next_logits(model, rows, inputs)
        check_finite(logits)
        if repetition_penalty != 1:
            said = [[*prompts[samples[0]], *answers[samples[0]]] for samples in histories]
            logits = penalise(logits, said, repetition_penalty)
        parted: dict[tuple[int, int], list[int]] = {}
        for row, sample, token in draw(logits, histories, points, temperature, top_p):
            answers[sample].append(token)
            parted.setdefault((row, token), []).append(sample)
        growing = {
            key: samples
            for key, samples in parted.items()
            if len(answers[samples[0]]) < most_tokens[samples[0]] and not is_finished(answers[samples[0]])
        }
        if not growing:
            break
        parents, inputs = torch.tensor(list(growing), device=model.device).unbind(-1)
        if parents.tolist() != list(range(len(histories))):
            rows = rows.select(parents)
        histories = list(growing.values())
    return answers
