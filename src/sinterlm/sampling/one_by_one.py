"""Answers by Transformers' own generate, prompt by prompt: slower, for any model that Transformers can sample.

Tokens are drawn as in ``decoding.py``, by the same uniform numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from sinterlm.sampling.drawing import check_finite, draw, penalise


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompt: Sequence[int],
    uniforms: NDArray[np.float64],
    *,
    temperature: float,
    top_p: float,
    repetition_penalty: float = 1.0,
    is_finished: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Sample answers to one prompt.

    Args:
        model: A causal language model with its own attention.
        prompt: Its token ids, at least one.
        uniforms: A number in [0, 1) for each token that an answer may have, shape (samples, tokens).
        temperature: This and the other arguments are those of :func:`decode`.
        top_p: Mass of the nucleus.
        repetition_penalty: Makes tokens of the prompt and the answer so far less likely.
        is_finished: Whether an answer is complete; its last token is new.

    Returns:
        For every sample the new tokens, the one that ended the answer included.

    Raises:
        FloatingPointError: Logits are not finite.
    """
    num_samples, num_tokens = uniforms.shape
    num_rows = 1 if temperature == 0 else num_samples
    answers: list[list[int]] = [[] for _ in range(num_rows)]
    is_done = [False] * num_rows

    def keep_drawn(input_ids: Tensor, scores: Tensor) -> Tensor:
        """Forbid every token of a row except the drawn one."""
        check_finite(scores)
        if repetition_penalty != 1:
            scores = penalise(scores, input_ids.tolist(), repetition_penalty)
        points = uniforms[:num_rows, input_ids.shape[1] - len(prompt)]
        kept = torch.full_like(scores, -torch.inf)
        for row, _, token in draw(scores, [[row] for row in range(num_rows)], points, temperature, top_p):
            kept[row, token] = 0
            if not is_done[row]:
                answers[row].append(token)
                is_done[row] = is_finished(answers[row])
        return kept

    def are_done(input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.tensor(is_done, device=input_ids.device)

    input_ids = torch.tensor([list(prompt)] * num_rows, device=model.device)
    # The model's own penalties and forbidden tokens are not in the recipe's settings.
    model.generation_config = GenerationConfig()
    cast(Any, model).generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        pad_token_id=0,
        logits_processor=[keep_drawn],
        stopping_criteria=[are_done],
    )
    return answers * (num_samples if num_rows == 1 else 1)
