"""Attempts to break out of the sandbox, each watched from outside.

An attempt prints ``ESCAPED`` if it got what it must not have. Harmless attempts also run without the sandbox, and there
they must escape, which proves that they attempt something.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from sinterlm.errors import SandboxError
from sinterlm.scoring.code import sandbox
from sinterlm.scoring.code.sandbox import check_isolation, isolated_python

sandlock = pytest.importorskip("sandlock", reason="the extra `code` is not installed")
if sandlock.landlock_abi_version() < sandlock.min_landlock_abi():
    pytest.skip("this kernel's Landlock is too old", allow_module_level=True)

SECRET = "the secret of the house"


class House(NamedTuple):
    """Files outside, which must not be read or changed."""

    folder: Path
    victim: subprocess.Popen[bytes]
    tcp: socket.socket
    unix: socket.socket
    abstract: socket.socket

    @property
    def constants(self) -> str:
        """Tells the attempts where everything is."""
        return (
            f"FOLDER = {str(self.folder)!r}; SECRET = FOLDER + '/secret'; VICTIM = {self.victim.pid}; "
            f"PARENT = {os.getpid()}; PORT = {self.tcp.getsockname()[1]}; UNIX = FOLDER + '/socket'; "
            f"ABSTRACT = {self.abstract.getsockname()!r}; HOME = {str(Path.home())!r}\n"
            "import ctypes, os, socket, sys, time\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
        )

    def state(self) -> object:
        """Everything that an attempt might change."""
        victim = psutil.Process(self.victim.pid)
        secret = self.folder / "secret"
        status = secret.stat()
        return (
            sorted(os.listdir(self.folder)),
            secret.read_text(),
            (status.st_mode, status.st_uid, status.st_mtime, status.st_nlink, os.listxattr(secret)),
            (victim.status() != psutil.STATUS_ZOMBIE, victim.nice(), victim.cpu_affinity()),
            [victim.rlimit(limit) for limit in (psutil.RLIMIT_NOFILE, psutil.RLIMIT_CPU, psutil.RLIMIT_AS)],
            len(psutil.Process().children(recursive=True)),
        )


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setenv("SINTERLM_TEST_KEY", SECRET)
    (tmp_path / "secret").write_text(SECRET)
    victim = subprocess.Popen([sys.executable, "-c", f"key = {SECRET!r}; import time; time.sleep(600)"])
    sockets = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    sockets[0].bind(("127.0.0.1", 0))
    sockets[1].bind(str(tmp_path / "socket"))
    sockets[2].bind(f"\0sinterlm-{os.getpid()}")
    for listener in sockets:
        listener.listen()
    yield House(tmp_path, victim, *sockets)
    victim.kill()
    victim.wait()
    for listener in sockets:
        listener.close()


def attempt(house: House, code: str) -> tuple[str, bool]:
    """What an attempt printed, and whether it ran out of time."""
    with isolated_python(house.constants + code, timeout_seconds=20) as (process, is_over):
        errors = threading.Thread(target=process.stderr.readall)
        errors.start()
        printed = process.stdout.readall().decode(errors="replace")
        process.kill()
        errors.join()
        return printed, is_over()


HARMLESS = {
    "read a file": "print('ESCAPED', open(SECRET).read())",
    "read /etc/passwd": "print('ESCAPED', open('/etc/passwd').read())",
    "read by a link": (
        "os.symlink(SECRET, FOLDER + '/link'); open(FOLDER + '/link').read(); os.unlink(FOLDER + '/link'); "
        "print('ESCAPED')"
    ),
    "read by way of the library's folder": (
        "up = '/..' * 20; open(os.path.dirname(os.__file__) + up + SECRET); print('ESCAPED')"
    ),
    "list the home folder": "print('ESCAPED', os.listdir(HOME))",
    "list the root folder": "print('ESCAPED', os.listdir('/'))",
    "list the working folder": "print('ESCAPED', os.listdir('.'))",
    "read the environment": "print('ESCAPED' if 'SINTERLM_TEST_KEY' in os.environ else '')",
    "read its environment in /proc": (
        "print('ESCAPED' if b'SINTERLM' in open('/proc/self/environ', 'rb').read() else '')"
    ),
    "read a process's environment": (
        "print('ESCAPED' if b'SINTERLM' in open(f'/proc/{VICTIM}/environ', 'rb').read() else '')"
    ),
    "read a process's command": "print('ESCAPED', open(f'/proc/{VICTIM}/cmdline').read())",
    "list processes": "print('ESCAPED', os.listdir('/proc'))",
    "write a new file": "open(FOLDER + '/new', 'w').close(); os.unlink(FOLDER + '/new'); print('ESCAPED')",
    "write to the temporary folder": (
        "n = f'/tmp/sinterlm-{os.getpid()}'; open(n, 'w').close(); os.unlink(n); print('ESCAPED')"
    ),
    "write shared memory": (
        "n = f'/dev/shm/sinterlm-{os.getpid()}'; open(n, 'w').close(); os.unlink(n); print('ESCAPED')"
    ),
    "open for writing": "open(SECRET, 'r+').close(); print('ESCAPED')",
    "make a folder": "os.mkdir(FOLDER + '/new'); os.rmdir(FOLDER + '/new'); print('ESCAPED')",
    "make a hard link": "os.link(SECRET, FOLDER + '/new'); os.unlink(FOLDER + '/new'); print('ESCAPED')",
    "make a pipe file": "os.mkfifo(FOLDER + '/new'); os.unlink(FOLDER + '/new'); print('ESCAPED')",
    "change modes": "os.chmod(SECRET, os.stat(SECRET).st_mode); print('ESCAPED')",
    "change the owner": "os.chown(SECRET, os.getuid(), os.getgid()); print('ESCAPED')",
    "change times": "s = os.stat(SECRET); os.utime(SECRET, ns=(s.st_atime_ns, s.st_mtime_ns)); print('ESCAPED')",
    "connect by TCP": "socket.create_connection(('127.0.0.1', PORT), 5); print('ESCAPED')",
    "send by UDP": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)); print('ESCAPED')",
    "connect by sending at once": (
        "socket.socket().sendto(b'x', socket.MSG_FASTOPEN, ('127.0.0.1', PORT)); print('ESCAPED')"
    ),
    "have a socket of one's own": "socket.socket(socket.AF_UNIX); print('ESCAPED')",
    "be reached by an abstract socket": (
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).bind(f'\\0{os.getpid()}'); print('ESCAPED')"
    ),
    "listen": "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print('ESCAPED')",
    "connect to a Unix socket": "socket.socket(socket.AF_UNIX).connect(UNIX); print('ESCAPED')",
    "connect to an abstract socket": "socket.socket(socket.AF_UNIX).connect(ABSTRACT); print('ESCAPED')",
    "signal a process": "os.kill(VICTIM, 0); print('ESCAPED')",
    "signal the parent": "os.kill(PARENT, 0); print('ESCAPED')",
    "signal by a process descriptor": (
        "import signal; signal.pidfd_send_signal(os.pidfd_open(VICTIM), 0); print('ESCAPED')"
    ),
    "limit a process": "import resource as r; r.prlimit(VICTIM, r.RLIMIT_CPU); print('ESCAPED')",
    "slow down a process": "os.setpriority(os.PRIO_PROCESS, VICTIM, 0); print('ESCAPED')",
    "move a process": "os.sched_setaffinity(VICTIM, os.sched_getaffinity(VICTIM)); print('ESCAPED')",
    "take a process by its descriptor": "print('ESCAPED' if libc.syscall(434, VICTIM, 0) >= 0 else '')",
    "watch a folder": (
        "n = libc.inotify_init(); print('ESCAPED' if libc.inotify_add_watch(n, FOLDER.encode(), 0xFFF) >= 0 else '')"
    ),
    "ask for a file's flags": ("import fcntl; fcntl.ioctl(open(os.__file__), 0x541B, bytes(8)); print('ESCAPED')"),
    "become undead": "print('ESCAPED' if libc.prctl(1, 0) == 0 else '')",
    "keep many files open": "x = [open('/dev/null') for _ in range(99)]; print('ESCAPED')",
    "fork": "p = os.fork() or os._exit(0); os.waitpid(p, 0); print('ESCAPED')",
    "run a shell": (
        "import subprocess; print(subprocess.run(['/bin/sh', '-c', 'echo ESCAPED'], capture_output=True).stdout)"
    ),
    "become another program": "os.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])",
    "read a link": "print('ESCAPED', os.readlink('/proc/self/exe'))",
    "read the open files of another process": "print('ESCAPED', os.readlink(f'/proc/{VICTIM}/fd/0'))",
    "keep memory in a file of no name": "os.memfd_create('x'); print('ESCAPED')",
    "keep memory in pipes": "os.pipe(); print('ESCAPED')",
    "keep memory in System V segments": (
        "i = libc.shmget(0, 4096, 0o1600); i >= 0 and (libc.shmctl(i, 0, 0), print('ESCAPED'))"
    ),
    "keep memory in message queues": (
        "i = libc.mq_open(b'/sinterlm', 0o102, 0o600, None); "
        "i >= 0 and (libc.mq_unlink(b'/sinterlm'), print('ESCAPED'))"
    ),
}
"""They do no harm without the sandbox; run there, they print ``ESCAPED``."""

HARMFUL = {
    "read a process's memory": "open(f'/proc/{VICTIM}/mem', 'rb'); print('ESCAPED')",
    "overwrite a file": "open(SECRET, 'w').write('x'); print('ESCAPED')",
    "truncate a file": "os.truncate(SECRET, 0); print('ESCAPED')",
    "delete a file": "os.unlink(SECRET); print('ESCAPED')",
    "rename a file": "os.rename(SECRET, FOLDER + '/new'); print('ESCAPED')",
    "open a file to all": "os.chmod(SECRET, 0o777); print('ESCAPED')",
    "set attributes": "os.setxattr(SECRET, 'user.x', b'x'); print('ESCAPED')",
    "set attributes by the newer call": (
        "b = ctypes.create_string_buffer(b'x'); a = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 1)\n"
        "print('ESCAPED' if libc.syscall(463, -100, SECRET.encode(), 0, b'user.x', a, 16) >= 0 else '')"
    ),
    "use a call of tomorrow": "libc.syscall(600); print('' if ctypes.get_errno() == 1 else 'ESCAPED')",
    "import a package": (
        "import site\nfor f in site.getsitepackages([sys.base_prefix]):\n    try: os.listdir(f); print('ESCAPED')\n"
        "    except OSError: sys.path.append(f)\nimport pip; print('ESCAPED')"
    ),
    "plant a file in site-packages": (
        "open(os.path.dirname(os.__file__) + '/site-packages/sinterlm-test.pth', 'w'); print('ESCAPED')"
    ),
    "kill a process": "os.kill(VICTIM, 9); print('ESCAPED')",
    "kill the parent": "os.kill(PARENT, 9); os.kill(os.getppid(), 9); print('ESCAPED')",
    "kill everyone": "import signal; signal.signal(15, signal.SIG_IGN); os.kill(-1, 15); time.sleep(0.2)",
    "kill its group": "import signal; signal.signal(15, signal.SIG_IGN); os.killpg(0, 15)",
    "kill a process by way of a pipe": (
        "import fcntl as f; f.fcntl(1, 10, 9); f.fcntl(1, f.F_SETOWN, VICTIM); f.fcntl(1, f.F_SETFL, 0o20001)\n"
        "for _ in range(5): os.write(1, b'x'); time.sleep(0.02)"
    ),
    "read the parent's memory": (
        "b = ctypes.create_string_buffer(8); i = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 8)\n"
        "print('ESCAPED' if libc.syscall(310, PARENT, i, 1, i, 1, 0) > 0 else '')"
    ),
    "connect by MPTCP": "socket.socket(2, 1, 262).connect(('127.0.0.1', PORT)); print('ESCAPED')",
    "trace a process": "print('ESCAPED' if libc.ptrace(16, VICTIM, 0, 0) == 0 else '')",
    "trace the parent": "print('ESCAPED' if libc.ptrace(16, PARENT, 0, 0) == 0 else '')",
    "cut a process's limits": "import resource as r; r.prlimit(VICTIM, r.RLIMIT_NOFILE, (3, 3)); print('ESCAPED')",
    "leave a daemon": "os.fork() or (os.setsid(), os.fork() or time.sleep(600)); print('ESCAPED')",
    "leave its session": "os.setsid(); os.fork() or time.sleep(600); print('ESCAPED')",
    "fork bomb": "while True: os.fork() and print('ESCAPED')",
    "spawn by multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start(); print('ESCAPED')",
    "clone by hand": "print('ESCAPED' if libc.syscall(56, 17, 0, 0, 0, 0) > 0 else '')",
    "memory bomb": "x = []\nwhile True: x.append(b'x' * 2**24); len(x) > 60 and print('ESCAPED')",
    "memory bomb by mapping": (
        "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 2**24)); x[-1].write(b'x' * 2**24); "
        "len(x) > 60 and print('ESCAPED')"
    ),
    "memory bomb by sharing": (
        "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 2**24, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)); "
        "x[-1].write(b'x' * 2**24); len(x) > 60 and print('ESCAPED')"
    ),
    "a stack as large as memory": (
        "import threading; threading.stack_size(2**29); t = threading.Thread(target=print, args=['ESCAPED']); t.start()"
    ),
    "thread bomb": (
        "import threading\nn = 0\nwhile True: threading.Thread(target=time.sleep, args=(600,)).start(); "
        "n += 1; n > 2000 and print('ESCAPED')"
    ),
    "mount": "print('ESCAPED' if libc.mount(b'none', FOLDER.encode(), b'tmpfs', 0, None) == 0 else '')",
    "new namespaces": "print('ESCAPED' if libc.unshare(0x10020000) == 0 else '')",
    "a file system of its own": (
        "print('ESCAPED' if libc.syscall(430, b'tmpfs', 0) >= 0 or libc.syscall(428, -100, b'/', 1) >= 0 else '')"
    ),
    "watch the machine": "print('ESCAPED' if libc.syscall(300, 0, 0) >= 0 else '')",
    "the calls of 32 bits": (
        "import mmap\nm = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('b802000000cd80c3'))\n"
        "a = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "print('ESCAPED' if ctypes.CFUNCTYPE(ctypes.c_int)(a)() > 0 else '')"
    ),
    "change the root": "os.chroot(FOLDER); os.listdir('/'); print('ESCAPED')",
    "become another user": "os.setuid(65534); open(SECRET); print('ESCAPED')",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time() + 1); print('ESCAPED')",
    "set the host's name": "socket.sethostname('escaped'); print('ESCAPED')",
    "requests around the filter": (
        "b = ctypes.create_string_buffer(256); print('ESCAPED' if libc.syscall(425, 8, b) >= 0 else '')"
    ),
    "load a kernel program": (
        "print('ESCAPED' if libc.syscall(321, 0, ctypes.create_string_buffer(128), 128) >= 0 else '')"
    ),
    "keys of the kernel": "print('ESCAPED' if libc.syscall(248, b'user', b'x', b'x', 1, -4) >= 0 else '')",
    "inherited files": (
        "print('ESCAPED' if any(map(os.path.exists, map('/proc/self/fd/{}'.format, range(3, 99)))) else '')\n"
        "for n in range(3, 999):\n    try: os.fstat(n); print('ESCAPED', n)\n    except OSError: pass"
    ),
    "raise its own limits": "libc.setrlimit(9, (ctypes.c_ulong * 2)(2**63, 2**63))\nx = b'x' * 2**30; print('ESCAPED')",
    "raise its own limits by the older call": (
        "libc.syscall(160, 9, (ctypes.c_ulong * 2)(2**63, 2**63))\nx = b'x' * 2**30; print('ESCAPED')"
    ),
    "memory that grows as a stack does": (
        "libc.mmap.restype = ctypes.c_void_p; libc.setrlimit(3, (ctypes.c_ulong * 2)(2**63, 2**63))\n"
        "p = libc.mmap(ctypes.c_void_p(0x600000000000), 4096, 3, 0x122, -1, 0)\n"
        "for n in range(4096, 2**30, 4096): ctypes.memset(p - n, 1, 8)\nprint('ESCAPED')"
    ),
    "memory in many stacks": (
        "libc.mmap.restype = ctypes.c_void_p; n = 0\n"
        "while (p := libc.mmap(0, 2**20, 3, 0x122, -1, 0)) not in (None, 2**64 - 1): ctypes.memset(p, 1, 2**20); "
        "n += 1; n > 1100 and print('ESCAPED')"
    ),
    "run a program of the libraries' folder": (
        "import glob\nfor p in glob.glob('/lib64/ld-*') + glob.glob('/usr/lib/*/ld-*'):\n"
        "    try: os.execv(p, [p, '/bin/echo', 'ESCAPED'])\n    except OSError: pass"
    ),
    "see programs in the libraries' folder": "print('ESCAPED', os.listdir('/usr/lib/git-core'))",
    "take down a network device": (
        "import struct\ns = socket.socket(16, 3, 0); m = struct.pack('BxHiII', 0, 0, 1, 0, 1)\n"
        "s.send(struct.pack('IHHII', 16 + len(m), 16, 5, 1, 0) + m); r = s.recv(99)\n"
        "print('ESCAPED' if struct.unpack_from('i', r, 16)[0] == 0 else '')"
    ),
}
"""These run only in the sandbox."""


@pytest.mark.parametrize("code", (HARMLESS | HARMFUL).values(), ids=(HARMLESS | HARMFUL).keys())
def test_escape(house: House, code: str) -> None:
    before = house.state()
    printed, is_over = attempt(house, code)
    assert "ESCAPED" not in printed
    assert SECRET not in printed
    assert not is_over
    assert house.state() == before
    for listener in (house.tcp, house.unix, house.abstract):
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("code", HARMLESS.values(), ids=HARMLESS.keys())
def test_the_same_attempt_succeeds_outside(house: House, code: str) -> None:
    run = subprocess.run([sys.executable, "-c", house.constants + code], capture_output=True, text=True, check=False)
    assert "ESCAPED" in run.stdout, run.stderr


STUBBORN = {
    "an endless loop": "while True: pass",
    "sleep": "time.sleep(600)",
    "no signal is heard": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: time.sleep(1)"
    ),
    "threads that go on": (
        "import threading\nfor _ in range(4): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
    ),
    "the end that is put off": "import atexit; atexit.register(time.sleep, 600)",
    "output without end": "while True: os.write(1, b'x' * 999)",
    "a stop": "import signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "closed output": "os.close(1); os.close(2); time.sleep(600)",
}


@pytest.mark.parametrize("code", STUBBORN.values(), ids=STUBBORN.keys())
def test_time_is_over_for_everyone(house: House, code: str) -> None:
    before, started = house.state(), time.monotonic()
    with isolated_python(house.constants + code, timeout_seconds=0.3) as (process, is_over):
        while process.stdout.read(2**16):
            pass
        assert process.wait().exit_code == -1
        assert is_over()
    assert time.monotonic() - started < 10
    assert house.state() == before


PARENT = """
import sys
from sinterlm.scoring.code.sandbox import isolated_python
with isolated_python(sys.argv[1], timeout_seconds=60) as (process, _):
    process.stdout.read(1)
    print(process.pid, flush=True)
    process.stdout.readall()
