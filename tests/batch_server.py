"""A server with the API of batch jobs, over real sockets: it works off files of requests on its own."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
Work = Callable[[Json], Json | str | None]
"""What becomes of a request: a line of the results, an odd line as it is, or None if the job ended before it."""


def reply(request: Json, *, texts: list[str] | None = None) -> Json:
    """A line of the results with an answer to each sample, which depends on the request alone."""
    body = request["body"]
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    texts = [f"{asked} #{number} {body['seed']}" for number in range(body.get("n", 1))] if texts is None else texts
    choices = [
        {"index": index, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, "text": text}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 4 * len(texts)}
    value = {"model": f"{body['model']}-2026-01-01", "choices": choices, "usage": usage}
    return line(request, 200, value)


def line(request: Json, status: int, body: Any) -> Json:
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "x", "custom_id": request["custom_id"], "response": response, "error": None}


def _choices(body: Any) -> list[Any]:
    return body.get("choices") or [0] if isinstance(body, dict) else [0]


def refusal(request: Json, message: str, status: int = 400) -> Json:
    return line(request, status, {"error": {"message": message, "type": "invalid_request_error"}})


@dataclass
class BatchServer:
    """What the server has, and what it was asked for. Its behaviour may be changed at any time."""

    url: str = ""
    work: Work = reply
    polls: int = 1
    """How often a job must be looked at before it is over."""
    status: str = "completed"
    """How jobs end."""
    errors: list[Json] = field(default_factory=list)
    """Why a job of the status ``failed`` was refused."""
    before: Callable[[str], int | None] = lambda call: None
    """Called with a call such as ``POST /batches`` before it is done; an HTTP status is sent in its place."""
    after: Callable[[str], bool | None] = lambda call: None
    """Called with a call when it is done; if it returns True, the connection is closed without a response."""
    hidden: str = ""
    """A field of jobs that their list leaves out."""
    location: str = ""
    """Where redirects point to."""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, Json] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    most_open: int = 0
    """The most jobs that were at work at once."""
    looks: list[float] = field(default_factory=list)
    """When jobs were looked at, in seconds."""
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each sample of each prompt was answered, which is what is paid for."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def paid(self) -> int:
        return self.answered.total()

    @property
    def requests(self) -> list[Json]:
        """Every request of every job."""
        return [request for batch in self.batches.values() for request in self.requests_of(batch)]

    def requests_of(self, body: Json) -> list[Json]:
        """The requests of a job."""
        return [json.loads(text) for text in self.files[body["input_file_id"]].splitlines()]

    def create(self, body: Json) -> tuple[int, Json]:
        if body["input_file_id"] not in self.files:
            return 400, {"error": {"message": "no such file"}}
        assert {body["endpoint"]} == {
            json.loads(text)["url"] for text in self.files[body["input_file_id"]].splitlines()
        }
        batch = {
            "id": f"batch_{len(self.batches)}",
            "object": "batch",
            "status": "validating",
            "created_at": int(time.time()),
            "left": self.polls,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            **body,
        }
        self.batches[batch["id"]] = batch
        at_work = [other for other in self.batches.values() if other["status"] in ("validating", "in_progress")]
        self.most_open = max(self.most_open, len(at_work))
        return 200, batch

    def look_at(self, batch: Json) -> Json:
        self.looks.append(time.monotonic())
        if batch["status"] in ("validating", "in_progress"):
            batch["left"] -= 1
            batch["status"] = "in_progress"
            if batch["left"] < 0:
                self.finish(batch)
        return batch

    def finish(self, batch: Json) -> None:
        batch["status"] = self.status
        if self.status == "failed":
            batch["errors"] = {"object": "list", "data": self.errors}
            return
        output: list[str] = []
        errors: list[str] = []
        for request in self.requests_of(batch):
            result = self.work(request)
            if result is None:
                continue
            if isinstance(result, str):
                output.append(result)
                continue
            response = result["response"]
            is_answer = response is not None and response["status_code"] == 200
            (output if is_answer else errors).append(json.dumps(result))
            if is_answer:
                prompt, first, _ = request["custom_id"].split("-")
                for number in range(len(_choices(response["body"]))):
                    self.answered[prompt, int(first) + number] += 1
        for kind, lines in (("output", output), ("error", errors)):
            if lines:
                lines.reverse()  # results come in any order
                batch[f"{kind}_file_id"] = f"file_{kind}_{batch['id']}"
                self.files[batch[f"{kind}_file_id"]] = "".join(f"{text}\n" for text in lines).encode()
        batch["request_counts"] = {"total": 0, "completed": len(output), "failed": len(errors)}


@contextmanager
def serve_batches(state: BatchServer) -> Iterator[BatchServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_DELETE(self) -> None:
            self._answer("DELETE")

        def _answer(self, method: str) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            address = urlsplit(self.path)
            path = address.path.removeprefix("/v1")
            call = f"{method} /{path.split('/')[1]}{'/content' if path.endswith('/content') else ''}"
            with state.lock:
                state.calls.append(call)
                state.keys.add(self.headers["Authorization"])
            before, after = state.before, state.after
            status = before(call)
            if status is None:
                with state.lock:
                    status, value = self._do(method, path, parse_qs(address.query), data)
            else:
                value = {"error": {"message": "scripted"}}
            if after(call):
                self.close_connection = True
                return
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            with suppress(ConnectionError):
                self.send_response(status)
                if state.location:
                    self.send_header("Location", state.location)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def _do(self, method: str, path: str, query: dict[str, list[str]], data: bytes) -> tuple[int, Any]:
            match [method, *path.strip("/").split("/")]:
                case ["POST", "files"]:
                    header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                    parts: dict[Any, Any] = {
                        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                        for part in BytesParser(policy=HTTP).parsebytes(header + data).iter_parts()
                    }
                    assert parts["purpose"] == b"batch"
                    name = f"file_{len(state.files)}"
                    state.files[name] = bytes(parts["file"])
                    return 200, {"id": name, "object": "file", "bytes": len(state.files[name])}
                case ["GET", "files", name, "content"] if name in state.files:
                    return 200, state.files[name]
                case ["DELETE", "files", name] if name in state.files:
                    del state.files[name]
                    return 200, {"id": name, "deleted": True}
                case ["POST", "batches"]:
                    return state.create(json.loads(data))
                case ["GET", "batches"]:
                    newest = list(reversed(state.batches.values()))
                    ids = [batch["id"] for batch in newest]
                    start = ids.index(query["after"][0]) + 1 if "after" in query else 0
                    end = start + min(2, int(query["limit"][0]))  # pages of two, so that there are several
                    page = [{k: v for k, v in batch.items() if k != state.hidden} for batch in newest[start:end]]
                    return 200, {"object": "list", "data": page, "has_more": end < len(newest)}
                case ["GET", "batches", name] if name in state.batches:
                    return 200, state.look_at(state.batches[name])
            return 404, {"error": {"message": f"no {path}"}}

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
