"""What ``test_distributed.py`` trains in two processes: ``LAUNCHER -m tests.processes TASK MODEL FOLDER``.

The same trainings also run in its own process, with twice the rows per device: both must take the same steps.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import PreTrainedModel

from sinterlm import cli
from sinterlm.errors import SinterError
from sinterlm.pipeline.launch import leave_launch
from sinterlm.records import Message, RowResponse, TrainingRow
from sinterlm.training.checkpoints import CheckpointManifest
from sinterlm.training.train import train

NUM_ROWS = 13
"""Odd, so it is not divisible by the number of processes or of rows per device."""

GLOBAL_BATCH = 8

DEVICE = "ACCELERATE_TORCH_DEVICE"
"""The environment variable from which Accelerate reads which device to use."""


def rows(objective: str) -> list[TrainingRow]:
    """Rows of different lengths and weights."""
    return [_row(objective, index) for index in range(NUM_ROWS)]


def _row(objective: str, index: int) -> TrainingRow:
    prompt = (Message("user", f"What is the opposite of {'hot ' * (index % 5)}{index}?"),)
    source = RowResponse(f"The source says {index * 7}.", "chosen_source", source="gemma")
    responses: tuple[RowResponse, ...] = (
        source,
        RowResponse(f"cold {'five ' * (index % 4)}", "chosen_target", source="target"),
        RowResponse(f"capital of {index}", "rejected", source="target"),
    )
    if objective == "sft":
        responses = (RowResponse(source.content, source="gemma"),)
    return TrainingRow(f"p{index}", prompt, responses, weight=0.5 + index % 3)


TRAININGS: Mapping[str, Mapping[str, Any]] = {
    "sft": {"objective": "sft"},
    "wrpo": {"objective": "wrpo", "gradient_accumulation_steps": 2, "chunk_tokens": 150},
    "grouped": {"objective": "wrpo", "train_sampling_strategy": "group_by_length", "interrupted_after": 3},
    "interrupted": {"objective": "wrpo", "interrupted_after": 3},
    "lora": {"objective": "wrpo", "lora_r": 4, "interrupted_after": 3},
}
"""By name, the settings that differ. Four steps of 8 and 5 rows; step 3 is within the second epoch."""


def run(
    name: str,
    model: Path,
    folder: Path,
    *,
    callback: type[CheckpointManifest] = CheckpointManifest,
    may_interrupt: bool = True,
    **changes: Any,
) -> None:
    """Train ``folder / name`` in all running processes, with ``changes`` to the arguments."""
    settings = dict(TRAININGS[name])
    objective, interrupted_after = settings.pop("objective"), settings.pop("interrupted_after", None)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows_at_once = GLOBAL_BATCH // num_processes // settings.get("gradient_accumulation_steps", 1)
    arguments = {
        "use_cpu": DEVICE not in os.environ,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": rows_at_once,
        "save_steps": 1,
        **settings,
        **changes,
    }

    def do() -> None:
        hyperparameters = {"beta": 0.3, "alpha": 0.5} if objective == "wrpo" else {}
        train(
            rows(objective),
            model=str(model),
            objective=objective,
            output_dir=folder / name,
            hyperparameters=hyperparameters,
            arguments=arguments,
        )

    with patch("sinterlm.training.train.CheckpointManifest", callback):
        if interrupted_after and may_interrupt:
            with _interrupted_after(interrupted_after):
                do()
        do()


@contextmanager
def _interrupted_after(step: int) -> Iterator[None]:
    """Inside it, training ends in every process once the line and checkpoint of ``step`` are written."""

    class Interrupting(CheckpointManifest):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step + 1:
                raise KeyboardInterrupt

    try:
        with patch("sinterlm.training.train.CheckpointManifest", Interrupting):
            yield
    except KeyboardInterrupt:
        return
    raise AssertionError(f"there was no step {step + 1}")


def keep_gradients(folder: Path, name: str = "gradients") -> type[CheckpointManifest]:
    """A callback that keeps every process's gradients, right before each optimizer step."""

    class Keeping(CheckpointManifest):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gradients = {name: parameter.grad for name, parameter in kwargs["model"].named_parameters()}
            torch.save(gradients, folder / f"{name}-{state.global_step + 1}-{args.process_index}.pt")

    return Keeping


class BreaksTheLast(CheckpointManifest):
    """Makes only the last process's model give losses that are not finite, in step 2."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: PreTrainedModel = kwargs["model"]
        if state.global_step == 1 and args.process_index == args.world_size - 1:
            torch.nn.init.constant_(model.get_parameter("model.norm.weight"), math.nan)


def data_parallel(model: Path, folder: Path) -> None:
    """All trainings, and one whose loss is not finite in one process."""
    for name in TRAININGS:
        run(name, model, folder, callback=keep_gradients(folder) if name == "wrpo" else CheckpointManifest)
    try:
        run("sft", model, folder / "broken", callback=BreaksTheLast)
    except SinterError as error:
        (folder / f"error-{PartialState().process_index}.txt").write_text(str(error))


def take_30_steps(model: Path, folder: Path) -> None:
    """A training long enough to be killed, with a checkpoint after every second step."""
    torch.set_num_threads(1)
    run("wrpo", model, folder, may_interrupt=False, num_train_epochs=15, save_steps=2)


def sharded(model: Path, folder: Path) -> None:
    """Trainings whose weights are sharded across the processes."""
    for name in ("sft", "wrpo", "interrupted", "lora"):
        run(name, model, folder)
    (folder / f"way-{PartialState().process_index}.txt").write_text(PartialState().distributed_type.value)


def pretend_to_have_gpus() -> None:
    """Let Accelerate shard on a CPU: it offers that only with an accelerator, but does not need one."""
    os.environ[DEVICE] = "cpu"
    torch.accelerator.is_available = lambda: True
    PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)


def note_threads(folder: Path) -> None:
    """Write the names of the running threads."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    (folder / f"threads-{os.environ['RANK']}.txt").write_text("".join(names))


def command(folder: Path, *arguments: str) -> NoReturn:
    """The command, and the threads that it leaves running."""
    atexit.register(note_threads, folder)
    sys.argv = ["sinterlm", *arguments]
    cli.main()


if __name__ == "__main__":
    task, *paths = sys.argv[1:]
    if task == "command":
        command(Path(paths[0]), *paths[1:])
    start, output = map(Path, paths)
    if task == "sharded":
        pretend_to_have_gpus()
        sharded(start, output)
    else:
        data_parallel(start, output)
    leave_launch()
    note_threads(output)
