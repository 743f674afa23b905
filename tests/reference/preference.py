"""Every objective in float64 NumPy, written from the papers' equations and from no other code.

x prompt, y response, lp(y) = log pi(y|x) and LR(y) = lp(y) - log ref(y|x), both summed over the |y| tokens of y;
sigma(z) = 1 / (1 + exp(-z)); r(x,y) is a reward model's score. Arrays run over rows, if not said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Answer(NamedTuple):
    """One response of every row, or of a single one: policy, reference, length, and what only single rows have."""

    lp: Array
    ref: Array
    length: Array
    role: str | None = None
    group: str = ""
    score: float = 0.0
    weight: float = 1.0

    @property
    def lr(self) -> Array:
        return self.lp - self.ref

    @property
    def mean_lr(self) -> Array:
        return (self.lp - self.ref) / self.length

    @property
    def mean_lp(self) -> Array:
        return self.lp / self.length


def sigma(z: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -z))


def minus_log_sigma(z: Array) -> Array:
    return np.logaddexp(0.0, -z)


# --- pairs -----------------------------------------------------------------------------------------------------------


def dpo(yw: Answer, yl: Answer, beta: float) -> Array:
    """WRPO paper, equation 3."""
    return minus_log_sigma(beta * yw.lr - beta * yl.lr)


def conservative(z: Array, smoothing: float) -> Array:
    """Labels wrong with probability e: (1 - e) * (-log sigma(z)) + e * (-log sigma(-z))."""
    return (1.0 - smoothing) * minus_log_sigma(z) + smoothing * minus_log_sigma(-z)


def ln_dpo(yw: Answer, yl: Answer, beta: float) -> Array:
    """FuseChat-3.0: -log sigma((beta / |y_w|) LR(y_w) - (beta / |y_l|) LR(y_l))."""
    return minus_log_sigma((beta / yw.length) * yw.lr - (beta / yl.length) * yl.lr)


def ipo(yw: Answer, yl: Answer, tau: float) -> Array:
    """IPO paper, equation 17, with the log-probabilities of whole sequences."""
    return (yw.lr - yl.lr - 1.0 / (2.0 * tau)) ** 2


def ipo_of_means(yw: Answer, yl: Answer, tau: float) -> Array:
    """IPO with log-ratios averaged over tokens."""
    return (yw.mean_lr - yl.mean_lr - 1.0 / (2.0 * tau)) ** 2


def simpo(yw: Answer, yl: Answer, beta: float, gamma: float) -> Array:
    """SimPO paper, equation 6, in the form beta * (difference of means - gamma / beta)."""
    return minus_log_sigma(beta * (yw.mean_lp - yl.mean_lp - gamma / beta))


# --- WRPO ------------------------------------------------------------------------------------------------------------


def wrpo(yws: Answer, ywt: Answer, yl: Answer, beta: float, alpha: float) -> Array:
    """WRPO paper, equation 7: the margins of both chosen answers, each to the one rejected answer."""
    hybrid_margin = beta * yws.lr - beta * yl.lr
    on_policy_margin = beta * ywt.lr - beta * yl.lr
    return minus_log_sigma(alpha * hybrid_margin + (1.0 - alpha) * on_policy_margin)


def wrpo_both_sides(yws: Answer, ywt: Answer, yls: Answer, ylt: Answer, beta: float, alpha: float) -> Array:
    """WRPO paper, equation 9: y_ls is the dispreferred response of the source model that gave y_ws."""
    return minus_log_sigma(alpha * beta * (yws.lr - yls.lr) + (1.0 - alpha) * beta * (ywt.lr - ylt.lr))


def wrpo_ln_dpo(yws: Answer, ywt: Answer, yl: Answer, beta: float, alpha: float) -> Array:
    hybrid_margin, on_policy_margin = yws.mean_lr - yl.mean_lr, ywt.mean_lr - yl.mean_lr
    return minus_log_sigma(beta * (alpha * hybrid_margin + (1.0 - alpha) * on_policy_margin))


def wrpo_simpo(yws: Answer, ywt: Answer, yl: Answer, beta: float, gamma: float, alpha: float) -> Array:
    """-log sigma(beta * [alpha * mean lp(y_ws) + (1 - alpha) * mean lp(y_wt) - mean lp(y_l)] - gamma)."""
    return minus_log_sigma(beta * (alpha * yws.mean_lp + (1.0 - alpha) * ywt.mean_lp - yl.mean_lp) - gamma)


def wrpo_simpo_both_sides(
    yws: Answer, ywt: Answer, yls: Answer, ylt: Answer, beta: float, gamma: float, alpha: float
) -> Array:
    """Equation 9 with SimPO's reward and link."""
    hybrid_margin, on_policy_margin = yws.mean_lp - yls.mean_lp, ywt.mean_lp - ylt.mean_lp
    return minus_log_sigma(beta * (alpha * hybrid_margin + (1.0 - alpha) * on_policy_margin) - gamma)


