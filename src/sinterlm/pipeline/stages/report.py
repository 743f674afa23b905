"""The stage ``report``: ``summary.json`` and ``report.html``, written from the store and the run's folder."""

from __future__ import annotations

from collections.abc import Iterable

from sinterlm.models import Fingerprint
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.report import write_run_report
from sinterlm.pipeline.stage import RunContext, Stage, StageResult


class Report(Stage):
    """Writes the summary and the report of a run."""

    name = "report"
    may_change = True
    reads_inputs = False
    is_reported = False

    def __init__(self, fusion: Fusion, *, after: Iterable[str]) -> None:
        self.needs = tuple(after)
        self.outputs = (fusion.output / "report.html", fusion.output / "summary.json")

    def configuration(self, fingerprint: Fingerprint) -> object:
        """Nothing besides the stages before it."""
        return None

    def work(self, run: RunContext) -> StageResult:
        """Write both files."""
        return StageResult({"bytes": write_run_report(run)})
