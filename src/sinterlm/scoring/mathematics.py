r"""Mathematics: whether the final answer of a response equals an accepted one, as math-verify compares them.

math-verify finds the answer in the text (the last ``\boxed``, else the last formula or number) and compares by value:
``1/2``, ``0.5`` and ``\frac{1}{2}`` are equal. It is symbolic algebra on text that a model wrote, which may take any
time and memory. So it runs in worker processes; one that exceeds its limit is killed and replaced.
"""

from __future__ import annotations

import logging
import re
import resource
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from multiprocessing import spawn
from multiprocessing.context import ForkServerContext, ForkServerProcess
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or find_spec("pebble") is not None:
    from pebble import ProcessExpired, ProcessPool

from sinterlm.errors import InputError
from sinterlm.records import Score
from sinterlm.scoring.exact_match import GROUPING_COMMA
from sinterlm.scoring.protocol import Answered, no_score

RULES = 1
"""Goes up with every change of the rules, and with a version of math-verify that judges differently."""

MEMORY_BYTES = 4 * 2**30
"""Address space of a worker."""

_STARTING = Lock()
_PREPARATION = spawn.get_preparation_data
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")


class MathematicsScorer:
    r"""Gives 1 to a response whose final answer equals an accepted one, else 0; the detail says which way it went.

    An accepted answer is the answer itself (OpenMathInstruct-2), or a solution that ends with it: behind ``####``
    (GSM8K) or in the last ``\boxed`` (MATH).

    Args:
        timeout_seconds: for one response; one that takes longer is not right.
        num_workers: responses that are looked at at once.
    """

    def __init__(self, *, timeout_seconds: float, num_workers: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._num_workers = num_workers
        self._pool: ProcessPool | None = None

    @property
    def identity(self) -> str:
        """Names kind, rules and time limit."""
        return f"mathematics:{RULES}:{self._timeout_seconds:g}s"

    @property
    def needs_answers(self) -> bool:
        """Accepted answers decide every score."""
        return True

    def score(self, answered: Sequence[Answered]) -> list[Score]:
        """Compare every response's final answer with its prompt's accepted ones.

        Raises:
            InputError: A prompt has no accepted answer, or math-verify is not installed.
        """
        pool = self._started_pool()
        futures = [
            pool.schedule(judge, args=[_accepted(entry), entry.response.content], timeout=self._timeout_seconds)
            for entry in answered
        ]
        return [self._score_one(entry, _outcome(future)) for entry, future in zip(answered, futures, strict=True)]

    def close(self) -> None:
        """Stop the workers."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None

    def _started_pool(self) -> ProcessPool:
        if self._pool is None:
            check_packages()
            # Workers are forked from a process that has imported math-verify and has neither threads nor a GPU.
            context = _Context()
            context.set_forkserver_preload(["math_verify"])
            self._pool = ProcessPool(self._num_workers, initializer=_begin_worker, context=context)
        return self._pool

    def _score_one(self, answered: Answered, outcome: str) -> Score:
        if outcome == "unreadable":
            problem = f"the accepted answers {list(_accepted(answered))} are no mathematics"
            return no_score(answered, self.identity, "unreadable-accepted-answer", problem, {})
        is_right = outcome == "right"
        return Score(answered.response.id, self.identity, float(is_right), is_right, {"outcome": outcome})


def check_packages() -> None:
    """See whether the packages of the extra ``math`` are installed.

    Raises:
        InputError: One is not.
    """
    for name in ("math_verify", "pebble"):
        if find_spec(name) is None:
            raise InputError(
                f"the scorer mathematics needs the package {name}, which is not installed; pip install 'sinterlm[math]'"
            )


def final_answer(accepted: str) -> str:
    r"""The answer in an accepted answer, which may be a whole solution.

    >>> final_answer("He pays 1,000 + 72 = $1,072.\n#### 1,072")
    '1072'
    >>> final_answer(r"Thus $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    """
    if "####" in accepted:
        return GROUPING_COMMA.sub("", accepted.rpartition("####")[2].strip())
    boxes = list(_BOXED.finditer(accepted))
    return _balanced(accepted[boxes[-1].end() :]) if boxes else accepted.strip()


def judge(accepted: tuple[str, ...], content: str) -> str:
    """In a worker: ``right``, ``wrong``, ``no-answer`` in the response, or accepted answers that are ``unreadable``."""
    from math_verify import parse, verify  # noqa: PLC0415  # an extra, and a second of imports: workers only

    gold = _parse_accepted(accepted)
    if not gold:
        return "unreadable"
    found = parse(content, parsing_timeout=None)
    if not found:
        return "no-answer"
    return "right" if any(verify(answer, found, timeout_seconds=None) for answer in gold) else "wrong"


@lru_cache(maxsize=1024)
def _parse_accepted(accepted: tuple[str, ...]) -> list[Any]:
    from math_verify import parse  # noqa: PLC0415  # as in judge

    parsed = [parse(f"${answer}$", parsing_timeout=None) for answer in accepted]
    return [answer for answer in parsed if answer]


def _accepted(answered: Answered) -> tuple[str, ...]:
    answers = tuple(final_answer(answer) for answer in answered.prompt.answers)
    if not any(answers):
        raise InputError(
            f"prompt {answered.prompt.id}: no accepted answers, which the scorer mathematics compares with; "
            "give the prompt `answers`"
        )
    return answers


def _outcome(future: Future[str]) -> str:
    """What the worker found; a response that exceeds a limit is not right, and ``stopped``."""
    try:
        return future.result()
    except (TimeoutError, ProcessExpired, MemoryError, RecursionError):
        return "stopped"


class _Process(ForkServerProcess):
    """A worker that does not run the user's script once more, as processes of multiprocessing do to find its names."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _STARTING:
            spawn.get_preparation_data = lambda name: {
                key: value for key, value in _PREPARATION(name).items() if not key.startswith("init_main")
            }
            try:
                return ForkServerProcess._Popen(process_obj)
            finally:
                spawn.get_preparation_data = _PREPARATION


class _Context(ForkServerContext):
    Process = _Process


def _begin_worker() -> None:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that we keep the time ourselves
    with suppress(ValueError):  # macOS limits no address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _balanced(text: str) -> str:
    """What stands before the brace that closes the one before ``text``; all of it where none does."""
    depth = 1
    for position, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:position].strip()
    return text.strip()
