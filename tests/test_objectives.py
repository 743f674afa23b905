"""The objectives compared with hand-derived values, a float64 reference, finite differences and algebra."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sinterlm.objectives
from sinterlm.objectives import (
    OBJECTIVES,
    ResolvedObjective,
    Responses,
    RowLosses,
    SequenceLogps,
    dpo_loss,
    ipo_loss,
    likelihood_losses,
    ln_dpo_loss,
    objective_losses,
    one_pair_a_row,
    resolve_objective,
    simpo_loss,
    wrpo_loss,
)
from sinterlm.objectives.links import logistic
from sinterlm.objectives.named import known_hyperparameters
from sinterlm.objectives.schedules import constant, ramp
from tests.reference import preference
from tests.reference.preference import Answer

LN2 = math.log(2)
BASES = ("dpo", "ln-dpo", "ipo", "simpo")


class Given(NamedTuple):
    """One response of a batch, with what the objectives read."""

    row: int
    role: str
    policy: float
    reference: float
    num_tokens: int
    group: str = "gemma"
    score: float = 0.0
    weight: float = 1.0

    def answer(self) -> Answer:
        """In the reference's form."""
        lp, ref, length = np.array(self.policy), np.array(self.reference), np.array(float(self.num_tokens))
        return Answer(lp, ref, length, self.role, self.group, self.score, self.weight)


def build(
    responses: Sequence[Given],
    objective: ResolvedObjective,
    *,
    policy: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Responses:
    """The responses in the order given; pairs are numbered by first appearance."""
    rows = sorted({response.row for response in responses})
    groups = list(dict.fromkeys((response.row, response.group) for response in responses))
    per_group = objective.objective.per == "group"
    pairs: dict[Any, dict[str, int]] = {}
    if objective.objective.per != "response":
        for number, response in enumerate(responses):
            key = (response.row, response.group) if per_group else response.row
            pairs.setdefault(key, {})[response.role] = number

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(response, name) for response in responses], dtype=dtype)

    return Responses(
        SequenceLogps(
            column("policy") if policy is None else policy,
            column("reference") if objective.needs_reference else None,
            torch.tensor([response.num_tokens for response in responses]),
        ),
        rows=torch.tensor([rows.index(response.row) for response in responses]),
        num_rows=len(rows),
        members={role: torch.tensor([pair[role] for pair in pairs.values()]) for role in objective.roles if pairs},
        weights=column("weight") if objective.objective.reads_weights else None,
        scores=column("score") if objective.objective.reads_scores else None,
        groups=torch.tensor([groups.index((response.row, response.group)) for response in responses]),
    )


def losses_of(responses: Sequence[Given], objective: ResolvedObjective, **options: Any) -> list[float]:
    losses: list[float] = objective_losses(
        objective, build(responses, objective, **options), progress=0.5
    ).losses.tolist()
    return losses


VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sft": ("sft", {}),
    "fusesft": ("fusesft", {}),
    "fusesft of means": ("fusesft", {"average_logps": True}),
    "dpo": ("dpo", {"beta": 0.3}),
    "ln-dpo": ("ln-dpo", {"beta": 2.0}),
    "ipo": ("ipo", {"tau": 0.2}),
    "ipo of means": ("ipo", {"tau": 0.2, "average_logps": True}),
    "simpo": ("simpo", {"beta": 2.0, "gamma": 0.7}),
    "wrpo": ("wrpo", {"beta": 0.3, "alpha": 0.4}),
    "wrpo, both sides": ("wrpo", {"beta": 0.3, "alpha": 0.4, "rejected_mix": True}),
    "wrpo over ln-dpo": ("wrpo", {"base": "ln-dpo", "beta": 2.0, "alpha": 0.4}),
    "wrpo over ipo": ("wrpo", {"base": "ipo", "tau": 0.2, "alpha": 0.4}),
    "wrpo over ipo of means": ("wrpo", {"base": "ipo", "tau": 0.2, "alpha": 0.4, "average_logps": True}),
    "wrpo over simpo": ("wrpo", {"base": "simpo", "beta": 2.0, "gamma": 0.7, "alpha": 0.4}),
    "wrpo over simpo, both sides": (
        "wrpo",
        {"base": "simpo", "beta": 2.0, "gamma": 0.7, "alpha": 0.4, "rejected_mix": True},
    ),
    "fusepo": ("fusepo", {"beta": 0.3}),
    "fusepo over ln-dpo": ("fusepo", {"base": "ln-dpo", "beta": 2.0}),
    "fusepo over simpo": ("fusepo", {"base": "simpo", "beta": 2.0, "gamma": 0.7}),
    "rloo": ("rloo", {}),
    "rloo with kl": ("rloo", {"kl": 0.3}),
    "rloo within sources": ("rloo", {"baseline": "source", "kl": 0.3}),
    "fusepo-rloo": ("fusepo-rloo", {}),
    "fusepo-rloo with kl": ("fusepo-rloo", {"kl": 0.3}),
    "fusepo-rloo over all": ("fusepo-rloo", {"baseline": "all", "kl": 0.3}),
}
"""Every objective, with every base and both values of every switch."""


@pytest.fixture(scope="module", params=VARIANTS)
def objective(request: pytest.FixtureRequest) -> ResolvedObjective:
    """Each variant in turn; half-way through a ramp, alpha is half of the 2 * alpha given here."""
    name, settings = VARIANTS[request.param]
    if "alpha" in settings:
        settings = {**settings, "alpha": 2 * settings["alpha"], "alpha_schedule": "ramp"}
    return resolve_objective(name, settings)


def settings_of(objective: ResolvedObjective) -> Mapping[str, Any]:
    """The hyper-parameters half-way through the training."""
    return {**objective.values, **objective.scheduled_values(0.5)}


def random_batch(objective: ResolvedObjective, seed: int, *, num_rows: int = 3) -> list[Given]:
    """Rows that ``objective`` reads. All numbers are sums of powers of two, so that float32 holds them exactly."""
    rng = random.Random(seed)

    def response(row: int, role: str, group: str, weight: float) -> Given:
        policy, reference = (-rng.randrange(30 * 64) / 64 for _ in range(2))
        return Given(row, role, policy, reference, rng.randint(1, 40), group, rng.randrange(-128, 128) / 64, weight)

    per = objective.objective.per
    batch = []
    for row in range(num_rows):
        for number in range(1 if per == "row" else rng.randint(1, 4)):
            group, weight = f"source-{number}", rng.randrange(1, 64) / 64
            roles = objective.roles if per != "response" else ("chosen",) * rng.randint(2, 4)
            batch += [response(row, role, group, weight) for role in roles]
    return batch


