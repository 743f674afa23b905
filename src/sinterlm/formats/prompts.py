"""The prompt file: what is asked."""

from __future__ import annotations

from pathlib import Path

from sinterlm.errors import InputError
from sinterlm.formats.lines import Line, read_lines
from sinterlm.records import Prompt


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts from JSON Lines or Parquet.

    A line has ``prompt`` (text or messages) or ``messages``, and optionally ``id`` or ``prompt_id`` (else the content's
    hash), ``answers`` (accepted answers: a list, or one text) and ``domain``. A line that is there twice counts once.
    So the files of other tools' rows that have these keys serve as they are.

    Raises:
        InputError: A line is of another shape, one id stands for two contents, or there is no prompt at all.
    """
    places: dict[str, str] = {}
    prompts: dict[str, Prompt] = {}
    for line in read_lines(path):
        prompt = _parse_prompt(line)
        if prompts.setdefault(prompt.id, prompt) != prompt:
            raise InputError(
                f"{line.place}: the id {prompt.id!r} already stands for something else ({places[prompt.id]}); expected "
                "one id for one prompt with its accepted answers and domain"
            )
        places.setdefault(prompt.id, line.place)
    if not prompts:
        raise InputError(f"{path}: there is no prompt in it; expected lines with `prompt` or `messages`")
    return list(prompts.values())


def _parse_prompt(line: Line) -> Prompt:
    messages = line.prompt("messages" if "messages" in line.fields and "prompt" not in line.fields else "prompt")
    return Prompt(
        id=line.identifier("id") or line.identifier("prompt_id") or Prompt("", messages).content_hash,
        messages=messages,
        answers=line.texts("answers"),
        domain=line.text("domain", default=""),
    )
