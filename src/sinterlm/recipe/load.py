"""Reads recipes: a YAML file and its overrides in, one checked :class:`~sinterlm.recipe.schema.Recipe` out.

A file may contain only its differences from another one (``extension.py``), which must be a whole recipe by itself.

Nothing here imports torch, loads a model or opens the files that a recipe names. Paths of files to read
(``prompts.path``, ``few_shot``, a recorded source's ``path``) are relative to the recipe file's folder, even in
overrides. ``output``, ``workspace`` and folders that a ``model`` names are relative to the current working directory.
Loading makes them all absolute, so that a recipe means the same wherever it is read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sinterlm.errors import InputError
from sinterlm.explain import KeyPath, Problem, describe, found_but_expected, show_path, unknown_name
from sinterlm.formats.document import Document, refuse, validate
from sinterlm.formats.yaml_file import dump_yaml, read_yaml
from sinterlm.objectives.named import OBJECTIVES, known_hyperparameters
from sinterlm.recipe import train_arguments
from sinterlm.recipe.executors import Ray
from sinterlm.recipe.extension import EXTENDS, extend
from sinterlm.recipe.overrides import PLACE, Override, apply_overrides
from sinterlm.recipe.schema import (
    GridEntry,
    Preference,
    Recipe,
    Sft,
    Training,
    name_own_sft,
)
from sinterlm.recipe.secrets import find_secrets
from sinterlm.records import Role
from sinterlm.sampling.settings import EngineSettings
from sinterlm.selection.policies import POLICIES
from sinterlm.selection.settings import SelectionPolicy
from sinterlm.settings import MAX_SEED

TrainingT = TypeVar("TrainingT", Sft, Preference)


class LoadedRecipe(NamedTuple):
    """A recipe and the file that it comes from."""

    recipe: Recipe
    path: Path


class TrainSettings(NamedTuple):
    """The settings of one training without a recipe."""

    hyperparameters: Mapping[str, Any]
    """The objective's, as given, without defaults."""
    arguments: Mapping[str, Any]
    """The training's, named as in TrainingArguments, and ``max_length``."""
    seed: int


class Option(NamedTuple):
    """A value that a setting may take, and its path in the recipe."""

    path: KeyPath
    value: Any

    @property
    def is_searched(self) -> bool:
        """Whether the value is one of a grid's list."""
        return bool(self.path) and isinstance(self.path[-1], int)

    @property
    def key(self) -> KeyPath:
        """The setting's own path, without the value's place in a list."""
        return self.path[:-1] if self.is_searched else self.path


def load_recipe(path: Path, overrides: Sequence[str | Override] = ()) -> LoadedRecipe:
    """Read a recipe, change it by overrides and check all of it.

    Args:
        path: The recipe.
        overrides: ``KEY=VALUE``, whose value is read as YAML, or an :class:`Override`, whose value is taken as it is.

    Raises:
        InputError: One line for each mistake, with file, line and key.
    """
    document = apply_overrides(_extend(read_yaml(path), path), overrides)
    return LoadedRecipe(_check(document, path), path)


def parse_recipe(content: Mapping[str, Any], overrides: Sequence[str | Override] = ()) -> Recipe:
    """Check a recipe that was not read from a file. All its relative paths are relative to the current folder.

    Args:
        content: The content of a recipe file.
        overrides: As for :func:`load_recipe`.

    Raises:
        InputError: One line for each mistake, with its key.
    """
    path = Path.cwd() / "the recipe"
    return _check(apply_overrides(_extend(Document(path.name, dict(content), {}), path), overrides), path)


