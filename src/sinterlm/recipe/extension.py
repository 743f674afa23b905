"""Recipes that extend another: ``extends: other.yaml`` and the changes.

The changes are merged into the other recipe as in a JSON merge patch (RFC 7386): mappings are merged key by key,
``null`` removes a key, and any other value, even a list, replaces the old one. Unlike there, a ``null`` with nothing to
remove is an error: otherwise a misspelt source would silently stay in the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sinterlm.explain import KeyPath, Problem, unknown_name
from sinterlm.formats.document import Document, refuse

EXTENDS = "extends"
"""The key that names the other recipe, relative to the folder of the one that has the key."""


def extend(base: Document, document: Document) -> Document:
    """``base`` with the changes of ``document``; every part has the place where it was last set.

    Raises:
        InputError: A change removes a key that ``base`` does not have.
    """
    changes = {key: value for key, value in document.value.items() if key != EXTENDS}
    if lost := list(_find_lost(base.value, changes, ())):
        raise refuse(document, [Problem(path, f"{base.name} has no such key to remove: {text}") for path, text in lost])
    # The base was valid by itself, so anything wrong at its places comes from the changes.
    places = {path: f"{place} (extended by {document.name})" for path, place in base.places.items()}
    return Document(document.name, _merge(base.value, changes), places | document.places)


def _find_lost(base: Any, changes: Any, path: KeyPath) -> Iterator[Problem]:
    """Every ``null`` among the changes that has no key to remove."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return
    for key, value in changes.items():
        if value is None and key not in base:
            yield Problem((*path, key), unknown_name(str(key), map(str, base)))
        yield from _find_lost(base.get(key), value, (*path, key))


def _merge(base: Any, changes: Any) -> Any:
    """``base`` with ``changes``.

    >>> _merge({"beta": 0.01, "train": {"bf16": True, "seed": 1}}, {"beta": None, "train": {"seed": 2}})
    {'train': {'bf16': True, 'seed': 2}}
    """
    if not isinstance(changes, dict):
        return changes
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged
