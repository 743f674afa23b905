"""How the rewards of several responses on one side of a pair become one compound reward.

Shapes: B rows. A mix takes the rewards by role, each (B,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Pair(NamedTuple):
    """The two compound rewards, (B,) each, that a link compares."""

    chosen: Tensor
    rejected: Tensor


def single(rewards: Mapping[str, Tensor]) -> Pair:
    """One response on each side: its reward as it is."""
    return Pair(rewards["chosen"], rewards["rejected"])


def source_and_target(rewards: Mapping[str, Tensor], *, alpha: float) -> Pair:
    """Reward alpha * r(y_ws) + (1 - alpha) * r(y_wt) against r(y_l) (WRPO, arXiv 2412.03187, equation 5).

    Args:
        rewards: of ``chosen_source`` (y_ws), ``chosen_target`` (y_wt) and ``rejected`` (y_l).
        alpha: the fusion coefficient, in [0, 1].
    """
    chosen = alpha * rewards["chosen_source"] + (1 - alpha) * rewards["chosen_target"]
    return Pair(chosen, rewards["rejected"])
