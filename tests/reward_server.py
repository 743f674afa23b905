"""A server of reward models for tests, in a process of its own: Transformers' models behind vLLM's and SGLang's paths.

Its replies have the form of vLLM 0.32.0's, as recorded from one that served these tiny models, and of SGLang 0.5's, as
its source gives it. A base URL is ``http://HOST:PORT/MODEL`` or ``.../MODEL/QUIRK``; quirks are of other versions,
and mistakes in starting a server.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Refused(Exception):
    """A request that the server does not take: status and message."""


class Model:
    """A tiny model and what its server does to texts and outputs."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """As servers do: with the special tokens that the tokenizer adds."""
        return list(self._tokenizer(text)["input_ids"])

    def output(self, ids: list[int], *, sigmoid: bool) -> float:
        """The output for one sequence, computed alone."""
        if len(ids) > self._model.config.max_position_embeddings:
            raise Refused(400, f"This model's maximum context length is 512 tokens. However, you sent {len(ids)}.")
        with self._lock, torch.inference_mode():
            logit = self._model(torch.tensor([ids]), use_cache=False).logits[0, 0]
            return float(logit.sigmoid() if sigmoid else logit)


def answer(model: Model, path: str, quirk: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to one request."""
    if path == "/classify" and "input_ids" in request:  # SGLang's; vLLM has no such field
        ids = request["input_ids"]
        meta_info = {"id": "1", "finish_reason": {"type": "length", "length": 0}, "prompt_tokens": len(ids)}
        return {"embedding": [model.output(ids, sigmoid=False)], "meta_info": meta_info}
    switch = {"old": None, "renamed": "activation"}.get(quirk, "use_activation")
    sigmoid = switch is None or request.get(switch, True)
    if path == "/score":
        ids = model.encode(request["text_1"] + request["text_2"])
    elif isinstance(request.get("input"), list):
        ids = request["input"]
    else:
        raise Refused(400, "1 validation error: {'type': 'missing', 'loc': ('body', 'input'), 'msg': 'Field required'}")
    if quirk == "bos":
        ids = [ids[0], *ids]
    value = model.output(ids, sigmoid=bool(sigmoid))
    outputs = [value, 1 - value] if quirk == "labels" else [value]
    item: dict[str, Any] = {"index": 0}
    if path == "/classify":
        item |= {"label": "LABEL_0", "probs": outputs, "num_classes": len(outputs)}
    elif path == "/pooling":
        item |= {"object": "pooling", "data": [[value] for _ in ids] if quirk == "tokens" else outputs}
    elif path == "/score":
        item |= {"object": "score", "score": value}
    else:
        raise Refused(404, "Not Found")
    usage = {"prompt_tokens": len(ids), "total_tokens": len(ids), "completion_tokens": 0, "prompt_tokens_details": None}
    return {"id": "1", "object": "list", "created": 1796083758, "model": "rm", "data": [item], "usage": usage}


def main() -> None:
    """Serve the models of ``NAME=FOLDER`` arguments until standard input closes."""
    torch.set_num_threads(1)
    models = {name: Model(folder) for name, folder in (argument.split("=", 1) for argument in sys.argv[1:])}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            _, name, *quirk, path = self.path.split("/")
            try:
                status, value = 200, answer(models[name], f"/{path}", "".join(quirk), request)
            except Refused as refused:
                status, message = refused.args
                value = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
        server.shutdown()


@contextmanager
def serve_reward_models(**folders: Path) -> Iterator[str]:
    """The address of a server of models by name."""
    command = [sys.executable, "-m", "tests.reward_server", *(f"{name}={folder}" for name, folder in folders.items())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


if __name__ == "__main__":
    main()
