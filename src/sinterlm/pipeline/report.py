"""What the page of a run shows, put together from the store and the run's folder."""

from __future__ import annotations

import time
import typing
from collections.abc import Iterator, Mapping
from typing import Any, cast

from sinterlm.errors import InputError
from sinterlm.evaluation.figures import Evaluation
from sinterlm.evaluation.rates import Rate
from sinterlm.models import plain_name
from sinterlm.pipeline.candidates import candidates_of
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.grid_store import describe_choice, settle
from sinterlm.pipeline.metrics import read_metrics
from sinterlm.pipeline.reasons import EXPLANATIONS
from sinterlm.pipeline.score import scored_answers
from sinterlm.pipeline.stage import RunContext, StageResult
from sinterlm.pipeline.summary import Results, read_results, summarise, write_summary
from sinterlm.records import Candidates, Prompt, Scored
from sinterlm.report import data as page
from sinterlm.report import write_report


def write_run_report(run: RunContext) -> StageResult:
    """Write ``summary.json`` and ``report.html`` from the store and the run's folder."""
    fusion = run.fusion
    results = read_results(run)
    summary = summarise(run, results)
    data = _report_data(run, results, summary)
    write_summary(fusion, summary)
    report = fusion.output / "report.html"
    write_report(data, report, seed=fusion.recipe.seed)
    return StageResult({"bytes": report.stat().st_size})


def _require_scores(run: RunContext, data: page.ReportData) -> None:
    """Refuse to show a run without its scores if it has some that this release would not find.

    Raises:
        InputError: which stage, and what to do.
    """
    parts = {"score-sources": ("sft", "preference"), "score-held-out": ("held_out",)}
    finished = run.store.finished_stages(run.fusion.run_name)
    for stage in finished.keys() & parts.keys():
        counts = finished[stage].counts
        num_scored = counts.get("answers", 0) - counts.get("without a score", 0)
        shown = [candidates for part in parts[stage] for candidates in data.parts.get(cast(Any, part), [])]
        is_shown = any(candidates.sources or candidates.target for candidates in shown)
        if stage == "score-held-out":
            is_shown = is_shown or bool(data.held_out and any(data.held_out.answers.values()))
        if num_scored and not is_shown:
            raise InputError(
                f"{run.fusion.output}: {stage} has scored {num_scored:,.0f} answers, but by other rules, weights or "
                "files than the scorer has now, so that a report would show none of them. Give the same `sinterlm run` "
                "again: it scores the stored answers anew and writes the report"
            )


def read_report(run: RunContext) -> page.ReportData:
    """All that the report of a run shows."""
    results = read_results(run)
    return _report_data(run, results, summarise(run, results))


def _report_data(run: RunContext, results: Results, summary: Mapping[str, Any]) -> page.ReportData:
    fusion = run.fusion
    recipe = fusion.recipe
    evaluation = results.evaluation
    data = page.ReportData(
        run=page.RunFacts(
            name=fusion.output.name,
            target=plain_name(recipe.target.model),
            sources={source.name: source.config.provenance() for source in fusion.sources},
            scorer=recipe.scorer.title,
            seed=recipe.seed,
            seconds=summary["seconds"],
            stages=[
                page.StageFacts(name, stage["seconds"], stage["counts"], stage["peak_memory_bytes"])
                for name, stage in summary["stages"].items()
            ],
            peak_memory_bytes=summary["peak_memory_bytes"],
            date=time.strftime("%Y-%m-%d"),
            methods=list(recipe.preference),
        ),
        parts={part: list(_candidates(run, part)) for part in typing.get_args(page.Part)},
        rows={name: selection.rows for name, selection in results.selections.items()},
        dropped=[drop for drop in run.store.dropped(fusion.run_name) if drop.stage in summary["stages"]],
        drop_explanations=EXPLANATIONS,
        held_out=_held_out(run, evaluation),
        average_logps=[
            page.AverageLogps(model, cast(Any, responses), values)
            for model, by_responses in evaluation.average_logps.items()
            for responses, values in by_responses.items()
        ],
        training=[
            page.TrainingRun(name, training_title(fusion, name), metrics)
            for name in fusion.trainings
            if (metrics := read_metrics(fusion.output / fusion.model_of(name).name))
        ],
        searches=[_search(name, found) for name, found in summary.get("searches", {}).items()],
        reward_accuracies=evaluation.reward_accuracies,
        notes=list(_handed_over(fusion, summary["stages"])),
    )
    _require_scores(run, data)
    return data


