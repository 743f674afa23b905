"""The loss that balances the router of a mixture of experts: the model's own, with its own coefficient by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from sinterlm.chat import EncodedExample
from sinterlm.errors import InputError, out_of_memory
from sinterlm.training.decoder import decoded, decoder_replaced
from sinterlm.training.packing import num_tokens, one_to_a_line


def router_loss(model: PreTrainedModel, outputs: BaseModelOutput, occurrences: Tensor) -> Tensor | None:
    """The router's loss, if the model's forward computes one from the routers' outputs; its head gets no positions."""
    nothing = cast(Tensor, outputs.last_hidden_state)[:, :0]
    with decoder_replaced(model, replace(outputs, last_hidden_state=cast(Any, nothing))):
        output = type(model).forward(
            model,
            input_ids=occurrences[:, :0],
            attention_mask=occurrences,
            use_cache=False,
            output_router_logits=True,
        )
    loss = getattr(output, "aux_loss", None)
    return loss if isinstance(loss, Tensor) else None  # the integer 0 if the model has no experts


def router_coefficient(
    model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]], *, given: float | None
) -> float:
    """The weight of the router's loss in training; 0 if the model has no such loss.

    Args:
        model: A causal language model.
        rows: The examples of each row; the shortest row is tried.
        given: The coefficient to use; None takes the one in the model's configuration.

    Raises:
        InputError: ``given`` is above 0, but the model has no such loss.
    """
    config = model.config.get_text_config()
    has_router = hasattr(config, "output_router_logits")
    coefficient = given if given is not None else getattr(config, "router_aux_loss_coef", None) or 0.0
    if coefficient and has_router and _gives_router_loss(model, min(rows, key=lambda row: sum(map(num_tokens, row)))):
        return coefficient
    if given:
        raise InputError(
            f"router_aux_loss_coef is {given:g}, but {type(model).__name__} gives no loss of a mixture's router; leave "
            "it out"
        )
    return 0.0


@torch.no_grad()
def _gives_router_loss(model: PreTrainedModel, row: Sequence[EncodedExample]) -> bool:
    """Whether the model computes the router's loss, found out by trying it."""
    batch = send_to_device(one_to_a_line([row], pad_token_id=0, for_router=True), model.device)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    try:
        outputs = decoded(model, **inputs, output_router_logits=True)
        return router_loss(model, outputs, batch["occurrences"]) is not None
    except Exception as error:  # whatever a model raises that does not know these arguments
        if out_of_memory(error):
            raise
        return False
