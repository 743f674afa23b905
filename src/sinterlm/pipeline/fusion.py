"""A recipe made concrete: which models take part, under which names, and where everything lies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sinterlm.errors import InputError
from sinterlm.recipe.build import build_settings, greedy
from sinterlm.recipe.load import load_recipe
from sinterlm.recipe.overrides import Override
from sinterlm.recipe.schema import AskedModel, LocalModel, Recipe, Source, Training
from sinterlm.records import SamplingSettings
from sinterlm.selection.table import POLICIES


@dataclass(frozen=True, slots=True)
class Participant:
    """A model as it is asked: a source, the target, or one of the target's trained forms."""

    name: str
    """As in tables and records: a source's name in the recipe, ``target``, ``target-sft``, ..."""
    config: Source
    location: str | None = None
    """Weights to load instead of those that ``config`` names: a trained target's."""

    @property
    def weights(self) -> str | None:
        """The model that gives the answers, as Transformers finds it; None where nothing is loaded here."""
        return self.location or (self.config.model if isinstance(self.config, LocalModel) else None)

    @property
    def is_there(self) -> bool:
        """False for a model that is yet to be trained."""
        return self.location is None or Path(self.location, "training.json").is_file()


class Ask(NamedTuple):
    """Who is asked, how, and how often each prompt."""

    participant: Participant
    settings: SamplingSettings | None
    """None for recorded answers."""
    num_samples: int


class Fusion:
    """The models and folders of one recipe.

    Args:
        recipe: What to do.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.output = recipe.output.resolve()
        self.workspace = (recipe.workspace or recipe.output).resolve()

    @property
    def run_name(self) -> str:
        """The run's name in the store: its output folder as seen from the workspace."""
        return os.path.relpath(self.output, self.workspace)

    @property
    def store_path(self) -> Path:
        """The workspace's one database."""
        return self.workspace / "store.sqlite"

    @cached_property
    def sources(self) -> tuple[Participant, ...]:
        """The models learnt from."""
        return tuple(Participant(name, config) for name, config in self.recipe.sources.items())

    @cached_property
    def target(self) -> Participant:
        """The model to be trained, as it came."""
        return Participant("target", self.recipe.target)

    @cached_property
    def start(self) -> Participant:
        """The model that preference optimisation starts from and whose samples it compares: after SFT, if there is."""
        return self._trained("target-sft") if self.recipe.sft else self.target

    def preferred(self, method: str) -> Participant:
        """The model that preference ``method`` makes, e.g. ``target-sft-wrpo``."""
        return self._trained(f"{self.start.name}-{method}")

    @cached_property
    def trainings(self) -> dict[str, Training]:
        """Every training of this recipe: ``sft``, then the preference methods by name."""
        sft: dict[str, Training] = {"sft": self.recipe.sft} if self.recipe.sft else {}
        return {**sft, **self.recipe.preference}

    def model_of(self, training: str) -> Participant:
        """The model that a training makes."""
        return self.start if training == "sft" else self.preferred(training)

    def start_of(self, training: str) -> str:
        """The weights that a training starts from."""
        start = self.target if training == "sft" else self.start
        assert start.weights is not None
        return start.weights

    @cached_property
    def trained(self) -> tuple[Participant, ...]:
        """Every model that this recipe trains."""
        return tuple(map(self.model_of, self.trainings))

    @property
    def fused(self) -> Participant | None:
        """The model that a run is about: the last whose preference rows hold the sources' answers, else the last."""
        by_sources = [
            self.preferred(method)
            for method, preference in self.recipe.preference.items()
            if "chosen_source" in POLICIES[preference.select.kind].roles
        ]
        candidates = by_sources or self.trained
        return candidates[-1] if candidates else None

    @cached_property
    def participants(self) -> tuple[Participant, ...]:
        """All models, in the order of the tables."""
        return (*self.sources, self.target, *self.trained)

    @property
    def training_parts(self) -> tuple[str, ...]:
        """The parts of the prompts that the sources answer for training: those that the recipe makes use of."""
        used = {"sft": self.recipe.sft, "preference": self.recipe.preference}
        return tuple(part for part in used if used[part]) or tuple(used)

    def for_training(self, participant: Participant) -> Ask:
        """How the participant is asked for training data."""
        config = participant.config
        if not isinstance(config, AskedModel):
            return Ask(participant, None, config.num_samples)
        settings = build_settings(config.sampling, seed=self.recipe.seed)
        return Ask(participant, settings, config.sampling.num_samples)

    def for_evaluation(self, participant: Participant) -> Ask:
        """How the participant is asked for the one answer that evaluation looks at: greedily."""
        config, held_out = participant.config, self.recipe.evaluation.held_out
        if not isinstance(config, AskedModel):
            return Ask(participant, None, 1)
        limit = held_out.max_new_tokens if held_out else None
        return Ask(participant, greedy(build_settings(config.sampling, seed=0), max_new_tokens=limit), 1)

    def rows_path(self, name: str) -> Path:
        """The training rows of ``sft`` or a preference method."""
        return self.output / "rows" / f"{name}.parquet"

    def search_path(self, training: str) -> Path:
        """What the search of a training's grid has found; its cells lie beside it."""
        return self.output / "search" / training / "search.json"

    def _trained(self, name: str) -> Participant:
        return Participant(name, self.recipe.target, str(self.output / name))


def load_fusion(folder: Path) -> Fusion:
    """The fusion that wrote ``folder``, wherever the folder lies now.

    Raises:
        InputError: There is no run in ``folder``.
    """
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise InputError(f"{folder}: holds no run (no recipe.yaml); give the output folder of `sinterlm run`")
    return Fusion(load_recipe(recipe, [Override("output", str(folder.absolute()))]).recipe)
