"""The schema of a recipe, with every default except those of objectives (``objectives/named.py``).

One pydantic model per mapping; a ``kind:`` or ``engine:`` key picks among several. Unknown keys are errors.
Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model
from pydantic_core import PydanticCustomError

from sinterlm.components import by_engine, union_of
from sinterlm.explain import Problem
from sinterlm.models.settings import TemplateDate
from sinterlm.objectives.named import ResolvedObjective, list_hyperparameters, resolve_objective
from sinterlm.recipe.executors import AnyExecutor, Local
from sinterlm.sampling.engines import Source
from sinterlm.sampling.managed import ManagedTemplatedModel
from sinterlm.sampling.recorded import RecordedSource
from sinterlm.sampling.settings import AskedModel
from sinterlm.sampling.transformers_engine import TransformersSource
from sinterlm.scoring.scorers import AnyScorer
from sinterlm.selection.policies import POLICIES
from sinterlm.selection.settings import SelectionPolicy
from sinterlm.settings import Domains, InputPath, OutputPath, Positive, Seed, Settings, expected


def _check_size(size: object) -> object:
    is_count = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    is_fraction = isinstance(size, float) and 0 <= size <= 1
    if not (is_count or is_fraction):
        raise expected("a count (0, 1, 2, ...) or a fraction with a point (0.0 to 1.0)")
    return size


def _check_size_or_rest(size: object) -> object:
    if size != "rest":
        try:
            _check_size(size)
        except PydanticCustomError as error:
            raise expected(f"rest, {error.message()}") from None
    return size


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _check_source_name(name: str) -> str:
    if not name or name.startswith("target") or "/" in name:
        raise expected("a source's name that neither begins with 'target' nor contains a '/'")
    return name


def _check_method_name(name: str) -> str:
    if name == "sft" or not re.fullmatch("[a-z0-9-]+", name):
        raise expected("a method's name of a-z, 0-9 and '-', other than 'sft': it is used in file names")
    return name


Size = Annotated[int | float, BeforeValidator(_check_size)]
"""A count, or a fraction: ``1`` is one prompt, ``1.0`` all of them."""
SizeOrRest = Annotated[int | float | Literal["rest"], BeforeValidator(_check_size_or_rest)]
SourceName = Annotated[str, AfterValidator(_check_source_name)]
MethodName = Annotated[str, AfterValidator(_check_method_name)]


class Split(Settings):
    """How the prompts are split. Each prompt is in exactly one part."""

    held_out: Size = 0
    """For evaluation. A fraction is a share of all prompts."""
    sft: Size = 0.33
    """For ``sft``. A fraction is a share of what ``held_out`` leaves; so are the fractions below."""
    sft_domains: dict[str, Size] = {}
    """For ``sft``, by domain of the prompts: a count or fraction of that domain, in place of ``sft``. Here and wherever
    a recipe names domains, one that no prompt has is an error.
    """
    development: Size = 0
    """For choosing settings; no training sees it. With ``evaluation``, every model answers it like ``held_out``, and
    ``summary.json`` has a table ``development`` of the same shape as ``held_out``.
    """
    preference: SizeOrRest = "rest"
    """For the preference methods."""


class Deduplicate(Settings):
    """Keeps only the first of several similar prompts."""

    ngram: Positive | Literal["none"] = 5
    """Number of words in an n-gram. Shorter prompts are compared as a whole; with ``none``, all are."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Prompts whose n-grams have at least this Jaccard similarity are duplicates."""


class Decontaminate(Settings):
    """Drops prompts that contain a benchmark's question or a part of it."""

    against: Annotated[
        list[InputPath],
        BeforeValidator(_as_list, json_schema_input_type=list[InputPath] | InputPath),
        Field(min_length=1),
    ]
    """Files of benchmark questions, relative to the recipe."""
    ngram: Positive = 13
    """Words in an n-gram; one with more operators than words does not count."""
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of the words of a question's turn that the shared n-grams must cover; at 0 one n-gram is enough."""


class Prompts(Settings):
    path: InputPath
    """The prompt file, relative to the recipe."""
    sizes: dict[str, Positive] | None = None
    """Number of prompts by domain. Only ``sinterlm plan`` reads it, when the file is missing."""
    deduplicate: Deduplicate | None = None
    """Keeps only the first of several duplicate prompts."""
    decontaminate: Decontaminate | None = None
    """Drops prompts that contain a benchmark's question."""
    split: Split = Split()
    """How the prompts are split into parts."""


