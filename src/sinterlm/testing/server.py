"""The server itself: ``python -m sinterlm.testing.server PORT``.

It reads what it shall do from its standard input, a line of JSON (it may hold a key, which no process list should
show), prints its base URL, and serves until the input is closed.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from sinterlm.testing.faults import Behaviour, Fault

HUGE_BODY_BYTES = 50 * 2**20
_CHUNK = b"x" * 2**16
_WORDS = ("so", "the", "sum", "of", "both", "is", "five", "and", "that", "was", "to", "be", "shown", "here")


class Server:
    """Answers requests, and counts them.

    Args:
        behaviour: What it does.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._random = random.Random(behaviour.seed)
        self._kinds: list[Fault | None] = [*behaviour.faults, None]
        self._shares = [*behaviour.faults.values(), 1 - sum(behaviour.faults.values())]
        self._counts: Counter[str] = Counter()
        self._open = self._most_open = 0
        self._authorizations: dict[str, None] = {}

    def app(self) -> web.Application:
        """Its addresses."""
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/stats", self.stats)
        return app

    async def stats(self, request: web.Request) -> web.Response:
        """See :class:`~sinterlm.testing.faults.Stats`."""
        return web.json_response(
            {
                "requests": self._counts["requests"],
                "replied": self._counts["replied"],
                "over_limit": self._counts["over_limit"],
                "most_open": self._most_open,
                "faults": {kind: self._counts[kind] for kind in self._kinds if kind},
                "authorizations": list(self._authorizations),
                "cpu_seconds": time.process_time(),
            }
        )

    async def models(self, request: web.Request) -> web.Response:
        """The models, as servers are asked for them to see whether they work."""
        return web.json_response({"object": "list", "data": [{"id": name} for name in self._behaviour.models]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """A completion, a refusal or a fault."""
        behaviour = self._behaviour
        self._counts["requests"] += 1
        self._authorizations[request.headers.get("Authorization", "")] = None
        if behaviour.key is not None and request.headers.get("Authorization") != f"Bearer {behaviour.key}":
            return _error(401, f"Incorrect API key provided: {request.headers.get('Authorization', '')}")
        (fault,) = self._random.choices(self._kinds, self._shares) if behaviour.faults else [None]
        if behaviour.limit is not None and self._open >= behaviour.limit:
            self._counts["over_limit"] += 1
            return self._too_many(says_when=behaviour.limit_says_when)
        self._open += 1
        self._most_open = max(self._most_open, self._open)
        try:
            body = await request.json()
            if behaviour.seconds[1]:
                await asyncio.sleep(self._random.uniform(*behaviour.seconds))
            if fault is None:
                return self._reply(request, body)
            self._counts[fault] += 1
            try:
                return await self._faulty(fault, request, body)
            except ConnectionError:  # the client gave up
                return web.Response()
        finally:
            self._open -= 1

    def _reply(self, request: web.Request, body: Mapping[str, Any]) -> web.Response:
        n = int(body.get("n") or 1)
        if self._behaviour.max_n is not None and n > self._behaviour.max_n:
            if self._behaviour.refuse_n:
                return _error(self._behaviour.refuse_n, f"n must be at most {self._behaviour.max_n}")
            n = self._behaviour.max_n
        self._counts["replied"] += 1
        return web.json_response(self._completion(request, body, n))

    def _completion(self, request: web.Request, body: Mapping[str, Any], n: int) -> dict[str, Any]:
        behaviour = self._behaviour
        is_chat = "messages" in body
        asked = body["messages"][-1]["content"] if is_chat else body["prompt"]
        models = behaviour.models
        model = models[min(self._counts["replied"] // behaviour.model_lasts, len(models) - 1)]
        prompt_tokens, new_tokens = len(str(asked)) // 4, n * behaviour.num_tokens
        return {
            "id": f"completion-{self._counts['requests']}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"fp_{model}",
            "choices": [self._choice(asked, index, is_chat=is_chat) for index in range(n)],
            **(
                {
                    "usage": {
                        "prompt_tokens": prompt_tokens,
                        "completion_tokens": new_tokens,
                        "total_tokens": prompt_tokens + new_tokens,
                        "prompt_tokens_details": {"cached_tokens": prompt_tokens // 2},
                    }
                }
                if behaviour.usage
                else {}
            ),
        }

    def _choice(self, asked: str, index: int, *, is_chat: bool) -> dict[str, Any]:
        behaviour = self._behaviour
        content = behaviour.replies.get(asked)
        if content is None:
            first = self._random.randrange(len(_WORDS))
            content = " ".join(_WORDS[(first + number) % len(_WORDS)] for number in range(behaviour.num_tokens))
        if behaviour.reasoning == "think":
            content = f"<think>\nIt is easy.\n</think>\n\n{content}"
        choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "logprobs": None}
        if not is_chat:
            return {**choice, "text": content}
        apart = {behaviour.reasoning: "It is easy."} if behaviour.reasoning not in (None, "think") else {}
        return {**choice, "message": {"role": "assistant", "content": content, **apart}}

    async def _faulty(self, fault: Fault, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        good = self._completion(request, body, int(body.get("n") or 1))
        match fault:
            case "too-many" | "too-many-wait":
                return self._too_many(says_when=fault == "too-many-wait")
            case "server-error":
                return _error(self._random.choice([500, 502, 503]), "the server is overloaded")
            case "reset":
                return _reset(request)
            case "cut-body":
                response = await _begin(request, 2 * HUGE_BODY_BYTES)
                await response.write(json.dumps(good).encode()[:40])
                return _reset(request)
            case "drip":
                text = json.dumps(good).encode()
                response = await _begin(request, len(text))
                for byte in text:
                    await asyncio.sleep(self._behaviour.drip_seconds)
                    await response.write(bytes([byte]))
                return response
            case "invalid-json":
                return web.Response(text=json.dumps(good)[:-20], content_type="application/json")
            case "missing-fields":
                del good["choices"]
                return web.json_response(good)
            case "wrong-n":
                good["choices"].pop()
                return web.json_response(good)
            case "huge-body":
                response = await _begin(request, HUGE_BODY_BYTES)
                for _ in range(HUGE_BODY_BYTES // len(_CHUNK)):
                    await response.write(_CHUNK)
                return response
            case "html":
                return web.Response(text="<html><body>a proxy speaks</body></html>", content_type="text/html")
            case "redirect":
                raise web.HTTPTemporaryRedirect(self._behaviour.redirect_to + "/chat/completions")

    def _too_many(self, *, says_when: bool) -> web.Response:
        response = _error(429, "Rate limit reached")
        if says_when:
            response.headers["Retry-After"] = f"{self._behaviour.retry_after_seconds:g}"
        return response


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "scripted", "code": None}}, status=status)


async def _begin(request: web.Request, length: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(length)})
    await response.prepare(request)
    return response


def _reset(request: web.Request) -> web.Response:
    """Cut the connection, so that the client gets a reset."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


async def _serve(port: int, behaviour: Behaviour) -> None:
    runner = web.AppRunner(Server(behaviour).app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024, shutdown_timeout=0.1)
    await site.start()
    (address,) = runner.addresses
    print(f"http://127.0.0.1:{address[1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Behaviour.model_validate_json(sys.stdin.readline())))
