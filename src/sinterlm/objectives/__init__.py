"""Objectives as pure functions of tensors, and the torch-free table that names them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sinterlm.objectives.losses import (
        RowLosses,
        dpo_loss,
        internal_rewards,
        ipo_loss,
        likelihood_losses,
        ln_dpo_loss,
        objective_losses,
        pairwise_losses,
        simpo_loss,
        wrpo_loss,
    )
    from sinterlm.objectives.named import OBJECTIVES, ResolvedObjective, resolve_objective
    from sinterlm.objectives.objective import Hyperparameter, Objective
    from sinterlm.objectives.responses import Responses, SequenceLogps, one_pair_a_row

__all__ = [
    "OBJECTIVES",
    "Hyperparameter",
    "Objective",
    "ResolvedObjective",
    "Responses",
    "RowLosses",
    "SequenceLogps",
    "dpo_loss",
    "internal_rewards",
    "ipo_loss",
    "likelihood_losses",
    "ln_dpo_loss",
    "objective_losses",
    "one_pair_a_row",
    "pairwise_losses",
    "resolve_objective",
    "simpo_loss",
    "wrpo_loss",
]

_MODULES = {
    "named": ("OBJECTIVES", "ResolvedObjective", "resolve_objective"),
    "objective": ("Hyperparameter", "Objective"),
    "responses": ("Responses", "SequenceLogps", "one_pair_a_row"),
}


def __getattr__(name: str) -> object:
    """Load lazily: the table is read by commands that import no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "losses")
    return getattr(import_module(f"{__name__}.{module}"), name)
