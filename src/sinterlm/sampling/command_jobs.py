"""Jobs on this machine: a program reads a file of requests and writes a file of results, such as ``vllm run-batch``."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from sinterlm.errors import InputError
from sinterlm.files import atomic_write
from sinterlm.sampling.jobs import Handle, Progress, is_json

INPUT, OUTPUT = "{input}", "{output}"
"""In a command: the file of requests, and that of results."""
STOP_SECONDS = 2.0
"""How long a program may take to end by itself before it is killed."""
SHOWN_LINES, SHOWN_BYTES = 50, 16_384
"""How many of a program's last lines a message shows, and how many bytes at most."""


class CommandJobs:
    """Runs jobs one after another by a program of this machine.

    The program outlives a killed command, so that its work is not lost: the next command waits for it. Whether it runs
    is known by a lock that it inherits and that nobody else can hold.

    Args:
        command: The program and its arguments, with ``{input}`` and ``{output}``.
    """

    most = 1

    def __init__(self, command: Sequence[str]) -> None:
        self.place = shlex.join(command)
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_path: Path | None = None

    def submit(self, name: str, requests: IO[bytes], url: str, folder: Path, note: Callable[[Handle], None]) -> Handle:
        """See :meth:`~sinterlm.sampling.jobs.Runner.submit`."""
        requests.seek(0)
        with atomic_write(_input(folder, name)) as path, path.open("wb") as file:
            shutil.copyfileobj(requests, file)
        places = {INPUT: str(_input(folder, name)), OUTPUT: str(_output(folder, name))}
        command = [_fill_in(part, places) for part in self._command]
        self._lock_path = _lock(folder, name)
        with self._lock_path.open("w") as lock, _log(folder, name).open("ab") as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],
                    start_new_session=True,  # Ctrl-C in a terminal reaches Sinter alone, which then ends it
                )
            except OSError as error:
                raise InputError(f"{shlex.join(command)}: cannot be started ({error.strerror}); correct it") from error
            lock.write(str(self._process.pid))
        return {}

    def find(self, name: str, handle: Handle, folder: Path) -> Handle | None:
        """See :meth:`~sinterlm.sampling.jobs.Runner.find`."""
        return {} if _runs(_lock(folder, name)) or _output(folder, name).exists() else None

    def poll(self, name: str, handle: Handle, folder: Path) -> Progress:
        """See :meth:`~sinterlm.sampling.jobs.Runner.poll`."""
        if _runs(_lock(folder, name)):
            self._lock_path = _lock(folder, name)
            return Progress(is_over=False)
        _input(folder, name).unlink(missing_ok=True)
        if self._process is None:  # a program of an earlier command
            return Progress(is_over=True, ended="interrupted")
        code, self._process = self._process.wait(), None
        if code == 0:
            return Progress(is_over=True)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        problem = f"{self.place}: ended with {how}\n{_last_lines(_log(folder, name))}"
        return Progress(is_over=True, ended="interrupted", problem=problem)

    def results(self, name: str, handle: Handle, folder: Path) -> Iterator[bytes]:
        """See :meth:`~sinterlm.sampling.jobs.Runner.results`.

        The last line of a program that was killed may be half a line: it is left out.
        """
        with suppress(FileNotFoundError), _output(folder, name).open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or is_json(line):
                    yield line

    def close(self) -> None:
        """End the program that runs, with everything that it started."""
        path, deadline = self._lock_path, time.monotonic() + STOP_SECONDS
        group = int(path.read_text() or 0) if path is not None and _runs(path) else 0
        if path is not None and group:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
                while _runs(path) and time.monotonic() < deadline:
                    time.sleep(0.05)
                os.killpg(group, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


def _fill_in(part: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        part = part.replace(name, place)
    return part


def _input(folder: Path, name: str) -> Path:
    return folder / f"{name}.requests.jsonl"


def _output(folder: Path, name: str) -> Path:
    return folder / f"{name}.results.jsonl"


def _lock(folder: Path, name: str) -> Path:
    return folder / f"{name}.lock"


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _runs(lock: Path) -> bool:
    """Whether the program that has inherited a lock still runs."""
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def _last_lines(log: Path) -> str:
    """What a program has printed last, and where all of it is."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - SHOWN_BYTES))
        lines = file.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
    return "\n".join([*(f"  | {line}" for line in lines), f"  all of its output: {log}"])