seeds = st.integers(0, 10**9)


# --- hand-derived values ---------------------------------------------------------------------------------------------


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_hand_derived() -> None:
    """Row 1: LR(y_w) = -10 + 12 = 2, LR(y_l) = -20 + 17 = -3, margin 5, beta 0.2: -log sigma(1) = log(1 + e^-1).

    Row 2: LR(y_w) = -1, LR(y_l) = 4, margin -5: log(1 + e). Row 3: equal log-ratios: log 2.
    """
    chosen = SequenceLogps(column(-10, -5, -7), column(-12, -4, -8))
    rejected = SequenceLogps(column(-20, -2, -1), column(-17, -6, -2))
    outcome = dpo_loss(chosen, rejected, beta=0.2)
    assert outcome.losses.tolist() == pytest.approx([0.3132616875, 1.3132616875, LN2])
    assert outcome.metrics["rewards/chosen"].tolist() == pytest.approx([0.4, -0.2, 0.2])
    assert outcome.metrics["rewards/rejected"].tolist() == pytest.approx([-0.6, 0.8, 0.2])
    assert outcome.metrics["rewards/margins"].tolist() == pytest.approx([1.0, -1.0, 0.0])
    assert outcome.metrics["rewards/accuracies"].tolist() == [1, 0, 0]
    assert outcome.metrics["logps/chosen"].tolist() == [-10, -5, -7]
    assert outcome.metrics["logps/rejected"].tolist() == [-20, -2, -1]


def test_label_smoothing_hand_derived() -> None:
    """z = 1, e = 0.1: 0.9 log(1 + e^-1) + 0.1 log(1 + e^1) = 0.2819355 + 0.1313262 = 0.4132617."""
    assert logistic(column(2.0), beta=0.5, label_smoothing=0.1).item() == pytest.approx(0.4132617, abs=1e-7)


def test_ln_dpo_hand_derived() -> None:
    """LR(y_w) / |y_w| = 2 / 4 = 0.5, LR(y_l) / |y_l| = -3 / 2 = -1.5, beta 0.5: -log sigma(1) = 0.3132617."""
    chosen = SequenceLogps(column(-10), column(-12), torch.tensor([4]))
    rejected = SequenceLogps(column(-20), column(-17), torch.tensor([2]))
    outcome = ln_dpo_loss(chosen, rejected, beta=0.5)
    assert outcome.losses.tolist() == pytest.approx([0.3132616875])
    assert outcome.metrics["rewards/chosen"].tolist() == pytest.approx([0.25])
    assert outcome.metrics["rewards/rejected"].tolist() == pytest.approx([-0.75])


def test_ipo_hand_derived() -> None:
    """Sums: margin 2 + 3 = 5, tau 0.25: (5 - 2)^2 = 9. Means: margin 0.5 + 1.5 = 2: (2 - 2)^2 = 0."""
    chosen = SequenceLogps(column(-10), column(-12), torch.tensor([4]))
    rejected = SequenceLogps(column(-20), column(-17), torch.tensor([2]))
    sums = ipo_loss(chosen, rejected, tau=0.25)
    assert sums.losses.tolist() == [9.0]
    assert sums.metrics["rewards/margins"].tolist() == [0.25 * 5]
    assert ipo_loss(chosen, rejected, tau=0.25, average_logps=True).losses.tolist() == [0.0]


def test_simpo_hand_derived() -> None:
    """Means -10 / 4 = -2.5 and -20 / 5 = -4, beta 2, gamma 1: 2 * 1.5 - 1 = 2: -log sigma(2) = 0.1269280."""
    chosen = SequenceLogps(column(-10), num_tokens=torch.tensor([4]))
    rejected = SequenceLogps(column(-20), num_tokens=torch.tensor([5]))
    outcome = simpo_loss(chosen, rejected, beta=2.0, gamma=1.0)
    assert outcome.losses.tolist() == pytest.approx([0.1269280110])
    assert outcome.metrics["rewards/chosen"].tolist() == [-5.0]
    assert outcome.metrics["rewards/margins"].tolist() == [3.0]


WRPO_ANSWERS = (
    SequenceLogps(column(-6), column(-10), torch.tensor([2])),  # y_ws: LR 4, means 2 and -3
    SequenceLogps(column(-3), column(-5), torch.tensor([1])),  # y_wt: LR 2, means 2 and -3
    SequenceLogps(column(-9), column(-8), torch.tensor([1])),  # y_l: LR -1, means -1 and -9
    SequenceLogps(column(-4), column(-4), torch.tensor([1])),  # y_ls: LR 0
)


def test_wrpo_hand_derived() -> None:
    """LR(y_ws) = 4, LR(y_wt) = 2, LR(y_l) = -1, beta 0.5, alpha 0.25.

    Compound reward 0.5 * (0.25 * 4 + 0.75 * 2) = 1.25, rejected -0.5, margin 1.75: log(1 + e^-1.75) = 0.1602246.
    """
    outcome = wrpo_loss(*WRPO_ANSWERS[:3], beta=0.5, alpha=0.25)
    assert outcome.losses.tolist() == pytest.approx([math.log1p(math.exp(-1.75))])
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


def test_wrpo_with_the_sources_rejected_answer_hand_derived() -> None:
    """Equation 9: 0.5 * [0.25 * (4 - 0) + 0.75 * (2 + 1)] = 1.625: log(1 + e^-1.625)."""
    outcome = wrpo_loss(*WRPO_ANSWERS, beta=0.5, alpha=0.25)
    assert outcome.losses.tolist() == pytest.approx([math.log1p(math.exp(-1.625))])
    assert outcome.metrics["rewards/rejected"].tolist() == pytest.approx([0.5 * 0.75 * -1])
    assert outcome.metrics["logps/rejected"].tolist() == [-6.5]