def wrpo_ipo(yws: Answer, ywt: Answer, yl: Answer, tau: float, alpha: float) -> Array:
    """(alpha * LR(y_ws) + (1 - alpha) * LR(y_wt) - LR(y_l) - 1 / (2 tau))^2."""
    return (alpha * yws.lr + (1.0 - alpha) * ywt.lr - yl.lr - 1.0 / (2.0 * tau)) ** 2


def wrpo_ipo_of_means(yws: Answer, ywt: Answer, yl: Answer, tau: float, alpha: float) -> Array:
    return (alpha * yws.mean_lr + (1.0 - alpha) * ywt.mean_lr - yl.mean_lr - 1.0 / (2.0 * tau)) ** 2


class Gradient(NamedTuple):
    """Derivatives of a row's loss with respect to the log-probabilities of its three answers."""

    ws: Array
    wt: Array
    rejected: Array


def wrpo_gradient(yws: Answer, ywt: Answer, yl: Answer, beta: float, alpha: float) -> Gradient:
    """WRPO paper, equation 8."""
    factor = -beta * sigma(beta * yl.lr - alpha * beta * yws.lr - (1.0 - alpha) * beta * ywt.lr)
    return Gradient(factor * alpha, factor * (1.0 - alpha), -factor)


# --- FuseRL: arrays run over the responses, or the sources, of one row -----------------------------------------------


def softmax_weights(scores: Array, temperature: float) -> Array:
    """exp(r / t) over their sum: of the answers in FuseSFT; of each source's best score in FusePO."""
    powers = np.exp(scores / temperature)
    return np.asarray(powers / powers.sum())


def fusepo(pair_losses: Array, weights: Array) -> float:
    """Sum over the sources k of w_k times the base loss of (y_k+, y_k-)."""
    return float(np.dot(weights, pair_losses))


def fusesft(lp: Array, weights: Array) -> float:
    """- sum over y of w_y log pi(y|x)."""
    return -float(np.dot(weights, lp))


def fusesft_of_means(lp: Array, lengths: Array, weights: Array) -> float:
    """The weighted SFT loss with log-probabilities averaged over tokens."""
    return -float(np.dot(weights, lp / lengths))


def likelihood_step(lp: Sequence[Array], lengths: Sequence[Array], weights: Sequence[Array]) -> float:
    """The loss of a step of FuseSFT rows (SFT with one answer per row), divided by the sum of weight times tokens."""
    total = sum(float(np.dot(w, values)) for w, values in zip(weights, lp, strict=True))
    return -total / sum(float(np.dot(w, length)) for w, length in zip(weights, lengths, strict=True))


def advantages(returns: Array) -> Array:
    """A_i = R_i - (1 / (N - 1)) sum over j != i of R_j."""
    n = len(returns)
    others = np.ones((n, n)) - np.eye(n)
    return returns - others @ returns / (n - 1)


def returns(scores: Array, lr: Array, kl: float) -> Array:
    """R = r - kl * (log pi - log ref), which carries no gradient."""
    return scores - kl * lr


def rloo(lp: Array, advantages: Array) -> float:
    """- mean over i of A_i log pi(y_i|x)."""
    return -float(np.mean(advantages * lp))


def rloo_gradient(advantages: Array) -> Array:
    """- A_i / N: the derivatives of the loss with respect to the log-probabilities."""
    return -advantages / len(advantages)


def fusepo_rloo(lp: Sequence[Array], advantages: Sequence[Array], weights: Array) -> float:
    """- sum over the sources k of w_k (1 / N) sum over i of A_ki log pi(y_ki|x)."""
    return float(np.dot(weights, [rloo(own, a) for own, a in zip(lp, advantages, strict=True)]))


