"""DPO and WRPO in float64 NumPy, written from the papers' equations and from no other code.

x prompt, y response, LR(y) = log pi(y|x) - log ref(y|x), rh(y) = beta * LR(y), sigma(z) = 1 / (1 + exp(-z)).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def sigma(z: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -z))


def bradley_terry_loss(preferred: Array, other: Array) -> Array:
    """WRPO paper, equations 2 and 4: -log sigma(r - r')."""
    return np.logaddexp(0.0, -(preferred - other))


def dpo(lr_w: Array, lr_l: Array, beta: float) -> Array:
    """WRPO paper, equation 3."""
    return bradley_terry_loss(beta * lr_w, beta * lr_l)


def wrpo(lr_ws: Array, lr_wt: Array, lr_l: Array, beta: float, alpha: float) -> Array:
    """WRPO paper, equation 7: two margins, each to the one rejected answer."""
    hybrid_margin = beta * lr_ws - beta * lr_l
    on_policy_margin = beta * lr_wt - beta * lr_l
    return np.logaddexp(0.0, -(alpha * hybrid_margin + (1.0 - alpha) * on_policy_margin))


class Gradient(NamedTuple):
    """Derivatives of a row's loss by the log-probabilities of its three answers."""

    ws: Array
    wt: Array
    rejected: Array


def wrpo_gradient(lr_ws: Array, lr_wt: Array, lr_l: Array, beta: float, alpha: float) -> Gradient:
    """WRPO paper, equation 8."""
    factor = -beta * sigma(beta * lr_l - alpha * beta * lr_ws - (1.0 - alpha) * beta * lr_wt)
    return Gradient(factor * alpha, factor * (1.0 - alpha), -factor)
