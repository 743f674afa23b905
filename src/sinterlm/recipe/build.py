"""What a recipe's mappings come to."""

from __future__ import annotations

from typing import Any

from sinterlm.recipe.schema import ObjectiveSettings


def build_hyperparameters(objective: ObjectiveSettings) -> dict[str, Any]:
    """Every hyper-parameter of the objective: what the recipe gives, over the table's defaults."""
    return dict(objective.resolve().values)
