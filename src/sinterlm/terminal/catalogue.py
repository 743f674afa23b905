"""What a recipe can name, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sinterlm.recipe.catalogue import LEGENDS
from sinterlm.terminal.terminal import Terminal


def print_catalogue(what: str, entries: Sequence[Mapping[str, Any]], console: Terminal) -> None:
    """Print the entries of one list of :func:`~sinterlm.recipe.catalogue.catalogue`."""
    table = Table("name", "what it is", title=what, title_justify="left", caption=LEGENDS.get(what), show_lines=True)
    table.caption_justify = "left"
    if any("paper" in entry for entry in entries):
        table.add_column("source")
    for entry in entries:
        package = f"(from the installed package {entry['package']})" if "package" in entry else None
        lines = [entry["description"], entry.get("formula"), package]
        source = [entry["paper"].replace(", ", "\n")] if "paper" in entry else []
        table.add_row(entry["name"], "\n".join(filter(None, lines)), *source)
    console.print(table)
