"""One trainer for every objective: Transformers' loop, our loss.

The loss of a step is sum_i w_i * rowloss_i / sum_i w_i over the rows i of the whole global batch: it depends neither
on the number of devices nor on micro-batches or accumulation steps. For SFT a row counts by its answer's tokens too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from sinterlm.errors import InputError, SinterError, ToleranceError
from sinterlm.objectives.losses import objective_losses
from sinterlm.objectives.rewards import SequenceLogps
from sinterlm.objectives.table import ResolvedObjective
from sinterlm.records import Dropped, TrainingRow
from sinterlm.training.batch import EncodedRow, RowBatch, RowCollator, encode_rows, row_examples
from sinterlm.training.config import FusionConfig
from sinterlm.training.logprobs import attach_response_logps, choose_layout
from sinterlm.training.metrics import StepMetrics
from sinterlm.training.reference import ReferenceCache, with_reference


class FusionTrainer(Trainer):
    """A transformers.Trainer for SFT and every preference objective.

    Args:
        model: the policy before its first step; it also serves as the reference, before training.
        args: settings; ``args.objective`` names the objective.
        train_dataset: the training rows, with the responses that the objective needs.
        processing_class: the model's tokenizer, with its chat template.
        reference_cache: where the reference's log-probabilities are kept; None keeps none.
        callbacks: as in Transformers.
        optimizers: as in Transformers.

    Attributes:
        dropped: records of the rows that no training step sees, with the reason.
        num_cut: responses that lost their end to ``args.max_length``.

    Raises:
        InputError: a row lacks a response that the objective needs, holds an empty one, or has a weight that is not
            accepted.
        ToleranceError: no row is left.
    """

    loss_is_scaled_for_ga = True
    args: FusionConfig
    objective: ResolvedObjective
    dropped: list[Dropped]
    num_cut: int

    def __init__(
        self,
        model: PreTrainedModel,
        args: FusionConfig,
        train_dataset: Sequence[TrainingRow],
        processing_class: PreTrainedTokenizerBase,
        *,
        reference_cache: ReferenceCache | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        self.objective = args.resolved_objective
        rows, self.dropped, self.num_cut = encode_rows(
            train_dataset, processing_class, roles=self.objective.roles, max_length=args.max_length
        )
        if not rows:
            reasons = ", ".join(sorted({drop.reason for drop in self.dropped})) or "none was given"
            raise ToleranceError(f"no training row is left of {len(train_dataset)} ({reasons})")
        _check_total_weight(rows)
        # Rows are not split over the devices of one process: several devices take one process each.
        args._n_gpu = min(args.n_gpu, 1)
        disable_dropout(model)
        attach_response_logps(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # From here on the model is on its device, and computes as in training: the reference must not differ from the
        # policy by its precision.
        with self.accelerator.autocast():
            self.data_collator = RowCollator(
                layout=choose_layout(model, [row_examples(row) for row in rows]),
                pad_token_id=processing_class.pad_token_id or 0,
                counts=self.objective.objective.counts,
            )
            if self.objective.needs_reference:
                self.train_dataset = with_reference(
                    model, rows, batch_size=args.per_device_train_batch_size, cache=reference_cache
                )
        self._step_metrics = StepMetrics()

    def get_batch_samples(
        self, epoch_iterator: Iterator[RowBatch], num_batches: int, device: torch.device
    ) -> tuple[list[RowBatch], Tensor]:
        """The micro-batches of one optimizer step, and what the rows of the global batch count together."""
        batches = list(islice(epoch_iterator, num_batches))
        counts = torch.zeros(2, device=device)
        for batch in batches:
            counts[0] += batch["loss_weights"].sum()
            counts[1] += batch["num_row_tokens"].sum()
        total_weight, num_tokens = self.accelerator.reduce(counts, "sum")
        self.state.num_input_tokens_seen += int(num_tokens)
        self._step_metrics.begin(int(num_tokens))
        return batches, total_weight

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This micro-batch's share of the step's loss; Transformers adds up the shares and averages over devices."""
        batch = cast(RowBatch, inputs)
        weights = batch["loss_weights"]
        outcome = objective_losses(self.objective, self._responses(model, batch), progress=self._progress)
        if not bool(outcome.losses.isfinite().all()):
            raise SinterError(self._not_finite(batch, outcome.losses))
        self._step_metrics.add(outcome.metrics, num_rows=len(weights))
        total_weight = weights.sum() if num_items_in_batch is None else cast(Tensor, num_items_in_batch)
        # Rows of weight 0 may meet in a step: it is a step without loss then, not 0 / 0.
        total_weight = total_weight.clamp(min=torch.finfo(weights.dtype).tiny)
        return cast(Tensor, self.accelerator.num_processes * (weights * outcome.losses).sum() / total_weight)

    def _responses(self, model: nn.Module, inputs: RowBatch) -> dict[str, SequenceLogps]:
        """The log-probabilities by role, (B,) each."""
        num_tokens, reference = inputs["num_tokens"], inputs["reference_logps"]
        policy = model(**inputs["sequences"]).view_as(num_tokens)
        return {
            role: SequenceLogps(
                policy[:, index], None if reference is None else reference[:, index], num_tokens[:, index]
            )
            for index, role in enumerate(self.objective.roles)
        }

    @property
    def _progress(self) -> float:
        """Finished optimizer steps over all optimizer steps."""
        return self.state.global_step / self.state.max_steps

    def _not_finite(self, inputs: RowBatch, losses: Tensor) -> str:
        prompt_ids = [
            prompt_id for prompt_id, finite in zip(inputs["prompt_ids"], losses.isfinite(), strict=True) if not finite
        ]
        return (
            f"the loss of prompt {prompt_ids[0]!r} is not finite in step {self.state.global_step + 1}; "
            "try a lower learning_rate, or a warm-up (warmup_steps)"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's own metrics to what Transformers logs."""
        if "loss" in logs:
            logs["num_tokens"] = self.state.num_input_tokens_seen
            logs |= self._step_metrics.pop(self.accelerator)
            # The hyper-parameters that the step used: it is finished now, and was not when its loss was computed.
            logs |= self.objective.scheduled_values((self.state.global_step - 1) / self.state.max_steps)
        super().log(logs, start_time)


def _check_total_weight(rows: Sequence[EncodedRow]) -> None:
    """The loss is a mean by weight, in float32, so that weights must sum to a positive and finite number there."""
    total = float(torch.tensor([row["weight"] for row in rows], dtype=torch.float32).sum())
    if not 0 < total < math.inf:
        raise InputError(f"the weights of the {len(rows)} rows sum to {total:g}; expected a finite number above 0")


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to 0, the attention's own included, so that policy and reference agree."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)
