"""What a run has done so far, as a table."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from sinterlm.pipeline.progress import show_counts
from sinterlm.terminal.costs import print_failed, print_notes, print_spent
from sinterlm.terminal.terminal import Terminal


def print_status(status: dict[str, Any], console: Terminal) -> None:
    """Print what :func:`~sinterlm.pipeline.status.status_of` has found as a table."""
    table = Table("stage", "", "seconds", "memory", "counts", title=status["output"], title_justify="left")
    for stage in status["stages"]:
        counts = show_counts(stage.get("counts", {}))
        seconds = f"{stage['seconds']:.1f}" if "seconds" in stage else ""
        memory = f"{stage['peak_memory_bytes'] / 1e9:.1f} GB" if "peak_memory_bytes" in stage else ""
        table.add_row(stage["name"], stage["state"], seconds, memory, counts)
    console.print(table)
    for stage_name, reasons in status["dropped"].items():
        for reason, count in reasons.items():
            console.print(f"{stage_name} dropped {count}: {reason}")
    print_spent(status["spent"], console)
    print_failed(status["failed"], console)
    print_notes(status["notes"], console)
