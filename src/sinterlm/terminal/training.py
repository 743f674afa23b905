"""The end of a training on rows made elsewhere: what was trained, and what was dropped or cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sinterlm.pipeline.stage import count_reasons
from sinterlm.terminal.terminal import Terminal

if TYPE_CHECKING:
    from sinterlm.training.result import TrainingResult


def print_training(result: TrainingResult, output: Path, console: Terminal) -> None:
    """Print what a training did."""
    for reason, count in count_reasons(result.dropped).items():
        console.say(f"dropped {count}: {reason}")
    if result.num_cut:
        console.say(f"{result.num_cut} responses were cut at max_length and so lost their end-of-turn")
    if result.num_cut_prompts:
        console.say(f"{result.num_cut_prompts} prompts were cut to max_length and lost their beginning")
    console.say(f"{output}: {result.num_rows} rows, {result.num_steps} steps, {result.seconds:.0f} s")
