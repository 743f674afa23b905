"""The folder of a run, and what in it a run may remove: only what runs have left there.

checkpoints/     while training is not finished; holds a marker that names the run
training.json    once it is finished: beside the model, its card and metrics.jsonl
"""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path

from sinterlm.errors import InputError
from sinterlm.files import atomic_write

RESULT = "training.json"
CHECKPOINTS = "checkpoints"
MARKER = "identity"
ADAPTER = "adapter"
"""What LoRA has trained, before it was merged."""
REFERENCE = "reference"
"""Log-probabilities of the reference, where they are kept beside the model."""

TEMPLATE_DATE = ".template-date"
"""What the chat template took for today at the first command, where it asks."""


def first_date(output_dir: Path) -> str | None:
    """The date that an earlier command's chat template took for today; None where there was none."""
    path = output_dir / TEMPLATE_DATE
    return path.read_text().strip() if path.is_file() else None


def keep_date(output_dir: Path, date: str) -> None:
    """Have later commands take the same date."""
    if first_date(output_dir) != date:
        with atomic_write(output_dir / TEMPLATE_DATE) as path:
            path.write_text(f"{date}\n")


def require_own_or_empty(output_dir: Path) -> None:
    """Refuse a folder that holds what no run has left: it would be overwritten or removed.

    Raises:
        InputError: which folder, and what to do.
    """
    checkpoints = output_dir / CHECKPOINTS
    if (checkpoints / MARKER).exists():
        return
    if _has_files(checkpoints):
        foreign = checkpoints
    elif _has_files(output_dir) and not (output_dir / RESULT).exists():
        foreign = output_dir
    else:
        return
    raise InputError(
        f"{foreign}: holds files that are not of a training run and would be overwritten; "
        "choose another output folder, or move them away"
    )


def claim(output_dir: Path, identity: str) -> None:
    """Make the folder this run's: what one with other rows or settings left must not be resumed, nor taken for this's.

    Args:
        output_dir: its own or an empty folder, see :func:`require_own_or_empty`.
        identity: names rows and settings.
    """
    marker = output_dir / CHECKPOINTS / MARKER
    if not marker.exists() or marker.read_text() != identity:
        _remove_all_but_marker(marker.parent)
        with atomic_write(marker) as temporary:
            temporary.write_text(identity)
    # After the marker, so that at every moment one of the two tells whose the folder is.
    (output_dir / RESULT).unlink(missing_ok=True)


def remove_checkpoints(output_dir: Path) -> None:
    """Remove the checkpoints of a finished run; a kill meanwhile leaves the marker, by which the rest is known."""
    _remove_all_but_marker(output_dir / CHECKPOINTS)
    shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)


def _remove_all_but_marker(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != MARKER:
            path.unlink(missing_ok=True)


def _has_files(folder: Path) -> bool:
    """Whether there is any file at any depth; hidden ones (a lock) and the reference's do not count."""
    entries = (path for path in folder.glob("*") if not path.name.startswith(".") and path.name != REFERENCE)
    return any(path.is_file() for entry in entries for path in chain([entry], entry.rglob("*")))
