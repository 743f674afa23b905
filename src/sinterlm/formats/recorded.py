"""Answers that were made elsewhere.

A file of them may be larger than memory. It is read once, into a temporary database without a name, which finds the
answers to a prompt wherever they are in the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from weakref import finalize

from pydantic import AliasChoices, Field, model_validator

from sinterlm.errors import InputError, TryAgainError
from sinterlm.explain import Expects
from sinterlm.files import describe_state
from sinterlm.formats.annotated import ALL_ANSWERS, read_answers
from sinterlm.formats.fields import Identifier, Question, Record, Whole, with_reasoning
from sinterlm.formats.lines import Line, read_lines
from sinterlm.records import FinishReason, Prompt


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """One recorded answer; it belongs to the prompt with this id or, if the file gives none, with this content.

    Example: ``RecordedAnswer("capital-france", None, "Paris", "", 0, "stop")``
    """

    prompt_id: str | None
    content_hash: str | None
    """As :attr:`Prompt.content_hash`; None if there is a ``prompt_id``."""
    content: str
    source: str = ""
    """The model that answered, if the file says so."""
    index: int = 0
    """Sample index: the file's, or counted from 0 in the file's order."""
    finish_reason: FinishReason = "stop"


class _OfPromptId(Record):
    prompt_id: Identifier
    source: str = ""


class _OfPrompt(Record):
    prompt: Question
    source: str = ""


class _Ended(Record):
    finish_reason: Annotated[Literal["stop", "length"] | None, Expects("stop, length, or none")] = None


class _AnswerRecord(_Ended):
    response: str = Field(validation_alias=AliasChoices("response", "content"))
    index: Whole | None = None

    @model_validator(mode="before")
    @classmethod
    def _put_reasoning_before(cls, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        return with_reasoning(fields, "response" if "response" in fields else "content")


def read_recorded(path: Path) -> list[RecordedAnswer]:
    """Read all answers from JSON Lines or Parquet, in the file's order; see :func:`index_recorded`."""
    return list(index_recorded(path))


def index_recorded(path: Path) -> RecordedAnswers:
    """Read answers from JSON Lines or Parquet; a file that does not change is read once.

    A line has ``prompt_id`` or ``prompt`` (text or messages), ``response`` or ``content``, and optionally ``source``,
    ``index`` and ``finish_reason`` (``stop`` or ``length``). Or it has ``all_generated_responses``, all answers of one
    model to the prompt.

    Raises:
        InputError: A line has another shape, an answer is given twice, or there is no answer at all.
        TryAgainError: The disk of temporary files is full.
    """
    state = describe_state(path.parent, [path.name]) if path.is_file() else ""
    return _index(path, state)


@lru_cache(maxsize=8)
def _index(path: Path, state: str) -> RecordedAnswers:
    """The answers of a file in a certain state on the disk."""
    return RecordedAnswers(path)


