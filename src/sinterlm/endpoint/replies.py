"""What a server's response means: a value, a refusal of one request, a failure to try again, or the end."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from sinterlm.records import Usage

MAX_SHOWN, MAX_BODY_SHOWN = 500, 300
"""How many characters messages quote of what a server says, and of a body that is not a reply."""

RefusalKind = Literal["context-too-long", "content-filtered", "too-large", "refused"]
FailureKind = Literal["timed-out", "unreachable", "disconnected", "not-a-reply", "rate-limited", "server-error"]

_ABOUT_CONTENT = re.compile(r"content[ _](filter|policy|management)|moderation|flagged", re.IGNORECASE)
_ABOUT_LENGTH = re.compile(r"context|too long", re.IGNORECASE)
"""Match refusals of a text that a filter blocks or that is too long for the model. Other requests may succeed."""
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class RequestRefused(Exception):
    """A server will never accept this request; it may accept others.

    Args:
        kind: ``refused`` if the texts of the request are not the reason.
        detail: What the server said.
        status: The HTTP status code.
        advice: The same as a sentence that begins with the address and says what to do.
    """

    def __init__(self, kind: RefusalKind, detail: str, status: int, advice: str) -> None:
        super().__init__(advice)
        self.kind = kind
        self.detail = detail
        self.status = status
        self.advice = advice


class TryFailed(Exception):
    """One try of a request failed; another may succeed.

    Args:
        kind: How it failed.
        detail: What the server said, or what happened instead.
    """

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.detail = detail


class RequestFailed(Exception):
    """A request still failed after all retries.

    Args:
        kind: How the last try failed.
        detail: What the server said, or what happened instead.
        requests: How often the request was sent.
        advice: What went wrong and what to do, as a sentence that begins with the address.
    """

    def __init__(self, kind: FailureKind, detail: str, requests: int, advice: str) -> None:
        super().__init__(advice)
        self.kind = kind
        self.detail = detail
        self.requests = requests
        self.advice = advice


class NotAReplyError(ValueError):
    """A response that is not a reply, whatever its status code says."""


class Reply(NamedTuple):
    """What a model said, or why it said nothing."""

    content: str
    problem: str = ""
    """Why there is no whole reply, in words; empty for a whole reply."""
    model: str = ""
    """The model as the server names it, which may be a dated version of the one requested."""
    usage: Usage = Usage()


def parse_json(body: bytes) -> Any:
    """The value in the body of a response.

    Half a surrogate pair becomes a question mark. (A server that counts in UTF-16 may cut a reply within a pair.)

    Raises:
        NotAReplyError: The body is not JSON.
    """
    try:
        value = json.loads(body.removeprefix(codecs.BOM_UTF8))
        if _LONE_SURROGATE.search(body):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
        return value
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise NotAReplyError from error


def check_completion(value: Any) -> None:
    """Check that a response is a chat completion or a completion.

    Raises:
        NotAReplyError: It is not, or a router says that the model's own server failed.
    """
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise NotAReplyError
    for choice in choices:
        if not isinstance(choice, dict) or choice.get("error") is not None or choice.get("finish_reason") == "error":
            raise NotAReplyError
        message = choice.get("message", choice)  # a completion has its text beside the finish reason
        texts = [message.get(key) for key in ("content", "refusal", "text")] if isinstance(message, dict) else [0]
        if (message is choice and not isinstance(choice.get("text"), str)) or not all(
            text is None or isinstance(text, str) for text in texts
        ):
            raise NotAReplyError


def read_reply(completion: Mapping[str, Any]) -> Reply:
    """What the model said in a completion that was checked."""
    choice = completion["choices"][0]
    message, finish_reason = choice["message"], choice.get("finish_reason")
    content, model = message.get("content") or "", str(completion.get("model") or "")
    if finish_reason == "length":
        return Reply(content, "the reply was cut by the token limit", model)
    if not content:
        return Reply("", f"the reply is empty ({message.get('refusal') or finish_reason})", model)
    return Reply(content, "", model)


def is_about_content(body: bytes) -> bool:
    """Whether a refusal says that a filter blocks the texts of the request."""
    return _ABOUT_CONTENT.search(body.decode(errors="replace")) is not None


def read_usage(value: Any) -> Usage:
    """The tokens that a response says it took, without the requests; none if it does not say."""
    usage = value.get("usage") if isinstance(value, Mapping) else None
    if not isinstance(usage, Mapping):
        return Usage()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    tokens = (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"))
    return Usage(0, *(number if isinstance(number, int) and number > 0 else 0 for number in tokens))


def refusal_kind(status: int, body: bytes) -> RefusalKind:
    """Why a server cannot accept a request (400, 413, 422)."""
    if status == 413:
        return "too-large"
    if is_about_content(body):
        return "content-filtered"
    return "context-too-long" if _ABOUT_LENGTH.search(body.decode(errors="replace")) else "refused"


def said(status: int, body: bytes) -> str:
    """What a server says about an error, on one line."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    text = _find_message(value) or (shown(body) if body.strip() else "without a message")
    return f"code {status}: {' '.join(text.split())}"[:MAX_SHOWN]


def _find_message(value: Any) -> str:
    """The message of an error as OpenAI, FastAPI and others write it."""
    while isinstance(value, dict):
        value = next((value[key] for key in ("error", "message", "detail") if value.get(key)), None)
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def shown(body: bytes) -> str:
    """The beginning of a body, on one line."""
    if not body:
        return "an empty body"
    text = " ".join(body[: 4 * MAX_BODY_SHOWN].decode(errors="replace").split())
    return repr(text if len(text) <= MAX_BODY_SHOWN else f"{text[:MAX_BODY_SHOWN]}...")


def without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment, any of which may hold a key."""
    return re.sub(r"//[^/@]*@", "//", re.split("[?#]", url)[0])[:MAX_SHOWN]
