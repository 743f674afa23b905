"""Every error that a user can meet, and the exit code that the command ends with.

SinterError (1)
├── InputError (2)            the user's input, recipe, model or environment is wrong; nothing was changed
├── ToleranceError (3)        finished, but more items failed than the recipe tolerates
├── BudgetError (4)           the recipe's budget is reached
├── CredentialsError (5)      a key is missing
├── SandboxError (6)          untrusted code and no sandbox to run it in
└── TryAgainError (75)        a full disk, a lock held: the same command later goes on
Terminated (143)              SIGTERM; like KeyboardInterrupt (130) it is not an Exception

A message names the file, line or key, says what was found and what was expected, and what to do.
"""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?<=://)[^\s/@'\"]+@")


class SinterError(Exception):
    """Base of all errors that end a command with a message instead of a traceback.

    Args:
        message: What is wrong. A user and password within a URL are left out of it, wherever it quotes one from.
    """

    exit_code = 1

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
