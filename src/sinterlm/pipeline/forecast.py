"""What stages base their cost estimates on: prompts or their number, stored answers, lengths. Loads no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sinterlm.models import FLOAT32_BYTES
from sinterlm.models.flops import GPUS, Flops
from sinterlm.records import Prompt, Spent, Usage

if TYPE_CHECKING:
    from sinterlm.pipeline.fusion import Fusion, Round, SamplingRequest
    from sinterlm.store import Store

Number = TypeVar("Number", int, float)

CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English text, used until the store has counts of the same model."""
USUAL_ANSWER_TOKENS = 512
"""The assumed length of an answer, unless the store has a mean or the limit is lower. WRPO's models write
2,100 to 2,400 characters per question of AlpacaEval-2 (arXiv 2412.03187, appendix D)."""
USUAL_PROMPT_TOKENS = 200
"""The assumed length of a prompt whose file is not on this machine."""
OPTIMIZER_COPIES = 3
"""A checkpoint holds the weights and AdamW's two moments; training holds these and the gradients."""

HOURS_NOTE = (
    f"GPU hours are rough estimates, at best right to an order of magnitude. They assume {USUAL_ANSWER_TOKENS} tokens "
    f"per answer (fewer if the limit is lower; the mean of stored answers, if any) and {USUAL_PROMPT_TOKENS} per "
    "prompt if its file is missing. Speeds: "
    + "; ".join(
        f"{gpu.name}: {gpu.writing / 16e9:,.0f} tokens/s written and {gpu.reading / 16e9:,.0f} read with 8 billion "
        f"weights, {gpu.training / 1e12:.0f} TFLOP/s in training"
        for gpu in GPUS
    )
)

SAMPLING = ("calls", "prompt_tokens", "new_tokens", "money", "seconds", "disk_bytes", "gpu_hours")
"""All figures of a plan; a stage that samples has every one."""
SCORING = ("calls", "money", "seconds", "gpu_hours")
TRAINING = ("disk_bytes", "gpu_hours")

KnownPart = Sequence[Prompt] | int
"""The prompts of a part, or the number that the recipe gives if their file is not on this machine."""
Part = KnownPart | None
"""None if the file is not on this machine and the recipe gives only a share of it."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What is left to ask one model in a stage. A figure is None if it is unknown."""

    model: str
    """A name as in the ledger."""
    runs_elsewhere: bool
    """Whether it is asked while models of this machine work."""
    calls: int
    """Answers or verdicts still to come."""
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    """As in :class:`StagePlan`."""
    money: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What is left to do of one stage. A figure is None if it is unknown or the stage has no such figure."""

    name: str
    done: bool = False
    figures: tuple[str, ...] = ()
    """The names of the figures that the stage has; one of these that is None is unknown."""
    calls: int | None = None
    """Answers still to be sampled, or scored."""
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    """An upper bound; once the store has answers of the same model, an estimate from their mean."""
    money: float | None = None
    """By the prices in the recipe."""
    seconds: float | None = None
    """By how long the same models took before, in this run or in the pilot."""
    disk_bytes: int | None = None
    gpu_hours: dict[str, float] | None = None
    """By kind of GPU; unknown also if the size of a model is."""
    models: tuple[ModelPlan, ...] = ()
    """The models that the stage asks."""
    note: str = ""


class Past(NamedTuple):
    """A run, finished or not, from which a plan learns lengths, rates and prices."""

    store: Store
    run_name: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known before a run: its prompts by part, and the answers that the store has already."""

    fusion: Fusion
    parts: Mapping[str, Part] = field(default_factory=dict)
    store: Store | None = None
    """None if there is no store yet."""
    past: Sequence[Past] = ()
    """Runs that may have asked the same models: this run itself, then the pilot."""

    def mean_tokens(self, identity: str | None, stage: str, model: str) -> tuple[float, float] | None:
        """The mean prompt and answer tokens of a model's answers.

        They are those of its answers in the first store that has some, or else those that the ledger says; None if no
        run has asked it.
        """
        stored = (past.store.mean_tokens(identity) for past in self.past if identity)
        if found := next(filter(None, stored), None):
            return found
        spent = self.spent(stage, model)
        return (spent.usage.prompt_tokens / spent.items, spent.usage.new_tokens / spent.items) if spent else None

    def spent(self, stage: str, model: str) -> Spent | None:
        """What a model has cost a stage, in the first run that has asked it; None in none.

        A trained form of the target that nobody has asked yet costs what the target itself does.
        """
        names = [model, *(["target"] if model.startswith("target-") else [])]
        found = {(spent.stage, spent.model): spent for spent in reversed(list(self._spent()))}
        return next((found[stage, name] for name in names if (stage, name) in found), None)

    def _spent(self) -> Iterator[Spent]:
        for past in self.past:
            yield from (spent for spent in past.store.ledger(past.run_name) if spent.items)

    def with_costs(
        self, stage: str, planned: ModelPlan, expected: Usage, price: Callable[[Usage], float | None]
    ) -> ModelPlan:
        """The same plan with money and time.

        Args:
            stage: The stage that asks the model.
            planned: The plan, with its number of calls.
            expected: What these calls use, unless past calls of the model say what calls use.
            price: What a usage costs; None if that is not known.
        """
        if not planned.calls:
            return replace(planned, money=0.0, seconds=0.0)
        past = self.spent(stage, planned.model)
        if past is None:
            return replace(planned, money=price(expected))
        times = planned.calls / past.items
        counted = Usage(*(round(figure * times) for figure in past.usage))
        money = price(counted if counted.prompt_tokens or counted.new_tokens else expected)
        if money is None and past.money:
            money = past.money * times
        return replace(planned, money=money, seconds=past.seconds * times if past.seconds else None)

    def seconds(self, stage: str, count_name: str, number: float) -> float | None:
        """How long a stage takes for ``number`` units of what it counts as ``count_name``; None if no run says."""
        if not number:
            return 0.0
        for past in self.past:
            finished = past.store.finished_stages(past.run_name).get(stage)
            if finished and finished.counts.get(count_name):
                return finished.seconds / finished.counts[count_name] * number
        return None

    def asked(self, asked: Round) -> list[tuple[SamplingRequest, Part]]:
        """Who is asked in a round, and which prompts."""
        together = combine([self.parts[name] for name in asked.parts])
        if isinstance(together, int):
            sizes = self.fusion.recipe.prompts.sizes
            return [(request, round(together * _share(request, sizes))) for request in asked.requests]
        return [(request, None if together is None else request.asked(together)) for request in asked.requests]

    def stored_prompts(self, part: str) -> list[Prompt]:
        """The prompts of a part in the store; none before the stage ``prompts``."""
        return self.store.prompts(self.fusion.run_name, part) if self.store else []

    @property
    def target_bytes(self) -> int | None:
        """The size of the target's weights in float32, as they are trained and saved."""
        target = self.fusion.recipe.target
        weights = target.num_weights
        return None if weights is None else round(weights) * FLOAT32_BYTES


