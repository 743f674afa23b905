"""Every error that a user can meet, and the exit code of the command.

SinterError (1)
├── InputError (2)            the user's input, recipe, model or environment is wrong; nothing was changed
│   └── OutOfMemoryError (2)  the settings need more memory than the machine has
├── ToleranceError (3)        finished, but more items failed than the recipe tolerates
├── BudgetError (4)           the recipe's budget is reached
├── CredentialsError (5)      a key is missing
├── SandboxError (6)          untrusted code and no sandbox to run it in
└── TryAgainError (75)        a full disk, a held lock: rerun the command later to resume
Terminated (143)              SIGTERM; like KeyboardInterrupt (130), it is not an Exception

A message names the file, line or key, says what was found and what was expected, and what to do.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_PASSWORD = re.compile(r"(?<=://)[^\s/@'\"]+@")


class SinterError(Exception):
    """Base of all errors that end a command with a message instead of a traceback.

    Args:
        message: What is wrong. A user and password within a URL are removed from it.
    """

    exit_code = 1
    scored: Sequence[tuple[str, Any]] = ()
    """The prompt ids and scores that a scorer had before it failed, so that nobody pays for them again."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_PASSWORD.sub("***@", message))


class InputError(SinterError):
    """The user's input or recipe is wrong (also a missing package or model, a row of the wrong shape)."""

    exit_code = 2


class ToleranceError(SinterError):
    """The work finished, but too much of it failed for the result to be useful (a silent source, no row left)."""

    exit_code = 3


class BudgetError(SinterError):
    """The recipe's budget is reached; rerun the command with a larger budget to resume."""

    exit_code = 4


class CredentialsError(SinterError):
    """A credential that the recipe needs is not in the environment."""

    exit_code = 5


class SandboxError(SinterError):
    """Untrusted code should run, but this machine has no sandbox."""

    exit_code = 6


class TryAgainError(SinterError):
    """A transient failure (full disk, held lock): nothing is lost; rerun the command to resume."""

    exit_code = 75


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that no handler swallows it on the way out."""

    exit_code = 143


class OutOfMemoryError(InputError):
    """The work does not fit into the memory of this machine or its accelerator; smaller settings may fit."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error, short enough to be part of a sentence."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error in the chain that says that memory ran out, the earliest of them; None if there is none."""
    found = None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found = error if _says_no_memory(error) else found
        error = error.__cause__ or error.__context__
    return found


def _says_no_memory(error: BaseException) -> bool:
    """Whether it is an out-of-memory error of Python, of torch or of the system."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # Without importing torch: its error class has this name, and its CPU allocator raises a plain RuntimeError.
    return type(error).__name__ == "OutOfMemoryError" or any(said in str(error) for said in _NO_MEMORY)


@contextmanager
def memory_advice(doing: str, advice: str) -> Iterator[None]:
    """Report running out of memory as an error that says what was being done and which settings to lower.

    Args:
        doing: What was being done, e.g. ``loading model 'org/name'``.
        advice: What takes less memory, e.g. ``a lower max_length takes less``.

    Raises:
        OutOfMemoryError: Memory ran out. What was stored before stays.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        cause = out_of_memory(error)
        if cause is None:
            raise
        said = re.sub(r"^\[enforce fail at [^]]*\] *\S* == \S* *", "", first_line(cause))
        raise OutOfMemoryError(
            f"out of memory while {doing} ({said}): {advice}. What is stored stays; rerun the command to resume"
        ) from error


_NO_MEMORY = (
    "can't allocate memory",  # torch's allocator for the CPU
    "not enough memory: you tried to allocate",  # the same on Windows
    "Cannot allocate memory",
    "out of memory",  # CUDA, MPS, HIP
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
    "bad_alloc",
)
"""Texts of errors that have no class or number of their own."""
