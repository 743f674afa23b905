"""Whether a model can share prompts between responses: found out by computing a few short rows in both layouts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from sinterlm.attention.plug import CannotShareError
from sinterlm.attention.trial import sharing_on_trial
from sinterlm.chat import EncodedExample
from sinterlm.errors import InputError
from sinterlm.training.logprobs import compute_dtype, logps_of_rows
from sinterlm.training.packing import Layout, num_tokens, one_to_a_line, shared

logger = logging.getLogger(__name__)

SharePrompt = Literal["auto", "on", "off"]


def choose_layout(
    model: PreTrainedModel,
    rows: Sequence[Sequence[EncodedExample]],
    *,
    share_prompt: SharePrompt = "auto",
) -> Layout:
    """The shared layout if the model computes the same with it, otherwise one sequence to a line.

    A configuration does not tell everything (recurrent layers, a model's own masks), so a few short rows are run in
    both layouts.

    Args:
        model: A causal language model.
        rows: The examples of each row.
        share_prompt: "auto" logs a warning if the model cannot share, "on" raises an error, "off" tries nothing.

    Raises:
        InputError: ``share_prompt`` is "on" and the model cannot share, or padding changes what the model computes.
    """
    if share_prompt == "off":
        return one_to_a_line
    probe = _probe(rows, window=getattr(model.config.get_text_config(), "sliding_window", None))
    try:
        with sharing_on_trial(model):
            _compare_layouts(model, probe)
            if compute_dtype(model) != model.dtype and model.device.type != "cuda":
                # In half precision the check must tolerate rounding, and so would miss a small mistake. (On CUDA,
                # float32 would be computed by another attention, or not at all.)
                with torch.autocast(model.device.type, enabled=False):
                    _compare_layouts(model, probe)
    except CannotShareError as error:
        problem = error
    else:
        return shared
    if share_prompt == "on":
        raise InputError(
            f"{type(model).__name__} cannot share prompts between responses: {problem}; set share_prompt to auto"
        ) from problem
    logger.warning("%s: shared prompts are computed once per response (%s)", type(model).__name__, problem)
    _check_padding(model, probe)
    return one_to_a_line


def _probe(rows: Sequence[Sequence[EncodedExample]], *, window: int | None) -> list[Sequence[EncodedExample]]:
    """The two shortest rows; if there are any, also the shortest with several responses and one above the window."""
    ordered = sorted(rows, key=lambda row: sum(map(num_tokens, row)))
    several = [row for row in ordered if len(row) > 1]
    longer = [row for row in ordered if window is not None and max(map(num_tokens, row)) > window]
    return [*ordered[:2], *several[:1], *longer[:1]]


def _compare_layouts(model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]]) -> None:
    """Compute the rows' log-probabilities in both layouts.

    Raises:
        CannotShareError: They differ by more than rounding.
    """
    packed, plain = (logps_of_rows(model, rows, layout) for layout in (shared, one_to_a_line))
    # Half precision rounds logits of about 20 by 0.06, so an answer of a few tokens moves by up to 0.9 (measured on
    # 363 answers of a tuned SmolLM2, either layout against float32).
    tolerance = 1e-3 if compute_dtype(model) == torch.float32 else 1.0
    if not torch.allclose(packed, plain, rtol=min(tolerance, 5e-2), atol=tolerance):
        raise CannotShareError(f"log-probabilities differ by {float((packed - plain).abs().max()):.3g}")


def _check_padding(model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]]) -> None:
    """Compute the rows' log-probabilities together and one by one, in float32, so that rounding hides nothing.

    Raises:
        InputError: They differ.
    """
    if model.dtype != torch.float32:
        return
    with torch.autocast(model.device.type, enabled=False):
        padded = logps_of_rows(model, rows, one_to_a_line)
        alone = torch.cat([logps_of_rows(model, [[example]], one_to_a_line) for row in rows for example in row])
    if not torch.allclose(padded, alone, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise InputError(
            f"a model of the architecture {model.config.model_type} cannot be trained or asked for log-probabilities: "
            f"they differ by {float((padded - alone).abs().max()):.3g} when shorter sequences are padded; choose a "
            "model of another architecture"
        )
