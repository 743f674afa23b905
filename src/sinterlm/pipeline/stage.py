"""What a stage is: a name, what decides its result, and the work itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from sinterlm.errors import InputError
from sinterlm.files import FINISHED, describe_state, find_damage, record_files, recorded_files
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import Reporter
from sinterlm.records import Dropped, digest
from sinterlm.store import FinishedStage, Store

FORMAT = 1
"""Part of every stage's key: raised when stages come to mean something else."""


class RunContext(NamedTuple):
    """What every stage works with."""

    fusion: Fusion
    store: Store
    reporter: Reporter
    key: str = ""
    """Of the stage at work."""
    stages: tuple[str, ...] = ()
    """The names of the recipe's stages."""


class StageResult(NamedTuple):
    """What a stage has done: figures for status and report, and what went no further."""

    counts: Mapping[str, float]
    dropped: Sequence[Dropped] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a fusion.

    Its key is the hash of its own configuration and of the keys of the stages it needs, so that a change redoes
    exactly what depends on it.
    """

    name: str
    configuration: object
    """JSON-able: whatever besides ``needs`` decides the result, weights by fingerprint and files by content."""
    work: Callable[[RunContext], StageResult]
    needs: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = field(default=())
    """Files and folders without which the stage does not count as done."""
    may_change: bool = False
    """Whether other commands write the outputs again, so that it is enough if they exist."""
    reads_target: bool = False
    """Whether the target's weights must be here: rows of recorded answers, for one, are selected without."""


def stage_keys(stages: Sequence[Stage]) -> dict[str, str]:
    """The key of every stage; ``stages`` are in an order in which they can be done."""
    keys: dict[str, str] = {}
    for stage in stages:
        keys[stage.name] = digest([FORMAT, stage.name, stage.configuration, [keys[name] for name in stage.needs]])
    return keys


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
    """Refuse to show or export what damaged files of the run say: rows, figures, metrics; weights are not looked at.

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


def count_reasons(dropped: Sequence[Dropped]) -> dict[str, int]:
    """How many were dropped by reason, most frequent first."""
    return dict(Counter(drop.reason for drop in dropped).most_common())
