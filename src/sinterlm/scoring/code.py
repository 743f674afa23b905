"""Code: whether the program in an answer passes the tests of its prompt, run in a sandbox.

The prompt's ``answers`` are its tests, and all of them must pass. One is either Python (assert statements, or any code
that raises where the program is wrong) or a JSON object ``{"input": ..., "output": ...}``: what a script reads and must
print, white space at the ends of lines aside.
"""

from __future__ import annotations

import ast
import json
import platform
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from sinterlm.errors import InputError, SandboxError
from sinterlm.records import Prompt, Score
from sinterlm.scoring.code_extraction import (
    Definition,
    Program,
    bound_names,
    build_program,
    parse,
    source_of,
)
from sinterlm.scoring.code_problem import (
    SOLUTION_MODULES,
    Problem,
    class_names,
    methods_to_write,
    own_definitions,
    prompt_code,
    read_problem,
    taken_from,
)
from sinterlm.scoring.protocol import SCORER_FAILED, Answered, no_score
from sinterlm.scoring.sandbox import POLICY, check_isolation, isolated_python, write_all

RULES = 3
"""Goes up with every change of how code is found and tested, so that older scores are not used."""

VERSION = f"{RULES}:{POLICY}:python{'.'.join(platform.python_version_tuple()[:2])}"
"""Names the rules, what a program may do, and the Python that runs it."""

MAX_OUTPUT_BYTES = 2**20
"""Of a script."""
MAX_TRAFFIC_BYTES = 2**26
"""Of all that a program answers to its tests."""
MAX_VERDICT_BYTES = 2**16
HARNESS_LIMIT = "harness-limit"
"""Reason of an answer that failed for what this scorer, not the program, cannot do."""
_MAX_STARTS = 3

_ROLES = Path(__file__).with_name("program_and_tests.py").read_text(encoding="utf-8")
_PACKAGES = {
    *(
        "numpy",
        "scipy",
        "pandas",
        "sympy",
        "networkx",
        "sklearn",
        "matplotlib",
        "seaborn",
        "torch",
        "tensorflow",
        "keras",
    ),
    *("jax", "numba", "sortedcontainers", "requests", "pytest", "hypothesis", "attr", "attrs", "pydantic", "dateutil"),
    *("more_itertools", "pytz", "yaml", "bs4", "lxml", "PIL", "cv2", "nltk", "regex", "gmpy2", "mpmath", "tqdm"),
    *("bitarray", "faker", "psutil", "openpyxl", "sqlalchemy", "flask", "django", "aiohttp", "httpx", "prettytable"),
}
"""Well-known packages: they are not in the sandbox, which says nothing about a program that uses one."""
_SUSPICIOUS = re.compile(
    r"__\w+__|\b(?:_getframe|modules|gc|ctypes|inspect|os|builtins|settrace|setprofile|atexit|globals|eval|exec|exit|quit"
    r"|SystemExit|importlib|setattr|_thread|signal|BaseException)\b"
)
_HARMLESS = re.compile(
    r"__(?:init|name|main|str|repr|len|iter|next|enter|exit|call|post_init|slots|future|all|doc|init_subclass|aenter"
    r"|aexit|aiter|anext|version|author)__|\bos\.path\b"
)


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
    """``passed``, ``no-program``, ``wrong``, ``error``, ``time-limit``, ``killed``; no verdict: ``harness-limit``."""
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

    def check_prompt(self, prompt: Prompt) -> None:
        """Refuse a prompt whose tests could not tell one answer from another.

        Raises:
            InputError: It has no tests, one that is neither Python nor an input with its output, or none that uses what
                an answer could define.
        """
        _read(prompt)

    def score(self, answered: Sequence[Answered]) -> list[Score]:
        """Run every program against its prompt's tests.

        Raises:
            InputError: As :meth:`check_prompt`.
            SandboxError: There is no sandbox on this machine.
        """
        jobs = [_prepare(entry) for entry in answered]
        if not self._is_isolated:
            check_isolation()
            self._is_isolated = True
        with ThreadPoolExecutor(self._num_workers) as pool:
            verdicts = list(pool.map(self._judge, jobs))
        return [self._score(entry, verdict) for entry, verdict in zip(answered, verdicts, strict=True)]

    def close(self) -> None:
        """Nothing is held."""

    def _score(self, entry: Answered, verdict: Verdict) -> Score:
        if verdict.reason in (HARNESS_LIMIT, SCORER_FAILED):
            return no_score(entry, self.identity, verdict.reason, verdict.message, {})
        has_passed = verdict.reason == "passed"
        detail = {key: value for key, value in verdict._asdict().items() if value not in (None, "")}
        return Score(entry.response.id, self.identity, float(has_passed), has_passed, detail)

    def _judge(self, job: _Job) -> Verdict:
        """The verdict on one answer. A sandbox that does not start is tried again; it is no verdict."""
        for attempt in range(_MAX_STARTS):
            try:
                return self._verdict(job)
            except SandboxError:
                if attempt == _MAX_STARTS - 1:
                    raise
                time.sleep(0.5 * 2**attempt)
            except Exception as error:  # one answer must not end the stage
                return Verdict(SCORER_FAILED, message=f"{type(error).__name__}: {error}")
        raise AssertionError

    def _verdict(self, job: _Job) -> Verdict:
        if job.program is None:
            return Verdict("no-program")
        if job.tests:
            return _run_tests(job, self._timeout_seconds)
        for number, pair in enumerate(job.pairs):
            verdict = _run_script(job.program.text, pair, self._timeout_seconds)
            if verdict.reason != "passed":
                return verdict._replace(test=number)
        return Verdict("passed")


