"""Servers that speak the OpenAI protocol: many requests at once, and as few refusals as possible.

    settings   what a recipe says of any server: address, key, limits, price
    keys       where a server's key comes from
    limiter    PURE: how many requests a server may get, and when; a clock is passed in
    replies    what a response says: a value, a refusal, a failure
    transport  sends one request and reads one response, all of it bounded
    client     :class:`Endpoint`: limits, retries and failover around all that

One client serves every part of Sinter that asks a server. The settings import no HTTP library.
"""

from typing import TYPE_CHECKING, Any

from sinterlm.endpoint.keys import NO_KEY, OPENAI_URL, find_key, key_variable

if TYPE_CHECKING:
    from sinterlm.endpoint.client import Endpoint, Received
    from sinterlm.endpoint.replies import Reply, RequestFailed, RequestRefused, check_completion

__all__ = [
    "NO_KEY",
    "OPENAI_URL",
    "Endpoint",
    "Received",
    "Reply",
    "RequestFailed",
    "RequestRefused",
    "check_completion",
    "find_key",
    "key_variable",
]


def __getattr__(name: str) -> Any:
    """The client, which imports an HTTP library, is loaded when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sinterlm.endpoint import client, replies

    return getattr(client if hasattr(client, name) else replies, name)
