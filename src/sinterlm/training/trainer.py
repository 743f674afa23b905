"""One trainer for every objective: Transformers' loop, our loss.

The loss of a step is sum_i w_i * rowloss_i / sum_i w_i over the rows i of the global batch, so it does not depend on
the number of devices, micro-batches or accumulation steps. In SFT, w_i also counts the tokens of the row's answer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, parse_flag_from_env
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from sinterlm.context import context_length
from sinterlm.errors import InputError, SinterError, ToleranceError
from sinterlm.objectives.losses import objective_losses
from sinterlm.objectives.named import ResolvedObjective
from sinterlm.records import Dropped, TrainingRow
from sinterlm.thoughts import ThoughtRule
from sinterlm.training.arguments import DEFAULT_MAX_LENGTH
from sinterlm.training.batch import RowBatch, RowCollator, num_occurrences, responses_of
from sinterlm.training.config import FusionConfig
from sinterlm.training.encoding import EncodedRow, encode_rows, row_examples
from sinterlm.training.layout_choice import SharePrompt, choose_layout
from sinterlm.training.logprobs import attach_response_logps
from sinterlm.training.lora import add_adapter
from sinterlm.training.metrics import StepMetrics
from sinterlm.training.order import EpochOrder, fill_up_chunks, filler_row
from sinterlm.training.reference import ReferenceCache, with_reference
from sinterlm.training.router import router_coefficient

logger = logging.getLogger(__name__)

CPU_CHUNK_TOKENS = 2048
CHUNK_TOKENS = 16384
"""Tokens computed at once by default: enough to keep the device busy, and a bound on its memory."""


class FusionTrainer(Trainer):
    """A transformers.Trainer for SFT and every preference objective.

    Args:
        model: The policy before its first step; it also serves as the reference, before training.
        args: Settings; ``args.objective`` names the objective.
        train_dataset: The training rows, with the responses that the objective needs.
        processing_class: The model's tokenizer, with its chat template.
        reference_cache: Keeps the reference's log-probabilities; with None, a run with a sharded model cannot be
            resumed.
        callbacks: As in Transformers.
        optimizers: As in Transformers.

    Attributes:
        dropped: Dropped rows, and dropped pairs of rows that stay, with the reason.
        num_rows: Number of rows that are trained on.
        num_cut: Responses that lost their end to ``args.max_length``.
        num_cut_prompts: Prompts that lost their beginning to ``args.max_length``.
        num_as_generated: Responses trained as the model generates them, because the chat template writes them
            differently.
        reference_origin: Whether the reference's log-probabilities were computed or read from the cache; None without
            a reference, and before a sharded model is trained.

    Raises:
        InputError: A row lacks a response that the objective needs, holds an empty one, or has a weight that is not
            accepted.
        ToleranceError: No row is left.
    """

    loss_is_scaled_for_ga = True
    args: FusionConfig
    objective: ResolvedObjective
    dropped: list[Dropped]
    num_rows: int
    num_cut: int
    num_cut_prompts: int
    num_as_generated: int
    reference_origin: str | None = None

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
        _check_rows(train_dataset)
        encoded = encode_rows(
            train_dataset,
            processing_class,
            objective=self.objective,
            max_length=_max_length(args, model),
            max_prompt_length=args.max_prompt_length,
            thoughts=cast(ThoughtRule, args.thoughts),
            options=args.template_options,
        )
        rows, self.dropped = encoded.rows, encoded.dropped
        self.num_cut, self.num_cut_prompts = encoded.num_cut, encoded.num_cut_prompts
        self.num_as_generated = encoded.num_as_generated
        if not rows:
            reasons = ", ".join(sorted({drop.reason for drop in self.dropped})) or "none was given"
            first = f"; the first: {self.dropped[0].detail}" if self.dropped and self.dropped[0].detail else ""
            raise ToleranceError(f"no training row is left of {len(train_dataset)} ({reasons}){first}")
        _check_total_weight(rows)
        # Rows are not split over the devices of one process: several devices take one process each.
        args._n_gpu = min(args.n_gpu, 1)
        disable_dropout(model)
        attach_response_logps(model)
        if model.dtype != torch.float32 and args.lora_r is None:
            logger.warning(
                "the weights are %s, in which small updates are lost; load them as float32 (bf16 computes in bfloat16)",
                str(model.dtype).removeprefix("torch."),
            )
        set_seed(args.seed)  # Transformers does so, too, but after the adapter is made
        super().__init__(
            model=model if args.lora_r is None else add_adapter(model, args),
            args=args,
            train_dataset=rows,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        _warn_of_whole_models(self.accelerator)
        # From here on the model is on its device and computes as in training: reference and policy must have the same
        # precision.
        with self.accelerator.autocast():
            is_main = self.accelerator.is_main_process  # it may be the only one that has the weights yet
            examples = [row_examples(row) for row in rows]
            layout = (
                choose_layout(model, examples, share_prompt=cast(SharePrompt, args.share_prompt)) if is_main else None
            )
            coefficient = router_coefficient(model, examples, given=args.router_aux_loss_coef) if is_main else 0.0
            layout, self._router_coefficient = broadcast_object_list([layout, coefficient])
            self._collate = RowCollator(
                layout=layout,
                pad_token_id=processing_class.pad_token_id or 0,
                counts=self.objective.counts,
                chunk_tokens=args.chunk_tokens or (CPU_CHUNK_TOKENS if args.device.type == "cpu" else CHUNK_TOKENS),
                for_router=self._router_coefficient > 0,
            )
        self.data_collator = self._collate
        self.num_rows = len(rows)
        self.train_dataset = self._rows = self._filled(rows)
        self._reference_cache = reference_cache
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self.add_callback(_ShardedReference(self))
        else:
            self.add_reference()
        self._step_metrics = StepMetrics()
        self._finite: list[tuple[list[str], Tensor]] = []

    def _filled(self, rows: list[EncodedRow]) -> list[EncodedRow]:
        """The rows; with several processes, followed by the row that evens out their shares."""
        return [*rows, filler_row(rows)] if self.accelerator.num_processes > 1 else rows

    def add_reference(self, *, is_trained: bool = False) -> None:
        """Add the reference's log-probabilities to the rows, if the objective needs them.

        Args:
            is_trained: Whether the model has taken steps, so that it can no longer serve as the reference.

        Raises:
            InputError: The model has taken steps, and no cache has its earlier log-probabilities.
        """
        if not self.objective.needs_reference:
            return
        with self.accelerator.autocast():
            referenced = with_reference(
                self.model_wrapped,
                self._rows[: self.num_rows],
                collate=self._collate,
                accelerator=self.accelerator,
                cache=self._reference_cache,
                is_trained=is_trained,
            )
        self._rows[:] = self._filled(referenced.rows)
        self.reference_origin = "read from the cache" if referenced.is_from_cache else "computed"

    def _get_train_sampler(self, train_dataset: Dataset[EncodedRow] | None = None) -> Sampler[int] | None:
        """Transformers' order of the rows, made the same after a resumption and with several processes."""
        args, num_processes = self.args, self.accelerator.num_processes
        is_filled = num_processes > 1 and not args.dataloader_drop_last
        order = cast(Sampler[int], super()._get_train_sampler(cast(Any, self._rows[: self.num_rows])))
        return EpochOrder(
            order,
            seed=args.seed if args.data_seed is None else args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
            multiple=num_processes * self._train_batch_size if is_filled else 1,
            filler=self.num_rows,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The micro-batches of one optimizer step, and the denominator of its loss over the global batch."""
        batches = list(islice(epoch_iterator, num_batches))
        counts = torch.zeros(3, device=device)
        for chunk in (chunk for batch in batches for chunk in batch["chunks"]):
            counts[0] += chunk["row_counts"].sum()
            counts[1] += (chunk["num_row_tokens"] * (chunk["row_weights"] > 0)).sum()
            counts[2] += num_occurrences(chunk)
        fill_up_chunks(batches, self.accelerator)
        total_count, num_tokens, self._num_occurrences = self.accelerator.reduce(counts, "sum")
        self.state.num_input_tokens_seen += int(num_tokens)
        self._step_metrics.begin(int(num_tokens))
        return batches, total_count

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward, chunk by chunk; processes exchange gradients only after the step's last chunk."""
        *earlier, last = inputs["chunks"]
        is_last_of_step = self.accelerator.sync_gradients
        step = partial(super().training_step, model, num_items_in_batch=num_items_in_batch)
        self.accelerator.sync_gradients = False  # DeepSpeed reads it
        # If another micro-batch follows, Transformers' loop has already entered this context.
        with self.accelerator.no_sync(model) if is_last_of_step else nullcontext():
            losses = [step(chunk) for chunk in earlier]
        self.accelerator.sync_gradients = is_last_of_step
        losses.append(step(last))
        if is_last_of_step:
            self._stop_if_not_finite()
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This micro-batch's share of the step's loss; Transformers adds up the shares and averages over devices."""
        batch = cast(RowBatch, inputs)
        output = model(**batch["sequences"])
        logps, router_loss = output if self._router_coefficient else (output, None)
        outcome = objective_losses(self.objective, responses_of(batch, logps), progress=self._progress)
        self._finite.append((batch["names"], outcome.losses.isfinite()))
        metrics = dict(outcome.metrics)
        if router_loss is not None:
            metrics["aux_loss"] = router_loss.detach().expand_as(batch["row_weights"])
        self._step_metrics.add(metrics, counted=batch["row_weights"] > 0)
        total_count = batch["row_counts"].sum() if num_items_in_batch is None else cast(Tensor, num_items_in_batch)
        # A step may have only rows of weight 0: its loss is then 0, not 0 / 0.
        total_count = total_count.clamp(min=torch.finfo(total_count.dtype).tiny)
        loss = (batch["row_weights"] * outcome.losses).sum() / total_count
        if router_loss is not None:
            # Weighted by the chunk's share of the step's tokens, because the loss is a mean over them.
            loss = loss + self._router_coefficient * router_loss * num_occurrences(batch) / self._num_occurrences
        return cast(Tensor, self.accelerator.num_processes * loss)

    @property
    def _progress(self) -> float:
        """Finished optimizer steps over all optimizer steps."""
        return self.state.global_step / self.state.max_steps

    def _stop_if_not_finite(self) -> None:
        """Stop all processes if one of them has a loss in this step that is not finite.

        Checked once a step, so that the host does not wait for the device after every chunk.

        Raises:
            SinterError: Which row has the loss.
        """
        chunks, self._finite = self._finite, []
        is_bad = ~torch.stack([finite.all() for _, finite in chunks]).all()
        if not self.accelerator.reduce(is_bad.float(), "sum"):
            return
        bad = [
            name
            for names, finite in chunks
            for name, is_finite in zip(names, finite.tolist(), strict=True)
            if not is_finite
        ]
        raise SinterError(
            f"the loss of {gather_object(bad)[0]} is not finite in step {self.state.global_step + 1}; "
            "try a lower learning_rate, or a warm-up (warmup_steps)"
        )

    def _stop_if_gradient_is_not_finite(self, norm: float | None) -> None:
        """Stop before weights that are not numbers are saved: after the last step, no loss would show them.

        Raises:
            SinterError: The gradient's norm is not finite.
        """
        # In fp16 such steps are skipped, and the loss's scale is lowered.
        if norm is not None and not math.isfinite(norm) and not self.args.fp16:
            raise SinterError(
                f"the gradient of step {self.state.global_step} is not finite, though its loss is; "
                "try a lower learning_rate, or a warm-up (warmup_steps)"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics to what Transformers logs."""
        if "loss" in logs:
            self._stop_if_gradient_is_not_finite(logs.get("grad_norm"))
            logs["num_tokens"] = self.state.num_input_tokens_seen
            logs |= self._step_metrics.pop(self.accelerator)
            # The hyper-parameters that the step used: `global_step` now counts it, but did not when its loss was
            # computed.
            logs |= self.objective.scheduled_values((self.state.global_step - 1) / self.state.max_steps)
        super().log(logs, start_time)


class _ShardedReference(TrainerCallback):
    """Computes the reference of a sharded model, which is sharded only when training begins."""

    def __init__(self, trainer: FusionTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compute the reference before the first step; a resumed run finds it in the cache."""
        self._trainer.add_reference(is_trained=state.global_step > 0 and self._trainer.args.lora_r is None)


def _warn_of_whole_models(accelerator: Accelerator) -> None:
    """Warn if a launcher's configuration asks for shards and Accelerate makes none, because it needs GPUs for them."""
    asked = {DistributedType.FSDP: "ACCELERATE_USE_FSDP", DistributedType.DEEPSPEED: "ACCELERATE_USE_DEEPSPEED"}
    for way, variable in asked.items():
        if parse_flag_from_env(variable) and accelerator.distributed_type != way and accelerator.is_main_process:
            logger.warning(
                "%s is configured, but Accelerate found %s and shards nothing: every process holds the whole model",
                way.value,
                accelerator.distributed_type.value,
            )


def _max_length(args: FusionConfig, model: PreTrainedModel) -> int:
    """Maximum tokens of a prompt and a response: as given, otherwise the default, or fewer if the model reads fewer.

    Raises:
        InputError: ``args`` ask for more than the model reads, or for no more than a prompt keeps.
    """
    context = context_length(model)
    if args.max_length is not None and context is not None and args.max_length > context:
        raise InputError(
            f"max_length is {args.max_length}, but the model reads {context} tokens at most; expected no more than that"
        )
    max_length = args.max_length or min(DEFAULT_MAX_LENGTH, context or DEFAULT_MAX_LENGTH)
    if args.max_prompt_length is not None and args.max_prompt_length >= max_length:
        raise InputError(
            f"max_prompt_length is {args.max_prompt_length}; expected less than max_length ({max_length}), so that an "
            "answer has room"
        )
    return max_length


def _check_rows(rows: Sequence[TrainingRow]) -> None:
    """Refuse a TRL data set and dictionaries, which must be parsed first.

    Raises:
        InputError: The rows are not training rows.
    """
    if len(rows) and not isinstance(rows[0], TrainingRow):
        raise InputError(
            f"train_dataset holds {type(rows[0]).__name__}; expected TrainingRow, as sinterlm.formats.parse_rows makes "
            "them of dictionaries in TRL's formats"
        )


def _check_total_weight(rows: Sequence[EncodedRow]) -> None:
    """Check that the rows' weights sum to a positive, finite number in float32: the loss is a mean by weight.

    Raises:
        InputError: They do not.
    """
    total = float(torch.tensor([row["weight"] for row in rows], dtype=torch.float32).sum())
    if not 0 < total < math.inf:
        raise InputError(f"the weights of the {len(rows)} rows sum to {total:g}; expected a finite number above 0")


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to 0, including the attention's, so that policy and reference agree."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)
