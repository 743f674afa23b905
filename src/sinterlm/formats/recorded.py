"""Answers that were made elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from sinterlm.errors import InputError
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


KEPT_BYTES = 32 * 2**20
"""A file of up to this size stays in memory after it was read: the stages of a run that ask for it read it once."""


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
    """Read answers from JSON Lines or Parquet.

    A line has ``prompt_id`` or ``prompt`` (text or messages), ``response`` or ``content``, and optionally ``source``,
    ``index`` and ``finish_reason`` (``stop`` or ``length``). Or it has ``all_generated_responses``, all answers of one
    model to the prompt.

    Raises:
        InputError: A line has another shape, an answer is given twice, or there is no answer at all.
    """
    is_small = path.is_file() and path.stat().st_size <= KEPT_BYTES
    return list(_keep(path, describe_state(path.parent, [path.name]))) if is_small else _parse(path)


@lru_cache(maxsize=8)
def _keep(path: Path, state: str) -> Sequence[RecordedAnswer]:
    """The answers of a file in a certain state on the disk."""
    return tuple(_parse(path))


def _parse(path: Path) -> list[RecordedAnswer]:
    counted: Counter[tuple[str | None, str | None, str]] = Counter()
    places: dict[tuple[str | None, str | None, str, int], str] = {}
    answers: list[RecordedAnswer] = []
    for line in read_lines(path):
        who = _who(line)
        prompt_id, content_hash, source = who
        for content, index, finish_reason in _contents(line, counted[who]):
            key = (*who, index)
            if key in places:
                raise line.error(f"answer {index} to this prompt was given before ({places[key]})", "each answer once")
            places[key] = line.place
            counted[who] += 1
            answers.append(RecordedAnswer(prompt_id, content_hash, content, source, index, finish_reason))
    if not answers:
        raise InputError(
            f"{path}: there is no answer in it; expected lines with `prompt_id` (or `prompt`) and `response`"
        )
    return answers


def _who(line: Line) -> tuple[str | None, str | None, str]:
    """Id or content hash of the prompt, and the model that answered."""
    if "prompt_id" in line.fields:
        known = line.parse(_OfPromptId)
        return known.prompt_id, None, known.source
    asked = line.parse(_OfPrompt)
    return None, Prompt("", asked.prompt).content_hash, asked.source


def _contents(line: Line, num_before: int) -> list[tuple[str, int, FinishReason]]:
    """The answers of a line, each with sample index and finish reason; ``num_before`` came earlier from this model."""
    if ALL_ANSWERS in line.fields:
        reason = line.parse(_Ended).finish_reason or "stop"
        return [(content, num_before + place, reason) for place, (content, _) in enumerate(read_answers(line))]
    record = line.parse(_AnswerRecord)
    index = num_before if record.index is None else record.index
    return [(record.response, index, record.finish_reason or "stop")]
