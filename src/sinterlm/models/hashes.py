"""Hashes of large files, computed once: kept by where a file lies and by all that a write to it changes."""

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
    """Where converted models and file hashes are kept: ``$XDG_CACHE_HOME/sinterlm``, else ``~/.cache/sinterlm``.

    Raises:
        InputError: Neither is known.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinterlm"
    except RuntimeError as error:
        raise InputError(f"no folder for caches ({error}); set XDG_CACHE_HOME to a folder of yours") from error


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; read again only where the file may have changed since it was last read."""
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
    """Say it once: a cache that cannot be written costs time, nothing else."""
    logger.warning(
        "hashes of weights cannot be kept (%s): every command reads the weights again; set XDG_CACHE_HOME to a folder "
        "of yours",
        reason,
    )


def known_hash(path: Path) -> str | None:
    """The hash where it is kept and the file has not changed since; None otherwise.

    A model that was trained here records the hashes of its files, which are held against them before they are loaded.
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
    """What tells one content of a path from another.

    The time of the last write can be set (``cp -p``, ``touch -r``, ``rsync -t``), so size and it are not enough. The
    time of the inode's last change cannot, and another file moved to this place has another inode.
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
