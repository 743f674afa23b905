"""A folder is written by one process at a time."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import psutil
from filelock import FileLock, Timeout

from sinterlm.errors import TryAgainError
from sinterlm.files import make_folder

BEAT_SECONDS = 10.0
"""How often a process that holds a folder says that it lives."""
WATCH_SECONDS = 35.0
"""How long the sign of a process that cannot be looked up is watched before the process is taken for dead."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems answer that have no locks of the kernel."""


class _Holder(NamedTuple):
    """Who holds a folder, as ``.lock.json`` says."""

    pid: int
    host: str
    since: str
    output: str
    started: float
    """Unix time at which the process started: a later one may have the same number."""
    beat: int = 0
    """Goes up as long as the process lives."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}, which writes {self.output}"


@contextmanager
def folder_lock(folder: Path, output: Path) -> Iterator[None]:
    """Hold a folder for one writing process.

    Two locks are taken, since neither is enough everywhere. One of the operating system (``.lock``) ends with the
    process, but some network file systems accept and ignore it. The other (``.lock.json``) names the process. A
    process of this machine that is gone holds nothing. One of another machine is watched: it holds the folder as long
    as it renews its sign, every :data:`BEAT_SECONDS`. So a process that was suspended may find its sign gone or
    another's in its place: it ends at once, as if it had been killed.

    Args:
        folder: A workspace, or the output folder itself; made if it is missing.
        output: What the process writes, for the message that others get.

    Raises:
        TryAgainError: Another process holds it; the message names it.
    """
    make_folder(folder)
    with ExitStack() as stack:
        sign = folder / ".lock.json"
        file = folder / ".lock"
        if file.is_symlink():
            file.unlink()
        lock = FileLock(file)
        try:
            lock.acquire(blocking=False)
            stack.callback(lock.release)
        except Timeout as error:
            raise _in_use(folder, _read_sign(sign)) from error
        except NotImplementedError:
            pass
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        stack.enter_context(_signed(sign, output))
        yield


def _in_use(folder: Path, holder: _Holder | None) -> TryAgainError:
    who = str(holder) if holder else "another process"
    hint = "wait for it or stop it"
    if holder and holder.host != socket.gethostname():
        hint += f"; if it is gone, remove {folder / '.lock.json'}"
    return TryAgainError(f"{folder}: this folder is in use by {who}; {hint}")


@contextmanager
def _signed(sign: Path, output: Path) -> Iterator[None]:
    """Hold ``.lock.json``, and renew it."""
    own = _Holder(
        os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"), str(output), _started(os.getpid())
    )
    while not _create_sign(sign, own):
        holder = _read_sign(sign)
        if holder and _is_alive(sign, holder):
            raise _in_use(sign.parent, holder)
        sign.unlink(missing_ok=True)  # of a process that is gone, or a link, which is not followed
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(sign, own, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        if not _is_lost(sign, own):
            sign.unlink(missing_ok=True)


def _create_sign(sign: Path, holder: _Holder) -> bool:
    """Write ``.lock.json`` if there is none, whatever others do meanwhile; a link counts as one and is not followed."""
    try:
        with sign.open("x", encoding="utf-8") as file:
            file.write(json.dumps(holder._asdict()))
    except FileExistsError:
        return False
    return True


def _beat(sign: Path, holder: _Holder, ended: threading.Event) -> None:
    beat = 0
    written = time.monotonic()
    temporary = sign.with_name(f".lock.json.{os.getpid()}.{threading.get_ident()}.tmp")
    while not ended.wait(BEAT_SECONDS / 10):
        if _is_lost(sign, holder):
            _end_at_once(sign)
        if time.monotonic() - written < BEAT_SECONDS:
            continue
        beat += 1
        written = time.monotonic()
        with suppress(OSError):  # a full disk; the next beat may be written
            with temporary.open("x", encoding="utf-8") as file:
                file.write(json.dumps(holder._replace(beat=beat)._asdict()))
            temporary.replace(sign)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_lost(sign: Path, own: _Holder) -> bool:
    """Whether another process has held the folder since; not if the file cannot be read for now."""
    found = _read_sign(sign)
    return found[:-1] != own[:-1] if found else not os.path.lexists(sign)


def _end_at_once(sign: Path) -> NoReturn:
    """End the process from any of its threads, before it writes anything else."""
    print(
        f"sinterlm: {str(sign.parent)!r}: this folder is no longer held by process {os.getpid()}: it was suspended, or "
        f"its {sign.name} was removed. It ends here; what it has stored stays: give the same command again",
        file=sys.stderr,
        flush=True,
    )
    os._exit(TryAgainError.exit_code)


def _read_sign(sign: Path) -> _Holder | None:
    """Who holds the folder; None if ``.lock.json`` is missing, is a link or says nothing."""
    for _ in range(3):
        if sign.is_symlink():
            return None
        try:
            return _Holder(**json.loads(sign.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            time.sleep(0.05)  # may have been made this moment, and not be written yet
    return None


def _is_alive(sign: Path, holder: _Holder) -> bool:
    if holder.host == socket.gethostname():
        difference = abs(_started(holder.pid) - holder.started)
        if difference < 5 or difference == math.inf or holder.pid == os.getpid():
            return difference < 5
        # Either its number is another process's now, or the clock was set, by which the system tells when it started.
    until = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        time.sleep(BEAT_SECONDS / 10)
        if (now := _read_sign(sign)) != holder:
            return now is not None
    return False


def _started(pid: int) -> float:
    """When a process started, as Unix time; infinity if there is none."""
    try:
        process = psutil.Process(pid)
        return math.inf if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return math.inf
