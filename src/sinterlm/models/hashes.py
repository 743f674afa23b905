"""Hashes of large files, computed once and cached by the file's path, size, times and inode."""

from __future__ import annotations

import json
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from sinterlm.errors import InputError, TryAgainError
from sinterlm.files import atomic_write, file_sha256, recorded_sha256
from sinterlm.records import digest

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder for converted models and file hashes: ``$XDG_CACHE_HOME/sinterlm`` or ``~/.cache/sinterlm``.

    Raises:
        InputError: Neither is known.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinterlm"
    except RuntimeError as error:
        raise InputError(f"no folder for caches ({error}); set XDG_CACHE_HOME to a folder of yours") from error


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; the file is read again only if it may have changed since the last time."""
    known = known_hash(path)
    if known is not None:
        return known
    state = _state(path)
    value = file_sha256(path)
    try:
        with atomic_write(_entry(path)) as temporary:
            temporary.write_text(json.dumps({**state, "sha256": value}), encoding="utf-8")
    except (OSError, InputError, TryAgainError) as error:
        _say_without_cache(getattr(error, "strerror", None) or str(error))
    return value


@lru_cache(maxsize=1)
def _say_without_cache(reason: str) -> None:
    """Warn once: a cache that cannot be written costs only time."""
    logger.warning(
        "hashes of weights cannot be kept (%s): every command reads the weights again; set XDG_CACHE_HOME to a folder "
        "of yours",
        reason,
    )


def known_hash(path: Path) -> str | None:
    """The hash if it is cached and the file has not changed since; None otherwise.

    A model that was trained here records the hashes of its files; they are compared before it is loaded.
    """
    if recorded := recorded_sha256(path):
        return recorded
    try:
        entry: dict[str, Any] = json.loads(_entry(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, InputError):
        return None
    value = entry.pop("sha256", None)
    return value if entry == _state(path) else None


def _state(path: Path) -> dict[str, Any]:
    """The file's state on the disk, which changes whenever its content does.

    The time of the last write can be set (``cp -p``, ``touch -r``, ``rsync -t``), so it and the size are not enough.
    The time of the inode's last change cannot be set, and another file moved to this place has another inode.
    """
    status = path.stat()
    return {
        "path": str(path.resolve()),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def _entry(path: Path) -> Path:
    return cache_folder() / "hashes" / f"{digest(str(path.resolve()))}.json"
