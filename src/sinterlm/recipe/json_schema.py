"""The JSON schema of a recipe, with which editors complete and check recipes.

Keys, types, bounds and descriptions come from the settings classes; the tables add what the classes leave open: the
hyper-parameters of each objective, and the training arguments. A recipe that ``extends`` another may leave out any key
and set any key to null, so there is a second, looser form of every mapping.

Only keywords of draft 7 are used: editors support no later draft as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from sinterlm.objectives.named import OBJECTIVES, known_hyperparameters
from sinterlm.objectives.objective import Hyperparameter
from sinterlm.recipe import train_arguments
from sinterlm.recipe.extension import EXTENDS
from sinterlm.recipe.load import NOT_THE_TRAININGS
from sinterlm.recipe.schema import Recipe

JsonSchema = dict[str, Any]

DIALECT = "http://json-schema.org/draft-07/schema#"
_REF = "#/$defs/"
_CHANGES = "changes."
"""The prefix of the looser definitions' names."""
_OBJECTIVE, _TRAIN = "objective", "train"


def recipe_schema() -> JsonSchema:
    """The schema of a recipe, whole or extending another, with the components of installed packages."""
    whole = Recipe.model_json_schema(schema_generator=_Generator, ref_template=f"{_REF}{{model}}")
    unions: dict[str, JsonSchema] = {}
    whole = _plain(whole, unions)
    definitions: dict[str, JsonSchema] = {**whole.pop("$defs"), **unions}
    for definition in definitions.values():
        if _is_training(definition):
            for key in (_OBJECTIVE, _TRAIN):
                about = {name: definition["properties"][key].get(name) for name in ("description", "default")}
                given = {name: value for name, value in about.items() if value is not None}
                definition["properties"][key] = {**given, "$ref": f"{_REF}{key}"}
    definitions |= {_OBJECTIVE: _objective_schema(), _TRAIN: _train_schema(), "recipe": whole}
    changes = {f"{_CHANGES}{name}": _as_changes(schema, definitions) for name, schema in definitions.items()}
    changes[f"{_CHANGES}recipe"]["properties"][EXTENDS] = {
        "type": "string",
        "description": "The recipe that this one changes, relative to this file's folder.",
    }
    used = _find_used({**definitions, **changes}, ["recipe", f"{_CHANGES}recipe"])
    return {
        "$schema": DIALECT,
        "title": "A recipe of Sinter",
        "if": {"required": [EXTENDS]},
        "then": {"$ref": f"{_REF}{_CHANGES}recipe"},
        "else": {"$ref": f"{_REF}recipe"},
        "$defs": {name: schema for name, schema in (definitions | changes).items() if name in used},
    }


def schema_text() -> str:
    """The schema as JSON."""
    return json.dumps(recipe_schema(), indent=1) + "\n"