class TrainedModel(AskedModel):
    """The model that is trained, whoever samples it."""

    samples: RecordedSource | None = None
    """Recorded answers for preference rows, instead of sampling the target."""

    def find_problems(self) -> Iterator[Problem]:
        """Keys that a source may have but the target may not."""
        if self.prompt.few_shot:
            reason = "the target is trained with its chat template and so must be asked with it; remove few_shot"
            yield Problem(("prompt", "few_shot"), reason)
        else:
            yield from super().find_problems()
        if self.domains:
            yield Problem(("domains",), "the target is asked every prompt of its part; remove it")


class Target(TransformersSource, TrainedModel):
    """The model that is trained, sampled in this process."""


class ManagedTarget(ManagedTemplatedModel, TrainedModel):
    """The model that is trained, sampled by a server that Sinter starts for every form of it."""


if TYPE_CHECKING:
    AnyTarget = Target | ManagedTarget
else:
    AnyTarget = by_engine(Target, ManagedTarget)
    """The forms of the ``target:`` mapping, told apart by ``engine``, which need not be given."""


if TYPE_CHECKING:
    SftSelect = SelectionPolicy
    PreferenceSelect = SelectionPolicy
else:
    SftSelect = union_of({kind: policy for kind, policy in POLICIES.items() if not policy.compares}, "kind")
    PreferenceSelect = union_of({kind: policy for kind, policy in POLICIES.items() if policy.compares}, "kind")


class ObjectiveSettings(Settings):
    """Kind and hyper-parameters; defaults come from the objective's row in ``objectives/named.py``.

    That table also has the hyper-parameters and bounds of each objective, which are checked when the recipe is read.
    """

    kind: str

    @property
    def given(self) -> dict[str, Any]:
        """The hyper-parameters that the recipe gives, by name."""
        return {name: value for name, value in self if name != "kind" and value is not None}

    def resolve(self) -> ResolvedObjective:
        """The objective with every hyper-parameter set: what the recipe gives, over the table's defaults."""
        return resolve_objective(self.kind, self.given)

    if TYPE_CHECKING:  # every hyper-parameter of the table is a field, see below

        def __getattr__(self, name: str) -> Any: ...


if not TYPE_CHECKING:
    ObjectiveSettings = create_model(
        "ObjectiveSettings",
        __base__=ObjectiveSettings,
        __doc__=ObjectiveSettings.__doc__,
        __module__=__name__,
        **{key.name: (key.type | None, Field(None, description=key.description)) for key in list_hyperparameters()},
    )


TrainArguments = dict[str, Any]
"""Names of Transformers' TrainingArguments, and ``max_length``; checked by name and type when the recipe is read."""


GridEntry = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
"""Settings as ``train.NAME`` or ``objective.NAME``, and the values that each may take."""


class ExtraPrompts(Settings):
    """Prompts of the preference part that SFT learns from, because a preference method has no row for them."""

    dropped_by: str
    """The preference method. It must start from this SFT and select from the sources' answers alone (``fusechat3``,
    ``fusepo``, ``fusepo-rloo``), because the target's answers come after SFT.
    """
    domains: Domains = None
    """Prompts of these domains only; by default all."""

    @property
    def count_name(self) -> str:
        """The name of the number of these prompts among the counts of the fine-tuning's selection."""
        return f"prompts from {self.dropped_by}"


class Sft(Settings):
    select: SftSelect
    """``kind: best-of-sources`` or ``kind: fusesft``."""
    extra_prompts: ExtraPrompts | None = None
    """Prompts of the preference part that SFT also learns from, because a method has no row for them."""
    objective: ObjectiveSettings = ObjectiveSettings(kind="sft")
    """``kind: sft``, or for weighted rows ``kind: fusesft``; by default plain SFT."""
    train: TrainArguments = {}
    """Training arguments."""
    grid: list[GridEntry] = []
    """Values of ``train.NAME`` to choose from."""


class Preference(Settings):
    select: PreferenceSelect
    """Which answers become rows."""
    objective: ObjectiveSettings
    """The loss. The rows must hold what it reads: ``wrpo`` needs ``select: {kind: wrpo}``, ``dpo`` needs
    ``kind: on-policy`` or ``kind: fusechat3``.
    """
    target_samples: Literal["target", "target-sft"] | None = None
    """Whose answers are the target's in the rows: those before SFT (``target``) or after it (``target-sft``); by
    default those of the model that the training starts from.
    """
    train: TrainArguments = {}
    """Training arguments."""
    grid: list[GridEntry] = []
    """Values of ``train.NAME`` and ``objective.NAME`` to choose from."""
    sft: Sft | None = None
    """An SFT of its own to start from, on the same prompts and with the same keys; by default the recipe's."""


