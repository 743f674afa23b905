"""Training as a stage of a run, and on rows made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinterlm.errors import InputError
from sinterlm.files import move_whole, remove
from sinterlm.formats import read_rows, read_training_file
from sinterlm.locks import folder_lock
from sinterlm.objectives.named import resolve_objective
from sinterlm.pipeline.cells import describe_grid, read_search, settle
from sinterlm.pipeline.launch import is_main_process
from sinterlm.pipeline.progress import Reporter, Task
from sinterlm.pipeline.stage import RunContext, StageResult, count_reasons
from sinterlm.recipe.build import build_hyperparameters, template_options
from sinterlm.recipe.load import read_train_settings
from sinterlm.recipe.schema import Training, scorer_title
from sinterlm.training.members import find_members
from sinterlm.training.output_folder import require_own_or_empty

if TYPE_CHECKING:
    from sinterlm.training.card import CardDetails
    from sinterlm.training.result import TrainingResult


def train_model(run: RunContext, name: str) -> StageResult:
    """Train one model of a fusion: fine-tune the target (``sft``), or optimise its start by a preference method.

    After a search, the settings are those that it has chosen, and its best cell's model is taken as it is.
    """
    fusion, stage = run.fusion, f"train-{name}"
    output = fusion.output / fusion.model_of(name).name
    if search := read_search(fusion, name):
        _adopt(fusion.output / search["folder"] / "model", output)
    # A model that was adopted is found to be finished; where it is gone, it is trained again.
    result = fit(run, name, settle(fusion, name), output=output, label=stage)
    counts = {
        "rows": result.num_rows,
        "steps": result.num_steps,
        "tokens": result.num_tokens,
        "cut": result.num_cut,
        "cut prompts": result.num_cut_prompts,
    }
    return StageResult(counts, [replace(drop, stage=stage) for drop in result.dropped])


def read_metrics(model: Path) -> list[dict[str, float | None]]:
    """The metrics of a model, one optimizer step after the other; empty without any.

    The last line of a training at work, or of one that was killed, may be half written: it does not count.

    Raises:
        InputError: The file is damaged.
    """
    path = model / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    try:
        return [dict(json.loads(line)) for line in lines if line.endswith(b"\n")]
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: is damaged ({error}). Give the command again that trains this model; if it is finished, remove "
            "its folder first"
        ) from error


def _adopt(model: Path, output: Path) -> None:
    """Move a cell's model to where a model of the fusion belongs."""
    if model.is_dir():
        require_own_or_empty(output)
        remove(output)
        move_whole(model, output)


def fit(run: RunContext, name: str, training: Training, *, output: Path, label: str) -> TrainingResult:
    """Train on the rows of ``sft`` or a preference method, from its start, by the settings of ``training``."""
    fusion = run.fusion
    start = fusion.start_of(name).weights
    assert start is not None
    return _with_progress(
        run.reporter,
        label,
        rows=read_rows(fusion.rows_path(name)),
        model=start,
        objective=training.objective.kind,
        hyperparameters=build_hyperparameters(training.objective),
        arguments={**training.train, **template_options(fusion.recipe.target)},
        output_dir=output,
        seed=fusion.recipe.seed,
        cache_dir=fusion.workspace / "reference",
        card=_card(run, training),
    )


def train_on_file(
    *,
    objective: str,
    model: str,
    data: Path,
    output: Path,
    settings: Sequence[str],
    settings_files: Sequence[Path] = (),
    reporter: Reporter,
) -> None:
    """Train on rows made elsewhere.

    Args:
        objective: A name of the table of objectives.
        model: The start, and the reference.
        data: JSON Lines or Parquet in one of the shapes that the objective reads.
        output: The folder of the trained model.
        settings: ``KEY=VALUE``: hyper-parameters of the objective, TrainingArguments' names, ``max_length``, ``seed``.
        settings_files: YAML files of the same, over which ``settings`` hold.
        reporter: Where progress is told.
    """
    given = read_train_settings(objective, settings, settings_files)
    resolved = resolve_objective(objective, given.hyperparameters)
    rows = read_training_file(data, resolved.roles, check=partial(find_members, objective=resolved))
    # Several processes of one launch train together, and the first one writes.
    with folder_lock(output, output) if is_main_process() else nullcontext():
        result = _with_progress(
            reporter,
            objective,
            rows=rows,
            model=model,
            objective=objective,
            hyperparameters=given.hyperparameters,
            arguments=given.arguments,
            output_dir=output,
            seed=given.seed,
        )
    for reason, count in count_reasons(result.dropped).items():
        reporter.say(f"dropped {count}: {reason}")
    if result.num_cut:
        reporter.say(f"{result.num_cut} responses lost their end, and so their end-of-turn, to max_length")
    if result.num_cut_prompts:
        reporter.say(f"{result.num_cut_prompts} prompts lost their beginning to max_length")
    reporter.say(f"{output}: {result.num_rows} rows, {result.num_steps} steps, {result.seconds:.0f} s")


def _with_progress(reporter: Reporter, label: str, **arguments: Any) -> TrainingResult:
    """Train under a progress bar."""
    from accelerate.utils import release_memory  # brings torch in

    from sinterlm.training.train import train

    with ExitStack() as stack:
        task: Task | None = None
        done = 0

        def report(step: int, num_steps: int, loss: float) -> None:
            nonlocal task, done
            task = task or stack.enter_context(reporter.task(label, num_steps, "steps"))
            task.advance(step - done, f"loss {loss:.4f}")
            done = step

        result = train(
            say=lambda line: reporter.say(f"  {label}: {line}"),
            report_progress=report,
            **arguments,
        )
        release_memory()  # a trainer lies in reference cycles, and weights and optimizer states with it
        return result


def _card(run: RunContext, training: Training) -> CardDetails:
    """Where the model comes from, for its card."""
    from sinterlm.training.card import CardDetails  # brings torch in

    fusion = run.fusion
    sources = {f"Source {source.name}": source.config.provenance() for source in fusion.sources}
    return CardDetails(
        fusion.recipe.target.model,
        {
            **sources,
            "Scorer": scorer_title(fusion.recipe.scorer),
            **({"Chosen on the development prompts from": describe_grid(training)} if training.grid else {}),
        },
    )
