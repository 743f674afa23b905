"""Files and folders that appear whole or not at all, and folders held by one process at a time."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from sinterlm.errors import TryAgainError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends, it becomes ``path``, which until then is untouched.

    The bytes are on the disk before the name is, so that not even a power cut leaves half a file under it. The folder
    is made where it is missing. Where the block raises, the temporary file is removed; where the process is killed, the
    next one that writes ``path`` removes it.

    Raises:
        TryAgainError: The disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _full_disk_said(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As :func:`atomic_write` for a folder of files: when the block ends, the temporary folder takes its place.

    Raises:
        TryAgainError: The disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        with _full_disk_said(path):
            temporary.mkdir(parents=True)
            _remove_leftovers(path)
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
            _sync(path.parent)
    finally:
        for folder in (temporary, replaced):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed have left of ``path``; a process that lives may still be writing."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        pid, ending = leftover.name.removeprefix(f".{path.name}.").rpartition(".")[::2]
        if ending in ("tmp", "old") and pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


@contextmanager
def _full_disk_said(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TryAgainError(
                f"{path}: the disk is full ({error.strerror}); what was there is as it was. Free some space and give "
                "the same command again"
            ) from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path, output: Path) -> Iterator[None]:
    """Hold a folder for one writing process; the operating system frees it when the process dies.

    Args:
        folder: A workspace, or the output folder itself; made when it is not there.
        output: What the process writes, for the message that others get.

    Raises:
        TryAgainError: Another process holds it; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    holder = folder / ".lock.json"
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        try:
            held = json.loads(holder.read_text())
            who = f"process {held['pid']} on {held['host']} since {held['since']}, which writes {held['output']}"
        except (OSError, ValueError, KeyError):
            who = "another process"
        raise TryAgainError(f"{folder}: this folder is in use by {who}; wait for it or stop it") from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        host = socket.gethostname()
        holder.write_text(json.dumps({"pid": os.getpid(), "host": host, "since": since, "output": str(output)}))
        yield
        holder.unlink(missing_ok=True)
    finally:
        lock.release()