Training = Sft | Preference


def name_own_sft(method: str) -> str:
    """The name of a preference method's own SFT."""
    return f"{method}-sft"


class HeldOut(Settings):
    """Greedy answers of every model to the held-out prompts."""

    scorer: AnyScorer
    """A scorer, which may differ from that of the training answers."""
    max_new_tokens: Positive | None = None
    """Token limit of these answers; by default each model's own."""


class Evaluation(Settings):
    held_out: HeldOut | None = None
    """Every model answers the held-out and ``development`` prompts once, greedily."""


class Budget(Settings):
    """What a run may spend on sampling and scoring, in all its commands together, its preview included.

    Once a limit is reached, nothing more is asked, what is in flight is finished and kept, and the command ends with
    exit code 4. It resumes with a larger limit.
    """

    money: Annotated[float, Field(gt=0)] | None = None
    """By the prices in the recipe. Every server must then have a ``price``."""
    tokens: Positive | None = None
    """Tokens read and written, by models of this machine too."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of work, summed over models: two that are asked side by side for an hour take two."""


class Until(Settings):
    """How many prompts of the preference part are asked: only as many as give enough rows."""

    rows: Positive
    """Training rows that every preference method needs."""
    candidates: Positive | None = None
    """The most prompts to ask; by default all of the part."""


class Recipe(Settings):
    """One fusion."""

    output: OutputPath
    """Where the run writes. Relative to the current working directory."""
    workspace: OutputPath | None = None
    """The folder of ``store.sqlite``; by default the output folder. Recipes with the same workspace share its answers
    and scores.
    """
    seed: Seed = 0
    """Seed of the split, of ties and of training, and of sampling for models without a seed of their own."""
    template_date: TemplateDate = None
    """The date that chat templates use as today's, such as ``2026-11-30``; by default the day of the first command."""
    budget: Budget = Budget()
    """What the run may spend."""
    until: Until | None = None
    """Asks prompts of the preference part until enough of them have given a row; by default all are asked."""
    preview: Positive | None = None
    """Takes this many prompts of every part through sampling, scoring and selection, and trains nothing: what
    ``sinterlm run --preview`` sets. The answers of the target are then those before any training.
    """
    prompts: Prompts
    """What the models are asked."""
    target: AnyTarget
    """The model that is trained."""
    sources: Annotated[dict[SourceName, Source], Field(min_length=1)]
    """The models to learn from by name, at least one. A name must not begin with ``target`` or contain a ``/``.
    """
    scorer: AnyScorer
    """Scores the training answers."""
    score: Literal["all", "on-demand"] = "all"
    """Which answers are scored: all, or those that a selection of the recipe looks at. ``on-demand`` gives the same
    rows for fewer scores; its pages and exports show fewer answers.
    """
    sft: Sft | None = None
    """Supervised fine-tuning. Without it, preference training starts from the target as it is and gets all training
    prompts.
    """
    preference: dict[MethodName, Preference] = {}
    """Preference methods by name (``a-z``, ``0-9``, ``-``; not ``sft``). Each starts from the SFT model, unless it has
    an ``sft`` of its own, and all compare the same answers.
    """
    evaluation: Evaluation = Evaluation()
    """What is measured."""
    executor: AnyExecutor = Local()
    """Where models answer and scorers score: in this process or on a Ray cluster. Answers and scores are the same, so
    a run may change it between commands.
    """

    @property
    def fine_tunings(self) -> dict[str, Sft]:
        """Every SFT of the recipe: ``sft``, and ``METHOD-sft`` of every method that has its own."""
        shared = {"sft": self.sft} if self.sft else {}
        return shared | {name_own_sft(name): method.sft for name, method in self.preference.items() if method.sft}

    @property
    def needs_sft_part(self) -> bool:
        """Whether some SFT has only the prompts of the split's ``sft`` part."""
        return any(sft.extra_prompts is None for sft in self.fine_tunings.values())

    def fine_tuning_of(self, method: str) -> str | None:
        """The SFT that a preference method starts from: its own or the shared ``sft``; None without either."""
        own = name_own_sft(method)
        return next((name for name in (own, "sft") if name in self.fine_tunings), None)

    @property
    def scorers(self) -> dict[tuple[str, ...], AnyScorer]:
        """The scorers of the recipe by their key paths."""
        held_out = self.evaluation.held_out
        return {("scorer",): self.scorer} | (
            {("evaluation", "held_out", "scorer"): held_out.scorer} if held_out else {}
        )
