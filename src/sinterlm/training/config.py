"""The settings of a training run: Transformers' own, the objective and its hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments
from transformers.utils.import_utils import is_peft_available

from sinterlm.errors import InputError
from sinterlm.models import computes_bfloat16
from sinterlm.objectives.named import ResolvedObjective, list_hyperparameters, resolve_objective
from sinterlm.template import TemplateOptions
from sinterlm.training.arguments import DEFAULT_MAX_LENGTH, FusionArguments, choices_in_words


@dataclass
class ObjectiveArguments:
    """The objective of a training, and the hyper-parameters of all objectives, added below from their table."""

    objective: str = field(default="sft", metadata={"help": "Named objective, see `sinterlm list objectives`."})

    if TYPE_CHECKING:  # every hyper-parameter of the table is a field; these are Sinter's own, for type checkers
        base: str | None = None
        beta: float | None = None
        gamma: float | None = None
        tau: float | None = None
        average_logps: bool | None = None
        label_smoothing: float | None = None
        alpha: float | None = None
        alpha_schedule: str | None = None
        rejected_mix: bool | None = None
        baseline: str | None = None
        kl: float | None = None


if not TYPE_CHECKING:
    for _key in list_hyperparameters():
        if _key.name in TrainingArguments.__dataclass_fields__.keys() | FusionArguments.__dataclass_fields__.keys():
            raise InputError(
                f"an objective of an installed package has a hyper-parameter {_key.name!r}, but there is a training "
                "argument of this name already; fix or uninstall the package"
            )
    ObjectiveArguments = make_dataclass(
        "ObjectiveArguments",
        [
            (key.name, key.type | None, field(default=None, metadata={"help": key.description}))
            for key in list_hyperparameters()
        ],
        bases=(ObjectiveArguments,),
        namespace={"__doc__": ObjectiveArguments.__doc__, "__module__": __name__},
    )


@dataclass
class FusionConfig(ObjectiveArguments, FusionArguments, TrainingArguments):  # type: ignore[misc]  # bf16 may be auto, too
    """Settings of :class:`FusionTrainer`: the arguments of Transformers, of Sinter and of the objective.

    Hyper-parameters that are not given take their default from the objective's row in ``objectives/named.py``; one
    that the objective does not have is an error. Three defaults differ from TrainingArguments': a line of metrics is
    logged every step, two checkpoints are kept, and a loss that is not finite stops the run.

    Example: ``FusionConfig(output_dir="out", objective="wrpo", beta=0.1, alpha=0.5, learning_rate=1e-6)``
    """

    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Initial learning rate; by default the objective's."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Optimizer steps between two lines of metrics."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Losses that are not finite are errors."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Needed if a pass skips weights (experts); costs a walk over them per pass."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows are encoded by the trainer."})

    def __post_init__(self) -> None:
        """Complete the hyper-parameters.

        Raises:
            ValueError: An unknown objective, a hyper-parameter that it does not have, or a value out of bounds.
        """
        given = {name: getattr(self, name) for name in _HYPERPARAMETERS if getattr(self, name) is not None}
        self._resolved_objective = resolve_objective(self.objective, given)
        for name, value in self._resolved_objective.values.items():
            setattr(self, name, value)
        if self.learning_rate is None:
            self.learning_rate = self._resolved_objective.objective.learning_rate
        for own in fields(FusionArguments):
            _check(own, getattr(self, own.name))
        if isinstance(self.share_prompt, bool):
            self.share_prompt = "on" if self.share_prompt else "off"
        try:
            _ = self.template_options
        except InputError as error:
            raise ValueError(str(error)) from error
        max_length = self.max_length or DEFAULT_MAX_LENGTH
        if self.max_prompt_length is not None and self.max_prompt_length >= max_length:
            raise ValueError(
                f"max_prompt_length is {self.max_prompt_length}; expected less than max_length ({max_length}), so "
                "that an answer has room"
            )
        if self.train_sampling_strategy == "batch_rebalance":
            raise ValueError(
                "train_sampling_strategy is batch_rebalance, which repeats rows at the end of an epoch; expected "
                "random, sequential or group_by_length (chunks of chunk_tokens balance the load already)"
            )
        if self.torch_compile or self.torch_compile_backend or self.torch_compile_mode:  # each turns it on
            raise ValueError("torch_compile is on; expected off: chunks differ in shape, and each would be compiled")
        if self.lora_r is not None and not is_peft_available():
            raise ImportError("lora_r needs the package peft, which is not installed; pip install 'sinterlm[train]'")
        for own in fields(FusionArguments):
            if self.lora_r is None and own.name.startswith("lora_") and getattr(self, own.name) != own.default:
                raise ValueError(
                    f"{own.name} is {getattr(self, own.name)!r}, but lora_r is not given, and without it all weights "
                    "train; give lora_r too, e.g. 16"
                )
        if self.use_liger_kernel:
            self.liger_kernel_config = _liger_without_losses(self.liger_kernel_config or {})
        # Otherwise several processes without an accelerator would not find each other, and each would train alone.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 == "auto":
            accelerator = torch.accelerator.current_accelerator()
            self.bf16 = computes_bfloat16(accelerator if accelerator and not self.use_cpu else torch.device("cpu"))
        super().__post_init__()  # type: ignore[no-untyped-call]
        for name in ("split_batches", "dispatch_batches"):
            if getattr(self.accelerator_config, name):
                raise ValueError(f"accelerator_config: {name} is on; expected off: every process makes its own batches")
        # Transformers does this for `use_cpu` only; elsewhere without an accelerator torch would warn in every epoch.
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"

    @property
    def template_options(self) -> TemplateOptions:
        """What decides the chat template's text besides the conversation."""
        return TemplateOptions.of(self.chat_template_kwargs, self.template_date)

    @property
    def resolved_objective(self) -> ResolvedObjective:
        """The objective with every hyper-parameter set."""
        return self._resolved_objective


_HYPERPARAMETERS = tuple(key.name for key in list_hyperparameters())
"""The fields that belong to objectives."""


def _check(own: Field[Any], value: object) -> None:
    """Check an argument against the bounds in its declaration.

    Raises:
        ValueError: The value is out of bounds.
    """
    choices, at_least = own.metadata.get("choices"), own.metadata.get("at_least")
    if choices and value not in choices:
        raise ValueError(f"{own.name} is {value!r}; expected {choices_in_words(choices)}")
    if at_least is not None and isinstance(value, int | float) and value < at_least:
        raise ValueError(f"{own.name} is {value}; expected at least {at_least}")
    below = own.metadata.get("below")
    if below is not None and isinstance(value, int | float) and value >= below:
        raise ValueError(f"{own.name} is {value}; expected less than {below}")


def _liger_without_losses(kernels: Mapping[str, bool]) -> dict[str, bool]:
    """Liger's kernels without its losses, which would replace the objective's."""
    losses = ("cross_entropy", "fused_linear_cross_entropy")
    for name in losses:
        if kernels.get(name):
            raise ValueError(f"liger_kernel_config: {name} would take the place of the objective's loss; leave it out")
    return {**kernels, **dict.fromkeys(losses, False)}
