"""The metrics of an optimizer step, and the file that holds one line for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sinterlm.files import atomic_write, sync_files


class StepMetrics:
    """Sums the metrics of a step's micro-batches over all devices, until they are logged."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_rows: Tensor | int = 0
        self._num_tokens = 0
        self._started = 0.0

    def begin(self, num_tokens: int) -> None:
        """Begin a step of ``num_tokens`` tokens over all devices."""
        self._started = self._started or perf_counter()
        self._num_tokens += num_tokens

    def add(self, metrics: Mapping[str, Tensor], *, counted: Tensor) -> None:
        """Add the per-row metrics, (B,) each, of the rows that are ``counted`` (B,); they stay on the device."""
        self._num_rows = self._num_rows + counted.sum()
        for name, values in metrics.items():
            total = (values * counted).sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the rows since the last call, and the speed; resets the sums."""
        seconds = perf_counter() - self._started
        logged = {"step_seconds": seconds, "tokens_per_second": self._num_tokens / seconds}
        if self._sums:
            num_rows = torch.as_tensor(self._num_rows, dtype=torch.float32, device=accelerator.device)
            *sums, total_rows = accelerator.reduce(torch.stack([*self._sums.values(), num_rows]), "sum").tolist()
            logged |= {name: total / max(total_rows, 1) for name, total in zip(self._sums, sums, strict=True)}
        self._clear()
        return logged


class MetricsFile(TrainerCallback):
    """Appends each step's metrics to a JSON Lines file; a resumed run first restores those in its checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the lines up to the checkpoint that training starts from."""
        if state.is_world_process_zero:
            logged = [entry for entry in state.log_history if "loss" in entry]
            with atomic_write(self._path) as temporary:
                temporary.write_text("".join(_line(entry["step"], entry) for entry in logged))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a training step's line."""
        if state.is_world_process_zero and logs and "loss" in logs:
            with self._path.open("a") as file:
                file.write(_line(state.global_step, logs))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Flush the lines up to a checkpoint to the disk, before the checkpoint counts as whole."""
        if state.is_world_process_zero:
            sync_files([self._path])


def _line(step: float, logs: Mapping[str, float]) -> str:
    return json.dumps({"step": step} | {name: value for name, value in logs.items() if name != "step"}) + "\n"
