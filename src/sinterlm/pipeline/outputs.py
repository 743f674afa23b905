"""Whether what finished stages left in the run's folder is still as they left it."""

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
    """Whether the stage was finished under the same key, and what it left has the sizes that were written."""
    return past is not None and past.key == key and find_stage_damage(stage, past, output, read=False) is None


def find_stage_damage(stage: Stage, past: FinishedStage, output: Path, *, read: bool) -> str | None:
    """What is wrong with the first file of a finished stage that is not as it was left, in words; None if all are.

    Args:
        stage: The stage.
        past: When it was finished.
        output: The run's folder.
        read: Whether to compare what the files hold, too, and not only their sizes. They are read only if something
            has been written to them since they were last found to be as recorded.
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
    """``past`` with what is known of the stage's files, which are as they should be now.

    A stage that an earlier release has finished gets the record that it lacks.
    """
    files = past.outputs
    if files is None:
        own = [] if stage.may_change else [path for path in stage.outputs if path.is_file()]
        files = record_files(output, own) | _files(stage, output)
    return replace(past, outputs=files, seen=describe_state(output, files))


def require_undamaged(run: RunContext) -> None:
    """Refuse to show or export damaged rows, figures or metrics of the run; weights are not looked at.

    Raises:
        InputError: The file and what to do.
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
                f"{output}: {damage}. Give the command again that made it (`sinterlm run`): it does {name} again, or "
                "says what is to be done first"
            )


def _files(stage: Stage, output: Path) -> dict[str, Mapping[str, Any]]:
    """What the records of trained models among the outputs say of the models' other files."""
    return {
        (path.parent / name).relative_to(output).as_posix(): entry
        for path in stage.outputs
        if path.name == FINISHED
        for name, entry in recorded_files(path.parent).items()
    }
