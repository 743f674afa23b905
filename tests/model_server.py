"""A small model server in a process of its own, run as a script: ``model_server.py MODEL --port PORT [OPTION ...]``.

It answers the OpenAI protocol, by a rule or with a real model, and can do what servers do when they fail.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = ("red", "green", "blue", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--loading", type=float, default=0.0, help="seconds until it answers")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds that an answer takes")
    parser.add_argument("--crash-after", type=int, help="answers after which it ends")
    parser.add_argument("--crashes", type=Path, help="a file that counts crashes; --crash-after holds for --times")
    parser.add_argument("--times", type=int, default=10**6)
    parser.add_argument("--family", action="store_true", help="start a child and a grandchild that ignore SIGTERM")
    parser.add_argument("--say", default="", help="print this line 60 times, then end")
    parser.add_argument("--alone", type=Path, help="a file: end if another server that names it is running")
    return parser.parse_args()


def answer(model: str, prompt: str, seed: object, number: int, max_tokens: int) -> str:
    """What the rule says: the same for the same model, prompt, seed and number."""
    draw = random.Random(f"{name_of(model)} {prompt} {seed} {number}")
    return " ".join(draw.choices(WORDS, k=min(max_tokens - 1, 3)))


def name_of(model: str) -> str:
    """A model by what is in its folder."""
    weights = Path(model, "model.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:8] if weights.is_file() else Path(model).name


def spawn_family() -> None:
    """A child, and a grandchild in a session of its own whose parent has ended: neither heeds SIGTERM."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    )
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {deaf!r}], start_new_session=True)"
    subprocess.Popen([sys.executable, "-c", deaf])
    subprocess.run([sys.executable, "-c", parent], check=True)


def main() -> None:
    options = arguments()
    if options.say:
        print("\n".join(f"{options.say} {number}" for number in range(60)), file=sys.stderr)
        sys.exit(3)
    if options.alone:
        options.held = options.alone.open("a")
        fcntl.flock(options.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if options.family:
        spawn_family()
    print(f"pid {os.getpid()}", flush=True)
    time.sleep(options.loading)
    answers = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send({"object": "list", "data": [{"id": options.model, "object": "model"}]})

        def do_POST(self) -> None:
            nonlocal answers
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answers += 1
            time.sleep(options.slow)
            if options.crash_after is not None and answers > options.crash_after and may_crash(options):
                print("out of luck", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            self.send(complete(options.model, request))

        def send(self, value: Mapping[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    Server((options.host, options.port), Handler).serve_forever()


def may_crash(options: argparse.Namespace) -> bool:
    """Whether it has not crashed often enough yet."""
    if options.crashes is None:
        return True
    crashed = len(options.crashes.read_text()) if options.crashes.exists() else 0
    with options.crashes.open("a") as file:
        file.write("x")
    return crashed < int(options.times)


def complete(model: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a reply."""
    prompt = json.dumps(request.get("messages", request.get("prompt")))
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or 16
    choices = []
    for number in range(request.get("n") or 1):
        text = answer(model, prompt, request.get("seed"), number, limit)
        said = {"message": {"role": "assistant", "content": text}} if "messages" in request else {"text": text}
        choices.append({"index": number, "finish_reason": "stop", **said})
    return {
        "id": "1",
        "object": "chat.completion" if "messages" in request else "text_completion",
        "created": 0,
        "model": request["model"],
        "choices": choices,
        "usage": {"prompt_tokens": 7, "completion_tokens": 3 * len(choices), "total_tokens": 7 + 3 * len(choices)},
    }


if __name__ == "__main__":
    main()
