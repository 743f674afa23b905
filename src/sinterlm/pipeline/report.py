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
from sinterlm.pipeline.score import scored_answers
from sinterlm.pipeline.stage import RunContext, StageResult
from sinterlm.pipeline.summary import read_evaluation, read_selections, summarise, write_summary
from sinterlm.records import Candidates, Prompt, Scored
from sinterlm.report import data as page
from sinterlm.report import write_report
from sinterlm.selection.overlap import REASONS as OVERLAPS
from sinterlm.selection.policies import REASONS

EXPLANATIONS = {
    **REASONS,
    **OVERLAPS,
    "no-score": "the scorer gave no number, so the answer cannot be chosen",
    "invalid-verdict": "the judge's reply held no verdict, so the answer cannot be chosen",
    "prompt-too-long": "the prompt leaves no room for an answer in what the model, or the reward model, can read",
    "prompt-refused": "the model cannot be asked this prompt: its chat template or few-shot prompt refuses it",
    "holds-thoughts": "the answer begins with a thought, which `thoughts: refuse` does not allow",
    "only-a-thought": "nothing is left of the answer without its thought",
    "comparison-stopped": "comparing the answer met a limit of the scorer's, which says nothing of the answer",
    "unreadable-accepted-answer": "no accepted answer of the prompt can be read as mathematics",
    "harness-limit": "the program failed for what the scorer cannot do, which says nothing of the answer",
    "scorer-failed": "the scorer itself failed on this answer; the next run tries again",
    "refused-by-the-chat-template": "the chat template, of the target or the reward model, refuses this dialogue",
    "prompt-is-no-prefix": "the tokenizer cannot write an answer behind the tokens of its prompt",
    "thought-after-a-closed-one": "the prompt ends with an empty thought, and the answer begins with another",
    "answer-written-otherwise": "the tokens of the target, or of the reward model, do not say what the answer says",
    "no-recorded-score": "the file of recorded scores has none for this answer, so it cannot be chosen",
    "unmatched-recorded-answer": "a recorded answer that belongs to no prompt of the run",
    "surplus-recorded-answer": "a recorded answer beyond the source's num_samples",
    "empty-answer": "the model gave an empty answer, which no policy may choose",
    "no-recorded-answer": "the file of recorded answers has none for this prompt",
    "answers-alike": "the answers of the row's pairs are the same, so that there is nothing to compare",
    "pair-alike": "the two answers of one of the row's pairs are the same: the row goes without that pair",
    "answers-alike-after-cutting": "cut at max_length tokens, the answers of the row's pairs are the same",
}


def write_run_report(run: RunContext) -> StageResult:
    """Write ``summary.json`` and ``report.html`` from the store and the run's folder."""
    fusion = run.fusion
    summary = summarise(run)
    data = _report_data(run, summary)
    write_summary(fusion, summary)
    report = fusion.output / "report.html"
    write_report(data, report, seed=fusion.recipe.seed)
    return StageResult({"bytes": report.stat().st_size})


def _require_scores(run: RunContext, data: page.ReportData) -> None:
    """Refuse to show a run without its scores where it has some, but this release would not find them.

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
    return _report_data(run, summarise(run))


def _report_data(run: RunContext, summary: Mapping[str, Any]) -> page.ReportData:
    fusion = run.fusion
    recipe = fusion.recipe
    evaluation = read_evaluation(fusion)
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
        rows={name: selection.rows for name, selection in read_selections(run).items()},
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
    """Where prompts went on that a preference method has dropped."""
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
