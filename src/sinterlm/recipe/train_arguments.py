"""Checks the names, types and bounds of ``train:`` against Transformers' TrainingArguments without importing it.

Importing the class imports torch, which takes seconds. The source in the installed package declares every argument with
its type, so it is enough to read that.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from sinterlm.errors import InputError
from sinterlm.explain import found_but_expected, unknown_name
from sinterlm.settings import MAX_SEED
from sinterlm.training.arguments import FusionArguments, choices_in_words

OWNED = {
    "output_dir": "every stage has its own folder in the recipe's output",
    "do_train": "the stages decide what is done",
    "do_eval": "held-out prompts are set under evaluation:",
    "do_predict": "held-out prompts are set under evaluation:",
    "eval_strategy": "training stages have no evaluation data; held-out prompts are set under evaluation:",
    "eval_on_start": "training stages have no evaluation data; held-out prompts are set under evaluation:",
    "load_best_model_at_end": "training stages have no evaluation data to choose by",
    "resume_from_checkpoint": "rerun the command to resume",
    "remove_unused_columns": "rows are records, not columns",
    "label_names": "rows are records, not columns",
    "seed": "the recipe's own `seed` is used",
    "label_smoothing_factor": "it belongs to the objective: objective.label_smoothing",
    "local_rank": "the launcher sets it",
    "parallelism_config": "it is an object, which text cannot give; `accelerate config` can",
    "push_to_hub": "publishing is a step of its own: hf upload NAME FOLDER",
    "hub_token": "secrets do not belong in recipes; set HF_TOKEN in the environment",
}
"""Arguments that Sinter sets itself, and why."""

_AT_MOST: Mapping[str, float] = {"data_seed": MAX_SEED}
_AT_LEAST: Mapping[str, float] = {
    "data_seed": 0,
    "dataloader_num_workers": 0,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "max_grad_norm": 0,
    "max_steps": 1,
    "num_train_epochs": 0,
    "per_device_train_batch_size": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    **{own.name: own.metadata["at_least"] for own in fields(FusionArguments) if "at_least" in own.metadata},
}
"""The smallest values of numbers that Transformers does not check and would fail on later."""

_CHOICES: Mapping[str, tuple[object, ...]] = {
    own.name: own.metadata["choices"] for own in fields(FusionArguments) if "choices" in own.metadata
}

_NOT_GIVEN: Mapping[str, int] = {"max_steps": -1}
"""The value that means that an argument is not given."""


class _Declared(NamedTuple):
    """What an argument accepts; ``is_open`` if the declaration names a type that YAML does not have."""

    types: tuple[type, ...]
    words: str
    is_open: bool


_SIMPLE: Mapping[str, tuple[type, str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "text"),
    "dict": (dict, "a mapping"),
    "list": (list, "a list"),
    "None": (type(None), "null"),
}
_JSON_TYPES: Mapping[type, str] = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "string",
    dict: "object",
    list: "array",
    type(None): "null",
}


def find_problems(arguments: Mapping[str, Any], also_known: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """Name and problem of every argument that is unknown, ill-typed, out of bounds, or not the recipe's to set.

    Args:
        arguments: The arguments by name.
        also_known: Names of other settings that may be given beside them, to guess what an unknown one means.
    """
    for name, value in arguments.items():
        if problem := find_name_problem(name, also_known) or find_value_problem(name, value):
            yield name, problem


def find_name_problem(name: str, also_known: Iterable[str] = ()) -> str | None:
    """Why this argument cannot be set; None if it can. ``also_known`` as in :func:`find_problems`."""
    if name in OWNED:
        return f"not for recipes to set: {OWNED[name]}"
    declared = _declared_arguments()
    if name not in declared:
        return unknown_name(name, {*declared, *also_known} - OWNED.keys(), "training argument")
    return None


def find_value_problem(name: str, value: object) -> str | None:
    """Why the known argument ``name`` does not accept ``value``; None if it does."""
    declared = _declared_arguments()[name]
    choices = _CHOICES.get(name, (value,))
    if not _accepts(declared, value) or value not in choices:
        return found_but_expected(value, choices_in_words(choices) if name in _CHOICES else declared.words)
    if not _is_within_bounds(name, value):
        most = f" and at most {_AT_MOST[name]}" if name in _AT_MOST else ""
        return found_but_expected(value, f"{declared.words}, at least {_AT_LEAST[name]:g}{most}")
    if name == "save_strategy" and value == "best":
        return found_but_expected(value, f"no, steps or epoch ({OWNED['load_best_model_at_end']})")
    return None


def argument_schemas() -> dict[str, dict[str, Any]]:
    """The JSON schema of every argument that a recipe may set, by name; Sinter's own come first."""
    own = {own.name: own for own in fields(FusionArguments)}
    declared = _declared_arguments()
    schemas = {name: _schema_of(name, declared[name]) for name in [*own, *declared] if name not in OWNED}
    for name, argument in own.items():
        about = {"description": argument.metadata["help"], "default": argument.default}
        schemas[name] = {key: value for key, value in about.items() if value is not None} | schemas[name]
    return schemas


def _schema_of(name: str, declared: _Declared) -> dict[str, Any]:
    if name in _CHOICES:
        return {"enum": list(_CHOICES[name])}
    if declared.is_open:
        return {}
    forms = [
        {"type": _JSON_TYPES[kind]} | (_bounds_of(name) if kind in (int, float) else {}) for kind in declared.types
    ]
    if name in _NOT_GIVEN:
        forms.append({"const": _NOT_GIVEN[name]})
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _bounds_of(name: str) -> dict[str, float]:
    bounds = {"minimum": _AT_LEAST.get(name), "maximum": _AT_MOST.get(name)}
    return {keyword: bound for keyword, bound in bounds.items() if bound is not None}


@functools.cache
def _declared_arguments() -> Mapping[str, _Declared]:
    """Every argument by name: TrainingArguments' fields and FusionArguments', which may accept more."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise InputError("the package transformers is not installed; pip install transformers")
    source = Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8")
    body = next(
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    )
    nodes = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    declared = {ast.unparse(node.target): _read_annotation(node.annotation) for node in nodes}
    own = {own.name: _read_annotation(ast.parse(str(own.type), mode="eval").body) for own in fields(FusionArguments)}
    return declared | own


def _read_annotation(annotation: ast.expr) -> _Declared:
    names = [ast.unparse(member).partition("[")[0] for member in _union_members(annotation)]
    simple = [_SIMPLE[name] for name in names if name in _SIMPLE]
    # If text is accepted too, what YAML does not have (an enumeration) is written as text.
    is_open = "str" not in names and any(name not in _SIMPLE for name in names)
    return _Declared(tuple(kind for kind, _ in simple), " or ".join(words for _, words in simple), is_open)


def _union_members(annotation: ast.expr) -> Iterator[ast.expr]:
    if isinstance(annotation, ast.BinOp):
        yield from _union_members(annotation.left)
        yield from _union_members(annotation.right)
    else:
        yield annotation


def _accepts(declared: _Declared, value: object) -> bool:
    if declared.is_open or type(value) in declared.types:
        return True
    return type(value) is int and float in declared.types


def _is_within_bounds(name: str, value: object) -> bool:
    if name not in _AT_LEAST or value == _NOT_GIVEN.get(name) or not isinstance(value, int | float):
        return True
    return _AT_LEAST[name] <= value <= _AT_MOST.get(name, sys.float_info.max)
