"""From the margin of a pair to its loss.

Shapes: P pairs. A margin is the difference of two compound rewards before beta.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def logistic(margin: Tensor, *, beta: float, gamma: float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigma(z) - e log sigma(-z) with z = beta m - gamma, and e the label smoothing.

    With e = 0 and gamma = 0 it is the negative log-likelihood of the Bradley-Terry model (DPO, arXiv 2305.18290,
    equation 7). With e > 0, labels are assumed to be wrong with probability e (conservative DPO). Gamma is SimPO's
    target margin (arXiv 2405.14734, equation 6).

    Args:
        margin: (P,).
        beta: The scale of rewards, or strength of the pull to the reference; greater than 0.
        gamma: The target margin, in units of beta times reward.
        label_smoothing: e, in [0, 0.5).

    Returns:
        (P,).
    """
    logits = beta * margin - gamma
    if label_smoothing == 0:
        return -logsigmoid(logits)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def squared(margin: Tensor, *, tau: float) -> Tensor:
    """(m - 1 / (2 tau))^2: the margin should be 1 / (2 tau), not more (IPO, arXiv 2310.12036, equation 17).

    Args:
        margin: (P,).
        tau: Strength of the pull to the reference; greater than 0.

    Returns:
        (P,).
    """
    return (margin - 1 / (2 * tau)) ** 2
