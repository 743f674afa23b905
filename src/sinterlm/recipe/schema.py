"""The form of a recipe, and the home of every default but the objectives' (``objectives/table.py``).

One pydantic model per mapping; a ``kind:`` or ``engine:`` key picks among several. Unknown keys are errors.
Nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Refuses unknown keys and silent conversions; immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


PathField = Annotated[Path, Field(strict=False)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=False)]


class Split(Strict):
    """Which prompt serves what. Each prompt is in exactly one part."""

    held_out: Annotated[int, Field(ge=0)] | Fraction = 0
    """A count, or a fraction of all prompts."""
    sft: Annotated[int, Field(ge=0)] | Fraction = 0.33
    """A count, or a fraction of what ``held_out`` leaves; so too the next two."""
    development: Annotated[int, Field(ge=0)] | Fraction = 0
    preference: Literal["rest"] | Annotated[int, Field(ge=0)] | Fraction = "rest"


class Prompts(Strict):
    path: PathField
    split: Split = Split()


class Sampling(Strict):
    """How one model is sampled for training data."""

    num_samples: Annotated[int, Field(ge=1)] = 5
    temperature: Annotated[float, Field(ge=0, strict=False)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1, strict=False)] = 0.95
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    seed: int | None = None
    """The recipe's own seed unless given."""


class PromptFormat(Strict):
    """How a model is asked: its chat template (with a system prompt, if any), or a few-shot completion prompt."""

    system: str | None = None
    few_shot: PathField | None = None
    """A YAML file with ``template`` and ``examples``."""


class LocalModel(Strict):
    """What a model that runs in this process needs."""

    model: str
    """A hub name, a folder, or ``gguf:PACKAGE/FILE.gguf`` for a GGUF file inside an installed package."""
    prompt: PromptFormat = PromptFormat()
    sampling: Sampling = Sampling()
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class TransformersSource(LocalModel):
    engine: Literal["transformers"] = "transformers"


class RecordedSource(Strict):
    """Answers made elsewhere, joined to the prompts by id or text."""

    engine: Literal["recorded"]
    path: PathField


Source = Annotated[TransformersSource | RecordedSource, Field(discriminator="engine")]


class Target(LocalModel):
    """The model that is trained."""


class ExactMatch(Strict):
    kind: Literal["exact-match"]


class RewardModel(Strict):
    """Any sequence-classification reward model; it reads with its own chat template and tokenizer."""

    kind: Literal["reward-model"]
    model: str
    max_length: Annotated[int, Field(ge=1)] = 4096
    batch_size: Annotated[int, Field(ge=1)] = 8
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


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
    """Kind and hyper-parameters; what is not given comes from the objective's row in ``objectives/table.py``."""

    kind: str
    base: str | None = None
    beta: float | None = None
    gamma: float | None = None
    tau: float | None = None
    alpha: Fraction | None = None
    alpha_schedule: Literal["constant", "ramp"] | None = None
    label_smoothing: float | None = None


TrainArguments = dict[str, Any]
"""Names of Transformers' TrainingArguments, and ``max_length``; checked by name and type when the recipe is read."""


class Sft(Strict):
    select: BestOfSources
    train: TrainArguments = {}


class Preference(Strict):
    select: PreferenceSelect
    objective: Objective
    train: TrainArguments = {}


class HeldOut(Strict):
    """Greedy answers of every model to the held-out prompts."""

    scorer: Scorer
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Each model's own sampling limit unless given."""


class Evaluation(Strict):
    held_out: HeldOut | None = None


class Recipe(Strict):
    """One fusion."""

    output: PathField
    workspace: PathField | None = None
    """Holds store.sqlite; the output folder unless given."""
    seed: int = 0
    prompts: Prompts
    target: Target
    sources: dict[str, Source]
    scorer: Scorer
    sft: Sft | None = None
    preference: dict[str, Preference] = {}
    evaluation: Evaluation = Evaluation()
