"""Jobs at a provider: a file of requests is uploaded, worked off within a day or so, and its results downloaded.

The API is OpenAI's ``/files`` and ``/batches``, which other providers and servers have taken over.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event
from typing import IO, Any, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from sinterlm.endpoint.host import retry_after
from sinterlm.endpoint.keys import NO_KEY, find_key, key_variable
from sinterlm.endpoint.replies import parse_json, said, shown, without_secrets
from sinterlm.endpoint.transport import CONNECT_SECONDS, find_proxy
from sinterlm.errors import CredentialsError, InputError, SinterError, TryAgainError
from sinterlm.files import full_disk_said
from sinterlm.sampling.jobs import Handle, Progress, is_json

Returned = TypeVar("Returned")

FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0
"""A call waits a random part of this before its second try, of twice as much before its third, ..."""
MAX_PAGES = 1000
"""Pages of the list of jobs that are searched."""
CLOCKS_DIFFER_SECONDS = 86_400.0
"""How much earlier than by this machine's clock a job may have been created, by the server's."""
OUR_KEY = "sinterlm"
"""In a job's metadata: its name."""
_OVER = ("completed", "expired", "cancelled", "failed")


class _TransientError(Exception):
    """A call failed and may succeed next time.

    Args:
        detail: What happened.
        seconds: How long the server asks to wait.
    """

    def __init__(self, detail: str, seconds: float = 0.0) -> None:
        super().__init__(detail)
        self.seconds = seconds


class _MissingError(Exception):
    """The server does not know what is asked for."""


