"""Event loops without sockets, which the sandbox does not have."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Doorbell:
    """The two ends by which an event loop wakes itself; there are no sockets here."""

    def __init__(self) -> None:
        self._number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Its descriptor."""
        return self._number

    def send(self, _: bytes) -> int:
        """Ring."""
        os.eventfd_write(self._number, 1)
        return 1

    def recv(self, _: int) -> bytes:
        """Hear it, once."""
        return b"\0" if os.eventfd_read(self._number) else b""

    def close(self) -> None:
        """Close it."""
        if self._number >= 0:
            os.close(self._number)
        self._number = -1


def allow_loops() -> None:
    """Let event loops run without sockets."""

    def make(loop: Any) -> None:
        loop._ssock = loop._csock = Doorbell()
        loop._internal_fds += 1
        loop._add_reader(loop._ssock.fileno(), loop._read_from_self)

    __import__("asyncio.selector_events").selector_events.BaseSelectorEventLoop._make_self_pipe = make