@pytest.mark.parametrize(
    ("base", "settings", "expected"),
    [
        ("ln-dpo", {"beta": 0.5}, math.log1p(math.exp(-0.5 * 3))),  # 0.25 * 2 + 0.75 * 2 + 1 = 3
        ("ipo", {"tau": 0.25}, (0.25 * 4 + 0.75 * 2 + 1 - 2) ** 2),
        ("ipo", {"tau": 0.25, "average_logps": True}, (3 - 2) ** 2),
        ("simpo", {"beta": 0.5, "gamma": 1.0}, math.log1p(math.exp(-(0.5 * (-3 + 9) - 1)))),
    ],
)
def test_wrpo_over_other_bases_hand_derived(base: str, settings: dict[str, Any], expected: float) -> None:
    losses = wrpo_loss(*WRPO_ANSWERS[:3], alpha=0.25, base=base, **settings).losses
    assert losses.tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("base", "settings", "expected"),
    [
        ("ln-dpo", {"beta": 0.5}, math.log1p(math.exp(-0.5 * 2.75))),  # 0.25 * (2 - 0) + 0.75 * (2 + 1) = 2.75
        ("ipo", {"tau": 0.25}, (0.25 * (4 - 0) + 0.75 * (2 + 1) - 2) ** 2),
        ("ipo", {"tau": 0.25, "average_logps": True}, (2.75 - 2) ** 2),
        # Means -3, -3, -9 and, of y_ls, -4: 0.25 * (-3 + 4) + 0.75 * (-3 + 9) = 4.75.
        ("simpo", {"beta": 0.5, "gamma": 1.0}, math.log1p(math.exp(-(0.5 * 4.75 - 1)))),
    ],
)
def test_equation_9_over_other_bases_hand_derived(base: str, settings: dict[str, Any], expected: float) -> None:
    losses = wrpo_loss(*WRPO_ANSWERS, alpha=0.25, base=base, **settings).losses
    assert losses.tolist() == pytest.approx([expected])


def test_accuracies_compare_row_by_row_and_model_by_model() -> None:
    """A comparison that broadcasts over the batch would give means, not one verdict per row.

    With equation 9 a source's answer is compared with the same source's, a target's with the target's.
    """
    even = torch.zeros(2)
    source, target = (SequenceLogps(torch.tensor(values), even) for values in ([-1.0, 1.0], [1.0, -1.0]))
    rejected = SequenceLogps(torch.tensor([0.0, 0.0]), even)
    outcome = wrpo_loss(source, target, rejected, beta=1.0, alpha=0.5)
    assert outcome.metrics["rewards/source_accuracies"].tolist() == [0, 1]
    assert outcome.metrics["rewards/target_accuracies"].tolist() == [1, 0]
    rejected_source = SequenceLogps(torch.tensor([-2.0, 2.0]), even)
    outcome = wrpo_loss(source, target, rejected, rejected_source, beta=1.0, alpha=0.5)
    assert outcome.metrics["rewards/source_accuracies"].tolist() == [1, 0]
    assert outcome.metrics["rewards/target_accuracies"].tolist() == [1, 0]


def test_fusepo_hand_derived() -> None:
    """Margins 1 and -1 with weights 0.75 and 0.25, beta 1: 0.75 log(1 + e^-1) + 0.25 log(1 + e) = 0.5632617.

    Logged rewards are means by weight: chosen 0.75 * 1 + 0.25 * 0, rejected 0.25 * 1; accuracy 0.75.
    """
    fusepo = resolve_objective("fusepo", {"beta": 1.0})
    batch = [
        Given(0, "chosen", -1, -2, 1, "gemma", weight=0.75),
        Given(0, "rejected", -2, -2, 1, "gemma", weight=0.75),
        Given(0, "chosen", -2, -2, 1, "qwen", weight=0.25),
        Given(0, "rejected", -1, -2, 1, "qwen", weight=0.25),
    ]
    outcome = objective_losses(fusepo, build(batch, fusepo), progress=0.0)
    assert outcome.losses.tolist() == pytest.approx([0.5632616875])
    logged = {name: value.item() for name, value in outcome.metrics.items() if name.startswith("rewards/")}
    assert logged == pytest.approx(
        {"rewards/chosen": 0.75, "rewards/rejected": 0.25, "rewards/margins": 0.5, "rewards/accuracies": 0.75}
    )


def test_sft_and_fusesft_hand_derived() -> None:
    """Sums: 0.75 * 6 + 0.25 * 2 = 5; means over 3 and 4 tokens: 0.75 * 2 + 0.25 * 0.5 = 1.625. SFT: the sum alone."""
    batch = [Given(0, "chosen", -6, 0, 3, weight=0.75), Given(0, "chosen", -2, 0, 4, weight=0.25)]
    assert losses_of(batch, resolve_objective("fusesft")) == [5.0]
    assert losses_of(batch, resolve_objective("fusesft", {"average_logps": True})) == [1.625]
    outcome = objective_losses(resolve_objective("sft"), build(batch[:1], resolve_objective("sft")), progress=0.0)
    assert outcome.losses.tolist() == [6.0]
    assert outcome.metrics["logps/responses"].tolist() == [-6.0]


RLOO_BATCH = [
    Given(0, "chosen", -1, -1, 1, "gemma", score=1.0, weight=0.75),
    Given(0, "chosen", -2, -2, 1, "gemma", score=0.0, weight=0.75),
    Given(0, "chosen", -3, -3, 1, "qwen", score=5.0, weight=0.25),
    Given(0, "chosen", -4, -4, 1, "qwen", score=3.0, weight=0.25),
]


@pytest.mark.parametrize(
    ("name", "baseline", "expected"),
    [
        ("rloo", "source", (1 * 1 - 1 * 2 + 2 * 3 - 2 * 4) / 4),
        ("rloo", "all", (-5 / 3 * 1 - 3 * 2 + 11 / 3 * 3 + 1 * 4) / 4),
        ("fusepo-rloo", "source", 0.75 * (1 - 2) / 2 + 0.25 * 2 * (3 - 4) / 2),
        ("fusepo-rloo", "all", 0.75 * (-5 / 3 * 1 - 3 * 2) / 2 + 0.25 * (11 / 3 * 3 + 1 * 4) / 2),
    ],
)
def test_rloo_hand_derived(name: str, baseline: str, expected: float) -> None:
    """Within the sources: scores 1, 0 give A = 1, -1, and 5, 3 give 2, -2. Of all four:

    A = 1 - 8/3 = -5/3, 0 - 9/3 = -3, 5 - 4/3 = 11/3, 3 - 6/3 = 1. With log pi = -1, -2, -3, -4, -A log pi sums to
    1 - 2 + 6 - 8 and -5/3 - 6 + 11 + 4.
    """
    assert losses_of(RLOO_BATCH, resolve_objective(name, {"baseline": baseline})) == pytest.approx([expected])


