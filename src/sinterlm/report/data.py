"""What the report page shows, as plain data: the pipeline fills it, the page renders it.

Answers, rows and drops are the run's own records, which may be read anew whenever they are needed. The report itself
counts shares, pass rates and histograms from them, so that no figure on the page can contradict the answers that its
reader can open. Held-out figures are those that ``evaluation`` computes, and what needs a model (log-probabilities) is
computed before.

Models have their names in ``summary.json``: ``target``, ``target-sft``, ``target-sft-wrpo``, ...; sources have their
names in the recipe.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sinterlm.evaluation.figures import Figures
from sinterlm.evaluation.rates import Rate
from sinterlm.evaluation.rewards import RewardAccuracies
from sinterlm.records import Candidates, Dropped, Failure, Scored, TrainingRow, Usage
from sinterlm.selection.policies import REASONS

Part = Literal["sft", "preference", "development", "held_out"]
Unit = Literal["rate", "score"]


def unit_of(metric: str) -> Unit:
    """How figures of a metric are shown: rates in per cent, scores on the scorer's own scale."""
    return "score" if metric == "score" else "rate"


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage of the run, e.g. ``StageFacts("sample-sources", 40.2, {"responses": 2145})``."""

    name: str
    seconds: float
    counts: Mapping[str, int] = field(default_factory=dict)
    """What it made or read, by name."""
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What one model has cost one stage, e.g. ``Cost("sample-sources", "a", Usage(9, 90, 0, 45), 9, 0.02, 4.1)``."""

    stage: str
    model: str
    usage: Usage
    items: int
    """Answers or scores received."""
    money: float | None
    """None if the recipe gives no price."""
    seconds: float
    num_failed: int = 0
    """Requests without an answer, after all retries."""


@dataclass(frozen=True, slots=True)
class FailedKind:
    """Failed requests of one kind, with one of them as an example."""

    stage: str
    model: str
    kind: str
    number: int
    example: Failure


@dataclass(frozen=True, slots=True)
class Noticed:
    """What was noticed about a model at work, e.g. ``limit 32 found``."""

    stage: str
    model: str
    text: str
    noted_at: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a run has spent, what failed, and what was noticed."""

    costs: Sequence[Cost] = ()
    failed: Sequence[FailedKind] = ()
    noticed: Sequence[Noticed] = ()

    @property
    def total(self) -> Cost:
        """The sum of all costs; its money is None if a part of it is not known."""
        money = [cost.money for cost in self.costs]
        return Cost(
            "",
            "",
            sum((cost.usage for cost in self.costs), Usage()),
            sum(cost.items for cost in self.costs),
            None if None in money else sum(part or 0.0 for part in money),
            sum(cost.seconds for cost in self.costs),
            sum(cost.num_failed for cost in self.costs),
        )

    def by_model(self) -> dict[str, Cost]:
        """What each model has cost in all stages together."""
        models = dict.fromkeys(cost.model for cost in self.costs)
        return {
            model: replace(Ledger([cost for cost in self.costs if cost.model == model]).total, model=model)
            for model in models
        }


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was fused into what, and what it cost."""

    name: str
    """Title of the page, e.g. the output folder's name."""
    target: str
    """The target's model as the recipe names it, e.g. ``HuggingFaceTB/SmolLM2-135M-Instruct``."""
    sources: Mapping[str, str]
    """Source name to what it is, e.g. ``{"gemma": "google/gemma-3-270m, few-shot prompt"}``."""
    scorer: str
    """What scored the training answers, in words, e.g. ``exact-match``."""
    seed: int
    seconds: float
    """Wall-clock time of all stages, over all commands that it took."""
    stages: Sequence[StageFacts] = ()
    peak_memory_bytes: int | None = None
    date: str = ""
    """When the run ended, as it should be shown; empty leaves it out."""
    version: str = ""
    """Sinter's version; empty leaves it out."""
    methods: Sequence[str] = ()
    """The preference methods by name."""
    ledger: Ledger = Ledger()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How every model answers the held-out questions: greedily, once each."""

    scorer: str
    """In words, e.g. ``exact-match``."""
    figures: Figures
    """The first metric is the main one: ``exact_match`` or, with a graded scorer, ``score``."""
    answers: Mapping[str, Sequence[Scored]] = field(default_factory=dict)
    """Model to its greedy answers, for the browser of prompts; joined by prompt id."""
    featured: str = ""
    """The fused model that the page leads with; the last one by default."""

    @property
    def main_metric(self) -> str:
        """The metric that models are compared by first."""
        return self.figures.metrics[0]

    @property
    def unit(self) -> Unit:
        """The main metric's unit."""
        return unit_of(self.main_metric)


