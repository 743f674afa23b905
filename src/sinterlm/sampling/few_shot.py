"""Few-shot prompts as YAML files: ``template`` and ``examples``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sinterlm.chat import FewShot
from sinterlm.errors import InputError
from sinterlm.explain import Problem
from sinterlm.formats.document import refuse, validate
from sinterlm.formats.yaml_file import read_yaml
from sinterlm.settings import Settings


class _Example(Settings):
    question: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]


class _FewShotFile(Settings):
    template: str
    examples: Annotated[list[_Example], Field(min_length=1)]


def load_few_shot(path: Path) -> FewShot:
    """Read a few-shot prompt: ``template`` with ``{question}`` and ``{answer}``, and a list of ``examples``.

    Raises:
        InputError: It does not fit; one line for each problem, with file, line and key.
    """
    document = read_yaml(path)
    content = validate(document, _FewShotFile)
    try:
        return FewShot(content.template, tuple((example.question, example.answer) for example in content.examples))
    except InputError as error:
        raise refuse(document, [Problem(("template",), str(error))]) from error
