"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinterlm.errors import TryAgainError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends, it becomes ``path``, which until then is untouched.

    The bytes are on the disk before the name is, so that not even a power cut leaves half a file under it. The folder
    is made where it is missing. Where the block raises, the temporary file is removed.

    Raises:
        TryAgainError: The disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        _raise_full_disk(path, error)
        raise
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
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        _raise_full_disk(path, error)
        raise
    finally:
        for folder in (temporary, replaced):
            shutil.rmtree(folder, ignore_errors=True)


def _raise_full_disk(path: Path, error: OSError) -> None:
    """Say it, if ``error`` is that the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise TryAgainError(
            f"{path}: the disk is full ({error.strerror}); what was there is as it was. Free some space and give the "
            "same command again"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
