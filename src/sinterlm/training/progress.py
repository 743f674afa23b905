"""Telling a caller how far a training is, in place of Transformers' progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

ReportProgress = Callable[[int, int, float], None]
"""Called after every optimizer step with the step, the number of steps and the loss."""


class ProgressReport(TrainerCallback):
    """Passes every step to a function."""

    def __init__(self, report: ReportProgress) -> None:
        self._report = report

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report a training step."""
        if state.is_world_process_zero and logs and "loss" in logs:
            self._report(state.global_step, state.max_steps, logs["loss"])
