"""What a server with faults does, and how it is started and asked what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from sinterlm.settings import Positive, Settings, expected

Fault = Literal[
    "too-many",
    "too-many-wait",
    "server-error",
    "reset",
    "cut-body",
    "drip",
    "invalid-json",
    "missing-fields",
    "wrong-n",
    "huge-body",
    "html",
    "redirect",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
"""What a request may meet, by name; see docs/testing-servers.md."""

_Share = Annotated[float, Field(ge=0, le=1)]
_Seconds = Annotated[float, Field(ge=0)]


class Behaviour(Settings):
    """What a server does; by default it answers every request at once."""

    faults: dict[Fault, _Share] = {}
    """The share of requests that meet each fault."""
    seed: int = 0
    """Decides which requests do, in their order of arrival."""
    limit: Positive | None = None
    """Requests at once; another one is refused (429). The server never says what it is."""
    retry_after_seconds: _Seconds = 0.05
    """What ``Retry-After`` says where a fault or the limit sends it."""
    limit_says_when: bool = False
    """Whether a refusal by the limit sends ``Retry-After``."""
    seconds: tuple[_Seconds, _Seconds] = (0.0, 0.0)
    """The shortest and the longest time that an answer takes; times between them are drawn evenly."""
    drip_seconds: _Seconds = 0.05
    """The time before each byte of a body that drips."""
    redirect_to: str = "http://127.0.0.1:9/v1"
    """Where redirects lead."""
    key: str | None = None
    """The key that requests must have. A request with another one is refused (401), and told which one it had."""
    replies: dict[str, str] = {}
    """Replies by the last message of a request, or by its prompt. Other requests get one that is made up."""
    num_tokens: Positive = 16
    """How many words a reply has that is made up, and how many tokens ``usage`` counts in any."""
    max_n: Positive | None = None
    """The most answers that a request gets; a request for more (``n``) gets so many, as if it had asked for them."""
    refuse_n: Literal[400, 422] | None = None
    """The status code for a request for more than ``max_n`` answers, in place of fewer answers."""
    reasoning: Literal["reasoning_content", "reasoning", "think"] | None = None
    """Where answers have reasoning: in a field of this name, or in ``<think>`` tags before the answer."""
    usage: bool = True
    """Whether responses say how many tokens they took."""
    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("served-model",)
    """What the server calls its model: first by the first name, then by the next ..."""
    model_lasts: Positive = 100
    """... after so many replies."""

    @model_validator(mode="after")
    def _check_shares(self) -> Behaviour:
        if sum(self.faults.values()) > 1:
            raise expected("shares of faults with a sum of at most 1")
        return self


@dataclass(frozen=True)
class Stats:
    """What a server saw until now."""

    requests: int
    """All that arrived."""
    replied: int
    """Those that got a good reply."""
    over_limit: int
    """Those that were refused because of the limit."""
    most_open: int
    """The most that were open at once, refused ones aside."""
    faults: Mapping[str, int]
    """Those that met a fault, by its name."""
    authorizations: list[str]
    """The different ``Authorization`` headers."""
    cpu_seconds: float
    """What the server's process has computed."""


class FaultServer:
    """A running server.

    Args:
        url: Its base URL, which ends with ``/v1``.
        process: The server.
    """

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self._process = process

    def stats(self) -> Stats:
        """What it saw until now."""
        with urllib.request.urlopen(f"{self.url}/stats", timeout=10) as response:
            return Stats(**json.loads(response.read()))

    def kill(self) -> None:
        """End it at once, as if its machine were gone."""
        self._process.kill()
        self._process.wait()


@contextmanager
def serve_faults(
    faults: Mapping[Fault, float] | None = None, *, port: int = 0, **behaviour: Any
) -> Iterator[FaultServer]:
    """A server that speaks the OpenAI protocol, in a process of its own, which ends with the block or this process.

    Args:
        faults: See :attr:`Behaviour.faults`.
        port: Where it listens on this machine; 0 for any free port.
        **behaviour: The other settings of :class:`Behaviour`.

    Raises:
        ValidationError: There is no such setting.
    """
    settings = Behaviour(faults=dict(faults or {}), **behaviour)
    process = subprocess.Popen(
        [sys.executable, "-m", "sinterlm.testing.server", str(port)],
        stdin=subprocess.PIPE,  # it serves until this is closed, so it never outlives its parent
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    with process:
        process.stdin.write(settings.model_dump_json() + "\n")
        process.stdin.flush()
        try:
            yield FaultServer(process.stdout.readline().strip(), process)
        finally:
            process.stdin.close()
            process.wait(timeout=10)