def test_the_kl_term_hand_derived() -> None:
    """kl 0.5, log-ratios 2 and 0: R = 1 - 1 = 0 and 0, so the advantages 1, -1 become 0."""
    batch = [Given(0, "chosen", -1, -3, 1, score=1.0), Given(0, "chosen", -2, -2, 1, score=0.0)]
    assert losses_of(batch, resolve_objective("rloo", {"kl": 0.5})) == [0.0]
    assert losses_of(batch, resolve_objective("rloo")) == [(1 * 1 - 1 * 2) / 2]


def test_schedules() -> None:
    """Four steps: the first sees 0, the last 3/4 of the end value, which training itself never reaches."""
    assert [ramp(0.1, finished / 4) for finished in range(4)] == pytest.approx([0, 0.025, 0.05, 0.075])
    assert [constant(0.1, finished / 4) for finished in range(4)] == [0.1] * 4


# --- the independent reference, and gradients ------------------------------------------------------------------------


@given(seed=seeds)
def test_agrees_with_the_reference(objective: ResolvedObjective, seed: int) -> None:
    batch = random_batch(objective, seed)
    expected = [
        preference.row_loss(
            objective.name, settings_of(objective), [response.answer() for response in batch if response.row == row]
        )
        for row in range(3)
    ]
    assert losses_of(batch, objective) == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert losses_of(batch, objective, dtype=torch.float32) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(seed=seeds, smoothing=st.floats(0, 0.49))
def test_label_smoothing_agrees_with_the_reference(seed: int, smoothing: float) -> None:
    dpo = resolve_objective("dpo", {"beta": 0.3, "label_smoothing": smoothing})
    chosen, rejected = random_batch(dpo, seed, num_rows=1)
    margin = 0.3 * (chosen.answer().lr - rejected.answer().lr)
    assert losses_of([chosen, rejected], dpo) == pytest.approx([float(preference.conservative(margin, smoothing))])


@given(seed=seeds, beta=st.floats(1e-3, 10), alpha=st.floats(0, 1))
def test_wrpos_gradient_is_equation_8(seed: int, beta: float, alpha: float) -> None:
    wrpo = resolve_objective("wrpo", {"beta": beta, "alpha": alpha, "alpha_schedule": "constant"})
    batch = random_batch(wrpo, seed, num_rows=1)
    source, target, rejected = (response.answer() for response in batch)
    gradient = preference.wrpo_gradient(source, target, rejected, beta, alpha)
    assert gradient_of(batch, wrpo).tolist() == pytest.approx([float(value) for value in gradient], rel=1e-9)


@given(seed=seeds, kl=st.sampled_from([0.0, 0.3]))
def test_rloos_gradient_is_the_advantage(seed: int, kl: float) -> None:
    """The KL term in the reward carries no gradient either."""
    rloo = resolve_objective("rloo", {"kl": kl})
    batch = random_batch(rloo, seed, num_rows=1)
    scores, logratios = np.array([(y.score, y.policy - y.reference) for y in batch]).T
    expected = preference.rloo_gradient(preference.advantages(preference.returns(scores, logratios, kl)))
    assert gradient_of(batch, rloo).tolist() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


def gradient_of(batch: Sequence[Given], objective: ResolvedObjective) -> Tensor:
    policy = column(*(response.policy for response in batch)).requires_grad_()
    losses = objective_losses(objective, build(batch, objective, policy=policy), progress=0.5).losses
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    return gradient


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradients_by_finite_differences(objective: ResolvedObjective, label_smoothing: float) -> None:
    """Advantages are held fixed: their KL term is not differentiated."""
    values = {**objective.values, **({"label_smoothing": label_smoothing} if "beta" in objective.values else {})}
    smoothed = replace(objective, values=values)
    batch = random_batch(smoothed, 1)
    fixed = build(batch, smoothed)

    def losses(policy: Tensor) -> Tensor:
        moved = build(batch, smoothed, policy=policy)
        if "weighting" not in smoothed.parts:
            return objective_losses(smoothed, moved, progress=0.5).losses
        weights = resolve_name(smoothed.parts["weighting"])(fixed, **smoothed.settings_of("weighting", 0.5))
        average = bool(smoothed.values.get("average_logps"))
        return likelihood_losses(moved, weighting=lambda _: weights, average_logps=average).losses

    policy = fixed.logps.policy.clone().requires_grad_()
    assert torch.autograd.gradcheck(losses, (policy,), eps=1e-6, atol=1e-6)
    (expected,) = torch.autograd.grad(losses(policy).sum(), policy)
    assert torch.allclose(gradient_of(batch, smoothed), expected, rtol=1e-12)


# --- algebra of every objective --------------------------------------------------------------------------------------


@given(seed=seeds)
def test_order_does_not_matter(objective: ResolvedObjective, seed: int) -> None:
    """Not the order of a row's responses, nor of its pairs and groups, nor of the rows."""
    batch = random_batch(objective, seed)
    shuffled = random.Random(seed).sample(batch, len(batch))
    straight = objective_losses(objective, build(batch, objective), progress=0.5)
    other = objective_losses(objective, build(shuffled, objective), progress=0.5)
    assert torch.allclose(straight.losses, other.losses, rtol=1e-10, atol=1e-10)
    assert straight.metrics.keys() == other.metrics.keys()
    assert all(torch.allclose(straight.metrics[name], other.metrics[name]) for name in straight.metrics)


@given(seed=seeds)
def test_rows_do_not_see_each_other(objective: ResolvedObjective, seed: int) -> None:
    batch = random_batch(objective, seed)
    alone = [losses_of([response for response in batch if response.row == row], objective)[0] for row in range(3)]
    assert losses_of(batch, objective) == pytest.approx(alone, rel=1e-12, abs=1e-12)


def test_metrics_carry_no_gradient(objective: ResolvedObjective) -> None:
    batch = random_batch(objective, 0)
    policy = column(*(response.policy for response in batch)).requires_grad_()
    outcome = objective_losses(objective, build(batch, objective, policy=policy), progress=0.5)
    assert outcome.losses.requires_grad
    assert outcome.metrics
    assert not any(value.requires_grad for value in outcome.metrics.values())
    assert {tuple(value.shape) for value in outcome.metrics.values()} == {(3,)}


