"""A recipe made concrete: its models, their names, and where everything is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sinterlm.errors import InputError
from sinterlm.models import Fingerprint, fingerprint
from sinterlm.models.settings import with_template_date
from sinterlm.recipe.load import load_recipe
from sinterlm.recipe.schema import ExtraPrompts, Recipe, Training
from sinterlm.records import Prompt, Role, SamplingSettings
from sinterlm.sampling.engines import Source
from sinterlm.sampling.protocol import Engine
from sinterlm.scoring.settings import ScorerSettings
from sinterlm.selection.settings import SelectionPolicy
from sinterlm.selection.wrpo import Wrpo

STORE = "store.sqlite"
GATHER = "gather"
"""The stage that asks only as many prompts as are needed; see :attr:`Fusion.gathers`."""
PREVIEW = "preview"
"""The folder of a run's preview, in its output folder."""
QUADRUPLE_ROLES: tuple[Role, ...] = ("chosen_source", "chosen_target", "rejected")
"""What a quadruple holds besides its prompt."""


@dataclass(frozen=True, slots=True)
class Participant:
    """A model that is asked: a source, the target, or one of the target's trained forms."""

    name: str
    """As in tables and records: a source's name in the recipe, ``target``, ``target-sft``, ..."""
    config: Source
    location: str | None = None
    """Weights to load instead of those in ``config``: a trained target's."""

    @property
    def weights(self) -> str | None:
        """The folder or hub name of the model that answers; None if no model is loaded on this machine."""
        return self.location or self.config.weights

    @property
    def is_there(self) -> bool:
        """Whether the model exists; False until it is trained."""
        return self.location is None or Path(self.location, "training.json").is_file()


