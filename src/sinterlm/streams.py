"""Records that may not fit in memory: in chunks, in temporary files, or read anew each time."""

from __future__ import annotations

import os
import pickle
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar
from weakref import finalize

from sinterlm.errors import TryAgainError
from sinterlm.files import full_disk_said

Item = TypeVar("Item")

SPOOL_BYTES = 2**20
"""A spool up to this size stays in memory."""


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of ``size`` items, the last one of what is left.

    >>> list(chunks("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


class Reread(Collection[Item]):
    """Items that are read anew from where they are kept whenever they are iterated over.

    Args:
        read: Begins to read.
        length: The number of items.
    """

    def __init__(self, read: Callable[[], Iterator[Item]], length: int) -> None:
        self._read = read
        self._length = length

    def __iter__(self) -> Iterator[Item]:
        return self._read()

    def __len__(self) -> int:
        return self._length

    def __contains__(self, item: object) -> bool:
        return any(item == own for own in self)


class Spool(Collection[Item]):
    """Records in a temporary file, which has no name and is gone once nobody refers to it.

    It may be iterated over any number of times, but not while it grows.

    Args:
        items: The first records.
    """

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._file = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115  as long as the spool
        finalize(self, self._file.close)
        self._num_items = 0
        for item in items:
            self.append(item)

    def append(self, item: Item) -> None:
        """Add a record at the end.

        Raises:
            TryAgainError: The disk of temporary files is full.
        """
        with full_disk_said(Path(tempfile.gettempdir())):
            self._file.seek(0, os.SEEK_END)
            pickle.dump(item, self._file)
        self._num_items += 1

    def __len__(self) -> int:
        return self._num_items

    def __iter__(self) -> Iterator[Item]:
        self._file.seek(0)
        for _ in range(self._num_items):
            item: Item = pickle.load(self._file)
            yield item

    def __contains__(self, item: object) -> bool:
        return any(item == own for own in self)


class Shelf(Generic[Item]):
    """Records by key in a temporary database, which has no name and is gone once nobody refers to it."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        finalize(self, self._database.close)
        self._database.executescript(
            "PRAGMA journal_mode = OFF; CREATE TABLE shelf (key TEXT PRIMARY KEY, item BLOB) WITHOUT ROWID; BEGIN"
        )

    def setdefault(self, key: str, item: Item) -> Item:
        """Keep ``item``, unless there is one of this key; returns the one that is kept.

        Raises:
            TryAgainError: The disk of temporary files is full.
        """
        try:
            is_new = self._database.execute(
                "INSERT OR IGNORE INTO shelf VALUES (?, ?)", (key, pickle.dumps(item))
            ).rowcount
        except sqlite3.OperationalError as error:
            raise TryAgainError(
                f"{tempfile.gettempdir()}: {error}; free some space, or set TMPDIR to a folder on a larger disk, and "
                "rerun the command"
            ) from error
        kept = item if is_new else self.get(key)
        assert kept is not None
        return kept

    def get(self, key: str) -> Item | None:
        """The record of this key; None if there is none."""
        found = self._database.execute("SELECT item FROM shelf WHERE key = ?", (key,)).fetchone()
        return pickle.loads(found[0]) if found else None
