"""What a run leaves for people: summary.json, report.html, and the last lines on the terminal."""

from __future__ import annotations

import json
import time
import typing
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from sinterlm.evaluation.rates import Difference, Rate
from sinterlm.evaluation.rewards import RewardAccuracies
from sinterlm.formats import atomic_write, read_rows
from sinterlm.pipeline.answers import answers_of, scored_answers
from sinterlm.pipeline.fusion import Ask, Fusion, Participant, load_fusion
from sinterlm.pipeline.progress import Reporter
from sinterlm.pipeline.rows import candidates_of
from sinterlm.pipeline.stage import Run, StageResult
from sinterlm.recipe.build import build_hyperparameters
from sinterlm.recipe.schema import AskedModel, Objective
from sinterlm.records import Candidates, Prompt, Scored
from sinterlm.report import data as page
from sinterlm.report import write_report
from sinterlm.selection.choices import REASONS
from sinterlm.store import Store

EXPLANATIONS = {
    **REASONS,
    "empty-answer": "the model gave an empty answer, which no policy may choose",
    "no-recorded-answer": "the file of recorded answers has none for this prompt",
    "prompt-longer-than-max-length": "the prompt leaves no room for an answer within max_length tokens",
}


def write_run_report(run: Run) -> StageResult:
    """Write ``summary.json`` and ``report.html`` from the store and the run's folder."""
    fusion = run.fusion
    summary = summarise(run)
    with atomic_write(fusion.output / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2))
    report = fusion.output / "report.html"
    write_report(_report_data(run, summary), report, seed=fusion.recipe.seed)
    return StageResult({"bytes": report.stat().st_size})


def rewrite_report(folder: Path) -> dict[str, Any]:
    """Write the report of a run again from its folder, and return its summary."""
    fusion = load_fusion(folder)
    with closing(Store(fusion.store_path, read_only=True)) as store:
        write_run_report(Run(fusion, store, Reporter(Console(quiet=True)), key=""))
    return read_summary(fusion)


def read_summary(fusion: Fusion) -> dict[str, Any]:
    """The run's ``summary.json``."""
    summary: dict[str, Any] = json.loads((fusion.output / "summary.json").read_text())
    return summary


def summarise(run: Run) -> dict[str, Any]:
    """The figures of ``summary.json``."""
    fusion = run.fusion
    past = run.store.finished_stages(fusion.run_name)
    stages = {
        name: {
            "seconds": round(stage.seconds, 3),
            "peak_memory_bytes": stage.peak_memory_bytes,
            "counts": dict(stage.counts),
        }
        for name, stage in past.items()
        if name != "report"
    }
    figures = _figures(fusion)
    development = figures.get("development")
    return {
        "seconds": round(sum(stage.seconds for name, stage in past.items() if name != "report"), 3),
        "peak_memory_bytes": max((stage.peak_memory_bytes for stage in past.values()), default=0),
        "seed": fusion.recipe.seed,
        "stages": stages,
        "held_out": _flat_models(figures.get("models", {})),
        "held_out_differences": figures.get("differences", []),
        "reward_accuracies": figures.get("reward_accuracies", {}),
        **({"development": _flat_models(development["models"])} if development else {}),
    }


def _flat_models(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: value for metric, rate in rates.items() for key, value in _flat(metric, rate).items()}
        for name, rates in models.items()
    }


def _flat(metric: str, rate: Mapping[str, float]) -> dict[str, float]:
    """The main metric's interval is plain ``low`` and ``high``; another's carries its name."""
    prefix = "contains_" if metric == "contains" else ""
    own = {metric: rate["value"], f"{prefix}low": rate["low"], f"{prefix}high": rate["high"]}
    return own if prefix else {**own, "n": rate["n"]}


def _figures(fusion: Fusion) -> dict[str, Any]:
    path = fusion.output / "evaluation.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return figures


