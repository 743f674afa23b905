"""Who may send the next request, and to which server."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from sinterlm.endpoint.host import Host
from sinterlm.errors import SinterError


class _Turn(NamedTuple):
    """A request that waits."""

    future: asyncio.Future[tuple[Host, int]]
    tokens: float
    avoid: Host | None


class Turns:
    """Requests get their turns in the order in which they ask for them, at the server that has the most room.

    Args:
        hosts: The servers.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = hosts
        self._waiting: deque[_Turn] = deque()
        self._alarm: asyncio.TimerHandle | None = None

    async def take(self, tokens: float, avoid: Host | None) -> tuple[Host, int]:
        """Wait until a request may be sent. Returns the server, and the request's number there.

        Args:
            tokens: About how many tokens the request takes.
            avoid: The server that failed it last, which gets it again only if no other has room.

        Raises:
            SinterError: No server is worth waiting for.
        """
        turn = _Turn(asyncio.get_running_loop().create_future(), tokens, avoid)
        self._waiting.append(turn)
        self.give()
        try:
            return await turn.future
        except asyncio.CancelledError:
            if turn.future.done() and not turn.future.cancelled() and not turn.future.exception():
                host, number = turn.future.result()
                host.give_up(number)
            raise

    def give(self) -> None:
        """Give turns to those who wait, as far as there is room. Called whenever a request ends."""
        while self._waiting:
            future, tokens, avoid = self._waiting[0]
            if future.done():  # cancelled
                self._waiting.popleft()
                continue
            try:
                host, seconds = self._find(tokens, avoid)
            except SinterError as error:
                self._waiting.popleft()
                future.set_exception(error)
                continue
            if host is None:
                self._wake_in(seconds)
                return
            self._waiting.popleft()
            future.set_result((host, host.start(tokens)))

    def _find(self, tokens: float, avoid: Host | None) -> tuple[Host | None, float]:
        """The server that a request goes to; or None, and the seconds until one may be free.

        Raises:
            SinterError: No server is worth waiting for.
        """
        found, soonest = None, math.inf
        for host in self._hosts:
            wait = math.inf if host.error else host.wait(tokens)
            soonest = min(soonest, wait)
            if wait <= 0 and (found is None or _preference(host, avoid) > _preference(found, avoid)):
                found = host
        if found is None:
            losses = [loss for host in self._hosts if (loss := host.find_loss())]
            if len(losses) == len(self._hosts):
                raise losses[-1]
        return found, soonest

    def _wake_in(self, seconds: float) -> None:
        """Give turns after so many seconds, if no request ends before."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_later(seconds, self.give) if seconds < math.inf else None


def _preference(host: Host, avoid: Host | None) -> tuple[bool, int]:
    return host is not avoid, host.limiter.room
