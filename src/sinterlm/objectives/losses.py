"""From the log-probabilities of a batch of rows to a loss a row: pure functions of tensors.

A preference loss is three independent choices (reward, mix, link); ``table.py`` names the combinations.
Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sinterlm.objectives import links, mixes, rewards
from sinterlm.objectives.mixes import Pair
from sinterlm.objectives.rewards import SequenceLogps
from sinterlm.objectives.table import ResolvedObjective

Reward = Callable[[SequenceLogps], Tensor]
Mix = Callable[[Mapping[str, Tensor]], Pair]
Link = Callable[[Tensor], Tensor]


class RowLosses(NamedTuple):
    """What an objective says of a batch."""

    losses: Tensor
    """(B,): one loss a row, unweighted."""
    metrics: Mapping[str, Tensor]
    """(B,) each, by logged name; carry no gradient."""


def pairwise_loss(
    responses: Mapping[str, SequenceLogps], *, reward: Reward, mix: Mix, link: Link, reward_scale: float
) -> RowLosses:
    """link(mix(chosen rewards) - mix(rejected rewards)) of every row.

    Args:
        responses: the log-probabilities by role, (B,) each.
        reward: of one response, before beta.
        mix: from the rewards by role to one compound reward a side.
        link: from margin to loss.
        reward_scale: the factor that logged rewards carry (beta).

    Returns:
        The losses; metrics are the rewards, margins, accuracies and log-probabilities.

    Raises:
        ValueError: the responses' shapes differ, which would broadcast to a wrong loss.
    """
    reward_by_role = {role: reward(response) for role, response in responses.items()}
    shapes = {role: tuple(value.shape) for role, value in reward_by_role.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"log-probabilities of shape (B,), the same for every role, were expected; found {shapes}")
    pair = mix(reward_by_role)
    losses = link(pair.chosen - pair.rejected)
    with torch.no_grad():
        metrics = _pair_metrics(responses, reward_by_role, pair, reward_scale)
    return RowLosses(losses, metrics)


def _pair_metrics(
    responses: Mapping[str, SequenceLogps], reward_by_role: Mapping[str, Tensor], pair: Pair, reward_scale: float
) -> dict[str, Tensor]:
    """TRL's names for the pair; where several responses share the chosen side, each of them under its own name too."""
    rejected = reward_scale * pair.rejected.detach()
    chosen_roles = [role for role in responses if role.startswith("chosen")]
    metrics = {
        "rewards/chosen": reward_scale * pair.chosen.detach(),
        "rewards/rejected": rejected,
        "rewards/margins": reward_scale * (pair.chosen - pair.rejected).detach(),
        "rewards/accuracies": (pair.chosen > pair.rejected).float(),
        "logps/chosen": torch.stack([responses[role].policy.detach() for role in chosen_roles]).mean(0),
        "logps/rejected": responses["rejected"].policy.detach(),
    }
    if len(chosen_roles) > 1:
        for role in chosen_roles:
            member = role.removeprefix("chosen_")
            metrics[f"rewards/{member}_chosen"] = reward_scale * reward_by_role[role].detach()
            metrics[f"rewards/{member}_accuracies"] = (reward_by_role[role] > pair.rejected).float()
            metrics[f"logps/{member}_chosen"] = responses[role].policy.detach()
    return metrics


def dpo_loss(chosen: SequenceLogps, rejected: SequenceLogps, *, beta: float, label_smoothing: float = 0.0) -> RowLosses:
    """L = -log sigma(beta * LR(y_w) - beta * LR(y_l)) (DPO, arXiv 2305.18290, equation 7; WRPO, equation 3).

    Args:
        chosen: of y_w, policy and reference, (B,) each.
        rejected: of y_l.
        beta: strength of the pull to the reference.
        label_smoothing: share of labels taken to be wrong, in [0, 0.5).

    >>> even = SequenceLogps(policy=torch.tensor([-2.0]), reference=torch.tensor([-2.0]))
    >>> dpo_loss(even, even, beta=0.1).losses  # log 2
    tensor([0.6931])
    """
    return pairwise_loss(
        {"chosen": chosen, "rejected": rejected},
        reward=rewards.summed_logratio,
        mix=mixes.single,
        link=partial(links.logistic, beta=beta, label_smoothing=label_smoothing),
        reward_scale=beta,
    )


def wrpo_loss(
    chosen_source: SequenceLogps,
    chosen_target: SequenceLogps,
    rejected: SequenceLogps,
    *,
    beta: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> RowLosses:
    """L = -log sigma(alpha beta LR(y_ws) + (1 - alpha) beta LR(y_wt) - beta LR(y_l)) (WRPO, arXiv 2412.03187, eq. 6).

    Args:
        chosen_source: of y_ws, the best answer of the sources, policy and reference, (B,) each.
        chosen_target: of y_wt, the target's own best answer.
        rejected: of y_l, the target's own worst answer.
        beta: strength of the pull to the reference.
        alpha: the weight of the source's answer now, in [0, 1].
        label_smoothing: share of labels taken to be wrong, in [0, 0.5).
    """
    return pairwise_loss(
        {"chosen_source": chosen_source, "chosen_target": chosen_target, "rejected": rejected},
        reward=rewards.summed_logratio,
        mix=partial(mixes.source_and_target, alpha=alpha),
        link=partial(links.logistic, beta=beta, label_smoothing=label_smoothing),
        reward_scale=beta,
    )


def sft_loss(responses: Mapping[str, SequenceLogps]) -> RowLosses:
    """Mean negative log-likelihood of the response's tokens; weighted by the row's tokens it is the token mean.

    Raises:
        ValueError: the number of tokens is not given, or a response has none.
    """
    chosen = responses["chosen"]
    if chosen.num_tokens is None or bool((chosen.num_tokens <= 0).any()):
        raise ValueError("a mean over tokens needs at least one token in every response")
    return RowLosses(-chosen.policy / chosen.num_tokens, {})


def objective_losses(
    objective: ResolvedObjective, responses: Mapping[str, SequenceLogps], *, progress: float
) -> RowLosses:
    """The losses of any objective of the table.

    Args:
        objective: name and hyper-parameters, from :func:`sinterlm.objectives.table.resolve_objective`.
        responses: the log-probabilities by role, (B,) each.
        progress: finished optimizer steps over all optimizer steps, for hyper-parameters with a schedule.
    """
    if objective.pairwise is None:
        return sft_loss(responses)
    reward, mix, link = (cast(Callable[..., Any], resolve_name(path)) for path in objective.pairwise)
    return pairwise_loss(
        responses,
        reward=reward,
        mix=partial(mix, **objective.scheduled_values(progress)),
        link=partial(link, **objective.link_values),
        reward_scale=objective.reward_scale,
    )