def _extend(document: Document, path: Path, extending: tuple[Path, ...] = ()) -> Document:
    """A recipe merged into the one that it extends, if any.

    Args:
        document: The recipe.
        path: Where it is.
        extending: The recipes that extend it, outermost first.
    """
    if not (isinstance(document.value, dict) and EXTENDS in document.value):
        return document
    name = document.value[EXTENDS]
    if not isinstance(name, str):
        raise refuse(document, [Problem((EXTENDS,), found_but_expected(name, "the path of a recipe"))])
    base = path.parent / Path(name).expanduser()
    seen = (*extending, Path(os.path.realpath(path)))
    if Path(os.path.realpath(base)) in seen:
        raise refuse(document, [Problem((EXTENDS,), f"{name} extends this recipe in turn; remove one of the two keys")])
    if not base.is_file():
        raise refuse(document, [Problem((EXTENDS,), f"no such file: {base}")])
    extended = _extend(read_yaml(base), base, seen)
    # Checking makes its paths absolute, so that they keep their meaning in another folder.
    whole = _check(extended, base).model_dump(mode="json", exclude_unset=True)
    return extend(Document(extended.name, whole, extended.places), document)


def _check(document: Document, path: Path) -> Recipe:
    if secrets := list(find_secrets(document.value)):  # before any message that shows a value
        raise refuse(document, secrets)
    recipe = validate(document, Recipe, folder=path.parent.resolve())
    if problems := dict.fromkeys(_find_problems(recipe)):  # two cells may have the same problem
        raise refuse(document, problems)
    return recipe


def resolve_text(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; :func:`load_recipe` reads the same from it in any folder."""
    methods = {
        method: _with_defaults(preference).model_copy(update={"sft": preference.sft and _with_defaults(preference.sft)})
        for method, preference in recipe.preference.items()
    }
    sft = recipe.sft and _with_defaults(recipe.sft)
    resolved = recipe.model_copy(update={"sft": sft, "preference": methods})
    return dump_yaml(resolved.model_dump(mode="json", exclude_none=True))


def read_train_settings(objective: str, settings: Sequence[str], files: Sequence[Path] = ()) -> TrainSettings:
    """Check flat settings and sort them into hyper-parameters of the objective and training arguments.

    Args:
        objective: A name in the table of objectives.
        settings: ``KEY=VALUE``; they override those of files.
        files: YAML files of ``KEY: VALUE``; later files override earlier ones.

    Raises:
        InputError: One line for each wrong setting.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"{PLACE}: {unknown_name(objective, OBJECTIVES, f'objective {objective!r}')}")
    document = apply_overrides(_read_settings_files(files), settings)
    values = dict(document.value)
    seed = values.pop("seed", 0)
    is_seed = type(seed) is int and 0 <= seed <= MAX_SEED
    known = known_hyperparameters(objective, values.get("base"))
    hyperparameters = {key: value for key, value in values.items() if key in known}
    arguments = {key: value for key, value in values.items() if key not in known}
    problems = [
        *([] if is_seed else [Problem(("seed",), found_but_expected(seed, f"a whole number, 0 to {MAX_SEED}"))]),
        *_find_objective_problems(
            Option((), objective), {name: [Option((name,), value)] for name, value in hyperparameters.items()}
        ),
        *_find_train_problems((), arguments, known),
    ]
    if problems:
        raise refuse(document, problems)
    return TrainSettings(hyperparameters, arguments, seed)


def _read_settings_files(files: Sequence[Path]) -> Document:
    values: dict[str, Any] = {}
    places: dict[KeyPath, str] = {}
    for document in map(read_yaml, files):
        if not isinstance(document.value, dict):
            raise refuse(document, [Problem((), found_but_expected(document.value, "lines of KEY: VALUE"))])
        values |= document.value
        places |= document.places
    return Document(PLACE, values, places)


