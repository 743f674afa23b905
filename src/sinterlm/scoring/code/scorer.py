"""Code: whether the program in an answer passes the tests of its prompt, run in a sandbox."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sinterlm.errors import InputError, SandboxError
from sinterlm.records import Prompt, Score
from sinterlm.scoring.code.extraction import build_program
from sinterlm.scoring.code.limits import is_suspicious
from sinterlm.scoring.code.problem import (
    SOLUTION_MODULES,
    Problem,
    class_names,
    methods_to_write,
    own_definitions,
    prompt_code,
    read_problem,
    taken_from,
)
from sinterlm.scoring.code.prompt_tests import Tests, parse_tests, uncalled_tests
from sinterlm.scoring.code.running import HARNESS_LIMIT, Job, Verdict, run_script, run_tests
from sinterlm.scoring.code.sandbox import POLICY, check_isolation
from sinterlm.scoring.protocol import SCORER_FAILED, Exchange, no_score

RULES = 4
"""Goes up with every change of how code is found and tested, so that older scores are not used."""

VERSION = f"{RULES}:{POLICY}:python{'.'.join(platform.python_version_tuple()[:2])}"
"""Names the rules, what a program may do, and the Python that runs it."""
_MAX_STARTS = 3


class CodeScorer:
    """Gives 1 to an answer whose program passes all tests, else 0; the detail says why.

    Args:
        timeout_seconds: Limit of the computing time for one answer and all its tests; for a script, for each test.
        num_workers: How many answers are tested at once.
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

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts whose tests could not tell one answer from another.

        Raises:
            InputError: A prompt has no tests, a test that is neither Python nor an input with its output, or none that
                uses what an answer could define.
        """
        for prompt in prompts:
            _read(prompt)

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Run every program against its prompt's tests.

        Raises:
            InputError: As :meth:`check_prompts`.
            SandboxError: There is no sandbox on this machine.
        """
        jobs = [_prepare(entry) for entry in exchanges]
        if not self._is_isolated:
            check_isolation()
            self._is_isolated = True
        with ThreadPoolExecutor(self._num_workers) as pool:
            verdicts = list(pool.map(self._judge, jobs))
        return [self._score(entry, verdict) for entry, verdict in zip(exchanges, verdicts, strict=True)]

    def close(self) -> None:
        """Nothing is held."""

    def _score(self, entry: Exchange, verdict: Verdict) -> Score:
        if verdict.reason in (HARNESS_LIMIT, SCORER_FAILED):
            return no_score(entry, self.identity, verdict.reason, verdict.message, {})
        has_passed = verdict.reason == "passed"
        detail = {key: value for key, value in verdict._asdict().items() if value not in (None, "")}
        return Score(entry.response.id, self.identity, float(has_passed), has_passed, detail)

    def _judge(self, job: Job) -> Verdict:
        """The verdict on one answer. A sandbox that does not start is tried again: that is not a verdict."""
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

    def _verdict(self, job: Job) -> Verdict:
        if job.program is None:
            return Verdict("no-program")
        if job.tests:
            return run_tests(job, self._timeout_seconds)
        for number, pair in enumerate(job.pairs):
            verdict = run_script(job.program.text, pair, self._timeout_seconds)
            if verdict.reason != "passed":
                return verdict._replace(test=number)
        return Verdict("passed")


def _read(prompt: Prompt) -> tuple[Tests, Problem | None]:
    tests = parse_tests(prompt)
    if tests.pairs:
        return tests, None
    try:
        return tests, read_problem(tests.python, prompt.messages)
    except InputError as error:
        raise InputError(f"prompt {prompt.id}: {error}") from None


def _prepare(exchange: Exchange) -> Job:
    prompt, response = exchange
    tests, problem = _read(prompt)
    if problem is None:
        program = build_program(response.content, prompt_code(prompt.messages), as_script=True)
        return Job(program, {}, {}, tests.pairs)
    program = build_program(response.content, problem.begun, wanted=problem.asked)
    if program is None:
        return Job(None, {}, {}, [])
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
        "functions": [uncalled_tests(test) for test in tests.python],
        "classes": classes,
        "methods": sorted(methods),
        "asks_for_classes": any(re.search(r"\bclass", message.content, re.I) for message in prompt.messages),
    }
    common = {"given": problem.given, "classes": classes}
    return Job(program, common, job, [], is_suspicious(program, problem, definitions))
