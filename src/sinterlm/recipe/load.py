"""Reads recipes: one YAML file and its overrides in, one checked :class:`~sinterlm.recipe.schema.Recipe` out.

Nothing here imports torch, loads a model or opens the files that a recipe names. Paths of files to read
(``prompts.path``, ``few_shot``, a recorded source's ``path``) are relative to the recipe file's folder, in overrides
too; ``output``, ``workspace`` and folders that a ``model`` names are relative to the current working directory. Once
loaded all are absolute, so that a recipe means the same wherever it is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from sinterlm.chat import FewShot
from sinterlm.errors import InputError
from sinterlm.objectives.table import OBJECTIVES, known_hyperparameters
from sinterlm.recipe import train_arguments
from sinterlm.recipe.explain import Problem, describe, found_but_expected, refuse, unknown_name, validate
from sinterlm.recipe.overrides import PLACE, Override, apply_overrides
from sinterlm.recipe.schema import AskedModel, GridEntry, Preference, Recipe, Strict
from sinterlm.recipe.yaml_file import Document, KeyPath, dump_yaml, read_yaml, show_path
from sinterlm.selection.table import POLICIES, Policy


class LoadedRecipe(NamedTuple):
    """A recipe and the file that it comes from."""

    recipe: Recipe
    path: Path


class TrainSettings(NamedTuple):
    """The settings of one training without a recipe."""

    hyperparameters: Mapping[str, Any]
    """Of the objective, as given: its defaults are not filled in."""
    arguments: Mapping[str, Any]
    """Of the training, by TrainingArguments' names, and ``max_length``."""
    seed: int


class Option(NamedTuple):
    """A value that a setting may take, and where it stands."""

    path: KeyPath
    value: Any

    @property
    def is_searched(self) -> bool:
        """Whether the value is one of a grid's list."""
        return bool(self.path) and isinstance(self.path[-1], int)

    @property
    def key(self) -> KeyPath:
        """The setting's own place, where the value is one of a list."""
        return self.path[:-1] if self.is_searched else self.path


class _Example(Strict):
    question: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]


class _FewShotFile(Strict):
    template: str
    examples: Annotated[list[_Example], Field(min_length=1)]


def load_recipe(path: Path, overrides: Sequence[str | Override] = ()) -> LoadedRecipe:
    """Read a recipe, change it by overrides and check all of it.

    Args:
        path: The recipe.
        overrides: ``KEY=VALUE``, whose value is read as YAML, or an :class:`Override`, whose value is taken as it is.

    Raises:
        InputError: a line for everything that is wrong, each with file, line and key.
    """
    document = apply_overrides(read_yaml(path), overrides)
    recipe = validate(document, Recipe, folder=path.parent.resolve())
    if problems := dict.fromkeys(_find_problems(recipe)):  # two cells may have the same one
        raise refuse(document, problems)
    return LoadedRecipe(recipe, path)


