"""Whether a model's answers may be computed with what they share: asked of the model itself.

A configuration does not tell all that a model's attention does. So a few tokens are read in both ways, the library's
and ours, before the first answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinterlm.attention.plug import CannotShareError
from sinterlm.attention.trial import sharing_on_trial
from sinterlm.sampling.drawing import check_finite
from sinterlm.sampling.prefix_cache import compute_prefix, next_logits, read_prompts

NUM_PREFIX = 32
"""Tokens of the prefix that the check reads."""
NUM_STEPS = 2
"""Tokens that it reads one by one."""
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest distance of the logits, relative to their spread: rounding is far below, another attention far above."""
HALF_TOLERANCE = 0.25
"""In half precision rounding alone moves logits by some hundredths, more if it sends a token to another expert."""


@torch.inference_mode()
def share_prefixes(model: PreTrainedModel, tokens: Sequence[int]) -> None:
    """Plug shared attention into the model if it gives the logits of the library's attention.

    Args:
        model: A causal language model; it gets its own attention back if it cannot share.
        tokens: Any of its vocabulary, at least one.

    Raises:
        CannotShareError: It cannot; the message says why.
        FloatingPointError: Its logits are not finite.
    """
    with sharing_on_trial(model):
        prefix, *texts = _texts(tokens)
        found = torch.stack(_shared_logits(model, prefix, texts))
        with _library_attention(model):
            expected = torch.stack([_plain_logits(model, prefix + text) for text in texts], dim=1)
        check_finite(expected)
        difference = float((found - expected).norm() / (expected - expected.mean()).norm().clamp(min=1e-30))
        if not difference <= TOLERANCES.get(model.dtype, HALF_TOLERANCE):
            raise CannotShareError(f"its logits would differ by {difference:.2g} of their spread")


@contextmanager
def _library_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attend as the library does in plain PyTorch: its other ways do not bound scores, as some models do."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ours)


def _texts(tokens: Sequence[int]) -> list[list[int]]:
    """A prefix, and two texts of different lengths after it."""
    some = (list(tokens) * NUM_PREFIX)[:NUM_PREFIX]
    return [some, some[:9], some[5:9]]


def _plain_logits(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """What follows the last tokens, shape (steps, V), by the library's attention and without a cache."""
    options: dict[str, Any] = {"logits_to_keep": NUM_STEPS} if cast(Any, model)._supports_logits_to_keep() else {}
    output = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False, **options)
    logits: Tensor = output.logits[0, -NUM_STEPS:].float()
    return logits


def _shared_logits(model: PreTrainedModel, prefix: Sequence[int], texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The same of several texts in one batch, shape (texts, V) for each step."""
    read = [[*prefix, *text[:-NUM_STEPS]] for text in texts]
    rows = read_prompts(model, compute_prefix(model, prefix), read)
    steps = []
    for step in range(-NUM_STEPS, 0):
        logits, rows = next_logits(model, rows, torch.tensor([text[step] for text in texts], device=model.device))
        steps.append(logits.float())
    return steps
