"""Runs a fusion stage by stage; the same call resumes where the last one stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

from sinterlm.errors import InputError, memory_advice
from sinterlm.files import (
    FINISHED,
    atomic_write,
    damaged_model,
    find_model_damage,
)
from sinterlm.locks import folder_lock
from sinterlm.models import cached_fingerprint, fingerprint, writes_date
from sinterlm.models.settings import chat_models_in
from sinterlm.pipeline.budget import Budget
from sinterlm.pipeline.checks import check_inputs
from sinterlm.pipeline.executors import build_executor
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.halt import Halt
from sinterlm.pipeline.launch import require_one_process
from sinterlm.pipeline.memory import PeakMemory
from sinterlm.pipeline.outputs import find_stage_damage, see_outputs
from sinterlm.pipeline.progress import Reporter, show_counts
from sinterlm.pipeline.stage import RunContext, Stage, stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.recipe.load import resolve_text
from sinterlm.store import FinishedStage, Store

NOT_YET = "not done yet, or done under another recipe"


class Outcome(NamedTuple):
    """The stages that a call has done and those left, by name."""

    done_now: list[str]
    left: list[str]
    """Not done yet, or done under another recipe."""


def run_fusion(
    fusion: Fusion,
    reporter: Reporter,
    *,
    until: str | None = None,
    only: str | None = None,
    allow_code: bool = False,
) -> Outcome:
    """Do every stage that is not done yet.

    Args:
        fusion: The fusion to run.
        reporter: Receives the progress.
        until: The last stage to do.
        only: The one stage to do; the stages that it needs must be done.
        allow_code: Whether Python files that the recipe names may run.

    Raises:
        InputError: ``until`` or ``only`` names no stage, a stage that ``only`` needs is not done, an input is wrong, a
            model that was trained earlier is damaged, or a launcher has started several processes.
        TryAgainError: Another process writes to the workspace or the output folder, or the disk is full.
    """
    if until and only:
        raise InputError("--until and --only exclude each other; give one of them")
    require_one_process()
    with ExitStack() as stack:
        for folder in dict.fromkeys((fusion.workspace, fusion.output)):
            stack.enter_context(folder_lock(folder, fusion.output))
        store = stack.enter_context(Store(fusion.store_path))
        stages = build_stages(fusion)
        wanted = _wanted(stages, until=until, only=only)
        reads_target = any(stage.reads_target for stage in wanted)
        # If no stage reads the target's weights, they need not be on this machine.
        keys = stage_keys(stages, fingerprint if reads_target else partial(_known, fusion))
        pending = [stage for stage in wanted if _why_undone(stage, keys, store, fusion)]
        if any(stage.reads_inputs for stage in pending):
            check_inputs(fusion, store, reads_target=reads_target, allow_code=allow_code)
        _keep_date(fusion, reporter)
        with atomic_write(fusion.output / "recipe.yaml") as path:
            path.write_text(resolve_text(fusion.recipe))
        budget = Budget(fusion.recipe.budget, [line for name in fusion.paying_runs for line in store.ledger(name)])
        executor = stack.enter_context(closing(build_executor(fusion, reporter.say)))
        done_now = []
        for stage in wanted:
            # Ask again at each stage: an earlier stage may have removed an output of this one.
            why = _why_undone(stage, keys, store, fusion)
            if why is None:
                continue
            if why != NOT_YET:
                reporter.say(f"{stage.name} is done again: {why}")
            if only:
                _check_needs(stage, [other for other in stages if _why_undone(other, keys, store, fusion)])
            run = RunContext(fusion, store, reporter, keys[stage.name], tuple(stages), Halt(), budget, executor)
            _do(run, stage)
            done_now.append(stage.name)
        return Outcome(done_now, [stage.name for stage in stages if _why_undone(stage, keys, store, fusion)])


def _keep_date(fusion: Fusion, reporter: Reporter) -> None:
    """Keep the date that chat templates use as today's, so that a command on another day uses the same one."""
    asking = {
        model.model: model.template_date
        for model in chat_models_in(fusion.recipe)
        if model.template_date and writes_date(model.model)
    }
    if not asking:
        return
    for name, day in asking.items():
        reporter.say(f"the chat template of {name} uses {day} as today's date (template_date)")
    first, day = fusion.first_date, fusion.recipe.template_date or next(iter(asking.values()))
    if day == first:
        return
    if first:
        reporter.say(f"the date was {first} before; answers and models that depend on it are made again")
    with atomic_write(fusion.date_path) as path:
        path.write_text(f"{day}\n")


def _known(fusion: Fusion, model: str) -> str | None:
    """The fingerprint of a model; for a target that is not also a source, only if it is cached."""
    is_read = model != fusion.recipe.target.model or model in {source.weights for source in fusion.sources}
    return fingerprint(model) if is_read else cached_fingerprint(model)


def _why_undone(stage: Stage, keys: Mapping[str, str], store: Store, fusion: Fusion) -> str | None:
    """Why the stage must be done; None if it is done and its files are intact.

    Raises:
        InputError: A model that it trained is damaged: a training is never silently paid for twice.
    """
    past = store.finished_stages(fusion.run_name).get(stage.name)
    if past is None or past.key != keys[stage.name]:
        return NOT_YET
    if damage := find_stage_damage(stage, past, fusion.output, read=True):
        for path in stage.outputs:
            if path.name == FINISHED and path.exists():
                raise damaged_model(path.parent, find_model_damage(path.parent) or damage)
        return damage
    if (seen := see_outputs(stage, past, fusion.output)) != past:
        store.see_outputs(fusion.run_name, seen)
    return None


def _do(run: RunContext, stage: Stage) -> None:
    run.reporter.say(f"{stage.name} ...")
    run.store.forget_stage(run.fusion.run_name, stage.name)
    started = time.monotonic()
    with (
        PeakMemory() as memory,
        memory_advice(f"carrying out {stage.name}", "smaller models, fewer samples and shorter texts take less"),
    ):
        result = stage.work(run)
    seconds = time.monotonic() - started
    finished = FinishedStage(stage.name, run.key, seconds, memory.bytes, result.counts, time.time())
    run.store.finish_stage(run.fusion.run_name, see_outputs(stage, finished, run.fusion.output), result.dropped)
    counts = f" ({show_counts(result.counts)})" if result.counts else ""
    run.reporter.say(f"{stage.name} done in {seconds:.1f} s{counts}")
    for reason, count in run.store.count_dropped(run.fusion.run_name).get(stage.name, {}).items():
        run.reporter.say(f"  dropped {count}: {reason}")


def _wanted(stages: Sequence[Stage], *, until: str | None, only: str | None) -> list[Stage]:
    names = [stage.name for stage in stages]
    for name in (until, only):
        if name is not None and name not in names:
            raise InputError(f"no stage is called {name!r}; this recipe has: {', '.join(names)}")
    if only:
        return [stage for stage in stages if stage.name == only]
    return list(stages[: names.index(until) + 1]) if until else list(stages)


def _check_needs(stage: Stage, undone: Sequence[Stage]) -> None:
    missing = [other.name for other in undone if other.name in stage.needs]
    if missing:
        raise InputError(f"stage {stage.name} needs {', '.join(missing)}, not done yet; run without --only first")
