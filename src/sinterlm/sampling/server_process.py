"""A model server as a process: started on a free port, watched, and ended with everything that it started."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sinterlm.errors import InputError

HOST = "127.0.0.1"
"""Servers listen on this machine only."""
SHOWN_LINES = 50
"""How many of a server's last lines a message shows."""
GRACE_SECONDS = 5.0
"""How long a server may take to end by itself before it is killed."""

_WATCHER = Path(__file__).with_name("server_watcher.py")
_SHOWN_BYTES = 64 * 1024
_POLL_SECONDS = 0.2
_ASK_SECONDS = 30.0
"""How long a server may take to list its models: `transformers serve` looks through the hub's cache."""
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
"""Colours and other commands to a terminal."""


class ServerProcess:
    """A server's command at work. It ends with this process, however that ends.

    Args:
        command: The program and its arguments; ``{host}`` and ``{port}`` are where it shall listen.
        env: Variables beside those of this process.
        log: The file to which its output is added.
        grace_seconds: How long it may take to end by itself.

    Raises:
        InputError: The log cannot be written.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], log: Path, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self.port = _free_port()
        self.log = log
        self._command = [part.replace("{host}", HOST).replace("{port}", str(self.port)) for part in command]
        self._started = time.monotonic()
        self.has_answered = False
        """Whether :meth:`wait` has seen it answer."""
        self._grace_seconds = grace_seconds
        watched = [sys.executable, "-P", str(_WATCHER), str(os.getpid()), str(grace_seconds), *self._command]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as file:
                file.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {self}\n".encode())
                file.flush()
                self._log_start = file.tell()
                self._process = subprocess.Popen(
                    watched,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **env},
                    start_new_session=True,  # Ctrl-C in a terminal reaches Sinter alone, which then ends it
                )
        except OSError as error:
            raise InputError(f"{log}: the log of a server cannot be written ({error.strerror})") from error

    def __str__(self) -> str:
        """The command as one would type it."""
        return shlex.join(self._command)

    @property
    def program(self) -> str:
        """The name of its program."""
        return Path(self._command[0]).name

    @property
    def url(self) -> str:
        """Where it answers the OpenAI protocol."""
        return f"http://{HOST}:{self.port}/v1"

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._started

    def wait(self, seconds: float) -> Iterator[str]:
        """Wait until it answers.

        Args:
            seconds: How long at most.

        Yields:
            Several times a second, its last line.

        Raises:
            InputError: It ended, or did not answer in time; with its last lines.
        """
        while self.models() is None:
            if not self.is_running:
                raise InputError(f"the server ended before it answered ({self.how_it_ended()})\n{self.describe()}")
            if self.seconds > seconds:
                raise InputError(
                    f"the server did not answer within {seconds:g} s; raise health_timeout if it was still loading\n"
                    f"{self.describe()}"
                )
            yield self.last_lines(1)
            time.sleep(_POLL_SECONDS)
        self.has_answered = True

    def models(self) -> list[str] | None:
        """The names of the models that it serves, empty if it does not say; None if it does not answer yet."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=_ASK_SECONDS)  # never through a proxy
        try:
            connection.request("GET", "/v1/models")
            response = connection.getresponse()
            if response.status == 500:  # a loading server says 503; `transformers serve` fails without a hub's cache
                return []
            listed = json.loads(response.read())["data"] if response.status == 200 else None
            return None if listed is None else [str(model["id"]) for model in listed]
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return None
        finally:
            connection.close()

    def last_lines(self, count: int = SHOWN_LINES) -> str:
        """What it has printed last; of a line that it has written over, such as a progress bar, the last state."""
        with suppress(OSError), self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - _SHOWN_BYTES))
            lines = file.read().decode(errors="replace").rstrip().split("\n")
            states = (line.rstrip("\r").rpartition("\r")[2] for line in lines)
            return "\n".join([_CONTROL.sub("", state) for state in states][-count:])
        return ""

    def wait_for_end(self) -> int:
        """Wait until it has ended; returns its exit code, 128 and the signal's number after a signal."""
        return self._process.wait()

    def how_it_ended(self) -> str:
        """Its exit code or the signal that ended it, in words; only once it has ended."""
        code = self.wait_for_end()
        number = -code if code < 0 else code - 128
        if number in {each.value for each in signal.Signals}:
            hint = ", perhaps because memory ran out" if number == signal.SIGKILL else ""
            return f"signal {signal.Signals(number).name}{hint}"
        return f"exit code {code}"

    def describe(self) -> str:
        """Its command, its last lines and where all of them are."""
        lines = self.last_lines()
        said = "\n".join(f"  | {line}" for line in lines.split("\n")) if lines else "  it has printed nothing"
        return f"  command: {self}\n{said}\n  all of its output: {self.log}"

    def stop(self) -> None:
        """End it and everything that it started, and wait until that is gone. May be called again."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
