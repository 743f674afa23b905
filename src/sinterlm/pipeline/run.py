"""Carries out a fusion stage by stage; the same call again goes on where the last one stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sinterlm.errors import InputError
from sinterlm.formats import atomic_write
from sinterlm.models import fingerprint
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.memory import PeakMemory
from sinterlm.pipeline.progress import Reporter
from sinterlm.pipeline.stage import Run, Stage, count_reasons, is_done, stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.recipe.load import resolve_text
from sinterlm.store import FinishedStage, Store, workspace_lock


def run_fusion(
    fusion: Fusion,
    reporter: Reporter,
    *,
    until: str | None = None,
    only: str | None = None,
) -> list[str]:
    """Do every stage that is not done yet.

    Args:
        fusion: What to do.
        reporter: Where progress is told.
        until: The last stage to do.
        only: The one stage to do; those that it needs must be done.

    Returns:
        The names of the stages that were done now.

    Raises:
        InputError: ``until`` or ``only`` names no stage, or a stage that ``only`` needs is not done.
        TryAgainError: Another process writes to the workspace, or the disk is full.
    """
    with workspace_lock(fusion.workspace, fusion.output), Store(fusion.store_path) as store:
        stages = build_stages(fusion, fingerprint)
        keys = stage_keys(stages)
        fusion.output.mkdir(parents=True, exist_ok=True)
        with atomic_write(fusion.output / "recipe.yaml") as path:
            path.write_text(resolve_text(fusion.recipe))
        done_now: list[str] = []
        for stage in _wanted(stages, until=until, only=only):
            finished = {name: past.key for name, past in store.finished_stages(fusion.run_name).items()}
            if is_done(stage, keys[stage.name], finished):
                continue
            if only:
                _check_needs(stage, stages, keys, finished)
            _do(Run(fusion, store, reporter, keys[stage.name]), stage)
            done_now.append(stage.name)
        return done_now


def _do(run: Run, stage: Stage) -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # its bars of loaded and written files would break our lines
    run.reporter.say(f"{stage.name} ...")
    started = time.monotonic()
    with PeakMemory() as memory:
        result = stage.work(run)
    seconds = time.monotonic() - started
    finished = FinishedStage(stage.name, run.key, seconds, memory.bytes, result.counts, time.time())
    run.store.finish_stage(run.fusion.run_name, finished, result.dropped)
    counts = ", ".join(f"{name}: {count:g}" for name, count in result.counts.items())
    run.reporter.say(f"{stage.name} done in {seconds:.1f} s{f' ({counts})' if counts else ''}")
    for reason, count in count_reasons(result.dropped).items():
        run.reporter.say(f"  dropped {count}: {reason}")


def _wanted(stages: Sequence[Stage], *, until: str | None, only: str | None) -> list[Stage]:
    names = [stage.name for stage in stages]
    for name in (until, only):
        if name is not None and name not in names:
            raise InputError(f"no stage is called {name!r}; this recipe has: {', '.join(names)}")
    if only:
        return [stage for stage in stages if stage.name == only]
    return list(stages[: names.index(until) + 1]) if until else list(stages)


def _check_needs(stage: Stage, stages: Sequence[Stage], keys: dict[str, str], finished: dict[str, str]) -> None:
    by_name = {other.name: other for other in stages}
    missing = [name for name in stage.needs if not is_done(by_name[name], keys[name], finished)]
    if missing:
        raise InputError(f"stage {stage.name} needs {', '.join(missing)}, not done yet; run without --only first")
