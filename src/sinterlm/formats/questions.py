"""Questions of benchmarks, as their files hold them, against which prompts are decontaminated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BeforeValidator, Field

from sinterlm.errors import InputError
from sinterlm.formats.fields import Conversation, Record
from sinterlm.formats.lines import Line, read_lines
from sinterlm.records import Message, Prompt

KEYS = ("prompt", "messages", "turns", "question", "problem", "instruction", "text")
"""The keys under which benchmarks keep their questions; the first one that a line has counts."""


def _as_turns_of_user(value: object) -> object:
    """Turns that are texts, or have no role, are the user's."""
    if not isinstance(value, list):
        return value
    turns = [{"content": turn} if isinstance(turn, str) else turn for turn in value]
    return [{"role": "user", **turn} if isinstance(turn, Mapping) else turn for turn in turns]


class _QuestionRecord(Record):
    question: Annotated[Conversation, BeforeValidator(_as_turns_of_user)] = Field(validation_alias=AliasChoices(*KEYS))


def read_questions(*paths: Path) -> list[Prompt]:
    """Read the questions of benchmarks from JSON Lines, JSON or Parquet; each is named by file and line.

    Files of one name are told apart by their folders, such as ``gsm8k/test.jsonl, line 3``. A line has one of
    :data:`KEYS`: text, or messages, or the turns of the user (texts, or objects with ``content``).

    Raises:
        InputError: A line has none of them, or there is no question at all in a file.
    """
    distinct = list(dict.fromkeys(map(Path, paths)))
    return [question for path in distinct for question in _read_file(path, _name_of(path, distinct))]


def _read_file(path: Path, name: Path) -> list[Prompt]:
    questions = [Prompt(f"{name}{line.place.removeprefix(str(path))}", _ask(line)) for line in read_lines(path)]
    if not questions:
        raise InputError(f"{path}: there is no question in it; expected lines with one of {', '.join(KEYS)}")
    return questions


def _name_of(path: Path, paths: Sequence[Path]) -> Path:
    """The shortest end of a path that no other path has."""
    ends = (path.parts[-length:] for length in range(1, len(path.parts)))
    alone = (end for end in ends if sum(other.parts[-len(end) :] == end for other in paths) == 1)
    return Path(*next(alone, path.parts))


def _ask(line: Line) -> tuple[Message, ...]:
    if not line.fields.keys() & set(KEYS):
        raise line.error(f"the keys are {', '.join(line.fields)}", f"one of {', '.join(KEYS)}")
    return line.parse(_QuestionRecord).question
