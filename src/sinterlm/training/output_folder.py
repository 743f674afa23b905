"""The folder of a run. A run removes only what runs have left there.

checkpoints/          until training is finished; holds a marker that names the run and its settings
checkpoints-aside/    those of other settings, until training is finished
training.json         once training is finished: beside the model, its card and metrics.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from sinterlm.errors import InputError
from sinterlm.files import FINISHED, atomic_write, move_in, remove
from sinterlm.models.files import DESCRIPTION_FILES

RESULT = FINISHED
CHECKPOINTS = "checkpoints"
ASIDE = "checkpoints-aside"
MARKER = "identity"
STAGED = ".unfinished-model"
"""The model while it is being written."""
ADAPTER = "adapter"
"""The adapter that LoRA trained, before it is merged."""
REFERENCE = "reference"
"""Log-probabilities of the reference, if they are kept beside the model."""
_DIGEST = 12
"""Characters of a hash that suffice to show that it differs."""


class Claim(NamedTuple):
    """The run that a folder belongs to."""

    identity: str
    """Names rows and settings."""
    settings: Mapping[str, Any] | None = None
    """The same, readable, by name; None if an earlier version wrote the folder without them."""


def require_own_or_empty(output_dir: Path) -> None:
    """Refuse a folder with files that no run has left: they would be overwritten or removed.

    Raises:
        InputError: Which folder, and what to do.
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


def claim(output_dir: Path, own: Claim, say: Callable[[str], None]) -> None:
    """Make the folder this run's, so that it resumes nothing from a run with other rows or settings.

    One set of checkpoints of other settings is set aside until a training is finished here: a run that returns to
    those settings resumes from them.

    Args:
        output_dir: An empty folder, or one that a run left, see :func:`require_own_or_empty`.
        own: The run.
        say: Called with what differs, and with what happens to the folder's files before it happens.
    """
    checkpoints, aside = output_dir / CHECKPOINTS, output_dir / ASIDE
    finished = _read_claim(output_dir / RESULT)
    if finished:
        say(
            f"{output_dir} holds a model that was trained with {_describe_changes(finished, own)}; it is replaced when "
            "this training is finished"
        )
    remove(output_dir / STAGED)
    found = _read_claim(checkpoints / MARKER)
    if found is None or found.identity != own.identity:
        step = _newest_step(checkpoints)
        if found and step:
            say(
                f"{checkpoints} is of a training with {_describe_changes(found, own)}, interrupted after step {step}; "
                f"it becomes {aside} and is removed when this training is finished. With those settings again it is "
                "resumed from there"
            )
        _change_checkpoints(checkpoints, aside, own.identity, keep=bool(found and step))
        with atomic_write(checkpoints / MARKER) as temporary:
            temporary.write_text(json.dumps(own._asdict()))
    # Removed after the marker is written, so that one of the two always tells which run the folder belongs to.
    (output_dir / RESULT).unlink(missing_ok=True)


def _change_checkpoints(checkpoints: Path, aside: Path, identity: str, *, keep: bool) -> None:
    """Set checkpoints aside, or remove them; restore those set aside earlier if they are this run's."""
    before = _read_claim(aside / MARKER)
    is_return = before is not None and before.identity == identity
    leaving = checkpoints.with_name(f".{CHECKPOINTS}.leaving")
    remove(leaving)
    if keep:
        checkpoints.rename(leaving)
    else:
        _remove_all_but_marker(checkpoints)
    if is_return:
        remove(checkpoints)
        aside.rename(checkpoints)
    if keep:
        remove(aside)
        leaving.rename(aside)


def _read_claim(path: Path) -> Claim | None:
    """The run that a marker or a result, even a damaged one, names; None if the file does not exist."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError:
        return None
    try:
        stored = json.loads(text)
        return Claim(str(stored["identity"]), stored.get("settings"))
    except (ValueError, KeyError, TypeError):
        return Claim(text)  # the marker of an earlier version is the identity alone


def _describe_changes(found: Claim, own: Claim) -> str:
    """What differs, e.g. ``other settings (per_device_train_batch_size 2 -> 4)``."""
    if found.identity == own.identity:
        return "the same settings, by an earlier version of Sinter or not to the end"
    before, now = found.settings, own.settings or {}
    if before is None:
        return "other rows or settings"
    changes = [
        f"{name} {_value(before, name)} -> {_value(now, name)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    return f"other settings ({', '.join(changes)})" if changes else "the same settings, by another version of Sinter"


def _value(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "its default"
    value = str(settings[name])
    return value[:_DIGEST] if len(value) == 64 and value.isalnum() else value


def _newest_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint, whole or not; 0 if none exists."""
    steps = [path.name.rpartition("-")[2] for path in checkpoints.glob("checkpoint-*")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def publish(output_dir: Path) -> list[Path]:
    """Move the staged model into the folder, replacing any earlier one; returns the model's files."""
    staged = output_dir / STAGED
    for pattern in (*DESCRIPTION_FILES, "*.safetensors", "*.safetensors.index.json", ADAPTER):
        for path in output_dir.glob(pattern):
            if not (staged / path.name).exists():
                remove(path)
    return move_in(staged, output_dir)


def remove_checkpoints(output_dir: Path) -> None:
    """Remove the checkpoints of a finished run, the marker last: after a kill it still tells that the rest is ours."""
    _remove_all_but_marker(output_dir / CHECKPOINTS)
    remove(output_dir / CHECKPOINTS)
    remove(output_dir / ASIDE)


def _remove_all_but_marker(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.name != MARKER:
            remove(path)


def _has_files(folder: Path) -> bool:
    """Whether the folder has a file at any depth; hidden ones (locks, killed writes) and runs' own do not count."""
    own = [REFERENCE, *([ASIDE] if (folder / ASIDE / MARKER).exists() else [])]
    entries = (path for path in folder.glob("*") if path.name not in own)
    files = (path for entry in entries for path in chain([entry], entry.rglob("*")) if path.is_file())
    return any(all(not part.startswith(".") for part in path.relative_to(folder).parts) for path in files)