def _find_problems(recipe: Recipe) -> Iterator[Problem]:
    """What the schema of a recipe cannot check: how its parts fit together and with the tables of components."""
    needs = {"held_out": recipe.evaluation.held_out, "sft": recipe.needs_sft_part, "preference": recipe.preference}
    split = recipe.prompts.split
    for part, need in needs.items():
        if need and getattr(split, part) == 0 and not (part == "sft" and split.sft_domains):
            yield Problem(("prompts", "split", part), "found 0, but the recipe uses this part; give it prompts")
    models: dict[KeyPath, EngineSettings] = {("target",): recipe.target}
    models |= {("sources", name): source for name, source in recipe.sources.items()}
    for path, model in models.items():
        yield from (Problem((*path, *problem.path), problem.text) for problem in model.find_problems())
    for path, scorer in recipe.scorers.items():
        yield from (Problem((*path, *problem.path), problem.text) for problem in scorer.find_problems())
    if isinstance(recipe.executor, Ray):
        yield from _find_executor_problems(recipe.executor, recipe)
    if recipe.until:
        yield from _find_until_problems(recipe)
    if recipe.sft:
        yield from _find_sft_problems(("sft",), "sft", recipe.sft, recipe)
    for method, preference in recipe.preference.items():
        path = ("preference", method)
        yield from _find_train_problems((*path, "train"), preference.train)
        yield from _find_grid_problems((*path, "grid"), preference.grid, recipe, parts=("train", "objective"))
        yield from _find_training_problems(path, preference, recipe)
        yield from _find_target_samples_problems((*path, "target_samples"), preference, recipe)
        if preference.sft:
            yield from _find_sft_problems((*path, "sft"), name_own_sft(method), preference.sft, recipe)
            if (own := name_own_sft(method)) in recipe.preference:
                yield Problem(
                    ("preference", own), f"the `sft` of {method!r} has this name; give the method another one"
                )


def _find_executor_problems(executor: Ray, recipe: Recipe) -> Iterator[Problem]:
    for name in executor.sources:
        if name not in recipe.sources:
            yield Problem(("executor", "sources", name), unknown_name(name, recipe.sources, f"source {name!r}"))
    if "://" in executor.address:
        reason = f"{executor.address} is an address of Ray Client; run on a node of the cluster, and use address: auto"
        yield Problem(("executor", "address"), reason)


def _find_until_problems(recipe: Recipe) -> Iterator[Problem]:
    """Whether rows can be counted before the trainings that they are for."""
    if not recipe.preference:
        yield Problem(("until",), "it counts the rows of preference methods, and the recipe has none; remove it")
    for name, sft in recipe.fine_tunings.items():
        if sft.extra_prompts:
            reason = f"the extra_prompts of {name} are known only once all prompts are asked; remove one of the two"
            yield Problem(("until",), reason)


def _find_sft_problems(path: KeyPath, name: str, sft: Sft, recipe: Recipe) -> Iterator[Problem]:
    yield from _find_train_problems((*path, "train"), sft.train)
    yield from _find_grid_problems((*path, "grid"), sft.grid, recipe, parts=("train",))
    yield from _find_training_problems(path, sft, recipe)
    if sft.extra_prompts:
        place = (*path, "extra_prompts", "dropped_by")
        yield from _find_extra_prompts_problems(place, name, sft.extra_prompts.dropped_by, recipe)


def _find_extra_prompts_problems(path: KeyPath, fine_tuning: str, method: str, recipe: Recipe) -> Iterator[Problem]:
    """Whether a fine-tuning can wait for the selection of the method that decides its extra prompts."""
    starting = {name: each for name, each in recipe.preference.items() if recipe.fine_tuning_of(name) == fine_tuning}
    fitting = [name for name, each in starting.items() if "target" not in each.select.reads]
    expected = f"expected a method that starts from it and selects only from the sources' answers: {', '.join(fitting)}"
    if not fitting:
        expected = "no method of this recipe fits, so remove extra_prompts"
    if method not in recipe.preference:
        yield Problem(path, unknown_name(method, fitting, f"method {method!r}"))
    elif method not in starting:
        yield Problem(path, f"found {method!r}, which does not start from this fine-tuning; {expected}")
    elif method not in fitting:
        rows = recipe.preference[method].select.kind
        yield Problem(path, f"found {method!r}, whose {rows!r} rows need the target's answers after SFT; {expected}")


