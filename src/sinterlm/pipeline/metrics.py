"""Reads the metrics that a training writes, step by step."""

from __future__ import annotations

import json
from pathlib import Path

from sinterlm.errors import InputError


def read_metrics(model: Path) -> list[dict[str, float | None]]:
    """The metrics of a model, one record per optimizer step; empty if there are none.

    A half-written last line is ignored: the training may still run or have been killed.

    Raises:
        InputError: The file is damaged.
    """
    path = model / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    try:
        return [dict(json.loads(line)) for line in lines if line.endswith(b"\n")]
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: damaged ({error}). Rerun the command that trains this model; if the model is finished, remove "
            "its folder first"
        ) from error
