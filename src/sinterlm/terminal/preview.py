"""Prints what a preview found out: answers to read, what each source adds, and what the whole run will cost."""

from __future__ import annotations

from rich.table import Table

from sinterlm.pipeline.preview import Preview
from sinterlm.records import Candidates
from sinterlm.report.numbers import duration, money
from sinterlm.terminal.terminal import Terminal

MAX_CHARACTERS = 240
"""Of a prompt and of an answer."""


def print_preview(preview: Preview, console: Terminal) -> None:
    """Print the examples, the value of each source, and where to read on."""
    for example in preview.examples:
        _print_example(example, console)
    console.print()
    console.print(_tabulate_values(preview))
    total = preview.plan.total
    cost = "an unknown amount" if total["money"] is None else money(total["money"])
    time = "" if total["seconds"] is None else f" and take {duration(total['seconds'])}"
    console.say(
        f"By what the preview saw, sampling and scoring the rest of the run will cost {cost}{time}; "
        f"`sinterlm plan RECIPE --pilot {preview.output}` shows every stage.\n"
        f"All answers, scores and rows of the preview: {preview.output}/report.html\n"
        "Rerun the command without --preview to do the whole run: answers of the preview are not paid for again."
    )


def _tabulate_values(preview: Preview) -> Table:
    """One line a source."""
    table = Table(
        "source", title="what each source adds (y_ws is the best answer of all sources)", title_justify="left"
    )
    for column in ("answers", "mean score", "share of y_ws", "best score with it", "without it"):
        table.add_column(column, justify="right")
    for column in ("spent so far", "left to spend", "time left"):
        table.add_column(column, justify="right")
    num_chosen = sum(value.num_chosen for value in preview.values)
    spent, left = preview.ledger.by_model(), preview.left_to_ask
    for value in preview.values:
        means, cost, planned = value.means, spent.get(value.source), left.get(value.source)
        table.add_row(
            value.source,
            f"{value.num_answers:,}",
            "" if value.mean_score is None else f"{value.mean_score:.3f}",
            f"{100 * value.num_chosen / num_chosen:.0f} %" if num_chosen else "",
            *(("", "") if means is None else (f"{means[0]:.3f}", f"{means[1]:.3f}")),
            "0" if cost is None else _show_money(cost.money),
            "0" if planned is None else _show_money(planned.money),
            "" if planned is None or planned.seconds is None else duration(planned.seconds),
        )
    return table


def _show_money(amount: float | None) -> str:
    return "unknown" if amount is None else money(amount)


def _print_example(example: Candidates, console: Terminal) -> None:
    """A prompt with the answers to it, those of the target last."""
    console.print(f"\nprompt {example.prompt.id}: {_shorten(example.prompt.messages[-1].content)}")
    table = Table("model", "score", "answer", show_lines=False)
    for response, score in (*example.sources, *example.target):
        table.add_row(f"{response.source} {response.index}", f"{score.value:g}", _shorten(response.content))
    console.print(table)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
