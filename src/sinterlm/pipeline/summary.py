"""A run's figures in its folder: reads ``evaluation.json``, writes and reads ``summary.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sinterlm.errors import InputError
from sinterlm.evaluation.figures import Evaluation
from sinterlm.files import atomic_write
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.ledger import describe_ledger, read_ledger
from sinterlm.pipeline.source_values import describe_values, read_source_values
from sinterlm.pipeline.stage import RunContext, Shown


def read_summary(fusion: Fusion) -> dict[str, Any]:
    """The run's ``summary.json``.

    Raises:
        InputError: It is missing or damaged.
    """
    return _read_json(fusion.output / "summary.json")


def show_stages(run: RunContext) -> list[Shown]:
    """What every stage shows, read once for the summary and the report."""
    return [stage.show(run) for stage in run.stages]


def summarise(run: RunContext, shown: Sequence[Shown]) -> dict[str, Any]:
    """The figures of ``summary.json``: the time and memory of every stage, and what each shows."""
    finished = run.store.finished_stages(run.fusion.run_name)
    # Stages of a method that the recipe no longer has are not part of the run.
    past = [finished[stage.name] for stage in run.stages if stage.is_reported and stage.name in finished]
    held_out = run.fusion.rounds.get("held-out")
    summary: dict[str, Any] = {
        "seconds": round(sum(stage.seconds for stage in past), 3),
        "peak_memory_bytes": max((stage.peak_memory_bytes for stage in past), default=0),
        "seed": run.fusion.recipe.seed,
        "scorers": {
            "training": run.fusion.recipe.scorer.title,
            **({"held_out": held_out.scorer.title} if held_out else {}),
        },
        "stages": {
            stage.name: {
                "seconds": round(stage.seconds, 3),
                "peak_memory_bytes": stage.peak_memory_bytes,
                "counts": dict(stage.counts),
            }
            for stage in past
        },
        "spent": describe_ledger(read_ledger(run.fusion, run.store)),
        "held_out": {},
        "held_out_differences": [],
        "reward_accuracies": {},
        "selections": {},
    }
    if not run.fusion.trains:
        summary["source_values"] = describe_values(read_source_values(run))
    for part in shown:
        for key, value in part.summary.items():
            summary[key] = {**summary.get(key, {}), **value} if isinstance(value, dict) else value
    return summary


def write_summary(fusion: Fusion, summary: Mapping[str, Any]) -> None:
    """Write what :func:`summarise` returned."""
    with atomic_write(fusion.output / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2))


def read_evaluation(fusion: Fusion) -> Evaluation:
    """The run's ``evaluation.json``; without figures before the stage that writes it.

    Raises:
        InputError: It is damaged.
    """
    path = fusion.output / "evaluation.json"
    return Evaluation.from_json(_read_json(path)) if path.is_file() else Evaluation()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged or missing ({error}); delete it and rerun `sinterlm run`") from error
    return content
