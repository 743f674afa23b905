"""The objectives against hand-derived values, an independent float64 reference, finite differences and algebra."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sinterlm.objectives
from sinterlm.objectives import (
    OBJECTIVES,
    SequenceLogps,
    dpo_loss,
    objective_losses,
    resolve_objective,
    sft_loss,
    wrpo_loss,
)
from sinterlm.objectives.links import logistic
from sinterlm.objectives.rewards import summed_logratio
from sinterlm.objectives.schedules import constant, ramp
from tests.reference import preference
from tests.reference.preference import Array

LN2 = math.log(2)

logps = st.floats(-300, 0)
rows = st.lists(st.tuples(*[logps] * 6), min_size=1, max_size=5)
betas = st.floats(1e-3, 10)
alphas = st.floats(0, 1)


def responses(values: list[tuple[float, ...]]) -> list[SequenceLogps]:
    """Three responses a row in float64, from rows of (policy, reference) three times."""
    columns = torch.tensor(values, dtype=torch.float64).T
    return [SequenceLogps(columns[i], columns[i + 1]) for i in (0, 2, 4)]


def logratios(values: list[tuple[float, ...]]) -> tuple[Array, Array, Array]:
    array = np.array(values)
    return array[:, 0] - array[:, 1], array[:, 2] - array[:, 3], array[:, 4] - array[:, 5]


def close(left: Tensor, right: Tensor, atol: float = 1e-12) -> bool:
    return torch.allclose(left, right, rtol=1e-12, atol=atol)


# --- hand-derived values ---------------------------------------------------------------------------------------------


def test_dpo_hand_derived() -> None:
    """Row 1: LR(y_w) = -10 + 12 = 2, LR(y_l) = -20 + 17 = -3, margin 5, beta 0.2: -log sigma(1) = log(1 + e^-1).

    Row 2: LR(y_w) = -1, LR(y_l) = 4, margin -5: log(1 + e). Row 3: equal log-ratios: log 2.
    """
    chosen = SequenceLogps(torch.tensor([-10.0, -5.0, -7.0]), torch.tensor([-12.0, -4.0, -8.0]))
    rejected = SequenceLogps(torch.tensor([-20.0, -2.0, -1.0]), torch.tensor([-17.0, -6.0, -2.0]))
    outcome = dpo_loss(chosen, rejected, beta=0.2)
    assert outcome.losses.tolist() == pytest.approx([0.3132616875, 1.3132616875, LN2], abs=1e-6)
    assert outcome.metrics["rewards/chosen"].tolist() == pytest.approx([0.4, -0.2, 0.2], abs=1e-6)
    assert outcome.metrics["rewards/rejected"].tolist() == pytest.approx([-0.6, 0.8, 0.2], abs=1e-6)
    assert outcome.metrics["rewards/margins"].tolist() == pytest.approx([1.0, -1.0, 0.0], abs=1e-6)
    assert outcome.metrics["rewards/accuracies"].tolist() == [1, 0, 0]
    assert outcome.metrics["logps/chosen"].tolist() == [-10, -5, -7]
    assert outcome.metrics["logps/rejected"].tolist() == [-20, -2, -1]


def test_wrpo_hand_derived() -> None:
    """LR(y_ws) = 4, LR(y_wt) = 2, LR(y_l) = -1, beta 0.5, alpha 0.25.

    Compound reward 0.5 * (0.25 * 4 + 0.75 * 2) = 1.25, rejected -0.5, margin 1.75: log(1 + e^-1.75) = 0.1602246.
    """
    source = SequenceLogps(torch.tensor([-6.0]), torch.tensor([-10.0]))
    target = SequenceLogps(torch.tensor([-3.0]), torch.tensor([-5.0]))
    rejected = SequenceLogps(torch.tensor([-9.0]), torch.tensor([-8.0]))
    outcome = wrpo_loss(source, target, rejected, beta=0.5, alpha=0.25)
    assert outcome.losses.tolist() == pytest.approx([math.log1p(math.exp(-1.75))], abs=1e-6)
    expected = {
        "rewards/chosen": 1.25,
        "rewards/rejected": -0.5,
        "rewards/margins": 1.75,
        "rewards/accuracies": 1.0,
        "rewards/source_chosen": 2.0,
        "rewards/target_chosen": 1.0,
        "rewards/source_accuracies": 1.0,
        "rewards/target_accuracies": 1.0,
        "logps/chosen": -4.5,
        "logps/rejected": -9.0,
        "logps/source_chosen": -6.0,
        "logps/target_chosen": -3.0,
    }
    assert {name: value.item() for name, value in outcome.metrics.items()} == pytest.approx(expected)


def test_accuracies_compare_row_by_row() -> None:
    """A comparison that broadcasts over the batch would give means, not one verdict a row."""
    even = torch.zeros(2)
    target = SequenceLogps(torch.tensor([1.0, -1.0]), even)
    rejected = SequenceLogps(torch.tensor([0.0, 0.0]), even)
    outcome = wrpo_loss(SequenceLogps(torch.tensor([-1.0, 1.0]), even), target, rejected, beta=1.0, alpha=0.5)
    assert outcome.metrics["rewards/source_accuracies"].tolist() == [0, 1]
    assert outcome.metrics["rewards/target_accuracies"].tolist() == [1, 0]


def test_label_smoothing_hand_derived() -> None:
    """z = 1, e = 0.1: 0.9 log(1 + e^-1) + 0.1 log(1 + e^1) = 0.2819355 + 0.1313262 = 0.4132617."""
    assert logistic(torch.tensor([2.0]), beta=0.5, label_smoothing=0.1).item() == pytest.approx(0.4132617, abs=1e-6)


def test_sft_is_the_mean_over_tokens() -> None:
    """-(-6) / 3 = 2 and -(-1) / 4 = 0.25."""
    chosen = SequenceLogps(torch.tensor([-6.0, -1.0]), num_tokens=torch.tensor([3, 4]))
    assert sft_loss({"chosen": chosen}).losses.tolist() == [2.0, 0.25]


def test_schedules() -> None:
    """Four steps: the first sees 0, the last 3/4 of the end value, which training itself never reaches."""
    assert [ramp(0.1, finished / 4) for finished in range(4)] == pytest.approx([0, 0.025, 0.05, 0.075])
    assert [constant(0.1, finished / 4) for finished in range(4)] == [0.1] * 4


# --- the independent reference, and gradients ------------------------------------------------------------------------


@given(rows, betas, alphas)
def test_agrees_with_the_papers_equations(values: list[tuple[float, ...]], beta: float, alpha: float) -> None:
    source, target, rejected = responses(values)
    lr_ws, lr_wt, lr_l = logratios(values)
    wrpo = wrpo_loss(source, target, rejected, beta=beta, alpha=alpha).losses.numpy()
    np.testing.assert_allclose(wrpo, preference.wrpo(lr_ws, lr_wt, lr_l, beta, alpha), rtol=1e-10, atol=1e-10)
    dpo = dpo_loss(target, rejected, beta=beta).losses.numpy()
    np.testing.assert_allclose(dpo, preference.dpo(lr_wt, lr_l, beta), rtol=1e-10, atol=1e-10)


@given(rows, betas, alphas)
def test_float32_is_within_1e_5(values: list[tuple[float, ...]], beta: float, alpha: float) -> None:
    rounded = [tuple(float(np.float32(value)) for value in row) for row in values]
    columns = torch.tensor(rounded, dtype=torch.float32).T
    single = [SequenceLogps(columns[i], columns[i + 1]) for i in (0, 2, 4)]
    expected = preference.wrpo(*logratios(rounded), beta, alpha)
    np.testing.assert_allclose(wrpo_loss(*single, beta=beta, alpha=alpha).losses, expected, rtol=1e-5, atol=2e-5 * beta)


@given(rows, betas, alphas)
def test_gradient_is_equation_8(values: list[tuple[float, ...]], beta: float, alpha: float) -> None:
    policies = [response.policy.clone().requires_grad_() for response in responses(values)]
    pairs = [SequenceLogps(policy, pair.reference) for policy, pair in zip(policies, responses(values), strict=True)]
    wrpo_loss(*pairs, beta=beta, alpha=alpha).losses.sum().backward()
    expected = preference.wrpo_gradient(*logratios(values), beta, alpha)
    for policy, gradient in zip(policies, expected, strict=True):
        assert policy.grad is not None
        np.testing.assert_allclose(policy.grad.numpy(), gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradients_by_finite_differences(label_smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    policies = tuple(torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    references = torch.randn(3, 4, dtype=torch.float64, generator=generator)

    def wrpo(*policy: Tensor) -> Tensor:
        pairs = [SequenceLogps(values, reference) for values, reference in zip(policy, references, strict=True)]
        return wrpo_loss(*pairs, beta=0.7, alpha=0.3, label_smoothing=label_smoothing).losses

    def dpo(*policy: Tensor) -> Tensor:
        pairs = [SequenceLogps(values, reference) for values, reference in zip(policy, references[:2], strict=True)]
        return dpo_loss(*pairs, beta=0.7, label_smoothing=label_smoothing).losses

    assert torch.autograd.gradcheck(wrpo, policies, eps=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(dpo, policies[:2], eps=1e-6, atol=1e-6)


# --- algebra ---------------------------------------------------------------------------------------------------------


@given(rows, betas)
def test_alpha_0_and_1_are_dpo(values: list[tuple[float, ...]], beta: float) -> None:
    source, target, rejected = responses(values)
    on_target = dpo_loss(target, rejected, beta=beta).losses
    on_source = dpo_loss(source, rejected, beta=beta).losses
    assert close(wrpo_loss(source, target, rejected, beta=beta, alpha=0).losses, on_target)
    assert close(wrpo_loss(source, target, rejected, beta=beta, alpha=1).losses, on_source)


@given(rows, betas, alphas)
def test_equal_chosen_answers_make_alpha_irrelevant(values: list[tuple[float, ...]], beta: float, alpha: float) -> None:
    source, _, rejected = responses(values)
    wrpo = wrpo_loss(source, source, rejected, beta=beta, alpha=alpha).losses
    assert close(wrpo, dpo_loss(source, rejected, beta=beta).losses, atol=1e-9)


@given(rows, betas, alphas)
def test_below_the_mean_of_the_two_dpo_losses(values: list[tuple[float, ...]], beta: float, alpha: float) -> None:
    source, target, rejected = responses(values)
    wrpo = wrpo_loss(source, target, rejected, beta=beta, alpha=alpha).losses
    on_source, on_target = (dpo_loss(chosen, rejected, beta=beta).losses for chosen in (source, target))
    assert bool((wrpo <= alpha * on_source + (1 - alpha) * on_target + 1e-9).all())


@given(rows, betas, st.floats(-50, 50))
def test_a_joint_shift_of_policy_and_reference_changes_nothing(
    values: list[tuple[float, ...]], beta: float, shift: float
) -> None:
    chosen, rejected, _ = responses(values)
    assert chosen.reference is not None
    shifted = SequenceLogps(chosen.policy + shift, chosen.reference + shift)
    before, after = (dpo_loss(pair, rejected, beta=beta).losses for pair in (chosen, shifted))
    assert close(before, after, atol=1e-9)


@given(rows, betas)
def test_swapping_the_pair_costs_the_margin(values: list[tuple[float, ...]], beta: float) -> None:
    """-log sigma(z) + log sigma(-z) = -z."""
    chosen, rejected, _ = responses(values)
    margin = beta * (summed_logratio(chosen) - summed_logratio(rejected))
    difference = dpo_loss(chosen, rejected, beta=beta).losses - dpo_loss(rejected, chosen, beta=beta).losses
    assert close(difference, -margin, atol=1e-9)


@given(st.lists(logps, min_size=1), betas, alphas)
def test_policy_equal_to_reference_is_log_2(values: list[float], beta: float, alpha: float) -> None:
    even = SequenceLogps(torch.tensor(values), torch.tensor(values))
    other = SequenceLogps(even.policy - 3, even.policy - 3)
    for outcome in (dpo_loss(even, other, beta=beta), wrpo_loss(even, other, even, beta=beta, alpha=alpha)):
        assert outcome.losses.tolist() == pytest.approx([LN2] * len(values))


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_large_inputs_stay_finite(size: float, label_smoothing: float) -> None:
    policy = torch.tensor([size], requires_grad=True)
    even = SequenceLogps(torch.zeros(1), torch.zeros(1))
    outcome = wrpo_loss(
        SequenceLogps(policy, torch.zeros(1)), even, even, beta=1.0, alpha=1.0, label_smoothing=label_smoothing
    )
    outcome.losses.sum().backward()
    assert outcome.losses.isfinite().all()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


def test_metrics_carry_no_gradient() -> None:
    policy = torch.zeros(2, requires_grad=True)
    even = SequenceLogps(policy, torch.zeros(2))
    outcome = wrpo_loss(even, even, even, beta=0.1, alpha=0.5)
    assert outcome.losses.requires_grad
    assert not any(value.requires_grad for value in outcome.metrics.values())


@given(rows, st.randoms())
def test_rows_do_not_see_each_other(values: list[tuple[float, ...]], random: Any) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    straight = wrpo_loss(*responses(values), beta=0.1, alpha=0.3).losses
    shuffled = wrpo_loss(*responses([values[index] for index in order]), beta=0.1, alpha=0.3).losses
    assert shuffled.tolist() == [straight[index].item() for index in order]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_shapes_that_would_broadcast_are_refused() -> None:
    flat, column = SequenceLogps(torch.zeros(2), torch.zeros(2)), SequenceLogps(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        dpo_loss(flat, column, beta=0.1)


def test_a_log_ratio_needs_a_reference() -> None:
    alone = SequenceLogps(torch.zeros(2))
    with pytest.raises(ValueError, match="reference"):
        dpo_loss(alone, alone, beta=0.1)


def test_an_empty_response_is_an_error_not_nan() -> None:
    empty = SequenceLogps(torch.zeros(2), num_tokens=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="at least one token"):
        sft_loss({"chosen": empty})


@pytest.mark.parametrize(
    ("name", "given_values", "message"),
    [
        ("dpa", {}, "sft, dpo, wrpo"),
        ("dpo", {"alpha": 0.1}, "'alpha'; it has: beta, label_smoothing"),
        ("sft", {"beta": 0.1}, "it has none"),
        ("wrpo", {"alpha": 1.5}, "at least 0, at most 1"),
        ("wrpo", {"alpha": True}, "a number"),
        ("dpo", {"beta": 0}, "above 0"),
        ("dpo", {"beta": math.inf}, "above 0"),
        ("dpo", {"beta": math.nan}, "above 0"),
        ("dpo", {"label_smoothing": 0.5}, "below 0.5"),
        ("wrpo", {"alpha_schedule": "cosine"}, "constant or ramp"),
        ("wrpo", {"base": "wrpo"}, "expected dpo"),
    ],
)
def test_wrong_settings_are_refused_by_name(name: str, given_values: Mapping[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_objective(name, given_values)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_computes_the_public_functions() -> None:
    """Half-way through a ramp to 0.4, WRPO's alpha is 0.2."""
    source, target, rejected = responses([(-1, -2, -3, -5, -4, -1), (-9, -7, -2, -2, -6, -8)])
    by_role = {"chosen_source": source, "chosen_target": target, "rejected": rejected}
    wrpo = resolve_objective("wrpo", {"alpha": 0.4, "beta": 0.3, "label_smoothing": 0.1})
    expected = wrpo_loss(**by_role, alpha=0.2, beta=0.3, label_smoothing=0.1)
    assert close(objective_losses(wrpo, by_role, progress=0.5).losses, expected.losses)
    dpo = objective_losses(resolve_objective("dpo"), {"chosen": source, "rejected": rejected}, progress=0.5)
    default = OBJECTIVES["dpo"].hyperparameters["beta"].default
    assert close(dpo.losses, dpo_loss(source, rejected, beta=float(default)).losses)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_row_of_the_table_is_whole(name: str) -> None:
    """Defaults are accepted by their own bounds, and the functions are there and take what the table gives them."""
    objective = resolve_objective(name)
    for parameter in objective.objective.hyperparameters.values():
        assert parameter.accepts(parameter.default)
        assert parameter.description
        assert parameter.source
    even = SequenceLogps(torch.zeros(2), torch.zeros(2), torch.ones(2))
    outcome = objective_losses(objective, dict.fromkeys(objective.roles, even), progress=0.5)
    assert outcome.losses.shape == (2,)


def test_the_table_needs_no_torch() -> None:
    code = "import sys, sinterlm, sinterlm.objectives.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_there() -> None:
    assert all(getattr(sinterlm.objectives, name) is not None for name in sinterlm.objectives.__all__)
