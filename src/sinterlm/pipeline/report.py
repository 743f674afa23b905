"""What a run leaves for people in its folder: summary.json and report.html."""

from __future__ import annotations

import json
import time
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from sinterlm.errors import InputError
from sinterlm.evaluation.rates import Comparison, Difference, Rate
from sinterlm.evaluation.rewards import RewardAccuracies
from sinterlm.files import atomic_write
from sinterlm.formats import read_rows
from sinterlm.models import plain_name
from sinterlm.pipeline.candidates import candidates_of
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.grid_store import describe_choice, read_search, settle
from sinterlm.pipeline.metrics import read_metrics
from sinterlm.pipeline.score import scored_answers
from sinterlm.pipeline.stage import RunContext, StageResult
from sinterlm.recipe.build import build_hyperparameters
from sinterlm.records import Candidates, Prompt, Scored, Selection
from sinterlm.report import data as page
from sinterlm.report import write_report
from sinterlm.selection.overlap import REASONS as OVERLAPS
from sinterlm.selection.policies import REASONS
from sinterlm.selection.tally import tally_selection

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
    with atomic_write(fusion.output / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2))
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


def read_summary(fusion: Fusion) -> dict[str, Any]:
    """The run's ``summary.json``."""
    return _read_json(fusion.output / "summary.json")


def summarise(run: RunContext) -> dict[str, Any]:
    """The figures of ``summary.json``."""
    fusion = run.fusion
    finished = run.store.finished_stages(fusion.run_name)
    # A method that the recipe no longer has is no part of the run.
    past = {name: finished[name] for name in run.stages if name in finished and name != "report"}
    stages = {
        name: {
            "seconds": round(stage.seconds, 3),
            "peak_memory_bytes": stage.peak_memory_bytes,
            "counts": dict(stage.counts),
        }
        for name, stage in past.items()
    }
    figures = _figures(fusion)
    development = figures.get("development")
    held_out = fusion.recipe.evaluation.held_out
    searches = {name: found for name in fusion.trainings if (found := read_search(fusion, name))}
    return {
        "seconds": round(sum(stage.seconds for stage in past.values()), 3),
        "peak_memory_bytes": max((stage.peak_memory_bytes for stage in past.values()), default=0),
        "seed": fusion.recipe.seed,
        "scorers": {
            "training": fusion.recipe.scorer.title,
            **({"held_out": held_out.scorer.title} if held_out else {}),
        },
        "stages": stages,
        "held_out": flatten_rates(_read_models(figures)),
        "held_out_differences": figures.get("differences", []),
        "reward_accuracies": figures.get("reward_accuracies", {}),
        "selections": {name: asdict(tally_selection(found)) for name, found in _selections(run).items()},
        **({"development": flatten_rates(_read_models(development))} if development else {}),
        **({"searches": searches} if searches else {}),
    }


def read_report(run: RunContext) -> page.ReportData:
    """All that the report of a run shows."""
    return _report_data(run, summarise(run))


def flatten_rates(models: Mapping[str, Mapping[str, Rate]]) -> dict[str, dict[str, float]]:
    """Model to its figures by name, as in ``summary.json``."""
    return {name: _flatten(rates) for name, rates in models.items()}


def _flatten(rates: Mapping[str, Rate]) -> dict[str, float]:
    """The main metric's interval is plain ``low``, ``high`` and ``n``; another's carries its name."""
    flat: dict[str, float] = {}
    for metric, rate in rates.items():
        prefix = f"{metric}_" if flat else ""
        flat |= {metric: rate.value, f"{prefix}low": rate.low, f"{prefix}high": rate.high}
        if flat.setdefault("n", rate.n) != rate.n:
            flat[f"{prefix}n"] = rate.n
    return flat


def _read_models(figures: Mapping[str, Any]) -> dict[str, dict[str, Rate]]:
    return {name: _rates(metrics) for name, metrics in figures.get("models", {}).items()}


