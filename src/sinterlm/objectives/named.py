"""The named objectives: what each compares, by which functions, and every hyper-parameter's default and source.

A preference objective is a reward, a mix and a link; weighted maximum likelihood is a weighting (see ``losses.py``).
Functions are named by path, so this table imports no torch. The recipe's schema, ``FusionConfig``, ``sinterlm train``
and ``sinterlm list objectives`` are built from it. To add an objective, write the missing function and add a row; an
installed package adds its rows by entry points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from operator import or_
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple

from sinterlm.components import with_installed
from sinterlm.objectives.objective import Hyperparameter, Objective, Value
from sinterlm.objectives.schedules import constant, ramp

SCHEDULES: Mapping[str, Callable[[float, float], float]] = {"constant": constant, "ramp": ramp}

_WRPO_TABLE_6 = "WRPO (arXiv 2412.03187), Table 6"
_ALPHA_SOURCE = f"{_WRPO_TABLE_6} and section 4.1"

_BETA = Hyperparameter(
    0.01,
    "pull to the reference: the higher, the closer the policy stays",
    f"{_WRPO_TABLE_6}: 0.01 for DPO and WRPO; DPO itself: 0.1",
    "link",
    above=0,
)
_LABEL_SMOOTHING = Hyperparameter(
    0.0, "share of preference labels assumed to be wrong", "none, as in the papers", "link", at_least=0, below=0.5
)
_KL = Hyperparameter(
    0.0,
    "weight of the log-ratio to the reference, subtracted from the score",
    "none: the formula that the reviews of FuseRL (arXiv 2504.06562) describe has no such term",
    "weighting",
    at_least=0,
)


def _baseline(default: str, source: str) -> Hyperparameter:
    return Hyperparameter(
        default,
        "whose mean a score is compared with: the other responses of the same source, or all others in the row",
        source,
        "weighting",
        choices=("source", "all"),
    )


def _base(*names: str) -> Hyperparameter:
    return Hyperparameter(
        "dpo", "the objective whose reward and link are used", "the main setting of the paper", "loss", choices=names
    )


OBJECTIVES: Mapping[str, Objective] = with_installed(
    "sinterlm.objectives",
    {
        "sft": Objective(
            description="maximum likelihood of one response per prompt (supervised fine-tuning)",
            formula="-log π(chosen)",
            paper="",
            roles=("chosen",),
            learning_rate=2e-5,
            counts="tokens",
            weighting="sinterlm.objectives.weightings:given",
        ),
        "fusesft": Objective(
            description="maximum likelihood of several weighted responses per prompt",
            formula="-Σ_y w(y) log π(y)",
            paper="FuseRL, arXiv 2504.06562",
            roles=("chosen",),
            per="response",
            reads_weights=True,
            learning_rate=2e-5,
            counts="tokens",
            weighting="sinterlm.objectives.weightings:given",
            hyperparameters={
                "average_logps": Hyperparameter(
                    False,
                    "mean over a response's tokens in place of their sum",
                    "sums: the log-likelihood of a response; which of the two FuseRL uses is not known",
                    "loss",
                    choices=(False, True),
                ),
            },
        ),
        "dpo": Objective(
            description="one chosen response against one rejected (direct preference optimisation)",
            formula="-log σ(β LR(chosen) - β LR(rejected))",
            paper="DPO, arXiv 2305.18290",
            roles=("chosen", "rejected"),
            learning_rate=1e-6,
            needs_reference=True,
            reward="sinterlm.objectives.rewards:summed_logratio",
            mix="sinterlm.objectives.mixes:single",
            link="sinterlm.objectives.links:logistic",
            reward_scale="beta",
            hyperparameters={"beta": _BETA, "label_smoothing": _LABEL_SMOOTHING},
        ),
        "ln-dpo": Objective(
            description="DPO with log-ratios averaged over tokens (length-normalised)",
            formula="-log σ(β LR(chosen) / |chosen| - β LR(rejected) / |rejected|)",
            paper="FuseChat-3.0, arXiv 2503.04222",
            roles=("chosen", "rejected"),
            learning_rate=1e-6,
            needs_reference=True,
            reward="sinterlm.objectives.rewards:mean_logratio",
            mix="sinterlm.objectives.mixes:single",
            link="sinterlm.objectives.links:logistic",
            reward_scale="beta",
            hyperparameters={
                "beta": Hyperparameter(
                    10.0,
                    "pull to the reference: the higher, the closer the policy stays",
                    "FuseChat-3.0 (arXiv 2503.04222): 10 for its length-normalised runs",
                    "link",
                    above=0,
                ),
                "label_smoothing": _LABEL_SMOOTHING,
            },
        ),
        "ipo": Objective(
            description="a margin of log-ratios of 1 / (2 τ), not more (identity preference optimisation)",
            formula="(LR(chosen) - LR(rejected) - 1 / (2 τ))²",
            paper="IPO, arXiv 2310.12036",
            roles=("chosen", "rejected"),
            learning_rate=1e-6,
            needs_reference=True,
            reward="sinterlm.objectives.rewards:logratio",
            mix="sinterlm.objectives.mixes:single",
            link="sinterlm.objectives.links:squared",
            reward_scale="tau",
            hyperparameters={
                "tau": Hyperparameter(
                    0.01, "pull to the reference: the margin is 1 / (2 tau)", _WRPO_TABLE_6, "link", above=0
                ),
                "average_logps": Hyperparameter(
                    False,
                    "log-ratios averaged over tokens, as in TRL, in place of sums",
                    "sums: IPO's own notation, and what WRPO calls a reward like DPO's",
                    "reward",
                    choices=(False, True),
                ),
            },
        ),
        "simpo": Objective(
            description="mean log-probabilities without a reference, and a margin",
            formula="-log σ(β log π(chosen) / |chosen| - β log π(rejected) / |rejected| - γ)",
            paper="SimPO, arXiv 2405.14734",
            roles=("chosen", "rejected"),
            learning_rate=1e-6,
            reward="sinterlm.objectives.rewards:mean_logp",
            mix="sinterlm.objectives.mixes:single",
            link="sinterlm.objectives.links:logistic",
            reward_scale="beta",
            hyperparameters={
                "beta": Hyperparameter(10.0, "scale of the rewards", _WRPO_TABLE_6, "link", above=0),
                "gamma": Hyperparameter(
                    1.0,
                    "the target margin, in units of beta times reward",
                    f"{_WRPO_TABLE_6}, SimPO's row",
                    "link",
                    at_least=0,
                ),
                "label_smoothing": _LABEL_SMOOTHING,
            },
        ),
        "wrpo": Objective(
            description="the sources' best answer, weighted by alpha, and the target's own best against its own worst",
            formula="link(α r(chosen_source) + (1 - α) r(chosen_target) - r(rejected))",
            paper="WRPO, arXiv 2412.03187",
            roles=("chosen_source", "chosen_target", "rejected"),
            optional_roles={"rejected_mix": ("rejected_source",)},
            learning_rate=1e-6,
            mix="sinterlm.objectives.mixes:source_and_target",
            hyperparameters={
                "base": _base("dpo", "ln-dpo", "ipo", "simpo"),
                "alpha": Hyperparameter(
                    0.1,
                    "weight of the source's answer (with a ramp: at the end)",
                    _ALPHA_SOURCE,
                    "mix",
                    at_least=0,
                    at_most=1,
                    schedule="alpha_schedule",
                ),
                "alpha_schedule": Hyperparameter(
                    "ramp",
                    "how alpha moves: constant, or linearly from 0",
                    _ALPHA_SOURCE,
                    "loss",
                    choices=tuple(SCHEDULES),
                ),
                "rejected_mix": Hyperparameter(
                    False,
                    "the source's rejected answer beside the target's, weighted by alpha too (equation 9)",
                    "the main setting of the paper; equation 9 is an extension in its appendix F",
                    "mix",
                    choices=(False, True),
                ),
            },
            base_defaults={
                "simpo": {
                    "alpha": (0.5, f"{_WRPO_TABLE_6}, WRPO-SimPO"),
                    "gamma": (0.0, f"{_WRPO_TABLE_6}, WRPO-SimPO"),
                }
            },
        ),
        "fusepo": Objective(
            description="one pair per source, weighted over the sources",
            formula="Σ_k w_k link(r(chosen_k) - r(rejected_k))",
            paper="FuseRL, arXiv 2504.06562",
            roles=("chosen", "rejected"),
            per="group",
            reads_weights=True,
            learning_rate=1e-6,
            mix="sinterlm.objectives.mixes:single",
            hyperparameters={"base": _base("dpo", "ln-dpo", "simpo")},
        ),
        "rloo": Objective(
            description="offline REINFORCE: every response, weighted by its score's advantage over the others",
            formula="-1/n Σ_i A_i log π(y_i), A_i = R_i - mean of the other R_j, R = s - kl LR",
            paper="RLOO, arXiv 2402.14740",
            roles=(),
            per="response",
            reads_scores=True,
            learning_rate=1e-6,
            needs_reference="kl",
            weighting="sinterlm.objectives.weightings:advantages",
            hyperparameters={
                "baseline": _baseline("all", "RLOO itself: all other responses to the prompt"),
                "kl": _KL,
            },
        ),
        "fusepo-rloo": Objective(
            description="RLOO within each source, weighted over the sources",
            formula="-Σ_k w_k 1/N_k Σ_i A_ki log π(y_ki), A as for rloo",
            paper="FuseRL, arXiv 2504.06562",
            roles=(),
            per="response",
            reads_weights=True,
            reads_scores=True,
            learning_rate=1e-6,
            needs_reference="kl",
            weighting="sinterlm.objectives.weightings:weighted_advantages",
            hyperparameters={
                "baseline": _baseline("source", "the reviews of FuseRL: pairs and groups stay within a source"),
                "kl": _KL,
            },
        ),
    },
    Objective,
)
"""Every objective by the name that recipes use: those of Sinter and of installed packages."""


class HyperparameterKey(NamedTuple):
    """A hyper-parameter as a key of settings that do not know yet which objective they are for."""

    name: str
    type: Any
    description: str


_FIRST = (
    *("base", "beta", "gamma", "tau", "average_logps", "label_smoothing"),
    *("alpha", "alpha_schedule", "rejected_mix", "baseline", "kl"),
)
"""These come first, in the order in which resolved recipes have always written them."""


def list_hyperparameters() -> list[HyperparameterKey]:
    """The hyper-parameters of all objectives; a shared one has the types of all and the description of the first."""
    declared: dict[str, list[Hyperparameter]] = {name: [] for name in _FIRST}
    for objective in OBJECTIVES.values():
        for name, parameter in objective.hyperparameters.items():
            declared.setdefault(name, []).append(parameter)
    return [
        HyperparameterKey(name, reduce(or_, [parameter.type for parameter in own]), own[0].description)
        for name, own in declared.items()
    ]


@dataclass(frozen=True)
class ResolvedObjective:
    """An objective with every choice made; see :func:`resolve_objective`."""

    name: str
    objective: Objective
    base: Objective
    """The objective whose reward and link are used; the objective itself if it has its own."""
    values: Mapping[str, Value]
    """Every hyper-parameter, by name."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The responses that a row (or a group of it) must hold."""
        added = (roles for name, roles in self.objective.optional_roles.items() if self.values[name])
        return (*self.objective.roles, *(role for roles in added for role in roles))

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of the frozen start are needed."""
        needed = self.base.needs_reference
        return bool(self.values[needed]) if isinstance(needed, str) else needed

    @property
    def counts(self) -> Literal["rows", "tokens"]:
        """What the loss of a step is a mean over."""
        return "rows" if self.values.get("average_logps") else self.objective.counts

    @cached_property
    def parts(self) -> dict[str, str]:
        """The paths of the functions to compose, by part: reward, mix and link, or weighting."""
        found = {
            "reward": self.base.reward,
            "mix": self.objective.mix,
            "link": self.base.link,
            "weighting": self.objective.weighting,
        }
        return {part: path for part, path in found.items() if path}

    @property
    def reward_scale(self) -> float:
        """The factor of logged rewards."""
        return float(self.values[self.base.reward_scale]) if self.base.reward_scale else 1.0

    def settings_of(self, part: str, progress: float) -> dict[str, Value]:
        """The hyper-parameters of the function of ``part``, at ``progress`` (finished over all optimizer steps)."""
        known = {**self.objective.hyperparameters, **self.base.hyperparameters}
        own = {name: self.values[name] for name, parameter in known.items() if parameter.part == part}
        return own | {name: value for name, value in self.scheduled_values(progress).items() if name in own}

    def part(self, name: str, progress: float = 1.0) -> Callable[..., Any]:
        """The function of the part ``name``, with its hyper-parameters' values at ``progress``.

        Raises:
            ImportError: The row's path leads to no function.
        """
        path = self.parts[name]
        try:
            function: Callable[..., Any] = resolve_name(path)
        except (AttributeError, ImportError) as error:
            raise ImportError(
                f"the {name} of objective {self.name!r} is {path}, which is not found ({error})"
            ) from error
        return partial(function, **self.settings_of(name, progress))

    def scheduled_values(self, progress: float) -> dict[str, float]:
        """The values at ``progress`` of the hyper-parameters that change during training; they are logged."""
        return {
            name: SCHEDULES[str(self.values[parameter.schedule])](float(self.values[name]), progress)
            for name, parameter in self.objective.hyperparameters.items()
            if parameter.schedule
        }


def known_hyperparameters(name: str, base: object = None) -> dict[str, Hyperparameter]:
    """Every hyper-parameter of an objective, including those of its base, with the defaults for that base.

    Args:
        name: Name of the objective.
        base: Name of the base; if the objective does not accept it, its default base is used.
    """
    objective = OBJECTIVES[name]
    own = objective.hyperparameters
    if "base" not in own:
        return dict(own)
    base_name = str(base) if own["base"].accepts(base) else str(own["base"].default)
    known = {**own, **OBJECTIVES[base_name].hyperparameters}
    for key, (default, source) in objective.base_defaults.get(base_name, {}).items():
        known[key] = replace(known[key], default=default, source=source)
    return known


def resolve_objective(name: str, given: Mapping[str, Any] | None = None) -> ResolvedObjective:
    """Complete the ``given`` hyper-parameters with the table's defaults.

    Raises:
        ValueError: No such objective or hyper-parameter, or a value out of bounds; the message lists the known ones.

    >>> resolve_objective("wrpo", {"alpha": 0.5}).values["beta"]
    0.01
    """
    given = given or {}
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; choose from: {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    if "base" in given and "base" in objective.hyperparameters:
        _check_value(name, "base", given["base"], objective.hyperparameters["base"])
    known = known_hyperparameters(name, given.get("base"))
    for key, value in given.items():
        if key not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none"
            raise ValueError(f"objective {name!r} has no hyper-parameter {key!r}; {has}")
        _check_value(name, key, value, known[key])
    values = {key: given.get(key, parameter.default) for key, parameter in known.items()}
    return ResolvedObjective(name, objective, OBJECTIVES[str(values.get("base", name))], values)


def _check_value(objective: str, key: str, value: object, parameter: Hyperparameter) -> None:
    if not parameter.accepts(value):
        raise ValueError(f"{key} of objective {objective!r} is {value!r}; expected {parameter.expected}")
