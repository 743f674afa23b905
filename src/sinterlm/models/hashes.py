"""Hashes of large files, computed once: kept by where a file lies and by all that a write to it changes."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from sinterlm.records import digest


def cache_folder() -> Path:
    """Where converted models and file hashes are kept: ``$XDG_CACHE_HOME/sinterlm``, else ``~/.cache/sinterlm``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinterlm"


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; read again only where the file may have changed since it was last read."""
    known = known_hash(path)
    if known is not None:
        return known
    state = _state(path)
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    entry = _entry(path)
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**state, "sha256": value}), encoding="utf-8")
        temporary.replace(entry)
    return value


def known_hash(path: Path) -> str | None:
    """The hash where it is kept and the file has not changed since; None otherwise."""
    try:
        entry: dict[str, Any] = json.loads(_entry(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