def _report_data(run: Run, summary: Mapping[str, Any]) -> page.ReportData:
    fusion = run.fusion
    recipe = fusion.recipe
    figures = _figures(fusion)
    rows = {name: read_rows(path) for name in _trainings(fusion) if (path := fusion.rows_path(name)).is_file()}
    return page.ReportData(
        run=page.Run(
            name=fusion.output.name,
            target=recipe.target.model,
            sources={source.name: _describe(source) for source in fusion.sources},
            scorer=recipe.scorer.kind,
            seed=recipe.seed,
            seconds=summary["seconds"],
            stages=[
                page.Stage(name, stage["seconds"], stage["counts"], stage["peak_memory_bytes"])
                for name, stage in summary["stages"].items()
            ],
            peak_memory_bytes=summary["peak_memory_bytes"],
            date=time.strftime("%Y-%m-%d"),
        ),
        parts={part: list(_candidates(run, part)) for part in typing.get_args(page.Part)},
        rows=rows,
        dropped=list(run.store.dropped(fusion.run_name)),
        drop_explanations=EXPLANATIONS,
        held_out=_held_out(run, figures),
        average_logps=[
            page.AverageLogps(model, cast(Any, responses), values)
            for model, by_responses in figures.get("average_logps", {}).items()
            for responses, values in by_responses.items()
        ],
        training=[
            page.TrainingRun(name, _describe_training(fusion, name), metrics)
            for name, model in _trainings(fusion).items()
            if (metrics := _read_metrics(fusion.output / model / "metrics.jsonl"))
        ],
        reward_accuracies={
            model: RewardAccuracies(**{comparison: Rate(**rate) for comparison, rate in accuracies.items()})
            for model, accuracies in figures.get("reward_accuracies", {}).items()
        },
    )


def _candidates(run: Run, part: str) -> Iterator[Candidates]:
    """The part's prompts with what was sampled for them, for training or (held out) to measure quadruples."""
    fusion = run.fusion
    prompts = run.store.prompts(fusion.run_name, part)
    has_target = part != "sft" and bool(fusion.recipe.preference)
    scorer = fusion.recipe.scorer
    if part == "held_out" and fusion.recipe.evaluation.held_out:
        scorer = fusion.recipe.evaluation.held_out.scorer
    return candidates_of(
        run,
        prompts,
        scorer,
        sources=[fusion.for_training(source) for source in fusion.sources],
        target=fusion.for_training(fusion.start) if has_target else None,
    )


def _held_out(run: Run, figures: Mapping[str, Any]) -> page.HeldOut | None:
    fusion = run.fusion
    held_out = fusion.recipe.evaluation.held_out
    if held_out is None or not figures.get("models"):
        return None
    prompts = run.store.prompts(fusion.run_name, "held_out")
    return page.HeldOut(
        scorer=held_out.scorer.kind,
        models={name: _rates(metrics) for name, metrics in figures["models"].items()},
        domains={
            name: {domain: _rates(metrics) for domain, metrics in domains.items()}
            for name, domains in figures["domains"].items()
        },
        comparisons=[
            page.Comparison(
                entry["model"],
                entry["other"],
                entry["metric"],
                Difference(entry["difference"], entry["low"], entry["high"], entry["n"]),
            )
            for entry in figures["differences"]
        ],
        answers={
            participant.name: _greedy_answers(run, fusion.for_evaluation(participant), prompts)
            for participant in fusion.participants
        },
        featured=fusion.trained[-1].name if fusion.trained else "",
    )


def _rates(metrics: Mapping[str, Any]) -> dict[str, Rate]:
    return {metric: Rate(**rate) for metric, rate in metrics.items()}


def _greedy_answers(run: Run, ask: Ask, prompts: list[Prompt]) -> list[Scored]:
    held_out = run.fusion.recipe.evaluation.held_out
    assert held_out is not None
    scored = scored_answers(run, held_out.scorer, answers_of(run, ask, prompts))
    return [answer for answers in scored.values() for answer in answers]


def _trainings(fusion: Fusion) -> dict[str, str]:
    """Training (``sft``, then the preference methods) to the folder of its model."""
    sft = {"sft": fusion.start.name} if fusion.recipe.sft else {}
    return {**sft, **{method: fusion.preferred(method).name for method in fusion.recipe.preference}}


def _describe(participant: Participant) -> str:
    config = participant.config
    if not isinstance(config, AskedModel):
        return f"recorded answers, {config.path.name}"
    asked = "few-shot prompt" if config.prompt.few_shot else "chat"
    return f"{participant.weights}, {asked}"


def _describe_training(fusion: Fusion, name: str) -> str:
    objective = Objective(kind="sft") if name == "sft" else fusion.recipe.preference[name].objective
    values = ", ".join(f"{key} {value}" for key, value in build_hyperparameters(objective).items())
    return f"{objective.kind}{f': {values}' if values else ''}"


