"""How the rewards of several responses on one side of a pair become one compound reward.

Shapes: P pairs. A mix takes the rewards by role, each (P,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class CompoundRewards(NamedTuple):
    """What a link compares: the reward of each side of the pairs, (P,) each."""

    chosen: Tensor
    rejected: Tensor


def single(rewards: Mapping[str, Tensor]) -> CompoundRewards:
    """The reward itself, for one response on each side."""
    return CompoundRewards(rewards["chosen"], rewards["rejected"])


def source_and_target(rewards: Mapping[str, Tensor], *, alpha: float, rejected_mix: bool = False) -> CompoundRewards:
    """Reward alpha * r(y_ws) + (1 - alpha) * r(y_wt) against r(y_l) (WRPO, arXiv 2412.03187, equation 5).

    With ``rejected_mix`` the rejected side is alpha * r(y_ls) + (1 - alpha) * r(y_lt) (equation 9). We read the
    paper's appendix F so that alpha is the same on both sides.

    Args:
        rewards: Rewards of ``chosen_source`` (y_ws), ``chosen_target`` (y_wt), ``rejected`` (y_l, y_lt) and, with
            ``rejected_mix``, ``rejected_source`` (y_ls, from the source that gave y_ws).
        alpha: The fusion coefficient, in [0, 1].
        rejected_mix: Whether the rejected side is mixed too.
    """
    chosen = alpha * rewards["chosen_source"] + (1 - alpha) * rewards["chosen_target"]
    rejected = rewards["rejected"]
    if rejected_mix:
        rejected = alpha * rewards["rejected_source"] + (1 - alpha) * rejected
    return CompoundRewards(chosen, rejected)