def _find_target_samples_problems(path: KeyPath, preference: Preference, recipe: Recipe) -> Iterator[Problem]:
    if preference.target_samples == "target-sft" and not (recipe.sft or preference.sft):
        yield Problem(path, "found 'target-sft', but the recipe has no `sft`; remove the key")
    if preference.target_samples and recipe.target.samples:
        yield Problem(path, "`target.samples` gives the answers; remove the key")
    policy = preference.select
    if preference.target_samples and "target" not in policy.reads:
        yield Problem(path, f"rows of {policy.kind!r} hold no answer of the target; remove the key")


def _find_training_problems(path: KeyPath, training: Training, recipe: Recipe) -> Iterator[Problem]:
    """How policy and objective fit each other and the rest of the recipe."""
    select, objective = training.select, training.objective
    for place, name in select.named_sources():
        if name not in recipe.sources:
            yield Problem((*path, "select", *place), unknown_name(name, recipe.sources, f"source {name!r}"))
    given = objective.model_dump(exclude_none=True)
    options = {name: [Option((*path, "objective", name), value)] for name, value in given.items()}
    for number, entry in enumerate(training.grid):
        for key, values in entry.items():
            part, _, name = key.partition(".")
            if part == "objective":
                places = ((*path, "grid", number, key, index) for index in range(len(values)))
                options.setdefault(name, []).extend(map(Option, places, values))
    for kind in options.pop("kind"):
        if not isinstance(kind.value, str) or kind.value not in OBJECTIVES:
            yield Problem(kind.path, unknown_name(str(kind.value), OBJECTIVES, f"objective {kind.value!r}"))
            continue
        yield from _find_objective_problems(kind, options)
        yield from _find_fit_problems((*path, "select", "kind"), kind.value, options, select)


def _find_fit_problems(
    path: KeyPath, kind: str, options: Mapping[str, Sequence[Option]], select: SelectionPolicy
) -> Iterator[Problem]:
    """Whether a policy's rows hold what an objective reads, for all values of its hyper-parameters."""
    objective = OBJECTIVES[kind]
    asked = (name for name in objective.optional_roles if any(value is True for _, value in options.get(name, ())))
    needed = (*objective.roles, *(role for name in asked for role in objective.optional_roles[name]))

    def misfit(policy: type[SelectionPolicy], roles: Collection[Role]) -> str | None:
        if not set(needed) <= set(roles):
            held = ", ".join(roles) or "responses without a role"
            return f"hold {held}, but the objective {kind!r} needs {', '.join(needed)}"
        if objective.reads_scores and not policy.compares:
            return f"hold good answers only, but the objective {kind!r} compares good ones with bad ones"
        if objective.reads_weights and not policy.gives_weights:
            return f"have no weights, but the objective {kind!r} needs rows with weights"
        if policy.gives_weights and not objective.reads_weights:
            return f"have weights, but the objective {kind!r} reads rows without weights"
        return None

    if problem := misfit(type(select), select.row_roles):
        fitting = ", ".join(_find_fitting(misfit, compares=select.compares)) or "none"
        yield Problem(path, f"rows of {select.kind!r} {problem}; policies that give them: {fitting}")


def _find_fitting(
    misfit: Callable[[type[SelectionPolicy], Collection[Role]], str | None], *, compares: bool
) -> Iterator[str]:
    """The policies for SFT or for a preference method whose rows fit, with the switches that they need."""
    for name, policy in POLICIES.items():
        if policy.compares == compares:
            optional = [role for roles in policy.optional_roles.values() for role in roles]
            if not misfit(policy, policy.roles):
                yield name
            elif not misfit(policy, (*policy.roles, *optional)):
                yield f"{name} with {' and '.join(f'{switch}: true' for switch in policy.optional_roles)}"


