"""What a recipe can name, from the tables of components."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sinterlm.components import find_packages
from sinterlm.errors import InputError
from sinterlm.formats.row_formats import FORMATS
from sinterlm.objectives.named import OBJECTIVES, known_hyperparameters, resolve_objective
from sinterlm.sampling.engines import ENGINES
from sinterlm.scoring.scorers import SCORERS
from sinterlm.selection.policies import POLICIES

TABLES: Mapping[str, Mapping[str, Any]] = {
    "objectives": OBJECTIVES,
    "policies": POLICIES,
    "scorers": SCORERS,
    "engines": ENGINES,
    "formats": FORMATS,
}
LEGENDS: Mapping[str, str] = {
    "objectives": "log π(y): log-probability of y, summed over its |y| tokens. LR(y): that less the reference's. "
    "r: reward, by the base. s: score. w: weight.",
    "policies": "y_ki: answer i of source k. y_j: answer j of the target. s: score. t: temperature. w: weight.",
}
"""The legend below a list."""


def catalogue(what: str) -> list[dict[str, Any]]:
    """The entries of one table: ``name`` and ``description``; for objectives and policies, all that the table has.

    An entry from an installed package also has ``package``, the package's name.

    Raises:
        InputError: There is no such table.
    """
    if what not in TABLES:
        raise InputError(f"unknown list {what!r}; choose from {', '.join(TABLES)}")
    describe = _DESCRIBE.get(what)
    packages = find_packages(f"sinterlm.{what}")
    return [
        {"name": name, "description": row.description}
        | (describe(name) if describe else {})
        | ({"package": packages[name]} if name in packages else {})
        for name, row in TABLES[what].items()
    ]


def _describe_policy(name: str) -> dict[str, Any]:
    """Formula, source and what its rows hold."""
    policy = POLICIES[name]
    return {
        "formula": policy.formula,
        "paper": policy.paper,
        "reads": sorted(policy.reads),
        "roles": list(policy.roles),
        "optional_roles": {switch: list(roles) for switch, roles in policy.optional_roles.items()},
        "gives_weights": policy.gives_weights,
    }


def _describe_objective(name: str) -> dict[str, Any]:
    """Formula, source, rows and parts; if it has a base, also its parts on every base."""
    objective = OBJECTIVES[name]
    base = objective.hyperparameters.get("base")
    return {
        "formula": objective.formula,
        "paper": objective.paper,
        "roles": list(objective.roles),
        "optional_roles": {switch: list(roles) for switch, roles in objective.optional_roles.items()},
        "per": objective.per,
        "reads_weights": objective.reads_weights,
        "reads_scores": objective.reads_scores,
        "learning_rate": objective.learning_rate,
        **_describe_parts(name),
        "bases": {str(choice): _describe_parts(name, str(choice)) for choice in (base.choices if base else ())},
    }


def _describe_parts(name: str, base: str | None = None) -> dict[str, Any]:
    resolved = resolve_objective(name, {"base": base} if base else {})
    functions = {part: path.rpartition(":")[2] for part, path in resolved.parts.items()}
    return {part: functions.get(part) for part in ("reward", "mix", "link", "weighting")} | {
        "needs_reference": resolved.needs_reference,
        "hyperparameters": {
            key: {
                "default": parameter.default,
                "accepts": parameter.expected,
                "description": parameter.description,
                "source": parameter.source,
            }
            for key, parameter in known_hyperparameters(name, base).items()
        },
    }


_DESCRIBE: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "objectives": _describe_objective,
    "policies": _describe_policy,
}
