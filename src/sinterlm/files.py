"""Files on the disk: whole-or-nothing writes, and records of what files hold.

A file counts once its name exists, so its bytes are synced first, then the name: a power cut leaves the old file or the
new one. In a folder with many files (a checkpoint, a model), the file written last records the size and SHA-256 of the
others.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from sinterlm.errors import InputError, TryAgainError

FINISHED = "training.json"
"""The file that is written last into the folder of a trained model; it records the model's other files."""
EDITABLE = "README.md"
"""The model's card, which its owner may edit: it is recorded, but a changed card is not damage."""

# --- whole or nothing ------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends, it replaces ``path``, which is untouched until then.

    The bytes are on the disk before the name is, so that not even a power cut leaves half a file under it. The folder
    is created if it is missing. A symbolic link at ``path`` is replaced, never followed. If the block raises, the
    temporary file is removed; if the process is killed, the next one that writes ``path`` removes it.

    Raises:
        TryAgainError: The disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with full_disk_said(path):
        make_folder(path.parent)
        _remove_leftovers(path)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like :func:`atomic_write`, for a folder: when the block ends, the temporary folder replaces ``path``.

    Raises:
        TryAgainError: The disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        with full_disk_said(path):
            make_folder(path.parent)
            _remove_leftovers(path)
            temporary.mkdir()
            yield temporary
            _sync_tree(temporary)
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
            _sync(path.parent)
    finally:
        for folder in (temporary, replaced):
            _remove_entry(folder)


def move_in(staged: Path, folder: Path) -> list[Path]:
    """Move everything in ``staged`` into ``folder``, replacing what has the same names; returns the files' new paths.

    Every file is on the disk before its name is. ``staged`` must be on the same file system; it is gone afterwards.
    """
    _sync_tree(staged)
    make_folder(folder)
    names = sorted(path.relative_to(staged) for path in staged.rglob("*") if path.is_file())
    for entry in list(staged.iterdir()):
        target = folder / entry.name
        if entry.is_dir() or (target.is_dir() and not target.is_symlink()):
            remove(target)
        entry.replace(target)
    _sync(folder)
    remove(staged)
    return [folder / name for name in names]


