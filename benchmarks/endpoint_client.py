"""CPU of a request, and requests a second, against a server that answers at once.

    python benchmarks/endpoint_client.py
    python benchmarks/endpoint_client.py --requests 50000

For every number of requests in flight there is a line for the client alone and one for `sinterlm run` with a source
behind the server: prompts from the store, answers and what they cost into it, the live view. Of a run, the time of a
run with a tenth of the prompts is taken away: what is left is the cost of requests and not of starting Python. The
server has a process of its own, whose CPU is told too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from sinterlm.endpoint import Endpoint
from sinterlm.testing import FaultServer, serve_faults

WORDS = (
    "so",
    "the",
    "sum",
    "of",
    "these",
    "numbers",
    "is",
    "what",
    "one",
    "gets",
    "by",
    "adding",
    "up",
    "all",
    "of",
    "them",
)
NUM_TOKENS = 80


class Cost(NamedTuple):
    """What a number of requests took."""

    requests: int
    seconds: float
    cpu_seconds: float
    server_cpu_seconds: float

    def without(self, other: Cost) -> Cost:
        """This cost less another one."""
        return Cost(*(mine - its for mine, its in zip(self, other, strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, nargs="*", default=[64, 256, 512])
    arguments = parser.parse_args()
    print(f"  {'in flight':>9}  {'':10} {'requests/s':>10} {'CPU ms':>8} {'server CPU ms':>14}")
    with serve_faults(num_tokens=NUM_TOKENS) as server:
        for in_flight in arguments.in_flight:
            _show(in_flight, "client", _ask(server, in_flight, arguments.requests))
            small, large = (
                _run(server, in_flight, number) for number in (arguments.requests // 10, arguments.requests)
            )
            _show(in_flight, "whole run", large.without(small))


def _show(in_flight: int, name: str, cost: Cost) -> None:
    cpu, server_cpu = (1000 * seconds / cost.requests for seconds in (cost.cpu_seconds, cost.server_cpu_seconds))
    print(f"  {in_flight:9}  {name:10} {cost.requests / cost.seconds:10.0f} {cpu:8.2f} {server_cpu:14.2f}", flush=True)


def _ask(server: FaultServer, in_flight: int, num_requests: int) -> Cost:
    endpoint = Endpoint(server.url, concurrency=in_flight)

    async def work(number: int) -> int:
        message = {"role": "user", "content": _question(number)}
        received = await endpoint.post("/chat/completions", {"model": "m", "messages": [message], "temperature": 0.8})
        return len(received.value["choices"])

    before = server.stats().cpu_seconds
    started, cpu = time.monotonic(), time.process_time()
    for _ in endpoint.map(work, range(num_requests)):
        pass
    cost = time.monotonic() - started, time.process_time() - cpu
    assert endpoint.most == in_flight
    return Cost(num_requests, *cost, server.stats().cpu_seconds - before)


def _run(server: FaultServer, in_flight: int, num_requests: int) -> Cost:
    with TemporaryDirectory() as name:
        recipe = _write_recipe(Path(name), server.url, in_flight, num_requests)
        command = [sys.executable, "-m", "sinterlm", "run", str(recipe), "--only"]
        subprocess.run([*command, "prompts"], check=True, stdout=subprocess.DEVNULL)
        before = server.stats()
        started = time.monotonic()
        with subprocess.Popen([*command, "sample-sources"], stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - started
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        after = server.stats()
    assert after.requests - before.requests == num_requests
    return Cost(num_requests, seconds, usage.ru_utime + usage.ru_stime, after.cpu_seconds - before.cpu_seconds)


def _write_recipe(folder: Path, url: str, in_flight: int, num_prompts: int) -> Path:
    with (folder / "questions.jsonl").open("w") as file:
        for number in range(num_prompts):
            file.write(json.dumps({"id": f"p{number}", "prompt": _question(number), "answers": [str(number)]}) + "\n")
    (folder / "target").mkdir()
    source = {"engine": "endpoint", "model": "m", "base_url": url, "concurrency": in_flight}
    recipe = {
        "output": str(folder / "run"),
        "prompts": {"path": str(folder / "questions.jsonl"), "split": {"held_out": 0}},
        "target": {"model": str(folder / "target")},
        "sources": {"served": {**source, "sampling": {"num_samples": 1, "max_new_tokens": 256}}},
        "scorer": {"kind": "exact-match"},
        "preference": {"wrpo": {"select": {"kind": "wrpo"}, "objective": {"kind": "wrpo"}}},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def _question(number: int) -> str:
    return f"What is {number} plus 1? {' '.join(WORDS[(number + place) % len(WORDS)] for place in range(60))}"


if __name__ == "__main__":
    main()
