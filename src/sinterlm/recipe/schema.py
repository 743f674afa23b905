"""The form of a recipe, and the home of every default but the objectives' (``objectives/table.py``).

One pydantic model per mapping; a ``kind:`` or ``engine:`` key picks among several. Unknown keys are errors.
Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from sinterlm.models import absolute_name


class Strict(BaseModel):
    """Refuses unknown keys and silent conversions; immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _expected(expectation: str) -> PydanticCustomError:
    """An error whose message says what was expected."""
    return PydanticCustomError("expected", "{expectation}", {"expectation": expectation})


def _check_size(size: object) -> object:
    is_count = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    is_fraction = isinstance(size, float) and 0 <= size <= 1
    if not (is_count or is_fraction):
        raise _expected("a count (0, 1, 2, ...) or a fraction with a point (0.0 to 1.0)")
    return size


def _check_size_or_rest(size: object) -> object:
    if size != "rest":
        try:
            _check_size(size)
        except PydanticCustomError as error:
            raise _expected(f"rest, {error.message()}") from None
    return size


def _check_source_name(name: str) -> str:
    if not name or name.startswith("target") or "/" in name:
        raise _expected("a source's name that neither begins with 'target' nor holds a '/'")
    return name


def _check_method_name(name: str) -> str:
    if name == "sft" or not re.fullmatch("[a-z0-9-]+", name):
        raise _expected("a method's name of a-z, 0-9 and '-', other than 'sft': it becomes the name of files")
    return name


