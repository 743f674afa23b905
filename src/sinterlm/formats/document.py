"""A file's content with the place of each part, for messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sinterlm.errors import InputError
from sinterlm.explain import KeyPath, Problem, explain, show_path

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Document:
    """A file's content and the place of each part."""

    name: str
    """The file's path, as messages name it."""
    value: Any
    places: dict[KeyPath, str]
    """``FILE:LINE`` of every key and list item, or the override that set it."""

    def place(self, path: KeyPath) -> str:
        """The place of ``path``; for a missing part, that of the mapping that lacks it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)


def validate(document: Document, model: type[ModelT], *, folder: Path | None = None) -> ModelT:
    """``document`` as an instance of ``model``.

    Args:
        document: What a file says.
        model: What it should say.
        folder: The folder that its paths of input files are relative to.

    Raises:
        InputError: It does not fit; one line for each problem.
    """
    try:
        return model.model_validate(document.value, context={"folder": folder})
    except ValidationError as error:
        raise refuse(document, explain(error, model)) from None


def refuse(document: Document, problems: Iterable[Problem]) -> InputError:
    """The error that lists ``problems``, one per line."""
    return InputError(
        "\n".join(
            ": ".join(filter(None, (document.place(problem.path), show_path(problem.path), problem.text)))
            for problem in problems
        )
    )
