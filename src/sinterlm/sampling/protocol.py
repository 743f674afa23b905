"""What every engine promises: asked for (prompt, sample index) items, it gives back generations.

Engines know nothing of the store. An item's random draws depend on its key alone (sampling seed, prompt content,
sample index), never on the batch that it is computed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sinterlm.records import Failure, FinishReason, Prompt, Usage


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
    reasoning: str = ""
    """See :attr:`~sinterlm.records.Response.reasoning`."""
    served_by: str = ""
    """See :attr:`~sinterlm.records.Response.served_by`."""


class Answered(NamedTuple):
    """Answers as they come, and what they cost."""

    generations: Sequence[Generation]
    failures: Sequence[Failure] = ()
    """Items that got no answer after all retries."""
    usage: Usage = Usage()
    """What was used since the last one."""
    notes: Sequence[str] = ()
    """What was noticed on the way, e.g. that a server ignores a setting: sentences for the log and the report."""
    state: str = ""
    """How the work goes right now, in a few words, for the live view: e.g. ``24 in flight, limit 32``."""


class Engine(Protocol):
    """A source of answers. Cheap to construct: weights are loaded by the first :meth:`sample`.

    The name of its answers in the store comes from its settings, without building it.
    """

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """Split the whole work list into batches, the same for the same list."""
        ...

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Answer every batch, in any order; each yielded list is a whole batch's, in the batch's order."""
        ...

    def close(self) -> None:
        """Release what is held (weights, connections); sampling again loads again.

        Another thread may call it while answers are streamed: what is in flight is then given up.
        """
        ...


@runtime_checkable
class Streams(Protocol):
    """An optional part of an engine whose items do not depend on each other: it answers them as it can.

    Items are asked for only if they are missing, so :meth:`Engine.batches` and :meth:`Engine.sample` are not used.
    """

    def stream(self, items: Iterable[Item]) -> Iterator[Answered]:
        """Answer every item, in any order. Runs in a thread of its own, beside other models.

        The next item is taken only when there is room for it, so that the work list may be of any length. All samples
        of a prompt come one after another. Once ``items`` ends, what is in flight is waited for.

        Raises:
            SinterError: The model cannot be asked any more; what was yielded before is kept.
        """
        ...


class Job(NamedTuple):
    """Work that goes on without this process, such as a provider's batch job."""

    state: str
    detail: Mapping[str, Any]
    """What the engine needs to find it again, as JSON."""


class JobBook(Protocol):
    """The jobs of one source by name, whichever recipe asked it; a dictionary is one that ends with the process."""

    def items(self) -> Iterable[tuple[str, Job]]:
        """Every job."""
        ...

    def __setitem__(self, name: str, job: Job) -> None:
        """Keep the state of a job, on the disk before this returns."""
        ...


@runtime_checkable
class KeepsJobs(Protocol):
    """An optional part of an engine whose answers come from jobs that may outlive the command."""

    def keep_jobs(self, jobs: JobBook, folder: Path) -> None:
        """Say where to keep jobs, before the first answer is asked for.

        Args:
            jobs: Those of this source.
            folder: For files of jobs; created by the engine if it needs one.
        """
        ...


@runtime_checkable
class KeepsLog(Protocol):
    """An optional part of an engine that starts programs, which print."""

    def log_to(self, path: Path) -> None:
        """Add what they print to this file; call it before the first answer."""
        ...


class Unused(NamedTuple):
    """An answer that an engine holds and a run does not use."""

    subject: str
    """Id or content hash of the prompt that it answers."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    reason: str


@runtime_checkable
class HoldsAnswers(Protocol):
    """An optional part of an engine that holds answers made elsewhere: they are looked up prompt by prompt.

    :meth:`Engine.batches` and :meth:`Engine.sample` are not used.
    """

    def held(self, prompts: Iterable[Prompt], *, num_samples: int) -> Iterator[list[Generation]]:
        """Yield the answers to each of ``prompts``, at most ``num_samples``, in order; lazily.

        Raises:
            InputError: It holds no answer to any of them.
        """
        ...

    def unused(self, prompts: Sequence[Prompt], *, num_samples: int) -> Iterator[Unused]:
        """Yield answers that no prompt asks for: those to other prompts, and those beyond ``num_samples``."""
        ...
