"""A model behind the OpenAI protocol: many requests at once, a reply to each, or one error that says what to do.

The client library retries with backoff, and waits as long as a server asks (``Retry-After``). :class:`_CheckedClient`,
below it, checks what the library does not: a response that is not a reply, whatever its status code, counts as a failed
request, like a lost connection. It is sent again, and never taken for something that a model said.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import httpx2
import openai
from anyio.from_thread import start_blocking_portal
from pydantic import BaseModel, Field

from sinterlm.errors import CredentialsError, InputError, SinterError, TryAgainError

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""The key that is sent if none is needed: the protocol has no other way to say so."""

MAX_SHOWN, MAX_BODY_SHOWN = 500, 300
"""How many characters messages quote of what a server says, and of a body that is not a reply."""

MAX_BYTES = 16 * 2**20
"""The largest response: a reply of a million tokens fits."""

_ENCODINGS = {"", "identity", "gzip", "deflate"}
"""Accepted encodings of a body; others may expand without bound between two checks of its size."""

_REFUSED, _TOO_LARGE = (400, 422), 413
"""HTTP status codes of a request that a server cannot accept, and of one that is too large."""
_ABOUT_ONE_TEXT = re.compile(r"context|too long|content[ _](filter|policy|management)", re.IGNORECASE)
"""Matches refusals of texts that are too long for the model or blocked by a filter. Other requests may succeed."""


class Reply(NamedTuple):
    """What a model said, or why it said nothing."""

    content: str
    problem: str = ""
    """Why there is no whole reply, in words; empty for a whole reply."""
    model: str = ""
    """The model as the server names it, which may be a dated version of the one requested."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    error: Any = None
    """What a router says if the model's own server failed, although the status code is 200."""


class _Completion(BaseModel):
    """The parts of a response that are read; servers differ in the rest."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    model: str | None = None


class Endpoint:
    """A server that speaks the OpenAI protocol.

    Args:
        base_url: The URL, without ``/chat/completions``.
        api_key_env: The environment variable that holds the key. None means ``OPENAI_API_KEY`` at OpenAI's own server
            and no key at any other, so that a key never goes to a server that it is not meant for.
        concurrency: Maximum number of requests at once.
        max_retries: How often a request with a transient failure is sent again.
        timeout_seconds: How long one reply may take, from the request to the last byte.
    """

    def __init__(
        self, base_url: str, *, api_key_env: str | None, concurrency: int, max_retries: int, timeout_seconds: float
    ) -> None:
        self._base_url = base_url
        self._api_key_env = api_key_env
        self._concurrency = concurrency
        self._max_retries = max_retries
        self._timeout_seconds = timeout_seconds

    def ask(self, requests: Sequence[Mapping[str, Any]], on_reply: Callable[[int, Reply], None]) -> None:
        """Send chat completion requests, and hand over each reply as it comes: replies before an error count.

        Args:
            requests: The arguments of each request, as the protocol names them.
            on_reply: Called with a request's position and its reply.

        Raises:
            CredentialsError: There is no key, or the server refuses it.
            InputError: The server refuses the request for a reason other than the length or content of its texts.
            TryAgainError: The server cannot be reached, or still fails after all retries.
        """
        key = find_key(self._base_url, self._api_key_env)
        # The event loop has its own thread, so that this works if a loop is already running (in a notebook), and so
        # that an interrupt arrives here at once and cancels the open requests.
        with start_blocking_portal() as portal:
            portal.call(self._ask_all, requests, key, on_reply)

    async def _ask_all(
        self, requests: Sequence[Mapping[str, Any]], key: str, on_reply: Callable[[int, Reply], None]
    ) -> None:
        free = asyncio.Semaphore(self._concurrency)

        async def ask(position: int, request: Mapping[str, Any]) -> None:
            async with free:
                on_reply(position, await reply_to(request))

        async def reply_to(request: Mapping[str, Any]) -> Reply:
            try:
                response = await client.chat.completions.with_raw_response.create(**request)
                return _read(_parse(response.content))
            except openai.APIStatusError as error:
                if not _is_about_one_text(error):
                    raise
                return Reply("", f"the server refuses the request: {_said(error)}")

        async with openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=key,
            max_retries=self._max_retries,
            timeout=self._timeout_seconds,
            http_client=_CheckedClient(self._timeout_seconds),
        ) as client:
            try:
                await asyncio.gather(*(ask(*numbered) for numbered in enumerate(requests)))
            except openai.OpenAIError as error:
                problem = self._explain(error)
                shown = str(problem) if key == NO_KEY else str(problem).replace(key, "***")  # servers repeat keys
                raise type(problem)(shown) from None

    def _explain(self, error: openai.OpenAIError) -> SinterError:
        url, said = self._base_url, _said(error)
        often = f"though asked {self._max_retries + 1} times"
        resumes = "and rerun the command: nothing is lost"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            variable = key_variable(url, self._api_key_env)
            refused = f"the key in {variable}" if variable else "a request without a key"
            remedy = f"put a valid one into {variable}" if variable else "name the variable of its key in api_key_env"
            return CredentialsError(f"{url}: the server refuses {refused} ({said}); {remedy} {resumes}")
        if isinstance(error, openai.APITimeoutError):
            return TryAgainError(
                f"{url}: no whole reply within {self._timeout_seconds:g} s, {often}; "
                f"raise timeout_seconds, or lower concurrency, {resumes}"
            )
        if isinstance(error.__cause__, _Nonsense):
            return TryAgainError(
                f"{url}: the server's answer is not a reply, {often}: {said}; check that base_url is an OpenAI-style "
                f"API and that the server works, {resumes}"
            )
        if isinstance(error, openai.APIConnectionError):
            return TryAgainError(f"{url}: cannot be reached ({said}); start the server, or correct base_url, {resumes}")
        if isinstance(error, openai.APIStatusError) and error.response.is_redirect:
            elsewhere = _without_secrets(error.response.headers.get("location", ""))
            return InputError(
                f"{url}: the server redirects the request to {elsewhere!r} (code {error.status_code}). Redirects are "
                "not followed, because prompts and key are meant for the server of base_url; if you trust the other "
                "address, put it into base_url"
            )
        if (
            isinstance(error, openai.APIStatusError)
            and error.status_code not in (408, 409, 429)
            and (error.status_code < 500)
        ):
            return InputError(f"{url}: the server refuses the request ({said}); check the model's name and settings")
        return TryAgainError(f"{url}: the server failed, {often} ({said}); wait, or lower concurrency, {resumes}")


def key_variable(base_url: str, api_key_env: str | None) -> str | None:
    """The environment variable that holds the server's key; None if no key is needed."""
    return api_key_env or ("OPENAI_API_KEY" if base_url.rstrip("/") == OPENAI_URL else None)


