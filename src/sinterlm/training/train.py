"""One training: from rows and a model's name to a finished model folder.

    rows -> FusionTrainer (checkpoints, metrics.jsonl) -> model, tokenizer, card -> training.json

``training.json`` is written last, when everything else is on the disk, and records the size and hash of every file: a
folder that has it holds a finished model. A repeated call returns at once if the model is finished, and resumes from
the newest whole checkpoint if it is not. A call with other rows or settings says what differs and begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback

from sinterlm.errors import InputError, memory_advice
from sinterlm.files import record_files, sync_files
from sinterlm.models import (
    describe_placement,
    fingerprint,
    load_tokenizer,
    load_trainable_model,
    without_bars,
    writes_date,
)
from sinterlm.records import TrainingRow, digest
from sinterlm.training.card import CardDetails, render_card
from sinterlm.training.check import build_config, check_arguments
from sinterlm.training.checkpoints import CheckpointManifest, RegularCheckpoints, newest_whole_checkpoint
from sinterlm.training.generation import set_aside
from sinterlm.training.logprobs import compute_dtype
from sinterlm.training.metrics import MetricsFile
from sinterlm.training.output_folder import (
    CHECKPOINTS,
    REFERENCE,
    STAGED,
    Claim,
    claim,
    publish,
    remove_checkpoints,
    require_own_or_empty,
)
from sinterlm.training.progress import ProgressReport, ReportProgress
from sinterlm.training.reference import ReferenceCache
from sinterlm.training.result import TrainingResult, read_result, write_result
from sinterlm.training.save import save_model
from sinterlm.training.template_date import choose_date, keep_date
from sinterlm.training.trainer import FusionTrainer

METRICS = "metrics.jsonl"

_ADVICE = (
    "a lower chunk_tokens or max_length, bf16: true, activation_checkpointing: true, lora_r: 16 or a smaller model "
    "takes less"
)
"""What takes less memory: first what changes no figure, last what makes another model."""


@without_bars()
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
    say: Callable[[str], None] = lambda line: None,
    report_progress: ReportProgress | None = None,
) -> TrainingResult:
    """Train ``model`` on ``rows`` and leave a folder that Transformers loads.

    Args:
        rows: Training rows with the responses that the objective needs.
        model: The start, also the reference: a hub name, a folder or a GGUF file in a package.
        objective: A name in ``objectives/named.py``.
        output_dir: Gets the model, its tokenizer, card and metrics; must be empty or from an earlier run.
        hyperparameters: Hyper-parameters of the objective, by name; defaults are in its table.
        arguments: Fields of TrainingArguments and of Sinter's own FusionArguments, by name.
        seed: Seed for the order of the rows, dropout and a new adapter.
        cache_dir: Keeps the reference's log-probabilities; by default a folder beside the model.
        card: What the model card says about the origin; by default only ``model``.
        say: Called with lines for the user: where and in which precision the model is trained, where the reference
            comes from, which checkpoint is resumed.
        report_progress: Called after every optimizer step.

    Raises:
        InputError: An unknown objective, hyper-parameter or argument, a row of the wrong shape, a missing package that
            an argument needs, or an output folder that holds something else.
        ToleranceError: No row is left to train on.
    """
    # Check the settings.
    hyperparameters, arguments = hyperparameters or {}, dict(arguments or {})
    if Path(model).is_dir() and Path(model).resolve().is_relative_to(output_dir.resolve()):
        raise InputError(f"{output_dir}: the output folder holds the model to start from; choose another output folder")
    require_own_or_empty(output_dir)
    check_arguments(objective, hyperparameters, arguments, seed=seed)
    if asks_date := writes_date(model):
        arguments["template_date"] = choose_date(arguments.get("template_date"), output_dir, say)
    checkpoints = output_dir / CHECKPOINTS
    config = build_config(objective, hyperparameters, arguments, output_dir=checkpoints, seed=seed)
    processes = PartialState()
    if asks_date:
        # One process decides: others may have read the clock after midnight, or the folder later.
        [arguments["template_date"]] = broadcast_object_list([arguments["template_date"]])
        config.template_date = arguments["template_date"]

    # Return what is finished, or make the folder this run's.
    model_fingerprint = fingerprint(model)
    settings = {
        "model": model,
        "the model's content": model_fingerprint,
        "objective": objective,
        **config.resolved_objective.values,
        **arguments,
        "seed": seed,
        "number of rows": len(rows),
        "rows": digest([asdict(row) for row in rows]),
    }
    identity = digest(
        [model_fingerprint, objective, config.resolved_objective.values, arguments, seed, [asdict(row) for row in rows]]
    )
    if finished := read_result(output_dir, identity):
        if config.process_index == 0:
            remove_checkpoints(output_dir)  # a kill may have come after the result, before their removal
        return finished
    started = perf_counter()
    processes.wait_for_everyone()  # until all have read the folder, which is changed next
    if processes.is_main_process:
        claim(output_dir, Claim(identity, settings), say)
        if asks_date:
            keep_date(output_dir, arguments["template_date"])
    processes.wait_for_everyone()

    # Build the trainer; it computes the reference.
    tokenizer = load_tokenizer(model)
    start = load_trainable_model(model)  # in float32; `bf16: true` computes in lower precision
    kept_settings = set_aside(start, tokenizer)
    # Transformers would remove older checkpoints before the new one has its manifest, and so counts as whole.
    manifest = CheckpointManifest(num_kept=config.save_total_limit)
    config.save_total_limit = None
    with memory_advice(f"preparing the training of {model!r}", _ADVICE):
        trainer = FusionTrainer(
            start,
            config,
            rows,
            tokenizer,
            reference_cache=ReferenceCache(cache_dir or output_dir / REFERENCE, model_fingerprint),
            callbacks=[MetricsFile(output_dir / METRICS), manifest],
        )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not arguments.keys() & {"save_steps", "save_strategy"}:
        trainer.add_callback(RegularCheckpoints())
    if report_progress:
        trainer.add_callback(ProgressReport(report_progress))
    _describe(trainer, processes.num_processes, say)

    # Train. One process looks for a checkpoint, and all resume from it.
    found = newest_whole_checkpoint(checkpoints, say) if processes.is_main_process else None
    checkpoint: Path | None = broadcast_object_list([found])[0]
    if checkpoint:
        say(f"resumes from {checkpoint}")
    with memory_advice(f"training {model!r}", _ADVICE):
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    # Save.
    staged = output_dir / STAGED
    save_model(trainer, tokenizer, staged, start=model, settings=kept_settings)
    text = render_card(
        card or CardDetails(model), objective=config.resolved_objective, arguments=arguments, rows=rows, seed=seed
    )
    result = TrainingResult(
        num_rows=trainer.num_rows,
        dropped=tuple(trainer.dropped),
        num_cut=trainer.num_cut,
        num_cut_prompts=trainer.num_cut_prompts,
        num_steps=output.global_step,
        num_tokens=trainer.state.num_input_tokens_seen,
        seconds=perf_counter() - started,
    )
    processes.wait_for_everyone()  # each may have written a share of the model
    if trainer.is_world_process_zero():
        (staged / "README.md").write_text(text, encoding="utf-8")
        metrics = output_dir / METRICS
        sync_files([metrics])
        files = record_files(output_dir, [*publish(output_dir), metrics])
        write_result(output_dir, result, identity=identity, settings=settings, files=files)
        remove_checkpoints(output_dir)
    processes.wait_for_everyone()
    return result


def _describe(trainer: FusionTrainer, num_processes: int, say: Callable[[str], None]) -> None:
    """Say where and in which precision the model is trained, and where the reference comes from."""
    together = f", {num_processes} processes" if num_processes > 1 else ""
    say(f"trains on {_describe_precision(trainer)}{together}")
    if trainer.num_as_generated:
        say(
            f"{trainer.num_as_generated} responses are trained as the model would write them: the chat template writes "
            "finished answers differently"
        )
    if trainer.reference_origin:
        say(f"log-probabilities of the reference: {trainer.reference_origin}")


def _describe_precision(trainer: FusionTrainer) -> str:
    """Where the model computes and in which precision, e.g. ``cpu, float32 weights, bfloat16 products``."""
    model = cast(PreTrainedModel, trainer.model)
    placement = describe_placement(model)
    with trainer.accelerator.autocast():
        products = compute_dtype(model)
    if products == model.dtype:
        return placement
    return f"{placement} weights, {str(products).removeprefix('torch.')} products"
