"""The date that a chat template uses as today's: the same in every command that resumes a training."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

from sinterlm.files import atomic_write

TEMPLATE_DATE = ".template-date"
"""The file with the date of the first command, if the template asks for one."""


def choose_date(given: str | None, output_dir: Path, say: Callable[[str], None]) -> str:
    """The given date, or that of the first command in this folder, or today's; ``say`` gets a line about it."""
    first = first_date(output_dir)
    chosen = given or first or date.today().isoformat()
    before = f"; it was {first} before, so training begins anew" if first and given and given != first else ""
    say(f"the chat template uses {chosen} as today's date (template_date){before}")
    return chosen


def first_date(output_dir: Path) -> str | None:
    """The date that the first command's chat template used as today's; None if no command kept one."""
    path = output_dir / TEMPLATE_DATE
    return path.read_text().strip() if path.is_file() else None


def keep_date(output_dir: Path, date: str) -> None:
    """Keep the date for later commands."""
    if first_date(output_dir) != date:
        with atomic_write(output_dir / TEMPLATE_DATE) as path:
            path.write_text(f"{date}\n")
