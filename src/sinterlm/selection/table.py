"""Every selection policy by the name that recipes use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sinterlm.records import Role, Selection
from sinterlm.selection.best_of_sources import select_best_of_sources
from sinterlm.selection.fusechat3 import select_fusechat3
from sinterlm.selection.fusepo import select_fusepo
from sinterlm.selection.fusesft import select_fusesft
from sinterlm.selection.on_policy import select_on_policy
from sinterlm.selection.samples import select_fusepo_rloo, select_rloo
from sinterlm.selection.wrpo import select_wrpo


@dataclass(frozen=True, slots=True)
class Policy:
    """A function from candidates to rows; its keyword arguments are the other keys of the recipe's ``select:``."""

    select: Callable[..., Selection]
    roles: tuple[Role, ...]
    """Of the responses of its rows; empty where responses have none."""
    description: str
    formula: str = ""
    """What becomes a row; the table of policies is printed with the words that it uses."""
    paper: str = ""
    optional_roles: Mapping[str, tuple[Role, ...]] = field(default_factory=dict)
    """Roles that are there too when a switch is on, by the switch."""
    gives_weights: bool = False
    """Whether every response of its rows has a weight."""
    compares: bool = True
    """Whether its rows hold better answers and worse ones; SFT's hold good ones only."""
    reads: frozenset[Literal["sources", "target"]] = frozenset({"sources", "target"})
    """Whose answers it looks at."""


_WRPO = "WRPO, arXiv 2412.03187"
_FUSERL = "FuseRL, arXiv 2504.06562"
_OF_SOURCES = frozenset[Literal["sources", "target"]]({"sources"})
_OF_TARGET = frozenset[Literal["sources", "target"]]({"target"})

POLICIES = {
    "best-of-sources": Policy(
        select_best_of_sources,
        ("chosen",),
        "SFT rows: the best-scored answer over all sources, or of those that are named",
        formula="y = argmax over k, i of s(y_ki)",
        paper=_WRPO,
        compares=False,
        reads=_OF_SOURCES,
    ),
    "fusesft": Policy(
        select_fusesft,
        ("chosen",),
        "weighted SFT rows: the best M answers over all sources, or the best of each source",
        formula="T = the M highest s(y_ki); w_y = exp(s(y) / t) / Σ_T exp(s(y') / t)",
        paper=_FUSERL,
        gives_weights=True,
        compares=False,
        reads=_OF_SOURCES,
    ),
    "wrpo": Policy(
        select_wrpo,
        ("chosen_source", "chosen_target", "rejected"),
        "quadruples: prompt, the sources' best answer, the target's own best and worst",
        formula="y_ws = argmax over k, i of s(y_ki); y_wt = argmax, y_l = argmin over j of s(y_j)",
        paper=_WRPO,
        optional_roles={"rejected_source": ("rejected_source",)},
    ),
    "fusepo": Policy(
        select_fusepo,
        ("chosen", "rejected"),
        "weighted pairs: of every source its best answer against its worst",
        formula="for each k: argmax and argmin over i of s(y_ki); w_k ∝ exp(R_k / t), R_k = max over i of s(y_ki)",
        paper=_FUSERL,
        gives_weights=True,
        reads=_OF_SOURCES,
    ),
    "fusepo-rloo": Policy(
        select_fusepo_rloo,
        (),
        "all answers of every source with their scores, weighted over the sources",
        formula="for each k: all y_ki; w_k as for fusepo",
        paper=_FUSERL,
        gives_weights=True,
        reads=_OF_SOURCES,
    ),
    "fusechat3": Policy(
        select_fusechat3,
        ("chosen", "rejected"),
        "pairs: best against worst answer of one source, their scores in a window; by domain where it says so",
        formula="of the k with low ≤ R_k - min over i of s(y_ki) ≤ high that with the highest R_k: argmax and argmin",
        paper="FuseChat-3.0, arXiv 2503.04222",
        reads=_OF_SOURCES,
    ),
    "on-policy": Policy(
        select_on_policy,
        ("chosen", "rejected"),
        "pairs: the target's own best answer against its worst",
        formula="argmax and argmin over j of s(y_j)",
        paper="DPO, arXiv 2305.18290",
        reads=_OF_TARGET,
    ),
    "rloo": Policy(
        select_rloo,
        (),
        "all of the target's own answers with their scores",
        formula="all y_j",
        paper="RLOO, arXiv 2402.14740",
        reads=_OF_TARGET,
    ),
}