def resolve_text(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; :func:`load_recipe` reads the same from it in any folder."""
    methods = {method: _with_defaults(preference) for method, preference in recipe.preference.items()}
    resolved = recipe.model_copy(update={"preference": methods})
    return dump_yaml(resolved.model_dump(mode="json", exclude_none=True))


def quickstart_recipe() -> Path:
    """The recipe that ``sinterlm quickstart`` runs."""
    return Path(__file__).resolve().parents[1] / "recipes" / "quickstart" / "recipe.yaml"


def load_few_shot(path: Path) -> FewShot:
    """Read a few-shot prompt: ``template`` with ``{question}`` and ``{answer}``, and a list of ``examples``.

    Raises:
        InputError: a line for everything that is wrong, each with file, line and key.
    """
    document = read_yaml(path)
    content = validate(document, _FewShotFile)
    try:
        return FewShot(content.template, tuple((example.question, example.answer) for example in content.examples))
    except InputError as error:
        raise refuse(document, [Problem(("template",), str(error))]) from error


def read_train_settings(objective: str, settings: Sequence[str], files: Sequence[Path] = ()) -> TrainSettings:
    """Sort flat settings into the objective's hyper-parameters and training arguments, and check them.

    Args:
        objective: a name of the table of objectives.
        settings: ``KEY=VALUE``; they hold over those of files.
        files: YAML files of ``KEY: VALUE``, a later over an earlier.

    Raises:
        InputError: a line for every setting that is wrong.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"{PLACE}: {unknown_name(objective, OBJECTIVES, f'objective {objective!r}')}")
    document = apply_overrides(_read_settings_files(files), settings)
    values = dict(document.value)
    seed = values.pop("seed", 0)
    known = known_hyperparameters(objective, values.get("base"))
    hyperparameters = {key: value for key, value in values.items() if key in known}
    arguments = {key: value for key, value in values.items() if key not in known}
    problems = [
        *([] if type(seed) is int else [Problem(("seed",), found_but_expected(seed, "a whole number"))]),
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
    """What the form of a recipe does not say: how its parts fit together, and what the tables of components hold."""
    needs = {"held_out": recipe.evaluation.held_out, "sft": recipe.sft, "preference": recipe.preference}
    for part, need in needs.items():
        if need and getattr(recipe.prompts.split, part) == 0:
            yield Problem(("prompts", "split", part), "found 0, but the recipe has work for this part: give it prompts")
    if recipe.target.prompt.few_shot:
        reason = "the target is trained on its chat template and so must be asked by it; remove few_shot"
        yield Problem(("target", "prompt", "few_shot"), reason)
    for name, source in recipe.sources.items():
        if isinstance(source, AskedModel) and source.prompt.few_shot and source.prompt.system is not None:
            reason = "a few-shot prompt has no place for a system prompt; remove one of the two"
            yield Problem(("sources", name, "prompt", "system"), reason)
    if recipe.sft:
        yield from _find_train_problems(("sft", "train"), recipe.sft.train)
        yield from _find_grid_problems(("sft", "grid"), recipe.sft.grid, recipe, parts=("train",))
    for method, preference in recipe.preference.items():
        path = ("preference", method)
        yield from _find_train_problems((*path, "train"), preference.train)
        yield from _find_grid_problems((*path, "grid"), preference.grid, recipe, parts=("train", "objective"))
        yield from _find_preference_problems(path, preference)


def _find_preference_problems(path: KeyPath, preference: Preference) -> Iterator[Problem]:
    given = preference.objective.model_dump(exclude_none=True)
    options = {name: [Option((*path, "objective", name), value)] for name, value in given.items()}
    for number, entry in enumerate(preference.grid):
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
        yield from _find_fit_problems((*path, "select", "kind"), kind.value, options, preference.select.kind)


def _find_fit_problems(
    path: KeyPath, kind: str, options: Mapping[str, Sequence[Option]], policy: str
) -> Iterator[Problem]:
    """Where the rows of a policy do not hold what an objective reads, for some of its hyper-parameters' values."""
    objective = OBJECTIVES[kind]
    asked = (name for name in objective.optional_roles if any(value is True for _, value in options.get(name, ())))
    needed = (*objective.roles, *(role for name in asked for role in objective.optional_roles[name]))

    def misfit(row: Policy) -> str | None:
        if not set(needed) <= set(row.roles):
            return f"hold {', '.join(row.roles)}, but the objective {kind!r} needs {', '.join(needed)}"
        if objective.reads_weights and not row.gives_weights:
            return f"have no weights, but the objective {kind!r} needs rows with weights"
        if row.gives_weights and not objective.reads_weights:
            return f"have weights, but the objective {kind!r} reads rows without"
        return None

    if problem := misfit(POLICIES[policy]):
        fitting = ", ".join(name for name, row in POLICIES.items() if not misfit(row)) or "none"
        yield Problem(path, f"rows of {policy!r} {problem}; policies that give them: {fitting}")


def _find_objective_problems(kind: Option, options: Mapping[str, Sequence[Option]]) -> Iterator[Problem]:
    """What is wrong with an objective whose hyper-parameters may each take one of several values."""
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


def _find_train_problems(path: KeyPath, given: Mapping[str, Any], also_known: Iterable[str] = ()) -> Iterator[Problem]:
    for name, text in train_arguments.find_problems(given, also_known):
        yield Problem((*path, name), text)


def _find_grid_problems(
    path: KeyPath, grid: Sequence[GridEntry], recipe: Recipe, *, parts: Sequence[str]
) -> Iterator[Problem]:
    """What is wrong with a grid, but for the values of objectives; ``parts`` are what its keys may begin with."""
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
            yield Problem((*path, index), f"{describe(value)} stands there already; remove one of them")
    if part == "train":
        if problem := train_arguments.find_name_problem(name):
            yield Problem(path, problem)
            return
        for index, value in enumerate(values):
            if problem := train_arguments.find_value_problem(name, value):
                yield Problem((*path, index), problem)


def _with_defaults(preference: Preference) -> Preference:
    objective = preference.objective
    if {"objective.kind", "objective.base"} & {key for entry in preference.grid for key in entry}:
        return preference  # each of them has hyper-parameters and defaults of its own
    known = known_hyperparameters(objective.kind, objective.base)
    missing = {name: known[name].default for name in known if getattr(objective, name) is None}
    return preference.model_copy(update={"objective": objective.model_copy(update=missing)})
