"""A model behind the OpenAI protocol: many requests at once, a reply to each, or one error that says what to do.

Retries with backoff are the client library's, which also waits as long as a server asks for (``Retry-After``).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import openai
from anyio.from_thread import start_blocking_portal
from pydantic import BaseModel, Field, ValidationError

from sinterlm.errors import CredentialsError, InputError, SinterError, TryAgainError

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""What is sent as a key where none is needed: the protocol has no other way to say so."""

MAX_SHOWN = 500
"""Characters of what a server says that messages repeat."""

_REFUSED, _TOO_LARGE = (400, 422), 413
"""HTTP's codes of a request that a server cannot take, and of one that is too large."""
_ABOUT_ONE_TEXT = re.compile(r"context|too long|content[ _](filter|policy|management)", re.IGNORECASE)
"""In a refusal: the texts are too long for the model, or a filter holds them back. Other requests may do."""


class Reply(NamedTuple):
    """What a model said, or why it said nothing."""

    content: str
    problem: str = ""
    """Empty for a whole reply; else why there is none, in words."""
    model: str = ""
    """The model as the server names it, which may be a dated version of what was asked for."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    """What is read of a response; servers differ in the rest."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    model: str | None = None


class Endpoint:
    """A server that speaks the OpenAI protocol.

    Args:
        base_url: up to and without ``/chat/completions``.
        api_key_env: the environment variable that holds the key; None for ``OPENAI_API_KEY`` at OpenAI's own server,
            and for no key at any other, so that a key never goes to a server that it is not meant for.
        concurrency: most requests at once.
        max_retries: how often a request that failed in passing is sent again.
        timeout_seconds: how long one reply may take.
    """

    def __init__(
        self, base_url: str, *, api_key_env: str | None, concurrency: int, max_retries: int, timeout_seconds: float
    ) -> None:
        self._base_url = base_url
        self._api_key_env = api_key_env
        self._concurrency = concurrency
        self._max_retries = max_retries
        self._timeout_seconds = timeout_seconds

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """Send chat completion requests, and give the replies in their order.

        Args:
            requests: the arguments of each, as the protocol names them.

        Raises:
            CredentialsError: There is no key, or the server refuses it.
            InputError: The server refuses the request, for another reason than the length or content of its texts.
            TryAgainError: The server cannot be reached, or fails however often it is asked.
        """
        key = find_key(self._base_url, self._api_key_env)
        # The loop has a thread of its own, so that this works where a loop runs already (a notebook), and so that an
        # interrupt arrives here at once and cancels what is under way.
        with start_blocking_portal() as portal:
            return portal.call(self._ask_all, requests, key)

    async def _ask_all(self, requests: Sequence[Mapping[str, Any]], key: str) -> list[Reply]:
        free = asyncio.Semaphore(self._concurrency)

        async def ask(request: Mapping[str, Any]) -> Reply:
            async with free:
                try:
                    return _read((await client.chat.completions.with_raw_response.create(**request)).text)
                except openai.APIStatusError as error:
                    if not _is_about_one_text(error):
                        raise
                    return Reply("", f"the server refuses the request: {_said(error)}")

        async with openai.AsyncOpenAI(
            base_url=self._base_url, api_key=key, max_retries=self._max_retries, timeout=self._timeout_seconds
        ) as client:
            try:
                return await asyncio.gather(*map(ask, requests))
            except openai.OpenAIError as error:
                problem = self._explain(error)
                shown = str(problem) if key == NO_KEY else str(problem).replace(key, "***")  # servers repeat keys
                raise type(problem)(shown) from None

    def _explain(self, error: openai.OpenAIError) -> SinterError:
        url, said = self._base_url, _said(error)
        resumes = "and give the same command again: nothing is lost"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            variable = key_variable(url, self._api_key_env)
            refused = f"the key in {variable}" if variable else "a request without a key"
            remedy = f"put a valid one into {variable}" if variable else "name the variable of its key in api_key_env"
            return CredentialsError(f"{url}: the server refuses {refused} ({said}); {remedy} {resumes}")
        if isinstance(error, openai.APITimeoutError):
            return TryAgainError(
                f"{url}: no reply within {self._timeout_seconds:g} s, though asked {self._max_retries + 1} times; "
                f"raise timeout_seconds, or lower concurrency, {resumes}"
            )
        if isinstance(error, openai.APIConnectionError):
            return TryAgainError(f"{url}: cannot be reached ({said}); start the server, or mend base_url, {resumes}")
        if (
            isinstance(error, openai.APIStatusError)
            and error.status_code not in (408, 409, 429)
            and (error.status_code < 500)
        ):
            return InputError(f"{url}: the server refuses the request ({said}); mend the model's name and settings")
        return TryAgainError(
            f"{url}: the server failed, though asked {self._max_retries + 1} times ({said}); wait, or lower "
            f"concurrency, {resumes}"
        )


def key_variable(base_url: str, api_key_env: str | None) -> str | None:
    """The environment variable that holds the server's key; None where no key is needed."""
    return api_key_env or ("OPENAI_API_KEY" if base_url.rstrip("/") == OPENAI_URL else None)


def find_key(base_url: str, api_key_env: str | None) -> str:
    """The server's key, from the environment.

    Raises:
        CredentialsError: It should be there and is not.
    """
    variable = key_variable(base_url, api_key_env)
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable, "").strip()
    if not key:
        raise CredentialsError(
            f"{base_url}: the environment variable {variable} holds no key; set it and give the same command again"
        )
    return key


def _read(body: str) -> Reply:
    """The reply in the body of a response, of which the client library checks nothing."""
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError:
        return Reply("", f"the response is not of the protocol's form: {body[:MAX_SHOWN]!r}")
    choice, model = completion.choices[0], completion.model or ""
    content = choice.message.content or ""
    if choice.finish_reason == "length":
        return Reply(content, "the reply was cut by the token limit", model)
    if not content:
        return Reply("", f"the reply is empty ({choice.message.refusal or choice.finish_reason})", model)
    return Reply(content, "", model)


def _is_about_one_text(error: openai.APIStatusError) -> bool:
    """Whether a server refuses one request for what it is asked to read, and may take others."""
    refused = error.status_code in _REFUSED and _ABOUT_ONE_TEXT.search(str(error)) is not None
    return refused or error.status_code == _TOO_LARGE


def _said(error: openai.OpenAIError) -> str:
    """What the error says, on one line; of a lost connection, what lies behind it."""
    cause = (isinstance(error, openai.APIConnectionError) and error.__cause__) or error
    return " ".join(str(cause).split())[:MAX_SHOWN] or type(cause).__name__
