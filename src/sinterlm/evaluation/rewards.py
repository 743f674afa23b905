"""Internal reward accuracies: does the policy's own reward rank the chosen answers above the rejected one?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sinterlm.evaluation.rates import Rate, pass_rate


class QuadrupleRewards(NamedTuple):
    """The policy's rewards of one quadruple's three answers."""

    chosen_source: float
    chosen_target: float
    rejected: float


class RewardAccuracies(NamedTuple):
    """Shares of quadruples with Wilson's 95 % interval; equal rewards do not count as correctly ranked."""

    source_chosen: Rate
    """reward(y_ws) > reward(y_l): the hybrid-policy accuracy of arXiv 2412.03187, section 4.4."""
    target_chosen: Rate
    """reward(y_wt) > reward(y_l): the on-policy accuracy."""
    chosen: Rate
    """alpha reward(y_ws) + (1 - alpha) reward(y_wt) > reward(y_l): equation 5's compound reward."""


def reward_accuracies(rewards: Sequence[QuadrupleRewards], *, alpha: float) -> RewardAccuracies:
    """How often the internal reward ranks a quadruple's answers as their scores do.

    Args:
        rewards: Rewards of held-out quadruples, at least one.
        alpha: Weight of the source's answer in the compound reward (0 for methods without one, such as DPO).
    """
    return RewardAccuracies(
        source_chosen=pass_rate(row.chosen_source > row.rejected for row in rewards),
        target_chosen=pass_rate(row.chosen_target > row.rejected for row in rewards),
        chosen=pass_rate(alpha * row.chosen_source + (1 - alpha) * row.chosen_target > row.rejected for row in rewards),
    )
