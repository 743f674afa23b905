"""What a stage is: a name, what decides its result, and the work itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import Reporter
from sinterlm.records import Dropped, digest
from sinterlm.store import Store

FORMAT = 1
"""Part of every stage's key: raised when stages come to mean something else."""


class Run(NamedTuple):
    """What every stage works with."""

    fusion: Fusion
    store: Store
    reporter: Reporter
    key: str = ""
    """Of the stage at work."""
    stages: tuple[str, ...] = ()
    """The names of the recipe's stages."""


class StageResult(NamedTuple):
    """What a stage has done: figures for status and report, and what went no further."""

    counts: Mapping[str, float]
    dropped: Sequence[Dropped] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a fusion.

    Its key is the hash of its own configuration and of the keys of the stages it needs, so that a change redoes
    exactly what depends on it.
    """

    name: str
    configuration: object
    """JSON-able: whatever besides ``needs`` decides the result, weights by fingerprint and files by content."""
    work: Callable[[Run], StageResult]
    needs: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = field(default=())
    """Files and folders without which the stage does not count as done."""
    reads_target: bool = False
    """Whether the target's weights must be here: rows of recorded answers, for one, are selected without."""


def stage_keys(stages: Sequence[Stage]) -> dict[str, str]:
    """The key of every stage; ``stages`` are in an order in which they can be done."""
    keys: dict[str, str] = {}
    for stage in stages:
        keys[stage.name] = digest([FORMAT, stage.name, stage.configuration, [keys[name] for name in stage.needs]])
    return keys


def is_done(stage: Stage, key: str, finished: Mapping[str, str]) -> bool:
    """Whether the stage's result stands: it was finished under the same key and its outputs are there."""
    return finished.get(stage.name) == key and all(path.exists() for path in stage.outputs)


def count_reasons(dropped: Sequence[Dropped]) -> dict[str, int]:
    """How many were dropped by reason, most frequent first."""
    return dict(Counter(drop.reason for drop in dropped).most_common())
