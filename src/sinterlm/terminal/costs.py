"""What was spent, failed and noticed, as tables and lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from sinterlm.report.numbers import duration, money
from sinterlm.terminal.terminal import Terminal

MAX_NOTES = 20
"""The most notes printed; ``--json`` and the report have all."""


def print_spent(spent: Mapping[str, Any], console: Terminal, title: str = "spent") -> None:
    """Print what ``describe_ledger`` returned as a table; nothing for a run without a ledger."""
    if not spent.get("models"):
        return
    table = Table("stage", "model", title=title, title_justify="left")
    for column in ("answers", "requests", "read", "cached", "written", "money", "time", "failed"):
        table.add_column(column, justify="right")
    for cost in spent["models"]:
        table.add_row(cost["stage"], cost["model"], *_cells(cost))
    table.add_section()
    table.add_row("total", "", *_cells(spent["total"]))
    console.print(table)


def print_failed(failed: Iterable[Mapping[str, Any]], console: Terminal) -> None:
    """Print the failed requests of each kind with their example."""
    for kind in failed:
        example = kind["example"]
        console.print(
            f"{kind['stage']}, {kind['model']}: {kind['number']:,} {kind['kind']}, e.g. prompt "
            f"{example['prompt_id']}, sample {example['index']}: {example['detail']}"
        )


def print_notes(notes: Sequence[Mapping[str, Any]], console: Terminal) -> None:
    """Print the last notes."""
    if len(notes) > MAX_NOTES:
        console.print(f"{len(notes) - MAX_NOTES:,} earlier notes are left out")
    for note in notes[-MAX_NOTES:]:
        console.print(f"{note['stage']}, {note['model']}: {note['text']}")


def _cells(cost: Mapping[str, Any]) -> Iterator[str]:
    for figure in ("answers", "requests", "prompt_tokens", "cached_tokens", "new_tokens"):
        yield f"{cost[figure]:,}"
    yield "unknown" if cost["money"] is None else money(cost["money"])
    yield duration(cost["seconds"])
    yield f"{cost['failed']:,}" if cost["failed"] else ""
