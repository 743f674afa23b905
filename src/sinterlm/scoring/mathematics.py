r"""Mathematics: whether the final answer of a response equals an accepted one.

``final_answer.py`` finds the final answer; math-verify compares by value, as corrected by ``equality.py``:
``1/2``, ``0.5`` and ``\frac{1}{2}`` are equal. That is symbolic algebra on text that a model wrote, which may take any
time and memory. So it runs in worker processes; one that exceeds its limit is replaced, and there is no verdict.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import connection, forkserver, parent_process, spawn
from multiprocessing.context import ForkServerContext, ForkServerProcess
from threading import Lock, Thread
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sinterlm.errors import InputError
from sinterlm.records import Prompt, Score
from sinterlm.scoring.final_answer import final_answer, is_plain
from sinterlm.scoring.protocol import Exchange, no_score
from sinterlm.scoring.settings import AnswerReader, Preflight
from sinterlm.settings import Positive

if TYPE_CHECKING:
    from pebble import ProcessPool

RULES = 3
"""Goes up with every change of the rules, and with a version of math-verify that judges differently."""

MEMORY_BYTES = 4 * 2**30
"""Address space of a worker."""
WAITING_FACTOR = 4
"""Comparing an answer may take this many times its computing time by the clock: workers wait for processors."""
STOPPED = "comparison-stopped"
"""Reason of an answer without a score: comparing it met a limit of ours, which says nothing about the answer."""

NUM_SHOWN, MAX_SHOWN = 5, 80
"""Accepted answers that an error shows, and characters of each."""

_STARTING = Lock()
_PREPARATION = spawn.get_preparation_data
_PR_SET_PDEATHSIG = 1


class Mathematics(AnswerReader):
    """Whether the final answer of a response equals an accepted one, by value."""

    kind: Literal["mathematics"]
    timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Limit of the computing time for one answer; a slower one has no score (``comparison-stopped``)."""
    num_workers: Positive = 2
    """Number of worker processes."""

    description: ClassVar = (
        "1 if the final answer equals an accepted one by value, as math-verify finds and compares them; otherwise 0"
    )
    placement: ClassVar = {"num_workers"}

    @property
    def rules(self) -> int:
        """The rules by which answers are found and compared."""
        return RULES

    def check(self, preflight: Preflight) -> None:
        """Check that the packages of the extra ``math`` are installed.

        Raises:
            InputError: One is missing.
        """
        super().check(preflight)
        check_packages()

    def build_reader(self) -> MathematicsScorer:
        """The scorer of answers without thoughts."""
        return MathematicsScorer(timeout_seconds=self.timeout_seconds, num_workers=self.num_workers)


class MathematicsScorer:
    r"""Gives 1 to a response whose final answer equals an accepted one, else 0; the detail says which way it went.

    An accepted answer is the answer itself (OpenMathInstruct-2), or a solution that ends with it: after ``####``
    (GSM8K) or in the last ``\boxed`` (MATH). An answer that takes too long or too much memory has no score.

    Args:
        timeout_seconds: Limit of the computing time for one response.
        num_workers: How many responses are compared at once.
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

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts with accepted answers that cannot be read, before anything is sampled.

        Numbers and words are seen at once; other answers are read in the workers.

        Raises:
            InputError: No accepted answer of a prompt can be read, or math-verify is not installed.
        """
        accepted = [(prompt.id, tuple(map(final_answer, prompt.answers))) for prompt in prompts]
        doubtful = [(prompt, answers) for prompt, answers in accepted if not any(map(is_plain, answers))]
        if not doubtful:
            return
        outcomes = self._ask(can_be_read_in_time, [(answers,) for _, answers in doubtful])
        self.close()
        bad = [found for found, outcome in zip(doubtful, outcomes, strict=True) if outcome in ("unreadable", "stopped")]
        if bad:
            shown = ", ".join(f"{prompt!r} ({answers[0][:MAX_SHOWN]!r})" for prompt, answers in bad[:NUM_SHOWN])
            raise InputError(
                f"the scorer mathematics cannot read the accepted answers of {len(bad)} of {len(prompts)} prompts, "
                f"e.g. {shown}; expected a number, a formula in LaTeX, words, or the letter of a choice: "
                "write them so, or leave these prompts out"
            )

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Compare every response's final answer with its prompt's accepted ones.

        A response whose worker was lost (it waited too long, or something ended it) is asked about once more.

        Raises:
            InputError: A prompt has no accepted answers, or math-verify is not installed.
        """
        questions = [(_accepted(entry), entry.response.content) for entry in exchanges]
        outcomes = self._ask(judge_in_time, questions)
        lost = [place for place, outcome in enumerate(outcomes) if outcome == "lost"]
        if lost:
            again = self._ask(judge_in_time, [questions[place] for place in lost])
            for place, outcome in zip(lost, again, strict=True):
                outcomes[place] = outcome
        return [self._score_one(entry, outcome) for entry, outcome in zip(exchanges, outcomes, strict=True)]

    def close(self) -> None:
        """Stop the workers."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None

    def _ask(self, question: Callable[..., str], all_arguments: Sequence[tuple[Any, ...]]) -> list[str]:
        """What the workers find."""
        pool, seconds = self._started_pool(), self._timeout_seconds
        futures = [
            pool.schedule(question, args=[seconds, *arguments], timeout=WAITING_FACTOR * seconds)
            for arguments in all_arguments
        ]
        return [_outcome(future) for future in futures]

    def _started_pool(self) -> ProcessPool:
        if self._pool is None:
            check_packages()
            from pebble import ProcessPool

            # Workers are forked from a process that has imported math-verify and has neither threads nor a GPU.
            context = _Context()
            context.set_forkserver_preload(["sinterlm.scoring.equality"])
            self._pool = ProcessPool(self._num_workers, initializer=_begin_worker, context=context)
        return self._pool

    def _score_one(self, exchange: Exchange, outcome: str) -> Score:
        if outcome in ("right", "wrong", "no-answer"):
            is_right = outcome == "right"
            return Score(exchange.response.id, self.identity, float(is_right), is_right, {"outcome": outcome})
        if outcome == "unreadable":
            problem = f"the accepted answers {list(_accepted(exchange))} are no mathematics"
            return no_score(exchange, self.identity, "unreadable-accepted-answer", problem, {})
        problem = (
            f"comparing it took more than {self._timeout_seconds:g} s of computing or {MEMORY_BYTES // 2**30} GB"
            if outcome in ("stopped", "lost")
            else f"comparing it failed ({outcome})"
        )
        return no_score(exchange, self.identity, STOPPED, problem, {"outcome": "stopped"})