def _find_input(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder") or Path()
    return Path(folder, os.path.expanduser(path))


def _find_output(path: Path) -> Path:
    return Path(os.path.expanduser(path)).absolute()


InputPath = Annotated[Path, Field(strict=False), AfterValidator(_find_input)]
"""A file to read; in a recipe file relative to that file's folder."""
OutputPath = Annotated[Path, Field(strict=False), AfterValidator(_find_output)]
"""A folder to write; relative to the current working directory, and absolute once read."""
ModelName = Annotated[str, AfterValidator(absolute_name)]
"""As in :func:`~sinterlm.models.resolve_model`; where it names a folder, absolute once read."""
Size = Annotated[int | float, BeforeValidator(_check_size)]
"""A count, or a fraction: ``1`` is one prompt, ``1.0`` all of them."""
SizeOrRest = Annotated[int | float | Literal["rest"], BeforeValidator(_check_size_or_rest)]
SourceName = Annotated[str, AfterValidator(_check_source_name)]
MethodName = Annotated[str, AfterValidator(_check_method_name)]
Positive = Annotated[int, Field(ge=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Split(Strict):
    """Which prompt serves what. Each prompt is in exactly one part."""

    held_out: Size = 0
    """A count, or a fraction of all prompts."""
    sft: Size = 0.33
    """A count, or a fraction of what ``held_out`` leaves; so too the next two."""
    development: Size = 0
    preference: SizeOrRest = "rest"


class Prompts(Strict):
    path: InputPath
    """JSON Lines or Parquet with ``prompt`` or ``messages``, and optional ``id``, ``answers``, ``domain``."""
    split: Split = Split()


class Sampling(Strict):
    """How one model is sampled for training data."""

    num_samples: Positive = 5
    temperature: Annotated[float, Field(ge=0)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_new_tokens: Positive = 512
    seed: int | None = None
    """The recipe's own seed unless given."""


class PromptFormat(Strict):
    """How a model is asked: its chat template (with a system prompt, if any), or a few-shot completion prompt."""

    system: str | None = None
    few_shot: InputPath | None = None
    """A YAML file with ``template`` and ``examples``."""


class AskedModel(Strict):
    """What every model has that is asked for its answers, wherever it runs."""

    prompt: PromptFormat = PromptFormat()
    sampling: Sampling = Sampling()


class LocalModel(AskedModel):
    """A model that runs in this process."""

    engine: Literal["transformers"] = "transformers"
    model: ModelName
    """A hub name, a folder, or ``gguf:PACKAGE/FILE.gguf`` for a GGUF file inside an installed package."""
    device: str = "auto"
    dtype: Dtype = "auto"


class RecordedSource(Strict):
    """Answers made elsewhere, joined to the prompts by id or text."""

    engine: Literal["recorded"]
    path: InputPath
    num_samples: Positive = 5
    """So many answers to a prompt are taken, where the file has as many."""


Source = Annotated[LocalModel | RecordedSource, Field(discriminator="engine")]


class Target(LocalModel):
    """The model that is trained."""


class ExactMatch(Strict):
    kind: Literal["exact-match"]


class RewardModel(Strict):
    """Any sequence-classification reward model; it reads with its own chat template and tokenizer."""

    kind: Literal["reward-model"]
    model: ModelName
    max_length: Positive = 4096
    batch_size: Positive = 8
    device: str = "auto"
    dtype: Dtype = "auto"


Scorer = Annotated[ExactMatch | RewardModel, Field(discriminator="kind")]

Ties = Literal["hash", "first"]
Truncated = Literal["drop", "keep"]


class BestOfSources(Strict):
    """SFT: the best-scored answer over all sources."""

    kind: Literal["best-of-sources"]
    ties: Ties = "hash"
    truncated: Truncated = "drop"


class Wrpo(Strict):
    """The quadruples of WRPO (arXiv 2412.03187, section 3.1)."""

    kind: Literal["wrpo"]
    ties: Ties = "hash"
    target_ties: Literal["keep", "drop"] = "keep"
    truncated: Truncated = "drop"


class OnPolicy(Strict):
    """The target's own best against its own worst."""

    kind: Literal["on-policy"]
    ties: Ties = "hash"
    truncated: Truncated = "drop"


PreferenceSelect = Annotated[Wrpo | OnPolicy, Field(discriminator="kind")]


class Objective(Strict):
    """Kind and hyper-parameters; what is not given comes from the objective's row in ``objectives/table.py``.

    Which of them an objective has, and within which bounds, that table says; it is asked when the recipe is read.
    """

    kind: str
    base: str | None = None
    beta: float | None = None
    gamma: float | None = None
    tau: float | None = None
    average_logps: bool | None = None
    label_smoothing: float | None = None
    alpha: float | None = None
    alpha_schedule: str | None = None
    rejected_mix: bool | None = None
    baseline: str | None = None
    kl: float | None = None


TrainArguments = dict[str, Any]
"""Names of Transformers' TrainingArguments, and ``max_length``; checked by name and type when the recipe is read."""


GridEntry = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
"""Settings as ``train.NAME`` or ``objective.NAME``, and the values that each may take."""


class Sft(Strict):
    select: BestOfSources
    train: TrainArguments = {}
    grid: list[GridEntry] = []
    """As that of a preference method; of ``train.NAME`` only."""

    @property
    def objective(self) -> Objective:
        """The objective of every SFT."""
        return Objective(kind="sft")


class Preference(Strict):
    select: PreferenceSelect
    objective: Objective
    train: TrainArguments = {}
    grid: list[GridEntry] = []
    """Searched an entry after the other: the best of one is kept for the next."""


Training = Sft | Preference


class HeldOut(Strict):
    """Greedy answers of every model to the held-out prompts."""

    scorer: Scorer
    max_new_tokens: Positive | None = None
    """Each model's own sampling limit unless given."""


class Evaluation(Strict):
    held_out: HeldOut | None = None


class Recipe(Strict):
    """One fusion."""

    output: OutputPath
    workspace: OutputPath | None = None
    """Holds store.sqlite; the output folder unless given."""
    seed: int = 0
    """Of the split, of ties, of sampling and training unless they name their own."""
    prompts: Prompts
    target: Target
    sources: Annotated[dict[SourceName, Source], Field(min_length=1)]
    scorer: Scorer
    sft: Sft | None = None
    preference: dict[MethodName, Preference] = {}
    """By method's name, e.g. ``wrpo``; each starts from the SFT model and shares its samples."""
    evaluation: Evaluation = Evaluation()
