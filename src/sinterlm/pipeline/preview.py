"""What a preview shows before the whole run is paid for: prompts with their answers, and what each source adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

from sinterlm.pipeline.finished import read_only
from sinterlm.pipeline.forecast import ModelPlan
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.ledger import read_ledger
from sinterlm.pipeline.plan import Plan, plan_fusion
from sinterlm.pipeline.source_values import read_source_values, training_candidates
from sinterlm.records import Candidates
from sinterlm.report.data import Ledger
from sinterlm.selection.source_values import SourceValue
from sinterlm.store import Store

NUM_EXAMPLES = 3
"""Prompts that are printed with their answers; the report has all."""


class Preview(NamedTuple):
    """What a preview found out about a run."""

    output: str
    values: Sequence[SourceValue]
    ledger: Ledger
    """What the preview has spent."""
    plan: Plan
    """Of the whole run, by the lengths, rates and prices that the preview saw."""
    examples: Sequence[Candidates]

    @property
    def left_to_ask(self) -> Mapping[str, ModelPlan]:
        """What is left to ask every source for training answers."""
        (sampling,) = (stage for stage in self.plan.stages if stage.name == "sample-sources")
        return {model.model: model for model in sampling.models}


def read_preview(fusion: Fusion) -> Preview:
    """Read the preview of a run, whose answers must have been scored.

    Args:
        fusion: The whole run.
    """
    preview = fusion.for_preview(1)  # the number of prompts decides nothing here
    with closing(Store(preview.store_path, read_only=True)) as store:
        run = read_only(preview, store)
        return Preview(
            str(preview.output),
            read_source_values(run),
            read_ledger(preview, store),
            plan_fusion(fusion, pilot=preview.output),
            list(islice(training_candidates(run), NUM_EXAMPLES)),
        )
