"""Progress of long work for people: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

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
        self._lock = Lock()
        self._bars: Progress | None = None
        """The bars of all tasks at work."""
        self._num_tasks = 0

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
        with self._open_bars() as bars:
            yield _LiveTask(bars, label, total, unit)

    @contextmanager
    def _open_bars(self) -> Iterator[Progress]:
        """The bars, which tasks of several threads share: a terminal has one live display."""
        with self._lock:
            if self._bars is None:
                self._bars = Progress(*_columns(), console=self.console)
                self._bars.start()
            bars = self._bars
            self._num_tasks += 1
        try:
            yield bars
        finally:
            with self._lock:
                self._num_tasks -= 1
                if not self._num_tasks:
                    bars.stop()
                    self._bars = None


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}  {task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    )


class _LiveTask:
    def __init__(self, progress: Progress, label: str, total: int, unit: str) -> None:
        self._progress = progress
        self._id = progress.add_task(show_controls(label), total=total, unit=unit, note="")

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
