"""Prints the result of a run, at its end and on demand: the table, examples, the model and how to load it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

from rich.table import Table

from sinterlm.chat import with_system
from sinterlm.evaluation.figures import Figures
from sinterlm.evaluation.rates import Comparison, Rate
from sinterlm.pipeline.finished import Model, Run
from sinterlm.pipeline.grid_store import describe_choice
from sinterlm.pipeline.run import Outcome
from sinterlm.records import Message
from sinterlm.terminal.costs import print_spent
from sinterlm.terminal.terminal import Terminal


def print_outcome(run: Run, outcome: Outcome, console: Terminal) -> None:
    """The last lines of a run: the table, examples, the model and how to load it, the report, what to do next."""
    if outcome.left:
        console.say(f"left to do: {', '.join(outcome.left)}; rerun `sinterlm run` without --until or --only to do it")
        return
    if not outcome.done_now:
        console.say(f"{run.folder}: all stages are done; nothing is left to do")
    print_summary(run, console)
    if run.fused:
        console.say("\n".join(_model_lines(run, run.fused)))
    console.say(
        f"\nThe report: {run.folder / 'report.html'}\n"
        f"To fuse your own models: copy {run.folder / 'recipe.yaml'}, put in your prompts, target and sources, "
        "and run it with `sinterlm run`; `sinterlm plan` shows first what it will take.",
    )


def print_summary(run: Run, console: Terminal) -> None:
    """Print the held-out table, the differences that matter, what was searched, and what the run took."""
    summary = run.summary
    if not run.figures.models:
        console.say(f"{run.folder}: no held-out figures (not evaluated yet, or not in this recipe)")
        print_spent(summary.get("spent", {}), console)
        return
    print_figures(run.figures, summary["scorers"]["held_out"], console)
    for name, found in summary.get("searches", {}).items():
        console.say(f"{name}: chosen on the development prompts: {describe_choice(found['chosen'])}")
    print_spent(summary.get("spent", {}), console)
    console.say(
        f"{summary['seconds']:.0f} s in all stages, at most {summary['peak_memory_bytes'] / 1e9:.1f} GB of memory",
    )


def print_figures(figures: Figures, scorer: str, console: Terminal) -> None:
    """Print the figures on the held-out questions, if any, and the paired differences of the fused models.

    Args:
        figures: The figures to print.
        scorer: What scored the answers, in words.
        console: Where to print them.
    """
    if not figures.models:
        return
    metrics = figures.metrics
    heads = [metric.replace("_", " ") for metric in metrics]
    num_questions = max(next(iter(rates.values())).n for rates in figures.models.values())
    title = f"held-out questions: {num_questions}, scored by {scorer} (95 % intervals)"
    table = Table("model", title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")
    for name, rates in figures.models.items():
        table.add_row(name, *(_show_rate(rates.get(metric), num_questions) for metric in metrics))
    console.print()
    console.print(table)
    title = "paired differences (* the interval excludes zero)"
    differences = Table("model", "minus", *heads, title=title, title_justify="left")
    by_pair: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for comparison in figures.comparisons:
        by_pair[comparison.model, comparison.other][comparison.metric] = _show_comparison(comparison)
    for (model, other), texts in by_pair.items():
        differences.add_row(model, other, *(texts.get(metric, "") for metric in metrics))
    console.print(differences)
    target = figures.models.get("target", {})
    if metrics[0] == "exact_match" and {"exact_match", "contains"} <= target.keys():
        exact, contains = target["exact_match"].value, target["contains"].value
        if contains - exact > 0.1:
            console.say(
                f"The target knows more than its exact match says: it answers in sentences (contains {contains:.2f}, "
                f"exact match {exact:.2f}), so part of every gain in exact match is format alone.",
            )


def _show_rate(rate: Rate | None, num_questions: int) -> str:
    """A figure with its interval, and the number of questions if it is not all of them."""
    if rate is None:
        return ""
    of = f" of {rate.n}" if rate.n < num_questions else ""
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]{of}"


def _show_comparison(comparison: Comparison) -> str:
    value, low, high, _ = comparison.difference
    return f"{value:+z.3f} [{low:+z.3f}, {high:+z.3f}]{' *' if comparison.excludes_zero else ''}"


def _model_lines(run: Run, fused: Model) -> Iterator[str]:
    """Two questions with the answers before and after, and how to load the fused model and ask it the first one."""
    examples = run.examples()
    for example in examples:
        yield f"\n{example.before.prompt.messages[-1].content}"
        for _, response, score in example:
            yield f"  {response.source}: {response.content!r} ({score.value:g})"
    asked = examples[0].before.prompt.messages if examples else (Message("user", "..."),)
    messages = [message._asdict() for message in with_system(asked, run.recipe.target.prompt.system)]
    others = " (the other methods' models are beside it)" if len(run.recipe.preference) > 1 else ""
    yield f"\nThe fused model{others}: {fused.location}"
    yield "  from transformers import pipeline"
    yield f'  model = pipeline("text-generation", model={fused.location!r})'
    yield f'  print(model({json.dumps(messages)})[0]["generated_text"][-1]["content"])'
