"""Collects what a run's report shows from the store and the run's folder."""

from __future__ import annotations

import time
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sinterlm.models import plain_name
from sinterlm.pipeline.candidates import candidates_of
from sinterlm.pipeline.ledger import read_ledger
from sinterlm.pipeline.reasons import EXPLANATIONS
from sinterlm.pipeline.stage import RunContext, Shown
from sinterlm.pipeline.summary import show_stages, summarise, write_summary
from sinterlm.records import Candidates, Dropped
from sinterlm.report import data as page
from sinterlm.report import write_report
from sinterlm.streams import Reread


def write_run_report(run: RunContext) -> int:
    """Write ``summary.json`` and ``report.html``, and return the page's size in bytes."""
    fusion, shown = run.fusion, show_stages(run)
    summary = summarise(run, shown)
    data = _fill_page(run, shown, summary)
    write_summary(fusion, summary)
    report = fusion.output / "report.html"
    write_report(data, report, seed=fusion.recipe.seed)
    return report.stat().st_size


def read_report(run: RunContext) -> page.ReportData:
    """Everything that a run's report shows."""
    shown = show_stages(run)
    return _fill_page(run, shown, summarise(run, shown))


def _fill_page(run: RunContext, shown: Sequence[Shown], summary: Mapping[str, Any]) -> page.ReportData:
    """What concerns the run as a whole, then each stage's part."""
    fusion, recipe = run.fusion, run.fusion.recipe
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
            ledger=read_ledger(fusion, run.store),
        ),
        parts={part: _asked(run, part) for part in typing.get_args(page.Part)},
        dropped=_dropped(run, summary["stages"]),
        drop_explanations=EXPLANATIONS,
    )
    for part in shown:
        data = part.fill(data)
    return data


def _asked(run: RunContext, part: str) -> Collection[Candidates]:
    """The part's prompts with their sampled answers: for training or, if held out, for measuring quadruples."""
    asked = run.fusion.answers_to(part)
    targets = tuple(request for request in asked.targets if request.participant.is_there)
    prompts = run.prompts(part)
    return Reread(lambda: candidates_of(run, prompts, asked._replace(targets=targets)), len(prompts))


def _dropped(run: RunContext, stages: Collection[str]) -> Collection[Dropped]:
    """What the stages of the run have dropped."""
    store, name = run.store, run.fusion.run_name
    number = sum(sum(reasons.values()) for stage, reasons in store.count_dropped(name).items() if stage in stages)
    return Reread(lambda: (drop for drop in store.dropped(name) if drop.stage in stages), number)
