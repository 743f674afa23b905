"""A row of the table of objectives; imports no torch.

To write your own objective, put a function of tensors and an :class:`Objective` in one file (see docs/extending.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, Literal

Value = float | str | bool
Part = Literal["reward", "mix", "link", "weighting", "loss"]

_RESERVED = ("kind", "objective", "seed")
"""Keys beside the hyper-parameters in a recipe, in ``FusionConfig`` or in ``sinterlm train``."""


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """One setting of an objective: a number within bounds, or one of some values."""

    default: Value
    description: str
    source: str
    """Where the default comes from."""
    part: Part
    """The function that takes it; ``loss`` if it chooses among functions."""
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Value, ...] = ()
    """The accepted values; empty for numbers."""
    schedule: str | None = None
    """The hyper-parameter that says how this one changes during training."""

    @property
    def type(self) -> Any:
        """The type of its values: ``float`` for a number, otherwise the type of its choices."""
        return reduce(or_, dict.fromkeys(map(type, self.choices))) if self.choices else float

    @property
    def expected(self) -> str:
        """The accepted values in words, e.g. ``a number, at least 0, at most 1``."""
        if self.choices:
            return " or ".join(str(choice).lower() for choice in self.choices)
        bounds = {"above": self.above, "at least": self.at_least, "at most": self.at_most, "below": self.below}
        return ", ".join(["a number", *(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)])

    def accepts(self, value: object) -> bool:
        """Whether ``value`` has the right type and lies within the bounds."""
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
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
    formula: str
    """The loss of a row, with r the reward and s the score of a response."""
    paper: str
    learning_rate: float
    """The default, as in TRL 1.16; the papers' own are in the recipes."""
    roles: tuple[str, ...]
    """The roles of the responses that a row (or each of its groups) must hold; empty if any will do."""
    per: Literal["row", "group", "response"] = "row"
    """What holds one response of each role: the row, or each of its groups; ``response`` allows any number."""
    optional_roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By hyper-parameter: roles that are also needed if it is true."""
    reads_weights: bool = False
    """Whether every response must have a weight."""
    reads_scores: bool = False
    """Whether every response must have a score."""
    needs_reference: bool | str = False
    """Whether log-probabilities of the frozen start are needed, or the hyper-parameter that needs them if not 0."""
    counts: Literal["rows", "tokens"] = "rows"
    """What the loss of a step is a mean over; always rows if ``average_logps`` is true."""
    reward: str | None = None
    mix: str | None = None
    link: str | None = None
    """Paths of functions; ``reward`` and ``link`` are None if the base's are used."""
    weighting: str | None = None
    """Path of a function, for weighted maximum likelihood."""
    reward_scale: str | None = None
    """The hyper-parameter that logged rewards are multiplied by."""
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)
    base_defaults: Mapping[str, Mapping[str, tuple[Value, str]]] = field(default_factory=dict)
    """By base: defaults, with their source, that replace the base's or the row's own."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            ValueError: A name cannot be a key beside ``kind``, or a default is out of its own bounds.
        """
        for name, parameter in self.hyperparameters.items():
            if not name.isidentifier() or name.startswith("_") or name in _RESERVED:
                raise ValueError(
                    f"a hyper-parameter is called {name!r}; expected a name such as 'beta', and none of {_RESERVED}"
                )
            if not parameter.accepts(parameter.default):
                raise ValueError(f"the default of {name} is {parameter.default!r}; expected {parameter.expected}")