def find_key(base_url: str, api_key_env: str | None) -> str:
    """The server's key, from the environment.

    Raises:
        CredentialsError: The variable is unset or empty.
    """
    variable = key_variable(base_url, api_key_env)
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable, "").strip()
    if not key:
        raise CredentialsError(
            f"{base_url}: the environment variable {variable} holds no key; set it and rerun the command"
        )
    return key


class _Nonsense(httpx2.RemoteProtocolError):
    """A response that is not a reply, whatever its status code says."""


class _CheckedClient(httpx2.AsyncClient):
    """Sends requests; if no reply comes back, raises an error that the client library takes for a failed connection.

    The deadline and the bound on size apply to the whole response. (The library's own deadline applies to each read, so
    a byte now and then defeats it.) Redirects are not followed: another server must not get the prompts.

    Args:
        timeout_seconds: Deadline for one response.
    """

    def __init__(self, timeout_seconds: float) -> None:
        limits = openai.DEFAULT_CONNECTION_LIMITS
        super().__init__(timeout=timeout_seconds, limits=limits, follow_redirects=False)
        self._timeout_seconds = timeout_seconds

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and return its response with the whole body."""
        request.headers["Accept-Encoding"] = "gzip, deflate"
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await super().send(request, **{**options, "stream": True})
                try:
                    body = await _read_body(response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the whole response took too long", request=request) from error
        except httpx2.DecodingError as error:
            raise _Nonsense(f"a body that is not compressed as it says ({error})", request=request) from error
        if response.is_success:
            _parse(body, request)
        headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _ABOUT_THE_BODY]
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)


_ABOUT_THE_BODY = {"content-encoding", "content-length", "transfer-encoding"}
"""Headers that are no longer true of a body that was read and decoded."""


async def _read_body(response: httpx2.Response) -> bytes:
    """Read and decode the body.

    Raises:
        _Nonsense: It is larger than a reply can be, or in another encoding.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise _Nonsense(f"a body in the encoding {encoding[:MAX_SHOWN]!r}", request=response.request)
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_BYTES:
            raise _Nonsense(
                f"a body of more than {MAX_BYTES // 2**20} MB that begins with {_shown(bytes(body))}",
                request=response.request,
            )
    return bytes(body)


def _parse(body: bytes, request: httpx2.Request | None = None) -> _Completion:
    """The completion in the body of a response.

    Half a surrogate pair becomes a question mark. (A server that counts in UTF-16 may cut a reply within a pair.)

    Raises:
        _Nonsense: The body is not a completion.
    """
    try:
        value = json.loads(body.removeprefix(codecs.BOM_UTF8))
        clean = json.dumps(value, ensure_ascii=False).encode(errors="replace")
        completion = _Completion.model_validate_json(clean)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValidationError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise _Nonsense(f"{_shown(body) if body else 'an empty body'}", request=request) from error
    choice = completion.choices[0]
    if choice.error is not None or choice.finish_reason == "error":
        raise _Nonsense(_shown(body), request=request)
    return completion


def _shown(body: bytes) -> str:
    """The beginning of a body, on one line."""
    text = " ".join(body[: 4 * MAX_BODY_SHOWN].decode(errors="replace").split())
    return repr(text if len(text) <= MAX_BODY_SHOWN else f"{text[:MAX_BODY_SHOWN]}...")


def _without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment, any of which may hold a key."""
    return re.sub(r"//[^/@]*@", "//", re.split("[?#]", url)[0])[:MAX_SHOWN]


def _read(completion: _Completion) -> Reply:
    """What the model said."""
    choice, model = completion.choices[0], completion.model or ""
    content = choice.message.content or ""
    if choice.finish_reason == "length":
        return Reply(content, "the reply was cut by the token limit", model)
    if not content:
        return Reply("", f"the reply is empty ({choice.message.refusal or choice.finish_reason})", model)
    return Reply(content, "", model)


def _is_about_one_text(error: openai.APIStatusError) -> bool:
    """Whether a server refuses one request for the texts in it, and may accept others."""
    refused = error.status_code in _REFUSED and _ABOUT_ONE_TEXT.search(str(error)) is not None
    return refused or error.status_code == _TOO_LARGE


def _said(error: openai.OpenAIError) -> str:
    """What the error says, on one line; for a lost connection, what caused it."""
    cause = (isinstance(error, openai.APIConnectionError) and error.__cause__) or error
    return " ".join(str(cause).split())[:MAX_SHOWN] or type(cause).__name__
