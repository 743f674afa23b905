"""Progress of long work for people: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sinterlm.pipeline.progress import Task
from sinterlm.terminal.terminal import Terminal, show_controls

PLAIN_LINE_SECONDS = 10.0


class TerminalReporter:
    """Prints what a run is doing.

    Args:
        console: Where to print. A terminal gets live bars, anything else a line every ten seconds and at the end.
    """

    def __init__(self, console: Terminal) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.say(text)

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Task]:
        """Follow work of ``total`` units, e.g. ``reporter.task("gemma", 2145, "answers")``."""
        if not self.console.is_terminal:
            plain = _PlainTask(self, label, total, unit)
            yield plain
            plain.finish()
            return
        columns = (
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit}  {{task.fields[note]}}", markup=False),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            yield _LiveTask(progress, label, total)


class _LiveTask:
    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress = progress
        self._id = progress.add_task(show_controls(label), total=total, note="")

    def advance(self, count: int, note: str = "") -> None:
        self._progress.update(self._id, advance=count, note=show_controls(note))


class _PlainTask:
    def __init__(self, reporter: TerminalReporter, label: str, total: int, unit: str) -> None:
        self._reporter, self._label, self._total, self._unit = reporter, label, total, unit
        self._done, self._note, self._told = 0, "", -1
        self._started = self._last = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        self._done += count
        self._note = note or self._note
        if time.monotonic() - self._last >= PLAIN_LINE_SECONDS:
            self._line()

    def finish(self) -> None:
        if self._told < self._done:
            self._line()

    def _line(self) -> None:
        self._last, self._told = time.monotonic(), self._done
        seconds = self._last - self._started
        note = f", {self._note}" if self._note else ""
        self._reporter.say(f"  {self._label}: {self._done}/{self._total} {self._unit} in {seconds:.0f} s{note}")
