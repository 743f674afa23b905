"""Compares runs side by side: their training rows, their models' held-out figures, and all answers to one prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from sinterlm.errors import InputError
from sinterlm.pipeline.finished import read_only
from sinterlm.pipeline.fusion import Fusion, load_fusion
from sinterlm.pipeline.ledger import describe_ledger
from sinterlm.pipeline.outputs import require_undamaged
from sinterlm.pipeline.report import read_report
from sinterlm.report import write_report
from sinterlm.report.data import Ledger, ReportData
from sinterlm.report.merge import merge_reports
from sinterlm.report.prompt_browser import describe_prompt
from sinterlm.report.tallies import count_drops, tally_selections
from sinterlm.selection.tally import SelectionTally
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

    @property
    def ledgers(self) -> Mapping[str, Ledger]:
        """What each run has spent."""
        runs = self.data.compared or [self.data.run]
        return {name: run.ledger for name, run in zip(self.outputs, runs, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """The figures, named as in ``summary.json``, and all answers to the chosen prompt, if any."""
        held_out = self.data.held_out
        return {
            "runs": {name: str(output) for name, output in self.outputs.items()},
            "notes": list(self.data.notes),
            "scorers": {"training": self.data.run.scorer, **({"held_out": held_out.scorer} if held_out else {})},
            "spent": {name: describe_ledger(ledger) for name, ledger in self.ledgers.items()},
            "selections": {name: asdict(tally) for name, tally in self.selections.items()},
            "held_out": held_out.figures.flatten() if held_out else {},
            "held_out_differences": held_out.figures.to_json()["differences"] if held_out else [],
            **({"prompt": describe_prompt(self.data, self.data.case)} if self.data.case else {}),
            "page": str(self.page),
        }


def compare_runs(folders: Sequence[Path], *, prompt: str = "", page: Path | None = None) -> Compared:
    """Compare runs and write a page that shows them side by side.

    Args:
        folders: Output folders of runs; one is enough if its recipe has several methods.
        prompt: The id of a prompt to open with.
        page: The file to write; by default ``comparison.html`` in the first run's workspace.

    Raises:
        InputError: A folder holds no run or is given twice, the runs have different prompts under one id, or none has
            the given prompt.
    """
    fusions = _name_runs([load_fusion(folder) for folder in folders])
    reports = {name: _read(fusion) for name, fusion in fusions.items()}
    data = merge_reports(reports) if len(reports) > 1 else next(iter(reports.values()))
    data = replace(data, case=prompt)
    path = page or next(iter(fusions.values())).workspace / PAGE
    write_report(data, path, seed=data.run.seed)
    selections = tally_selections(data.rows, count_drops(data.dropped))
    return Compared({name: fusion.output for name, fusion in fusions.items()}, data, selections, path)


def _read(fusion: Fusion) -> ReportData:
    with closing(Store(fusion.store_path, read_only=True)) as store:
        run = read_only(fusion, store)
        require_undamaged(run)
        data = read_report(run)
        # Runs are compared record by record, and their stores are closed by then.
        return replace(
            data,
            parts={part: list(asked) for part, asked in data.parts.items()},
            rows={name: list(rows) for name, rows in data.rows.items()},
            dropped=list(data.dropped),
        )


def _name_runs(fusions: Sequence[Fusion]) -> dict[str, Fusion]:
    """Runs by their output folders, relative to the folder that holds them all."""
    parent = os.path.commonpath([fusion.output.parent for fusion in fusions])
    named = {os.path.relpath(fusion.output, parent): fusion for fusion in fusions}
    if len(named) < len(fusions):
        raise InputError("a run is given twice; give every output folder once")
    return named
