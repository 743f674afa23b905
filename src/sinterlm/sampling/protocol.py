"""What every engine promises: asked for (prompt, sample index) items, it gives back generations.

Engines know nothing of the store. An item's random draws depend on its key alone (sampling seed, prompt content,
sample index), never on the batch that it is computed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from sinterlm.records import FinishReason, Prompt


class Item(NamedTuple):
    """One answer to give: the prompt and the sample index."""

    prompt: Prompt
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer as an engine gives it; the pipeline makes a Response of it."""

    prompt_id: str
    index: int
    content: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_tokens: int
    name: tuple[str, int] | None = None
    """For an answer made elsewhere, in place of engine and sample index: a hash of what it says, and its number among
    the answers to the prompt that say the same. An engine that draws nothing must give it."""
    problem: str = ""
    """Why the prompt was refused, if it was."""


class Engine(Protocol):
    """A source of answers. Cheap to construct: weights are loaded by the first :meth:`sample`.

    The name of its answers in the store comes from its settings, without building it.
    """

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """Split the whole work list into batches, the same for the same list."""
        ...

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Answer batch after batch; each yielded list is whole and in the batch's order."""
        ...

    def close(self) -> None:
        """Release what is held (weights, connections); sampling again loads again."""
        ...


class Unused(NamedTuple):
    """An answer that an engine holds and a run does not use."""

    subject: str
    """Id or content hash of the prompt that it answers."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    reason: str


@runtime_checkable
class HoldsAnswers(Protocol):
    """An optional part of an engine that holds answers made elsewhere."""

    def unused(self, prompts: Sequence[Prompt], *, num_samples: int) -> list[Unused]:
        """Answers that no prompt asks for: those to other prompts, and those beyond ``num_samples``."""
        ...
