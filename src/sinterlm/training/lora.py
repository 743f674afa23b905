"""Low-rank adapters by PEFT: what is trained in place of the model's own weights, and merged into them at the end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

if TYPE_CHECKING or is_peft_available():  # Transformers' trainer imports it, too, wherever it is installed
    from peft import LoraConfig, PeftModel, TaskType

from sinterlm.errors import InputError
from sinterlm.training.arguments import FusionArguments


def add_adapter(model: PreTrainedModel, arguments: FusionArguments) -> PeftModel:
    """The model with frozen weights and a new adapter, which changes nothing before the first step.

    Raises:
        InputError: the model has no such modules, or PEFT does not adapt them.
    """
    assert arguments.lora_r is not None
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules,
    )
    try:
        with _old_names_allowed():
            # Not the class for causal models: it knows which inputs such a model takes, and ours takes others.
            return PeftModel(model, config)
    except ValueError as error:
        raise InputError(f"lora_target_modules is {arguments.lora_target_modules!r}: {error}") from error


def base_weights(model: nn.Module) -> AbstractContextManager[Any]:
    """Within it the model computes as if it had no adapter."""
    return cast(PeftModel, model).disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


def merge_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with the adapter of a folder added to its weights."""
    with _old_names_allowed():
        return cast(PreTrainedModel, PeftModel.from_pretrained(model, str(adapter)).merge_and_unload())


@contextmanager
def _old_names_allowed() -> Iterator[None]:
    """PEFT 0.21 asks models for a property by the name that Transformers 5.23 has replaced."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
