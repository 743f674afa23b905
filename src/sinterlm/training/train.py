"""One training run: from rows and a model's name to a finished model folder.

    rows -> FusionTrainer (checkpoints, metrics.jsonl) -> model, tokenizer, card -> training.json

``training.json`` is written last, when all else is on the disk, and records the size and hash of every file: a folder
that has it holds a finished model. The same call again returns at once when the model is finished, and goes on from the
newest whole checkpoint when it is not; a call with other rows or settings says what differs and begins anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.integrations.liger import apply_liger_kernel
from transformers.trainer import TRAINING_ARGS_NAME

from sinterlm.errors import InputError, memory_advice
from sinterlm.files import atomic_write, record_files, require_undamaged_model, sync_files, temporary_folder
from sinterlm.models import (
    describe_placement,
    fingerprint,
    load_tokenizer,
    load_trainable_model,
    without_bars,
    writes_date,
)
from sinterlm.objectives.named import resolve_objective
from sinterlm.records import Dropped, TrainingRow, digest
from sinterlm.training.card import CardDetails, render_card
from sinterlm.training.checkpoints import CheckpointManifest, RegularCheckpoints, newest_whole_checkpoint
from sinterlm.training.config import FusionConfig
from sinterlm.training.generation import StartSettings, restore_config, set_aside, write_generation_config
from sinterlm.training.logprobs import compute_dtype
from sinterlm.training.lora import hide_base, merge_adapter
from sinterlm.training.metrics import MetricsFile
from sinterlm.training.output_folder import (
    ADAPTER,
    CHECKPOINTS,
    REFERENCE,
    RESULT,
    STAGED,
    Claim,
    claim,
    first_date,
    keep_date,
    publish,
    remove_checkpoints,
    require_own_or_empty,
)
from sinterlm.training.reference import ReferenceCache
from sinterlm.training.trainer import FusionTrainer

METRICS = "metrics.jsonl"

ReportProgress = Callable[[int, int, float], None]
"""Called after every optimizer step with the step, the number of steps and the loss."""


_ADVICE = (
    "a lower chunk_tokens or max_length, bf16: true, activation_checkpointing: true, lora_r: 16 or a smaller model "
    "takes less"
)
"""What takes less memory, from what changes no figure to what makes another model."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training run did."""

    num_rows: int
    """Rows trained on."""
    dropped: tuple[Dropped, ...]
    num_cut: int
    """Responses that lost their end to ``max_length``."""
    num_cut_prompts: int
    """Prompts that lost their beginning to it."""
    num_steps: int
    num_tokens: int
    """Tokens read, prompts and all epochs included."""
    seconds: float


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
        rows: with the responses that the objective needs.
        model: the start, and the reference: a hub name, a folder or a GGUF file in a package.
        objective: a name of ``objectives/named.py``.
        output_dir: gets the model, its tokenizer, card and metrics; empty, or of an earlier run.
        hyperparameters: the objective's; defaults stand in the table.
        arguments: names of TrainingArguments, and ``max_length``.
        seed: of the order of the rows.
        cache_dir: where log-probabilities of the reference are kept; beside the model unless given.
        card: what the model card says of the origin; ``model`` alone unless given.
        say: told where and in which precision the model is trained, and where the reference comes from.
        report_progress: called after every optimizer step.

    Raises:
        InputError: an unknown objective, hyper-parameter or argument, a row of the wrong shape, a package that an
            argument needs and that is not installed, or an output folder that holds something else.
        ToleranceError: no row is left to train on.
    """
    hyperparameters, arguments = hyperparameters or {}, dict(arguments or {})
    if Path(model).is_dir() and Path(model).resolve().is_relative_to(output_dir.resolve()):
        raise InputError(f"{output_dir}: the output folder holds the model to start from; choose another output folder")
    require_own_or_empty(output_dir)
    check_arguments(objective, hyperparameters, arguments, seed=seed)
    checkpoints = output_dir / CHECKPOINTS
    model_fingerprint = fingerprint(model)
    if asks_date := writes_date(model):
        _choose_date(arguments, output_dir, say)
    config = build_config(objective, hyperparameters, arguments, output_dir=checkpoints, seed=seed)
    processes = PartialState()
    if asks_date:
        # One process decides: others may have looked at the clock after midnight, or at the folder later.
        [arguments["template_date"]] = broadcast_object_list([arguments["template_date"]])
        config.template_date = arguments["template_date"]
    identity = digest(
        [model_fingerprint, objective, config.resolved_objective.values, arguments, seed, [asdict(row) for row in rows]]
    )
    if finished := read_result(output_dir, identity):
        if config.process_index == 0:
            remove_checkpoints(output_dir)  # a kill may have come between the result and their removal
        return finished
    started = perf_counter()
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
    processes.wait_for_everyone()  # all have looked at the folder
    if processes.is_main_process:
        claim(output_dir, Claim(identity, settings), say)
        if asks_date:
            keep_date(output_dir, arguments["template_date"])
    processes.wait_for_everyone()

    tokenizer = load_tokenizer(model)
    # Transformers would remove the older checkpoints before the new one's manifest says that it is whole.
    manifest = CheckpointManifest(num_kept=config.save_total_limit)
    config.save_total_limit = None
    start = load_trainable_model(model)  # in float32; `bf16: true` computes in lower precision
    kept_settings = set_aside(start, tokenizer)
    with memory_advice(f"preparing the training of {model!r}", _ADVICE):
        trainer = FusionTrainer(
            start,
            config,
            rows,
            tokenizer,
            reference_cache=ReferenceCache(cache_dir or output_dir / REFERENCE, model_fingerprint),
            callbacks=[MetricsFile(output_dir / METRICS), manifest],
        )
    together = f", {processes.num_processes} processes" if processes.num_processes > 1 else ""
    say(f"trains on {_describe_precision(trainer)}{together}")
    if trainer.num_as_generated:
        say(
            f"{trainer.num_as_generated} responses are trained as the model would write them: the chat template writes "
            "finished answers otherwise"
        )
    if trainer.reference_origin:
        say(f"log-probabilities of the reference: {trainer.reference_origin}")
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not arguments.keys() & {"save_steps", "save_strategy"}:
        trainer.add_callback(RegularCheckpoints())
    if report_progress:
        trainer.add_callback(_ProgressReport(report_progress))
    # One process reads them, and all start from the same.
    found = newest_whole_checkpoint(checkpoints, say) if processes.is_main_process else None
    checkpoint: Path | None = broadcast_object_list([found])[0]
    if checkpoint:
        say(f"resumes from {checkpoint}")
    with memory_advice(f"training {model!r}", _ADVICE):
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

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
    processes.wait_for_everyone()  # each may have written a share
    if trainer.is_world_process_zero():
        (staged / "README.md").write_text(text, encoding="utf-8")
        metrics = output_dir / METRICS
        sync_files([metrics])
        files = record_files(output_dir, [*publish(output_dir), metrics])
        stored = {"identity": identity, **asdict(result), "settings": settings, "files": files}
        with atomic_write(output_dir / RESULT) as temporary:
            temporary.write_text(json.dumps(stored, indent=2))
        remove_checkpoints(output_dir)
    processes.wait_for_everyone()
    return result


def _choose_date(arguments: dict[str, Any], output_dir: Path, say: Callable[[str], None]) -> None:
    """Set the date that the chat template takes for today: the given one, else that of the first command."""
    first, given = first_date(output_dir), arguments.get("template_date")
    arguments["template_date"] = given or first or date.today().isoformat()
    before = f"; it was {first} before, so training begins anew" if first and given and given != first else ""
    say(f"the chat template takes {arguments['template_date']} for today (template_date){before}")


def _describe_precision(trainer: FusionTrainer) -> str:
    """Where the model computes and in which precision, e.g. ``cpu, float32 weights, bfloat16 products``."""
    model = cast(PreTrainedModel, trainer.model)
    placement = describe_placement(model)
    with trainer.accelerator.autocast():
        products = compute_dtype(model)
    if products == model.dtype:
        return placement
    return f"{placement} weights, {str(products).removeprefix('torch.')} products"


def check_arguments(
    objective: str, hyperparameters: Mapping[str, Any], arguments: Mapping[str, Any], *, seed: int = 0
) -> None:
    """Find what :func:`train` would refuse, without a model: by what Transformers makes of the settings.

    Raises:
        InputError: an unknown name, a value that is not accepted, or a package that is needed and not installed.
    """
    with temporary_folder() as folder, _environment_kept():
        config = build_config(objective, hyperparameters, arguments, output_dir=folder, seed=seed)
        try:
            trainer = Trainer(nn.Linear(1, 1), config, train_dataset=[{"input_ids": [0]}])
            trainer.get_train_dataloader()
            if not config.optim_target_modules:  # names of the real model's layers
                trainer.create_optimizer_and_scheduler(num_training_steps=1)
            if config.use_liger_kernel:
                apply_liger_kernel(trainer.model, config.liger_kernel_config)
        except Exception as error:  # of any kind, but nothing else than the arguments went in
            raise _refused(error) from error


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what settings do to the environment: by it Accelerate would tell later trainings, too, to shard."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


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
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        raise _refused(error) from error


def _refused(error: Exception) -> InputError:
    """What Transformers says of an argument, as an error of the user's input: its first line."""
    first_line = str(error).strip().partition("\n")[0]
    return InputError(f"train: {first_line or type(error).__name__}")


