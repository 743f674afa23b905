"""Changes to the values of a file, such as ``KEY=VALUE`` on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sinterlm.errors import InputError
from sinterlm.explain import KeyPath, describe
from sinterlm.formats.document import Document
from sinterlm.formats.yaml_file import parse_value

PLACE = "command line"
"""The place of an override in messages, without its value, which may be long or a secret."""


class Override(NamedTuple):
    """One key and its new value, e.g. ``Override("output", "runs/a #1")``."""

    key: str
    """Dotted, e.g. ``preference.wrpo.objective.alpha``."""
    value: Any
    """As read from a file: text, a number, a list, a dictionary, ..."""


def parse_override(text: str) -> Override:
    """Split ``KEY=VALUE``; the value is read as in a file.

    >>> parse_override("preference.wrpo.train.learning_rate=1e-5").value
    1e-05
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{PLACE}: {text}: expected KEY=VALUE, for example seed=1")
    return Override(key.strip(), parse_value(value, f"{PLACE}: {key.strip()}"))


def apply_overrides(document: Document, overrides: Sequence[str | Override]) -> Document:
    """``document`` with every override set, later ones over earlier ones; missing mappings on the way are created."""
    value, places = document.value, dict(document.places)
    for given in overrides:
        override = parse_override(given) if isinstance(given, str) else given
        path = _resolve_key(value, override.key)
        value = _set_value(value, path, override)
        places = {place: where for place, where in places.items() if place[: len(path)] != path}
        for length in range(1, len(path) + 1):
            places.setdefault(path[:length], PLACE)
    return Document(document.name, value, places)


def _resolve_key(value: Any, key: str) -> KeyPath:
    """Split a dotted key, but not inside a key of the file that has dots itself (``sources.qwen2.5``)."""
    parts, path = key.split("."), []
    while parts:
        known = value if isinstance(value, dict) else {}
        length = next((n for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in known), 1)
        path.append(".".join(parts[:length]))
        value, parts = known.get(path[-1]), parts[length:]
    return tuple(path)


def _set_value(mapping: Any, path: KeyPath, override: Override) -> Mapping[str | int, Any]:
    """A copy of ``mapping`` with the override's value at ``path``."""
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, dict):
        raise InputError(f"{PLACE}: {override.key}: leads into {describe(mapping)}, which has no keys")
    key, *rest = path
    value = _set_value(mapping.get(key), tuple(rest), override) if rest else override.value
    return {**mapping, key: value}
