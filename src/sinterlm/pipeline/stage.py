"""What every stage of a run provides; the stages are in ``stages/``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from sinterlm.models import Fingerprint
from sinterlm.pipeline.budget import Budget
from sinterlm.pipeline.executors import Executor, LocalExecutor
from sinterlm.pipeline.forecast import Forecast, StagePlan
from sinterlm.pipeline.fusion import GATHER, Fusion
from sinterlm.pipeline.halt import Halt
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.progress import Reporter
from sinterlm.records import Dropped, Prompt, Spent, digest
from sinterlm.report.data import ReportData
from sinterlm.selection.split import Parts
from sinterlm.store import Store

Item = TypeVar("Item")

FORMAT = 1
"""Part of every stage's key. Raise it when the meaning of stages changes."""


class RunContext(NamedTuple):
    """What every stage works with."""

    fusion: Fusion
    store: Store
    reporter: Reporter
    key: str = ""
    """The key of the stage that runs."""
    stages: tuple[Stage, ...] = ()
    """The stages of the recipe."""
    halt: Halt = Halt()
    """Stops the work in an orderly way."""
    budget: Budget = Budget()
    """What may be spent."""
    executor: Executor = LocalExecutor()
    """Where models answer and scorers score."""

    window: slice | None = None
    """The prompts of the preference part that are asked now, while a run asks only as many as it needs (``until``)."""

    def within_budget(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield work to begin, until the run is halted or its budget is reached, which halts it."""
        for item in self.halt.until(items):
            if reached := self.budget.reached():
                self.halt.stop(reached)
                return
            yield item

    def spend(self, spent: Spent) -> None:
        """Write to the ledger, in the transaction that writes what was paid for, and count it against the budget."""
        self.store.add_spent(self.fusion.run_name, spent)
        self.budget.add(spent)

    def prompts(self, *parts: str) -> list[Prompt]:
        """The prompts of several parts, one part after the other, as the store has them.

        If the recipe says ``until``, the preference part is what the stage ``gather`` has asked.
        """
        return [prompt for part in parts for prompt in self._part(part)]

    def _part(self, part: str) -> Sequence[Prompt]:
        prompts = self.store.prompts(self.fusion.run_name, part)
        if part != "preference" or not self.fusion.gathers:
            return prompts
        if self.window:
            return prompts[self.window]
        gathered = self.store.finished_stages(self.fusion.run_name).get(GATHER)
        return prompts[: int(gathered.counts["prompts"])] if gathered else []

    def split(self) -> list[Prompt]:
        """All prompts of the run, asked or not."""
        return [prompt for part in Parts._fields for prompt in self.store.prompts(self.fusion.run_name, part)]


class StageResult(NamedTuple):
    """What a stage has done: figures for status and report, and what it dropped, which is read once."""

    counts: Mapping[str, float]
    dropped: Iterable[Dropped] = ()


def _unchanged(data: ReportData) -> ReportData:
    return data


class Shown(NamedTuple):
    """What a stage shows of its results so far."""

    summary: Mapping[str, Any] = {}
    """Its part of ``summary.json``; mappings of several stages are merged."""
    fill: Callable[[ReportData], ReportData] = _unchanged
    """Fills in its part of the report's page."""


class Stage(ABC):
    """One step of a fusion: what decides its result, what it costs, what it checks, what it does and what it leaves.

    Its key is the hash of its own configuration and of the keys of the stages that it needs, so that a change redoes
    exactly what depends on it.
    """

    name: str
    needs: tuple[str, ...] = ()
    """Stages that must be done before this one."""
    outputs: tuple[Path, ...] = ()
    """Files and folders without which the stage does not count as done."""
    may_change: ClassVar[bool] = False
    """Whether other commands rewrite the outputs, so that it is enough if they exist."""
    is_reported: ClassVar[bool] = True
    """Whether the report shows its time and counts; true for all but the report itself."""
    reads_inputs: ClassVar[bool] = True
    """Whether it reads files or models that the recipe names, not only the results of earlier stages."""
    reads_target: bool = False
    """Whether it reads the target's weights. Selecting rows of recorded answers, for example, does not."""

    @abstractmethod
    def configuration(self, fingerprint: Fingerprint) -> object:
        """Whatever besides ``needs`` decides the result, as JSON: weights by fingerprint and files by content."""

    @abstractmethod
    def work(self, run: RunContext) -> StageResult:
        """Do what is not done yet. After an interruption it is called again."""

    def check(self, inputs: Inputs) -> None:  # noqa: B027  most stages read nothing that could be wrong
        """Find wrong inputs before the first answer is paid for, not hours later.

        Raises:
            InputError: An input is wrong; the message says what to do.
        """

    def estimate(self, forecast: Forecast) -> StagePlan:
        """What is left to do and what it costs; loads no model."""
        return StagePlan(self.name)

    def progress(self, forecast: Forecast) -> Mapping[str, float] | None:
        """How far an unfinished stage is; None if that is not counted."""
        return None

    def show(self, run: RunContext) -> Shown:
        """What the summary and the report show besides its time and counts.

        Raises:
            InputError: The results of the stage cannot be shown.
        """
        return Shown()


def stage_keys(stages: Sequence[Stage], fingerprint: Fingerprint) -> dict[str, str]:
    """The key of every stage; in ``stages``, each comes after those that it needs."""
    keys: dict[str, str] = {}
    for stage in stages:
        configuration = stage.configuration(fingerprint)
        keys[stage.name] = digest([FORMAT, stage.name, configuration, [keys[name] for name in stage.needs]])
    return keys


def count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """The number of drops by reason, most frequent first."""
    return dict(Counter(drop.reason for drop in dropped).most_common())
