"""How many requests a server gets, tried on simulated servers with a clock of their own: nothing waits."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable

import pytest

from sinterlm.endpoint.limiter import (
    CUT,
    FIRST_LIMIT,
    MAX_LIMIT,
    MAX_REST_SECONDS,
    SECOND_LIMIT,
    TRIPS_AFTER,
    Breaker,
    Limiter,
    Rate,
)


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def full(limiter: Limiter) -> list[int]:
    """Start as many requests as there may be."""
    return [limiter.start() for _ in range(limiter.room)]


class Simulation:
    """A server that refuses more than ``capacity`` requests at once, and a limiter that is always busy."""

    def __init__(self, capacity: Callable[[float], int], seconds: Callable[[], float], retry_after: float = 0) -> None:
        self.clock = FakeClock()
        self.limiter = Limiter(self.clock)
        self._capacity, self._seconds, self._retry_after = capacity, seconds, retry_after
        self.num_served = self.num_refused = 0
        self.limits: list[int] = []
        """The limit at each reply."""
        self._ends: list[tuple[float, int, bool]] = []
        self._busy = 0

    def run(self, num_replies: int) -> None:
        target = self.num_served + num_replies
        while self.num_served < target:
            while self.limiter.wait() == 0:
                number = self.limiter.start()
                is_served = self._busy < self._capacity(self.clock.now)
                self._busy += is_served
                seconds = self._seconds() if is_served else 0.001
                heapq.heappush(self._ends, (self.clock.now + seconds, number, is_served))
            if not self._ends:
                self.clock.now += self.limiter.wait()
                continue
            at, number, is_served = heapq.heappop(self._ends)
            self.clock.now = max(self.clock.now, at)
            if is_served:
                self._busy -= 1
                self.num_served += 1
                self.limiter.succeed(number)
                self.limits.append(self.limiter.limit)
            else:
                self.num_refused += 1
                self.limiter.refuse(number, self._retry_after)


@pytest.mark.parametrize("retry_after", [0.0, 0.5])
@pytest.mark.parametrize("spread", [0.0, 0.5], ids=["all at once", "spread"])
@pytest.mark.parametrize("capacity", [1, 2, 5, 16, 37, 100, 300])
def test_the_limit_settles_at_what_the_server_takes(capacity: int, spread: float, retry_after: float) -> None:
    """Within 15 percent of it, or within one request, with fewer than 5 percent of the requests refused."""
    random_ = random.Random(0)
    simulation = Simulation(lambda now: capacity, lambda: 1 + spread * (random_.random() - 0.5), retry_after)
    simulation.run(60 * capacity + 1500)
    settled = simulation.limits[len(simulation.limits) // 2 :]
    assert sum(settled) / len(settled) == pytest.approx(capacity, rel=0.15, abs=1)
    refused = simulation.num_refused / (simulation.num_refused + simulation.num_served)
    assert refused < 0.05
    simulation.num_refused = 0
    simulation.run(3000)
    assert simulation.num_refused / 3000 < 0.03, "once settled"


def test_a_server_that_takes_fewer_and_then_more_is_followed() -> None:
    simulation = Simulation(lambda now: 60 if now < 1060 else 15 if now < 1200 else 120, lambda: 1.0)
    for until, expected in ((1060, 60), (1200, 15), (2200, 120)):
        while simulation.clock.now < until - 5:
            simulation.run(10)
        assert simulation.limiter.limit == pytest.approx(expected, rel=0.3)
    assert simulation.num_refused < 0.05 * simulation.num_served


def test_the_limit_doubles_in_the_time_of_one_request_up_to_the_most() -> None:
    limiter = Limiter(FakeClock())
    limits = [limiter.limit]
    while limits[-1] < MAX_LIMIT:
        for number in full(limiter):
            limiter.succeed(number)
        limits.append(limiter.limit)
    assert limits == [min(MAX_LIMIT, FIRST_LIMIT * 2**turn) for turn in range(len(limits))]
    for number in full(limiter):
        limiter.succeed(number)
    assert limiter.limit == MAX_LIMIT


def test_a_limit_that_is_not_used_up_does_not_grow() -> None:
    limiter = Limiter(FakeClock())
    for _ in range(100):
        limiter.succeed(limiter.start())
    assert limiter.limit == FIRST_LIMIT


def test_a_burst_of_refusals_cuts_once_by_a_quarter() -> None:
    limiter = Limiter(FakeClock())
    numbers = full(limiter)
    assert [limiter.refuse(number) for number in numbers] == [True] + [False] * (FIRST_LIMIT - 1)
    assert (limiter.limit, limiter.ceiling, limiter.num_bursts) == (FIRST_LIMIT * CUT, FIRST_LIMIT, 1)
    assert limiter.refuse(limiter.start()), "sent after the cut: another burst"
    assert limiter.limit == int(FIRST_LIMIT * CUT * CUT)


def test_replies_to_what_was_sent_before_a_cut_do_not_raise_the_limit() -> None:
    limiter = Limiter(FakeClock())
    first, *others = full(limiter)
    limiter.refuse(first)
    for number in others:
        limiter.succeed(number)
    assert limiter.limit == FIRST_LIMIT * CUT


def test_growth_is_slow_near_the_ceiling_and_the_ceiling_is_forgotten_above_it() -> None:
    limiter = Limiter(FakeClock())
    for number in full(limiter):
        limiter.succeed(number)
    first, *others = full(limiter)
    limiter.refuse(first)
    for number in others:
        limiter.succeed(number)
    ceiling = limiter.ceiling
    assert ceiling == 2 * FIRST_LIMIT
    counted = {limit: 0 for limit in range(12, 24)}
    while limiter.ceiling < math.inf:
        counted[limiter.limit] += 1
        number, *others = full(limiter)
        limiter.succeed(number)
        for _ in others:
            limiter.give_up()
    assert [counted[limit] for limit in (12, 13)] == [1, 1]
    assert all(99 <= counted[limit] <= 101 for limit in range(15, 20))
    assert limiter.limit == 1.25 * ceiling


def test_retry_after_is_obeyed_by_everyone_and_the_longest_counts() -> None:
    clock = FakeClock()
    limiter = Limiter(clock)
    first, second, third, *_ = full(limiter)
    limiter.refuse(first, retry_after=3.0)
    assert limiter.wait() == 3.0 if limiter.room > 0 else math.inf
    limiter.refuse(second, retry_after=5.0)
    limiter.refuse(third, retry_after=1.0)
    assert limiter.wait() == 5.0
    clock.now += 4.0
    assert limiter.wait() == 1.0
    clock.now += 1.0
    assert limiter.wait() == 0.0


def test_refusals_without_a_reply_between_them_are_met_with_longer_and_longer_waits() -> None:
    clock = FakeClock()
    limiter = Limiter(clock)
    waits = []
    for _ in range(12):
        number = limiter.start()
        limiter.refuse(number)
        waits.append(limiter.wait())
        clock.now += limiter.wait()
    assert waits == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
    limiter.succeed(limiter.start())
    limiter.refuse(limiter.start())
    assert limiter.wait() == 0.0


def test_the_refusal_of_a_single_request_is_not_about_their_number() -> None:
    limiter = Limiter(FakeClock())
    while limiter.limit > 1:
        limiter.refuse(limiter.start())
    limiter.refuse(limiter.start())
    assert (limiter.limit, limiter.ceiling) == (SECOND_LIMIT, math.inf)


def test_server_errors_stop_growth_and_cut_nothing() -> None:
    limiter = Limiter(FakeClock())
    for turn in itertools.count():
        _, *others = full(limiter)
        limiter.fail()
        for number in others:
            limiter.succeed(number)
        if turn == 50:
            break
    assert limiter.limit == FIRST_LIMIT, "one in eight fails"
    for _ in range(100):
        for number in full(limiter):
            limiter.succeed(number)
    assert limiter.limit == MAX_LIMIT, "none fails any more"


def test_a_fixed_limit_never_changes_but_pauses() -> None:
    limiter = Limiter(FakeClock(), fixed=3)
    for _ in range(50):
        for number in full(limiter):
            limiter.succeed(number)
    limiter.refuse(limiter.start(), retry_after=2.0)
    assert (limiter.limit, limiter.most, limiter.wait()) == (3, 3, 2.0)


@pytest.mark.parametrize(("per_minute", "amount"), [(30, 1), (6000, 1), (60_000, 700), (600, 5000)])
def test_a_rate_is_kept(per_minute: int, amount: float) -> None:
    """Over ten minutes, and never more than the first second's worth ahead."""
    clock = FakeClock()
    rate, taken = Rate(clock, per_minute), 0.0
    ahead = max(per_minute / 60, 1.0, amount)
    while clock.now < 1600:
        wait = rate.wait(amount)
        if wait > 0:
            clock.now += wait + 1e-9
            continue
        rate.take(amount)
        taken += amount
        assert taken <= per_minute / 60 * (clock.now - 1000) + ahead + 1e-3
    assert taken == pytest.approx(10 * per_minute, rel=0.02, abs=2 * amount)


