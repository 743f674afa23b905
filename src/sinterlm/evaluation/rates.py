"""Held-out figures of models: rates and mean scores with 95 % intervals, and paired differences between models.

Everything is joined by prompt id. The intervals are over questions: Wilson's for a rate, a bootstrap over questions for
means and differences.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sinterlm.records import Score

Z_95 = 1.959963984540054
"""The standard normal quantile of 0.975."""
METRICS = ("exact_match", "contains", "score")
"""All metrics, in the order of display. If a scorer passes or fails some questions and grades others, the rate is the
main metric."""
_CHUNK_ELEMENTS = 2**20
"""The largest matrix of draws that the bootstrap holds at once."""


class Rate(NamedTuple):
    """A rate or mean and its 95 % interval over ``n`` questions, e.g. ``Rate(0.55, 0.47, 0.63, 150)``."""

    value: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """One model's mean minus another's over the same ``n`` questions, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def metrics_of(score: Score) -> dict[str, float]:
    """The metrics that one score contributes to, the main one first.

    ``exact_match`` for pass-or-fail scorers (and ``contains`` if the scorer reports it), ``score`` for graded ones;
    nothing if the scorer gave no number.
    """
    if math.isnan(score.value):
        return {}
    if score.passed is None:
        return {"score": score.value}
    metrics = {"exact_match": float(score.passed)}
    contains = score.detail.get("contains")
    if isinstance(contains, int | float) and contains in (0, 1):  # a function of one's own may call anything so
        metrics["contains"] = float(contains)
    return metrics


