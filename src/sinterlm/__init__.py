"""Sinter fuses what several language models know into one small model, by learning from their answers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sinterlm.api import load_run, plan_fusion, run_fusion
    from sinterlm.training.config import FusionConfig
    from sinterlm.training.trainer import FusionTrainer

__all__ = ["FusionConfig", "FusionTrainer", "load_run", "plan_fusion", "run_fusion"]

_MODULES = {
    "FusionConfig": "sinterlm.training.config",
    "FusionTrainer": "sinterlm.training.trainer",
    "load_run": "sinterlm.api",
    "plan_fusion": "sinterlm.api",
    "run_fusion": "sinterlm.api",
}


def __getattr__(name: str) -> object:
    """Load the public names on first use: some need torch, and most commands do not."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
