"""A small validator for JSON schemas of draft 7, with only the keywords that the recipe's schema uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
}
ANNOTATIONS = {"$schema", "$defs", "title", "description", "default", "format"}

Path = tuple[str | int, ...]


def find_faults(value: Any, schema: Any, root: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Where ``value`` violates ``schema``, and which keyword it violates."""
    if isinstance(schema, bool):
        if not schema:
            yield path, "false"
        return
    for keyword, expected in schema.items():
        if keyword == "$ref":
            yield from find_faults(value, root["$defs"][expected.removeprefix("#/$defs/")], root, path)
        elif keyword == "if":
            branch = "else" if list(find_faults(value, expected, root)) else "then"
            yield from find_faults(value, schema.get(branch, True), root, path)
        elif keyword in ("anyOf", "oneOf"):
            faults = [list(find_faults(value, form, root, path)) for form in expected]
            if [] not in faults:
                yield from min(faults, key=lambda found: (-len(found[0][0]), len(found)))  # what was probably meant
            elif keyword == "oneOf" and faults.count([]) > 1:
                yield path, keyword
        elif keyword == "properties":
            for key in (expected.keys() & value.keys()) if isinstance(value, dict) else ():
                yield from find_faults(value[key], expected[key], root, (*path, key))
        elif keyword == "additionalProperties":
            for key in (value.keys() - schema.get("properties", {}).keys()) if isinstance(value, dict) else ():
                yield from find_faults(value[key], expected, root, (*path, key))
        elif keyword == "items":
            for index, item in enumerate(value) if isinstance(value, list) else ():
                yield from find_faults(item, expected, root, (*path, index))
        elif keyword not in {"then", "else", *ANNOTATIONS} and not holds(keyword, expected, value):
            yield path, keyword


def holds(keyword: str, expected: Any, value: Any) -> bool:
    """Whether ``value`` satisfies a keyword that only checks the value itself."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match keyword:
        case "type" if expected in ("number", "integer"):
            return is_number and (expected == "number" or float(value).is_integer())
        case "type":
            return isinstance(value, TYPES[expected])
        case "const":
            return same(value, expected)
        case "enum":
            return any(same(value, choice) for choice in expected)
        case "required":
            return not isinstance(value, dict) or set(expected) <= value.keys()
        case "minimum":
            return not is_number or value >= expected
        case "maximum":
            return not is_number or value <= expected
        case "exclusiveMinimum":
            return not is_number or value > expected
        case "exclusiveMaximum":
            return not is_number or value < expected
        case "minLength":
            return not isinstance(value, str) or len(value) >= expected
        case "minItems":
            return not isinstance(value, list) or len(value) >= expected
        case "minProperties":
            return not isinstance(value, dict) or len(value) >= expected
    raise AssertionError(f"the schema uses {keyword!r}, which is not of draft 7 or not known here")


def same(value: Any, other: Any) -> bool:
    return bool(value == other and isinstance(value, bool) == isinstance(other, bool))
