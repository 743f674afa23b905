"""Turns what pydantic finds wrong with a value into messages that a person can act on.

Every message names the dotted key, what was found, what was expected, and the nearest valid name; whoever read the
value adds the file and line.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the root, e.g. ``("sources", "gemma", "model")``."""

_DISCRIMINATORS = ("kind", "engine")
_MAX_SHOWN = 60
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "path_type": "a path",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} of them",
    "string_too_short": "at least {min_length} character",
}
"""Pydantic's kinds of errors, and what was expected instead."""
_TYPES = {str: "text", int: "a whole number", float: "a number", Path: "a path", list: "a list"}


class Problem(NamedTuple):
    """One thing that is wrong, and where."""

    path: KeyPath
    text: str


class Expects(NamedTuple):
    """What a type takes, in words: metadata of an annotation, for every error at its place."""

    words: str


class Fault(NamedTuple):
    """One thing that is wrong with a value, not yet put into a sentence."""

    path: KeyPath
    found: object
    """:data:`MISSING` if there is nothing."""
    expected: str
    """In words; empty if ``said`` says everything."""
    hint: str = ""
    """What may have been meant."""
    said: str = ""
    """What a validator found, in words, with ``{key}`` for the path."""


MISSING = object()


def misfit(found: str, expected: str, path: KeyPath = ()) -> PydanticCustomError:
    """What a validator raises for more than a wrong type.

    Args:
        found: A phrase, in which ``{key}`` becomes the place of the fault.
        expected: What was expected, in words.
        path: The place of the fault below the value that is validated.
    """
    return PydanticCustomError("misfit", "{expected}", {"found": found, "expected": expected, "path": path})


def show_path(path: KeyPath) -> str:
    """``path`` as messages write it, e.g. ``examples[2].answer``."""
    dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return dotted.removeprefix(".")


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Everything that is wrong with a value that should have been a ``model``, in pydantic's order."""
    return [Problem(fault.path, _in_words(fault)) for fault in find_faults(error, model)]


def find_faults(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """As :func:`explain`, for callers with wording of their own."""
    return [_find_fault(details, model) for details in error.errors(include_url=False)]


def _in_words(fault: Fault) -> str:
    if fault.found is MISSING:
        return f"missing, expected {fault.expected}"
    return fault.said or found_but_expected(fault.found, fault.expected) + fault.hint


def found_but_expected(found: object, expected: str) -> str:
    """What was found and what was expected.

    >>> found_but_expected("5", "a whole number")
    "found '5' (text), expected a whole number"
    """
    return f"found {describe(found)}, expected {expected}"


def describe(found: object) -> str:
    """What was found, in words; long values are cut."""
    if found is None:
        return "nothing"
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, dict):
        return "a mapping"
    if isinstance(found, list):
        return "a list"
    shown = repr(found) if len(str(found)) <= _MAX_SHOWN else repr(str(found)[:_MAX_SHOWN]) + "..."
    return f"{shown} (text)" if isinstance(found, str) else shown


def unknown_name(name: str, known: Iterable[str], what: str = "key") -> str:
    """Says that a name is unknown, with the nearest valid one, and all of them if they are few.

    >>> unknown_name("bta", ["alpha", "beta"])
    'unknown key; did you mean beta? (known: alpha, beta)'
    """
    names = sorted(known)
    listing = f" (known: {', '.join(names)})" if 0 < len(names) <= 20 else ""
    return f"unknown {what}{_did_you_mean(name, names)}{listing}"