def _find_objective_problems(kind: Option, options: Mapping[str, Sequence[Option]]) -> Iterator[Problem]:
    """The problems of an objective whose hyper-parameters may each take one of several values."""
    for base in options.get("base", [Option((), None)]):
        known = known_hyperparameters(kind.value, base.value)
        whose = repr(kind.value) if base.value is None else f"{kind.value!r} with base {base.value!r}"
        if cells := [show_path(option.path) for option in (kind, base) if option.is_searched]:
            whose = f"{whose}, which {' and '.join(cells)} asks for"
        for name, values in options.items():
            if name not in known:
                yield Problem(values[0].key, unknown_name(name, known, f"hyper-parameter of {whose}"))
                continue
            for path, value in values:
                if not known[name].accepts(value):
                    yield Problem(path, found_but_expected(value, known[name].expected))


NOT_THE_TRAININGS = {
    "chat_template_kwargs": "it belongs to the model, and sampling uses it too; set target.chat_template_kwargs",
    "template_date": "it belongs to the run; set template_date beside output",
}
"""Arguments of `sinterlm train` that a recipe sets elsewhere."""


def _find_train_problems(path: KeyPath, given: Mapping[str, Any], also_known: Iterable[str] = ()) -> Iterator[Problem]:
    if path:
        for name in NOT_THE_TRAININGS.keys() & given.keys():
            yield Problem((*path, name), f"not a training argument in a recipe: {NOT_THE_TRAININGS[name]}")
    for name, text in train_arguments.find_problems(given, also_known):
        yield Problem((*path, name), text)


def _find_grid_problems(
    path: KeyPath, grid: Sequence[GridEntry], recipe: Recipe, *, parts: Sequence[str]
) -> Iterator[Problem]:
    """The problems of a grid, except those of objectives' values; its keys may begin with one of ``parts``."""
    if grid and recipe.prompts.split.development == 0:
        reason = "cells are compared on the development prompts, but prompts.split.development is 0; give it prompts"
        yield Problem(path, reason)
    if grid and recipe.evaluation.held_out is None:
        reason = "cells are compared by the scorer of evaluation.held_out, but there is none; add `evaluation`"
        yield Problem(path, reason)
    first: dict[str, int] = {}
    for number, entry in enumerate(grid):
        for key, values in entry.items():
            yield from _find_axis_problems((*path, number, key), key, values, parts)
            if first.setdefault(key, number) != number:
                reason = f"searched already in {show_path((*path, first[key]))}; keep it in one entry"
                yield Problem((*path, number, key), reason)


def _find_axis_problems(path: KeyPath, key: str, values: Sequence[Any], parts: Sequence[str]) -> Iterator[Problem]:
    part, _, name = key.partition(".")
    if part not in parts or not name:
        expected = " or ".join(f"{part}.NAME" for part in parts)
        yield Problem(path, f"unknown key, expected {expected}, such as train.learning_rate")
        return
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if first.setdefault(repr(value), index) != index:
            yield Problem((*path, index), f"{describe(value)} is listed twice; remove one of them")
    if part == "train":
        if problem := NOT_THE_TRAININGS.get(name) or train_arguments.find_name_problem(name):
            yield Problem(path, problem)
            return
        for index, value in enumerate(values):
            if problem := train_arguments.find_value_problem(name, value):
                yield Problem((*path, index), problem)


def _with_defaults(training: TrainingT) -> TrainingT:
    objective = training.objective
    if {"objective.kind", "objective.base"} & {key for entry in training.grid for key in entry}:
        return training  # each kind and base has its own hyper-parameters and defaults
    given = objective.given
    known = known_hyperparameters(objective.kind, given.get("base"))
    missing = {name: known[name].default for name in known if name not in given}
    return training.model_copy(update={"objective": objective.model_copy(update=missing)})
