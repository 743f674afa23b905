"""Training on rows made elsewhere: what `sinterlm train` reads before it trains, and who may write the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sinterlm.formats import read_training_file
from sinterlm.locks import folder_lock
from sinterlm.objectives.named import resolve_objective
from sinterlm.pipeline.launch import is_main_process
from sinterlm.recipe.load import read_train_settings
from sinterlm.records import TrainingRow
from sinterlm.training.members import find_members


class TrainingJob(NamedTuple):
    """The arguments of a training on a file of rows."""

    rows: Sequence[TrainingRow]
    hyperparameters: Mapping[str, Any]
    """The objective's, as given; the table of objectives has the defaults."""
    arguments: Mapping[str, Any]
    """The training's, named as in TrainingArguments."""
    seed: int


def read_job(objective: str, data: Path, settings: Sequence[str], settings_files: Sequence[Path] = ()) -> TrainingJob:
    """Read rows and settings, and check that the objective can read them.

    Args:
        objective: A name in the table of objectives.
        data: JSON Lines or Parquet in one of the shapes that the objective reads.
        settings: ``KEY=VALUE``: hyper-parameters of the objective, TrainingArguments' names, ``max_length``, ``seed``.
        settings_files: YAML files of the same, which ``settings`` override.

    Raises:
        InputError: A setting or a row is wrong; the message says which and what was expected.
    """
    given = read_train_settings(objective, settings, settings_files)
    resolved = resolve_objective(objective, given.hyperparameters)
    rows = read_training_file(data, resolved.roles, check=partial(find_members, objective=resolved))
    return TrainingJob(rows, given.hyperparameters, given.arguments, given.seed)


def lock_output(output: Path) -> AbstractContextManager[object]:
    """Lock the folder of the trained model. Among the processes of one launch, only the first does.

    Raises:
        TryAgainError: Another process writes to it.
    """
    return folder_lock(output, output) if is_main_process() else nullcontext()
