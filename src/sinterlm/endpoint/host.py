"""One server: its limits, whether it works, and what its responses mean for them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from yarl import URL

from sinterlm.endpoint.keys import NO_KEY, find_key, key_variable
from sinterlm.endpoint.limiter import Breaker, Limiter, Rate
from sinterlm.endpoint.replies import (
    FailureKind,
    RequestRefused,
    TryFailed,
    is_about_content,
    parse_json,
    refusal_kind,
    said,
    shown,
    without_secrets,
)
from sinterlm.endpoint.transport import NoResponseError, Response, Transport
from sinterlm.errors import CredentialsError, InputError, SinterError, TryAgainError

PATIENCE_SECONDS = 300.0
"""How long a server that worked may fail, or ask to wait, before it counts as lost: it may be started again."""
FIRST_PATIENCE_SECONDS = 30.0
"""The same for a server that cannot be reached and never answered, which was probably not started."""

_RESUMES = "and rerun the command: nothing is lost"


class Host:
    """One server.

    Args:
        url: Its base URL.
        api_key_env: See :func:`~sinterlm.endpoint.keys.key_variable`.
        limit: Requests at once; None finds it out.
        requests_per_minute: Limit of requests.
        tokens_per_minute: Limit of tokens.
        timeout_seconds: How long a reply may take, for messages.
        on_note: Called with a sentence about what was noticed.

    Raises:
        CredentialsError: There is no key for it.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None,
        limit: int | None,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        timeout_seconds: float,
        on_note: Callable[[str], None],
    ) -> None:
        self.url = url
        self._variable = key_variable(url, api_key_env)
        self._key = find_key(url, api_key_env)
        self._headers = {
            "authorization": f"Bearer {self._key}",
            "content-type": "application/json",
            "accept-encoding": "gzip, deflate",
            "user-agent": "sinterlm",
        }
        self._targets: dict[str, URL] = {}
        self._timeout_seconds = timeout_seconds
        self._on_note = on_note
        self.limiter = Limiter(time.monotonic, limit)
        self._requests = requests_per_minute and Rate(time.monotonic, requests_per_minute)
        self._tokens = tokens_per_minute and Rate(time.monotonic, tokens_per_minute)
        self._has_answered = self._has_replied = False
        self._num_rests = 0
        self.begin()

    def begin(self) -> None:
        """Give the server another chance, whatever has happened; only its limits stay known."""
        self.breaker = Breaker(time.monotonic, random.random)
        self.error: SinterError | None = None
        """Why it is not asked any more."""
        self._failing_since: float | None = None
        self._last_failure = TryFailed("unreachable", "")

    # --- when it may be asked ----------------------------------------------------------------------------------------

    def wait(self, tokens: float) -> float:
        """Seconds until a request of so many tokens may be sent; infinity for when another one ends."""
        wait = max(self.limiter.wait(), self.breaker.wait())
        if self._requests and wait < math.inf:
            wait = max(wait, self._requests.wait(1))
        if self._tokens and wait < math.inf:
            wait = max(wait, self._tokens.wait(tokens))
        return wait

    def start(self, tokens: float) -> int:
        """Count a request as sent. Returns its number."""
        number = self.limiter.start()
        self.breaker.start(number)
        if self._requests:
            self._requests.take(1)
        if self._tokens:
            self._tokens.take(tokens)
        return number

    def give_up(self, number: int) -> None:
        """A request was cancelled."""
        self.limiter.give_up()
        self.breaker.give_up(number)

    def correct(self, tokens: float) -> None:
        """A request took so many tokens more than was assumed."""
        if self._tokens:
            self._tokens.take(tokens)

    def find_loss(self) -> SinterError | None:
        """Why nobody should wait for it any longer; None if one should."""
        if self.error is not None:
            return self.error
        kind, detail = self._last_failure.kind, self._last_failure.detail
        if self.breaker.is_open and self._failing_since is not None:
            never_there = kind == "unreachable" and not self._has_answered
            patience = FIRST_PATIENCE_SECONDS if never_there else PATIENCE_SECONDS
            seconds = time.monotonic() - self._failing_since
            return None if seconds < patience else TryAgainError(self.advice(kind, detail, f"for {seconds:.0f} s"))
        wait = self.limiter.wait()
        if PATIENCE_SECONDS < wait < math.inf:
            return TryAgainError(f"{self.url}: the server asks to wait {wait:.0f} s; do so, {_RESUMES}")
        return None

    # --- asking it ---------------------------------------------------------------------------------------------------

    async def post(
        self, transport: Transport, number: int, path: str, body: bytes, check: Callable[[Any], None]
    ) -> Any:
        """Send one request that was counted by :meth:`start`, and read the reply.

        Raises:
            TryFailed: It failed; another try may succeed.
            RequestRefused: The server will never accept this request.
            SinterError: The server will accept no request at all.
        """
        target = self._targets.get(path) or self._targets.setdefault(path, URL(self.url + path))
        try:
            response = await transport.post(target, body, self._headers)
        except NoResponseError as error:
            if error.is_final:
                self.give_up(number)
                raise self._stop(InputError(f"{self.url}: {self._clean(error.detail)}; correct base_url")) from None
            raise self._failed(number, error.kind, error.detail) from None
        except BaseException:
            self.give_up(number)
            raise
        if 200 <= response.status < 300:
            try:
                value = parse_json(response.body)
                check(value)
            except ValueError:
                raise self._failed(number, "not-a-reply", shown(response.body)) from None
            self.limiter.succeed(number)
            self._has_replied = True
            self._answered()
            return value
        raise self._read_error(number, response)

    def advice(self, kind: FailureKind, detail: str, often: str) -> str:
        """What went wrong again and again, and what to do.

        Args:
            kind: How the last try failed.
            detail: What the server said, or what happened instead.
            often: How often it was tried, or for how long.
        """
        match kind:
            case "timed-out":
                return (
                    f"{self.url}: no whole reply within {self._timeout_seconds:g} s, {often}; "
                    f"raise timeout_seconds, or lower concurrency, {_RESUMES}"
                )
            case "not-a-reply":
                return (
                    f"{self.url}: the server's answer is not a reply, {often}: {detail}; check that base_url is an "
                    f"OpenAI-style API and that the server works, {_RESUMES}"
                )
            case "unreachable" | "disconnected":
                return (
                    f"{self.url}: cannot be reached ({detail}), {often}; "
                    f"start the server, or correct base_url, {_RESUMES}"
                )
        return f"{self.url}: the server failed, {often} ({detail}); wait, or lower concurrency, {_RESUMES}"

    # --- what responses mean -----------------------------------------------------------------------------------------

    def _read_error(self, number: int, response: Response) -> Exception:
        """The error of a response that is not a success; counts it."""
        status, body = response.status, response.body
        detail = self._clean(said(status, body))
        if status == 429 and b"insufficient_quota" not in body:
            return self._refused(number, detail, retry_after(response.headers))
        if status in (408, 409) or status >= 500:
            return self._failed(number, "server-error", detail, retry_after(response.headers))
        elsewhere = self._clean(without_secrets(response.headers.get("location", "")))
        if 300 <= status < 400 and self._has_replied:  # something between us and a server that works
            return self._failed(number, "not-a-reply", f"a redirect to {elsewhere!r} (code {status})")
        self.limiter.give_up()
        self._answered()
        refusal = f"{self.url}: the server refuses the request ({detail}); check the model's name and settings"
        if status in (400, 413, 422) or (status == 403 and is_about_content(body)):
            return RequestRefused(refusal_kind(status, body), detail, status, refusal)
        if status in (401, 403):
            refused = f"the key in {self._variable}" if self._variable else "a request without a key"
            variable = self._variable and f"put a valid one into {self._variable}"
            remedy = variable or "name the variable of its key in api_key_env"
            return self._stop(
                CredentialsError(f"{self.url}: the server refuses {refused} ({detail}); {remedy} {_RESUMES}")
            )
        if status in (402, 429):
            return self._stop(TryAgainError(f"{self.url}: the account has no credit ({detail}); add some {_RESUMES}"))
        if 300 <= status < 400:
            return self._stop(
                InputError(
                    f"{self.url}: the server redirects the request to {elsewhere!r} (code {status}). Redirects are not "
                    "followed, because prompts and key are meant for the server of base_url; if you trust the other "
                    "address, put it into base_url"
                )
            )
        return self._stop(InputError(refusal))

    def _refused(self, number: int, detail: str, seconds: float) -> TryFailed:
        before = self.limiter.limit
        if self.limiter.refuse(number, seconds) and _is_power_of_four(self.limiter.num_bursts):
            now = self.limiter.limit
            told = f"now at most {now}" if now < before else "asked more slowly"
            self._on_note(f"{self.url}: too many requests with {before} at once ({detail}); {told}")
        self._answered()
        return TryFailed("rate-limited", detail)

    def _failed(self, number: int, kind: FailureKind, detail: str, seconds: float = 0.0) -> TryFailed:
        """Count a failure of the server."""
        self._last_failure = TryFailed(kind, self._clean(detail))
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        self.limiter.fail(seconds)
        if self.breaker.fail(number):
            self._num_rests += 1
            if _is_power_of_four(self._num_rests):
                self._on_note(f"{self.url}: does not work ({kind}: {self._last_failure.detail}); tried now and then")
        return self._last_failure

    def _answered(self) -> None:
        """The server works."""
        if self.breaker.is_open and _is_power_of_four(self._num_rests):
            self._on_note(f"{self.url}: works again")
        self.breaker.succeed()
        self._failing_since = None
        self._has_answered = True

    def _stop(self, error: SinterError) -> SinterError:
        """The server is not asked any more."""
        self.error = error
        return error

    def _clean(self, text: str) -> str:
        """The text without the key: servers repeat keys."""
        return text if self._key == NO_KEY else text.replace(self._key, "***")


def retry_after(headers: Mapping[str, str]) -> float:
    """How long a response asks to wait, in seconds; 0 if it does not say."""
    milliseconds, text = headers.get("retry-after-ms"), headers.get("retry-after", "")
    try:
        seconds = float(text) if milliseconds is None else float(milliseconds) / 1000
    except ValueError:
        seconds = _seconds_until(text, headers.get("date", ""))
    return seconds if 0 < seconds < math.inf else 0.0


def _seconds_until(date: str, now: str) -> float:
    """The time between two dates of HTTP; without the second, from this machine's clock."""
    try:
        then = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return 0.0
    try:
        return then - parsedate_to_datetime(now).timestamp()
    except ValueError:
        return then - time.time()


def _is_power_of_four(number: int) -> bool:
    """Picks what is said of something that happens again and again: the first time, the fourth, the sixteenth, ..."""
    return number in (1, 4, 16, 64, 256, 1024)