def values_by_metric(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Metric to prompt id to value, from one model's scores by prompt id; the main metric first."""
    values: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for prompt_id, score in scores.items():
        for metric, value in metrics_of(score).items():
            values[metric][prompt_id] = value
    return {metric: values[metric] for metric in METRICS if metric in values}


def compute_rates(scores: Mapping[str, Score]) -> dict[str, Rate]:
    """Every metric of one model, the main one first: Wilson's interval for rates, the bootstrap's for graded scores.

    Each covers the questions that have a value; a metric without any is left out.

    Args:
        scores: Prompt id to the score of the model's answer.
    """
    return {
        metric: mean_score(values.values()) if metric == "score" else pass_rate(values.values())
        for metric, values in values_by_metric(scores).items()
    }


def compute_rates_by_domain(scores: Mapping[str, Score], domains: Mapping[str, str]) -> dict[str, dict[str, Rate]]:
    """Domain to metric to rate, in alphabetical order of the domains.

    Args:
        scores: Prompt id to the score of the model's answer.
        domains: Prompt id to domain, for every prompt in ``scores``.
    """
    by_domain: defaultdict[str, dict[str, Score]] = defaultdict(dict)
    for prompt_id, score in scores.items():
        by_domain[domains[prompt_id]][prompt_id] = score
    return {domain: rates for domain in sorted(by_domain) if (rates := compute_rates(by_domain[domain]))}


def pass_rate(passes: Iterable[float]) -> Rate:
    """The share of ones among zeros and ones, with Wilson's score interval (Wilson 1927; Brown, Cai, DasGupta 2001).

    With p = k/n: centre (p + z^2/2n) / (1 + z^2/n), half width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).

    Raises:
        ValueError: There are no values, or one is neither 0 nor 1.
    """
    values = [float(value) for value in passes]
    if not values or not set(values) <= {0.0, 1.0}:
        raise ValueError("a pass rate needs at least one value, all of them 0 or 1")
    n, rate = len(values), sum(values) / len(values)
    shrinkage = 1 + Z_95**2 / n
    centre = (rate + Z_95**2 / (2 * n)) / shrinkage
    half_width = Z_95 * math.sqrt(rate * (1 - rate) / n + Z_95**2 / (4 * n**2)) / shrinkage
    # At 0 and 1 the interval ends there exactly; rounding must not push it past the rate.
    return Rate(rate, min(max(centre - half_width, 0.0), rate), max(min(centre + half_width, 1.0), rate), n)


def mean_score(values: Iterable[float], *, seed: int = 0, num_resamples: int = 10_000) -> Rate:
    """The mean of graded scores, with a bootstrap interval over questions."""
    return Rate(*_bootstrap([[value] for value in values], seed=seed, num_resamples=num_resamples))


def join_runs(runs: Iterable[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, list[tuple[float, float]]]:
    """Pair two models' values question by question, over one run or several.

    Args:
        runs: The two models' values by prompt id, one pair per run; within a run both have the same prompts.

    Returns:
        Prompt id to one pair for each run that held the prompt out: the clusters of a paired difference.

    Raises:
        ValueError: One model of a run lacks a prompt that the other has.
    """
    pairs: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for values, others in runs:
        if values.keys() != others.keys():
            unpaired = sorted(values.keys() ^ others.keys())
            raise ValueError(f"{len(unpaired)} prompts have values of only one model, e.g. {unpaired[0]!r}")
        for prompt_id, value in values.items():
            pairs[prompt_id].append((value, others[prompt_id]))
    return dict(pairs)


def paired_difference(
    pairs: Mapping[str, Sequence[tuple[float, float]]], *, seed: int = 0, num_resamples: int = 10_000
) -> Difference:
    """The mean of (model - other) over all pairs, with a percentile bootstrap over questions.

    A question that several runs held out is one cluster: all its pairs are drawn together, because answers to one
    question are not independent of each other.

    Args:
        pairs: Prompt id to its (model, other) values, one pair per run (see :func:`join_runs`).
        seed: Seed of the resampling.
        num_resamples: How often the questions are resampled.
    """
    differences = [[value - other for value, other in cluster] for cluster in pairs.values()]
    return Difference(*_bootstrap(differences, seed=seed, num_resamples=num_resamples))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference over the same questions: ``model`` minus ``other``.

    Example: ``Comparison("target-sft-wrpo", "gemma", "exact_match", Difference(0.27, 0.18, 0.36, 150))``
    """

    model: str
    other: str
    metric: str
    difference: Difference

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies entirely on one side of zero."""
        return self.difference.low > 0 or self.difference.high < 0

    def to_json(self) -> dict[str, Any]:
        """The form used in ``summary.json`` and ``evaluation.json``."""
        value, low, high, n = self.difference
        return {
            "model": self.model,
            "other": self.other,
            "metric": self.metric,
            "difference": value,
            "low": low,
            "high": high,
            "n": n,
        }


def compare_models(scores: Mapping[str, Mapping[str, Score]], fused: Sequence[str]) -> list[Comparison]:
    """Compare every fused model with the models that are not fused and with the fused ones before it.

    A metric is compared over the questions for which both models have a value.

    Args:
        scores: Model to prompt id to the score of its answer.
        fused: The fused models.
    """
    values = {model: values_by_metric(answered) for model, answered in scores.items()}
    differences = []
    others = [model for model in scores if model not in fused]
    for model in filter(scores.__contains__, fused):
        for other in others:
            for metric, ours in values[model].items():
                theirs = values[other].get(metric, {})
                if pairs := {key: [(value, theirs[key])] for key, value in ours.items() if key in theirs}:
                    differences.append(Comparison(model, other, metric, paired_difference(pairs)))
        others.append(model)
    return differences


def _bootstrap(
    clusters: Sequence[Sequence[float]], *, seed: int, num_resamples: int
) -> tuple[float, float, float, int]:
    """The mean over all values, its 2.5 and 97.5 % points when whole clusters are resampled, and their number.

    The mean needs only each cluster's sum and size. They are sorted, so that the order of questions does not matter.
    """
    if not clusters or not all(clusters):
        raise ValueError("a bootstrap needs at least one question, and a value for every question")
    sums, sizes = np.array(sorted((math.fsum(cluster), len(cluster)) for cluster in clusters)).T
    num_clusters = len(clusters)
    generator = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    chunk = max(1, _CHUNK_ELEMENTS // num_clusters)
    for start in range(0, num_resamples, chunk):
        drawn = generator.integers(num_clusters, size=(min(chunk, num_resamples - start), num_clusters))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(sums.sum() / sizes.sum()), float(low), float(high), num_clusters
