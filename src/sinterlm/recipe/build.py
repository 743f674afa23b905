"""The only place where configuration meets components: a recipe's mappings in, engines, scorers and policies out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from sinterlm.objectives.named import resolve_objective
from sinterlm.recipe.schema import ObjectiveSettings
from sinterlm.records import Candidates, Selection
from sinterlm.selection.settings import SelectionPolicy


def build_policy(config: SelectionPolicy, *, seed: int, stage: str) -> Callable[[Iterable[Candidates]], Selection]:
    """The selection policy of a ``select:`` mapping, as a function of the candidates alone."""
    return functools.partial(config.select, seed=seed, stage=stage)


def build_hyperparameters(objective: ObjectiveSettings) -> dict[str, Any]:
    """Every hyper-parameter of the objective: what the recipe gives, over the table's defaults."""
    return dict(resolve_objective(objective.kind, objective.given).values)
