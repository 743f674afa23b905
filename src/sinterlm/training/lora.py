"""Low-rank adapters by PEFT: trained in place of the model's own weights, and merged into them at the end."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

if TYPE_CHECKING or is_peft_available():  # Transformers' trainer imports it, too, wherever it is installed
    from peft import LoraConfig, PeftModel, TaskType
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import CONFIG_NAME

from sinterlm.errors import InputError, first_line
from sinterlm.models import plain_name, split_revision
from sinterlm.training.arguments import FusionArguments


def add_adapter(model: PreTrainedModel, arguments: FusionArguments) -> PeftModel:
    """The model with frozen weights and a new adapter, which changes nothing before the first step.

    Raises:
        InputError: The model lacks the named modules, PEFT cannot adapt them, or they share their weights with others.
    """
    assert arguments.lora_r is not None
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules,
    )
    shared = _shared_weights(model)
    try:
        with _old_names_allowed(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`")  # refused below
            # Not PEFT's class for causal models: it expects their usual inputs, and ours takes others.
            adapted = PeftModel(model, config)
    except (ValueError, TypeError, re.error) as error:
        raise InputError(f"lora_target_modules is {arguments.lora_target_modules!r}: {first_line(error)}") from error
    _refuse_shared(adapted, shared, arguments.lora_target_modules)
    return adapted


def _shared_weights(model: nn.Module) -> dict[int, list[str]]:
    """The modules that share a weight (usually tied embeddings), by the weight's id."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            owners.setdefault(id(weight), []).append(name)
    return {address: names for address, names in owners.items() if len(names) > 1}


def _refuse_shared(adapted: PeftModel, shared: Mapping[int, list[str]], target_modules: str | list[str]) -> None:
    """Refuse an adapter on a module that shares its weight: once merged, it would change the other modules too.

    Raises:
        InputError: Which modules share a weight.
    """
    for module in adapted.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        for weight in module.get_base_layer().parameters(recurse=False):
            if names := shared.get(id(weight)):
                raise InputError(
                    f"lora_target_modules is {target_modules!r}: {' and '.join(names)} share one matrix in this model "
                    "(tie_word_embeddings), so an adapter of one cannot be merged without changing the other; name "
                    "neither of them (all-linear does not), or train without lora_r"
                )


def hide_base(adapter: Path, start: str) -> None:
    """Replace the folder of this machine that PEFT writes into a saved adapter by the start's name.

    Args:
        adapter: The folder of the adapter.
        start: The start model, as the recipe or command names it.
    """
    path = adapter / CONFIG_NAME
    name, revision = split_revision(plain_name(start))
    named = {"base_model_name_or_path": name, "revision": revision}
    path.write_text(json.dumps({**json.loads(path.read_text()), **named}, indent=2))
    # PEFT's form to fill in, which names the same folder; the model's card says it all.
    (adapter / "README.md").unlink(missing_ok=True)


def base_weights(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which the model computes as if it had no adapter."""
    return cast(PeftModel, model).disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


def merge_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with the adapter in a folder merged into its weights."""
    with _old_names_allowed():
        return cast(PreTrainedModel, PeftModel.from_pretrained(model, str(adapter)).merge_and_unload())


@contextmanager
def _old_names_allowed() -> Iterator[None]:
    """Silence a warning: PEFT 0.21 reads a model's property by a name that Transformers 5.23 has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
