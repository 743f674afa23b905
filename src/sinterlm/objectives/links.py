"""From the margin of a pair to its loss.

Shapes: B rows. A margin is the difference of two compound rewards before beta.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def logistic(margin: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigma(beta m) - e log sigma(-beta m), with e the label smoothing.

    With e = 0 it is the negative log-likelihood of Bradley and Terry (DPO, arXiv 2305.18290, equation 7); with e > 0
    labels are taken to be wrong with probability e (conservative DPO).

    Args:
        margin: (B,).
        beta: strength of the pull to the reference; greater than 0.
        label_smoothing: e, in [0, 0.5).

    Returns:
        (B,).
    """
    logits = beta * margin
    if label_smoothing == 0:
        return -logsigmoid(logits)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
