"""Code: whether the program in an answer passes the tests of its prompt, run in a sandbox.

The prompt's ``answers`` are its tests, and all of them must pass. One is either Python (assert statements, or any code
that raises where the program is wrong) or a JSON object ``{"input": ..., "output": ...}``: what a script reads and must
print, white space at the ends of lines aside.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from sinterlm.errors import InputError
from sinterlm.records import Prompt, Score
from sinterlm.scoring.code_extraction import (
    build_program,
    class_names,
    common_definitions,
    methods_to_write,
    modules_in,
    names_in,
    own_definitions,
    parse,
    prompt_code,
)
from sinterlm.scoring.protocol import Answered
from sinterlm.scoring.sandbox import POLICY, check_isolation, isolated_python, write_all

RULES = 2
"""Goes up with every change of how code is found and tested, so that older scores are not used."""

VERSION = f"{RULES}:{POLICY}:python{'.'.join(platform.python_version_tuple()[:2])}"
"""Names the rules, what a program may do, and the Python that runs it."""

MAX_OUTPUT_BYTES = 2**20
"""Of a script."""
MAX_TRAFFIC_BYTES = 2**26
"""Of all that a program answers to its tests."""

_ROLES = Path(__file__).with_name("program_and_tests.py").read_text(encoding="utf-8")


class InputOutput(NamedTuple):
    """A test of a script: what it reads, and what it must print."""

    input: str
    output: str


class Tests(NamedTuple):
    """The tests of one prompt: Python, or pairs for a script, not both."""

    python: list[str]
    pairs: list[InputOutput]


class Verdict(NamedTuple):
    """What came of an answer."""

    reason: str
    """``passed``, ``no-program``, ``wrong``, ``error``, ``time-limit`` or ``killed``."""
    test: int | None = None
    """The first test that did not pass, from 0; None where it came to none."""
    message: str = ""


class CodeScorer:
    """Gives 1 to an answer whose program passes all tests, else 0; the detail says why.

    Args:
        timeout_seconds: of computing, for one answer and all its tests; for a script, for each.
        num_workers: answers that are tested at once.
    """

    def __init__(self, *, timeout_seconds: float, num_workers: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._num_workers = num_workers
        self._is_isolated = False

    @property
    def identity(self) -> str:
        """Names kind, rules, sandbox, time limit and the Python that runs the programs."""
        version = ".".join(platform.python_version_tuple()[:2])
        return f"code:{RULES}:{POLICY}:{self._timeout_seconds:g}s:python{version}"

    @property
    def needs_answers(self) -> bool:
        """The prompt's ``answers`` are the tests."""
        return True

    def score(self, answered: Sequence[Answered]) -> list[Score]:
        """Run every program against its prompt's tests.

        Raises:
            InputError: A prompt has no tests, or one that is neither Python nor an input with its output.
            SandboxError: There is no sandbox on this machine.
        """
        jobs = [_prepare(entry) for entry in answered]
        if not self._is_isolated:
            check_isolation()
            self._is_isolated = True
        with ThreadPoolExecutor(self._num_workers) as pool:
            verdicts = list(pool.map(self._judge, jobs))
        return [
            Score(
                entry.response.id,
                self.identity,
                float(verdict.reason == "passed"),
                verdict.reason == "passed",
                {key: value for key, value in verdict._asdict().items() if value not in (None, "")},
            )
            for entry, verdict in zip(answered, verdicts, strict=True)
        ]

    def close(self) -> None:
        """Nothing is held."""

    def _judge(self, job: _Job) -> Verdict:
        if job.program is None:
            return Verdict("no-program")
        if job.tests:
            return _run_tests({"program": job.program, **job.common}, job.tests, self._timeout_seconds)
        for number, pair in enumerate(job.pairs):
            verdict = _run_script(job.program, pair, self._timeout_seconds)
            if verdict.reason != "passed":
                return verdict._replace(test=number)
        return Verdict("passed")


class _Job(NamedTuple):
    program: str | None
    """None where the answer holds none that compiles."""
    common: dict[str, Any]
    """For the role ``serve``, beside the program: what it has in common with its tests."""
    tests: dict[str, Any]
    """For the role ``test``; empty for a script."""
    pairs: list[InputOutput]