class _Job(NamedTuple):
    program: Program | None
    """None where the answer holds none that compiles."""
    common: dict[str, Any]
    """For the role ``serve``, beside the program: what it has in common with its tests."""
    tests: dict[str, Any]
    """For the role ``test``; empty for a script."""
    pairs: list[InputOutput]
    is_suspicious: bool = False
    """Whether the program holds what can forge a verdict in one process."""


def _read(prompt: Prompt) -> tuple[Tests, Problem | None]:
    tests = parse_tests(prompt)
    if tests.pairs:
        return tests, None
    try:
        return tests, read_problem(tests.python, prompt.messages)
    except InputError as error:
        raise InputError(f"prompt {prompt.id}: {error}") from None


def _prepare(answered: Answered) -> _Job:
    prompt, response = answered
    tests, problem = _read(prompt)
    if problem is None:
        program = build_program(response.content, prompt_code(prompt.messages), as_script=True)
        return _Job(program, {}, {}, tests.pairs)
    program = build_program(response.content, problem.begun, wanted=problem.asked)
    if program is None:
        return _Job(None, {}, {}, [])
    taken = taken_from(problem, program)
    definitions = own_definitions(problem, taken)
    classes = sorted(set().union(*map(class_names, (definitions, *problem.given))) - taken)
    methods = methods_to_write(problem)
    job = {
        "definitions": definitions,
        "tests": tests.python,
        "names": sorted(taken),
        "provided": problem.provided,
        "modules": list(SOLUTION_MODULES) if any("import" in test for test in tests.python) else [],
        "functions": [_uncalled_tests(test) for test in tests.python],
        "classes": classes,
        "methods": sorted(methods),
        "asks_for_classes": any(re.search(r"\bclass", message.content, re.I) for message in prompt.messages),
    }
    common = {"given": problem.given, "classes": classes}
    return _Job(program, common, job, [], _is_suspicious(program, problem, definitions))


def _uncalled_tests(test: str) -> list[str]:
    """The functions of a test that are tests themselves, as pytest has it, and that it does not call."""
    tree = parse(test)
    functions = [node for node in tree.body if isinstance(node, Definition)] if tree else []
    called = {
        node.id
        for statement in (tree.body if tree else [])
        if not isinstance(statement, Definition)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name)
    }
    return [
        node.name
        for node in functions
        if node.name.startswith("test")
        and not isinstance(node, ast.ClassDef)
        and node.name not in called
        and (len(node.args.args) == len(node.args.defaults) or node.decorator_list)
    ]


def _is_suspicious(program: Program, problem: Problem, definitions: str) -> bool:
    """Whether a program holds anything by which it could deceive tests in its own process."""
    own = program.text.removeprefix(problem.begun)
    tree = parse(own) or parse(program.text) or ast.Module([], [])
    rest = own
    for node in tree.body:  # how its objects are compared is what a class was asked for
        if isinstance(node, ast.ClassDef) and node.name in problem.asked:
            rest = rest.replace(source_of(own, node), re.sub(r"__\w+__", "", source_of(own, node)))
    if _SUSPICIOUS.search(_HARMLESS.sub("", rest)):
        return True
    methods = {node.name for node in ast.walk(parse(definitions) or ast.Module([], [])) if isinstance(node, Definition)}
    if methods & bound_names(own):
        return True
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for inner in ast.walk(tree):
        match inner:
            case ast.Attribute(value, attribute, ast.Store()):
                if attribute in methods or (isinstance(value, ast.Name) and value.id in imported):
                    return True
    return False


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
        if found and (limit := _limit_of(found["error"], found["message"])):
            return Verdict(HARNESS_LIMIT, message=limit)
        return Verdict("error" if exit_code > 0 else "killed")
    is_right = _lines(output.decode(errors="replace")) == _lines(pair.output)
    return Verdict("passed" if is_right else "wrong")


