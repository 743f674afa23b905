"""A model in two parts: what is below its head, and the head, which then runs only on some positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from sinterlm.attention.plug import attend_as_before, plug_in
from sinterlm.errors import InputError


def decoded(model: PreTrainedModel, **inputs: Any) -> BaseModelOutput:
    """The outputs of the model below its head."""
    if "spans" in inputs:
        plug_in(model)
    else:
        attend_as_before(model)
    outputs: BaseModelOutput = _decoder_of(model)(**inputs, use_cache=False)
    return outputs


def _decoder_of(model: PreTrainedModel) -> nn.Module:
    """The module below the head.

    In some classes it is not where their own prefix says: Llama 4's language model has it as ``model``, and the model
    for images and text contains that language model, head and all.

    Raises:
        InputError: It is not found.
    """
    if model.base_model is not model:
        return model.base_model
    inner = model.get_decoder()
    if inner is not model and isinstance(inner, PreTrainedModel):
        return _decoder_of(inner)
    if isinstance(decoder := getattr(model, "model", None), nn.Module):
        return decoder
    raise InputError(_untrainable(model))


def _untrainable(model: PreTrainedModel) -> str:
    return (
        f"a model of the architecture {model.config.model_type} cannot be trained or asked for log-probabilities: what "
        "is below its head is not computed as a whole; choose a model of another architecture"
    )


@contextmanager
def decoder_replaced(model: PreTrainedModel, outputs: BaseModelOutput) -> Iterator[None]:
    """Within it the model's forward gets ``outputs`` in place of its decoder's.

    Raises:
        InputError: The forward did not call the decoder, so its logits belong to other tokens.
    """
    decoder = _decoder_of(model)
    own = decoder.__dict__.get("forward")
    is_used = False

    def forward(*args: Any, **kwargs: Any) -> BaseModelOutput:
        nonlocal is_used
        is_used = True
        return outputs

    decoder.forward = forward
    try:
        yield
        if not is_used:
            raise InputError(_untrainable(model))
    finally:
        del decoder.forward
        if own is not None:
            decoder.forward = own
