"""How many requests a server may get at once, how often, and whether it works at all: three pure state machines.

They know nothing of sockets or event loops. A clock is passed in, so that tests need no waiting; it must never jump
(``time.monotonic``).

    Limiter  requests at once, found out by asking
    Rate     requests or tokens a minute, as a recipe says
    Breaker  gives a server that does not work time to come back
"""

from __future__ import annotations

import math
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since any fixed time."""

FIRST_LIMIT = 8
SECOND_LIMIT = 4
"""The limit after a single request was refused: the reason is then not how many there are."""
MAX_LIMIT = 512
"""Where growth ends. Servers that never refuse a request queue it, which makes replies late and no more of them."""
CUT = 0.75
"""What is left of the limit after a burst of refusals."""
NEAR = 0.9
"""Growth is slow from this part of the ceiling on."""
FORGET = 1.25
"""The ceiling is forgotten at this multiple of it, because the server takes more than it did."""
SLOW_GROWTH = 0.01
"""Growth by one reply near the ceiling: one request more after a hundred replies, so few requests are refused."""
FIRST_COOL_DOWN_SECONDS = 0.25
MAX_COOL_DOWN_SECONDS = 30.0
"""No request starts for so long after a second burst of refusals without a reply since the first; then for twice as
long, and so on."""
FAILURE_DEBT = 10
"""Replies that must come after a server error before the limit grows: it stays if more than one in ten fails."""


class Limiter:
    """How many requests a server may get at once.

    The limit grows by one with every reply as long as it is used up, so it doubles in the time of one request. A burst
    of 429s cuts it by a quarter, once: refusals of requests that were sent before the cut belong to the same burst. The
    limit at which requests were refused is remembered as the ceiling, and growth near it is slow. No request starts
    for as long as the server asks, or for a while if cutting did not help. Server errors stop growth and cut nothing.

    Args:
        clock: Says the time in seconds.
        fixed: A limit that never changes; None finds it out.
    """

    def __init__(self, clock: Clock, fixed: int | None = None) -> None:
        self._clock = clock
        self._is_fixed = fixed is not None
        self._limit = float(FIRST_LIMIT if fixed is None else fixed)
        self.in_flight = 0
        self.most = 0
        """The most requests that were in flight at once."""
        self.ceiling = math.inf
        """The limit at which requests were refused last."""
        self.num_bursts = 0
        """Bursts of refusals."""
        self._cool_down = 0.0
        self._paused_until = -math.inf
        self._num_started = 0
        self._cut_at = 0
        """How many requests were started before the last cut."""
        self._full_at = 0
        """The last request that used up the limit."""
        self._debt = 0

    @property
    def limit(self) -> int:
        """How many requests there may be at once."""
        return int(self._limit)

    @property
    def room(self) -> int:
        """How many more requests there may be now."""
        return int(self._limit) - self.in_flight

    def wait(self) -> float:
        """Seconds until a request may start: 0 for now, infinity for when one ends."""
        if self.room < 1:
            return math.inf
        return max(0.0, self._paused_until - self._clock())

    def start(self) -> int:
        """Count a request as sent. Returns its number, which says when it was sent."""
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        self._num_started += 1
        if self.room < 1:
            self._full_at = self._num_started
        return self._num_started

    def succeed(self, number: int) -> None:
        """A reply came."""
        self.in_flight -= 1
        if number <= self._cut_at:
            return  # sent before the cut: its success says nothing about the new limit
        self._cool_down = 0.0
        if self._is_fixed or self._clock() < self._paused_until:
            return
        if self._debt:
            self._debt -= 1
        elif self._full_at >= number:
            self._grow()

    def refuse(self, number: int, retry_after: float = 0.0) -> bool:
        """The server said that there are too many requests (429).

        Args:
            number: The request's.
            retry_after: How long the server asks to wait, in seconds.

        Returns:
            Whether a burst begins; false for another refusal of the same burst.
        """
        self.in_flight -= 1
        self.pause(retry_after)
        if number <= self._cut_at:
            return False
        self.pause(self._cool_down)
        self._cool_down = min(MAX_COOL_DOWN_SECONDS, max(FIRST_COOL_DOWN_SECONDS, 2 * self._cool_down))
        self._cut_at = self._num_started
        self.num_bursts += 1
        if not self._is_fixed:
            if self.limit > 1:
                self.ceiling = self._limit
                self._limit = max(1.0, self._limit * CUT)
            else:
                self.ceiling, self._limit = math.inf, float(SECOND_LIMIT)
        return True

    def fail(self, retry_after: float = 0.0) -> None:
        """The request failed on the server's side: an error, a time-out, a lost connection, nonsense."""
        self.in_flight -= 1
        self.pause(retry_after)
        self._debt = min(self._debt + FAILURE_DEBT, 10 * MAX_LIMIT)

    def give_up(self) -> None:
        """The request was cancelled, or its result says nothing of the server's load."""
        self.in_flight -= 1

    def pause(self, seconds: float) -> None:
        """Start no request for so long; a longer pause that was asked for stays."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _grow(self) -> None:
        if self._limit + 1 <= NEAR * self.ceiling:
            self._limit += 1
        else:
            self._limit += SLOW_GROWTH
            if self._limit > FORGET * self.ceiling:
                self.ceiling = math.inf
        self._limit = min(self._limit, float(MAX_LIMIT))


class Rate:
    """At most so many requests, or tokens, a minute: a bucket that fills evenly.

    Args:
        clock: Says the time in seconds.
        per_minute: How many.
        burst_seconds: The bucket holds what so many seconds bring, and at least one.
    """

    def __init__(self, clock: Clock, per_minute: float, burst_seconds: float = 1.0) -> None:
        self._clock = clock
        self._per_second = per_minute / 60
        self._most = max(1.0, self._per_second * burst_seconds)
        self._level = self._most
        self._at = clock()

    def wait(self, amount: float) -> float:
        """Seconds until ``amount`` may be taken. More than the bucket holds may be taken when it is full."""
        self._fill()
        return max(0.0, (min(amount, self._most) - self._level) / self._per_second)

    def take(self, amount: float) -> None:
        """Take ``amount``, which may be more than there is; a negative one gives back."""
        self._fill()
        self._level = min(self._most, self._level - amount)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._per_second)
        self._at = now


TRIPS_AFTER = 8
"""Failures in a row after which a server gets a rest."""
FIRST_REST_SECONDS = 1.0
MAX_REST_SECONDS = 30.0


class Breaker:
    """Stops asking a server that fails again and again: after each rest one request tries whether it works.

    Args:
        clock: Says the time in seconds.
        jitter: A random number between 0 and 1, so that many clients do not return at once.
    """

    def __init__(self, clock: Clock, jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self._num_failures = 0
        self._num_rests = 0
        self._rests_until = -math.inf
        self._probe: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the server is not to be asked, one trial aside."""
        return self._num_rests > 0

    def wait(self) -> float:
        """Seconds until a request may start; infinity while another one tries whether the server works."""
        if not self.is_open:
            return 0.0
        if self._probe is not None:
            return math.inf
        return max(0.0, self._rests_until - self._clock())

    def start(self, number: int) -> None:
        """A request is sent; if the server rests, it is the trial."""
        if self.is_open:
            self._probe = number

    def succeed(self) -> None:
        """The server answers, whatever it says."""
        self._num_failures = self._num_rests = 0
        self._probe = None

    def fail(self, number: int) -> bool:
        """A request failed on the server's side.

        Returns:
            Whether the server gets a rest, for the first time since it last worked.
        """
        self._num_failures += 1
        is_probe = self._probe == number
        if self._num_failures < TRIPS_AFTER or (self.is_open and not is_probe):
            return False  # requests that were sent before the rest say nothing new
        seconds = min(MAX_REST_SECONDS, FIRST_REST_SECONDS * 2.0**self._num_rests)
        self._rests_until = self._clock() + seconds * (0.5 + self._jitter() / 2)
        self._num_rests += 1
        self._probe = None
        return self._num_rests == 1

    def give_up(self, number: int) -> None:
        """A request was cancelled; another one may try."""
        if self._probe == number:
            self._probe = None
