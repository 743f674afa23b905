"""The figures of a run as records; only this file computes them, writes them to JSON and reads them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sinterlm.evaluation.rates import (
    METRICS,
    Comparison,
    Difference,
    Rate,
    compare_models,
    compute_rates,
    compute_rates_by_domain,
)
from sinterlm.evaluation.rewards import RewardAccuracies
from sinterlm.records import Score

Rates = Mapping[str, Rate]
"""One model's figures by metric, the main one first, e.g. ``{"exact_match": Rate(0.55, 0.47, 0.63, 150)}``."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How several models answer one set of questions."""

    models: Mapping[str, Rates] = field(default_factory=dict)
    """Model to its figures, both in the order of display; a model without a score is left out."""
    domains: Mapping[str, Mapping[str, Rates]] = field(default_factory=dict)
    """Model to domain to figures; empty if no question has a domain."""
    comparisons: Sequence[Comparison] = ()
    """Each fused model minus every model that is not fused and the fused ones before it."""

    @property
    def metrics(self) -> list[str]:
        """Every metric of any model, in the order of display."""
        return [metric for metric in METRICS if any(metric in rates for rates in self.models.values())]

    def to_json(self) -> dict[str, Any]:
        """The keys of ``evaluation.json``."""
        return {
            "models": {model: _dump_rates(rates) for model, rates in self.models.items()},
            "domains": {
                model: {domain: _dump_rates(rates) for domain, rates in by_domain.items()}
                for model, by_domain in self.domains.items()
            },
            "differences": [comparison.to_json() for comparison in self.comparisons],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Figures:
        """Read what :meth:`to_json` gave."""
        return cls(
            {model: _load_rates(rates) for model, rates in content["models"].items()},
            {
                model: {domain: _load_rates(rates) for domain, rates in by_domain.items()}
                for model, by_domain in content["domains"].items()
            },
            [_load_comparison(comparison) for comparison in content["differences"]],
        )

    def flatten(self) -> dict[str, dict[str, float]]:
        """Model to figures by name, as ``held_out`` in ``summary.json``.

        The main metric's interval is plain ``low``, ``high`` and ``n``; the other metrics' names carry the metric, and
        their ``n`` is left out if it is the same.
        """
        return {model: _flatten_rates(rates) for model, rates in self.models.items()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that a run measures about its models: the content of ``evaluation.json``."""

    held_out: Figures = field(default_factory=Figures)
    development: Figures | None = None
    """Figures on the questions by which settings are chosen; None if the run has no such questions."""
    num_quadruples: int | None = None
    """Held-out quadruples whose answers the target can be trained on; None without a preference method."""
    reward_accuracies: Mapping[str, RewardAccuracies] = field(default_factory=dict)
    """Preference-trained model to how often its internal reward ranks the quadruples correctly."""
    average_logps: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """Model to ``chosen_source`` or ``target`` to the mean log-probability per token of each such answer."""

    def to_json(self) -> dict[str, Any]:
        """The content of ``evaluation.json``."""
        content = self.held_out.to_json()
        if self.development:
            content["development"] = self.development.to_json()
        if self.num_quadruples is not None:
            content["num_quadruples"] = self.num_quadruples
        if self.average_logps:
            content["reward_accuracies"] = {
                model: _dump_rates(accuracies._asdict()) for model, accuracies in self.reward_accuracies.items()
            }
            content["average_logps"] = self.average_logps
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """Read what :meth:`to_json` gave."""
        development = content.get("development")
        return cls(
            Figures.from_json(content),
            Figures.from_json(development) if development else None,
            content.get("num_quadruples"),
            {
                model: RewardAccuracies(**_load_rates(accuracies))
                for model, accuracies in content.get("reward_accuracies", {}).items()
            },
            content.get("average_logps", {}),
        )


def compute_figures(
    scores: Mapping[str, Mapping[str, Score]], domains: Mapping[str, str], *, fused: Sequence[str]
) -> Figures:
    """The rates of every model, by domain too, and the paired differences of the fused ones.

    Args:
        scores: Model to prompt id to the score of its answer.
        domains: Prompt id to domain, for every prompt in ``scores``; an empty text means no domain.
        fused: The models to compare with the others.
    """
    models = {model: rates for model, answered in scores.items() if (rates := compute_rates(answered))}
    scores = {model: scores[model] for model in models}
    by_domain = {model: compute_rates_by_domain(answered, domains) for model, answered in scores.items()}
    return Figures(models, by_domain if any(domains.values()) else {}, compare_models(scores, fused))


def _dump_rates(rates: Rates) -> dict[str, dict[str, float]]:
    return {metric: rate._asdict() for metric, rate in rates.items()}


def _load_rates(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Rate]:
    return {metric: Rate(**rate) for metric, rate in content.items()}


def _load_comparison(content: Mapping[str, Any]) -> Comparison:
    difference = Difference(content["difference"], content["low"], content["high"], content["n"])
    return Comparison(content["model"], content["other"], content["metric"], difference)


def _flatten_rates(rates: Rates) -> dict[str, float]:
    flat: dict[str, float] = {}
    for metric, rate in rates.items():
        prefix = f"{metric}_" if flat else ""
        flat |= {metric: rate.value, f"{prefix}low": rate.low, f"{prefix}high": rate.high}
        if flat.setdefault("n", rate.n) != rate.n:
            flat[f"{prefix}n"] = rate.n
    return flat
