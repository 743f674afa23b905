"""Asks servers: as many requests at once as they take, again where they fail, elsewhere where they do not answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from anyio.from_thread import start_blocking_portal

from sinterlm.endpoint.host import Host
from sinterlm.endpoint.replies import (
    Reply,
    RequestFailed,
    RequestRefused,
    TryFailed,
    check_completion,
    read_reply,
    read_usage,
)
from sinterlm.endpoint.transport import Transport
from sinterlm.endpoint.turns import Turns
from sinterlm.errors import InputError, SinterError, TryAgainError
from sinterlm.records import Usage

T = TypeVar("T")
R = TypeVar("R")

FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
"""A request waits a random part of this before its second try, of twice as much before its third, ..."""
CHARACTERS_PER_TOKEN = 4
"""For the limit on tokens, until the server says how many there were."""
MAX_PULLED = 64
"""Jobs that are taken from their iterator before results are handed over."""


class Received(NamedTuple):
    """A server's reply to one request."""

    value: Any
    """The body, which was checked."""
    url: str
    """The base URL of the server that gave it."""
    seconds: float
    """How long the server took."""
    requests: int
    """How often the request was sent."""


class Endpoint:
    """Servers of one model that speak the OpenAI protocol.

    Every server has limits of its own, found out by asking: see :class:`~sinterlm.endpoint.limiter.Limiter`. Requests
    go to the server that has the most room. One that fails again and again gets a rest, and the others get its work.

    Args:
        base_urls: The URLs, without ``/chat/completions``.
        api_key_env: The environment variable that holds the key. None means ``OPENAI_API_KEY`` at OpenAI's own server
            and no key at any other, so that a key never goes to a server that it is not meant for.
        concurrency: Requests at once to each server; None finds it out.
        requests_per_minute: Limit of each server.
        tokens_per_minute: Limit of each server, for tokens of prompts and answers together.
        max_retries: How often a request with a transient failure is sent again.
        timeout_seconds: How long one reply may take, from the request to the last byte.
        on_note: Called with a sentence about what was noticed, e.g. the limit of a server; in another thread.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        *,
        api_key_env: str | None = None,
        concurrency: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_retries: int = 8,
        timeout_seconds: float = 600.0,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self._base_urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
        self._max_retries = max_retries
        self._timeout_seconds = timeout_seconds
        self._host_settings: dict[str, Any] = {
            "api_key_env": api_key_env,
            "limit": concurrency,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "timeout_seconds": timeout_seconds,
            "on_note": on_note or (lambda note: None),
        }
        self._counts_tokens = tokens_per_minute is not None
        self._mean_new_tokens = 0.0
        self._hosts: list[Host] = []
        self._turns: Turns | None = None
        self._transport: Transport | None = None
        self._results: SimpleQueue[Any] = SimpleQueue()
        self._num_waiting = 0
        """Requests that wait for their next try."""

    # --- for callers in any thread -----------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """How many requests there may be at once now, over all servers."""
        return sum(host.limiter.limit for host in self._hosts)

    @property
    def most(self) -> int:
        """The most requests that were in flight at once at any one server."""
        return max((host.limiter.most for host in self._hosts), default=0)

    @property
    def state(self) -> str:
        """How it goes right now, in a few words, e.g. ``24 in flight, limit 32``."""
        in_flight = sum(host.limiter.in_flight for host in self._hosts)
        resting = sum(host.breaker.is_open or host.error is not None for host in self._hosts)
        parts = [f"{in_flight} in flight", f"limit {self.limit}"]
        if resting:
            parts.append("not answering" if len(self._hosts) == 1 else f"{resting} servers not answering")
        return ", ".join(parts)

    def map(self, work: Callable[[T], Awaitable[R]], jobs: Iterable[T]) -> Generator[list[R], None, None]:
        """Do the work of every job, of as many at once as the servers take, and hand over results as they come.

        Jobs are taken in the caller's thread, only when there is room for them. The work runs in an event loop in a
        thread of its own, so that this works if a loop is already running (in a notebook), and so that an interrupt
        arrives here at once. Closing the iterator cancels what is in flight.

        One endpoint does one map at a time. What it found out about its servers stays known.

        Args:
            work: Asks the servers by :meth:`post`. What it raises ends the map, after the results that came before.
            jobs: Of any number.

        Raises:
            CredentialsError: There is no key, or no server accepts it.
            InputError: No server accepts such requests, e.g. because there is no such model.
            TryAgainError: No server has worked for some time.
        """
        if not self._hosts:
            self._hosts = [Host(url, **self._host_settings) for url in self._base_urls]
        for host in self._hosts:
            host.begin()
        self._results = results = SimpleQueue[Any]()
        left, has_more, outstanding = iter(jobs), True, 0
        with ExitStack() as stack:
            start: Callable[[list[T]], object] | None = None
            while True:
                batch: list[T] = []
                while has_more and len(batch) < min(MAX_PULLED, self._most_jobs - outstanding):
                    try:
                        batch.append(next(left))
                    except StopIteration:
                        has_more = False
                if batch:
                    start = start or stack.enter_context(self._loop(work, results))
                    start(batch)
                    outstanding += len(batch)
                    if has_more and len(batch) == MAX_PULLED and results.empty():
                        continue
                if not outstanding:
                    return
                got = [results.get(), *(results.get() for _ in range(results.qsize()))]
                outstanding -= len(got)
                done: list[R] = [result for result in got if not isinstance(result, _End)]
                if done:
                    yield done
                for end in got:
                    if isinstance(end, _End):
                        if end.error is None:
                            return
                        raise end.error

    def close(self) -> None:
        """Give up what is in flight: a map that runs in another thread ends early."""
        self._results.put(_End(None))

    def chat(self, requests: Iterable[Mapping[str, Any]]) -> Iterator[list[tuple[int, Reply]]]:
        """Send chat completion requests, and hand over replies as they come: those before an error count.

        Args:
            requests: The bodies of the requests. What is in ``extra_body`` is put beside the rest.

        Yields:
            Replies, each with the position of its request.

        Raises:
            CredentialsError: There is no key, or the server refuses it.
            InputError: The server refuses the request for a reason other than the length or content of its texts.
            TryAgainError: The server cannot be reached, or still fails after all retries.
        """

        async def work(job: tuple[int, Mapping[str, Any]]) -> tuple[int, Reply]:
            position, request = job
            body = {**request, **request.get("extra_body", {})}
            body.pop("extra_body", None)
            try:
                received = await self.post("/chat/completions", body)
            except RequestRefused as error:
                if error.kind == "refused":
                    raise InputError(error.advice) from None
                return position, Reply("", f"the server refuses the request: {error.detail}", usage=Usage(1))
            except RequestFailed as error:
                raise TryAgainError(error.advice) from None
            reply = read_reply(received.value)
            return position, reply._replace(usage=read_usage(received.value)._replace(requests=received.requests))

        return self.map(work, enumerate(requests))

    # --- for the work of a map ---------------------------------------------------------------------------------------

    async def post(
        self, path: str, body: Mapping[str, Any], *, check: Callable[[Any], None] = check_completion
    ) -> Received:
        """Send a request until a server replies. To be awaited within the work of a :meth:`map`.

        Args:
            path: Comes after the base URL, e.g. ``/chat/completions``.
            body: The request.
            check: Raises a ``ValueError`` for a value that is no reply to such a request, which fails the try.

        Raises:
            RequestRefused: The server will never accept this request.
            RequestFailed: It still fails after all retries.
            SinterError: No request can succeed: see :meth:`map`.
        """
        assert self._turns, "outside of a map"
        assert self._transport
        data = json.dumps(body, allow_nan=False).encode()
        tokens = len(data) / CHARACTERS_PER_TOKEN + self._mean_new_tokens if self._counts_tokens else 0.0
        num_sent = num_failed = 0
        avoid: Host | None = None
        while True:
            host, number = await self._turns.take(tokens, avoid)
            num_sent += 1
            started = time.monotonic()
            try:
                value = await host.post(self._transport, number, path, data, check)
                if self._counts_tokens:
                    self._correct_tokens(host, tokens, value)
                return Received(value, host.url, time.monotonic() - started, num_sent)
            except TryFailed as failure:
                num_failed += 1
                if num_failed > self._max_retries:
                    advice = host.advice(failure.kind, failure.detail, f"though asked {num_sent} times")
                    raise RequestFailed(failure.kind, failure.detail, num_sent, advice) from None
                avoid = host
            except SinterError as error:
                if all(host.error for host in self._hosts):
                    raise
                self._host_settings["on_note"](f"{error}; the other servers get the work")
                continue
            finally:
                self._turns.give()
            seconds = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** (num_failed - 1))
            self._num_waiting += 1
            try:
                await asyncio.sleep(random.uniform(0, seconds))
            finally:
                self._num_waiting -= 1

    def _correct_tokens(self, host: Host, assumed: float, value: Any) -> None:
        """Count the tokens that the server says, in place of those that were assumed."""
        usage = value.get("usage") if isinstance(value, dict) else None
        if isinstance(usage, dict) and isinstance(total := usage.get("total_tokens"), int):
            host.correct(total - assumed)
            new = usage.get("completion_tokens") or 0
            self._mean_new_tokens += (new - self._mean_new_tokens) / 20

    @property
    def _most_jobs(self) -> int:
        """How many jobs there may be at once: a few always wait for their turn, beside those that wait to retry."""
        limit = self.limit
        return limit + max(4, limit // 4) + min(self._num_waiting, limit + MAX_PULLED)

    @contextmanager
    def _loop(
        self, work: Callable[[T], Awaitable[R]], results: SimpleQueue[Any]
    ) -> Iterator[Callable[[list[T]], object]]:
        """An event loop in a thread of its own; yields what starts jobs in it."""
        tasks: set[asyncio.Task[None]] = set()

        async def do(job: T) -> None:
            try:
                results.put(await work(job))
            except Exception as error:
                results.put(_End(error))

        def start(jobs: list[T]) -> None:
            for job in jobs:
                task = loop.create_task(do(job))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        async def begin() -> asyncio.AbstractEventLoop:
            self._turns = Turns(self._hosts)
            self._transport = await Transport(self._timeout_seconds).__aenter__()
            return asyncio.get_running_loop()

        async def end() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert self._transport
            await self._transport.__aexit__()

        with start_blocking_portal() as portal:
            loop = portal.call(begin)
            try:
                yield lambda jobs: loop.call_soon_threadsafe(start, jobs)
            finally:
                portal.call(end)


class _End(NamedTuple):
    """What ends a map: an error, or a call of :meth:`Endpoint.close`."""

    error: Exception | None