def _run_tests(job: _Job, timeout_seconds: float) -> Verdict:
    """The verdict of the tests' process; where it may be due to a limit of ours, Python's own view is asked for."""
    assert job.program
    verdict, found = _run_apart(job, timeout_seconds)
    if verdict.reason == "passed":
        return verdict
    if limit := _limit_of(found.get("error", ""), found.get("message", "")):
        return Verdict(HARNESS_LIMIT, verdict.test, limit)
    if found.get("error") == "NameError" and (name := re.search("'(.*)'", found["message"])):
        module = job.tests["provided"].get(name[1], ("", ""))[0].partition(".")[0]
        if module in _PACKAGES:
            return Verdict(HARNESS_LIMIT, verdict.test, f"the package {module} is not in the sandbox")
    missing = [limit for failed in found.get("failed", ()) if (limit := _limit_of(*failed.split(": ", 1)))]
    if missing and found.get("error") in ("NameError", "AttributeError"):
        return Verdict(HARNESS_LIMIT, verdict.test, missing[0])
    is_own = found.get("is_plain") and verdict.reason == "wrong" and not _compares_identity(job.tests["tests"])
    is_beyond_doubt = job.is_suspicious and not found.get("limits")
    if is_own or is_beyond_doubt or verdict.reason == "time-limit":
        return verdict
    alone = {"program": job.program.text, "given": job.common["given"], **job.tests}
    del alone["classes"], alone["methods"]
    if _run_alone(alone, timeout_seconds):
        why = found.get("limits") or [verdict.message or verdict.reason]
        return Verdict(HARNESS_LIMIT, verdict.test, f"passes beside its tests, but not apart from them: {why[0]}")
    return verdict


def _run_apart(job: _Job, timeout_seconds: float) -> tuple[Verdict, dict[str, Any]]:
    assert job.program
    with (
        isolated_python(_ROLES, "serve", timeout_seconds=timeout_seconds) as (server, is_over),
        isolated_python(_ROLES, "test", timeout_seconds=timeout_seconds) as (tester, is_late),
    ):
        _give(server.stdin, _framed({"program": job.program.text, **job.common}), close=False)
        _give(tester.stdin, _framed(job.tests), close=False)
        relays = [
            Thread(target=_relay, args=(tester.stdout, server.stdin), daemon=True),
            Thread(target=_relay, args=(server.stdout, tester.stdin), daemon=True),
        ]
        for relay in relays:
            relay.start()
        said = _read_some(tester.stderr, MAX_VERDICT_BYTES)
        for process in (server, tester):
            process.kill()
        for relay in relays:
            relay.join()
    if is_over() or is_late():
        return Verdict("time-limit"), {}
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
    with isolated_python(_ROLES, "alone", timeout_seconds=timeout_seconds) as (process, is_over):
        _give(process.stdin, _framed(job))
        found = _parsed(_read_some(process.stderr, MAX_VERDICT_BYTES))
        process.kill()
    return found is not None and found["passed"] is True and not is_over()


def _parsed(said: bytes) -> dict[str, Any] | None:
    """The verdict in what a process said; None where it is none."""
    try:
        found = json.loads(said)
    except ValueError:
        return None
    is_one = isinstance(found, dict) and (found.get("passed") is True or {"error", "message"} <= found.keys())
    return found if is_one else None


def _limit_of(error: str, message: str) -> str:
    """What of the sandbox made a program or its tests raise this; empty where it may be their own fault."""
    if error == "ModuleNotFoundError":
        package = message.removeprefix("No module named ").strip("'").partition(".")[0]
        return f"the package {package} is not in the sandbox" if package in _PACKAGES else ""
    return f"the sandbox refused a call: {message}" if error == "PermissionError" else ""


def _compares_identity(tests: Sequence[str]) -> bool:
    """Whether tests ask if two objects are the same: copies are not."""
    return any(
        isinstance(operator, ast.Is | ast.IsNot) and not isinstance(operand, ast.Constant)
        for test in tests
        for node in ast.walk(parse(test) or ast.Module([], []))
        if isinstance(node, ast.Compare)
        for operator, operand in zip(node.ops, node.comparators, strict=True)
    )


def _relay(reader: FileIO, writer: FileIO) -> None:
    """Hand on what one process says to the other, until it ends or says too much."""
    num_bytes = 0
    with suppress(OSError):  # the other has ended
        while num_bytes < MAX_TRAFFIC_BYTES and (part := reader.read(2**16)):
            num_bytes += len(part)
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
