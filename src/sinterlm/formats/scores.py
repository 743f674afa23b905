"""Scores that were made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices, Field

from sinterlm.errors import InputError
from sinterlm.formats.annotated import ALL_ANSWERS, read_answers
from sinterlm.formats.fields import Identifier, Number, Question, Record, Whole
from sinterlm.formats.lines import Line, read_lines
from sinterlm.records import Prompt


@dataclass(frozen=True, slots=True)
class RecordedScore:
    """A score of one answer: the one with this text or, if the file gives none, with this source and index.

    Example: ``RecordedScore("capital-france", None, None, "gemma", 0, 7.5, None, "scores.jsonl, line 1")``
    """

    prompt_id: str | None
    content_hash: str | None
    """As :attr:`Prompt.content_hash`; None if there is a ``prompt_id``."""
    response: str | None
    """The answer's text, without white space around it."""
    source: str
    index: int
    value: float
    passed: bool | None
    place: str
    """File and line, for messages."""


class _ScoreRecord(Record):
    response: str | None = Field(None, validation_alias=AliasChoices("response", "content"))
    source: str = ""
    index: Whole = 0
    score: Number
    passed: bool | None = None


class _OfPromptId(_ScoreRecord):
    prompt_id: Identifier


class _OfPrompt(_ScoreRecord):
    prompt: Question


def read_scores(path: Path) -> Iterator[RecordedScore]:
    """Yield scores from JSON Lines or Parquet.

    A line has ``prompt_id`` or ``prompt`` (text or messages), ``score``, and either ``response`` (or ``content``) or
    ``source`` and ``index``; and optionally ``passed`` (true or false). So a file of recorded answers with a ``score``
    in each line will do. Or a line has ``all_generated_responses`` and ``all_rm_scores``.

    Raises:
        InputError: A line has another shape, or there is none at all.
    """
    is_empty = True
    for line in read_lines(path):
        for score in _parse_scores(line):
            is_empty = False
            yield score
    if is_empty:
        raise InputError(f"{path}: there is no score in it; expected lines with `prompt_id`, `response` and `score`")


def _parse_scores(line: Line) -> list[RecordedScore]:
    if ALL_ANSWERS not in line.fields:
        return [_parse_score(line)]
    answers = [
        Line(line.place, {**line.fields, "response": answer, "index": index, "score": score})
        for index, (answer, score) in enumerate(read_answers(line))
    ]
    return list(map(_parse_score, answers))


def _parse_score(line: Line) -> RecordedScore:
    record = line.parse(_OfPromptId if "prompt_id" in line.fields else _OfPrompt)
    if record.response is None and not {"source", "index"} <= line.fields.keys():
        raise line.error("no `response`, nor `source` and `index`", "the answer that is scored, by one or the other")
    return RecordedScore(
        prompt_id=record.prompt_id if isinstance(record, _OfPromptId) else None,
        content_hash=Prompt("", record.prompt).content_hash if isinstance(record, _OfPrompt) else None,
        response=None if record.response is None else record.response.strip(),
        source=record.source,
        index=record.index,
        value=record.score,
        passed=record.passed,
        place=line.place,
    )