def test_no_value_is_read_from_a_device(objective: ResolvedObjective) -> None:
    """Without values in the tensors, reading one is an error; on a GPU the host would wait for it."""
    responses = send_to_device(build(random_batch(objective, 0), objective), "meta")
    outcome = objective_losses(objective, responses, progress=0.5)
    assert (outcome.losses.device.type, outcome.losses.shape) == ("meta", (3,))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_inputs_stay_finite(objective: ResolvedObjective, size: float) -> None:
    batch = random_batch(objective, 0)
    policy = torch.full([len(batch)], size) * torch.tensor([1.0, -1.0]).repeat(len(batch))[: len(batch)]
    policy.requires_grad_()
    responses = build(batch, objective, policy=policy, dtype=torch.float32)
    outcome = objective_losses(objective, responses, progress=0.5)
    outcome.losses.sum().backward()
    assert outcome.losses.isfinite().all()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


def test_a_row_whose_pairs_weigh_nothing_has_no_loss() -> None:
    """Weights that underflow do not become 0 / 0 in the metrics."""
    fusepo = resolve_objective("fusepo")
    batch = [response._replace(weight=0.0) for response in random_batch(fusepo, 0)]
    outcome = objective_losses(fusepo, build(batch, fusepo), progress=0.0)
    assert outcome.losses.tolist() == [0, 0, 0]
    assert all(value.isfinite().all() for value in outcome.metrics.values())


# --- algebra of pairs ------------------------------------------------------------------------------------------------

answers = st.tuples(st.floats(-300, 0), st.floats(-300, 0), st.integers(1, 50))
quadruples = st.lists(st.tuples(answers, answers, answers), min_size=1, max_size=5)
PAIR_LOSSES: Mapping[str, Callable[..., RowLosses]] = {
    "dpo": lambda *pair: dpo_loss(*pair, beta=0.3),
    "ln-dpo": lambda *pair: ln_dpo_loss(*pair, beta=2.0),
    "ipo": lambda *pair: ipo_loss(*pair, tau=0.2),
    "simpo": lambda *pair: simpo_loss(*pair, beta=2.0, gamma=0.7),
}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3},
    "ln-dpo": {"beta": 2.0},
    "ipo": {"tau": 0.2},
    "simpo": {"beta": 2.0, "gamma": 0.7},
}


def logps_of(rows: Sequence[tuple[tuple[float, float, int], ...]]) -> list[SequenceLogps]:
    """Log-probabilities of each column of answers, in float64."""
    return [
        SequenceLogps(*(torch.tensor(values, dtype=torch.float64) for values in zip(*column, strict=True)))
        for column in zip(*rows, strict=True)
    ]


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("base", BASES)
@given(rows=quadruples)
def test_alpha_0_and_1_are_the_base(base: str, rows: Any) -> None:
    source, target, rejected = logps_of(rows)
    for alpha, chosen in ((0.0, target), (1.0, source)):
        wrpo = wrpo_loss(source, target, rejected, alpha=alpha, base=base, **SETTINGS[base])
        alone = PAIR_LOSSES[base](chosen, rejected)
        assert close(wrpo.losses, alone.losses)
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/rejected"):
            assert close(wrpo.metrics[name], alone.metrics[name])


@pytest.mark.parametrize("base", BASES)
@given(rows=quadruples, alpha=st.floats(0, 1))
def test_equal_answers_make_alpha_irrelevant(base: str, rows: Any, alpha: float) -> None:
    source, target, rejected = logps_of(rows)
    wrpo = wrpo_loss(source, source, rejected, alpha=alpha, base=base, **SETTINGS[base])
    assert torch.allclose(wrpo.losses, PAIR_LOSSES[base](source, rejected).losses, rtol=1e-9, atol=1e-7)
    mixed = wrpo_loss(source, target, rejected, rejected, alpha=alpha, base=base, **SETTINGS[base])
    single = wrpo_loss(source, target, rejected, alpha=alpha, base=base, **SETTINGS[base])
    assert torch.allclose(mixed.losses, single.losses, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("base", BASES)
@given(rows=quadruples, alpha=st.floats(0, 1))
def test_wrpo_is_below_the_mean_of_the_two_losses(base: str, rows: Any, alpha: float) -> None:
    """Links are convex."""
    source, target, rejected = logps_of(rows)
    wrpo = wrpo_loss(source, target, rejected, alpha=alpha, base=base, **SETTINGS[base]).losses
    on_source, on_target = (PAIR_LOSSES[base](chosen, rejected).losses for chosen in (source, target))
    mean = alpha * on_source + (1 - alpha) * on_target
    assert bool((wrpo <= mean * (1 + 1e-9) + 1e-9).all())


@pytest.mark.parametrize("base", ["dpo", "ln-dpo", "ipo"])
@given(rows=quadruples, shift=st.floats(-50, 50), alpha=st.floats(0, 1))
def test_a_shift_changes_nothing(base: str, rows: Any, shift: float, alpha: float) -> None:
    """Neither added to a response's policy and reference, nor (log Z of the prompt) to all rewards of a row."""
    source, target, rejected = logps_of(rows)
    assert source.reference is not None
    moved = source._replace(policy=source.policy + shift, reference=source.reference + shift)
    before = wrpo_loss(source, target, rejected, alpha=alpha, base=base, **SETTINGS[base]).losses
    after = wrpo_loss(moved, target, rejected, alpha=alpha, base=base, **SETTINGS[base]).losses
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-7)
    all_moved = [
        answer._replace(policy=answer.policy + shift * (torch.as_tensor(answer.num_tokens) if base == "ln-dpo" else 1))
        for answer in (source, target, rejected)
    ]
    assert torch.allclose(
        before, wrpo_loss(*all_moved, alpha=alpha, base=base, **SETTINGS[base]).losses, rtol=1e-8, atol=1e-7
    )


@given(rows=quadruples)
def test_swapping_the_pair_costs_the_margin(rows: Any) -> None:
    """-log sigma(z) + log sigma(-z) = -z."""
    chosen, rejected, _ = logps_of(rows)
    straight, swapped = dpo_loss(chosen, rejected, beta=0.3), dpo_loss(rejected, chosen, beta=0.3)
    assert close(straight.losses - swapped.losses, -straight.metrics["rewards/margins"])


