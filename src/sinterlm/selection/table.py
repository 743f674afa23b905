"""Every selection policy by the name that recipes use."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sinterlm.records import Role, Selection
from sinterlm.selection.best_of_sources import select_best_of_sources
from sinterlm.selection.on_policy import select_on_policy
from sinterlm.selection.wrpo import select_wrpo


class Policy(NamedTuple):
    """A function from candidates to rows; its keyword arguments are the other keys of the recipe's ``select:``."""

    select: Callable[..., Selection]
    roles: tuple[Role, ...]
    """Of the responses of its rows."""
    description: str
    gives_weights: bool = False
    """Whether every response of its rows has a weight."""


POLICIES = {
    "best-of-sources": Policy(select_best_of_sources, ("chosen",), "SFT rows: the best-scored answer over all sources"),
    "wrpo": Policy(
        select_wrpo,
        ("chosen_source", "chosen_target", "rejected"),
        "quadruples: prompt, the sources' best answer, the target's own best and worst",
    ),
    "on-policy": Policy(
        select_on_policy, ("chosen", "rejected"), "pairs: the target's own best answer against its worst"
    ),
}
