"""A recipe that says only how it differs from another: ``extends: other.yaml`` and the changes.

What the other one says holds, and on top of it the changes, as in a JSON merge patch (RFC 7386): mappings are merged
key by key, ``null`` takes a key away, and any other value (a list too) takes the place of the former.
"""

from __future__ import annotations

from typing import Any

from sinterlm.recipe.yaml_file import Document

EXTENDS = "extends"
"""The key that names the other recipe, relative to the folder of the one that has the key."""


def extend(base: Document, document: Document) -> Document:
    """What ``base`` says, with the changes of ``document``; every part stands where it was said last."""
    changes = {key: value for key, value in document.value.items() if key != EXTENDS}
    return Document(document.name, _merge(base.value, changes), base.places | document.places)


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