def check_packages() -> None:
    """Check that the packages of the extra ``math`` are installed.

    Raises:
        InputError: One is missing.
    """
    for name in ("math_verify", "pebble"):
        if find_spec(name) is None:
            raise InputError(
                f"the scorer mathematics needs the package {name}, which is not installed; pip install 'sinterlm[math]'"
            )


def judge_in_time(seconds: float, accepted: tuple[str, ...], content: str) -> str:
    """In a worker: as :func:`sinterlm.scoring.equality.judge`; the worker ends after this many seconds of computing."""
    from sinterlm.scoring.equality import judge  # an extra, and a second of imports: workers only

    with _time_limit(seconds):
        return judge(accepted, content)


def can_be_read_in_time(seconds: float, accepted: tuple[str, ...]) -> str:
    """In a worker: ``readable`` or ``unreadable``; as :func:`judge_in_time`."""
    from sinterlm.scoring.equality import read_accepted  # as above

    with _time_limit(seconds):
        return "readable" if any(gold.is_readable for gold in read_accepted(accepted)) else "unreadable"


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _accepted(exchange: Exchange) -> tuple[str, ...]:
    answers = tuple(final_answer(answer) for answer in exchange.prompt.answers)
    if not any(answers):
        raise InputError(
            f"prompt {exchange.prompt.id}: no accepted answers, which the scorer mathematics compares with; "
            "give the prompt `answers`"
        )
    return answers


def _outcome(future: Future[str]) -> str:
    """What the worker found, ``stopped`` at a limit, or ``lost``; whatever else went wrong by its name."""
    from pebble import ProcessExpired

    try:
        return future.result()
    except ProcessExpired as error:
        return "stopped" if error.exitcode == -signal.SIGPROF else "lost"
    except TimeoutError:
        return "lost"
    except (MemoryError, RecursionError):
        return "stopped"
    except Exception as error:  # a fault of ours says nothing about the answer
        return f"{type(error).__name__}: {error}"


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
    from sinterlm.scoring.equality import mend_math_verify  # as in judge_in_time

    mend_math_verify()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that we keep the time ourselves
    with suppress(ValueError):  # macOS limits no address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if sys.platform == "linux":
        # The server that forks workers ends with the driver unless workers hold on to it too. Workers end with it,
        # whatever they compute.
        if (held := forkserver._forkserver._forkserver_alive_fd) is not None:  # type: ignore[attr-defined]
            os.close(held)
            forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Thread(target=_end_with_the_driver, daemon=True).start()


def _end_with_the_driver() -> None:
    driver = parent_process()
    assert driver is not None
    connection.wait([driver.sentinel])
    os._exit(1)
