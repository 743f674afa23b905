"""Scores that were made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sinterlm.errors import InputError
from sinterlm.formats.annotated import ALL_ANSWERS, read_answers
from sinterlm.formats.lines import Line, read_lines
from sinterlm.records import Prompt


@dataclass(frozen=True, slots=True)
class RecordedScore:
    """A score of one answer: of the one with this text or, where the file gives none, with this source and index.

    Example: ``RecordedScore("capital-france", None, None, "gemma", 0, 7.5, None, "scores.jsonl, line 1")``
    """

    prompt_id: str | None
    content_hash: str | None
    """As :attr:`Prompt.content_hash`; None where there is a ``prompt_id``."""
    response: str | None
    """The answer's text, without white space around it."""
    source: str
    index: int
    value: float
    passed: bool | None
    place: str
    """Where it stands, for messages."""


def read_scores(path: Path) -> list[RecordedScore]:
    """Read scores from JSON Lines or Parquet.

    A line has ``prompt_id`` or ``prompt`` (text or messages), ``score``, and either ``response`` (or ``content``) or
    ``source`` and ``index``; and optionally ``passed`` (true or false). So a file of recorded answers with a ``score``
    in each line is one, too. Or a line has ``all_generated_responses`` and ``all_rm_scores``.

    Raises:
        InputError: A line is of another shape, or there is none at all.
    """
    scores = [score for line in read_lines(path) for score in _parse_scores(line)]
    if not scores:
        raise InputError(f"{path}: there is no score in it; expected lines with `prompt_id`, `response` and `score`")
    return scores


def _parse_scores(line: Line) -> list[RecordedScore]:
    if ALL_ANSWERS not in line.fields:
        return [_parse_score(line)]
    answers = [
        Line(line.place, {**line.fields, "response": answer, "index": index, "score": score})
        for index, (answer, score) in enumerate(read_answers(line))
    ]
    return list(map(_parse_score, answers))


def _parse_score(line: Line) -> RecordedScore:
    prompt_id = line.identifier("prompt_id")
    text = next((line.text(key) for key in ("response", "content") if key in line.fields), None)
    if text is None and not {"source", "index"} <= line.fields.keys():
        raise line.error("no `response`, nor `source` and `index`", "the answer that is scored, by one or the other")
    return RecordedScore(
        prompt_id=prompt_id,
        content_hash=None if prompt_id else Prompt("", line.prompt("prompt")).content_hash,
        response=None if text is None else text.strip(),
        source=line.text("source", default=""),
        index=line.whole_number("index", default=0),
        value=line.number("score"),
        passed=line.flag("passed") if "passed" in line.fields else None,
        place=line.place,
    )