"""
UNDEAD = """
import ctypes, os, signal
attempts = [
    lambda: signal.alarm(0),
    lambda: ctypes.CDLL(None).prctl(1, 0),  # no signal when the parent ends
    lambda: os.setuid(os.getuid() or 65534),  # which takes that signal away, too
]
for attempt in attempts:
    try: attempt()
    except OSError: pass
os.write(1, b"x")
while True: pass
"""


def test_program_computes_threads_and_imports() -> None:
    code = (
        "import collections, dataclasses, functools, heapq, itertools, json, math, random, re, string, threading\n"
        "import typing, decimal, fractions, statistics, hashlib, datetime, bisect, copy, queue, asyncio\n"
        "t = threading.Thread(target=print, args=(sum(range(10)),)); t.start(); t.join()\n"
        "print(input())"
    )
    with isolated_python(code, timeout_seconds=20) as (process, _):
        process.stdin.write(b"line\n")
        process.stdin.close()
        assert process.stdout.readall() == b"45\nline\n"
        assert process.wait().exit_code == 0


def test_limits_that_a_program_sets_are_ours() -> None:
    """As contest programs do, without checking whether it worked."""
    code = (
        "import resource\nbefore = resource.getrlimit(resource.RLIMIT_AS)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**50, 2**50))\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (2**26, resource.RLIM_INFINITY))\n"
        "print(resource.getrlimit(resource.RLIMIT_AS) == before)"
    )
    with isolated_python(code, timeout_seconds=20) as (process, _):
        assert process.stdout.readall() == b"True\n"


def test_process_ends_with_its_context() -> None:
    with isolated_python("import time; time.sleep(600)", timeout_seconds=600) as (process, _):
        pid = process.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


def test_program_ends_after_its_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, UNDEAD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    program = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    program.wait(timeout=20)


def test_no_package_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "find_spec", lambda name: None)
    with pytest.raises(SandboxError, match=r"pip install 'sinterlm\[code\]'") as caught:
        check_isolation()
    assert caught.value.exit_code == 6


def test_sandbox_with_a_hole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = sandbox._policy

    def leaky(interpreter: str) -> Any:
        policy = strict(interpreter)
        policy.fs_readable = ["/"]
        return policy

    monkeypatch.setattr(sandbox, "_policy", leaky)
    with pytest.raises(SandboxError, match=r"does not isolate here \(attempts that were not refused: \[0\]\)"):
        check_isolation()


def test_kernel_without_landlock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As reported by sandlock: the child is not started."""

    def unavailable(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("sandlock_popen failed")

    monkeypatch.setattr(sandlock.Sandbox, "popen", unavailable)
    with pytest.raises(SandboxError, match="could not isolate a program"):
        check_isolation()