def combine(parts: Sequence[Part]) -> Part:
    """All prompts of several parts, or their number."""
    if any(isinstance(part, Sequence) for part in parts):
        return [prompt for part in parts if isinstance(part, Sequence) for prompt in part]
    return add([part for part in parts if not isinstance(part, Sequence)])


def count(part: KnownPart) -> int:
    """The number of prompts."""
    return part if isinstance(part, int) else len(part)


def show_count(part: Part) -> str:
    """The number of prompts as text."""
    return "unknown" if part is None else f"{count(part):,}"


def estimate_prompt_tokens(part: KnownPart) -> float:
    """The tokens of all prompts of a part together."""
    if isinstance(part, int):
        return part * USUAL_PROMPT_TOKENS
    return sum(map(count_characters, part)) / CHARACTERS_PER_TOKEN


def estimate_answer_tokens(request: SamplingRequest) -> int:
    """The tokens of one answer, before there is any."""
    return min(request.settings.max_new_tokens, USUAL_ANSWER_TOKENS) if request.settings else USUAL_ANSWER_TOKENS


def count_characters(prompt: Prompt) -> int:
    """The length of a prompt's messages."""
    return sum(len(message.content) for message in prompt.messages)


def add(values: Sequence[Number | None]) -> Number | None:
    """The sum; None if one is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def hours(flops: Flops | None) -> dict[str, float] | None:
    """The hours on one GPU, by kind of GPU; None if the number of operations is unknown."""
    return None if flops is None else {gpu.name: flops.hours(gpu) for gpu in GPUS}


def add_hours(values: Sequence[dict[str, float] | None]) -> dict[str, float] | None:
    """The sums by kind of GPU; None if one is unknown."""
    known = [value for value in values if value is not None]
    return {gpu.name: sum(hours[gpu.name] for hours in known) for gpu in GPUS} if len(known) == len(values) else None


def _share(request: SamplingRequest, sizes: Mapping[str, int] | None) -> float:
    """The share of the prompts that the participant is asked, by the sizes of the domains."""
    domains = request.participant.config.domains
    if domains is None or sizes is None:
        return 1.0
    return sum(sizes.get(domain, 0) for domain in domains) / sum(sizes.values())
