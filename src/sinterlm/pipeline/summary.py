"""The figures that a run leaves in its folder: ``evaluation.json`` is read here, ``summary.json`` written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from sinterlm.errors import InputError
from sinterlm.evaluation.figures import Evaluation
from sinterlm.files import atomic_write
from sinterlm.formats import read_rows
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.grid_store import read_search
from sinterlm.pipeline.stage import RunContext
from sinterlm.records import Selection
from sinterlm.selection.tally import tally_selection


class Results(NamedTuple):
    """What the stages of a run have left in its folder: rows and figures."""

    evaluation: Evaluation
    selections: Mapping[str, Selection]
    """Training to its rows, and to what their selection dropped; a training without rows is missing."""


def read_summary(fusion: Fusion) -> dict[str, Any]:
    """The run's ``summary.json``.

    Raises:
        InputError: It is missing or damaged.
    """
    return _read_json(fusion.output / "summary.json")


def read_results(run: RunContext) -> Results:
    """Read what the stages of a run have written."""
    fusion = run.fusion
    dropped = list(run.store.dropped(fusion.run_name))
    selections = {
        name: Selection(read_rows(path), [drop for drop in dropped if drop.stage == f"select-{name}"])
        for name in fusion.trainings
        if (path := fusion.rows_path(name)).is_file()
    }
    return Results(read_evaluation(fusion), selections)


def summarise(run: RunContext, results: Results) -> dict[str, Any]:
    """The content of ``summary.json``."""
    fusion = run.fusion
    finished = run.store.finished_stages(fusion.run_name)
    # A method that the recipe no longer has is no part of the run.
    past = {name: finished[name] for name in run.stages if name in finished and name != "report"}
    stages = {
        name: {
            "seconds": round(stage.seconds, 3),
            "peak_memory_bytes": stage.peak_memory_bytes,
            "counts": dict(stage.counts),
        }
        for name, stage in past.items()
    }
    evaluation = results.evaluation
    held_out = fusion.recipe.evaluation.held_out
    searches = {name: found for name in fusion.trainings if (found := read_search(fusion, name))}
    return {
        "seconds": round(sum(stage.seconds for stage in past.values()), 3),
        "peak_memory_bytes": max((stage.peak_memory_bytes for stage in past.values()), default=0),
        "seed": fusion.recipe.seed,
        "scorers": {
            "training": fusion.recipe.scorer.title,
            **({"held_out": held_out.scorer.title} if held_out else {}),
        },
        "stages": stages,
        "held_out": evaluation.held_out.flatten(),
        "held_out_differences": evaluation.held_out.to_json()["differences"],
        "reward_accuracies": evaluation.to_json().get("reward_accuracies", {}),
        "selections": {name: asdict(tally_selection(found)) for name, found in results.selections.items()},
        **({"development": evaluation.development.flatten()} if evaluation.development else {}),
        **({"searches": searches} if searches else {}),
    }


def write_summary(fusion: Fusion, summary: Mapping[str, Any]) -> None:
    """Write what :func:`summarise` gave."""
    with atomic_write(fusion.output / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2))


def read_evaluation(fusion: Fusion) -> Evaluation:
    """The run's ``evaluation.json``; without any figures before the stage that writes it.

    Raises:
        InputError: It is damaged.
    """
    path = fusion.output / "evaluation.json"
    return Evaluation.from_json(_read_json(path)) if path.is_file() else Evaluation()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged or not there ({error}); delete it and give `sinterlm run` again") from error
    return content
