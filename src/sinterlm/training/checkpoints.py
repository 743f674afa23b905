"""When a training writes checkpoints, and which one to resume from: the newest that is whole.

Transformers writes a checkpoint file by file and resumes from the highest number; a run that was killed while saving
would meet a half-written folder. A manifest written last, with every file's size, tells the whole ones.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from sinterlm.files import atomic_write

MANIFEST = "manifest.json"
NUM_CHECKPOINTS = 10
MIN_STEPS = 10
MAX_STEPS = 500


def steps_between(num_steps: int) -> int:
    """Optimizer steps from one checkpoint to the next, in a training of so many, unless told.

    What a kill costs is a tenth of the training; what checkpoints cost is bounded by their number, and by that of the
    steps between, since one takes about as long as a step.

    >>> [steps_between(num_steps) for num_steps in (16, 320, 100_000)]
    [10, 32, 500]
    """
    return min(max(math.ceil(num_steps / NUM_CHECKPOINTS), MIN_STEPS), MAX_STEPS)


class RegularCheckpoints(TrainerCallback):
    """Has a checkpoint written every :func:`steps_between`; none at the end, when the model itself is written."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide in place of Transformers."""
        is_due = state.global_step % steps_between(state.max_steps) == 0
        control.should_save = is_due and state.global_step < state.max_steps


class CheckpointManifest(TrainerCallback):
    """Writes the manifest when all processes have saved their share, and only then removes older checkpoints.

    Args:
        num_kept: checkpoints that stay; None keeps all.
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
    """Record the size of every file of the checkpoint."""
    with atomic_write(checkpoint / MANIFEST) as temporary:
        temporary.write_text(json.dumps(_sizes(checkpoint)))


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step whose files are all there at their full size; None where there is none."""
    checkpoints = {
        int(step): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (step := path.name.rpartition("-")[2]).isdigit()
    }
    return next((checkpoints[step] for step in sorted(checkpoints, reverse=True) if _is_whole(checkpoints[step])), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    found = _sizes(checkpoint)
    return all(found.get(name) == size for name, size in expected.items())


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of every file, by path within the checkpoint; the manifest's own are not counted."""
    return {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and MANIFEST not in path.name
    }
