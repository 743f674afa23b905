"""Running one program: the processes in the sandbox, what passes between them, and the verdict.

A script is one process. Otherwise program and tests are two, and this process passes on what one says to the other.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from io import FileIO
from threading import Thread
from typing import Any, NamedTuple

from sinterlm.scoring.code import inside
from sinterlm.scoring.code.extraction import Program
from sinterlm.scoring.code.limits import PACKAGES, limit_of
from sinterlm.scoring.code.prompt_tests import InputOutput, compares_identity
from sinterlm.scoring.code.sandbox import isolated_python, write_all

MAX_OUTPUT_BYTES = 2**20
"""Limit of a script's output."""
MAX_TRAFFIC_BYTES = 2**26
"""Limit of what program or tests say to the other, for one answer."""
MAX_VERDICT_BYTES = 2**16
_QUIET_PARTS, _QUIET_BYTES = 2000, 2**20
"""What costs either side less than 0.1 s of computing (40 microseconds a call, 50 nanoseconds a byte): if at most
this much passed between them, it was the program or its tests that used up the time."""


HARNESS_LIMIT = "harness-limit"
"""Reason of an answer that failed for what this scorer, not the program, cannot do."""


class Verdict(NamedTuple):
    """The verdict on an answer."""

    reason: str
    """``passed``, ``no-program``, ``wrong``, ``error``, ``time-limit``, ``killed``; no score:
    ``harness-limit``, ``scorer-failed``."""
    test: int | None = None
    """The first test that did not pass, from 0; None if it came to none."""
    message: str = ""


class Job(NamedTuple):
    """One answer, ready to be run."""

    program: Program | None
    """None if the answer holds no Python."""
    common: dict[str, Any]
    """For the role ``serve``, beside the program: what it has in common with its tests."""
    tests: dict[str, Any]
    """For the role ``test``; empty for a script."""
    pairs: list[InputOutput]
    is_suspicious: bool = False
    """Whether the program holds what can forge a verdict in one process."""


def run_script(program: str, pair: InputOutput, timeout_seconds: float) -> Verdict:
    """The verdict on a script for one input."""
    with isolated_python(inside.script(), "run", timeout_seconds=timeout_seconds) as (script, is_over):
        # A thread: the script may print before it has read everything.
        feeder = Thread(target=_give, args=(script.stdin, _framed(program) + pair.input.encode()), daemon=True)
        feeder.start()
        output = _read_some(script.stdout, MAX_OUTPUT_BYTES)
        if len(output) > MAX_OUTPUT_BYTES:
            script.kill()
        said = _read_some(script.stderr, MAX_VERDICT_BYTES)
        feeder.join()
        exit_code = script.wait().exit_code
    if len(output) > MAX_OUTPUT_BYTES:
        return Verdict("killed", message=f"more than {MAX_OUTPUT_BYTES} bytes of output")
    if is_over():
        return Verdict("time-limit")
    if exit_code != 0:
        found = _parsed(said)
        if found and (limit := limit_of(found["error"], found["message"])):
            return Verdict(HARNESS_LIMIT, message=limit)
        return Verdict("error" if exit_code > 0 else "killed")
    is_right = _lines(output.decode(errors="replace")) == _lines(pair.output)
    return Verdict("passed" if is_right else "wrong")


def run_tests(job: Job, timeout_seconds: float) -> Verdict:
    """The verdict of the tests' process; if a limit of ours may explain it, Python itself is asked too."""
    assert job.program
    verdict, found = _run_apart(job, timeout_seconds)
    if verdict.reason == "passed":
        return verdict
    if limit := limit_of(found.get("error", ""), found.get("message", "")):
        return Verdict(HARNESS_LIMIT, verdict.test, limit)
    if found.get("error") == "NameError" and (name := re.search("'(.*)'", found["message"])):
        module = job.tests["provided"].get(name[1], ("", ""))[0].partition(".")[0]
        if module in PACKAGES:
            return Verdict(HARNESS_LIMIT, verdict.test, f"the package {module} is not in the sandbox")
    missing = [limit for failed in found.get("failed", ()) if (limit := limit_of(*failed.split(": ", 1)))]
    if missing and found.get("error") in ("NameError", "AttributeError"):
        return Verdict(HARNESS_LIMIT, verdict.test, missing[0])
    is_own = found.get("is_plain") and verdict.reason == "wrong" and not compares_identity(job.tests["tests"])
    is_beyond_doubt = job.is_suspicious and not found.get("limits")
    if verdict.reason == "time-limit":
        if not found["is_bridge_busy"]:
            return verdict
    elif is_own or is_beyond_doubt:
        return verdict
    alone = {"program": job.program.text, "given": job.common["given"], **job.tests}
    del alone["classes"], alone["methods"]
    if _run_alone(alone, timeout_seconds):
        why = found.get("limits") or [verdict.message or verdict.reason]
        return Verdict(HARNESS_LIMIT, verdict.test, f"passes beside its tests, but not apart from them: {why[0]}")
    return verdict