@given(values=st.lists(st.floats(-300, 0), min_size=1), beta=st.floats(1e-3, 10), alpha=st.floats(0, 1))
def test_policy_equal_to_reference(values: list[float], beta: float, alpha: float) -> None:
    """Every margin is 0: log 2, and 1 / (2 tau) squared for IPO."""
    num_tokens = torch.arange(1, len(values) + 1)
    even = SequenceLogps(torch.tensor(values), torch.tensor(values), num_tokens)
    other = SequenceLogps(even.policy - 3, even.policy - 3, num_tokens + 2)
    for outcome in (
        dpo_loss(even, other, beta=beta),
        ln_dpo_loss(even, other, beta=beta),
        wrpo_loss(even, other, even, beta=beta, alpha=alpha),
        simpo_loss(even, even, beta=beta, gamma=0.0),
    ):
        assert outcome.losses.tolist() == pytest.approx([LN2] * len(values))
    assert ipo_loss(even, other, tau=beta).losses.tolist() == pytest.approx([1 / (4 * beta**2)] * len(values))


@given(tau=st.floats(0.01, 10), distance=st.floats(1e-3, 100))
def test_ipo_is_least_at_its_margin(tau: float, distance: float) -> None:
    """0 with a zero gradient at 1 / (2 tau), and symmetric around it."""
    policy = torch.full([1], 1 / (2 * tau), dtype=torch.float64, requires_grad=True)
    even = SequenceLogps(column(0.0), column(0.0))
    outcome = ipo_loss(SequenceLogps(policy, column(0.0)), even, tau=tau)
    assert outcome.losses.tolist() == [0]
    assert torch.autograd.grad(outcome.losses.sum(), policy)[0].tolist() == [0]
    for sign in (1, -1):
        moved = SequenceLogps(policy.detach() + sign * distance, column(0.0))
        assert ipo_loss(moved, even, tau=tau).losses.tolist() == pytest.approx([distance**2])


# --- algebra of FusePO, FuseSFT and RLOO -----------------------------------------------------------------------------

FUSEPO = {"dpo": "fusepo", "ln-dpo": "fusepo over ln-dpo", "simpo": "fusepo over simpo"}


@pytest.mark.parametrize("base", FUSEPO)
@given(seed=seeds)
def test_fusepo_is_its_base_on_weighted_rows(base: str, seed: int) -> None:
    """One source of weight 1 gives the base's loss; several pairs in a row equal the same pairs as weighted rows."""
    fusepo, alone = resolve_objective("fusepo", VARIANTS[FUSEPO[base]][1]), resolve_objective(*VARIANTS[base])
    batch = random_batch(fusepo, seed, num_rows=1)
    pairs = [batch[index : index + 2] for index in range(0, len(batch), 2)]
    as_rows = losses_of([y._replace(row=row) for row, pair in enumerate(pairs) for y in pair], alone)
    weights = [pair[0].weight for pair in pairs]
    expected = sum(weight * loss for weight, loss in zip(weights, as_rows, strict=True))
    assert losses_of(batch, fusepo) == pytest.approx([expected])
    assert losses_of([y._replace(weight=1.0) for y in pairs[0]], fusepo) == pytest.approx(as_rows[:1])
    equal = [y._replace(weight=1 / len(pairs)) for y in batch]
    assert losses_of(equal, fusepo) == pytest.approx([sum(as_rows) / len(pairs)])


@given(seed=seeds)
def test_fusesft_of_one_response_is_sft(seed: int) -> None:
    """Weights of 0 leave a response out."""
    sft, fusesft = resolve_objective("sft"), resolve_objective("fusesft")
    batch = random_batch(fusesft, seed, num_rows=1)
    first = [y._replace(weight=float(index == 0)) for index, y in enumerate(batch)]
    assert losses_of(first, fusesft) == losses_of(batch[:1], sft)


@pytest.mark.parametrize("name", ["rloo", "rloo within sources", "fusepo-rloo", "fusepo-rloo over all"])
@given(seed=seeds, shift=st.integers(-1000, 1000), score=st.floats(-100, 100))
def test_only_differences_of_scores_matter(name: str, seed: int, shift: int, score: float) -> None:
    """Adding a constant to all scores of a pool changes nothing; equal scores give no loss and no gradient."""
    kind, settings = VARIANTS[name]
    objective = resolve_objective(kind, {**settings, "kl": 0.0})
    batch = random_batch(objective, seed, num_rows=1)
    within = objective.values["baseline"] == "source"
    moved = [y._replace(score=y.score + shift * (len(y.group) + int(y.group[-1]) if within else 1)) for y in batch]
    assert losses_of(moved, objective) == pytest.approx(losses_of(batch, objective), abs=1e-8)
    equal = [y._replace(score=score) for y in batch]
    assert losses_of(equal, objective) == pytest.approx([0], abs=1e-10)
    assert gradient_of(equal, objective).tolist() == pytest.approx([0] * len(batch), abs=1e-10)


@given(scores=st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_advantages_of_a_pool(scores: list[float]) -> None:
    """They sum to 0 and are N / (N - 1) times the distance from the mean."""
    n, rloo = len(scores), resolve_objective("rloo")
    batch = [Given(0, "chosen", -1, -1, 1, score=score) for score in scores]
    advantages = -n * gradient_of(batch, rloo).numpy()
    assert advantages.sum() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(advantages, n / (n - 1) * (np.array(scores) - np.mean(scores)), atol=1e-9)
    outcome = objective_losses(rloo, build(batch, rloo), progress=0.0)
    assert outcome.metrics["advantages"].item() == pytest.approx(np.abs(advantages).mean())
    assert outcome.metrics["scores"].item() == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("kl", [0.0, 0.3])
@given(seed=seeds)
def test_fusepo_rloo_of_one_source_is_rloo(kl: float, seed: int) -> None:
    """For every baseline."""
    rloo = resolve_objective("rloo", {"kl": kl})
    batch = [y._replace(group="gemma", weight=1.0) for y in random_batch(rloo, seed)]
    for baseline in ("source", "all"):
        fused = resolve_objective("fusepo-rloo", {"kl": kl, "baseline": baseline})
        assert losses_of(batch, fused) == pytest.approx(losses_of(batch, rloo))


# --- what is refused -------------------------------------------------------------------------------------------------


def test_shapes_that_would_broadcast_are_refused() -> None:
    flat, wide = SequenceLogps(torch.zeros(2), torch.zeros(2)), SequenceLogps(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        dpo_loss(flat, wide, beta=0.1)


@pytest.mark.parametrize("loss", [PAIR_LOSSES["dpo"], PAIR_LOSSES["ln-dpo"], PAIR_LOSSES["ipo"]])
def test_a_log_ratio_needs_a_reference(loss: Callable[..., RowLosses]) -> None:
    alone, whole = SequenceLogps(torch.zeros(2)), SequenceLogps(torch.zeros(2), torch.zeros(2))
    for chosen, rejected in ((alone, alone), (whole, alone), (alone, whole)):
        with pytest.raises(ValueError, match="needs the reference's log-probabilities"):
            loss(chosen, rejected)


@pytest.mark.parametrize("num_tokens", [None, torch.tensor([1, 0])])
def test_an_empty_response_is_an_error_not_nan(num_tokens: Tensor | None) -> None:
    empty = SequenceLogps(torch.zeros(2), torch.zeros(2), num_tokens)
    for loss in (PAIR_LOSSES["simpo"], PAIR_LOSSES["ln-dpo"]):
        with pytest.raises(ValueError, match="at least one token"):
            loss(empty, empty)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "the score of every response"),
        ({"scores": column(1.0, math.nan)}, "the score of every response, a finite number"),
        ({"rows": torch.tensor([0, 1]), "num_rows": 2}, "at least two responses"),
    ],
)
def test_advantages_that_cannot_be_computed_are_errors(changes: dict[str, Any], message: str) -> None:
    rloo = resolve_objective("rloo")
    responses = build([Given(0, "chosen", -1, -1, 1), Given(0, "chosen", -2, -1, 1)], rloo)._replace(**changes)
    with pytest.raises(ValueError, match=message):
        objective_losses(rloo, responses, progress=0.0)


