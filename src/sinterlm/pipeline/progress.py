"""How a run reports its progress. The listener decides how it looks; the one here ignores it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol


class Task(Protocol):
    """A piece of work of known size."""

    def advance(self, count: int, note: str = "") -> None:
        """Report ``count`` more units as done; ``note``, e.g. a rate or a loss, is shown beside them."""
        ...


class Reporter(Protocol):
    """Receives a run's progress. ``sinterlm.terminal`` draws it; a notebook or a service may do something else."""

    def say(self, text: str) -> None:
        """Show one line of text."""
        ...

    def task(self, label: str, total: int, unit: str) -> AbstractContextManager[Task]:
        """Follow work of ``total`` units, e.g. ``reporter.task("gemma", 2145, "answers")``."""
        ...


class SilentReporter:
    """A reporter that shows nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Task]:
        """A task that shows nothing."""
        yield _SilentTask()


class _SilentTask:
    def advance(self, count: int, note: str = "") -> None:
        pass


@contextmanager
def follow_training(reporter: Reporter, label: str) -> Iterator[Callable[[int, int, float], None]]:
    """Follow a training's optimizer steps.

    Yields:
        A function to call at every step with its number, the number of all steps, and the loss.
    """
    from accelerate.utils import release_memory

    with ExitStack() as stack:
        task: Task | None = None
        done = 0

        def report(step: int, num_steps: int, loss: float) -> None:
            nonlocal task, done
            task = task or stack.enter_context(reporter.task(label, num_steps, "steps"))
            task.advance(step - done, f"loss {loss:.4f}")
            done = step

        yield report
    release_memory()  # reference cycles keep a finished trainer's weights and optimizer states alive


def show_counts(counts: Mapping[str, float]) -> str:
    """A stage's figures on one line; whole numbers in full.

    >>> show_counts({"tokens": 1234567, "mean score": 0.3289})
    'tokens: 1234567, mean score: 0.3289'
    """
    return ", ".join(f"{name}: {count:g}" if count % 1 else f"{name}: {count:.0f}" for name, count in counts.items())


def show_bytes(count: int) -> str:
    """A size in decimal units.

    >>> show_bytes(999), show_bytes(1_234_567), show_bytes(5_380_061_184_000)
    ('999 bytes', '1.2 MB', '5.4 TB')
    """
    if count < 1000:
        return f"{count:,} byte{'' if count == 1 else 's'}"
    size, units = count / 1000, iter(("kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    while size >= 1000 and (larger := next(units, None)):
        size, unit = size / 1000, larger
    return f"{size:,.1f} {unit}"
