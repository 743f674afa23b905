"""What a finished training did, kept in its folder: from it, a repeated call knows that nothing is left to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sinterlm.files import atomic_write, require_undamaged_model
from sinterlm.records import Dropped
from sinterlm.training.output_folder import RESULT


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training run did."""

    num_rows: int
    """Rows trained on."""
    dropped: tuple[Dropped, ...]
    num_cut: int
    """Responses that lost their end to ``max_length``."""
    num_cut_prompts: int
    """Prompts that lost their beginning to ``max_length``."""
    num_steps: int
    num_tokens: int
    """Tokens read, prompts and all epochs included."""
    seconds: float


def read_result(output_dir: Path, identity: str) -> TrainingResult | None:
    """The result of a finished run with this identity; None if the folder has none.

    Raises:
        InputError: The folder has one, but a file of the model is damaged.
    """
    try:
        stored = json.loads((output_dir / RESULT).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        require_undamaged_model(output_dir)
        return None
    stored = {name: value for name, value in stored.items() if name not in ("settings", "files")}
    # An earlier version may have counted other things: such a result is another run's.
    if stored.pop("identity", None) != identity or stored.keys() != {own.name for own in fields(TrainingResult)}:
        return None
    require_undamaged_model(output_dir)
    dropped = tuple(Dropped(**drop) for drop in stored.pop("dropped"))
    return TrainingResult(dropped=dropped, **stored)


def write_result(
    output_dir: Path,
    result: TrainingResult,
    *,
    identity: str,
    settings: Mapping[str, object],
    files: Mapping[str, Any],
) -> None:
    """Mark the run as finished. Call it last, when all its files are on the disk.

    Args:
        output_dir: The folder of the run.
        result: What the run did.
        identity: A digest of rows and settings.
        settings: The same, readable.
        files: Size and hash of every file of the run.
    """
    stored = {"identity": identity, **asdict(result), "settings": settings, "files": files}
    with atomic_write(output_dir / RESULT) as temporary:
        temporary.write_text(json.dumps(stored, indent=2))
