"""What a recipe says of a server, whatever is asked of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from sinterlm.endpoint.keys import OPENAI_URL, find_key
from sinterlm.explain import misfit
from sinterlm.records import Usage
from sinterlm.settings import Positive, Settings, expected

if TYPE_CHECKING:
    from sinterlm.endpoint.client import Endpoint


def _check_urls(value: object) -> object:
    # Before pydantic looks at the union, so that there is one message and not one for each of its types.
    return [_check_url(url) for url in value] if value and isinstance(value, list) else _check_url(value)


def _check_url(url: object) -> str:
    if not isinstance(url, str):
        raise expected("a URL, or a list of URLs")
    if "@" in url or "?" in url:
        found = f"this URL has {'a user' if '@' in url else 'parameters'} (not shown, because there may be a key)"
        remedy = "remove it, and name the environment variable of the key in api_key_env"
        raise misfit(f"{found}; {remedy}", "a URL without a key")
    if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@?#]*)?", url):
        raise expected("http:// or https://, a host, and a path such as /v1, without a key or password")
    return url.rstrip("/")


def _check_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        wanted = "the name of the environment variable that holds the key"
        raise misfit(f"this is no name of a variable (not shown, because it may be a key), expected {wanted}", wanted)
    return name


BuildEndpoint = Callable[[Callable[[str], None]], "Endpoint"]
"""Builds a client; called with what takes its notes."""
BaseUrl = Annotated[str, BeforeValidator(_check_url)]
"""One server."""
BaseUrls = Annotated[str | Annotated[list[str], Field(min_length=1)], BeforeValidator(_check_urls)]
"""One server, or several of the same model."""
KeyVariable = Annotated[str, AfterValidator(_check_variable)]
"""The environment variable that holds a server's key."""
_Money = Annotated[float, Field(ge=0)]


class Price(Settings):
    """What a server charges for a million tokens, in any currency. The sums of plans and reports are in it."""

    input: _Money = 0.0
    """Tokens of prompts."""
    output: _Money = 0.0
    """Tokens that are written, reasoning included."""
    cached_input: _Money | None = None
    """Tokens of prompts that the server has in its cache; without it, they cost what ``input`` says."""

    def money(self, usage: Usage) -> float:
        """What this usage costs.

        >>> Price(input=2.0, output=8.0, cached_input=0.5).money(Usage(1, 1_000_000, 400_000, 1_000_000))
        9.4
        """
        cached_input = self.input if self.cached_input is None else self.cached_input
        uncached = usage.prompt_tokens - usage.cached_tokens
        paid = uncached * self.input + usage.cached_tokens * cached_input + usage.new_tokens * self.output
        return paid / 1e6


class Patience(Settings):
    """How patiently a server is asked."""

    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Limit of one reply, from the request to its last byte."""
    max_retries: Annotated[int, Field(ge=0)] = 8
    """How often a request is repeated after a busy or failing server, or one that answered nonsense."""


class Pace(Patience):
    """How many requests a server gets at once."""

    concurrency: Literal["auto"] | Positive = "auto"
    """Requests at once to each server. ``auto`` finds out how many the server takes."""


class Server(Patience):
    """A server that speaks the OpenAI protocol: where it is, and what it costs."""

    base_url: BaseUrls = OPENAI_URL
    """The server, up to and without ``/chat/completions``; or several servers of one model, which share the work."""
    api_key_env: KeyVariable | None = None
    """The environment variable that holds the key. Without it, ``OPENAI_API_KEY`` for OpenAI's own server, and no key
    for any other.
    """
    price: Price | None = None
    """What tokens cost, for ``plan``, ``budget`` and the report."""

    @property
    def base_urls(self) -> Sequence[str]:
        """Every server."""
        return [self.base_url] if isinstance(self.base_url, str) else self.base_url

    def money(self, usage: Usage) -> float | None:
        """What ``usage`` costs by the recipe's price; None if there is no price."""
        return None if self.price is None else self.price.money(usage)

    def check_keys(self) -> None:
        """Check that there is a key for every server that needs one.

        Raises:
            CredentialsError: There is none.
        """
        for url in self.base_urls:
            find_key(url, self.api_key_env)


class Served(Server, Pace):
    """A server that is asked directly, and how fast it may be asked."""

    requests_per_minute: Positive | None = None
    """Limit of each server."""
    tokens_per_minute: Positive | None = None
    """Limit of each server, for tokens of prompts and answers together."""

    served_placement: ClassVar[Set[str]] = frozenset(
        {
            "api_key_env",
            "concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "timeout_seconds",
            "max_retries",
            "price",
        }
    )
    """Keys that never change an answer; ``base_url`` may, unless the weights are named in another way."""

    def build_endpoint(self, on_note: Callable[[str], None] | None = None) -> Endpoint:
        """The client of the server.

        Args:
            on_note: See :class:`~sinterlm.endpoint.client.Endpoint`.
        """
        from sinterlm.endpoint.client import Endpoint

        return Endpoint(
            self.base_url,
            api_key_env=self.api_key_env,
            concurrency=None if self.concurrency == "auto" else self.concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            max_retries=self.max_retries,
            timeout_seconds=self.timeout_seconds,
            on_note=on_note,
        )
