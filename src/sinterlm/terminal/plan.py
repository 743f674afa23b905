"""A plan as tables: one by stage and one by model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table

from sinterlm.models.flops import GPUS
from sinterlm.pipeline.forecast import HOURS_NOTE, SAMPLING, ModelPlan, add
from sinterlm.pipeline.plan import Plan
from sinterlm.pipeline.progress import show_bytes
from sinterlm.report.numbers import duration, money
from sinterlm.terminal.terminal import Terminal

UNKNOWN = "unknown"
ASKING: dict[str, tuple[str, Callable[[Any], str]]] = {
    "calls": ("calls", "{:,}".format),
    "prompt_tokens": ("prompt tokens", "{:,}".format),
    "new_tokens": ("new tokens", "{:,}".format),
    "money": ("money", money),
    "seconds": ("time", duration),
}
"""By figure, the column's head and how it is shown."""


def print_plan(plan: Plan, console: Terminal) -> None:
    """Print the plan as tables with their sums."""
    table = Table(title=plan.output, title_justify="left")
    for column in ("stage", ""):
        table.add_column(column, no_wrap=True)
    heads = [head for head, _ in ASKING.values()]
    for column in (*heads, "disk", *(f"{gpu.name} hours" for gpu in GPUS)):
        table.add_column(column, justify="right")
    for stage in plan.stages:
        table.add_row(stage.name, "done" if stage.done else "to do", *_cells(asdict(stage), stage.figures))
    table.add_section()
    table.add_row("left to do", "", *_cells(plan.total, SAMPLING))
    console.print(table)
    for stage in plan.stages:
        if stage.note:
            console.print(f"{stage.name}: {stage.note}")
    console.print(
        f"memory in training: {UNKNOWN if plan.memory_bytes is None else f'about {show_bytes(plan.memory_bytes)}'}"
    )
    if any(model.money != 0 or model.seconds is not None for stage in plan.stages for model in stage.models):
        console.print(_tabulate_models(plan))
    for name, provenance in plan.models.items():
        console.print(f"{name}: {provenance}")
    counts = (f"{part} {UNKNOWN if count is None else format(count, ',')}" for part, count in plan.prompts.items())
    console.print(f"prompts: {', '.join(counts)}")
    for note in (*plan.notes, HOURS_NOTE):
        console.print(f"note: {note}")


def _tabulate_models(plan: Plan) -> Table:
    """What each model is asked in all stages together."""
    table = Table("model", title="left to ask", title_justify="left")
    for head, _ in ASKING.values():
        table.add_column(head, justify="right")
    by_name: dict[str, list[ModelPlan]] = {}
    for stage in plan.stages:
        for model in stage.models:
            by_name.setdefault(model.model, []).append(model)
    for name, parts in by_name.items():
        sums = {figure: add([getattr(part, figure) for part in parts]) for figure in ASKING}
        table.add_row(name, *_show(sums, ASKING))
    return table


def _cells(values: Mapping[str, Any], figures: Collection[str]) -> Iterator[str]:
    """The figures in the order of the columns; empty if the stage has no such figure."""
    yield from _show(values, figures)
    hours = values["gpu_hours"]
    yield _show_one(values["disk_bytes"], show_bytes, "disk_bytes" in figures)
    for gpu in GPUS:
        yield _show_one(None if hours is None else hours[gpu.name], _show_hours, "gpu_hours" in figures)


def _show(values: Mapping[str, Any], figures: Collection[str]) -> Iterator[str]:
    for name, (_, show) in ASKING.items():
        yield _show_one(values[name], show, name in figures)


def _show_one(value: Any, show: Callable[[Any], str], is_figure: bool) -> str:
    return (UNKNOWN if is_figure else "") if value is None else show(value)


def _show_hours(hours: float) -> str:
    """Two significant digits: the estimate is no better than that."""
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"
