"""Runs side by side, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from sinterlm.pipeline.compare import Compared
from sinterlm.report.prompt_browser import describe_prompt
from sinterlm.report.tallies import count_outcomes
from sinterlm.selection.tally import RoleTally, SelectionTally
from sinterlm.terminal.costs import print_spent
from sinterlm.terminal.summary import print_figures
from sinterlm.terminal.terminal import Terminal


def print_comparison(compared: Compared, console: Terminal) -> None:
    """Print the selections, the held-out figures, the chosen prompt, and where the page is."""
    for note in compared.data.notes:
        console.say(note)
    if compared.selections:
        console.print(_tabulate_selections(compared.selections))
        console.print(_tabulate_drops(compared.selections))
    if held_out := compared.data.held_out:
        print_figures(held_out.figures, held_out.scorer, console)
    for name, spent in compared.to_json()["spent"].items():
        print_spent(spent, console, f"spent by {name}")
    if compared.data.case:
        _print_case(describe_prompt(compared.data, compared.data.case), console)
    console.say(f"\nThe page: {compared.page}")


def _tabulate_selections(selections: Mapping[str, SelectionTally]) -> Table:
    """One line per role; the figures of pairs are on the line of the chosen role."""
    table = Table("training", title="training rows (means)", title_justify="left")
    for column in ("rows", "role", "score", "whose", "score margin", "length margin", "weight entropy"):
        table.add_column(column, justify="left" if column in ("role", "whose") else "right")
    for name, tally in selections.items():
        margins = {margin.chosen: margin for margin in tally.margins}
        for role in tally.roles:
            margin = margins.get(role.role) if role.role else None
            is_first = role is tally.roles[0]
            table.add_row(
                name if is_first else "",
                f"{tally.num_rows:,}" if is_first else "",
                role.role or "(none)",
                "" if role.mean_score is None else f"{role.mean_score:.3f}",
                _describe_origin(role),
                f"{margin.score.mean:+z.3f}" if margin and margin.score else "",
                f"{margin.characters.mean:+z,.1f}" if margin else "",
                f"{tally.weights.mean_entropy:.3f}" if tally.weights and is_first else "",
            )
        table.add_section()
    return table


def _describe_origin(role: RoleTally) -> str:
    shares = (f"{source} {100 * count / role.num_responses:.1f} %" for source, count in role.sources.items())
    return ", ".join(shares)


def _tabulate_drops(selections: Mapping[str, SelectionTally]) -> Table:
    title = "drops by reason (a source that is left out of a row counts too)"
    table = Table(title=title, title_justify="left")
    table.add_column("dropped", no_wrap=True)  # a reason is one long word and must not be broken
    for name in selections:
        table.add_column(name, justify="right")
    for reason, counts in count_outcomes(selections).items():
        table.add_row(reason, *(f"{count:,}" if count else "" for count in counts.values()))
    return table


def _print_case(case: Mapping[str, Any], console: Terminal) -> None:
    """One prompt with every model's answers."""
    title = "\n".join(f"{message['role']}: {message['content']}" for message in case["messages"])
    console.print(f"\nprompt {case['id']}")
    console.say(title)
    table = Table("model", "answer", "score", "part in training", show_lines=True)
    for answer, label in _list_answers(case):
        score = "" if answer["score"] is None else f"{answer['score']:g}"
        table.add_row(label, answer["text"], score, "\n".join(answer["roles"]))
    console.print(table)


def _list_answers(case: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    for answer in case["heldOut"]:
        yield answer, f"{answer['model']}, greedy"
    for answer in case["samples"]:
        yield answer, f"{answer['model']}, sample {answer['index']}"