def test_what_a_cpu_refuses_is_not_a_number_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is read from the device; the loss shows the fault, and training stops because of it."""
    for module in ("rewards", "weightings"):
        monkeypatch.setattr(f"sinterlm.objectives.{module}.any_known", lambda wrong: False)
    empty, rloo = Given(0, "chosen", 0, 0, 0), resolve_objective("rloo")
    for name in ("simpo", "ln-dpo"):
        assert math.isnan(losses_of([empty, Given(0, "rejected", -1, -2, 1)], resolve_objective(name))[0])
    assert math.isnan(losses_of([Given(0, "chosen", -1, -1, 1)], rloo)[0])
    for score in (math.nan, math.inf):
        pair = [Given(0, "chosen", -1, -1, 1, score=score), Given(0, "chosen", -2, -1, 1)]
        assert math.isnan(losses_of(pair, rloo)[0])


def test_a_kl_term_needs_a_reference() -> None:
    responses = build(RLOO_BATCH, resolve_objective("rloo"))
    with pytest.raises(ValueError, match="KL term needs the reference's log-probabilities"):
        objective_losses(resolve_objective("rloo", {"kl": 0.1}), responses, progress=0.0)


@pytest.mark.parametrize(
    ("name", "given_values", "message"),
    [
        ("dpa", {}, "unknown objective 'dpa'; choose from: sft, fusesft, dpo, ln-dpo, ipo, simpo, wrpo, fusepo, rloo"),
        ("dpo", {"alpha": 0.1}, "'alpha'; it has: beta, label_smoothing"),
        ("dpo", {"gamma": 0.1}, "no hyper-parameter 'gamma'"),
        ("sft", {"beta": 0.1}, "it has none"),
        ("wrpo", {"alpha": 1.5}, "at least 0, at most 1"),
        ("wrpo", {"alpha": True}, "a number"),
        ("dpo", {"beta": 0}, "above 0"),
        ("dpo", {"beta": math.inf}, "above 0"),
        ("dpo", {"beta": math.nan}, "above 0"),
        ("dpo", {"beta": "0.1"}, "above 0"),
        ("dpo", {"label_smoothing": 0.5}, "below 0.5"),
        ("ipo", {"beta": 0.1}, "'beta'; it has: tau, average_logps"),
        ("ipo", {"label_smoothing": 0.1}, "no hyper-parameter 'label_smoothing'"),
        ("ipo", {"average_logps": 1}, "false or true"),
        ("simpo", {"gamma": -1.0}, "at least 0"),
        ("wrpo", {"alpha_schedule": "cosine"}, "constant or ramp"),
        ("wrpo", {"rejected_mix": "yes"}, "false or true"),
        ("wrpo", {"base": "wrpo"}, "expected dpo or ln-dpo or ipo or simpo"),
        ("wrpo", {"base": "simpo", "tau": 1.0}, "no hyper-parameter 'tau'; it has: base, alpha"),
        ("wrpo", {"tau": 1.0}, "no hyper-parameter 'tau'"),
        ("fusepo", {"base": "ipo"}, "expected dpo or ln-dpo or simpo"),
        ("fusepo", {"base": True}, "expected dpo or ln-dpo or simpo"),
        ("dpo", {"base": "dpo"}, "no hyper-parameter 'base'"),
        ("rloo", {"baseline": "mean"}, "source or all"),
        ("rloo", {"kl": -0.1}, "at least 0"),
        ("fusesft", {"temperature": 1.0}, "no hyper-parameter 'temperature'"),
    ],
)
def test_wrong_settings_are_refused_by_name(name: str, given_values: Mapping[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_objective(name, given_values)


@pytest.mark.parametrize("settings", [{"rejected_mix": True}, {"rejected_mix": False}, {"alpha_schedule": "ramp"}])
def test_what_wrpos_arguments_decide_is_no_setting(settings: dict[str, Any]) -> None:
    """Equation 9 without ``rejected_source`` is an error, not equation 6."""
    with pytest.raises(TypeError, match=f"multiple values for keyword argument '{next(iter(settings))}'"):
        wrpo_loss(*WRPO_ANSWERS[:3], alpha=0.5, **settings)


def test_wrpo_over_an_unknown_base_is_an_error() -> None:
    with pytest.raises(ValueError, match="base of objective 'wrpo' is 'fusepo'"):
        wrpo_loss(*WRPO_ANSWERS[:3], alpha=0.5, base="fusepo")


# --- the table -------------------------------------------------------------------------------------------------------


PAIR_ROLES, WRPO_ROLES = ("chosen", "rejected"), ("chosen_source", "chosen_target", "rejected", "rejected_source")
NAMED: Sequence[tuple[Callable[..., RowLosses], str, Sequence[str], Mapping[str, Any]]] = [
    (dpo_loss, "dpo", PAIR_ROLES, {"beta": 0.3, "label_smoothing": 0.1}),
    (ln_dpo_loss, "ln-dpo", PAIR_ROLES, {"beta": 2.0, "label_smoothing": 0.1}),
    (ipo_loss, "ipo", PAIR_ROLES, {"tau": 0.2}),
    (ipo_loss, "ipo", PAIR_ROLES, {"tau": 0.2, "average_logps": True}),
    (simpo_loss, "simpo", PAIR_ROLES, {"beta": 2.0, "gamma": 0.7, "label_smoothing": 0.1}),
    (wrpo_loss, "wrpo", WRPO_ROLES[:3], {"alpha": 0.3}),
    (wrpo_loss, "wrpo", WRPO_ROLES[:3], {"alpha": 0.3, "beta": 0.5, "label_smoothing": 0.1}),
    (wrpo_loss, "wrpo", WRPO_ROLES, {"alpha": 0.3, "base": "ipo", "tau": 0.2}),
    (wrpo_loss, "wrpo", WRPO_ROLES, {"alpha": 0.3, "base": "simpo", "gamma": 0.7}),
]


@pytest.mark.parametrize(("loss", "name", "roles", "settings"), NAMED)
def test_a_named_loss_is_its_row_of_the_table(
    loss: Callable[..., RowLosses], name: str, roles: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """Losses, metrics and gradients are equal to the last bit, on random log-probabilities of 5 rows."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = -30 * torch.rand(2, len(roles), 5, generator=generator)
    num_tokens = torch.randint(1, 40, (len(roles), 5), generator=generator)

    def run(compute: Callable[[dict[str, SequenceLogps]], RowLosses]) -> tuple[RowLosses, Tensor]:
        leaf = policy.clone().requires_grad_()
        logps = {role: SequenceLogps(leaf[i], reference[i], num_tokens[i]) for i, role in enumerate(roles)}
        outcome = compute(logps)
        (outcome.losses * torch.arange(1, 6)).sum().backward()
        assert leaf.grad is not None
        return outcome, leaf.grad

    switches = {"alpha_schedule": "constant", "rejected_mix": roles == WRPO_ROLES} if name == "wrpo" else {}
    row = resolve_objective(name, {**settings, **switches})
    ours, our_gradient = run(lambda logps: loss(**logps, **settings))
    theirs, their_gradient = run(lambda logps: objective_losses(row, one_pair_a_row(logps), progress=0.5))
    assert torch.equal(ours.losses, theirs.losses)
    assert torch.equal(our_gradient, their_gradient)
    assert ours.metrics.keys() == theirs.metrics.keys()
    assert all(torch.equal(values, theirs.metrics[key]) for key, values in ours.metrics.items())
    assert all(column.any() for column in our_gradient), "every answer has a part in the loss"


