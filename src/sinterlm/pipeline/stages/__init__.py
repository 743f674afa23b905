"""The stages of a fusion, in order: the table of contents of a run.

    prompts -> sample-sources -> score-sources -> select-sft -> train-sft -> sample-target -> score-target
            -> select-METHOD, train-METHOD (each preference method) -> sample-held-out
                -> score-held-out -> evaluate -> report

A training with a grid has a stage search-METHOD before it. An SFT that also learns from what a method drops
(``extra_prompts``) comes after that method's select-METHOD. A preview has no trainings and no evaluation.
With ``until``, the stage gather takes the place of sample-target and score-target, and asks the sources about the
preference part, too.

Each kind of stage is a file of this package: what decides its result (its key), what it costs (``plan``), what it
checks before the first answer, what it does, what it leaves, and what ``status`` and the report show of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.stage import Stage
from sinterlm.pipeline.stages.evaluate import Evaluate
from sinterlm.pipeline.stages.gather import Gather
from sinterlm.pipeline.stages.prompts import Prompts
from sinterlm.pipeline.stages.report import Report
from sinterlm.pipeline.stages.sample import SampleHeldOut, SampleSources, SampleTarget
from sinterlm.pipeline.stages.score import Score
from sinterlm.pipeline.stages.search import Search
from sinterlm.pipeline.stages.select import Select
from sinterlm.pipeline.stages.train import Train

__all__ = ["build_stages"]


def build_stages(fusion: Fusion) -> list[Stage]:
    """The stages of ``fusion``, each after those that it needs."""
    stages: list[Stage] = [Prompts(fusion), SampleSources(fusion), Score(fusion, "sources")]
    deciding = fusion.deciding_methods
    for name in fusion.recipe.fine_tunings:
        if name in deciding:
            stages.append(Select(fusion, deciding[name]))
        stages += [Select(fusion, name), *_train(fusion, name)]
    if fusion.gathers:
        stages.append(Gather(fusion))
    elif "target" in fusion.rounds:
        stages += [SampleTarget(fusion), Score(fusion, "target")]
    for method in fusion.recipe.preference:
        if method not in deciding.values():
            stages.append(Select(fusion, method))
        stages += _train(fusion, method)
    last = [stage.name for stage in stages]
    if "held-out" in fusion.rounds:
        stages += [SampleHeldOut(fusion, after=last), Score(fusion, "held-out")]
        if fusion.trains:
            stages.append(Evaluate(fusion))
        last = [stages[-1].name]
    return [*stages, Report(fusion, after=last)]


def _train(fusion: Fusion, name: str) -> Iterator[Stage]:
    """A training, and before it the search for its settings if it has a grid; neither in a preview."""
    if fusion.searches(name):
        yield Search(fusion, name)
    if fusion.trains:
        yield Train(fusion, name)