def read_result(output_dir: Path, identity: str) -> TrainingResult | None:
    """The result of a finished run with this identity; None where there is none.

    Raises:
        InputError: there is, and a file of the model is damaged.
    """
    try:
        stored = json.loads((output_dir / RESULT).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        require_undamaged_model(output_dir)
        return None
    stored = {name: value for name, value in stored.items() if name not in ("settings", "files")}
    # An earlier version may have counted other things: such a result is another run's.
    if stored.pop("identity", None) != identity or stored.keys() != {own.name for own in fields(TrainingResult)}:
        return None
    require_undamaged_model(output_dir)
    dropped = tuple(Dropped(**drop) for drop in stored.pop("dropped"))
    return TrainingResult(dropped=dropped, **stored)


def save_model(
    trainer: FusionTrainer,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    start: str,
    settings: StartSettings,
) -> None:
    """Write weights, tokenizer with its template, and the start's generation config with the template's end-of-turn.

    Called in every process. An adapter lies in a folder of its own, beside the start model that it is merged into.
    """
    if trainer.is_fsdp_enabled:  # checkpoints may be in shards, one for each process; a model is whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if trainer.args.lora_r is None:
        restore_config(cast(PreTrainedModel, trainer.accelerator.unwrap_model(trainer.model)), settings)
        _save_by_trainer(trainer, folder)
    else:
        _save_by_trainer(trainer, folder / ADAPTER)
        if trainer.is_world_process_zero():
            unset_hf_deepspeed_config()  # by which ZeRO-3 would shard what is loaded now, too
            base = load_trainable_model(start)
            set_aside(base, tokenizer)
            merged = merge_adapter(base, folder / ADAPTER)
            restore_config(merged, settings)
            merged.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            hide_base(folder / ADAPTER, start)
    if trainer.is_world_process_zero():
        write_generation_config(settings, tokenizer, folder, trainer.args.template_options)


def _save_by_trainer(trainer: FusionTrainer, folder: Path) -> None:
    trainer.save_model(str(folder))
    # Transformers pickles its arguments beside the model; they stand in the card instead.
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)


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
