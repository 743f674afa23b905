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
    """One answer that is wanted."""

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
    """What names an answer that was made elsewhere, in place of engine and sample index: what it says, as a hash, and
    which it is of several to the prompt that say the same."""
    problem: str = ""
    """Why there is no answer, where the prompt was refused."""


class Engine(Protocol):
    """A source of answers. Cheap to construct: weights are loaded by the first :meth:`sample`.

    What names its answers in the store its settings know, without building it.
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
    """An answer that an engine holds and a run has no use for."""

    subject: str
    """Id or content hash of the prompt that it answers."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    reason: str


@runtime_checkable
class HoldsAnswers(Protocol):
    """What an engine may promise besides, if it holds answers that were made elsewhere."""

    def unused(self, prompts: Sequence[Prompt], *, num_samples: int) -> list[Unused]:
        """Answers that no prompt asks for: those to other prompts, and those beyond ``num_samples``."""
        ...
