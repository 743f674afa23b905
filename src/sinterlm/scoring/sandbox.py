"""The sandbox for untrusted programs: isolated Python processes that can compute and talk over three pipes.

It is that of sandlock (Landlock and seccomp; Linux 6.12 or later, no root and no container needed), with this policy:

- files: only Python's standard library and the system's libraries can be read, nothing can be written;
- no network, no child process, no other way to keep data than in memory, and that is limited;
- no call that changes what lies outside and that Landlock does not govern: file modes and times, other processes'
  limits and priorities, the clock;
- an empty environment.

What stays visible from inside is whether a path exists, its size and its times.
"""

from __future__ import annotations

import math
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple

import psutil

from sinterlm.errors import SandboxError

if TYPE_CHECKING or find_spec("sandlock") is not None:
    from sandlock import Sandbox, SandlockError, StdioMode
    from sandlock.sandbox import Process

POLICY = 1
"""Goes up with every change of what a program may do, so that older scores are not used."""

MEMORY_BYTES = 512 * 2**20
WALL_FACTOR = 4
"""By the wall clock a program has so many times the computing time that it may use."""

_WATCH_SECONDS = 0.1
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_DENIED_CALLS = (
    # What lies outside: Landlock governs contents, not modes, owners, times and attributes.
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "utimensat", "futimesat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
    # Other processes of the same user, and the machine.
    *("prlimit64", "setpriority", "ioprio_set", "migrate_pages", "move_pages"),
    *("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"),
    *("settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "syslog"),
    # Memory that the limit does not count, and everything that reaches out.
    *("memfd_create", "pipe", "pipe2", "socketpair", "listen", "mq_open", "mq_unlink"),
)
# Where Sinter itself is killed, nobody is left to kill the program: then an alarm ends it.
_LAUNCHER = "import _signal, sys; _signal.alarm(int(sys.argv.pop(1))); exec(compile(sys.argv.pop(1), 'script', 'exec'))"
_PROBE = """
import os, socket, sys
def is_refused(attempt):
    try:
        attempt()
    except OSError:
        return True
attempts = [
    lambda: open(sys.argv[1]).read(),
    lambda: open(sys.argv[1] + ".new", "w"),
    lambda: os.chmod(sys.argv[1], 0o777),
    lambda: os.kill(os.getppid(), 0),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    os.fork,
]
print([number for number, attempt in enumerate(attempts) if not is_refused(attempt)])
"""


class Isolated(NamedTuple):
    """A running program, and whether it was killed because its time was over."""

    process: Process
    """Its ``stdin``, ``stdout`` and ``stderr`` are unbuffered binary files."""
    is_over: Callable[[], bool]


@contextmanager
def isolated_python(script: str, *arguments: str, timeout_seconds: float) -> Iterator[Isolated]:
    """An isolated interpreter that runs ``script``; it is killed when its time is over, or the context ends.

    Args:
        script: Python source that needs nothing but the standard library.
        arguments: its ``sys.argv[1:]``.
        timeout_seconds: of computing, so that a busy machine changes no verdict; by the wall clock, one that waits has
            :data:`WALL_FACTOR` times as long.

    Raises:
        SandboxError: It could not be isolated, and so was not started.
    """
    interpreter = os.path.realpath(sys.executable)
    # -I and -S: no environment, no site-packages, no user's folder.
    options = ["-I", "-S", "-B", "-X", "utf8", "-c", _LAUNCHER, str(math.ceil(2 * WALL_FACTOR * timeout_seconds))]
    command = [interpreter, *options, script, *arguments]
    try:
        process = _policy(interpreter).popen(
            command, stdin=StdioMode.PIPED, stdout=StdioMode.PIPED, stderr=StdioMode.PIPED
        )
    except (SandlockError, RuntimeError, OSError) as error:
        raise _no_sandbox(f"sandlock could not isolate a program ({error})") from error
    ended, over = Event(), Event()
    watch = Thread(target=_watch, args=(process, process.pid, timeout_seconds, ended, over), daemon=True)
    with process:
        watch.start()
        try:
            yield Isolated(process, over.is_set)
        finally:
            ended.set()
            watch.join()


def check_isolation() -> None:
    """Try to break out in a few ways.

    Raises:
        SandboxError: There is no sandbox here, or an attempt was not refused.
    """
    if find_spec("sandlock") is None:
        raise _no_sandbox("the package sandlock is not installed (pip install 'sinterlm[code]')")
    with tempfile.NamedTemporaryFile() as canary, isolated_python(_PROBE, canary.name, timeout_seconds=30) as probe:
        printed = probe.process.stdout.readall().decode()
    if printed != "[]\n":
        raise _no_sandbox(f"sandlock does not isolate here (attempts that were not refused: {printed.strip() or '?'})")


def _watch(process: Process, pid: int, timeout_seconds: float, ended: Event, over: Event) -> None:
    """Kill the process when its time is over, unless it has ended before."""
    deadline = time.monotonic() + WALL_FACTOR * timeout_seconds
    with suppress(psutil.NoSuchProcess):  # it has ended by itself
        watched = psutil.Process(pid)
        while not ended.wait(_WATCH_SECONDS):
            used = watched.cpu_times()
            if used.user + used.system > timeout_seconds or time.monotonic() > deadline:
                over.set()
                process.kill()
                return


def _policy(interpreter: str) -> Sandbox:
    standard_library = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    shared_library = sysconfig.get_config_var("LIBDIR")
    readable = {interpreter, *standard_library, shared_library, *_LIBRARIES, "/dev/urandom"}
    return Sandbox(
        fs_readable=sorted(path for path in readable if path and Path(path).exists()),
        fs_writable=[os.devnull],
        extra_deny_syscalls=_DENIED_CALLS,
        max_memory=MEMORY_BYTES,
        max_processes=1,
        no_coredump=True,
        clean_env=True,
        cwd="/",
    )


def _no_sandbox(why: str) -> SandboxError:
    return SandboxError(
        f"{why}: programs in answers are not run without one; score them on Linux 6.12 or later with Landlock, "
        "or leave the scorer `code` out"
    )