# --- any objective ---------------------------------------------------------------------------------------------------


def row_loss(name: str, settings: Mapping[str, Any], answers: Sequence[Answer]) -> float:
    """The loss of one row, without the row's own weight.

    Args:
        name: Name of the objective.
        settings: Every hyper-parameter, with the current value of ``alpha``.
        answers: All responses of the row, in any order.
    """
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.group, []).append(answer)
    lp, weights = np.array([y.lp for y in answers]), np.array([y.weight for y in answers])
    if name == "sft":
        return -float(answers[0].lp)
    if name == "fusesft" and settings["average_logps"]:
        return fusesft_of_means(lp, np.array([y.length for y in answers]), weights)
    if name == "fusesft":
        return fusesft(lp, weights)
    if name == "fusepo":
        losses = np.array([_pair_loss(settings["base"], settings, pair) for pair in groups.values()])
        return fusepo(losses, np.array([pair[0].weight for pair in groups.values()]))
    if name == "rloo" and settings["baseline"] == "all":
        return rloo(lp, advantages(_returns(answers, settings)))
    if name == "rloo":  # every answer counts the same, whatever the size of its source's pool
        within = {group: advantages(_returns(pool, settings)) for group, pool in groups.items()}
        own = np.concatenate([[y.lp for y in pool] for pool in groups.values()])
        return rloo(own, np.concatenate([within[group] for group in groups]))
    if name == "fusepo-rloo":
        pools = list(groups.values())
        if settings["baseline"] == "source":
            found = [advantages(_returns(pool, settings)) for pool in pools]
        else:
            cuts = np.cumsum([len(pool) for pool in pools])[:-1]
            joined = [answer for pool in pools for answer in pool]
            found = np.split(advantages(_returns(joined, settings)), cuts)
        own_lp = [np.array([y.lp for y in pool]) for pool in pools]
        return fusepo_rloo(own_lp, found, np.array([pool[0].weight for pool in pools]))
    return _pair_loss(name, settings, answers)


def _returns(answers: Sequence[Answer], settings: Mapping[str, Any]) -> Array:
    return returns(np.array([y.score for y in answers]), np.array([y.lr for y in answers]), settings["kl"])


def _pair_loss(name: str, settings: Mapping[str, Any], answers: Sequence[Answer]) -> float:
    return float(_PAIR_LOSSES[name]({str(answer.role): answer for answer in answers}, settings))


def _wrpo(by_role: Mapping[str, Answer], settings: Mapping[str, Any]) -> Array:
    """The loss with the reward and link of the base."""
    yws, ywt, yl = (by_role[role] for role in ("chosen_source", "chosen_target", "rejected"))
    beta, tau, gamma, alpha = (settings.get(key, 0.0) for key in ("beta", "tau", "gamma", "alpha"))
    if settings["rejected_mix"]:
        yls = by_role["rejected_source"]
        if settings["base"] == "simpo":
            return wrpo_simpo_both_sides(yws, ywt, yls, yl, beta, gamma, alpha)
        assert settings["base"] == "dpo"
        return wrpo_both_sides(yws, ywt, yls, yl, beta, alpha)
    if settings["base"] == "simpo":
        return wrpo_simpo(yws, ywt, yl, beta, gamma, alpha)
    if settings["base"] == "ipo":
        return (wrpo_ipo_of_means if settings["average_logps"] else wrpo_ipo)(yws, ywt, yl, tau, alpha)
    return (wrpo_ln_dpo if settings["base"] == "ln-dpo" else wrpo)(yws, ywt, yl, beta, alpha)


_PAIR_LOSSES: Mapping[str, Any] = {
    "dpo": lambda y, settings: dpo(y["chosen"], y["rejected"], settings["beta"]),
    "ln-dpo": lambda y, settings: ln_dpo(y["chosen"], y["rejected"], settings["beta"]),
    "simpo": lambda y, settings: simpo(y["chosen"], y["rejected"], settings["beta"], settings["gamma"]),
    "ipo": lambda y, settings: (ipo_of_means if settings["average_logps"] else ipo)(
        y["chosen"], y["rejected"], settings["tau"]
    ),
    "wrpo": _wrpo,
}
