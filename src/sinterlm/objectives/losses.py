"""From the log-probabilities of a batch to a loss per row: pure functions of tensors.

There are two families. A preference objective compares pairs: reward, mix and link are three independent choices,

    row loss = sum over the row's pairs p of  w_p link(mix(chosen rewards) - mix(rejected rewards))

and weighted maximum likelihood learns from single responses:

    row loss = - sum over the row's responses y of  w_y log pi(y|x)

Each of the last functions in this file (``dpo_loss`` to ``wrpo_loss``) is one such choice. ``named.py`` has the table
of all choices, with their hyper-parameters' defaults and bounds; ``objective_losses`` composes any row of it.
Legend: B rows, N responses, P pairs. LR(y) is the log-ratio of policy and reference, summed over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sinterlm.objectives.links import logistic, squared
from sinterlm.objectives.mixes import CompoundRewards, single, source_and_target
from sinterlm.objectives.named import ResolvedObjective, resolve_objective
from sinterlm.objectives.responses import Responses, SequenceLogps, one_pair_a_row
from sinterlm.objectives.rewards import logratio, mean_logp, mean_logratio, per_token, summed_logratio

Reward = Callable[[SequenceLogps], Tensor]
Mix = Callable[[Mapping[str, Tensor]], CompoundRewards]
Link = Callable[[Tensor], Tensor]
Weighting = Callable[[Responses], Tensor]


class RowLosses(NamedTuple):
    """The losses of a batch."""

    losses: Tensor
    """(B,): one loss per row, without the row's own weight."""
    metrics: Mapping[str, Tensor]
    """(B,) each, by logged name; carry no gradient."""


def pairwise_losses(
    responses: Responses, *, reward: Reward, mix: Mix, link: Link, reward_scale: float = 1.0
) -> RowLosses:
    """Sum over the pairs of each row of w_p * link(mix(chosen rewards) - mix(rejected rewards)).

    Args:
        responses: The log-probabilities and the members of the pairs; the weight of a pair is that of its members.
        reward: From a response's log-probabilities to its reward, before beta.
        mix: From the rewards by role to one compound reward per side.
        link: From margin to loss.
        reward_scale: The factor of logged rewards (beta).

    Returns:
        The losses; metrics are the rewards, margins, accuracies and log-probabilities, averaged over the pairs of a row
        by their weights.
    """
    by_role = {role: responses.logps.at(index) for role, index in responses.members.items()}
    reward_by_role = {role: reward(logps) for role, logps in by_role.items()}
    pair = mix(reward_by_role)
    first = responses.members[next(iter(responses.members))]
    rows = responses.rows[first]
    weights = torch.ones_like(pair.chosen) if responses.weights is None else responses.weights[first]

    def sum_by_row(values: Tensor) -> Tensor:
        return values.new_zeros(responses.num_rows).index_add(0, rows, values)

    losses = sum_by_row(weights * link(pair.chosen - pair.rejected))
    with torch.no_grad():
        # If all pairs of a row have weight 0, its metrics are 0, not 0 / 0.
        total = sum_by_row(weights).clamp(min=torch.finfo(weights.dtype).tiny)
        metrics = {
            name: sum_by_row(weights * values) / total
            for name, values in _pair_metrics(by_role, reward_by_role, pair, reward_scale).items()
        }
    return RowLosses(losses, metrics)


def _pair_metrics(
    by_role: Mapping[str, SequenceLogps],
    reward_by_role: Mapping[str, Tensor],
    pair: CompoundRewards,
    reward_scale: float,
) -> dict[str, Tensor]:
    """The metrics of the pairs under TRL's names, (P,) each; responses that share the chosen side also get their own.

    A response on the chosen side is right if it beats the rejected answer of its own model, or, if the pair has none,
    the rejected answer.
    """
    rejected = reward_scale * pair.rejected.detach()
    chosen_roles = [role for role in by_role if role.startswith("chosen")]
    metrics = {
        "rewards/chosen": reward_scale * pair.chosen.detach(),
        "rewards/rejected": rejected,
        "rewards/margins": reward_scale * (pair.chosen - pair.rejected).detach(),
        "rewards/accuracies": (pair.chosen > pair.rejected).to(rejected.dtype),
        "logps/chosen": _mean_logps(by_role, "chosen"),
        "logps/rejected": _mean_logps(by_role, "rejected"),
    }
    if len(chosen_roles) > 1:
        for role in chosen_roles:
            member = role.removeprefix("chosen_")
            opponent = reward_by_role.get(f"rejected_{member}", reward_by_role["rejected"])
            metrics[f"rewards/{member}_chosen"] = reward_scale * reward_by_role[role].detach()
            metrics[f"rewards/{member}_accuracies"] = (reward_by_role[role] > opponent).to(rejected.dtype)
            metrics[f"logps/{member}_chosen"] = by_role[role].policy.detach()
    return metrics


