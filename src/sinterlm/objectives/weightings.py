"""The weight of each response's log-likelihood in maximum likelihood: a probability, or a signed advantage.

Shapes: N responses of B rows. A loss treats its weighting as a constant, without gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinterlm.objectives.responses import Responses, any_known


def given(responses: Responses) -> Tensor:
    """The rows' own weights; 1 if they have none.

    Returns:
        (N,).
    """
    return torch.ones_like(responses.logps.policy) if responses.weights is None else responses.weights


def advantages(responses: Responses, *, baseline: str, kl: float) -> Tensor:
    """A_i / n, with A_i = R_i - mean of the other R_j, over the n responses of the row (RLOO, arXiv 2402.14740).

    R = r - kl * (log pi(y|x) - log ref(y|x)), with r the score.

    Args:
        responses: Responses with scores, and with a reference if ``kl`` is not 0.
        baseline: Which other responses give the mean: ``source``, those of the same group; ``all``, those of the same
            row.
        kl: Weight of the KL term; 0 leaves it out.

    Returns:
        (N,).

    Raises:
        ValueError: Scores are missing, or (found on a CPU only) one is not finite or alone in its pool.
    """
    return _leave_one_out(responses, baseline, kl) / _count(responses.rows)


def weighted_advantages(responses: Responses, *, baseline: str, kl: float) -> Tensor:
    """w_k A_ki / N_k: advantages as above, averaged over the N_k responses of source k, which has weight w_k (FuseRL).

    FuseRL (arXiv 2504.06562) with RLOO, as the reviews of the paper describe it.

    Returns:
        (N,).

    Raises:
        ValueError: Scores are missing, or (found on a CPU only) one is not finite or alone in its pool.
    """
    return given(responses) * _leave_one_out(responses, baseline, kl) / _count(_groups(responses))


def _leave_one_out(responses: Responses, baseline: str, kl: float) -> Tensor:
    if responses.scores is None or any_known(~responses.scores.isfinite()):
        raise ValueError("an advantage needs the score of every response, a finite number")
    returns = responses.scores
    if kl:
        if responses.logps.reference is None:
            raise ValueError("a KL term needs the reference's log-probabilities; found none")
        returns = returns - kl * (responses.logps.policy - responses.logps.reference)
    pools = responses.rows if baseline == "all" else _groups(responses)
    sums, counts = _pool_sum(returns, pools), _count(pools)
    if any_known(counts < 2):
        raise ValueError("an advantage needs at least two responses to compare in every row (of every source)")
    return returns - (sums - returns) / (counts - 1)


def _groups(responses: Responses) -> Tensor:
    return responses.rows if responses.groups is None else responses.groups


def _pool_sum(values: Tensor, pools: Tensor) -> Tensor:
    """(N,): for each response, the sum of the values in its pool."""
    # There are at most as many pools as responses; to know the exact number, the host would wait for the device.
    return values.new_zeros(len(pools)).index_add(0, pools, values)[pools]


def _count(pools: Tensor) -> Tensor:
    """(N,): for each response, the number of responses in its pool."""
    return _pool_sum(torch.ones_like(pools), pools)
