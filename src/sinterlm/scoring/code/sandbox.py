"""The sandbox for untrusted programs: isolated Python processes that can compute and talk over three pipes.

It is that of sandlock (Landlock and seccomp; Linux 6.12 or later, no root and no container needed), with this policy:

- files: only Python's standard library, without packages, and the system's shared libraries can be read, nothing can
  be written, no other program run and no link read;
- no socket of any kind, no child process, no way to keep data except in memory, which is limited by sandlock, by the
  kernel (addresses), and by a look at what is used, ten times a second;
- its own limits are not the program's to set, whatever it is told;
- no call that changes or watches what lies outside and that Landlock does not govern: modes, times, attributes and
  flags of files, mounts, other processes' limits and priorities, the clock; and none that is newer than this list;
- an empty environment.

What stays visible from inside is whether a path exists, its size and its times.
"""

from __future__ import annotations

import errno
import marshal
import math
import os
import platform
import site
import struct
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple

import psutil

from sinterlm.errors import SandboxError

if TYPE_CHECKING:
    from sandlock import Sandbox
    from sandlock.sandbox import Process

POLICY = 2
"""Goes up with every change of what a program may do, so that older scores are not used."""

MEMORY_BYTES = 512 * 2**20
ADDRESS_SLACK_BYTES = 512 * 2**20
"""Addresses beyond the memory: what threads and libraries reserve and do not use."""
MAX_OPEN_FILES = 64
WALL_FACTOR = 4
"""By the wall clock, a program has this many times its computing time."""

