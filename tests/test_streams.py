"""Streams: chunks, records in a temporary file, and answers scored in windows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sinterlm.errors import TryAgainError
from sinterlm.records import Dropped
from sinterlm.streams import SPOOL_BYTES, Reread, Spool, chunks


def test_a_spool_is_read_as_often_as_wanted_and_takes_a_file_once_it_is_large() -> None:
    spool: Spool[Dropped] = Spool()
    assert (len(spool), list(spool)) == (0, [])
    drops = [Dropped(str(number), "score", "no-score", "x" * (SPOOL_BYTES // 8)) for number in range(20)]
    for number, drop in enumerate(drops):
        spool.append(drop)
        if number % 7 == 0:
            assert list(spool) == drops[: number + 1], "and it may grow after it was read"
    assert list(spool) == list(spool) == drops
    first = iter(spool)
    assert next(first) == drops[0]


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sinterlm.streams.pickle.dump", refuse)
    with pytest.raises(TryAgainError, match="disk is full"):
        Spool[int]().append(1)


def test_what_is_reread_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("a\n")
    lines = Reread(lambda: iter(path.read_text().split()), 1)
    assert (list(lines), len(lines), "a" in lines, "b" in lines) == (["a"], 1, True, False)
    path.write_text("a\nb\n")
    assert list(lines) == ["a", "b"]


def test_chunks_hold_every_item_in_order() -> None:
    assert list(chunks(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks([], 3)) == []
