"""Prints what an export has written and what an import has added."""

from __future__ import annotations

from pathlib import Path

from sinterlm.pipeline.export import Exported
from sinterlm.pipeline.stage import count_reasons
from sinterlm.store import Merged
from sinterlm.terminal.terminal import Terminal


def print_exported(exported: Exported, console: Terminal) -> None:
    """Say what was written, what was left out, and how to load it."""
    lines = [f"{name}: {count} rows" for name, count in exported.counts.items()]
    lines += [f"dropped {count}: {reason}" for reason, count in count_reasons(exported.dropped).items()]
    name = next(iter(exported.counts))
    lines.append(f'in {exported.folder}; to load: datasets.load_dataset("{exported.folder}", "{name}")')
    console.say("\n".join(lines))


def print_merged(merged: Merged, workspace: Path, console: Terminal) -> None:
    """Say what was imported and what was not."""
    lines = [
        f"{workspace}: {merged.new_responses} answers and {merged.new_scores} scores are new, "
        f"{merged.known_responses} and {merged.known_scores} were already there",
        *(f"dropped {count}: {reason}" for reason, count in count_reasons(merged.dropped).items()),
    ]
    console.say("\n".join(lines))