def _read_metrics(path: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


# -- the terminal ------------------------------------------------------------------------------------------------


def print_outcome(fusion: Fusion, console: Console, *, nothing_was_left: bool) -> None:
    """The last lines of a run: the table, examples, the model and how to load it, the report, what to do next."""
    if nothing_was_left:
        console.print(f"{fusion.output}: all stages are done; nothing was left to do", markup=False, highlight=False)
    if not (fusion.output / "summary.json").is_file():
        return
    print_summary(read_summary(fusion), fusion.output, console)
    best = fusion.trained[-1] if fusion.trained else None
    if best is None:
        return
    with closing(Store(fusion.store_path, read_only=True)) as store:
        for line in _example_lines(Run(fusion, store, Reporter(Console(quiet=True)), key=""), best):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    system = fusion.recipe.target.prompt.system
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": 'What is the plural of "ox"?'})
    console.print(
        f"\nThe fused model: {fusion.output / best.name}\n"
        "  from transformers import pipeline\n"
        f"  model = pipeline(\"text-generation\", model={str(fusion.output / best.name)!r})\n"
        f"  print(model({json.dumps(turns)})[0][\"generated_text\"][-1][\"content\"])\n"
        f"\nThe report: {fusion.output / 'report.html'}\n"
        f"To fuse your own models: copy {fusion.output / 'recipe.yaml'}, name your prompts, target and sources in it, "
        "and give it to `sinterlm run`; `sinterlm plan` shows beforehand what it will take.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def print_summary(summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print the held-out table and the differences that matter."""
    held_out = summary["held_out"]
    if not held_out:
        console.print(f"{folder}: no held-out figures in this recipe", markup=False, highlight=False)
        return
    first = next(iter(held_out.values()))
    main = "exact_match" if "exact_match" in first else "score"
    metrics = [metric for metric in (main, "contains") if metric in first]
    title = f"held-out questions: {first['n']} (95 % intervals)"
    table = Table("model", title=title, title_justify="left")
    for metric in metrics:
        table.add_column(metric.replace("_", " "), justify="right")
    for name, figures in held_out.items():
        table.add_row(
            name, *(_interval(figures, metric, "contains_" if metric == "contains" else "") for metric in metrics)
        )
    console.print()
    console.print(table)
    differences = Table("model", "minus", "exact match" if main == "exact_match" else main, *metrics[1:])
    by_pair: dict[tuple[str, str], dict[str, str]] = {}
    for difference in summary["held_out_differences"]:
        sure = "" if difference["low"] <= 0 <= difference["high"] else " *"
        text = f"{difference['difference']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]{sure}"
        by_pair.setdefault((difference["model"], difference["other"]), {})[difference["metric"]] = text
    for (model, other), texts in by_pair.items():
        differences.add_row(model, other, *(texts.get(metric, "").replace("[", "\\[") for metric in metrics))
    differences.title, differences.title_justify = "paired differences (* the interval excludes zero)", "left"
    console.print(differences)
    target = held_out.get("target", {})
    if main == "exact_match" and target.get("contains", 0) - target.get("exact_match", 0) > 0.1:
        console.print(
            f"The target knows more than its exact match says: it answers in sentences (contains "
            f"{target['contains']:.2f}, exact match {target['exact_match']:.2f}), so format alone is part of every "
            "gain in exact match.",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    console.print(
        f"{summary['seconds']:.0f} s in all stages, at most {summary['peak_memory_bytes'] / 1e9:.1f} GB of memory",
        markup=False, highlight=False,
    )  # fmt: skip


def _interval(figures: Mapping[str, float], metric: str, prefix: str) -> str:
    if metric not in figures:
        return ""
    return f"{figures[metric]:.3f} \\[{figures[f'{prefix}low']:.3f}, {figures[f'{prefix}high']:.3f}]"


def _example_lines(run: Run, best: Participant) -> Iterator[str]:
    """Two held-out questions with the answers before and after: one gained, one that shows what was not."""
    fusion = run.fusion
    if fusion.recipe.evaluation.held_out is None:
        return
    prompts = run.store.prompts(fusion.run_name, "held_out")
    before = {a.response.prompt_id: a for a in _greedy_answers(run, fusion.for_evaluation(fusion.target), prompts)}
    after = {a.response.prompt_id: a for a in _greedy_answers(run, fusion.for_evaluation(best), prompts)}
    answered = [prompt for prompt in prompts if prompt.id in before and prompt.id in after]
    gains = [after[prompt.id].score.value - before[prompt.id].score.value for prompt in answered]
    order = sorted(range(len(answered)), key=lambda position: -gains[position])
    for prompt in (answered[position] for position in ([order[0], order[-1]] if len(order) > 1 else order)):
        yield f"\n{prompt.messages[-1].content}"
        for label, answer in ((fusion.target.name, before[prompt.id]), (best.name, after[prompt.id])):
            yield f"  {label}: {answer.response.content!r} ({answer.score.value:g})"
