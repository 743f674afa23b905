"""The recipe that ``sinterlm quickstart`` runs, and the methods that it offers.

A method is the mapping under ``preference.NAME`` of a recipe. The quickstart's recipe has two, and each of the others
is a file in ``recipes/quickstart/methods``.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from sinterlm.errors import InputError
from sinterlm.explain import unknown_name
from sinterlm.formats.yaml_file import read_yaml
from sinterlm.recipe.overrides import Override

_FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "quickstart"


def quickstart_recipe() -> Path:
    """The quickstart's recipe, with the methods that it runs by default."""
    return _FOLDER / "recipe.yaml"


def list_quickstart_methods() -> dict[str, dict[str, Any]]:
    """Every method of the quickstart by name, as in a recipe: those of its own recipe, then the others."""
    own: dict[str, dict[str, Any]] = read_yaml(quickstart_recipe()).value["preference"]
    return own | {path.stem: read_yaml(path).value for path in sorted((_FOLDER / "methods").glob("*.yaml"))}


def choose_quickstart_methods(names: Collection[str]) -> list[Override]:
    """The changes that leave the quickstart's recipe with only these methods; no changes without names.

    The order of the names does not matter. The recipe's SFT is removed if every method has its own.

    Raises:
        InputError: There is no such method.
    """
    if not names:
        return []
    known = list_quickstart_methods()
    for name in names:
        if name not in known:
            raise InputError(f"command line: --method: {unknown_name(name, known, f'method {name!r}')}")
    chosen = {name: method for name, method in known.items() if name in names}
    needs_sft = any("sft" not in method for method in chosen.values())
    return [Override("preference", chosen), *([] if needs_sft else [Override("sft", None)])]
