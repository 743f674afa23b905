"""What a recipe can name, from the tables in which the components stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sinterlm.errors import InputError
from sinterlm.objectives.table import OBJECTIVES, resolve_objective
from sinterlm.sampling.table import ENGINES
from sinterlm.scoring.table import SCORERS
from sinterlm.selection.table import POLICIES

TABLES: Mapping[str, Mapping[str, Any]] = {
    "objectives": OBJECTIVES,
    "policies": POLICIES,
    "scorers": SCORERS,
    "engines": ENGINES,
}


def catalogue(what: str) -> list[dict[str, Any]]:
    """The entries of one table: ``name`` and ``description``, objectives with their ``defaults`` too.

    Raises:
        InputError: There is no such table.
    """
    if what not in TABLES:
        raise InputError(f"there is no list of {what!r}; there are: {', '.join(TABLES)}")
    entries = []
    for name, row in TABLES[what].items():
        entry: dict[str, Any] = {"name": name, "description": row.description}
        if what == "objectives":
            entry["defaults"] = dict(resolve_objective(name).values)
        entries.append(entry)
    return entries
