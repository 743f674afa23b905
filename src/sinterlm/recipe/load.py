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
from sinterlm.objectives.table import OBJECTIVES, Hyperparameter
from sinterlm.recipe import train_arguments
from sinterlm.recipe.explain import Problem, found_but_expected, refuse, unknown_name, validate
from sinterlm.recipe.overrides import PLACE, Override, apply_overrides, parse_override
from sinterlm.recipe.schema import AskedModel, Objective, Preference, Recipe, Strict
from sinterlm.recipe.yaml_file import Document, KeyPath, dump_yaml, read_yaml
from sinterlm.selection.table import POLICIES


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
    if problems := list(_find_problems(recipe)):
        raise refuse(document, problems)
    return LoadedRecipe(recipe, path)


def resolve_text(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; :func:`load_recipe` reads the same from it in any folder."""
    methods = {
        method: preference.model_copy(update={"objective": _with_defaults(preference.objective)})
        for method, preference in recipe.preference.items()
    }
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


def read_train_settings(objective: str, settings: Sequence[str]) -> TrainSettings:
    """Sort flat ``KEY=VALUE`` settings into the objective's hyper-parameters and training arguments, and check them.

    Raises:
        InputError: a line for every setting that is wrong.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"{PLACE}: {unknown_name(objective, OBJECTIVES, f'objective {objective!r}')}")
    given = [parse_override(setting) for setting in settings]
    values = {override.key: override.value for override in given}
    seed = values.pop("seed", 0)
    known = _hyperparameters(objective, values.get("base"))
    hyperparameters = {key: value for key, value in values.items() if key in known}
    arguments = {key: value for key, value in values.items() if key not in known}
    problems = [
        *([] if type(seed) is int else [Problem(("seed",), found_but_expected(seed, "a whole number"))]),
        *_find_objective_problems((), objective, hyperparameters),
        *_find_train_problems((), arguments, known),
    ]
    if problems:
        raise refuse(Document(PLACE, values, {}), problems)
    return TrainSettings(hyperparameters, arguments, seed)


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
    for method, preference in recipe.preference.items():
        yield from _find_preference_problems(("preference", method), preference)


def _find_preference_problems(path: KeyPath, preference: Preference) -> Iterator[Problem]:
    yield from _find_train_problems((*path, "train"), preference.train)
    kind, policy = preference.objective.kind, preference.select.kind
    if kind not in OBJECTIVES:
        yield Problem((*path, "objective", "kind"), unknown_name(kind, OBJECTIVES, f"objective {kind!r}"))
        return
    given = preference.objective.model_dump(exclude={"kind"}, exclude_none=True)
    yield from _find_objective_problems((*path, "objective"), kind, given)
    needed = OBJECTIVES[kind].roles
    if not set(needed) <= set(POLICIES[policy].roles):
        fitting = [name for name, other in POLICIES.items() if set(needed) <= set(other.roles)]
        yield Problem(
            (*path, "select", "kind"),
            f"rows of {policy!r} hold {', '.join(POLICIES[policy].roles)}, but the objective {kind!r} needs "
            f"{', '.join(needed)}; policies that give them: {', '.join(fitting)}",
        )


def _find_objective_problems(path: KeyPath, kind: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    known = _hyperparameters(kind, given.get("base"))
    for name, value in given.items():
        if name not in known:
            yield Problem((*path, name), unknown_name(name, known, f"hyper-parameter of {kind!r}"))
        elif not known[name].accepts(value):
            yield Problem((*path, name), found_but_expected(value, known[name].expected))


def _find_train_problems(path: KeyPath, given: Mapping[str, Any], also_known: Iterable[str] = ()) -> Iterator[Problem]:
    for name, text in train_arguments.find_problems(given, also_known):
        yield Problem((*path, name), text)


def _hyperparameters(kind: str, base: object) -> Mapping[str, Hyperparameter]:
    """Every hyper-parameter of an objective, those of the base that it stands on included."""
    own = OBJECTIVES[kind].hyperparameters
    if "base" not in own:
        return own
    name = base if own["base"].accepts(base) else own["base"].default
    return {**OBJECTIVES[str(name)].hyperparameters, **own}


def _with_defaults(objective: Objective) -> Objective:
    known = _hyperparameters(objective.kind, objective.base)
    missing = {name: known[name].default for name in known if getattr(objective, name) is None}
    return objective.model_copy(update=missing)
