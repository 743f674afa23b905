"""Runs a server's command, and ends it and everything that it started: ``server_watcher.py PARENT GRACE COMMAND...``.

A process of its own, because only a process that outlives Sinter can end a server after a ``kill -9`` of Sinter. It
ends the server when it gets SIGTERM, when the process PARENT is gone, and what the server leaves behind when the server
ends by itself. Then it exits with the server's exit code (128 and the signal's number after a signal).

It is run as a script and imports nothing of Sinter, so it starts at once and stays small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil

_POLL_SECONDS = 0.1
_SECONDS_TO_DIE = 10.0
"""How long a killed process may take to be gone; one that waits for a device cannot be killed until it returns."""
_NOT_STARTED = 127
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
"""Loaded before any fork, after which it could not be."""


def main(parent: int, grace_seconds: float, command: Sequence[str]) -> int:
    """Run ``command`` until it ends, ``parent`` is gone or SIGTERM arrives; returns the exit code."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    if _LIBC is not None:
        # Every process that the server leaves behind becomes a child of this one, in whatever session it is.
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_me)
    except OSError as error:
        print(f"{command[0]}: cannot be started: {error.strerror}", flush=True)
        return _NOT_STARTED
    code: int | None = None
    while code is None and not stopped and os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
        code = _reap().get(server.pid)
    ended = _end_all(server.pid, grace_seconds)
    code = ended.get(server.pid, 0) if code is None else code
    return code if code >= 0 else 128 - code


def _end_with_me() -> None:
    """In the server, before its program starts: it is killed if this process is."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_all(group: int, grace_seconds: float) -> dict[int, int]:
    """End every process of the server, at first politely; returns their exit codes by process."""
    codes: dict[int, int] = {}
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, _SECONDS_TO_DIE)):
        end = time.monotonic() + seconds
        _signal(group, number)
        while _is_any_left(group, codes):
            if time.monotonic() > end:
                break
            if number == signal.SIGKILL:  # processes that were started meanwhile
                _signal(group, number)
            time.sleep(_POLL_SECONDS)
        else:
            break
    return codes


def _is_any_left(group: int, codes: dict[int, int]) -> bool:
    codes |= _reap()
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return bool(psutil.Process().children())
    except PermissionError:  # macOS says so of a group of zombies
        return False
    return True


def _signal(group: int, number: int) -> None:
    """Send a signal to the server's group and to every descendant outside it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(child.pid) != group:
                child.send_signal(number)


def _reap() -> dict[int, int]:
    """The exit codes of processes that have ended, by process; negative for a signal, as in subprocess."""
    codes = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes


def _arguments(parent: str, grace_seconds: str, *command: str) -> tuple[int, float, Sequence[Any]]:
    return int(parent), float(grace_seconds), command


if __name__ == "__main__":
    sys.exit(main(*_arguments(*sys.argv[1:])))
