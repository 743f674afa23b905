"""What failed in a run is done again: requests without an answer, and answers on which a scorer failed."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import NamedTuple

from sinterlm.locks import folder_lock
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.stages import build_stages
from sinterlm.scoring.protocol import SCORER_FAILED
from sinterlm.store import Store


class Forgotten(NamedTuple):
    """What is to be done again."""

    failed: list[str]
    """The stages in which something failed, in order."""
    last: str | None
    """The last stage that was done: a run that had stopped early does no more than it had."""


def forget_failed(fusion: Fusion) -> Forgotten:
    """Unmark the stages in which something failed, and those that need them, so that the next run does them again.

    What succeeded in them is in the store and is not paid for again.

    Raises:
        InputError: The workspace has no store.
        TryAgainError: Another process writes to the workspace or the output folder.
    """
    run = fusion.run_name
    with ExitStack() as stack:
        Store(fusion.store_path, read_only=True).close()  # a missing store is an error, and none is made
        for folder in dict.fromkeys((fusion.workspace, fusion.output)):
            stack.enter_context(folder_lock(folder, fusion.output))
        store = stack.enter_context(closing(Store(fusion.store_path)))
        failed = {stage for stage, _, _ in store.failures(run)}
        failed |= {drop.stage for drop in store.dropped(run) if drop.reason == SCORER_FAILED}
        stages = build_stages(fusion)
        done = store.finished_stages(run)
        undone: set[str] = set()
        for stage in stages:
            if stage.name in failed or undone.intersection(stage.needs):
                undone.add(stage.name)
                store.forget_stage(run, stage.name)
        names = [stage.name for stage in stages]
        last = max((name for name in names if name in done), key=names.index, default=None)
        return Forgotten([name for name in names if name in failed], last)
