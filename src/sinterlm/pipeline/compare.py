"""Runs side by side: what each selection made of the same answers, how good every model is, one prompt under all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from sinterlm.errors import InputError
from sinterlm.pipeline.fusion import Fusion, load_fusion
from sinterlm.pipeline.outcome import print_figures, read_only
from sinterlm.pipeline.report import flatten_rates, read_report
from sinterlm.pipeline.stage import require_undamaged
from sinterlm.pipeline.terminal import Terminal
from sinterlm.report import write_report
from sinterlm.report.browser import describe_prompt
from sinterlm.report.data import ReportData
from sinterlm.report.merge import merge_reports
from sinterlm.report.tallies import count_outcomes, tally_selections
from sinterlm.selection.tally import RoleTally, SelectionTally
from sinterlm.store import Store

PAGE = "comparison.html"


class Compared(NamedTuple):
    """What a comparison shows."""

    outputs: Mapping[str, Path]
    """Run to its output folder."""
    data: ReportData
    selections: Mapping[str, SelectionTally]
    """By training."""
    page: Path

    def to_json(self) -> dict[str, Any]:
        """The figures, under the names of ``summary.json``; with a chosen prompt, all answers to it."""
        held_out = self.data.held_out
        return {
            "runs": {name: str(output) for name, output in self.outputs.items()},
            "notes": list(self.data.notes),
            "scorers": {"training": self.data.run.scorer, **({"held_out": held_out.scorer} if held_out else {})},
            "selections": {name: asdict(tally) for name, tally in self.selections.items()},
            "held_out": flatten_rates(held_out.models) if held_out else {},
            "held_out_differences": [found.to_json() for found in held_out.comparisons] if held_out else [],
            **({"prompt": describe_prompt(self.data, self.data.case)} if self.data.case else {}),
            "page": str(self.page),
        }


def compare_runs(folders: Sequence[Path], *, prompt: str = "", page: Path | None = None) -> Compared:
    """Put runs side by side and write the page that shows it.

    Args:
        folders: output folders of runs; one is enough where its recipe has several methods.
        prompt: the id of a prompt to open with.
        page: the file to write; ``comparison.html`` in the first run's workspace unless given.

    Raises:
        InputError: a folder holds no run or is given twice, the runs have different prompts under one id, or there is
            no such prompt.
    """
    fusions = _name_runs([load_fusion(folder) for folder in folders])
    reports = {name: _read(fusion) for name, fusion in fusions.items()}
    data = merge_reports(reports) if len(reports) > 1 else next(iter(reports.values()))
    data = replace(data, case=prompt)
    path = page or next(iter(fusions.values())).workspace / PAGE
    write_report(data, path, seed=data.run.seed)
    selections = tally_selections(data.rows, data.dropped)
    return Compared({name: fusion.output for name, fusion in fusions.items()}, data, selections, path)


def _read(fusion: Fusion) -> ReportData:
    with closing(Store(fusion.store_path, read_only=True)) as store:
        run = read_only(fusion, store)
        require_undamaged(run)
        return read_report(run)


def _name_runs(fusions: Sequence[Fusion]) -> dict[str, Fusion]:
    """Every run by its output folder, as seen from the folder that holds them all."""
    parent = os.path.commonpath([fusion.output.parent for fusion in fusions])
    named = {os.path.relpath(fusion.output, parent): fusion for fusion in fusions}
    if len(named) < len(fusions):
        raise InputError("a run is given twice; give every output folder once")
    return named


def print_comparison(compared: Compared, console: Terminal) -> None:
    """Print the selections, the held-out figures, the chosen prompt, and where the page is."""
    for note in compared.data.notes:
        console.say(note)
    if compared.selections:
        console.print(_tabulate_selections(compared.selections))
        console.print(_tabulate_drops(compared.selections))
    figures = compared.to_json()
    print_figures(figures, console)
    if case := figures.get("prompt"):
        _print_case(case, console)
    console.say(f"\nThe page: {compared.page}")


def _tabulate_selections(selections: Mapping[str, SelectionTally]) -> Table:
    """A line for every role, the figures of its pairs beside the chosen one."""
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
    table.add_column("dropped", no_wrap=True)  # a reason is one long word, and stands whole
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
