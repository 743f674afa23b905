"""The prompt file: what is asked."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field

from sinterlm.errors import InputError
from sinterlm.formats.fields import Identifier, Question, Record, Texts
from sinterlm.formats.lines import Line, read_lines
from sinterlm.records import Prompt


class _PromptRecord(Record):
    id: Identifier | None = Field(None, validation_alias=AliasChoices("id", "prompt_id"))
    prompt: Question = Field(validation_alias=AliasChoices("prompt", "messages"))
    answers: Texts = []
    domain: str = ""


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts from JSON Lines or Parquet.

    A line has ``prompt`` (text or messages) or ``messages``, and optionally ``id`` or ``prompt_id`` (default: the
    content's hash), ``answers`` (accepted answers: a list, or one text) and ``domain``. A repeated line counts once. So
    the files of other tools' rows that have these keys serve as they are.

    Raises:
        InputError: A line has another shape, one id has two contents, or there is no prompt at all.
    """
    places: dict[str, str] = {}
    prompts: dict[str, Prompt] = {}
    for line in read_lines(path):
        prompt = _parse_prompt(line)
        if prompts.setdefault(prompt.id, prompt) != prompt:
            raise InputError(
                f"{line.place}: the id {prompt.id!r} is already used for something else ({places[prompt.id]}); "
                "expected one id for one prompt with its accepted answers and domain"
            )
        places.setdefault(prompt.id, line.place)
    if not prompts:
        raise InputError(f"{path}: there is no prompt in it; expected lines with `prompt` or `messages`")
    return list(prompts.values())


def _parse_prompt(line: Line) -> Prompt:
    record = line.parse(_PromptRecord)
    prompt_id = record.id or Prompt("", record.prompt).content_hash
    return Prompt(prompt_id, record.prompt, tuple(record.answers), record.domain)