def _figures(fusion: Fusion) -> dict[str, Any]:
    path = fusion.output / "evaluation.json"
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged or not there ({error}); delete it and give `sinterlm run` again") from error
    return content


def _report_data(run: RunContext, summary: Mapping[str, Any]) -> page.ReportData:
    fusion = run.fusion
    recipe = fusion.recipe
    figures = _figures(fusion)
    data = page.ReportData(
        run=page.Run(
            name=fusion.output.name,
            target=plain_name(recipe.target.model),
            sources={source.name: source.config.provenance() for source in fusion.sources},
            scorer=recipe.scorer.title,
            seed=recipe.seed,
            seconds=summary["seconds"],
            stages=[
                page.Stage(name, stage["seconds"], stage["counts"], stage["peak_memory_bytes"])
                for name, stage in summary["stages"].items()
            ],
            peak_memory_bytes=summary["peak_memory_bytes"],
            date=time.strftime("%Y-%m-%d"),
            methods=list(recipe.preference),
        ),
        parts={part: list(_candidates(run, part)) for part in typing.get_args(page.Part)},
        rows={name: selection.rows for name, selection in _selections(run).items()},
        dropped=[drop for drop in run.store.dropped(fusion.run_name) if drop.stage in summary["stages"]],
        drop_explanations=EXPLANATIONS,
        held_out=_held_out(run, figures),
        average_logps=[
            page.AverageLogps(model, cast(Any, responses), values)
            for model, by_responses in figures.get("average_logps", {}).items()
            for responses, values in by_responses.items()
        ],
        training=[
            page.TrainingRun(name, _describe_training(fusion, name), metrics)
            for name in fusion.trainings
            if (metrics := read_metrics(fusion.output / fusion.model_of(name).name))
        ],
        searches=[_search(name, found) for name, found in summary.get("searches", {}).items()],
        reward_accuracies={
            model: RewardAccuracies(**{comparison: Rate(**rate) for comparison, rate in accuracies.items()})
            for model, accuracies in figures.get("reward_accuracies", {}).items()
        },
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


def _selections(run: RunContext) -> dict[str, Selection]:
    """The rows of every training that has any, and what its selection dropped."""
    fusion = run.fusion
    dropped = list(run.store.dropped(fusion.run_name))
    return {
        name: Selection(read_rows(path), [drop for drop in dropped if drop.stage == f"select-{name}"])
        for name in fusion.trainings
        if (path := fusion.rows_path(name)).is_file()
    }


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


def _held_out(run: RunContext, figures: Mapping[str, Any]) -> page.HeldOut | None:
    fusion = run.fusion
    held_out = fusion.recipe.evaluation.held_out
    if held_out is None or not figures.get("models"):
        return None
    prompts = run.store.prompts(fusion.run_name, "held_out")
    return page.HeldOut(
        scorer=held_out.scorer.title,
        models=_read_models(figures),
        domains={
            name: {domain: _rates(metrics) for domain, metrics in domains.items()}
            for name, domains in figures["domains"].items()
        },
        comparisons=[
            Comparison(
                entry["model"],
                entry["other"],
                entry["metric"],
                Difference(entry["difference"], entry["low"], entry["high"], entry["n"]),
            )
            for entry in figures["differences"]
        ],
        answers={
            participant.name: greedy_answers(run, fusion.for_evaluation(participant), prompts)
            for participant in fusion.participants
            if participant.is_there
        },
        featured=fusion.fused.name if fusion.fused else "",
    )


def _rates(metrics: Mapping[str, Any]) -> dict[str, Rate]:
    return {metric: Rate(**rate) for metric, rate in metrics.items()}


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


def _describe_training(fusion: Fusion, name: str) -> str:
    objective = settle(fusion, name).objective
    values = ", ".join(f"{key} {value}" for key, value in build_hyperparameters(objective).items())
    return f"{objective.kind}{f': {values}' if values else ''}"