class _Generator(GenerateJsonSchema):
    """Leaves out titles, which only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


def _plain(schema: Any, unions: dict[str, JsonSchema]) -> Any:
    """``schema`` in draft 7, with descriptions in Markdown; unions of mappings move to ``unions``."""
    if isinstance(schema, list):
        return [_plain(item, unions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _plain(value, unions) for key, value in schema.items()}
    if isinstance(plain.get("description"), str):
        plain["description"] = " ".join(plain["description"].split()).replace("``", "`")
    if not isinstance(picker := plain.pop("discriminator", None), dict):
        return plain
    forms = [own for form in plain.pop("oneOf") for own in form.get("oneOf", [form])]
    name = "-or-".join(form["$ref"].removeprefix(_REF) for form in forms)
    unions[name] = {"required": [picker["propertyName"]], "oneOf": forms}
    return plain | {"$ref": f"{_REF}{name}"}


def _is_training(definition: JsonSchema) -> bool:
    properties: JsonSchema = definition.get("properties", {})
    return {_OBJECTIVE, _TRAIN} <= properties.keys()


def _objective_schema() -> JsonSchema:
    """Every objective, on every base that it can have, with its hyper-parameters, bounds and defaults."""
    return {
        "description": "The loss and its hyper-parameters.",
        "required": ["kind"],
        "oneOf": list(_objective_forms()),
    }


def _objective_forms() -> Iterator[JsonSchema]:
    for name, objective in OBJECTIVES.items():
        base = objective.hyperparameters.get("base")
        for choice in base.choices if base else (None,):
            known = known_hyperparameters(name, choice)
            properties = {key: _hyperparameter_schema(parameter) for key, parameter in known.items()}
            if base:
                properties["base"] |= {"enum": [choice]}
            yield {
                "type": "object",
                "title": name if choice is None else f"{name} with base {choice}",
                "description": objective.description,
                "properties": {"kind": {"const": name}, **properties},
                "required": ["kind", "base"] if base and choice != base.default else ["kind"],
                "additionalProperties": False,
            }


def _hyperparameter_schema(parameter: Hyperparameter) -> JsonSchema:
    bounds = {
        "exclusiveMinimum": parameter.above,
        "minimum": parameter.at_least,
        "maximum": parameter.at_most,
        "exclusiveMaximum": parameter.below,
    }
    accepted: JsonSchema = {"enum": list(parameter.choices)} if parameter.choices else {"type": "number"}
    accepted |= {keyword: bound for keyword, bound in bounds.items() if bound is not None}
    return {"description": parameter.description, "default": parameter.default, **accepted}


def _train_schema() -> JsonSchema:
    arguments = train_arguments.argument_schemas()
    return {
        "type": "object",
        "description": "Names of Transformers' TrainingArguments, and Sinter's own arguments.",
        "properties": {name: schema for name, schema in arguments.items() if name not in NOT_THE_TRAININGS},
        "additionalProperties": False,
    }


def _as_changes(schema: JsonSchema, definitions: Mapping[str, JsonSchema]) -> JsonSchema:
    """What a recipe that extends another may have in place of ``schema``.

    Mappings are merged key by key, so every key may be missing, or null to remove it. Other values are given whole.
    """
    if "$ref" in schema:
        return schema | {"$ref": schema["$ref"].replace(_REF, f"{_REF}{_CHANGES}")}
    if "oneOf" in schema:
        kept = {key: value for key, value in schema.items() if key not in ("oneOf", "required")}
        return kept | _merge_forms([_resolve(form, definitions) for form in schema["oneOf"]], definitions)
    if "anyOf" in schema:
        return schema | {"anyOf": [_as_changes(form, definitions) for form in schema["anyOf"]]}
    if schema.get("type") != "object":
        return schema
    changes = {key: value for key, value in schema.items() if key not in ("required", "minProperties")}
    if "properties" in schema:
        changes["properties"] = {
            key: _or_null(_as_changes(value, definitions)) for key, value in schema["properties"].items()
        }
    if isinstance(schema.get("additionalProperties"), dict):
        changes["additionalProperties"] = _or_null(_as_changes(schema["additionalProperties"], definitions))
    return changes


def _merge_forms(forms: Sequence[JsonSchema], definitions: Mapping[str, JsonSchema]) -> JsonSchema:
    """A mapping with any of the forms' keys: the recipe that is extended may say which form it is."""
    found: dict[str, list[JsonSchema]] = {}
    for form in forms:
        for key, value in form["properties"].items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    properties = {key: values[0] if len(values) == 1 else {"anyOf": values} for key, values in found.items()}
    return _as_changes({"type": "object", "properties": properties, "additionalProperties": False}, definitions)


def _or_null(schema: JsonSchema) -> JsonSchema:
    if {"type": "null"} in schema.get("anyOf", ()):
        return schema
    about = {key: schema[key] for key in ("description", "default") if key in schema}
    return about | {"anyOf": [{key: schema[key] for key in schema if key not in about}, {"type": "null"}]}


def _resolve(schema: JsonSchema, definitions: Mapping[str, JsonSchema]) -> JsonSchema:
    return definitions[schema["$ref"].removeprefix(_REF)] if "$ref" in schema else schema


def _find_used(definitions: Mapping[str, JsonSchema], names: Sequence[str]) -> set[str]:
    """The definitions that are named, and those that they refer to."""
    used: set[str] = set()
    waiting = list(names)
    while waiting:
        if (name := waiting.pop()) not in used:
            used.add(name)
            waiting.extend(_references(definitions[name]))
    return used


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].removeprefix(_REF)
        for value in schema.values():
            yield from _references(value)
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)