class ProviderJobs:
    """Runs jobs at a server with OpenAI's batch API.

    Args:
        base_url: The server, up to ``/v1``.
        api_key_env: See :func:`~sinterlm.endpoint.keys.key_variable`.
        most: Jobs at once.
        completion_window: How long a job may take.
        timeout_seconds: How long the server may be silent within one call.
        max_retries: How often a failed call is repeated.
        asks_again_for_lost: Whether a job that the server does not know is done again, instead of refused.

    Raises:
        CredentialsError: There is no key for the server.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key_env: str | None,
        most: int,
        completion_window: str,
        timeout_seconds: float,
        max_retries: int,
        asks_again_for_lost: bool,
    ) -> None:
        self.most = most
        self.place = base_url
        self._completion_window = completion_window
        self._max_retries = max_retries
        self._asks_again_for_lost = asks_again_for_lost
        self._variable = key_variable(base_url, api_key_env)
        self._key = find_key(base_url, api_key_env)
        self._closed = Event()
        self._give_up: Callable[[], object] | None = None
        """Ends the call that is under way."""
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(CONNECT_SECONDS, timeout_seconds), sock_read=timeout_seconds
        )

    # -- the runner ----------------------------------------------------------------------------------------------

    def submit(self, name: str, requests: IO[bytes], url: str, folder: Path, note: Callable[[Handle], None]) -> Handle:
        """See :meth:`~sinterlm.sampling.jobs.Runner.submit`."""
        try:
            return self._submit(name, requests, url, note)
        except _MissingError as error:
            raise InputError(
                f"{self.place}: submitting a job failed ({error}); check that the server has OpenAI's batch API"
            ) from None

    def _submit(self, name: str, requests: IO[bytes], url: str, note: Callable[[Handle], None]) -> Handle:
        note({"since": time.time()})
        file = self._again("uploading requests", lambda: self._upload(name, requests))
        handle = {"since": time.time(), "file": file}
        note(handle)
        body = {
            "input_file_id": file,
            "endpoint": url,
            "completion_window": self._completion_window,
            "metadata": {OUR_KEY: name},
        }

        is_unsure = False

        def create() -> Handle:
            nonlocal is_unsure
            if is_unsure and (found := self._find(name, handle)) is not None:
                return found  # a call that failed has created it nevertheless
            is_unsure = True
            return {**handle, "batch": _id(self._call("POST", "/batches", json=body))}

        return self._again("submitting a job", create)

    def find(self, name: str, handle: Handle, folder: Path) -> Handle | None:
        """See :meth:`~sinterlm.sampling.jobs.Runner.find`."""
        search = lambda: self._find(name, handle)  # noqa: E731  it is called twice
        found = self._again("looking for a job", search)
        if found is None and "file" in handle:
            # Without its file, a request to create the job that is still on its way creates nothing.
            with suppress(SinterError, _MissingError):
                self._again("removing a file", lambda: self._call("DELETE", f"/files/{quote(handle['file'])}"))
            found = self._again("looking for a job", search)
        return found

    def poll(self, name: str, handle: Handle, folder: Path) -> Progress:
        """See :meth:`~sinterlm.sampling.jobs.Runner.poll`."""
        batch = self._batch(handle)
        if batch is None:
            return Progress(is_over=True, ended="lost-by-the-server")
        status = str(batch.get("status", "")).lower()
        if status not in _OVER:
            return Progress(is_over=False, num_done=_count(batch, "completed") + _count(batch, "failed"))
        if status != "failed":
            return Progress(is_over=True, ended="" if status == "completed" else status)
        said_of = "; ".join(_errors(batch)) or "it does not say why"
        is_full = "limit" in said_of.lower()
        remedy = "wait until other jobs have ended, or lower chunk" if is_full else "correct what it says"
        problem = f"{self.place}: the server refuses a job ({self._clean(said_of)}); {remedy}, and rerun the command"
        return Progress(is_over=True, ended=status, problem=problem, is_full=is_full)

    def results(self, name: str, handle: Handle, folder: Path) -> Iterator[bytes]:
        """See :meth:`~sinterlm.sampling.jobs.Runner.results`."""
        batch = self._batch(handle) or {}
        for kind, least in (("output", _count(batch, "completed")), ("error", 0)):
            file = batch.get(f"{kind}_file_id")
            if isinstance(file, str) and file:
                with TemporaryFile(dir=folder) as results:
                    download = partial(self._download, file, results, least)
                    try:
                        with full_disk_said(folder):
                            self._again("downloading results", download)
                    except _MissingError as error:
                        self._lose(f"the results of the job {handle['batch']}", error)
                    results.seek(0)
                    yield from results

    def close(self) -> None:
        """See :meth:`~sinterlm.sampling.jobs.Runner.close`; a call that is under way is given up."""
        self._closed.set()
        if self._give_up is not None:
            with suppress(RuntimeError):  # it has just ended
                self._give_up()

    # -- calls ---------------------------------------------------------------------------------------------------

    def _upload(self, name: str, requests: IO[bytes]) -> str:
        requests.seek(0)
        content = os.fdopen(os.dup(requests.fileno()), "rb")  # aiohttp closes what it has sent
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", content, filename=f"{name}.jsonl", content_type="application/jsonl")
        return _id(self._call("POST", "/files", data=form))

    def _find(self, name: str, handle: Handle) -> Handle | None:
        """The job of this name, among those of the server, which most servers list with the newest first."""
        after: str | None = None
        for _ in range(MAX_PAGES):
            try:
                page = self._call("GET", "/batches", params={"limit": "100"} | ({"after": after} if after else {}))
            except _MissingError as error:
                self._lose("its jobs, one of which a killed command was submitting", error)
                return None
            batches = [batch for batch in page.get("data") or () if isinstance(batch, dict)]
            for batch in batches:
                metadata = batch.get("metadata")
                is_named = isinstance(metadata, dict) and metadata.get(OUR_KEY) == name
                if is_named or ("file" in handle and batch.get("input_file_id") == handle["file"]):
                    return {**handle, "batch": _id(batch)}
            times = [created for batch in batches if isinstance(created := batch.get("created_at"), int | float)]
            newest_first = len(times) > 1 and times[0] > times[-1]
            if newest_first and times[-1] < handle.get("since", 0.0) - CLOCKS_DIFFER_SECONDS:
                return None
            if not batches or not page.get("has_more"):
                return None
            after = _id(batches[-1])
        return None

    def _batch(self, handle: Handle) -> Mapping[str, Any] | None:
        """What the server says of a job; None if it is lost and is to be done again."""
        try:
            return self._again("asking for a job", lambda: self._call("GET", f"/batches/{quote(handle['batch'])}"))
        except _MissingError as error:
            self._lose(f"the job {handle['batch']}", error)
            return None

    def _lose(self, what: str, error: _MissingError) -> None:
        """Something paid for may be gone.

        Raises:
            InputError: The recipe does not say to ask again.
        """
        if not self._asks_again_for_lost:
            raise InputError(
                f"{self.place}: the server does not know {what} ({error}). Use the key of the account that submitted "
                "it; if it is gone, add `lost_jobs: ask-again`, which may pay for its answers a second time"
            )

    def _download(self, file: str, target: IO[bytes], least: int) -> None:
        """Download a file of at least ``least`` lines."""
        target.seek(0)
        target.truncate()
        num_lines, last = 0, b""

        async def write(response: aiohttp.ClientResponse) -> None:
            nonlocal num_lines, last
            async for chunk in response.content.iter_any():
                target.write(chunk)
                num_lines += chunk.count(b"\n")
                last = (last + chunk).rpartition(b"\n")[2]

        self._send("GET", f"/files/{quote(file)}/content", write)
        num_lines += is_json(last)
        if num_lines < least:
            raise _TransientError(f"a file of {num_lines} results, although {least} requests are done")

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Send one request; the reply is a JSON object."""
        body = b""

        async def read(response: aiohttp.ClientResponse) -> None:
            nonlocal body
            body = await response.read()

        self._send(method, path, read, **options)
        try:
            value = parse_json(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise _TransientError(f"no reply of such an API: {shown(body)}")
        return value

    def _send(
        self, method: str, path: str, read: Callable[[aiohttp.ClientResponse], Awaitable[None]], **options: Any
    ) -> None:
        """Send one request, and read the response if it is a success.

        Raises:
            _TransientError: Another try may succeed.
            _MissingError: There is no such thing, or no such call.
            SinterError: No try will.
        """

        async def send() -> None:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task
            self._give_up = partial(loop.call_soon_threadsafe, task.cancel)
            self._check_open()
            headers = {"authorization": f"Bearer {self._key}", "user-agent": "sinterlm"}
            url = URL(self.place + path)
            proxy = find_proxy(url, urllib.request.getproxies())
            # Redirects are not followed: another server must not get the prompts.
            async with (
                aiohttp.ClientSession(headers=headers, timeout=self._timeout) as session,
                session.request(method, url, proxy=proxy, allow_redirects=False, **options) as response,
            ):
                if 200 <= response.status < 300:
                    await read(response)
                else:
                    self._raise(response.status, response.headers, await response.read())

        try:
            asyncio.run(send())  # calls are few, and the engine has a thread of its own
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise _TransientError(str(error) or type(error).__name__) from error
        except asyncio.CancelledError:
            self._check_open()
            raise
        finally:
            self._give_up = None

    def _again(self, doing: str, call: Callable[[], Returned]) -> Returned:
        """Make a call, again after transient failures.

        Raises:
            TryAgainError: It still fails after all retries.
        """
        for num_failed in range(self._max_retries + 1):
            self._check_open()
            try:
                return call()
            except _TransientError as error:
                last = error
            backoff = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0**num_failed)
            if num_failed < self._max_retries:
                self._closed.wait(max(random.uniform(0, backoff), last.seconds))
        raise TryAgainError(
            f"{self.place}: {doing} failed, though tried {self._max_retries + 1} times ({self._clean(str(last))}); "
            "rerun the command to resume: nothing is lost"
        )

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise TryAgainError(f"{self.place}: given up; rerun the command to resume")

    def _raise(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Raise what a response means that is not a success: see :meth:`_send`."""
        detail, url = self._clean(said(status, body)), self.place
        if status in (408, 409, 429) or status >= 500:
            raise _TransientError(detail, retry_after(headers))
        if status in (401, 403):
            where = f"the key in {self._variable}" if self._variable else "a request without a key"
            raise CredentialsError(f"{url}: the server refuses {where} ({detail}); correct it, and rerun the command")
        if 300 <= status < 400:
            elsewhere = without_secrets(headers.get("location", ""))
            raise InputError(
                f"{url}: the server redirects to {elsewhere!r} (code {status}), which is not followed, because prompts "
                "and key are meant for the server of base_url; if you trust the other address, put it into base_url"
            )
        if status in (404, 405, 501):
            raise _MissingError(detail)
        raise InputError(f"{url}: the server refuses a call ({detail}); check that it has OpenAI's batch API")

    def _clean(self, text: str) -> str:
        """The text without the key: servers repeat keys."""
        return text if self._key == NO_KEY else text.replace(self._key, "***")


def _id(value: Mapping[str, Any]) -> str:
    """The id of a file or job.

    Raises:
        _TransientError: It has none.
    """
    if not isinstance(value.get("id"), str) or not value["id"]:
        raise _TransientError(f"a reply without an id: {json.dumps(value)[:200]}")
    return str(value["id"])


def _count(batch: Mapping[str, Any], kind: str) -> int:
    counts = batch.get("request_counts")
    count = counts.get(kind) if isinstance(counts, dict) else None
    return count if isinstance(count, int) else 0


def _errors(batch: Mapping[str, Any]) -> Iterator[str]:
    """Why a job was refused."""
    errors = batch.get("errors")
    for error in (errors.get("data") if isinstance(errors, dict) else None) or ():
        if isinstance(error, dict):
            yield " ".join(f"{error.get('code') or ''}: {error.get('message') or ''}".split())[:500]
