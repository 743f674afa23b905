"""Streams: chunks, records in a temporary file, and the prompts of a page."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinterlm.errors import TryAgainError
from sinterlm.records import Candidates, Dropped, Message, Prompt, RowResponse, TrainingRow
from sinterlm.report.data import ReportData, RunFacts
from sinterlm.report.prompt_browser import PromptBrowser
from sinterlm.streams import SPOOL_BYTES, Reread, Shelf, Spool, chunks


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


def test_a_shelf_keeps_the_first_record_of_a_key() -> None:
    shelf: Shelf[tuple[str, float | None]] = Shelf()
    assert shelf.setdefault("a", ("first", 0.1)) == ("first", 0.1)
    assert shelf.setdefault("b", ("other", None)) == ("other", None)
    assert shelf.setdefault("a", ("second", 0.2)) == ("first", 0.1)
    assert (shelf.get("a"), shelf.get("b"), shelf.get("c")) == (("first", 0.1), ("other", None), None)


def test_chunks_hold_every_item_in_order() -> None:
    assert list(chunks(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks([], 3)) == []


@given(st.lists(st.integers(0, 400), max_size=40), st.integers(0, 9), st.integers(0, 9_000))
def test_a_page_shows_the_first_of_a_random_order_that_fit(sizes: list[int], seed: int, max_bytes: int) -> None:
    """As if all prompts were in memory: they are taken in a random order until one does not fit."""
    asked = [Candidates(Prompt(f"p{number}", (Message("user", "x" * size),)), ()) for number, size in enumerate(sizes)]
    rows = [TrainingRow(each.prompt.id, each.prompt.messages, (RowResponse("y"),)) for each in asked[::3]]
    drops = [Dropped(each.prompt.id, "select-sft", "no-row") for each in asked[::2]]
    run = RunFacts("run", target="t", sources={}, scorer="s", seed=0, seconds=0.0)
    data = ReportData(run, parts={"sft": asked}, rows={"sft": rows}, dropped=drops)
    whole = PromptBrowser(len(asked), max_bytes=10**9, seed=seed)
    assert [candidates for _, candidates in whole.watch(data.parts)] == asked
    entries = json.loads(whole.sample(data, max_bytes=10**9).json)
    assert [entry["id"] for entry in entries] == [each.prompt.id for each in asked]
    num_bytes, expected = 0, []
    for position in random.Random(seed).sample(range(len(asked)), len(asked)):
        num_bytes += len(json.dumps(entries[position], separators=(",", ":"))) + 1
        if num_bytes > max_bytes:
            break
        expected.append(position)
    browser = PromptBrowser(len(asked), max_bytes=max_bytes, seed=seed)
    assert len(list(browser.watch(data.parts))) == len(asked)
    shown = json.loads(browser.sample(data, max_bytes=max_bytes).json)
    assert shown == [entries[position] for position in sorted(expected)]