_WATCH_SECONDS = 0.1
_DENIED_CALLS = (
    # What lies outside: Landlock governs contents, not modes, owners, times, attributes, flags and mounts.
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "utimensat", "futimesat", "ioctl", "file_setattr", "quotactl", "quotactl_fd"),
    *("setxattr", "lsetxattr", "fsetxattr", "setxattrat"),
    *("removexattr", "lremovexattr", "fremovexattr", "removexattrat"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "open_tree_attr", "move_mount", "mount_setattr"),
    *("statmount", "listmount", "inotify_init", "inotify_init1", "fanotify_init", "sync", "syncfs"),
    # Other processes of the same user, and the machine.
    *("setpriority", "ioprio_set", "migrate_pages", "move_pages", "get_robust_list"),
    *("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "process_madvise", "process_mrelease", "kcmp"),
    *("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"),
    *("settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "syslog", "acct", "vhangup"),
    # Its own bonds: that it ends with its parent is undone by prctl, and by another user or fewer rights.
    *("prctl", "capset", "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid"),
    *("setfsuid", "setfsgid", "setgroups", "lsm_set_self_attr"),
    # Memory that the limit does not count, and everything that reaches out.
    *("memfd_create", "memfd_secret", "pipe", "pipe2", "socketpair", "listen", "mq_open", "mq_unlink"),
)
# Calls that sandlock or the interpreter's start needs are denied by a filter of our own, and with them all newer ones.
# No socket at all: Landlock refuses to connect by TCP, but not by MPTCP, nor by sending the first data at once (TCP
# Fast Open). No other program: the system's libraries hold some. No link is read: those of /proc name others' files.
_SET_FILTER = {"x86_64": 317, "aarch64": 277}
_DENIED_BY_FILTER = {"x86_64": (41, 59, 89, 267, 322), "aarch64": (78, 198, 221, 281)}
"""The numbers of ``socket``, ``execve``, ``readlink``, ``readlinkat`` and ``execveat``."""
_LIMITING = {"x86_64": (160, 302), "aarch64": (164, 261)}
"""The numbers of ``setrlimit`` and ``prlimit64``: a program that sets its own limits is told that it did."""
_NEWEST_CALL = 469
"""On all machines: ``file_setattr`` of Linux 6.17, up to which :data:`_DENIED_CALLS` was chosen."""
# If Sinter itself is killed, nobody may be left to kill the program: then an alarm ends it.
_LAUNCHER = """
import _signal, ctypes, marshal, os, sys
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_char_p)]
import resource
_signal.alarm(int(sys.argv.pop(1)))
memory = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))  # by the kernel: sandlock counts calls, not what a stack grows
libc = ctypes.CDLL(None)
libc.mallopt(-8, 2)  # M_ARENA_MAX: each arena reserves addresses
rules = bytes.fromhex(sys.argv.pop(1))
if libc.syscall(int(sys.argv.pop(1)), 1, 0, ctypes.byref(Filter(len(rules) // 8, rules))):
    sys.exit("no filter")
script, size = b"", int(sys.argv.pop(1))
while len(script) < size:
    script += os.read(0, size - len(script)) or sys.exit("no script")
del _signal, ctypes, libc, os, resource, Filter, rules, size, memory
exec(marshal.loads(script))
"""
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
    socket.socket,
    os.fork,
]
print([number for number, attempt in enumerate(attempts) if not is_refused(attempt)])
"""


class Isolated(NamedTuple):
    """A running program, and whether it was killed because its time ran out."""

    process: Process
    """Its ``stdin``, ``stdout`` and ``stderr`` are unbuffered binary files."""
    is_over: Callable[[], bool]


@contextmanager
def isolated_python(script: str, *arguments: str, timeout_seconds: float) -> Iterator[Isolated]:
    """An isolated interpreter that runs ``script``; it is killed when its time runs out, or the context ends.

    Args:
        script: Python source that needs nothing but the standard library.
        arguments: Its ``sys.argv[1:]``.
        timeout_seconds: Limit of the computing time, so that a busy machine changes no verdict; by the wall clock, a
            program has :data:`WALL_FACTOR` times as long.

    Raises:
        SandboxError: It could not be isolated, and so was not started.
    """
    from sandlock import SandlockError, StdioMode  # an extra, and a native library

    interpreter = os.path.realpath(sys.executable)
    # -I and -S: no environment, no site-packages, no user's folder.
    options = ["-I", "-S", "-B", "-X", "utf8", "-c", _LAUNCHER, str(math.ceil(2 * WALL_FACTOR * timeout_seconds))]
    # The script comes by the pipe: a process with a long command line was killed now and then.
    content = _compiled(script)
    command = [
        interpreter,
        *options,
        str(MEMORY_BYTES + ADDRESS_SLACK_BYTES),
        *_filter(),
        str(len(content)),
        *arguments,
    ]
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
            with suppress(BrokenPipeError):  # it has ended: its output says so
                write_all(process.stdin, content)
            yield Isolated(process, over.is_set)
        finally:
            ended.set()
            watch.join()


@lru_cache(maxsize=8)
def _compiled(script: str) -> bytes:
    """A script as the same interpreter's code: to compile it there cost a third of what an answer takes."""
    return marshal.dumps(compile(script, "script", "exec", dont_inherit=True))


def write_all(writer: FileIO, content: bytes) -> None:
    """Write all of it to an unbuffered file, which may take it in parts."""
    rest = memoryview(content)
    while rest:
        rest = rest[writer.write(rest) :]


def check_isolation() -> None:
    """Try to break out in a few ways.

    Raises:
        SandboxError: There is no sandbox here, or an attempt was not refused.
    """
    if find_spec("sandlock") is None:
        raise _no_sandbox("the package sandlock is not installed (pip install 'sinterlm[code]')")
    try:
        import_module("sandlock")
    except (ImportError, OSError) as error:  # a native library, made for another system
        raise _no_sandbox(f"the package sandlock cannot be loaded ({error})") from error
    with tempfile.NamedTemporaryFile() as canary, isolated_python(_PROBE, canary.name, timeout_seconds=30) as probe:
        printed = probe.process.stdout.readall().decode()
    if printed != "[]\n":
        raise _no_sandbox(f"sandlock does not isolate here (attempts that were not refused: {printed.strip() or '?'})")