def test_tokens_are_counted_again_when_their_number_is_known() -> None:
    clock = FakeClock()
    rate = Rate(clock, 6000)
    rate.take(50)
    rate.take(400)  # it was 450
    assert rate.wait(50) == pytest.approx((450 - 100 + 50) / 100)
    rate.take(-10_000)
    assert rate.wait(1e6) == 0.0, "never more than it holds"


def test_a_breaker_opens_rests_tries_once_and_closes() -> None:
    clock = FakeClock()
    breaker = Breaker(clock, lambda: 1.0)
    rests = []
    for number in range(1, TRIPS_AFTER):
        assert not breaker.fail(number)
        assert breaker.wait() == 0.0
    assert breaker.fail(TRIPS_AFTER)
    for number in range(100, 110):
        rests.append(breaker.wait())
        assert not breaker.fail(9), "sent before the rest"
        clock.now += breaker.wait()
        breaker.start(number)
        assert breaker.wait() == math.inf, "one request tries"
        assert not breaker.fail(number), "said once"
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, *[MAX_REST_SECONDS] * 5]
    clock.now += breaker.wait()
    breaker.start(200)
    breaker.give_up(200)
    assert breaker.wait() == 0.0, "another one may try"
    breaker.start(201)
    breaker.succeed()
    assert not breaker.is_open
    assert breaker.wait() == 0.0
    assert not breaker.fail(300)


def test_failures_between_replies_do_not_open_a_breaker() -> None:
    breaker = Breaker(FakeClock(), lambda: 1.0)
    for number in range(1000):
        breaker.fail(number)
        if number % (TRIPS_AFTER - 1) == 0:
            breaker.succeed()
    assert not breaker.is_open
