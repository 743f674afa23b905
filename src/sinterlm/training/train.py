"""One training run: from rows and a model's name to a finished model folder.

    rows -> FusionTrainer (checkpoints, metrics.jsonl) -> model, tokenizer, card -> training.json

``training.json`` is written last: a folder that has it holds a finished model. The same call again returns at once when
the model is finished, and goes on from the newest whole checkpoint when it is not; a call with other rows or settings
begins anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME

from sinterlm.chat import end_token_ids
from sinterlm.errors import InputError
from sinterlm.formats import atomic_write
from sinterlm.models import describe_placement, fingerprint, load_model, load_tokenizer
from sinterlm.objectives.table import resolve_objective
from sinterlm.records import Dropped, TrainingRow, digest
from sinterlm.training.card import CardDetails, render_card
from sinterlm.training.checkpoints import CheckpointManifest, newest_whole_checkpoint
from sinterlm.training.config import FusionConfig
from sinterlm.training.metrics import MetricsFile
from sinterlm.training.reference import ReferenceCache
from sinterlm.training.trainer import FusionTrainer

RESULT = "training.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"

ReportProgress = Callable[[int, int, float], None]
"""Called after every optimizer step with the step, the number of steps and the loss."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training run did."""

    num_rows: int
    """Rows trained on."""
    dropped: tuple[Dropped, ...]
    num_cut: int
    """Responses that lost their end to ``max_length``."""
    num_steps: int
    num_tokens: int
    """Tokens read, prompts and all epochs included."""
    seconds: float


def train(
    rows: Sequence[TrainingRow],
    *,
    model: str,
    objective: str,
    output_dir: Path,
    hyperparameters: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
    card: CardDetails | None = None,
    on_loaded: Callable[[str], None] | None = None,
    report_progress: ReportProgress | None = None,
) -> TrainingResult:
    """Train ``model`` on ``rows`` and leave a folder that Transformers loads.

    Args:
        rows: with the responses that the objective needs.
        model: the start, and the reference: a hub name, a folder or a GGUF file in a package.
        objective: a name of ``objectives/table.py``.
        output_dir: gets the model, its tokenizer, card and metrics.
        hyperparameters: the objective's; defaults stand in the table.
        arguments: names of TrainingArguments, and ``max_length``.
        seed: of the order of the rows.
        cache_dir: where log-probabilities of the reference are kept.
        card: what the model card says of the origin; ``model`` alone unless given.
        on_loaded: told where and in which precision the model is trained.
        report_progress: called after every optimizer step.

    Raises:
        InputError: an unknown objective, hyper-parameter or argument, or a row of the wrong shape.
        ToleranceError: no row is left to train on.
    """
    hyperparameters, arguments = hyperparameters or {}, arguments or {}
    checkpoints = output_dir / CHECKPOINTS
    config = build_config(objective, hyperparameters, arguments, output_dir=checkpoints, seed=seed)
    model_fingerprint = fingerprint(model)
    identity = digest(
        [model_fingerprint, objective, config.resolved_objective.values, arguments, seed, [asdict(row) for row in rows]]
    )
    if finished := read_result(output_dir, identity):
        return finished
    started = perf_counter()
    with config.main_process_first(local=False):
        _keep_only_own(output_dir, identity)

    tokenizer = load_tokenizer(model)
    trainer = FusionTrainer(
        # Weights stay in float32, where small updates are not lost; `bf16: true` computes in lower precision.
        load_model(model, device="cpu", dtype="float32"),
        config,
        rows,
        tokenizer,
        reference_cache=ReferenceCache(cache_dir, model_fingerprint) if cache_dir else None,
        callbacks=[CheckpointManifest(), MetricsFile(output_dir / METRICS)],
    )
    if on_loaded:
        on_loaded(describe_placement(cast(PreTrainedModel, trainer.model)))
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if report_progress:
        trainer.add_callback(_ProgressReport(report_progress))
    checkpoint = newest_whole_checkpoint(checkpoints)
    output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    save_model(trainer, tokenizer, output_dir)
    details = card or CardDetails(Path(model).name if Path(model).is_dir() else model)
    text = render_card(details, objective=config.resolved_objective, arguments=arguments, rows=rows, seed=seed)
    result = TrainingResult(
        num_rows=len(rows) - len(trainer.dropped),
        dropped=tuple(trainer.dropped),
        num_cut=trainer.num_cut,
        num_steps=output.global_step,
        num_tokens=trainer.state.num_input_tokens_seen,
        seconds=perf_counter() - started,
    )
    if trainer.is_world_process_zero():
        (output_dir / "README.md").write_text(text)
        with atomic_write(output_dir / RESULT) as temporary:
            temporary.write_text(json.dumps({"identity": identity, **asdict(result)}, indent=2))
        shutil.rmtree(checkpoints)
    return result


def build_config(
    objective: str, hyperparameters: Mapping[str, Any], arguments: Mapping[str, Any], *, output_dir: Path, seed: int
) -> FusionConfig:
    """The settings of a run, checked.

    Raises:
        InputError: an unknown objective, hyper-parameter or argument, or a value that is not accepted.
    """
    try:
        # Here, because FusionConfig itself cannot tell a hyper-parameter from an argument of its own.
        resolve_objective(objective, hyperparameters)
        return FusionConfig(output_dir=str(output_dir), seed=seed, objective=objective, **hyperparameters, **arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"train: {error}") from error


def read_result(output_dir: Path, identity: str) -> TrainingResult | None:
    """The result of a finished run with this identity; None where there is none."""
    try:
        stored = json.loads((output_dir / RESULT).read_text())
    except (OSError, ValueError):
        return None
    if stored.pop("identity", None) != identity:
        return None
    dropped = tuple(Dropped(**drop) for drop in stored.pop("dropped"))
    return TrainingResult(dropped=dropped, **stored)


def _keep_only_own(output_dir: Path, identity: str) -> None:
    """Remove what a run with other rows or settings left: it must not be resumed, nor be taken for this one's."""
    marker = output_dir / CHECKPOINTS / "identity"
    (output_dir / RESULT).unlink(missing_ok=True)
    if not marker.exists() or marker.read_text() != identity:
        shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)
        marker.parent.mkdir(parents=True)
        marker.write_text(identity)


def save_model(trainer: FusionTrainer, tokenizer: PreTrainedTokenizerBase, output_dir: Path) -> None:
    """Write weights, tokenizer with its template, and a generation config that stops at the template's end-of-turn."""
    model = cast(PreTrainedModel, trainer.accelerator.unwrap_model(trainer.model))
    model.generation_config.eos_token_id = sorted(end_token_ids(tokenizer))
    model.config.use_cache = True
    trainer.save_model(str(output_dir))
    # Transformers pickles its arguments beside the model; they stand in the card instead.
    (output_dir / TRAINING_ARGS_NAME).unlink(missing_ok=True)


class _ProgressReport(TrainerCallback):
    """Hands every step to a function, in place of Transformers' progress bar."""

    def __init__(self, report: ReportProgress) -> None:
        self._report = report

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report a training step."""
        if state.is_world_process_zero and logs and "loss" in logs:
            self._report(state.global_step, state.max_steps, logs["loss"])
