"""The metrics that a training has written, step by step."""

from __future__ import annotations

import json
from pathlib import Path

from sinterlm.errors import InputError


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