class SamplingRequest(NamedTuple):
    """Who is asked, how, and for how many answers to each prompt."""

    participant: Participant
    settings: SamplingSettings | None
    """None for recorded answers."""
    num_samples: int

    def identity(self, fingerprint: Fingerprint = fingerprint) -> str | None:
        """The key of the answers in the store; None if the weights are unknown or a file of answers is missing."""
        asked = self.participant
        return asked.config.identity(location=asked.location, settings=self.settings, fingerprint=fingerprint)

    def build_engine(self, on_loaded: Callable[[str], None]) -> Engine:
        """Build the engine that answers; it calls ``on_loaded`` with the place of its weights once they are loaded."""
        asked = self.participant
        return asked.config.build(location=asked.location, settings=self.settings, on_loaded=on_loaded)

    def asked(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts that the participant is asked: those of its domains, or all if it names none."""
        domains = self.participant.config.domains
        return [prompt for prompt in prompts if domains is None or prompt.domain in domains]


class Round(NamedTuple):
    """One round of questions: who is asked, which prompts, and what scores the answers."""

    name: str
    """``sources``, ``target`` or ``held-out``: the stages are ``sample-NAME`` and ``score-NAME``."""
    requests: tuple[SamplingRequest, ...]
    parts: tuple[str, ...]
    """The parts of the prompts."""
    scorer: ScorerSettings


class PartRequests(NamedTuple):
    """Who gives the training answers to the prompts of one part, and what scores them."""

    sources: tuple[SamplingRequest, ...]
    targets: tuple[SamplingRequest, ...]
    scorer: ScorerSettings


class Fusion:
    """The models and folders of one recipe.

    Args:
        recipe: What to do.
        run_name: The run's name in the store; by default its output folder relative to the workspace. A run that has
            been moved keeps its name.
    """

    def __init__(self, recipe: Recipe, *, run_name: str = "") -> None:
        # Path.resolve() raises RuntimeError for a loop of links; with realpath, opening the file reports the loop.
        self.output = Path(os.path.realpath(recipe.output))
        self.workspace = Path(os.path.realpath(recipe.workspace or recipe.output))
        self.recipe = with_template_date(recipe, recipe.template_date or self.first_date or date.today().isoformat())
        self.run_name = run_name or os.path.relpath(self.output, self.workspace)

    @property
    def date_path(self) -> Path:
        """The file in which the workspace keeps the date that chat templates use as today's."""
        return self.workspace / "template-date"

    @property
    def first_date(self) -> str | None:
        """The date that earlier commands used; None if no chat template has asked for one."""
        return self.date_path.read_text().strip() if self.date_path.is_file() else None

    @property
    def store_path(self) -> Path:
        """The workspace's one database."""
        return self.workspace / STORE

    @cached_property
    def sources(self) -> tuple[Participant, ...]:
        """The models to learn from."""
        return tuple(Participant(name, config) for name, config in self.recipe.sources.items())

    @cached_property
    def target(self) -> Participant:
        """The target before any training."""
        return Participant("target", self.recipe.target)

    @cached_property
    def start(self) -> Participant:
        """The model that preference methods start from and sample, unless a method has its own SFT."""
        return self.model_of("sft") if self.recipe.sft and self.trains else self.target

    @property
    def trains(self) -> bool:
        """Whether models are trained; a preview trains none."""
        return self.recipe.preview is None

    @property
    def gathers(self) -> bool:
        """Whether prompts of the preference part are asked only until there are enough rows; a preview asks its few."""
        return self.recipe.until is not None and self.trains

    @property
    def preview_output(self) -> Path:
        """The output folder of this run's preview."""
        return self.output / PREVIEW

    def for_preview(self, num_prompts: int) -> Fusion:
        """The preview of this run: a few prompts of every part, in the same workspace."""
        update = {"preview": num_prompts, "output": self.preview_output, "workspace": self.workspace}
        return Fusion(self.recipe.model_copy(update=update))

    @property
    def paying_runs(self) -> tuple[str, ...]:
        """The names in the store of this run and of its preview, which share a budget."""
        whole, _, last = self.run_name.rpartition("/")
        run = (whole or ".") if last == PREVIEW and not self.trains else self.run_name
        return run, os.path.normpath(f"{run}/{PREVIEW}")

    def start_of(self, training: str) -> Participant:
        """The model that a training starts from."""
        if training in self.recipe.fine_tunings or not self.trains:
            return self.target
        fine_tuning = self.recipe.fine_tuning_of(training)
        return self.model_of(fine_tuning) if fine_tuning else self.target

    @cached_property
    def trainings(self) -> dict[str, Training]:
        """Every training of this recipe by name: the SFTs, then the preference methods."""
        return {**self.recipe.fine_tunings, **self.recipe.preference}

    def extra_prompts(self, training: str) -> ExtraPrompts | None:
        """The preference prompts that an SFT takes over: the SFT ``training`` itself, or the one that it starts from.

        None if there are none, and for the method that decides which prompts these are: it has no rows for them anyway.
        """
        fine_tuning = training if training in self.recipe.fine_tunings else self.recipe.fine_tuning_of(training)
        extra = self.recipe.fine_tunings[fine_tuning].extra_prompts if fine_tuning else None
        return None if extra and extra.dropped_by == training else extra

    def compared(self, training: str) -> Participant | None:
        """The form of the target whose answers are in a training's rows; None if only sources' answers are."""
        preference = self.recipe.preference.get(training)
        if preference is None or "target" not in preference.select.reads:
            return None
        return self.answering_for(self.target if preference.target_samples == "target" else self.start_of(training))

    def answering_for(self, form: Participant) -> Participant:
        """Who answers for a form of the target in training rows: the form itself, or recorded answers."""
        samples = self.recipe.target.samples
        return Participant(self.target.name, samples) if samples else form

    @cached_property
    def sampled_targets(self) -> tuple[Participant, ...]:
        """Who gives the target's answers in training rows: forms of the target, or recorded answers."""
        compared = {found.name: found for training in self.trainings if (found := self.compared(training))}
        return tuple(compared.values())

    def model_of(self, training: str) -> Participant:
        """The model that a training makes: ``target-sft``, ``target-sft-wrpo``, ...

        A method with an SFT of its own makes ``target-METHOD-sft`` and ``target-METHOD``.
        """
        starts_from_shared = training in self.recipe.preference and self.recipe.fine_tuning_of(training) == "sft"
        return self._trained(f"target-sft-{training}" if starts_from_shared else f"target-{training}")

    @cached_property
    def trained(self) -> tuple[Participant, ...]:
        """Every model that this recipe trains."""
        return tuple(map(self.model_of, self.trainings)) if self.trains else ()

    @property
    def fused(self) -> Participant | None:
        """A run's main result: the last model whose preference rows hold sources' answers, otherwise the last one."""
        by_sources = [
            self.model_of(method)
            for method, preference in self.recipe.preference.items()
            if "sources" in preference.select.reads
        ]
        candidates = by_sources or self.trained
        return candidates[-1] if candidates else None

    @cached_property
    def participants(self) -> tuple[Participant, ...]:
        """All models, in the order of the tables."""
        return (*self.sources, self.target, *self.trained)

    @property
    def training_parts(self) -> tuple[str, ...]:
        """The parts that the sources answer for training: those that the recipe uses, or both if it trains nothing."""
        used = {"sft": self.recipe.fine_tunings, "preference": self.recipe.preference}
        return tuple(part for part in used if used[part]) or tuple(used)

    @property
    def gathered_rounds(self) -> tuple[str, ...]:
        """The rounds that are asked about prompts of the preference part until there are enough rows."""
        return ("gathered", "target") if "target" in self.rounds else ("gathered",)

    def for_training(self, participant: Participant) -> SamplingRequest:
        """How the participant is asked for training data."""
        config = participant.config
        return SamplingRequest(participant, config.sampling_settings(self.recipe.seed), config.num_samples)

    def for_evaluation(self, participant: Participant) -> SamplingRequest:
        """How the participant is asked for its one evaluation answer: greedily."""
        held_out = self.recipe.evaluation.held_out
        limit = held_out.max_new_tokens if held_out else None
        return SamplingRequest(participant, participant.config.greedy_settings(limit), 1)

    @property
    def deciding_methods(self) -> dict[str, str]:
        """For each SFT with extra prompts, the method that decides which these are."""
        return {
            name: sft.extra_prompts.dropped_by for name, sft in self.recipe.fine_tunings.items() if sft.extra_prompts
        }

    def searches(self, training: str) -> bool:
        """Whether a training searches for its settings."""
        return bool(self.recipe.evaluation.held_out and self.trainings[training].grid and self.trains)

    def start_stage(self, method: str) -> str:
        """The stage after which the model that a preference method starts from exists."""
        fine_tuning = self.recipe.fine_tuning_of(method) if self.trains else None
        return f"train-{fine_tuning}" if fine_tuning else "prompts"

    @property
    def sampled_starts(self) -> tuple[str, ...]:
        """The stages after which the sampled forms of the target exist; none for recorded answers."""
        if self.recipe.target.samples:
            return ()
        return tuple(
            dict.fromkeys(self.start_stage(method) for method in self.recipe.preference if self.compared(method))
        )

    @cached_property
    def rounds(self) -> dict[str, Round]:
        """Every round of questions by name, in the order of asking."""
        recipe, held_out = self.recipe, self.recipe.evaluation.held_out
        sources = tuple(map(self.for_training, self.sources))
        parts = tuple(part for part in self.training_parts if part != "preference" or not self.gathers)
        rounds = [Round("sources", sources, parts, recipe.scorer)]
        if self.gathers:
            rounds.append(Round("gathered", sources, ("preference",), recipe.scorer))
        if self.sampled_targets:
            targets = tuple(map(self.for_training, self.sampled_targets))
            rounds.append(Round("target", targets, ("preference",), recipe.scorer))
        if held_out:
            requests = tuple(map(self.for_evaluation, self.participants))
            # Sources and start are also asked as in training: their answers form the quadruples that internal rewards
            # are measured on.
            compared = (*sources, self.for_training(self.answering_for(self.start))) if recipe.preference else ()
            rounds.append(Round("held-out", (*requests, *compared), ("held_out", "development"), held_out.scorer))
        return {each.name: each for each in rounds}

    def answers_to(self, part: str) -> PartRequests:
        """Who gives the training answers to a part's prompts, from which rows are made.

        For parts that no training sees, these are the sources and the model that preference methods start from:
        internal rewards are measured on quadruples of their answers.
        """
        sources = self.rounds["sources"]
        if "held-out" in self.rounds and part in self.rounds["held-out"].parts:
            start = (self.for_training(self.answering_for(self.start)),) if self.recipe.preference else ()
            return PartRequests(sources.requests, start, self.rounds["held-out"].scorer)
        target = self.rounds.get("target")
        return PartRequests(
            sources.requests, target.requests if target and part in target.parts else (), sources.scorer
        )

    @property
    def quadruple_policy(self) -> SelectionPolicy:
        """How quadruples of held-out questions are selected, which internal rewards are measured on."""
        policies = [preference.select for preference in self.recipe.preference.values()]
        own = (policy for policy in policies if set(policy.roles) >= set(QUADRUPLE_ROLES))
        return next(own, Wrpo(kind="wrpo"))

    def rows_path(self, name: str) -> Path:
        """The training rows of ``sft`` or a preference method."""
        return self.output / "rows" / f"{name}.parquet"

    def log_path(self, participant: str) -> Path:
        """What the programs print that an engine starts for a participant."""
        return self.output / "logs" / f"{participant}.log"

    @property
    def matches_paths(self) -> tuple[Path, ...]:
        """The file of prompts left out as duplicates or benchmark questions; empty if the recipe looks for none."""
        prompts = self.recipe.prompts
        return (self.output / "overlaps.jsonl",) if prompts.deduplicate or prompts.decontaminate else ()

    def search_path(self, training: str) -> Path:
        """The result of a training's search; the cells are beside it."""
        return self.output / "search" / training / "search.json"

    def _trained(self, name: str) -> Participant:
        return Participant(name, self.recipe.target, str(self.output / name))


def load_fusion(folder: Path) -> Fusion:
    """The fusion that wrote ``folder``. The folder may have moved since, with or without its workspace.

    Raises:
        InputError: ``folder`` holds no run.
    """
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise InputError(f"{folder}: holds no run (no recipe.yaml); give the output folder of `sinterlm run`")
    written = load_recipe(recipe).recipe
    output = folder.absolute()
    workspace = written.workspace
    if workspace is not None:
        beside = Path(os.path.normpath(output / os.path.relpath(workspace, written.output)))
        workspace = beside if (beside / STORE).is_file() else workspace
    moved = written.model_copy(update={"output": output, "workspace": workspace})
    return Fusion(moved, run_name=Fusion(written).run_name)