def _watch(process: Process, pid: int, timeout_seconds: float, ended: Event, over: Event) -> None:
    """Kill the process when its time runs out, unless it has ended before."""
    deadline = time.monotonic() + WALL_FACTOR * timeout_seconds
    with suppress(psutil.NoSuchProcess):  # it has ended by itself
        watched = psutil.Process(pid)
        while not ended.wait(_WATCH_SECONDS):
            used = watched.cpu_times()
            if used.user + used.system > timeout_seconds or time.monotonic() > deadline:
                over.set()
                process.kill()
                return
            if watched.memory_info().rss > MEMORY_BYTES:
                process.kill()
                return


def _filter() -> tuple[str, str]:
    """Our own filter, as instructions of the kernel's packet filter; and the number of the call that sets it."""
    machine = platform.machine()
    if machine not in _SET_FILTER:
        raise _no_sandbox(f"the system calls of {machine} are not known")
    set_limit, limit = _LIMITING[machine]
    equals, greater, load, give = 0x15, 0x25, 0x20, 0x06
    allow, refuse, pretend = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000
    # For prlimit64, its arguments: the process (the program knows only 0, itself), and whether a new limit is given.
    own_limits = [
        (load, 0, 0, 16),  # the process
        (equals, 0, 6, 0),  # another one: refuse
        (load, 0, 0, 32),  # the new limit's address, its lower half
        (equals, 0, 3, 0),
        (load, 0, 0, 36),  # and its upper half
        (equals, 0, 1, 0),
        (give, 0, 0, allow),  # none: it only asks
        (give, 0, 0, pretend),
        (give, 0, 0, refuse),
    ]
    refused = [*((equals, number) for number in _DENIED_BY_FILTER[machine]), (greater, _NEWEST_CALL)]
    rules = [
        (load, 0, 0, 0),  # the call's number
        (equals, 0, len(own_limits), limit),
        *own_limits,
        (equals, 0, 1, set_limit),
        (give, 0, 0, pretend),
        *((test, len(refused) - place, 0, number) for place, (test, number) in enumerate(refused)),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules).hex(), str(_SET_FILTER[machine])


def _policy(interpreter: str) -> Sandbox:
    from sandlock import Sandbox  # as in isolated_python

    # The interpreter's own folder: a virtual environment's would bring its packages.
    own = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    standard_library = {sysconfig.get_path(name, vars=own) for name in ("stdlib", "platstdlib")}
    shared_library = sysconfig.get_config_var("LIBDIR") or "/usr/lib"
    multiarch = sysconfig.get_config_var("MULTIARCH")
    own_libraries = [f"{folder}/{multiarch}" for folder in ("/lib", "/usr/lib")] if multiarch else []
    # Where libraries have folders of their own, as on Debian, the rest of /usr/lib holds programs and their data.
    libraries = own_libraries if any(map(os.path.isdir, own_libraries)) else ["/lib", "/usr/lib"]
    readable = {interpreter, *standard_library, *libraries, "/lib64", "/usr/lib64", "/dev/urandom"}
    readable |= {f"{shared_library}/{name}" for name in os.listdir(shared_library) if ".so" in name}
    packages = site.getsitepackages([sys.base_prefix, sys.base_exec_prefix])  # they may lie in the standard library
    return Sandbox(
        fs_readable=sorted(path for path in readable if path and Path(path).exists()),
        fs_denied=sorted(path for path in set(packages) if Path(path).exists()),
        fs_writable=[os.devnull],
        extra_deny_syscalls=_DENIED_CALLS,
        max_memory=MEMORY_BYTES,
        max_processes=1,
        max_open_files=MAX_OPEN_FILES,
        no_coredump=True,
        clean_env=True,
        cwd="/",
    )


def _no_sandbox(why: str) -> SandboxError:
    return SandboxError(
        f"{why}: programs in answers are not run without one; score them on Linux 6.12 or later with Landlock, "
        "or leave the scorer `code` out"
    )
