"""The client of servers: limits, retries, failover, and what it never tells, with real servers in other processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import psutil
import pytest

from sinterlm.cli import exit_code
from sinterlm.endpoint import Endpoint, Received, RequestFailed, RequestRefused, client, host, transport
from sinterlm.endpoint.host import retry_after
from sinterlm.endpoint.keys import NO_KEY
from sinterlm.endpoint.limiter import TRIPS_AFTER
from sinterlm.endpoint.settings import Price, Served
from sinterlm.endpoint.turns import Turns
from sinterlm.errors import CredentialsError, InputError, SinterError, TryAgainError
from sinterlm.records import Usage
from sinterlm.testing import FAULTS, FaultServer, serve_faults
from tests.chat_server import Answer, ScriptedServer, serve
from tests.tiny_fusion import write_tiny_fusion

KEY = "sk-canary-4711"
MIX = dict.fromkeys(FAULTS, 0.0) | {
    "too-many": 0.05, "too-many-wait": 0.03, "server-error": 0.06, "reset": 0.05, "cut-body": 0.02, "drip": 0.01,
    "invalid-json": 0.02, "missing-fields": 0.02, "wrong-n": 0.01, "huge-body": 0.003, "html": 0.015, "redirect": 0.012,
}  # fmt: skip
"""30 percent of the requests meet a fault."""


def question(number: int) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": f"What is {number} plus 1?"}]}


def ask_all(endpoint: Endpoint, num_requests: int) -> Iterator[list[tuple[int, Received]]]:
    """Ask one question after the other, as many at once as the client does."""

    async def work(number: int) -> tuple[int, Received]:
        return number, await endpoint.post("/chat/completions", question(number))

    return endpoint.map(work, range(num_requests))


def outcome(endpoint: Endpoint, body: Mapping[str, Any] | None = None) -> Received | Exception:
    """What one request comes to."""

    async def work(request: Mapping[str, Any]) -> Received | Exception:
        try:
            return await endpoint.post("/chat/completions", request)
        except (RequestRefused, RequestFailed) as error:
            return error

    try:
        [[found]] = endpoint.map(work, [body or question(1)])
    except SinterError as error:
        return error
    return found


def content(received: Received) -> str:
    return str(received.value["choices"][0]["message"]["content"])


def in_turn(*answers: Answer) -> Callable[[dict[str, Any]], Answer]:
    left = iter(answers)
    return lambda request: next(left)


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_BACKOFF_SECONDS", 0.02)


# --- faults ----------------------------------------------------------------------------------------------------------


def check_mix(num_requests: int, **settings: Any) -> None:
    """Every request gets the reply to its own question, few are repeated, and memory stays flat."""
    replies = {question(number)["messages"][0]["content"]: str(number + 1) for number in range(num_requests)}
    process, memory = psutil.Process(), []
    with serve_faults(MIX, replies=replies, retry_after_seconds=0.02, seed=3) as server:
        endpoint = Endpoint(server.url, timeout_seconds=0.5, **settings)
        answered, num_sent = set(), 0
        for results in ask_all(endpoint, num_requests):
            for number, received in results:
                assert content(received) == str(number + 1)
                answered.add(number)
                num_sent += received.requests
                if len(answered) % (num_requests // 4) == 0:
                    memory.append(process.memory_info().rss)
        stats = server.stats()
    assert answered == set(range(num_requests))
    assert num_sent == stats.requests < 1.6 * num_requests
    assert sum(stats.faults.values()) == pytest.approx(0.3 * num_sent, rel=0.2)
    if num_requests >= 10_000:
        assert all(stats.faults.values())
        assert max(memory[1:]) - memory[0] < 48 * 2**20, "a huge body takes 16 MB for a moment"


def test_a_server_with_many_faults_answers_everything(no_backoff: None) -> None:
    check_mix(300, concurrency=16)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("concurrency", [None, 32])
def test_ten_thousand_requests_with_many_faults(concurrency: int | None) -> None:
    check_mix(10_000, concurrency=concurrency)


@pytest.mark.parametrize(
    ("limit", "num_requests"), [(12, 1000), pytest.param(60, 8000, marks=pytest.mark.slow)], ids=["12", "60"]
)
def test_the_limit_of_a_server_is_found(limit: int, num_requests: int) -> None:
    notes: list[str] = []
    seconds = (limit / 400, limit / 200)  # so that the limit and not this machine is what is found
    with serve_faults(limit=limit, seconds=seconds, limit_says_when=True, retry_after_seconds=0.02) as server:
        endpoint = Endpoint(server.url, on_note=notes.append)
        limits = [endpoint.limit for results in ask_all(endpoint, num_requests) for _ in results]
        stats = server.stats()
    settled = limits[num_requests // 2 :]
    assert sum(settled) / len(settled) == pytest.approx(limit, rel=0.15)
    assert stats.over_limit < 0.05 * num_requests
    assert "too many requests with" in notes[0]
    assert 1 <= len(notes) <= 4, "rarely enough for a log"


def test_a_redirect_in_mid_work_is_a_failure_and_the_other_host_gets_nothing(
    monkeypatch: pytest.MonkeyPatch, no_backoff: None
) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    with serve_faults() as other, serve_faults({"redirect": 0.2}, redirect_to=other.url, key=KEY) as server:
        endpoint = Endpoint(server.url, api_key_env="THE_KEY", concurrency=1)
        assert sum(map(len, ask_all(endpoint, 50))) == 50
        assert server.stats().faults["redirect"] > 2
        assert (other.stats().requests, other.stats().authorizations) == (0, [])
        assert server.stats().authorizations == [f"Bearer {KEY}"]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_passing_failures_are_tried_again(status: int, no_backoff: None) -> None:
    with serve(in_turn(Answer(status=status), Answer(status=status), Answer("5"))) as server:
        received = outcome(Endpoint(server.url))
    assert isinstance(received, Received)
    assert (content(received), received.requests, received.url) == ("5", 3, server.url)
    assert 0 < received.seconds < 1


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (400, "This model's maximum context length is 4096 tokens", "context-too-long"),
        (400, "The response was filtered due to our content management policy", "content-filtered"),
        (403, "Your input was flagged by moderation", "content-filtered"),
        (413, "too large", "too-large"),
        (422, "n must be 1", "refused"),
        (400, "n must be 1", "refused"),
    ],
)
def test_a_refused_request_is_sent_once(status: int, said: str, kind: str) -> None:
    with serve(lambda request: Answer(status=status, error=said)) as server:
        refused = outcome(Endpoint(server.url))
    assert isinstance(refused, RequestRefused)
    assert (refused.kind, refused.status, refused.detail) == (kind, status, f"code {status}: {said}")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (Answer(status=401), CredentialsError, "refuses a request without a key"),
        (Answer(status=403), CredentialsError, "refuses a request without a key"),
        (Answer(status=404, error="no such model"), InputError, "no such model"),
        (Answer(status=405), InputError, "check the model's name"),
        (Answer(status=402), TryAgainError, "no credit"),
        (Answer(status=429, body='{"error": {"code": "insufficient_quota"}}'), TryAgainError, "no credit"),
    ],
)
def test_a_server_that_refuses_everything_is_asked_once(answer: Answer, error: type, said: str) -> None:
    with serve(lambda request: answer) as server:
        found = outcome(Endpoint(server.url))
    assert type(found) is error
    assert said in str(found)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"detail": [{"loc": ["body", "n"], "msg": "at most 1"}]}', "at most 1"),
        ('{"message": "n is not supported"}', "n is not supported"),
        ('{"error": "n is not supported"}', "n is not supported"),
        ("plain text", "plain text"),
        ("", "without a message"),
    ],
)
def test_errors_are_read_in_the_forms_of_many_servers(body: str, said: str) -> None:
    with serve(lambda request: Answer(status=422, body=body)) as server:
        refused = outcome(Endpoint(server.url))
    assert isinstance(refused, RequestRefused)
    assert said in refused.detail


def test_a_request_that_keeps_failing_is_reported_and_the_others_are_answered(no_backoff: None) -> None:
    def script(request: dict[str, Any]) -> Answer:
        return Answer(body="<html>") if "What is 7 " in request["messages"][0]["content"] else Answer("5")

    with serve(script) as server:
        endpoint = Endpoint(server.url, max_retries=3)

        async def work(number: int) -> tuple[int, Received | RequestFailed]:
            try:
                return number, await endpoint.post("/chat/completions", question(number))
            except RequestFailed as error:
                return number, error

        found = dict(itertools.chain.from_iterable(endpoint.map(work, range(20))))
    failed = found.pop(7)
    assert isinstance(failed, RequestFailed)
    assert (failed.kind, failed.detail, failed.requests) == ("not-a-reply", "'<html>'", 4)
    assert len(found) == 19
    assert all(isinstance(received, Received) for received in found.values())


# --- when to ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "Tue, 01 Dec 2026 00:02:10 GMT", "date": "Tue, 01 Dec 2026 00:02:00 GMT"}, 10.0),
        ({"retry-after": "Tue, 01 Dec 2026 00:02:00 GMT", "date": "Tue, 01 Dec 2026 00:02:10 GMT"}, 0.0),
        ({"retry-after": "Tue, 01 Dec 2026 00:02:10 GMT", "date": "now"}, None),
    ],
)
def test_what_retry_after_says(headers: dict[str, str], seconds: float | None) -> None:
    """A date is compared with the server's own, because this machine's clock may be wrong."""
    assert retry_after(headers) >= 0 if seconds is None else retry_after(headers) == seconds


def test_a_date_without_the_servers_own_is_compared_with_the_clock() -> None:
    assert retry_after({"retry-after": formatdate(time.time() + 20, usegmt=True)}) == pytest.approx(20, abs=2)


def test_retry_after_holds_every_request_to_the_server(no_backoff: None) -> None:
    arrivals: list[float] = []

    def script(request: dict[str, Any]) -> Answer:
        arrivals.append(time.monotonic())
        return Answer(status=429, headers={"Retry-After": "0.4"}) if len(arrivals) == 1 else Answer("5")

    with serve(script) as server:
        endpoint = Endpoint(server.url, concurrency=1)
        assert sum(map(len, ask_all(endpoint, 4))) == 4
    first, *others = arrivals
    assert min(others) - first >= 0.39
    assert len(others) == 4


def test_a_wait_that_is_too_long_is_an_error() -> None:
    with serve(lambda request: Answer(status=429, headers={"Retry-After": "3600"})) as server:
        found = outcome(Endpoint(server.url))
    assert isinstance(found, TryAgainError)
    assert "asks to wait 3600 s" in str(found)


def test_requests_a_minute_are_kept() -> None:
    """Ten at once, and then ten a second."""
    started = time.monotonic()
    with serve(lambda request: Answer("5")) as server:
        assert sum(map(len, ask_all(Endpoint(server.url, requests_per_minute=600), 15))) == 15
    assert 0.45 < time.monotonic() - started < 3


def test_tokens_a_minute_are_counted_as_the_server_says() -> None:
    """Each reply took 100 tokens, though the request looks like 20: five in the first second, two in each other."""
    body = {"choices": [{"message": {"content": "5"}}], "usage": {"total_tokens": 100, "completion_tokens": 80}}
    started = time.monotonic()
    with serve(lambda request: Answer(body=json.dumps(body))) as server:
        endpoint = Endpoint(server.url, tokens_per_minute=12_000, concurrency=1)
        assert sum(map(len, ask_all(endpoint, 6))) == 6
    assert 1.4 < time.monotonic() - started < 6


# --- several servers -------------------------------------------------------------------------------------------------


def count_by_server(endpoint: Endpoint, num_requests: int, *, after: Callable[[int], object]) -> dict[str, int]:
    """How many replies came from each server; ``after`` is called with the number of replies until now."""
    counts: dict[str, int] = {}
    for results in ask_all(endpoint, num_requests):
        for _, received in results:
            counts[received.url] = counts.get(received.url, 0) + 1
            after(sum(counts.values()))
    return counts


def test_work_flows_to_the_servers_that_answer(no_backoff: None) -> None:
    notes: list[str] = []
    with serve_faults(seconds=(0.01, 0.02)) as one, serve_faults(seconds=(0.01, 0.02)) as two:
        endpoint = Endpoint([one.url, two.url], concurrency=8, on_note=notes.append)
        counts = count_by_server(endpoint, 600, after=lambda number: one.kill() if number == 200 else None)
        assert "1 servers not answering" in endpoint.state
    assert sum(counts.values()) == 600
    assert counts[one.url] == pytest.approx(100, abs=50)
    assert any(note.startswith(f"{one.url}: does not work (") for note in notes)


def test_a_server_that_refuses_its_key_leaves_the_work_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    notes: list[str] = []
    with serve_faults(key="another") as one, serve_faults(key=KEY) as two:
        endpoint = Endpoint([one.url, two.url], api_key_env="THE_KEY", on_note=notes.append)
        assert count_by_server(endpoint, 50, after=lambda number: None) == {two.url: 50}
        assert KEY not in "".join(notes)
    assert "refuses the key in THE_KEY" in notes[0]
    assert notes[0].endswith("; the other servers get the work")


def test_the_faster_server_gets_more(no_backoff: None) -> None:
    with serve_faults(seconds=(0.04, 0.04)) as slow, serve_faults(seconds=(0.01, 0.01)) as fast:
        counts = count_by_server(Endpoint([slow.url, fast.url], concurrency=4), 300, after=lambda number: None)
    assert counts[fast.url] > 2 * counts[slow.url]


def test_a_server_that_is_not_there_is_given_up_after_a_while(
    monkeypatch: pytest.MonkeyPatch, no_backoff: None
) -> None:
    monkeypatch.setattr(host, "FIRST_PATIENCE_SECONDS", 1.0)
    with serve(lambda request: Answer("")) as server:
        pass
    started = time.monotonic()
    with pytest.raises(TryAgainError, match=r"cannot be reached \(.*\), for \d s; start the server"):
        list(ask_all(Endpoint(server.url, max_retries=100), 50))
    assert 0.9 < time.monotonic() - started < 8


def test_a_server_that_does_not_answer_at_all_is_given_up_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue of connections is full, so that it is silent."""
    monkeypatch.setattr(transport, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        address = listening.getsockname()
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(address)
        started = time.monotonic()
        failed = outcome(Endpoint(f"http://127.0.0.1:{address[1]}/v1", max_retries=0, timeout_seconds=60))
        for other in others:
            other.close()
    assert isinstance(failed, RequestFailed)
    assert (failed.kind, failed.detail) == ("unreachable", "no connection within 0.3 s")
    assert time.monotonic() - started < 5


def test_a_server_that_was_given_up_is_asked_again_by_the_next_map(
    monkeypatch: pytest.MonkeyPatch, no_backoff: None
) -> None:
    monkeypatch.setattr(host, "FIRST_PATIENCE_SECONDS", 0.0)
    with serve_faults() as first:
        pass
    endpoint = Endpoint(first.url, concurrency=8)
    with pytest.raises(TryAgainError):
        list(ask_all(endpoint, 50))
    assert endpoint.state == "0 in flight, limit 8, not answering"
    with serve_faults(port=int(first.url.split(":")[2].split("/")[0])):
        assert sum(map(len, ask_all(endpoint, 50))) == 50


def test_a_certificate_that_nobody_signed_is_said_at_once(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def accept() -> None:
            with suppress(OSError):
                connection, _ = listening.accept()
                connection.settimeout(10)
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=accept)
        thread.start()
        error = outcome(Endpoint(f"https://127.0.0.1:{listening.getsockname()[1]}/v1"))
        thread.join()
    assert isinstance(error, InputError)
    assert "certificate verify failed" in str(error)


def test_a_server_that_is_started_again_gets_what_was_not_answered(no_backoff: None) -> None:
    notes: list[str] = []
    with serve_faults(seconds=(0.01, 0.02)) as first:
        port = int(first.url.split(":")[2].split("/")[0])
        endpoint = Endpoint(first.url, concurrency=8, on_note=notes.append)
        answered, again = 0, None
        try:
            for results in ask_all(endpoint, 200):
                answered += len(results)
                if again is None and answered >= 50:
                    first.kill()
                    again = serve_faults(port=port)
                    threading.Timer(1.0, again.__enter__).start()
        finally:
            if again:
                again.__exit__(None, None, None)
    assert answered == 200
    assert [note.split(": ")[1].split(" (")[0] for note in notes] == ["does not work", "works again"]


# --- maps ------------------------------------------------------------------------------------------------------------


def test_jobs_are_taken_only_if_there_is_room() -> None:
    taken = []

    def jobs() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    with serve_faults(seconds=(0.005, 0.01)) as server:
        endpoint = Endpoint(server.url, concurrency=8)

        async def work(number: int) -> int:
            await endpoint.post("/chat/completions", question(number))
            return number

        done = 0
        with closing(endpoint.map(work, jobs())) as results:
            for numbers in results:
                assert len(taken) - done <= 8 + 4
                done += len(numbers)
                if done >= 100:
                    break
        assert endpoint.most == 8
        assert endpoint.state == "0 in flight, limit 8", "the others were cancelled"


def test_an_error_ends_a_map_after_the_results_before_it() -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", concurrency=8)

    async def work(number: int) -> int:
        if number == 5:
            raise ZeroDivisionError("five")
        return number

    found: list[int] = []
    with pytest.raises(ZeroDivisionError, match="five"):
        found.extend(itertools.chain.from_iterable(endpoint.map(work, itertools.count())))
    assert {0, 1, 2, 3, 4} <= set(found)


@pytest.mark.parametrize("is_closed_by", ["its consumer", "another thread"])
def test_a_map_that_is_closed_does_not_wait_for_replies(is_closed_by: str) -> None:
    with serve(lambda request: Answer("5"), seconds=3.0) as server:
        endpoint = Endpoint(server.url, concurrency=4, timeout_seconds=60)
        started = time.monotonic()
        if is_closed_by == "another thread":
            threading.Timer(0.3, endpoint.close).start()
            assert list(ask_all(endpoint, 20)) == []
        else:

            async def work(number: int) -> int:
                if number:
                    await endpoint.post("/chat/completions", question(number))
                return number

            with closing(endpoint.map(work, range(20))) as results:
                assert next(results) == [0]
        assert time.monotonic() - started < 1.5
        assert endpoint.state == "0 in flight, limit 4"


def test_a_request_that_is_cancelled_when_it_gets_its_turn_gives_it_back() -> None:
    async def take_and_cancel() -> int:
        server = host.Host(
            "http://127.0.0.1:9/v1",
            api_key_env=None,
            limit=1,
            requests_per_minute=None,
            tokens_per_minute=None,
            timeout_seconds=1.0,
            on_note=print,
        )
        turns = Turns([server])
        _, first = await turns.take(0, None)
        second = asyncio.create_task(turns.take(0, None))
        await asyncio.sleep(0)
        server.give_up(first)
        turns.give()
        assert server.limiter.in_flight == 1, "it is the second one's turn"
        second.cancel()
        await asyncio.wait([second])
        return server.limiter.in_flight

    assert asyncio.run(take_and_cancel()) == 0


def test_what_was_found_out_is_known_to_the_next_map() -> None:
    with serve_faults(limit=6, seconds=(0.005, 0.01)) as server:
        endpoint = Endpoint(server.url)
        assert sum(map(len, ask_all(endpoint, 200))) == 200
        before = server.stats().over_limit
        for _ in range(5):
            assert sum(map(len, ask_all(endpoint, 20))) == 20
        assert before > 0
        assert server.stats().over_limit - before <= 3


def test_other_paths_and_other_replies() -> None:
    def is_list(value: Any) -> None:
        if not isinstance(value, list):
            raise ValueError

    with serve(in_turn(Answer(body='{"choices": []}'), Answer(body="[1, 2]"))) as server:
        endpoint = Endpoint(server.url)

        async def work(body: dict[str, Any]) -> Received:
            return await endpoint.post("/classify", body, check=is_list)

        [[received]] = endpoint.map(work, [{"input": "x" * (3 * 2**20)}])
    assert (received.value, received.requests) == ([1, 2], 2)
    assert len(server.requests[1]["input"]) == 3 * 2**20


def test_completions_are_checked_too() -> None:
    with serve_faults({"missing-fields": 0.3}, num_tokens=3) as server:
        endpoint = Endpoint(server.url)

        async def work(number: int) -> str:
            received = await endpoint.post("/completions", {"model": "m", "prompt": f"{number} + 1 ="})
            return str(received.value["choices"][0]["text"])

        texts = list(itertools.chain.from_iterable(endpoint.map(work, range(10))))
    assert [len(text.split()) for text in texts] == [3] * 10


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(lambda request: Answer("by proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        received = outcome(Endpoint("http://models.invalid/v1"))
        assert isinstance(received, Received)
        assert content(received) == "by proxy"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with serve(lambda request: Answer("direct")) as server:
            direct = outcome(Endpoint(server.url))
    assert isinstance(direct, Received)
    assert content(direct) == "direct"


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        *(Answer(status=status, error=f"your key {KEY}") for status in (400, 401, 403, 404, 413, 422, 429, 500)),
        Answer(body=f"<html>{KEY}"),
        Answer(status=302, headers={"Location": f"http://{KEY}.example/{KEY}?key={KEY}"}),
        Answer(body=b"", headers={"Content-Encoding": KEY}),
        Answer(body=KEY * 1000),
    ],
)
def test_a_key_that_a_server_repeats_is_in_no_message(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, no_backoff: None
) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    notes: list[str] = []
    with serve(lambda request: answer) as server:
        max_retries = 1 if answer.status == 429 else TRIPS_AFTER - 1  # so that it is noted that the server fails
        endpoint = Endpoint(server.url, api_key_env="THE_KEY", max_retries=max_retries, on_note=notes.append)
        error = outcome(endpoint)
    assert isinstance(error, Exception)
    assert KEY not in "".join([*notes, str(error), repr(error), str(vars(error)), repr(endpoint)])
    assert error.__cause__ is None


def test_a_key_is_in_no_file_that_a_run_writes_and_in_nothing_that_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], no_backoff: None
) -> None:
    """Though the server repeats it in replies that fail, in refusals and in its errors."""
    monkeypatch.setenv("THE_KEY", KEY)
    recipe = write_tiny_fusion(tmp_path)
    answers = itertools.cycle(
        [
            Answer("5"),
            Answer(status=400, error=f"{KEY} is too long for the context"),
            Answer(status=500, error=KEY),
            Answer(body=KEY),
            Answer(status=422, error=KEY),
            Answer("6"),
        ]
    )
    with serve(lambda request: next(answers)) as server:
        source: dict[str, Any] = {"engine": "endpoint", "model": "m", "base_url": server.url, "api_key_env": "THE_KEY"}
        source |= {"max_retries": 1, "max_failed": 1.0, "concurrency": 2}
        override = f"sources={json.dumps({'served': source})}"
        for command in (["run", recipe, override, "--until", "sample-sources"], ["status", tmp_path / "run"]):
            monkeypatch.setattr("sys.argv", ["sinterlm", *map(str, command)])
            exit_code()
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name.startswith("store.sqlite") for path in written)
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    printed, said = capfd.readouterr()
    assert "***" in printed + said, "the failures are shown"
    assert KEY not in printed + said


def test_without_a_key_a_placeholder_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda request: Answer("5")) as server:
        outcome(Endpoint(server.url))
    assert server.headers[0]["authorization"] == f"Bearer {NO_KEY}"


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_build_the_client() -> None:
    def both(server: ScriptedServer | FaultServer, **settings: Any) -> Endpoint:
        return Served.model_validate({"base_url": [f"{server.url}/", server.url], **settings}).build_endpoint()

    with serve(lambda request: Answer("5"), seconds=0.01) as server:
        endpoint = both(server, concurrency=3)
        assert sum(map(len, ask_all(endpoint, 30))) == 30
        assert (endpoint.limit, endpoint.most, server.most_open) == (6, 3, 6)


def test_what_usage_costs() -> None:
    usage = Usage(3, prompt_tokens=2_000_000, cached_tokens=500_000, new_tokens=100_000)
    assert Price(input=2.0, output=10.0).money(usage) == 5.0
    assert Price(input=2.0, output=10.0, cached_input=0.2).money(usage) == pytest.approx(4.1)
    assert Served().money(usage) is None
    assert Served(price=Price(output=10.0)).money(usage) == 1.0
