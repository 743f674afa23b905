"""Grids: the values that some settings of a training may take, searched an entry at a time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from sinterlm.recipe.schema import GridEntry, Training

Choice = Mapping[str, Any]
"""One value for some keys, e.g. ``{"train.learning_rate": 3e-7}``."""


def list_choices(entry: GridEntry) -> list[Choice]:
    """Every combination of an entry's values, those of its last key changing fastest.

    >>> list_choices({"train.learning_rate": [1e-6], "objective.beta": [0.1, 0.01]})[1]
    {'train.learning_rate': 1e-06, 'objective.beta': 0.01}
    """
    return [dict(zip(entry, values, strict=True)) for values in itertools.product(*entry.values())]


def apply_choice(training: Training, choice: Choice) -> Training:
    """``training`` with the chosen values in place of its own."""
    changed: dict[str, Any] = {}
    for key, value in choice.items():
        part, _, name = key.partition(".")
        settings = changed.get(part, getattr(training, part))
        update = {name: value}
        changed[part] = settings | update if isinstance(settings, dict) else settings.model_copy(update=update)
    return training.model_copy(update=changed)


def count_cells(training: Training) -> int:
    """The number of trainings that a grid asks for; 0 without one."""
    return sum(len(list_choices(entry)) for entry in training.grid)
