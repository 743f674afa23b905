"""Writes the tables of keys in docs/recipes.md from the docstrings of the settings.

    python scripts/document_keys.py

A table is between ``<!-- keys: NAME -->`` and ``<!-- end of keys -->``. Its name is a path from the recipe: ``*`` is
any name, and ``[KIND]`` or ``[KIND ENGINE]`` picks one form of a mapping; without it the table has the keys of all
forms. Several paths are separated by commas.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sinterlm.recipe.json_schema import recipe_schema

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
HEAD = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
_TABLE = re.compile(r"(<!-- keys: (?P<name>[^\n]*) -->\n).*?(<!-- end of keys -->)", flags=re.DOTALL)

PICKERS = ("kind", "engine")
"""Keys that say which form a mapping has."""

Schema = Mapping[str, Any]


def with_tables(page: str) -> str:
    """The page with every table rewritten."""
    root = recipe_schema()
    headings = set(re.findall(r"^#+ ([a-z_]+)$", page, flags=re.MULTILINE))
    return _TABLE.sub(lambda table: f"{table[1]}{HEAD}{_render(table['name'], root, headings)}{table[3]}", page)


def _render(name: str, root: Schema, headings: Collection[str]) -> str:
    forms: dict[str, Schema] = {}
    for path in name.split(", "):
        for kind, form in _find_forms(path, root):
            place = path.rpartition(".")[2].partition("[")[0]
            forms[place if kind in forms or not kind else kind] = form
    keys = dict.fromkeys(key for form in forms.values() for key in form["properties"])
    rows = ((key, *_describe_key(key, forms, root)) for key in sorted(keys, key=lambda key: key not in PICKERS))
    return "".join(
        f"| `{key}` | {f'[{type_}](#{key})' if type_ in ('mapping', 'list') and key in headings else type_} "
        f"| {default} | {meaning} |\n"
        for key, type_, default, meaning in rows
    )


def _find_forms(path: str, root: Schema) -> list[tuple[str | None, Schema]]:
    """The mappings at a path from the recipe, with the kinds that pick them."""
    schema: Schema = root["$defs"]["recipe"]
    kind = ""
    for step in path.split(".") if path != "recipe" else ():
        mapping = next(form for form in _mappings(schema, root) if not kind or kind == _kind_of(form))
        key, _, kind = step.rstrip("]").partition("[")
        schema = mapping["additionalProperties"] if key == "*" else mapping["properties"][key]
    found = [(_kind_of(form), form) for form in _mappings(schema, root)]
    return [(found_kind, form) for found_kind, form in found if kind in ("", found_kind)]


def _mappings(schema: Schema, root: Schema) -> Iterator[Schema]:
    if "$ref" in schema:
        yield from _mappings(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    for form in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _mappings(form, root)
    if schema.get("type") == "object":
        yield schema


def _kind_of(form: Schema) -> str | None:
    """What picks a form: its kind or engine, or both if it is not the usual form of its kind."""
    consts = {key: form["properties"][key].get("const") for key in PICKERS if key in form["properties"]}
    if len(consts) > 1 and "engine" in form["required"]:
        return " ".join(consts.values())
    return next(iter(consts.values()), None)


def _describe_key(key: str, forms: Mapping[str, Schema], root: Schema) -> tuple[str, str, str]:
    """Type, default and meaning."""
    having = {name: form for name, form in forms.items() if key in form["properties"]}
    schemas = {name: form["properties"][key] for name, form in having.items()}
    first = next(iter(having))
    meanings: dict[str, list[str]] = {}
    for name, schema in schemas.items():
        is_main = key == next((picker for picker in PICKERS if picker in having[name]["properties"]), None)
        meaning = having[name]["description"] if is_main else _find_meaning(schema, root)
        meanings.setdefault(meaning, []).append(f"`{name}`")
    if key in PICKERS:
        consts = dict.fromkeys(f"`{schema['const']}`" for schema in schemas.values())
        type_ = _one_of(list(consts))
        parts = [f"{of[0]}: {_lower(meaning)}" if len(consts) > 1 else meaning for meaning, of in meanings.items()]
        parts = parts[: len(consts)]
    else:
        type_ = _describe_type(schemas[first], root)
        parts = [
            meaning if len(of) == len(forms) else f"For {_one_of(of, 'and')}: {_lower(meaning)}"
            for meaning, of in meanings.items()
        ]
    text = re.sub(r"\b([a-z-]+\.md)\b", r"[\1](\1)", " ".join(parts)).replace("|", "\\|")
    return type_, _describe_default(key, having[first]), text


def _find_meaning(schema: Schema, root: Schema) -> str:
    """A key's description, or that of the mapping that it holds."""
    if "description" in schema:
        return str(schema["description"])
    return next((form["description"] for form in _mappings(schema, root) if "description" in form), "")


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence


def _describe_default(key: str, form: Schema) -> str:
    schema = form["properties"][key]
    if key in form.get("required", ()):
        return "required"
    default = schema.get("default", schema.get("const"))
    if default is None or isinstance(default, dict | list):
        return ", ".join(map(str, default)) if isinstance(default, list) and default else "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _describe_type(schema: Schema, root: Schema) -> str:
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return _one_of([f"`{str(choice).lower() if isinstance(choice, bool) else choice}`" for choice in choices])
    if "anyOf" in schema:
        forms = [form for form in schema["anyOf"] if form != {"type": "null"}]
        return _one_of(list(dict.fromkeys(_describe_type(form, root) for form in forms)))
    match schema.get("format", schema.get("type")):
        case "integer":
            return f"whole number{_describe_bounds(schema)}"
        case "number":
            return f"number{_describe_bounds(schema)}"
        case "array":
            return "list"
        case "boolean":
            return "`true` or `false`"
        case "string":
            return "text"
        case "path":
            return "path"
    return "mapping"


def _describe_bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if high == 2**31 - 1:  # the limit of the libraries' counters, which no value reaches
        high = None
    if low is not None and high is not None:
        return f", {low:.10g} to {high:.10g}"
    words = {"at least": low, "more than": schema.get("exclusiveMinimum"), "at most": high}
    return "".join(f", {name} {bound:g}" for name, bound in words.items() if bound is not None)


def _one_of(words: Sequence[str], conjunction: str = "or") -> str:
    return f" {conjunction} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
