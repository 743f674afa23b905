"""Objectives as pure functions of tensors, and the torch-free table that names them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sinterlm.objectives.losses import RowLosses, dpo_loss, objective_losses, sft_loss, wrpo_loss
    from sinterlm.objectives.rewards import SequenceLogps
    from sinterlm.objectives.table import OBJECTIVES, Objective, ResolvedObjective, resolve_objective

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ResolvedObjective",
    "RowLosses",
    "SequenceLogps",
    "dpo_loss",
    "objective_losses",
    "resolve_objective",
    "sft_loss",
    "wrpo_loss",
]

_MODULES = {
    "OBJECTIVES": "table",
    "Objective": "table",
    "ResolvedObjective": "table",
    "resolve_objective": "table",
    "SequenceLogps": "rewards",
    "RowLosses": "losses",
    "dpo_loss": "losses",
    "objective_losses": "losses",
    "sft_loss": "losses",
    "wrpo_loss": "losses",
}


def __getattr__(name: str) -> object:
    """Load lazily: the table is read where torch is not wanted."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
