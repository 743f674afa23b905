"""The named objectives: what each compares, by which functions, and every hyper-parameter's default and source.

A preference objective is a reward, a mix and a link (see ``losses.py``); functions are named by path, so that this
table, which the recipe's schema, ``FusionConfig`` and ``sinterlm list objectives`` read, imports no torch.
To add an objective, write the missing function and add a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sinterlm.objectives.schedules import constant, ramp

SCHEDULES: Mapping[str, Callable[[float, float], float]] = {"constant": constant, "ramp": ramp}

Value = float | str


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """One setting of an objective: a number within bounds, or one of some names."""

    default: Value
    description: str
    source: str
    """Where the default comes from."""
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    """The accepted names; empty for numbers."""
    schedule: str | None = None
    """The hyper-parameter that says how this one moves during training."""

    @property
    def expected(self) -> str:
        """The accepted values in words, e.g. ``a number, at least 0, at most 1``."""
        if self.choices:
            return " or ".join(self.choices)
        bounds = {"above": self.above, "at least": self.at_least, "at most": self.at_most, "below": self.below}
        return ", ".join(["a number", *(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)])

    def accepts(self, value: object) -> bool:
        """Whether ``value`` has the right type and lies within the bounds."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A row of the table."""

    description: str
    paper: str
    roles: tuple[str, ...]
    """The responses that a row must hold."""
    learning_rate: float
    """Default, as in TRL 1.16; papers' own stand in the recipes."""
    needs_reference: bool = False
    counts: Literal["rows", "tokens"] = "rows"
    """What the loss of a step is a mean over."""
    reward: str | None = None
    mix: str | None = None
    link: str | None = None
    """Paths of functions; None in all three for an objective that compares nothing, None in reward and link for one
    that takes them from its base."""
    reward_scale: str | None = None
    """The hyper-parameter that logged rewards are multiplied with."""
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)
    """The link's (the mix's, where the link is the base's)."""


_ALPHA_SOURCE = "WRPO (arXiv 2412.03187), Table 6 and section 4.1"

OBJECTIVES: Mapping[str, Objective] = {
    "sft": Objective(
        description="maximum likelihood of one response a prompt (supervised fine-tuning)",
        paper="",
        roles=("chosen",),
        learning_rate=2e-5,
        counts="tokens",
    ),
    "dpo": Objective(
        description="one chosen response against one rejected (direct preference optimisation)",
        paper="arXiv 2305.18290",
        roles=("chosen", "rejected"),
        learning_rate=1e-6,
        needs_reference=True,
        reward="sinterlm.objectives.rewards:summed_logratio",
        mix="sinterlm.objectives.mixes:single",
        link="sinterlm.objectives.links:logistic",
        reward_scale="beta",
        hyperparameters={
            "beta": Hyperparameter(
                0.01,
                "pull to the reference: the higher, the closer the policy stays",
                "WRPO (arXiv 2412.03187), Table 6: 0.01 for DPO and WRPO; DPO itself: 0.1",
                above=0,
            ),
            "label_smoothing": Hyperparameter(
                0.0, "share of preference labels taken to be wrong", "none, as in the papers", at_least=0, below=0.5
            ),
        },
    ),
    "wrpo": Objective(
        description="the sources' best answer, weighted by alpha, and the target's own best against its own worst",
        paper="arXiv 2412.03187",
        roles=("chosen_source", "chosen_target", "rejected"),
        learning_rate=1e-6,
        mix="sinterlm.objectives.mixes:source_and_target",
        hyperparameters={
            "base": Hyperparameter(
                "dpo", "the objective whose reward and link are used", "WRPO, equation 6", choices=("dpo",)
            ),
            "alpha": Hyperparameter(
                0.1,
                "weight of the source's answer (with a ramp: at the end)",
                _ALPHA_SOURCE,
                at_least=0,
                at_most=1,
                schedule="alpha_schedule",
            ),
            "alpha_schedule": Hyperparameter(
                "ramp", "how alpha moves: constant, or linearly from 0", _ALPHA_SOURCE, choices=tuple(SCHEDULES)
            ),
        },
    ),
}


class PairwiseParts(NamedTuple):
    """The paths of a preference objective's three functions."""

    reward: str
    mix: str
    link: str


@dataclass(frozen=True, slots=True)
class ResolvedObjective:
    """An objective with every choice made; see :func:`resolve_objective`."""

    name: str
    objective: Objective
    base: Objective
    """Whose reward and link are used; the objective itself where it has its own."""
    values: Mapping[str, Value]
    """Every hyper-parameter, by name."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The responses that a row must hold."""
        return self.objective.roles

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of the frozen start are needed."""
        return self.base.needs_reference

    @property
    def pairwise(self) -> PairwiseParts | None:
        """The functions to compose; None where nothing is compared."""
        reward, mix, link = self.base.reward, self.objective.mix, self.base.link
        return PairwiseParts(reward, mix, link) if reward and mix and link else None

    @property
    def reward_scale(self) -> float:
        """The factor that logged rewards carry."""
        return float(self.values[self.base.reward_scale]) if self.base.reward_scale else 1.0

    @property
    def link_values(self) -> dict[str, Value]:
        """What the link is called with."""
        return {name: self.values[name] for name in self.base.hyperparameters}

    def scheduled_values(self, progress: float) -> dict[str, float]:
        """What the mix is called with at ``progress`` (finished over all optimizer steps), and what is logged."""
        return {
            name: SCHEDULES[str(self.values[parameter.schedule])](float(self.values[name]), progress)
            for name, parameter in self.objective.hyperparameters.items()
            if parameter.schedule
        }


def resolve_objective(name: str, given: Mapping[str, Any] | None = None) -> ResolvedObjective:
    """Complete ``given`` hyper-parameters by the table's defaults.

    Raises:
        ValueError: no such objective or hyper-parameter, or a value out of its bounds; the message lists what there is.

    >>> resolve_objective("wrpo", {"alpha": 0.5}).values["beta"]
    0.01
    """
    given = given or {}
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; there are: {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    known = dict(objective.hyperparameters)
    base = objective
    if "base" in known:
        base_name = given.get("base", known["base"].default)
        _check_value(name, "base", base_name, known["base"])
        base = OBJECTIVES[base_name]
        known |= base.hyperparameters
    for key, value in given.items():
        if key not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none"
            raise ValueError(f"objective {name!r} has no hyper-parameter {key!r}; {has}")
        _check_value(name, key, value, known[key])
    values = {key: given.get(key, parameter.default) for key, parameter in known.items()}
    return ResolvedObjective(name, objective, base, values)


def _check_value(objective: str, key: str, value: object, parameter: Hyperparameter) -> None:
    if not parameter.accepts(value):
        raise ValueError(f"{key} of objective {objective!r} is {value!r}; expected {parameter.expected}")
