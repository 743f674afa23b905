"""Python: a function of your own, in a file beside the recipe, that scores an answer.

    def score(prompt: Prompt, response: Response) -> float | bool | Score: ...

A number is the score, True or False whether the answer passes, NaN no score; a :class:`~sinterlm.records.Score` says
more (its ids are filled in). The file runs only if the command allows it (``--allow-code``), and never for a plan, a
status or a report. Its content is part of every score's name, so a changed file scores again; what the file imports is
not, so change a constant in it with the packages that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from numbers import Real
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from sinterlm.errors import InputError
from sinterlm.explain import unknown_name
from sinterlm.records import Score, digest
from sinterlm.scoring.protocol import NO_SCORE, NOT_A_NUMBER, Exchange, no_score
from sinterlm.scoring.settings import AnswerReader, Preflight
from sinterlm.settings import InputPath


class Python(AnswerReader):
    """A function of your own that scores an answer; it runs only with ``--allow-code``."""

    kind: Literal["python"]
    path: InputPath
    """The Python file, relative to the recipe."""
    function: Annotated[str, Field(min_length=1)] = "score"
    """The function's name."""
    needs_answers: bool = False
    """Whether the run refuses prompts without accepted answers before it samples anything."""

    description: ClassVar = "a function of your own, in a Python file beside the recipe; it runs only with --allow-code"
    placement: ClassVar = {"needs_answers"}

    @property
    def title(self) -> str:
        """The kind with the file's name, and the function's if it is not the default."""
        function = "" if self.function == Python.model_fields["function"].default else f":{self.function}"
        return f"{self.kind} {self.path.name}{function}"

    def check(self, preflight: Preflight) -> None:
        """Run the file, if that is allowed, and check that it has the function.

        Raises:
            InputError: The file does not exist, it is not allowed to run, or it has no such function.
        """
        super().check(preflight)
        if not preflight.allow_code:
            raise InputError(
                f"{self.path}: the scorer {self.kind} runs the code in this file, which needs your permission: read "
                "the file, and give the same command with --allow-code (from Python: allow_code=True)"
            )
        load_function(self.path, self.path.read_bytes(), self.function)

    def build_reader(self) -> PythonScorer:
        """The scorer; its first ``score`` runs the file."""
        return PythonScorer(self.path, self.function, needs_answers=self.needs_answers)


class PythonScorer:
    """Scores by a function that is defined in a file.

    Args:
        path: The file.
        function: The function's name.
        needs_answers: Whether it reads the prompt's accepted answers.
    """

    def __init__(self, path: Path, function: str, *, needs_answers: bool) -> None:
        self._path = path
        self._function = function
        self._needs_answers = needs_answers

    @cached_property
    def identity(self) -> str:
        """Names the file's content and the function."""
        content = hashlib.sha256(self._source).hexdigest()
        return digest({"scorer": "python", "content": content, "function": self._function})

    @property
    def needs_answers(self) -> bool:
        """As the recipe says."""
        return self._needs_answers

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Call the function on every answer.

        Raises:
            InputError: The file cannot be run, or the function raises or gives no score; ``scored`` has what was scored
                before.
        """
        scores: list[Score] = []
        for exchange in exchanges:
            try:
                scores.append(self._score_one(exchange))
            except InputError as error:
                error.scored = [(one.prompt.id, score) for one, score in zip(exchanges, scores, strict=False)]
                raise
        return scores

    def close(self) -> None:
        """Forget the function."""
        self.__dict__.pop("_call", None)

    @cached_property
    def _source(self) -> bytes:
        """The file's content, read once: what runs is what the identity names."""
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read ({error.strerror})") from error

    @cached_property
    def _call(self) -> Callable[..., Any]:
        return load_function(self._path, self._source, self._function)

    def _score_one(self, exchange: Exchange) -> Score:
        call, (prompt, response) = self._call, exchange
        try:
            found = call(prompt, response)
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            raise self._refuse(exchange, f"raises {_shown(error, self._path)}") from error
        found = _plain(found)
        if isinstance(found, bool):
            found = Score("", "", found, found)
        elif isinstance(found, Real):
            found = Score("", "", cast(float, found))
        if not isinstance(found, Score):
            problem = f"gives {found!r} ({type(found).__name__}), expected a number, True or False, or a Score"
            raise self._refuse(exchange, problem)
        return self._complete(exchange, found)

    def _complete(self, exchange: Exchange, found: Score) -> Score:
        """The score with its ids, if its value, verdict and detail are valid."""
        value, passed = _plain(found.value), _plain(found.passed)  # nobody has checked the types of the user's own code
        if not isinstance(value, Real) or not isinstance(passed, int | float | None) or passed not in (None, 0, 1):
            problem = f"gives {found}, expected a number as value, and True, False or None as passed"
            raise self._refuse(exchange, problem)
        try:
            value = float(value)
        except OverflowError as error:
            raise self._refuse(exchange, f"gives a score that is too large ({error})") from None
        try:
            detail = dict(found.detail)
            json.dumps(detail, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise self._refuse(exchange, f"gives a detail that JSON cannot hold ({error})") from None
        if not math.isfinite(value):
            reason, problem = detail.pop("reason", NO_SCORE), detail.pop("problem", NOT_A_NUMBER)
            return no_score(exchange, self.identity, str(reason), str(problem), detail)
        return Score(exchange.response.id, self.identity, value, None if passed is None else bool(passed), detail)

    def _refuse(self, exchange: Exchange, problem: str) -> InputError:
        prompt, response = exchange
        return InputError(
            f"{self._path}: {self._function}() {problem}; on prompt {prompt.id}, answer {response.index} of "
            f"{response.source}"
        )


def _plain(found: Any) -> Any:
    """Python's own value for one of NumPy or torch; anything else as it is."""
    with suppress(Exception):  # what has an `item` may be anything, such as a tensor of many numbers
        return found if isinstance(found, Real) else found.item()
    return found


def load_function(path: Path, source: bytes, name: str) -> Callable[..., Any]:
    """Run a Python file, and give one of its functions.

    Args:
        path: The file's path, for messages.
        source: The file's content.
        name: The function's name.

    Raises:
        InputError: The file is not Python, raises an error, or has no such function.
    """
    module = ModuleType(f"_sinterlm_python_{hashlib.sha256(source).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        hint = ""
        if isinstance(error, ModuleNotFoundError) and (path.parent / f"{error.name}.py").is_file():
            hint = (
                "; other files beside it cannot be imported: put their code into this file, or install it as a package"
            )
        raise InputError(f"{path}: cannot be run: {_shown(error, path)}{hint}") from error
    found: Any = vars(module).get(name)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{path}: {unknown_name(name, functions, f'function {name!r}')}")
    return cast("Callable[..., Any]", found)


def _shown(error: BaseException, path: Path) -> str:
    """An error with the line of the file where it arose."""
    line = error.lineno if isinstance(error, SyntaxError) else _line_in(path, error.__traceback__)
    said = error.msg if isinstance(error, SyntaxError) else error
    return f"{type(error).__name__}: {said}" + (f" (line {line})" if line else "")


def _line_in(path: Path, traceback: TracebackType | None) -> int | None:
    """The last line of the file that a traceback goes through."""
    line = None
    while traceback:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
