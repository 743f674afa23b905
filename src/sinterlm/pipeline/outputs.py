"""Checks that the files of finished stages are still as the stages left them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sinterlm.errors import InputError
from sinterlm.files import FINISHED, describe_state, find_damage, record_files, recorded_files
from sinterlm.pipeline.stage import RunContext, Stage
from sinterlm.store import FinishedStage


def is_done(stage: Stage, key: str, past: FinishedStage | None, output: Path) -> bool:
    """Whether the stage was finished under the same key and its files have the sizes that were written."""
    return past is not None and past.key == key and find_stage_damage(stage, past, output, read=False) is None


def find_stage_damage(stage: Stage, past: FinishedStage, output: Path, *, read: bool) -> str | None:
    """What is wrong with the first damaged file of a finished stage, in words; None if all are intact.

    Args:
        stage: The stage.
        past: The store's record of the finished stage.
        output: The run's folder.
        read: Whether to compare contents as well as sizes. Files are read only if they have been written to since they
            were last found intact.
    """
    for path in stage.outputs:
        if not path.exists():
            return f"{path.relative_to(output)} is missing"
    files = _files(stage, output) if past.outputs is None else past.outputs
    damage = find_damage(output, files, read=False)
    if damage or not read or (past.seen and past.seen == describe_state(output, files)):
        return damage
    return find_damage(output, files)


def see_outputs(stage: Stage, past: FinishedStage, output: Path) -> FinishedStage:
    """``past`` with the current state of the stage's files, which must be intact.

    A stage that an earlier release finished gets the record of files that it lacks.
    """
    files = past.outputs
    if files is None:
        own = [] if stage.may_change else [path for path in stage.outputs if path.is_file()]
        files = record_files(output, own) | _files(stage, output)
    return replace(past, outputs=files, seen=describe_state(output, files))


def require_undamaged(run: RunContext) -> None:
    """Refuse to show or export damaged rows, figures or metrics of the run; weights are not checked.

    Raises:
        InputError: A file is damaged; the message names it and says what to do.
    """
    output = run.fusion.output
    for name, past in run.store.finished_stages(run.fusion.run_name).items():
        if past.seen == describe_state(output, past.outputs or ()):
            continue
        files = {
            file: entry
            for file, entry in (past.outputs or {}).items()
            if not file.endswith(".safetensors") and (output / file).exists()
        }
        if damage := find_damage(output, files):
            raise InputError(
                f"{output}: {damage}. Rerun the command that wrote it (`sinterlm run`): it does {name} again, or says "
                "what to do first"
            )


def _files(stage: Stage, output: Path) -> dict[str, Mapping[str, Any]]:
    """The entries of trained models' files, from the records of files that the models themselves have."""
    return {
        (path.parent / name).relative_to(output).as_posix(): entry
        for path in stage.outputs
        if path.name == FINISHED
        for name, entry in recorded_files(path.parent).items()
    }
