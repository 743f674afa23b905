"""A plan as a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table

from sinterlm.models.flops import GPUS
from sinterlm.pipeline.forecast import HOURS_NOTE, SAMPLING
from sinterlm.pipeline.plan import Plan
from sinterlm.pipeline.progress import show_bytes
from sinterlm.terminal.terminal import Terminal

UNKNOWN = "unknown"


def print_plan(plan: Plan, console: Terminal) -> None:
    """Print the plan as a table with its sums."""
    table = Table("stage", "", title=plan.output, title_justify="left")
    for column in ("calls", "prompt tokens", "new tokens", "disk", *(f"{gpu.name} hours" for gpu in GPUS)):
        table.add_column(column, justify="right")
    table.add_column("")
    for stage in plan.stages:
        table.add_row(
            stage.name,
            "done" if stage.done else "to do",
            *_cells(asdict(stage), stage.figures),
            stage.note,
        )
    memory = UNKNOWN if plan.memory_bytes is None else f"about {show_bytes(plan.memory_bytes)}"
    table.add_section()
    table.add_row(
        "left to do",
        "",
        *_cells(plan.to_json()["total"], SAMPLING),
        f"money: {plan.money:g}; memory in training: {memory}",
    )
    console.print(table)
    for name, provenance in plan.models.items():
        console.print(f"{name}: {provenance}")
    counts = (f"{part} {UNKNOWN if count is None else format(count, ',')}" for part, count in plan.prompts.items())
    console.print(f"prompts: {', '.join(counts)}")
    for note in (*plan.notes, HOURS_NOTE):
        console.print(f"note: {note}")


def _cells(values: Mapping[str, Any], figures: Collection[str]) -> Iterator[str]:
    """The figures in the order of the columns; empty if the stage has no such figure."""
    hours = values["gpu_hours"]
    columns: list[tuple[str, Any, Callable[[Any], str]]] = [
        *((name, values[name], "{:,}".format) for name in ("calls", "prompt_tokens", "new_tokens")),
        ("disk_bytes", values["disk_bytes"], show_bytes),
        *(("gpu_hours", None if hours is None else hours[gpu.name], _show_hours) for gpu in GPUS),
    ]
    for name, value, show in columns:
        if value is None:
            yield UNKNOWN if name in figures else ""
        else:
            yield show(value)


def _show_hours(hours: float) -> str:
    """Two significant digits: the estimate is no better than that."""
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"