def _find_fault(details: ErrorDetails, root: type[BaseModel]) -> Fault:
    path, annotation = _locate(root, details["loc"])
    kind, found, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        _, parent = _locate(root, details["loc"][:-1])
        known = [name for model in _models(parent) for name in model.model_fields]
        return Fault(path, found, "", said=unknown_name(str(path[-1]), known))
    if kind == "missing":
        return Fault(path, MISSING, _describe_annotation(annotation))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _find_fault_of_tag(path, found, _models(annotation), context)
    if kind == "expected":
        return Fault(path, found, details["msg"])
    if kind == "misfit":
        return Fault((*path, *context["path"]), found, context["expected"], said=context["found"])
    if words := _expected_words(annotation):
        return Fault(path, found, words)
    if kind in _EXPECTED:
        expected = _EXPECTED[kind].format_map(context)
        hint = "; put it in quotes" if kind == "string_type" and isinstance(found, bool | int | float) else ""
        return Fault(path, found, expected, hint + _did_you_mean(found, _literals(annotation)))
    return Fault(path, found, "", said=f"found {describe(found)}: {details['msg']}")


def _find_fault_of_tag(
    path: KeyPath, found: Any, models: Sequence[type[BaseModel]], context: Mapping[str, Any]
) -> Fault:
    """About the key that picks among several forms of a mapping."""
    discriminator = str(context["discriminator"]).strip("'()")  # a key, or a function named after it
    path = (*path, discriminator)
    tags = list(dict.fromkeys(tag for model in models for tag in _tags(model, [discriminator])))
    one_of = f"one of {', '.join(tags)}"
    if discriminator not in found:
        return Fault(path, MISSING, one_of)
    value = found[discriminator]
    return Fault(path, value, one_of, _did_you_mean(value, tags))


def _locate(root: type[BaseModel], location: Sequence[str | int]) -> tuple[KeyPath, Any]:
    """The keys of a pydantic location, without the marks that it puts between them, and what is declared there."""
    annotation: Any = root
    path: list[str | int] = []
    for element in location:
        if element == "[key]":  # the key of a dictionary entry, not its value
            continue
        models = _models(annotation)
        if len(models) > 1:  # a union: the element is a tag of the form that was picked
            annotation = Union[tuple(model for model in models if element in _tags(model))]  # noqa: UP007
            continue
        path.append(element)
        annotation = _child(annotation, element)
    return tuple(path), annotation


def _child(annotation: Any, key: str | int) -> Any:
    """What is declared for ``key`` of a mapping or list that is declared as ``annotation``."""
    for model in _models(annotation):
        field = next((field for name, field in model.model_fields.items() if key in (name, *_aliases(field))), None)
        return field and Annotated[(field.annotation, *(field.metadata or [None]))]
    return typing.get_args(_members(annotation)[0])[-1]


def _aliases(field: FieldInfo) -> Sequence[object]:
    """The other names by which a field is read."""
    alias = field.validation_alias
    return alias.choices if isinstance(alias, AliasChoices) else [alias]


def _expected_words(annotation: Any) -> str:
    """What the annotation itself, or the first of its alternatives that does, says that it expects."""
    for metadata in getattr(annotation, "__metadata__", ()):
        if isinstance(metadata, Expects):
            return metadata.words
    if typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
        return next(filter(None, map(_expected_words, typing.get_args(annotation))), "")
    return ""


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    return [annotation]


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [member for member in _members(annotation) if isinstance(member, type) and issubclass(member, BaseModel)]


def _tags(model: type[BaseModel], discriminators: Iterable[str] = _DISCRIMINATORS) -> list[str]:
    """The values of the keys by which ``model`` is picked in a union."""
    fields = (model.model_fields[name] for name in discriminators if name in model.model_fields)
    return [str(tag) for field in fields for tag in typing.get_args(field.annotation)]


def _literals(annotation: Any) -> list[str]:
    """The names that an annotation allows, if it names them."""
    literals = (member for member in _members(annotation) if typing.get_origin(member) is Literal)
    return [str(name) for member in literals for name in typing.get_args(member)]


def _describe_annotation(annotation: Any) -> str:
    (member, *_) = _members(annotation)
    return (
        _expected_words(annotation)
        or " or ".join(_literals(member))
        or _TYPES.get(typing.get_origin(member) or member, "a mapping")
    )


def _did_you_mean(found: object, names: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(str(found), names, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
