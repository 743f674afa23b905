"""Sends one request and reads its response, all of it bounded.

aiohttp is used as it is, and not below the openai client: that builds models of every request and response, which takes
several times as long as all the rest, and what it adds (retries, errors) the limits and checks here must do themselves.
"""

from __future__ import annotations

import io
import ssl
import urllib.request
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp
from yarl import URL

from sinterlm.endpoint.replies import MAX_SHOWN, FailureKind, shown

MAX_BYTES = 16 * 2**20
"""The largest response: a reply of a million tokens fits."""
CONNECT_SECONDS = 30.0
"""How long it may take to find a server and connect to it."""
KEEP_SECONDS = 4.0
"""How long an idle connection is kept: uvicorn, below most servers of models, closes it after five seconds."""

_ENCODINGS = {"gzip": 31, "deflate": 47}
"""Accepted encodings of a body, and how zlib calls them. Others may expand without bound."""
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_LARGE_REQUEST = 2**20
"""aiohttp wants to be given larger bodies as files."""


class Response(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    """Whole and decoded."""


class NoResponseError(Exception):
    """No whole response came back.

    Args:
        kind: What happened instead.
        detail: The same in words.
        is_final: Whether trying again is useless.
    """

    def __init__(self, kind: FailureKind, detail: str, *, is_final: bool = False) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = " ".join(detail.split())[:MAX_SHOWN]
        self.is_final = is_final


class Transport:
    """Connections of one event loop, kept open between requests. Use it as an asynchronous context manager.

    Redirects are not followed: another server must not get the prompts. Proxies of the environment are used; other
    settings of the environment, such as keys in ``~/.netrc``, are not.

    Args:
        timeout_seconds: Deadline for one response, from the request to the last byte.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=timeout_seconds, connect=min(timeout_seconds, CONNECT_SECONDS), ceil_threshold=60
        )
        self._proxies = urllib.request.getproxies()

    async def __aenter__(self) -> Transport:
        """Open the session."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_SECONDS, ssl=ssl.create_default_context())
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent",),
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close every connection."""
        await self._session.close()

    async def post(self, url: URL, body: bytes, headers: Mapping[str, str]) -> Response:
        """Send a request and wait for the whole response.

        Raises:
            NoResponseError: None came back, or one that is too large or cannot be decoded.
        """
        data = body if len(body) < _LARGE_REQUEST else io.BytesIO(body)
        try:
            async with self._session.post(
                url, data=data, headers=headers, proxy=find_proxy(url, self._proxies), allow_redirects=False
            ) as response:
                raw = await _read(response)
                return Response(response.status, response.headers, _decode(raw, response))
        except aiohttp.ConnectionTimeoutError as error:
            raise NoResponseError("unreachable", f"no connection within {self._timeout.connect:g} s") from error
        except TimeoutError as error:
            raise NoResponseError("timed-out", "the whole response took too long") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise NoResponseError("unreachable", str(error), is_final=True) from error
        except aiohttp.ClientConnectorError as error:
            raise NoResponseError("unreachable", str(error.os_error) or str(error)) from error
        except aiohttp.ClientResponseError as error:
            raise NoResponseError("not-a-reply", f"no response of HTTP ({error})") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoResponseError("disconnected", str(error) or type(error).__name__) from error


def find_proxy(url: URL, proxies: Mapping[str, str]) -> str | None:
    """The proxy for requests to a server; none for this machine, which no proxy reaches.

    (aiohttp's own ``trust_env`` also reads ``~/.netrc``, and puts what it finds there in place of the key.)

    Args:
        url: The server.
        proxies: Those of the environment (:func:`urllib.request.getproxies`).
    """
    if not proxies or url.host in _THIS_MACHINE:
        return None
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return None if proxy is None or urllib.request.proxy_bypass(url.host or "") else proxy


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The raw body.

    Raises:
        NoResponseError: It is larger than a reply can be.
    """
    content = response.content
    body = await content.readany()
    if content.at_eof():
        return body
    chunks = bytearray(body)
    while chunk := await content.readany():
        chunks += chunk
        if len(chunks) > MAX_BYTES:
            raise _too_large(bytes(chunks[:MAX_SHOWN]))
    return bytes(chunks)


def _decode(raw: bytes, response: aiohttp.ClientResponse) -> bytes:
    """The body without its encoding.

    Raises:
        NoResponseError: It is larger than a reply can be, in another encoding, or broken.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return raw
    if encoding not in _ENCODINGS:
        raise NoResponseError("not-a-reply", f"a body in the encoding {encoding[:MAX_SHOWN]!r}")
    try:
        decoder = zlib.decompressobj(_ENCODINGS[encoding])
        body = decoder.decompress(raw, MAX_BYTES + 1)
    except zlib.error as error:
        raise NoResponseError("not-a-reply", f"a body that is not compressed as it says ({error})") from error
    if len(body) > MAX_BYTES:
        raise _too_large(body)
    if not decoder.eof:
        raise NoResponseError("not-a-reply", "a body that is not compressed as it says (it is cut)")
    return body


def _too_large(body: bytes) -> NoResponseError:
    return NoResponseError(
        "not-a-reply", f"a body of more than {MAX_BYTES // 2**20} MB that begins with {shown(body[: 4 * MAX_SHOWN])}"
    )