def move_whole(path: Path, target: Path) -> None:
    """Move a file or a folder to a free name on its file system; its content is on the disk before the name is."""
    _sync_tree(path)
    make_folder(target.parent)
    path.replace(target)
    _sync(target.parent)
    _sync(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, and sync their names to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, a folder or a symbolic link (not its target), if it exists.

    A folder is renamed first, so that under its own name it is always whole or gone.
    """
    trash = path.with_name(f".{path.name}.removed")
    _remove_entry(trash)  # left by an interrupted removal
    if path.is_dir() and not path.is_symlink():
        path.rename(trash)
        _remove_entry(trash)
    else:
        path.unlink(missing_ok=True)


def _remove_entry(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder; also removes empty ones that killed processes have left behind."""
    for leftover in Path(tempfile.gettempdir()).glob("sinterlm-*"):
        pid = leftover.name.split("-")[1]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            with suppress(OSError):  # another user's, or not empty
                leftover.rmdir()
    with tempfile.TemporaryDirectory(prefix=f"sinterlm-{os.getpid()}-") as folder:
        yield Path(folder)


def sync_files(paths: Iterable[Path]) -> None:
    """Sync the content of files, and their names in their folders, to the disk."""
    paths = list(paths)
    for path in [*paths, *dict.fromkeys(path.parent for path in paths)]:
        _sync(path)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` that killed processes have left; a living process may still be writing.

    A file with our own process's number was left by an earlier process with the same number, or planted as a link.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        pid, ending = leftover.name.removeprefix(f".{path.name}.").rpartition(".")[::2]
        if (
            ending in ("tmp", "old")
            and pid.isdecimal()
            and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))
        ):
            _remove_entry(leftover)


@contextmanager
def full_disk_said(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TryAgainError(
                f"{path}: the disk is full ({error.strerror}); nothing that was there has changed. Free some space and "
                "rerun the command"
            ) from error
        raise


# --- what files hold -------------------------------------------------------------------------------------------------

_hashes: dict[tuple[object, ...], str] = {}
"""Hashes of the files that this process has read, by path, inode, size and times."""


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, streamed; an unchanged file is read once per process."""
    status = path.stat()
    key = (path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


def content_digest(path: Path) -> str | None:
    """The hash of a file's content in stage keys; None for a file that does not exist.

    Equals ``records.digest`` of the content in hexadecimal, but does not read the whole file at once.
    """
    if not path.is_file():
        return None
    sha256 = hashlib.sha256(b'"')
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk.hex().encode())
    sha256.update(b'"')
    return sha256.hexdigest()


def record_files(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and hash of each file, by its path within ``folder``: ``{"a/b.txt": {"bytes": 12, "sha256": "5e.."}}``."""
    paths = list(paths)
    with ThreadPoolExecutor(_num_readers()) as readers:
        hashes = list(readers.map(file_sha256, paths))
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(paths, hashes, strict=True)
    }


def find_damage(folder: Path, record: Mapping[str, Mapping[str, Any]], *, read: bool = True) -> str | None:
    """What is wrong with the first file that differs from its record, in words; None if none does.

    Args:
        folder: The folder of the files.
        record: The record that :func:`record_files` made.
        read: Whether to compare the files' content, too, and not only their sizes.
    """
    names = [name for name in record if Path(name).name != EDITABLE]
    for name in names:
        try:
            size = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != record[name]["bytes"]:
            return f"{name} has {size:,} bytes, but {record[name]['bytes']:,} were written"
    if not read:
        return None
    with ThreadPoolExecutor(_num_readers()) as readers:
        hashes = readers.map(file_sha256, [folder / name for name in names])
        for name, sha256 in zip(names, hashes, strict=True):
            if sha256 != record[name]["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    return None


def describe_state(folder: Path, names: Iterable[str]) -> str:
    """A hash of the files' state on the disk: the same hash means that nothing has been written to them since.

    The time of an inode's last change cannot be set, and another file at the same place has another inode.
    """
    states = []
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError:
            states.append(f"{name}: missing")
        else:
            states.append(f"{name}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}")
    return hashlib.sha256("\n".join(states).encode()).hexdigest()


_CHUNK = 2**20


def _num_readers() -> int:
    return min(os.cpu_count() or 1, 8)


def find_model_damage(folder: Path, *, read: bool = True) -> str | None:
    """Like :func:`find_damage`, for the folder of a trained model; None if the folder has no record."""
    record = _read_record(folder)
    if record is None:
        return f"{FINISHED} is not the record of a model"
    return find_damage(folder, record, read=read)


def recorded_files(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """The record of the files in a trained model's folder; empty if there is no record."""
    return _read_record(folder) or {}


def recorded_sha256(path: Path) -> str | None:
    """The hash of a file as recorded in its trained model's folder; None if there is no record of it."""
    record = recorded_files(path.parent)
    return record[path.name]["sha256"] if path.name in record else None


def _read_record(folder: Path) -> Mapping[str, Mapping[str, Any]] | None:
    """The record, read again only if its file has changed; empty if there is none, None if it is damaged."""
    path = folder / FINISHED
    return _parse_record(path, describe_state(folder, [FINISHED])) if path.is_file() else {}


@lru_cache(maxsize=64)
def _parse_record(path: Path, state: str) -> Mapping[str, Mapping[str, Any]] | None:
    try:
        files = json.loads(path.read_bytes()).get("files", {})
        is_whole = all(isinstance(entry["bytes"], int) and entry["sha256"] for entry in files.values())
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return None
    return files if is_whole else None


def require_undamaged_model(folder: Path, *, read: bool = True) -> None:
    """Refuse the folder of a trained model if one of its files is not what training wrote.

    Args:
        folder: The folder of any model.
        read: Whether to read every file (once per process), or to check only the sizes.

    Raises:
        InputError: Which file, and what to do.
    """
    if damage := find_model_damage(folder, read=read):
        raise damaged_model(folder, damage)


def damaged_model(folder: Path, damage: str) -> InputError:
    """The error for a trained model's folder with a file that is not what training wrote."""
    return InputError(
        f"{folder}: this trained model is damaged: {damage}. Restore the folder from a copy, or remove it and rerun "
        f"the command that made it, which trains it anew. If you have changed the model yourself, remove its "
        f"{FINISHED}: it is then a model like any other"
    )