@dataclass(frozen=True, slots=True)
class AverageLogps:
    """Average log-probability per token (natural log) that ``model`` gives to a set of answers.

    Example: ``AverageLogps("target-sft", "chosen_source", (-0.71, -1.32))``
    """

    model: str
    """Whose log-probabilities: the target before SFT, after SFT, after each preference training."""
    responses: Literal["chosen_source", "target"]
    """The answers: y_ws, or the target's own."""
    values: Sequence[float]
    """One per answer, finite; the same answers for every model."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One training and the records of its ``metrics.jsonl``, one per optimizer step, unchanged.

    Example: ``TrainingRun("wrpo", "WRPO: beta 0.1, alpha 0 to 0.5", ({"step": 1, "loss": 0.69, "alpha": 0.0},))``
    """

    name: str
    """``sft``, or the preference method's name in the recipe."""
    description: str
    """Objective and hyper-parameters in words."""
    metrics: Sequence[Mapping[str, float | None]]


@dataclass(frozen=True, slots=True)
class SearchedCell:
    """One training of a search, e.g. ``SearchedCell(3, "alpha 0.5", Rate(0.6, 0.5, 0.7, 90), loss=0.4)``."""

    number: int
    settings: str
    """In words, including those that earlier entries settled."""
    rate: Rate
    """On the development prompts."""
    loss: float | None = None
    margin: float | None = None
    """Loss and margin are those of the last step."""
    is_chosen: bool = False
    """The best one of its entry."""


@dataclass(frozen=True, slots=True)
class Search:
    """The search of one training's grid."""

    name: str
    """The name of the training."""
    metric: str
    """The metric by which cells are compared, e.g. ``exact_match``."""
    cells: Sequence[SearchedCell]

    @property
    def unit(self) -> Unit:
        """The metric's unit."""
        return unit_of(self.metric)


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that the page shows. Parts that a run lacks stay empty, and their sections say so in one line."""

    run: RunFacts
    parts: Mapping[Part, Collection[Candidates]] = field(default_factory=dict)
    """Every prompt of the run with its scored answers, by part; prompts without answers too (empty ``sources``)."""
    rows: Mapping[str, Collection[TrainingRow]] = field(default_factory=dict)
    """Selected training rows by training run (``sft``, ``wrpo``, ...), joined to the answers by prompt id, source and
    index: give every :class:`~sinterlm.records.RowResponse` its ``source`` and ``index``."""
    dropped: Collection[Dropped] = ()
    drop_explanations: Mapping[str, str] = field(default_factory=lambda: REASONS)
    """The meaning of each reason; a reason without one is shown with an example's detail."""
    held_out: HeldOut | None = None
    average_logps: Sequence[AverageLogps] = ()
    training: Sequence[TrainingRun] = ()
    """In the order in which they ran."""
    searches: Sequence[Search] = ()
    """The searches that chose settings of trainings."""
    reward_accuracies: Mapping[str, RewardAccuracies] = field(default_factory=dict)
    """How often each preference-trained model's internal reward ranks held-out quadruples correctly."""
    compared: Sequence[RunFacts] = ()
    """The runs that are compared (see :func:`~sinterlm.report.merge.merge_reports`); empty for a single run."""
    notes: Sequence[str] = ()
    """What to know before reading or comparing the figures."""
    case: str = ""
    """The id of a prompt that the page opens with, with every model's answers side by side."""