def _handed_over(fusion: Fusion, stages: Mapping[str, Any]) -> Iterator[str]:
    """What became of prompts that a preference method has dropped."""
    for name, sft in fusion.recipe.fine_tunings.items():
        counts = stages.get(f"select-{name}", {"counts": {}})["counts"]
        if sft.extra_prompts and (label := sft.extra_prompts.count_name) in counts:  # not yet in an older selection
            dropping = f"select-{sft.extra_prompts.dropped_by}"
            yield (
                f"Of the prompts that {dropping} dropped, {counts[label]:,.0f} went on to select-{name}; among the "
                f"drops of {dropping} they count all the same."
            )


def _candidates(run: RunContext, part: str) -> Iterator[Candidates]:
    """The part's prompts with what was sampled for them, for training or (held out) to measure quadruples."""
    fusion = run.fusion
    prompts = run.store.prompts(fusion.run_name, part)
    if part == "held_out":  # quadruples are measured on them, whatever the rows are made of
        targets = [fusion.answering_for(fusion.start)] if fusion.recipe.preference else []
    else:
        targets = [] if part == "sft" else list(fusion.sampled_targets)
    scorer = fusion.recipe.scorer
    if part == "held_out" and fusion.recipe.evaluation.held_out:
        scorer = fusion.recipe.evaluation.held_out.scorer
    return candidates_of(
        run,
        prompts,
        scorer,
        sources=[fusion.for_training(source) for source in fusion.sources],
        targets=[fusion.for_training(target) for target in targets if target.is_there],
    )


def _held_out(run: RunContext, evaluation: Evaluation) -> page.HeldOut | None:
    fusion = run.fusion
    held_out = fusion.recipe.evaluation.held_out
    if held_out is None or not evaluation.held_out.models:
        return None
    prompts = run.store.prompts(fusion.run_name, "held_out")
    return page.HeldOut(
        scorer=held_out.scorer.title,
        figures=evaluation.held_out,
        answers={
            participant.name: greedy_answers(run, fusion.for_evaluation(participant), prompts)
            for participant in fusion.participants
            if participant.is_there
        },
        featured=fusion.fused.name if fusion.fused else "",
    )


def greedy_answers(run: RunContext, ask: SamplingRequest, prompts: list[Prompt]) -> list[Scored]:
    """One model's scored evaluation answers."""
    held_out = run.fusion.recipe.evaluation.held_out
    assert held_out is not None
    scored = scored_answers(run, held_out.scorer, ask, prompts)
    return [answer for answers in scored.values() for answer in answers]


def _search(name: str, found: Mapping[str, Any]) -> page.Search:
    return page.Search(
        name,
        found["metric"],
        [
            page.SearchedCell(
                cell["number"],
                describe_choice(cell["settings"]),
                Rate(cell["value"], cell["low"], cell["high"], cell["n"]),
                loss=cell["loss"],
                margin=cell["margin"],
                is_chosen=cell["chosen"],
            )
            for cells in found["entries"]
            for cell in cells
        ],
    )


def training_title(fusion: Fusion, name: str) -> str:
    """The objective of a training and its hyper-parameters, e.g. ``dpo: beta 0.1``."""
    objective = settle(fusion, name).objective
    values = ", ".join(f"{key} {value}" for key, value in objective.resolve().values.items())
    return f"{objective.kind}{f': {values}' if values else ''}"
