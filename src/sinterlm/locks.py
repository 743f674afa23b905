"""Locks that let only one process at a time write a folder."""

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
"""How often a process that holds a folder renews its sign."""
WATCH_SECONDS = 35.0
"""How long the sign of a process that cannot be looked up is watched before the process is considered dead."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems that have no kernel locks."""


class _Holder(NamedTuple):
    """The process that holds a folder, according to ``.lock.json``."""

    pid: int
    host: str
    since: str
    output: str
    started: float
    """Unix time at which the process started: a later process may have the same number."""
    beat: int = 0
    """Increases as long as the process lives."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}, which writes {self.output}"


@contextmanager
def folder_lock(folder: Path, output: Path) -> Iterator[None]:
    """Hold a folder for one writing process.

    Two locks are taken, since neither is enough everywhere. The operating system's (``.lock``) ends with the process,
    but some network file systems accept and ignore it. The other, the sign (``.lock.json``), names the process. A
    process of this machine that is gone holds nothing. A process of another machine is watched: it holds the folder as
    long as it renews its sign, every :data:`BEAT_SECONDS`. So a process that was suspended may find its sign gone or
    replaced by another's: it then ends at once, as if it had been killed.

    Args:
        folder: A workspace, or the output folder itself; created if it is missing.
        output: What the process writes, for the message that others get.

    Raises:
        TryAgainError: Another process holds the folder; the message names it.
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
        sign.unlink(missing_ok=True)  # left by a process that is gone, or a link, which is not followed
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
    """Write ``.lock.json`` unless it exists, atomically; a link there counts as existing and is not followed."""
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
    """Whether another process has taken the folder since; false if the sign cannot be read at the moment."""
    found = _read_sign(sign)
    return found[:-1] != own[:-1] if found else not os.path.lexists(sign)


def _end_at_once(sign: Path) -> NoReturn:
    """End the process from any of its threads, before it writes anything else."""
    print(
        f"sinterlm: {str(sign.parent)!r}: this folder is no longer held by process {os.getpid()}: it was suspended, or "
        f"its {sign.name} was removed. It ends here; what it has stored stays: rerun the command",
        file=sys.stderr,
        flush=True,
    )
    os._exit(TryAgainError.exit_code)


def _read_sign(sign: Path) -> _Holder | None:
    """The process that holds the folder; None if ``.lock.json`` is missing, is a link or cannot be read."""
    for _ in range(3):
        if sign.is_symlink():
            return None
        try:
            return _Holder(**json.loads(sign.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            time.sleep(0.05)  # it may have just been created, and not be written yet
    return None


def _is_alive(sign: Path, holder: _Holder) -> bool:
    if holder.host == socket.gethostname():
        difference = abs(_started(holder.pid) - holder.started)
        if difference < 5 or difference == math.inf or holder.pid == os.getpid():
            return difference < 5
        # Either another process now has its number, or the clock was set, which shifts the start time that we read.
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
