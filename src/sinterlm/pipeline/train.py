"""Training as a stage of a run, and on rows made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinterlm.formats import read_rows, read_training_file
from sinterlm.objectives.table import resolve_objective
from sinterlm.pipeline.progress import Reporter, Task
from sinterlm.pipeline.stage import Run, StageResult, count_reasons
from sinterlm.recipe.build import build_hyperparameters
from sinterlm.recipe.load import read_train_settings
from sinterlm.store import folder_lock

if TYPE_CHECKING:
    from sinterlm.training.card import CardDetails
    from sinterlm.training.train import TrainingResult


def train_sft(run: Run) -> StageResult:
    """Fine-tune the target on the selected answers of the sources."""
    recipe, fusion = run.fusion.recipe, run.fusion
    assert recipe.sft is not None
    return _train(
        run,
        "sft",
        start=recipe.target.model,
        objective="sft",
        hyperparameters={},
        arguments=recipe.sft.train,
        output=fusion.output / fusion.start.name,
    )


def train_preference(run: Run, method: str) -> StageResult:
    """Optimise the SFT model (or, without one, the target) by one preference method."""
    fusion = run.fusion
    preference = fusion.recipe.preference[method]
    assert fusion.start.weights is not None
    return _train(
        run,
        method,
        start=fusion.start.weights,
        objective=preference.objective.kind,
        hyperparameters=build_hyperparameters(preference.objective),
        arguments=preference.train,
        output=fusion.output / fusion.preferred(method).name,
    )


def _train(
    run: Run,
    name: str,
    *,
    start: str,
    objective: str,
    hyperparameters: Mapping[str, Any],
    arguments: Mapping[str, Any],
    output: Path,
) -> StageResult:
    stage = f"train-{name}"
    rows = read_rows(run.fusion.rows_path(name))
    result = _with_progress(
        run.reporter,
        stage,
        rows=rows,
        model=start,
        objective=objective,
        hyperparameters=hyperparameters,
        arguments=arguments,
        output_dir=output,
        seed=run.fusion.recipe.seed,
        cache_dir=run.fusion.workspace / "reference",
        card=_card(run),
    )
    counts = {"rows": result.num_rows, "steps": result.num_steps, "tokens": result.num_tokens, "cut": result.num_cut}
    return StageResult(counts, [replace(drop, stage=stage) for drop in result.dropped])


def train_on_file(
    *, objective: str, model: str, data: Path, output: Path, settings: Sequence[str], reporter: Reporter
) -> None:
    """Train on rows made elsewhere.

    Args:
        objective: A name of the table of objectives.
        model: The start, and the reference.
        data: JSON Lines or Parquet in one of the shapes that the objective reads.
        output: The folder of the trained model.
        settings: ``KEY=VALUE``: hyper-parameters of the objective, TrainingArguments' names, ``max_length``, ``seed``.
        reporter: Where progress is told.
    """
    given = read_train_settings(objective, settings)
    rows = read_training_file(data, resolve_objective(objective, given.hyperparameters).roles)
    with folder_lock(output, output):
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
        reporter.say(f"dropped {count} rows: {reason}")
    if result.num_cut:
        reporter.say(f"{result.num_cut} responses were cut at max_length")
    reporter.say(f"{output}: {result.num_rows} rows, {result.num_steps} steps, {result.seconds:.0f} s")


def _with_progress(reporter: Reporter, label: str, **arguments: Any) -> TrainingResult:
    """Train under a progress bar."""
    from sinterlm.training.train import train  # brings torch in

    with ExitStack() as stack:
        task: Task | None = None
        done = 0

        def report(step: int, num_steps: int, loss: float) -> None:
            nonlocal task, done
            task = task or stack.enter_context(reporter.task(label, num_steps, "steps"))
            task.advance(step - done, f"loss {loss:.4f}")
            done = step

        return train(
            on_loaded=lambda placement: reporter.say(f"  {label}: trains on {placement}"),
            report_progress=report,
            **arguments,
        )


def _card(run: Run) -> CardDetails:
    """Where the model comes from, for its card."""
    from sinterlm.training.card import CardDetails  # brings torch in

    fusion = run.fusion
    return CardDetails(
        fusion.recipe.target.model,
        {
            **{f"Source {source.name}": source.weights or "recorded answers" for source in fusion.sources},
            "Scorer": fusion.recipe.scorer.kind,
        },
    )