def _prepare(answered: Answered) -> _Job:
    prompt, response = answered
    tests = parse_tests(prompt)
    begun = prompt_code(prompt.messages)
    program = build_program(response.content, begun, as_script=bool(tests.pairs))
    if program is None or tests.pairs:
        return _Job(program, {}, {}, tests.pairs)
    # What the prompt itself defines is the tests' own, whatever the program makes of it.
    definitions = own_definitions(begun)
    given = common_definitions(tests.python, prompt.messages)
    classes = sorted(set().union(*map(class_names, (definitions, *given))))
    job = {
        "definitions": definitions,
        "tests": tests.python,
        "names": sorted(set().union(*map(names_in, tests.python))),
        "modules": modules_in("\n".join(tests.python)),
        "classes": classes,
        "methods": sorted(methods_to_write(begun)),
    }
    return _Job(program, {"given": given, "classes": classes}, job, [])


def parse_tests(prompt: Prompt) -> Tests:
    """The tests in a prompt's ``answers``.

    Raises:
        InputError: There is none, one is of neither form, or there are both forms.
    """
    tests = Tests([], [])
    for number, text in enumerate(prompt.answers):
        pair = _parse_pair(text)
        if pair:
            tests.pairs.append(pair)
        elif parse(text) is not None:
            tests.python.append(text)
        else:
            raise _test_error(prompt, f"`answers[{number}]` is {text[:80]!r}")
    if bool(tests.python) == bool(tests.pairs):
        raise _test_error(prompt, "tests of both forms" if tests.python else "no tests")
    return tests


def _parse_pair(text: str) -> InputOutput | None:
    with suppress(ValueError, RecursionError):
        fields: Any = json.loads(text)
        is_pair = isinstance(fields, dict) and fields.keys() == set(InputOutput._fields)
        if is_pair and all(isinstance(value, str) for value in fields.values()):
            return InputOutput(**fields)
    return None


def _test_error(prompt: Prompt, found: str) -> InputError:
    return InputError(
        f"prompt {prompt.id}: {found}; expected, for the scorer code, `answers` that are tests: Python code, or JSON "
        'objects {"input": text, "output": text}, all of one form'
    )


def _run_script(program: str, pair: InputOutput, timeout_seconds: float) -> Verdict:
    with isolated_python(_ROLES, "run", timeout_seconds=timeout_seconds) as (script, is_over):
        # A thread: the script may print before it has read everything.
        feeder = Thread(target=_give, args=(script.stdin, _framed(program) + pair.input.encode()), daemon=True)
        feeder.start()
        output = _read(script.stdout, MAX_OUTPUT_BYTES)
        if len(output) > MAX_OUTPUT_BYTES:
            script.kill()
        feeder.join()
        exit_code = script.wait().exit_code
    if len(output) > MAX_OUTPUT_BYTES:
        return Verdict("killed", message=f"more than {MAX_OUTPUT_BYTES} bytes of output")
    if is_over():
        return Verdict("time-limit")
    if exit_code != 0:
        return Verdict("error" if exit_code > 0 else "killed")
    is_right = _lines(output.decode(errors="replace")) == _lines(pair.output)
    return Verdict("passed" if is_right else "wrong")


def _run_tests(program: dict[str, Any], tests: dict[str, Any], timeout_seconds: float) -> Verdict:
    with (
        isolated_python(_ROLES, "serve", timeout_seconds=timeout_seconds) as (server, is_over),
        isolated_python(_ROLES, "test", timeout_seconds=timeout_seconds) as (tester, is_late),
    ):
        _give(server.stdin, _framed(program), close=False)
        _give(tester.stdin, _framed(tests), close=False)
        relays = [
            Thread(target=_relay, args=(tester.stdout, server.stdin), daemon=True),
            Thread(target=_relay, args=(server.stdout, tester.stdin), daemon=True),
        ]
        for relay in relays:
            relay.start()
        verdict = tester.stderr.readall()
        for process in (server, tester):
            process.kill()
        for relay in relays:
            relay.join()
    if is_over() or is_late():
        return Verdict("time-limit")
    try:
        found = json.loads(verdict)
    except ValueError:  # the tests' process came to no verdict
        return Verdict("killed", message=verdict[-200:].decode(errors="replace"))
    if found["passed"]:
        return Verdict("passed")
    reason = "wrong" if found["error"] == "AssertionError" else "error"
    return Verdict(reason, found.get("test"), f"{found['error']}: {found['message']}")


def _relay(reader: FileIO, writer: FileIO) -> None:
    """Hand on what one process says to the other, until it ends or says too much."""
    num_bytes = 0
    with suppress(OSError):  # the other has ended
        while num_bytes < MAX_TRAFFIC_BYTES and (part := reader.read(2**16)):
            num_bytes += len(part)
            write_all(writer, part)
    with suppress(OSError):
        writer.close()


def _read(reader: FileIO, limit: int) -> bytes:
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
    return [line.rstrip() for line in text.rstrip().splitlines()]
