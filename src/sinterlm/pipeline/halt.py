"""How a run stops in an orderly way: no new work is started, and what was paid for is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Event
from typing import TypeVar

from sinterlm.errors import SinterError

Item = TypeVar("Item")


class Halt:
    """Tells everything at work to start nothing new; what is in flight is finished and kept.

    Any thread may call it.
    """

    def __init__(self) -> None:
        self._event = Event()
        self._reason: SinterError | None = None

    def stop(self, reason: SinterError | None = None) -> None:
        """Start nothing new from now on.

        Args:
            reason: What to raise once all work has ended; the first one counts.
        """
        self._reason = self._reason or reason
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._event.is_set()

    def until(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, up to the halt."""
        for item in items:
            if self._event.is_set():
                return
            yield item

    def raise_reason(self) -> None:
        """Raise the reason for the halt, if there is one."""
        if self._reason is not None:
            raise self._reason
