"""When a training writes checkpoints, and which one to resume from: the newest that is whole.

Transformers writes a checkpoint file by file and resumes from the highest number; a run that was killed while saving
would meet a half-written folder. A manifest is written last, when all files are on the disk, and records the size and
hash of each. It tells whole checkpoints from unfinished and damaged ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from sinterlm.files import atomic_write, find_damage, record_files, sync_files

MANIFEST = "manifest.json"
NUM_CHECKPOINTS = 10
MIN_STEPS = 10
MAX_STEPS = 500


def steps_between(num_steps: int) -> int:
    """The default number of optimizer steps between two checkpoints, in a training of ``num_steps``.

    A kill loses at most a tenth of the training, or 10 steps. A checkpoint takes about as long as a step, so at least
    10 steps lie between two of them.

    >>> [steps_between(num_steps) for num_steps in (16, 320, 100_000)]
    [10, 32, 500]
    """
    return min(max(math.ceil(num_steps / NUM_CHECKPOINTS), MIN_STEPS), MAX_STEPS)


class RegularCheckpoints(TrainerCallback):
    """Saves a checkpoint every :func:`steps_between`, but none at the end, when the model itself is written."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide in place of Transformers."""
        is_due = state.global_step % steps_between(state.max_steps) == 0
        control.should_save = is_due and state.global_step < state.max_steps


class CheckpointManifest(TrainerCallback):
    """Writes the manifest when all processes have saved their share, and only then removes older checkpoints.

    Args:
        num_kept: The number of newest checkpoints to keep; None keeps all.
    """

    def __init__(self, *, num_kept: int | None) -> None:
        self._num_kept = num_kept

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as whole."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = str(args.output_dir)
            write_manifest(Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            rotate_checkpoints(folder, self._num_kept)


def write_manifest(checkpoint: Path) -> None:
    """Flush every file of the checkpoint to the disk, then record what it holds."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and MANIFEST not in path.name)
    sync_files([*files, checkpoint])
    with atomic_write(checkpoint / MANIFEST) as temporary:
        temporary.write_text(json.dumps(record_files(checkpoint, files)))


def newest_whole_checkpoint(folder: Path, say: Callable[[str], None] = lambda line: None) -> Path | None:
    """The checkpoint of the highest step whose files are all as they were written; None if there is none.

    Args:
        folder: The folder of the checkpoints.
        say: Called with a line about every damaged checkpoint that is skipped. A checkpoint whose writing was
            interrupted has no manifest and is skipped silently.
    """
    checkpoints = {
        int(step): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (step := path.name.rpartition("-")[2]).isdigit()
    }
    for _, checkpoint in sorted(checkpoints.items(), reverse=True):
        if not (checkpoint / MANIFEST).exists():
            continue
        if (damage := _find_damage(checkpoint)) is None:
            return checkpoint
        say(f"{checkpoint} is damaged and left out: {damage}")
    return None


def _find_damage(checkpoint: Path) -> str | None:
    try:
        return find_damage(checkpoint, json.loads((checkpoint / MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return f"{MANIFEST} does not record its files' sizes and hashes"
