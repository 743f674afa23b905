"""What a run says at its end, and again on demand: the table, examples, the model and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from sinterlm.evaluation.rates import METRICS
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.grid_store import describe_choice
from sinterlm.pipeline.outcome import FusedModel, describe_fused
from sinterlm.pipeline.report import read_summary
from sinterlm.pipeline.run import Outcome
from sinterlm.terminal.terminal import Terminal


def print_outcome(fusion: Fusion, outcome: Outcome, console: Terminal) -> None:
    """The last lines of a run: the table, examples, the model and how to load it, the report, what to do next."""
    if outcome.left:
        console.say(f"left to do: {', '.join(outcome.left)}; `sinterlm run` without --until or --only goes on")
        return
    if not outcome.done_now:
        console.say(f"{fusion.output}: all stages are done; nothing was left to do")
    print_summary(read_summary(fusion), fusion.output, console)
    if fused := describe_fused(fusion):
        console.say("\n".join(_model_lines(fused)))
    console.say(
        f"\nThe report: {fusion.output / 'report.html'}\n"
        f"To fuse your own models: copy {fusion.output / 'recipe.yaml'}, name your prompts, target and sources in it, "
        "and give it to `sinterlm run`; `sinterlm plan` shows beforehand what it will take.",
    )


def print_summary(summary: Mapping[str, Any], folder: Path, console: Terminal) -> None:
    """Print the held-out table and the differences that matter."""
    if not summary["held_out"]:
        console.say(f"{folder}: no held-out figures (not yet, or not in this recipe)")
        return
    print_figures(summary, console)
    for name, found in summary.get("searches", {}).items():
        console.say(f"{name}: chosen on the development prompts: {describe_choice(found['chosen'])}")
    console.say(
        f"{summary['seconds']:.0f} s in all stages, at most {summary['peak_memory_bytes'] / 1e9:.1f} GB of memory",
    )


def print_figures(summary: Mapping[str, Any], console: Terminal) -> None:
    """Print held-out figures and paired differences as they stand in ``summary.json``, if there are any."""
    held_out = summary["held_out"]
    if not held_out:
        return
    num_questions = max(figures["n"] for figures in held_out.values())
    metrics = [metric for metric in METRICS if any(metric in figures for figures in held_out.values())]
    heads = [metric.replace("_", " ") for metric in metrics]
    title = f"held-out questions: {num_questions}, scored by {summary['scorers']['held_out']} (95 % intervals)"
    table = Table("model", title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")
    for name, figures in held_out.items():
        table.add_row(name, *(_interval(figures, metric, num_questions) for metric in metrics))
    console.print()
    console.print(table)
    differences = Table("model", "minus", *heads)
    by_pair: dict[tuple[str, str], dict[str, str]] = {}
    for difference in summary["held_out_differences"]:
        sure = "" if difference["low"] <= 0 <= difference["high"] else " *"
        text = f"{difference['difference']:+z.3f} [{difference['low']:+z.3f}, {difference['high']:+z.3f}]{sure}"
        by_pair.setdefault((difference["model"], difference["other"]), {})[difference["metric"]] = text
    for (model, other), texts in by_pair.items():
        differences.add_row(model, other, *(texts.get(metric, "") for metric in metrics))
    differences.title, differences.title_justify = "paired differences (* the interval excludes zero)", "left"
    console.print(differences)
    target = held_out.get("target", {})
    if metrics[0] == "exact_match" and target.get("contains", 0) - target.get("exact_match", 0) > 0.1:
        console.say(
            f"The target knows more than its exact match says: it answers in sentences (contains "
            f"{target['contains']:.2f}, exact match {target['exact_match']:.2f}), so format alone is part of every "
            "gain in exact match.",
        )


def _interval(figures: Mapping[str, float], metric: str, num_questions: int) -> str:
    """A figure with its interval, and over how many questions where that is not all of them."""
    if metric not in figures:
        return ""
    prefix = f"{metric}_" if f"{metric}_low" in figures else ""
    n = figures.get(f"{prefix}n", figures["n"])
    of = f" of {n}" if n < num_questions else ""
    return f"{figures[metric]:.3f} [{figures[f'{prefix}low']:.3f}, {figures[f'{prefix}high']:.3f}]{of}"


def _model_lines(fused: FusedModel) -> Iterator[str]:
    """The examples with the answers before and after, and how to load the fused model and ask it the first of them."""
    for example in fused.examples:
        yield f"\n{example.prompt.messages[-1].content}"
        for label, answer in ((fused.target, example.before), (fused.name, example.after)):
            yield f"  {label}: {answer.response.content!r} ({answer.score.value:g})"
    messages = [message._asdict() for message in fused.messages]
    others = ", the other methods' beside it" if fused.has_others else ""
    yield f"\nThe fused model{others}: {fused.location}"
    yield "  from transformers import pipeline"
    yield f'  model = pipeline("text-generation", model={fused.location!r})'
    yield f'  print(model({json.dumps(messages)})[0]["generated_text"][-1]["content"])'
