"""Moves answers and scores between workspaces, so that none is paid for twice."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from sinterlm.errors import InputError
from sinterlm.formats.dataset import Around, Card, Records, write_dataset
from sinterlm.formats.row_formats import ANSWERS
from sinterlm.formats.shared import (
    RESPONSE_SCHEMA,
    RESPONSES,
    SCORE_SCHEMA,
    SCORES,
    dump_response,
    dump_score,
    read_shared_responses,
    read_shared_scores,
)
from sinterlm.locks import folder_lock
from sinterlm.pipeline.export import Exported
from sinterlm.pipeline.fusion import STORE, load_fusion
from sinterlm.pipeline.stage import count_reasons
from sinterlm.store import Merged, Store

_CARD = Card(
    "Answers and scores",
    "Answers of several models with their scores, exported from a Sinter workspace. `sinterlm import FOLDER "
    "--workspace DIR` imports them: a recipe that asks the same models the same prompts in the same way then "
    "samples and scores nothing again.\n\n"
    "A response is identified by `identity` (a hash of the model's weights, template, prompt format and sampling "
    "settings), `prompt_hash` and `index`; a score by the response, the scorer, and `answers_hash` (the accepted "
    "answers).",
    [ANSWERS],
)


def export_answers(folder: Path, output: Path | None = None) -> Exported:
    """Write all answers and scores of a workspace as a data set.

    Args:
        folder: The workspace, or the output folder of a run in it.
        output: The folder of the data set; by default ``export/answers`` in ``folder``.

    Raises:
        InputError: The workspace has no store, or the output folder holds something else.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; expected a workspace or the output folder of a run in it")
    path = folder / STORE
    if not path.is_file():
        path = load_fusion(folder).store_path
    output = output or folder / "export" / ANSWERS
    with closing(Store(path, read_only=True)) as store:
        configurations = {
            RESPONSES: Records(RESPONSE_SCHEMA, map(dump_response, store.all_responses())),
            SCORES: Records(SCORE_SCHEMA, map(dump_score, store.all_scores())),
        }
        return Exported(output, write_dataset(output, configurations, lambda counts: Around(_CARD)), ())


def import_answers(folder: Path, workspace: Path) -> Merged:
    """Import the answers and scores of a data set: all of them or, after an error, none.

    Raises:
        InputError: The folder holds no such data set, or a row has the wrong shape.
        TryAgainError: Another process writes to the workspace, or the disk is full.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one that `sinterlm export --format answers` wrote")
    responses, scores = read_shared_responses(folder), read_shared_scores(folder)  # before a workspace is made
    with folder_lock(workspace, workspace), closing(Store(workspace / STORE)) as store:
        return store.merge(responses, scores)


def describe_merged(merged: Merged) -> dict[str, Any]:
    """The figures of an import, for ``--json``."""
    return {**merged._asdict(), "dropped": count_reasons(merged.dropped)}
