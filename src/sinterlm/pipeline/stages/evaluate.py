"""The stage ``evaluate``: every figure on the held-out questions, in ``evaluation.json``."""

from __future__ import annotations

from sinterlm.models import Fingerprint
from sinterlm.pipeline.evaluate import evaluate, held_out_scores
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.stage import RunContext, Stage, StageResult

__all__ = ["Evaluate", "held_out_scores"]


class Evaluate(Stage):
    """Computes rates, paired differences and internal rewards."""

    name = "evaluate"
    needs = ("score-held-out",)
    reads_inputs = False

    def __init__(self, fusion: Fusion) -> None:
        self.outputs = (fusion.output / "evaluation.json",)

    def configuration(self, fingerprint: Fingerprint) -> object:
        """Nothing but the stages before it."""
        return None

    def work(self, run: RunContext) -> StageResult:
        """Compute and write all figures."""
        return evaluate(run)