class RecordedAnswers:
    """The answers of a file, in its order or by prompt. In memory are only those that are being looked at.

    Args:
        path: The file, as :func:`index_recorded` describes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        finalize(self, self._database.close)
        with self._full_disk_said():
            self._database.executescript(_TABLES)
            self._read()

    def _read(self) -> None:
        for line in read_lines(self._path):
            prompt_id, content_hash, source = _who(line)
            key = _key(prompt_id, content_hash)
            place = line.place.removeprefix(str(self._path))
            for content, index, finish_reason in _contents(line):
                row = (key, source, index, key, source, content, finish_reason, place)
                try:
                    self._database.execute(_INSERT, row)
                except sqlite3.IntegrityError:
                    raise self._given_before(line, key, source, index) from None
        if self.first is None:
            raise InputError(
                f"{self._path}: there is no answer in it; expected lines with `prompt_id` (or `prompt`) and `response`"
            )

    def _given_before(self, line: Line, key: str, source: str, index: int | None) -> InputError:
        if index is None:
            (index,) = self._database.execute(_COUNT, (key, source)).fetchone()
        query = "SELECT place FROM answers WHERE key = ? AND source = ? AND sample_index = ?"
        (place,) = self._database.execute(query, (key, source, index)).fetchone()
        return line.error(f"answer {index} to this prompt was given before ({self._path}{place})", "each answer once")

    def __iter__(self) -> Iterator[RecordedAnswer]:
        return map(_answer, self._database.execute(f"SELECT {_COLUMNS} FROM answers ORDER BY rowid"))

    @property
    def first(self) -> RecordedAnswer | None:
        """The first answer of the file."""
        return next(iter(self), None)

    def answers_to(self, prompt: Prompt) -> list[RecordedAnswer]:
        """The answers to a prompt, those by its id first, then by the model's name and the recorded index."""
        query = f"SELECT {_COLUMNS} FROM answers WHERE key = ? ORDER BY source, sample_index"
        return [_answer(row) for key in _keys(prompt) for row in self._database.execute(query, (key,))]

    def answers_to_others(self, prompts: Iterable[Prompt]) -> Iterator[RecordedAnswer]:
        """Yield the answers that belong to none of ``prompts``, in the file's order."""
        self._database.execute("DELETE FROM asked")
        keys = ((key,) for prompt in prompts for key in _keys(prompt))
        with self._full_disk_said():
            self._database.executemany("INSERT OR IGNORE INTO asked VALUES (?)", keys)
        query = f"SELECT {_COLUMNS} FROM answers WHERE key NOT IN (SELECT key FROM asked) ORDER BY rowid"
        return map(_answer, self._database.execute(query))

    @contextmanager
    def _full_disk_said(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise TryAgainError(
                f"{self._path}: cannot be read into a temporary database ({error}), which takes as much disk space as "
                "its answers; free some, or set TMPDIR to a folder on a larger disk, and rerun the command"
            ) from error


_COLUMNS: Final = "key, content, source, sample_index, finish_reason"
_TABLES: Final = """
PRAGMA journal_mode = OFF;
CREATE TABLE answers (
    key TEXT, source TEXT, sample_index INTEGER, content TEXT, finish_reason TEXT, place TEXT,
    UNIQUE (key, source, sample_index)
);
CREATE TABLE asked (key TEXT PRIMARY KEY) WITHOUT ROWID;
BEGIN;
"""
_COUNT: Final = "SELECT COUNT(*) FROM answers WHERE key = ? AND source = ?"
_INSERT: Final = f"INSERT INTO answers VALUES (?, ?, COALESCE(?, ({_COUNT})), ?, ?, ?)"


def _key(prompt_id: str | None, content_hash: str | None) -> str:
    return f"content:{content_hash}" if prompt_id is None else f"id:{prompt_id}"


def _keys(prompt: Prompt) -> tuple[str, str]:
    return _key(prompt.id, None), _key(None, prompt.content_hash)


def _answer(row: tuple[str, str, str, int, FinishReason]) -> RecordedAnswer:
    key, content, source, index, finish_reason = row
    kind, _, name = key.partition(":")
    prompt_id, content_hash = (name, None) if kind == "id" else (None, name)
    return RecordedAnswer(prompt_id, content_hash, content, source, index, finish_reason)


def _who(line: Line) -> tuple[str | None, str | None, str]:
    """Id or content hash of the prompt, and the model that answered."""
    if "prompt_id" in line.fields:
        known = line.parse(_OfPromptId)
        return known.prompt_id, None, known.source
    asked = line.parse(_OfPrompt)
    return None, Prompt("", asked.prompt).content_hash, asked.source


def _contents(line: Line) -> list[tuple[str, int | None, FinishReason]]:
    """The answers of a line, each with its sample index, if it is given, and finish reason."""
    if ALL_ANSWERS in line.fields:
        reason = line.parse(_Ended).finish_reason or "stop"
        return [(content, None, reason) for content, _ in read_answers(line)]
    record = line.parse(_AnswerRecord)
    return [(record.response, record.index, record.finish_reason or "stop")]