def test_defaults() -> None:
    """Those in the papers' tables; over SimPO, WRPO has no margin and gives the source half of the weight."""
    assert resolve_objective("dpo").values == {"beta": 0.01, "label_smoothing": 0.0}
    assert resolve_objective("ln-dpo").values["beta"] == 10
    assert resolve_objective("ipo").values == {"tau": 0.01, "average_logps": False}
    assert resolve_objective("simpo").values == {"beta": 10, "gamma": 1.0, "label_smoothing": 0.0}
    wrpo = {base: resolve_objective("wrpo", {"base": base}).values for base in BASES}
    assert {base: values["alpha"] for base, values in wrpo.items()} == {
        "dpo": 0.1,
        "ln-dpo": 0.1,
        "ipo": 0.1,
        "simpo": 0.5,
    }
    assert wrpo["dpo"] == resolve_objective("wrpo").values
    assert (wrpo["simpo"]["beta"], wrpo["simpo"]["gamma"]) == (10, 0.0)
    assert (wrpo["ipo"]["tau"], wrpo["ipo"]["average_logps"]) == (0.01, False)
    assert not any(values["rejected_mix"] for values in wrpo.values())
    assert resolve_objective("fusepo", {"base": "simpo"}).values["gamma"] == 1.0
    assert resolve_objective("rloo").values == {"baseline": "all", "kl": 0.0}
    assert resolve_objective("fusepo-rloo").values == {"baseline": "source", "kl": 0.0}
    assert resolve_objective("fusesft").values == {"average_logps": False}


def test_what_is_given_goes_before_the_bases_defaults() -> None:
    values = resolve_objective("wrpo", {"base": "simpo", "alpha": 0.3, "gamma": 0.2}).values
    assert (values["alpha"], values["gamma"]) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("name", "settings", "needed"),
    [
        ("dpo", {}, True),
        ("simpo", {}, False),
        ("wrpo", {}, True),
        ("wrpo", {"base": "simpo"}, False),
        ("fusepo", {"base": "simpo"}, False),
        ("rloo", {}, False),
        ("rloo", {"kl": 0.1}, True),
        ("fusepo-rloo", {"kl": 0.1}, True),
        ("fusesft", {}, False),
    ],
)
def test_a_reference_is_needed_only_where_it_is_read(name: str, settings: dict[str, Any], needed: bool) -> None:
    assert resolve_objective(name, settings).needs_reference is needed


def test_what_a_step_is_a_mean_over() -> None:
    tokens = {
        name for name, (kind, settings) in VARIANTS.items() if resolve_objective(kind, settings).counts == "tokens"
    }
    assert tokens == {"sft", "fusesft"}


def test_roles() -> None:
    assert resolve_objective("wrpo").roles == ("chosen_source", "chosen_target", "rejected")
    assert resolve_objective("wrpo", {"rejected_mix": True}).roles[3:] == ("rejected_source",)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_row_of_the_table_is_whole(name: str) -> None:
    """Defaults lie within their own bounds, and every base and switch is among the variants tested here."""
    objective = OBJECTIVES[name]
    assert objective.description
    assert objective.formula
    assert (objective.mix is None) != (objective.weighting is None)
    tested = [settings for kind, settings in VARIANTS.values() if kind == name]
    bases = objective.hyperparameters["base"].choices if "base" in objective.hyperparameters else (None,)
    assert {settings.get("base", "dpo" if bases[0] else None) for settings in tested} == set(bases)
    for base in bases:
        for parameter in known_hyperparameters(name, base).values():
            assert parameter.accepts(parameter.default)
            assert parameter.description
            assert parameter.source
    for parts in (resolve_objective(name, {"base": base} if base else {}).parts for base in bases):
        assert set(parts) in ({"weighting"}, {"reward", "mix", "link"})
        assert all(callable(resolve_name(path)) for path in parts.values())


def test_the_table_needs_no_torch() -> None:
    code = "import sys, sinterlm, sinterlm.objectives.named; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_there() -> None:
    assert all(getattr(sinterlm.objectives, name) is not None for name in sinterlm.objectives.__all__)
