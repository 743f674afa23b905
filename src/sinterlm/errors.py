"""Every error that a user can meet, and the exit code that the command ends with.

SinterError (1)
├── InputError (2)            the user's input, recipe, model or environment is wrong; nothing was changed
│   └── OutOfMemoryError (2)  the settings ask for more memory than there is
├── ToleranceError (3)        finished, but more items failed than the recipe tolerates
├── BudgetError (4)           the recipe's budget is reached
├── CredentialsError (5)      a key is missing
├── SandboxError (6)          untrusted code and no sandbox to run it in
└── TryAgainError (75)        a full disk, a lock held: the same command later goes on
Terminated (143)              SIGTERM; like KeyboardInterrupt (130) it is not an Exception

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
        message: What is wrong. A user and password within a URL are left out of it, wherever it quotes one from.
    """

    exit_code = 1
    scored: Sequence[tuple[str, Any]] = ()
    """Of a scorer that failed: what it had by then, as prompt ids and scores, so that nobody pays for it again."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_PASSWORD.sub("***@", message))


class InputError(SinterError):
    """The user's input or recipe is wrong (also a missing package or model, a row of the wrong shape)."""

    exit_code = 2


class ToleranceError(SinterError):
    """The work finished, but too much of it failed to be useful (a silent source, no row left)."""

    exit_code = 3


class BudgetError(SinterError):
    """The recipe's budget is reached; the same command with a larger budget goes on."""

    exit_code = 4


class CredentialsError(SinterError):
    """A credential that the recipe needs is not in the environment."""

    exit_code = 5


class SandboxError(SinterError):
    """Untrusted code should run and this machine offers no sandbox."""

    exit_code = 6


class TryAgainError(SinterError):
    """A passing trouble (full disk, held lock): nothing is lost and the same command resumes."""

    exit_code = 75


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that no handler swallows it on the way out."""

    exit_code = 143


class OutOfMemoryError(InputError):
    """The work does not fit into the memory of this machine or its accelerator; smaller settings may do."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough to be part of a sentence."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error, or the one that led to it, that says that memory could not be had; None where none does."""
    found = None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found = error if _says_no_memory(error) else found
        error = error.__cause__ or error.__context__
    return found


def _says_no_memory(error: BaseException) -> bool:
    """Whether it is Python's own, torch's, or the system's error of this kind."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # torch is not imported to ask: its class has this name, and what its CPU allocator raises has none.
    return type(error).__name__ == "OutOfMemoryError" or any(said in str(error) for said in _NO_MEMORY)


@contextmanager
def memory_advice(doing: str, advice: str) -> Iterator[None]:
    """Within it, running out of memory is an error of the user's that says what was done and which settings to lower.

    Args:
        doing: e.g. ``loading model 'org/name'``.
        advice: e.g. ``a lower max_length takes less``.

    Raises:
        OutOfMemoryError: Memory could not be had. What was stored before stays.
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
            f"out of memory while {doing} ({said}): {advice}. What is stored stays, and the same command goes on from "
            "there"
        ) from error


_NO_MEMORY = (
    "can't allocate memory",  # torch's allocator for the CPU
    "not enough memory: you tried to allocate",  # the same on Windows
    "Cannot allocate memory",
    "out of memory",  # CUDA, MPS, HIP
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
    "bad_alloc",
)
"""What errors without a class or number of their own say."""
