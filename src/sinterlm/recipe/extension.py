"""A recipe that says only how it differs from another: ``extends: other.yaml`` and the changes.

What the other one says holds, and on top of it the changes, as in a JSON merge patch (RFC 7386): mappings are merged
key by key, ``null`` takes a key away, and any other value (a list too) takes the place of the former. Unlike there, a
``null`` that finds nothing to take away is an error: a misspelt source would stay in the recipe unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sinterlm.explain import KeyPath, Problem, unknown_name
from sinterlm.formats.document import Document, refuse

EXTENDS = "extends"
"""The key that names the other recipe, relative to the folder of the one that has the key."""


def extend(base: Document, document: Document) -> Document:
    """What ``base`` says, with the changes of ``document``; every part stands where it was said last.

    Raises:
        InputError: A change takes a key away that ``base`` does not have.
    """
    changes = {key: value for key, value in document.value.items() if key != EXTENDS}
    if lost := list(_find_lost(base.value, changes, ())):
        raise refuse(
            document, [Problem(path, f"{base.name} has no such key to take away: {text}") for path, text in lost]
        )
    # What is wrong at such a place is wrong only with the changes: the base was checked by itself.
    places = {path: f"{place} (extended by {document.name})" for path, place in base.places.items()}
    return Document(document.name, _merge(base.value, changes), places | document.places)


def _find_lost(base: Any, changes: Any, path: KeyPath) -> Iterator[Problem]:
    """Every ``null`` among the changes to a mapping that finds no key there."""
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
