"""The settings of a training run: Transformers' own, the objective and its hyper-parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from sinterlm.objectives.table import ResolvedObjective, resolve_objective


@dataclass
class FusionConfig(TrainingArguments):
    """Settings of :class:`FusionTrainer`: every TrainingArguments name, and these.

    Hyper-parameters that are not given take their default from the objective's row in ``objectives/table.py``; one
    that the objective does not have is an error. Other defaults than TrainingArguments': a metrics line every step,
    two checkpoints kept, a loss that is not finite stops the run.

    Example: ``FusionConfig(output_dir="out", objective="wrpo", beta=0.1, alpha=0.5, learning_rate=1e-6)``
    """

    objective: str = field(default="sft", metadata={"help": "Named objective, see `sinterlm list objectives`."})
    base: str | None = field(default=None, metadata={"help": "Objective whose reward and link a compound one takes."})
    beta: float | None = field(default=None, metadata={"help": "Pull to the reference."})
    alpha: float | None = field(default=None, metadata={"help": "WRPO's weight of the source's answer, at the end."})
    alpha_schedule: str | None = field(default=None, metadata={"help": "constant, or ramp: linearly from 0."})
    label_smoothing: float | None = field(default=None, metadata={"help": "Share of labels taken to be wrong."})

    max_length: int = field(
        default=1024, metadata={"help": "Most tokens of a prompt and one response; responses are cut on the right."}
    )

    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Initial learning rate; the objective's default unless given."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Optimizer steps between two lines of metrics."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Losses that are not finite are errors."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows are encoded by the trainer."})

    def __post_init__(self) -> None:
        """Complete the hyper-parameters.

        Raises:
            ValueError: an unknown objective, a hyper-parameter that it does not have, or a value out of bounds.
        """
        given = {name: getattr(self, name) for name in HYPERPARAMETERS if getattr(self, name) is not None}
        self._resolved_objective = resolve_objective(self.objective, given)
        for name, value in self._resolved_objective.values.items():
            setattr(self, name, value)
        if self.learning_rate is None:
            self.learning_rate = self._resolved_objective.objective.learning_rate
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; a prompt and a response need at least 2 tokens")
        super().__post_init__()  # type: ignore[no-untyped-call]
        # Transformers does this for `use_cpu` only; elsewhere without an accelerator torch would warn in every epoch.
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"

    @property
    def resolved_objective(self) -> ResolvedObjective:
        """The objective with every hyper-parameter set."""
        return self._resolved_objective


HYPERPARAMETERS = ("base", "beta", "alpha", "alpha_schedule", "label_smoothing")
"""The fields that belong to objectives."""