def _run_apart(job: Job, timeout_seconds: float) -> tuple[Verdict, dict[str, Any]]:
    assert job.program
    with (
        isolated_python(inside.script(), "serve", timeout_seconds=timeout_seconds) as (server, is_over),
        isolated_python(inside.script(), "test", timeout_seconds=timeout_seconds) as (tester, is_late),
    ):
        _give(server.stdin, _framed({"program": job.program.text, **job.common}), close=False)
        _give(tester.stdin, _framed(job.tests), close=False)
        traffic: list[int] = []
        relays = [
            Thread(target=_relay, args=(tester.stdout, server.stdin, traffic), daemon=True),
            Thread(target=_relay, args=(server.stdout, tester.stdin, traffic), daemon=True),
        ]
        for relay in relays:
            relay.start()
        said = _read_some(tester.stderr, MAX_VERDICT_BYTES)
        for process in (server, tester):
            process.kill()
        for relay in relays:
            relay.join()
    if is_over() or is_late():
        is_bridge_busy = len(traffic) > _QUIET_PARTS or sum(traffic) > _QUIET_BYTES
        return Verdict("time-limit"), {"is_bridge_busy": is_bridge_busy}
    found = _parsed(said)
    if found is None:  # the tests' process came to no verdict
        return Verdict("killed", message=said[-200:].decode(errors="replace")), {}
    if found["passed"]:
        return Verdict("passed"), found
    reason = "wrong" if found["error"] == "AssertionError" else "error"
    message = f"{found['error']}: {found['message']}"
    if failed := found.get("failed"):
        message += f" (the program: {failed[0]})"
    return Verdict(reason, found.get("test"), message), found


def _run_alone(job: dict[str, Any], timeout_seconds: float) -> bool:
    """Whether a program passes its tests in one process with them."""
    with isolated_python(inside.script(), "alone", timeout_seconds=timeout_seconds) as (process, is_over):
        _give(process.stdin, _framed(job))
        found = _parsed(_read_some(process.stderr, MAX_VERDICT_BYTES))
        process.kill()
    return found is not None and found["passed"] is True and not is_over()


def _parsed(said: bytes) -> dict[str, Any] | None:
    """The verdict in what a process said; None if it says none."""
    try:
        found = json.loads(said)
    except ValueError:
        return None
    is_one = isinstance(found, dict) and (found.get("passed") is True or {"error", "message"} <= found.keys())
    return found if is_one else None


def _relay(reader: FileIO, writer: FileIO, traffic: list[int]) -> None:
    """Pass on what one process says to the other, until it ends or says too much; note the size of each part."""
    num_bytes = 0
    with suppress(OSError):  # the other has ended
        while num_bytes < MAX_TRAFFIC_BYTES and (part := reader.read(2**16)):
            num_bytes += len(part)
            traffic.append(len(part))
            write_all(writer, part)
    with suppress(OSError):
        writer.close()


def _read_some(reader: FileIO, limit: int) -> bytes:
    """All that comes, or a little more than ``limit``."""
    parts, num_bytes = [], 0
    while num_bytes <= limit and (part := reader.read(2**16)):
        parts.append(part)
        num_bytes += len(part)
    return b"".join(parts)


def _give(writer: FileIO, content: bytes, *, close: bool = True) -> None:
    with suppress(OSError):  # it has ended: its verdict says so
        write_all(writer, content)
        if close:
            writer.close()


def _framed(message: Any) -> bytes:
    content = json.dumps(message).encode()
    return len(content).to_bytes(4, "big") + content


def _lines(text: str) -> list[str]:
    """Lines end with a line feed, whatever else Unicode ends them with; a carriage return before it is white space."""
    return [line.rstrip() for line in text.rstrip().split("\n")]