def _mean_logps(by_role: Mapping[str, SequenceLogps], side: str) -> Tensor:
    """(P,): the policy's log-probability, averaged over the responses of one side."""
    return torch.stack([logps.policy.detach() for role, logps in by_role.items() if role.startswith(side)]).mean(0)


def likelihood_losses(responses: Responses, *, weighting: Weighting, average_logps: bool = False) -> RowLosses:
    """Minus the sum over the responses of each row of w_y * log pi(y|x).

    Args:
        responses: The log-probabilities.
        weighting: From the responses to w_y, (N,).
        average_logps: Use log pi(y|x) / |y| in place of log pi(y|x).

    Returns:
        The losses; metrics are the mean log-probability of a response and, if responses have scores, their mean and the
        size of the weights.
    """
    logps = per_token(responses.logps.policy, responses.logps) if average_logps else responses.logps.policy
    weights = weighting(responses).detach()

    def sum_by_row(values: Tensor) -> Tensor:
        return values.new_zeros(responses.num_rows).index_add(0, responses.rows, values)

    losses = -sum_by_row(weights * logps)
    with torch.no_grad():
        count = sum_by_row(torch.ones_like(logps))
        metrics = {"logps/responses": sum_by_row(responses.logps.policy) / count}
        if responses.scores is not None:
            metrics |= {"scores": sum_by_row(responses.scores) / count, "advantages": sum_by_row(weights.abs())}
    return RowLosses(losses, metrics)


def internal_rewards(objective: ResolvedObjective, logps: SequenceLogps) -> Tensor:
    """The objective's reward of single responses, before beta; the log-ratio if the objective has no reward.

    Args:
        objective: An objective with its hyper-parameters.
        logps: Log-probabilities of policy and reference, and the number of tokens, (N,) each.

    Returns:
        (N,).
    """
    if "reward" not in objective.parts:
        return summed_logratio(logps)
    rewards: Tensor = objective.part("reward")(logps)
    return rewards


def objective_losses(objective: ResolvedObjective, responses: Responses, *, progress: float) -> RowLosses:
    """The losses of any objective of the table.

    Args:
        objective: Name and hyper-parameters, from :func:`sinterlm.objectives.named.resolve_objective`.
        responses: The log-probabilities, and whatever else the objective reads.
        progress: Finished optimizer steps over all optimizer steps, for hyper-parameters with a schedule.
    """
    part = partial(objective.part, progress=progress)
    if "weighting" in objective.parts:
        average_logps = bool(objective.values.get("average_logps"))
        return likelihood_losses(responses, weighting=part("weighting"), average_logps=average_logps)
    return pairwise_losses(
        responses, reward=part("reward"), mix=part("mix"), link=part("link"), reward_scale=objective.reward_scale
    )


def dpo_loss(chosen: SequenceLogps, rejected: SequenceLogps, *, beta: float, label_smoothing: float = 0.0) -> RowLosses:
    """L = -log sigma(beta * LR(y_w) - beta * LR(y_l)) (DPO, arXiv 2305.18290, equation 7; WRPO, equation 3).

    Args:
        chosen: Log-probabilities of y_w: policy and reference, (B,) each.
        rejected: The same for y_l.
        beta: Strength of the pull to the reference.
        label_smoothing: Share of labels assumed to be wrong, in [0, 0.5).

    >>> even = SequenceLogps(policy=torch.tensor([-2.0]), reference=torch.tensor([-2.0]))
    >>> dpo_loss(even, even, beta=0.1).losses  # log 2
    tensor([0.6931])
    """
    responses = one_pair_a_row({"chosen": chosen, "rejected": rejected})
    link = partial(logistic, beta=beta, label_smoothing=label_smoothing)
    return pairwise_losses(responses, reward=summed_logratio, mix=single, link=link, reward_scale=beta)


