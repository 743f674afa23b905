"""What every scorer promises: responses in, one Score each out, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sinterlm.records import Prompt, Response, Score


class Answered(NamedTuple):
    """A response beside the prompt that it answers."""

    prompt: Prompt
    response: Response


class Scorer(Protocol):
    """Gives every response a value. Cheap to construct: models are loaded by the first :meth:`score`."""

    @property
    def identity(self) -> str:
        """Names everything that decides a score: kind, settings, weights, template."""
        ...

    @property
    def needs_answers(self) -> bool:
        """Whether the prompt's accepted answers decide the score (they then belong to the score's key)."""
        ...

    def score(self, answered: Sequence[Answered]) -> list[Score]:
        """Score one batch; raises InputError where a prompt lacks what the scorer needs."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...