def ln_dpo_loss(
    chosen: SequenceLogps, rejected: SequenceLogps, *, beta: float, label_smoothing: float = 0.0
) -> RowLosses:
    """L = -log sigma(beta * LR(y_w) / |y_w| - beta * LR(y_l) / |y_l|) (FuseChat-3.0, arXiv 2503.04222).

    Args:
        chosen: Log-probabilities of y_w: policy, reference and number of tokens, (B,) each.
        rejected: The same for y_l.
        beta: Strength of the pull to the reference.
        label_smoothing: Share of labels assumed to be wrong, in [0, 0.5).
    """
    responses = one_pair_a_row({"chosen": chosen, "rejected": rejected})
    link = partial(logistic, beta=beta, label_smoothing=label_smoothing)
    return pairwise_losses(responses, reward=mean_logratio, mix=single, link=link, reward_scale=beta)


def ipo_loss(chosen: SequenceLogps, rejected: SequenceLogps, *, tau: float, average_logps: bool = False) -> RowLosses:
    """L = (LR(y_w) - LR(y_l) - 1 / (2 tau))^2 (IPO, arXiv 2310.12036, equation 17).

    Args:
        chosen: Log-probabilities of y_w: policy, reference and (for means) number of tokens, (B,) each.
        rejected: The same for y_l.
        tau: Strength of the pull to the reference.
        average_logps: Use means over tokens in place of sums, as TRL does.
    """
    responses = one_pair_a_row({"chosen": chosen, "rejected": rejected})
    reward, link = partial(logratio, average_logps=average_logps), partial(squared, tau=tau)
    return pairwise_losses(responses, reward=reward, mix=single, link=link, reward_scale=tau)


def simpo_loss(
    chosen: SequenceLogps, rejected: SequenceLogps, *, beta: float, gamma: float, label_smoothing: float = 0.0
) -> RowLosses:
    """L = -log sigma(beta * log pi(y_w) / |y_w| - beta * log pi(y_l) / |y_l| - gamma) (SimPO, arXiv 2405.14734, eq. 6).

    Args:
        chosen: Log-probabilities of y_w: policy and number of tokens, (B,) each.
        rejected: The same for y_l.
        beta: Scale of the rewards.
        gamma: The target margin.
        label_smoothing: Share of labels assumed to be wrong, in [0, 0.5).
    """
    responses = one_pair_a_row({"chosen": chosen, "rejected": rejected})
    link = partial(logistic, beta=beta, gamma=gamma, label_smoothing=label_smoothing)
    return pairwise_losses(responses, reward=mean_logp, mix=single, link=link, reward_scale=beta)


def wrpo_loss(
    chosen_source: SequenceLogps,
    chosen_target: SequenceLogps,
    rejected: SequenceLogps,
    rejected_source: SequenceLogps | None = None,
    *,
    alpha: float,
    base: str = "dpo",
    **settings: float | bool,
) -> RowLosses:
    """L = -log sigma(alpha beta LR(y_ws) + (1 - alpha) beta LR(y_wt) - beta LR(y_l)) (WRPO, arXiv 2412.03187, eq. 6).

    Args:
        chosen_source: Log-probabilities of y_ws, the sources' best answer: policy and reference, (B,) each.
        chosen_target: The same for y_wt, the target's own best answer.
        rejected: The same for y_l, the target's own worst answer.
        rejected_source: The same for y_ls, a worse answer of the source that gave y_ws; with it, the rejected side is
            mixed too (eq. 9).
        alpha: The current weight of the source's answer, in [0, 1].
        base: The objective whose reward and link are used: ``dpo``, ``ln-dpo``, ``ipo`` or ``simpo``.
        settings: The base's hyper-parameters, e.g. ``beta``; by default the base's defaults.

    Raises:
        TypeError: ``settings`` has a key that the arguments above decide.
    """
    by_role = {"chosen_source": chosen_source, "chosen_target": chosen_target, "rejected": rejected}
    if rejected_source is not None:
        by_role["rejected_source"] = rejected_source
    given = dict(
        base=base, alpha=alpha, alpha_schedule="constant", rejected_mix=rejected_source is not None, **settings
    )
    objective = resolve_objective("wrpo", given)
    reward, link = objective.part("reward"), objective.part("link")  # the base's: LR and the logistic link for DPO
    mix = partial(source_and_target, alpha=alpha, rejected_mix=rejected_source is not None)
    return pairwise_losses(
        one_pair_a_row(by_role), reward=reward, mix=mix, link=link, reward_scale=objective.reward_scale
    )
