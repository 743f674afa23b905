"""Evaluation: intervals compared with hand-derived values, an independent reference and their own coverage."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinterlm.evaluation.figures import Evaluation, Figures
from sinterlm.evaluation.rates import (
    Z_95,
    Comparison,
    Difference,
    Rate,
    compare_models,
    compute_rates,
    compute_rates_by_domain,
    join_runs,
    mean_score,
    metrics_of,
    paired_difference,
    pass_rate,
    values_by_metric,
)
from sinterlm.evaluation.rewards import QuadrupleRewards, reward_accuracies
from sinterlm.records import Score


def exact_match(passed: bool, contains: float) -> Score:
    return Score("r", "exact-match:1", float(passed), passed, {"contains": contains})


def graded(value: float) -> Score:
    return Score("r", "reward-model", value)


@pytest.mark.parametrize(
    ("num_passes", "n", "low", "high"),
    [
        # 0 of 10: the interval is [0, z^2 / (n + z^2)] = [0, 3.841459 / 13.841459]
        (0, 10, 0.0, 0.277533),
        (10, 10, 1 - 0.277533, 1.0),
        # 5 of 10: 0.5 -+ z sqrt(0.025 + 0.0096036) / 1.3841459 = 0.5 -+ 1.959964 * 0.1860207 / 1.3841459
        (5, 10, 0.236593, 0.763407),
        # 1 of 1: [1 / (1 + z^2), 1]
        (1, 1, 1 / (1 + Z_95**2), 1.0),
    ],
)
def test_wilson_by_hand(num_passes: int, n: int, low: float, high: float) -> None:
    rate = pass_rate([1.0] * num_passes + [0.0] * (n - num_passes))
    assert rate == pytest.approx(Rate(num_passes / n, low, high, n), abs=1e-6)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_inverts_the_score_test(case: tuple[int, int]) -> None:
    """The bounds are the rates p at which (k/n - p)^2 = z^2 p (1 - p) / n: what defines the interval."""
    num_passes, n = case
    rate = pass_rate([1.0] * num_passes + [0.0] * (n - num_passes))
    for bound in (rate.low, rate.high):
        assert (rate.value - bound) ** 2 == pytest.approx(Z_95**2 * bound * (1 - bound) / n, abs=1e-9)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


@pytest.mark.parametrize("true_rate", [0.05, 0.3, 0.5, 0.9])
def test_wilson_coverage(true_rate: float) -> None:
    """Exact coverage, summed over all 151 outcomes of 150 questions, is 95 % up to the effect of discreteness."""
    coverage = 0.0
    for num_passes in range(151):
        rate = pass_rate([1.0] * num_passes + [0.0] * (150 - num_passes))
        if rate.low <= true_rate <= rate.high:
            coverage += math.comb(150, num_passes) * true_rate**num_passes * (1 - true_rate) ** (150 - num_passes)
    assert 0.935 < coverage < 0.97


@pytest.mark.parametrize("values", [[], [0.5], [1.0, 2.0]])
def test_pass_rate_refuses_what_is_no_rate(values: list[float]) -> None:
    with pytest.raises(ValueError, match="pass rate"):
        pass_rate(values)


def test_rates_of_exact_match() -> None:
    """Four answers: one right, one that contains the right answer, two wrong."""
    scores = {
        "a": exact_match(True, 1.0),
        "b": exact_match(False, 1.0),
        "c": exact_match(False, 0.0),
        "d": exact_match(False, 0.0),
    }
    rates = compute_rates(scores)
    assert list(rates) == ["exact_match", "contains"]
    assert (rates["exact_match"].value, rates["contains"].value) == (0.25, 0.5)
    assert rates["exact_match"] == pass_rate([1, 0, 0, 0])
    by_domain = compute_rates_by_domain(scores, {"a": "sums", "b": "sums", "c": "capitals", "d": "capitals"})
    assert list(by_domain) == ["capitals", "sums"]
    assert by_domain["sums"] == {"exact_match": pass_rate([1, 0]), "contains": pass_rate([1, 1])}
    assert by_domain["capitals"]["exact_match"] == pass_rate([0, 0])


def test_a_detail_of_another_meaning_is_no_figure() -> None:
    """For example what a user's function returns beside its score."""
    for contains in ("a comma", ["a", "b"], 7, None):
        score = Score("r", "mine", 1.0, True, {"contains": contains})
        assert metrics_of(score) == {"exact_match": 1.0}


def test_pass_or_fail_scorers_need_no_contains() -> None:
    assert list(compute_rates({"a": Score("r", "code", 1.0, True)})) == ["exact_match"]


def test_graded_scores_have_a_mean() -> None:
    """A mean's percentile interval is close to the normal one: mean -+ z sd / sqrt(n)."""
    generator = random.Random(0)
    values = [generator.gauss(-3.0, 2.0) for _ in range(400)]
    rates = compute_rates({str(number): graded(value) for number, value in enumerate(values)})
    assert list(rates) == ["score"]
    mean, half_width = statistics.fmean(values), Z_95 * statistics.pstdev(values) / math.sqrt(400)
    assert rates["score"] == pytest.approx(Rate(mean, mean - half_width, mean + half_width, 400), abs=0.01)


def test_paired_difference_by_hand() -> None:
    """Two questions with differences 1 and 0. A resampled mean is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4."""
    difference = paired_difference({"a": [(1.0, 0.0)], "b": [(1.0, 1.0)]})
    assert difference == Difference(0.5, 0.0, 1.0, 2)
    # A single question can only be drawn again.
    assert paired_difference({"a": [(0.25, 0.75)]}) == Difference(-0.5, -0.5, -0.5, 1)


def naive_bootstrap(pairs: Mapping[str, list[tuple[float, float]]], num_resamples: int) -> tuple[float, float]:
    """Draw questions one by one with replacement and pool all their pairs."""
    generator = random.Random(1)
    clusters = [[value - other for value, other in cluster] for cluster in pairs.values()]
    means = []
    for _ in range(num_resamples):
        drawn = [difference for cluster in generator.choices(clusters, k=len(clusters)) for difference in cluster]
        means.append(sum(drawn) / len(drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("num_runs", [1, 3])
def test_paired_difference_against_a_naive_bootstrap(num_runs: int) -> None:
    """Clusters of one to three runs; the bounds agree up to the noise of resampling (a few per cent of the width)."""
    generator = random.Random(num_runs)
    pairs = {
        str(question): [
            (float(generator.random() < 0.55), float(generator.random() < 0.40))
            for _ in range(generator.randint(1, num_runs))
        ]
        for question in range(80)
    }
    difference = paired_difference(pairs)
    low, high = naive_bootstrap(pairs, 4_000)
    all_pairs = [pair for cluster in pairs.values() for pair in cluster]
    assert difference.value == pytest.approx(statistics.fmean(value - other for value, other in all_pairs))
    assert difference.n == 80
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_paired_difference_coverage() -> None:
    """In 400 simulated comparisons (150 questions, three runs that share each question's difficulty) the interval has
    the true difference of 0.1 in 95 %, give or take three standard deviations and the bootstrap's small bias."""
    generator = np.random.default_rng(0)
    num_held = 0
    for seed in range(400):
        difficulty = generator.uniform(-0.4, 0.4, size=150)
        first = generator.random((150, 3)) < (0.55 + difficulty)[:, None]
        second = generator.random((150, 3)) < (0.45 + difficulty)[:, None]
        pairs = {
            str(question): [(float(a), float(b)) for a, b in zip(first[question], second[question], strict=True)]
            for question in range(150)
        }
        difference = paired_difference(pairs, seed=seed, num_resamples=1_000)
        num_held += difference.low <= 0.1 <= difference.high
    assert 0.91 < num_held / 400 < 0.985


differences = st.dictionaries(
    st.text(max_size=3),
    st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.floats(-1, 1)), min_size=1, max_size=3),
    min_size=1,
)


@given(differences, st.randoms(use_true_random=False))
def test_paired_difference_properties(pairs: dict[str, list[tuple[float, float]]], generator: random.Random) -> None:
    """The same seed gives the same interval, whatever the order of questions; the interval contains the value."""
    difference = paired_difference(pairs, num_resamples=200)
    shuffled = dict(generator.sample(list(pairs.items()), len(pairs)))
    assert paired_difference(shuffled, num_resamples=200) == pytest.approx(difference, abs=1e-12)
    values = [value - other for cluster in pairs.values() for value, other in cluster]
    assert min(values) - 1e-12 <= difference.low <= difference.high <= max(values) + 1e-12
    swapped = {prompt_id: [(other, value) for value, other in cluster] for prompt_id, cluster in pairs.items()}
    assert paired_difference(swapped, num_resamples=200).value == pytest.approx(-difference.value)


def test_repeated_runs_do_not_narrow_the_interval() -> None:
    """Three runs that agree on every question give no more information than one."""
    generator = random.Random(0)
    once = {str(q): [(float(generator.random() < 0.6), float(generator.random() < 0.5))] for q in range(100)}
    assert paired_difference({q: pairs * 3 for q, pairs in once.items()}) == pytest.approx(paired_difference(once))


def test_resampling_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [math.sin(number) for number in range(300)]
    whole = mean_score(values, num_resamples=1_000)
    monkeypatch.setattr("sinterlm.evaluation.rates._CHUNK_ELEMENTS", 7 * 300)
    assert mean_score(values, num_resamples=1_000) == whole


def test_an_interval_is_of_as_many_resamples_as_it_says() -> None:
    """With one resample, both ends are its mean."""
    value, low, high, n = mean_score([0.0, 1.0, 2.0, 4.0], num_resamples=1)
    assert (value, n) == (1.75, 4)
    assert low == high


@pytest.mark.parametrize("pairs", [{}, {"a": []}])
def test_a_bootstrap_needs_values(pairs: dict[str, list[tuple[float, float]]]) -> None:
    with pytest.raises(ValueError, match="at least one question"):
        paired_difference(pairs)


def test_runs_are_joined_by_prompt_id() -> None:
    first = ({"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 0.0})
    second = ({"b": 1.0}, {"b": 1.0})
    assert join_runs([first, second]) == {"a": [(1.0, 0.0)], "b": [(0.0, 1.0), (1.0, 1.0)]}
    with pytest.raises(ValueError, match=r"1 prompts have values of only one model, e\.g\. 'c'"):
        join_runs([({"a": 1.0}, {"a": 1.0, "c": 0.0})])


def test_values_by_metric() -> None:
    scores = {"a": exact_match(True, 1.0), "b": exact_match(False, 1.0)}
    assert values_by_metric(scores) == {"exact_match": {"a": 1.0, "b": 0.0}, "contains": {"a": 1.0, "b": 1.0}}


def test_reward_accuracies_by_hand() -> None:
    """Five quadruples, alpha 0.25: y_ws wins 3 of 5 and y_wt 1 of 5 (equal rewards lose).

    Compound rewards 0.25 y_ws + 0.75 y_wt: 0.25 + 0 > 0; 1 - 0.75 = 0.25 > 0; 0.25 - 1.5 < 0; -0.25 + 0.75 > 0; 0 = 0.
    """
    rewards = [
        QuadrupleRewards(1.0, 0.0, 0.0),
        QuadrupleRewards(4.0, -1.0, 0.0),
        QuadrupleRewards(1.0, -2.0, 0.0),
        QuadrupleRewards(-1.0, 1.0, 0.0),
        QuadrupleRewards(0.0, 0.0, 0.0),
    ]
    accuracies = reward_accuracies(rewards, alpha=0.25)
    assert accuracies.source_chosen == pass_rate([1, 1, 1, 0, 0])
    assert accuracies.target_chosen == pass_rate([0, 0, 0, 1, 0])
    assert accuracies.chosen == pass_rate([1, 1, 0, 1, 0])
    assert reward_accuracies(rewards, alpha=0).chosen == accuracies.target_chosen
    assert reward_accuracies(rewards, alpha=1).chosen == accuracies.source_chosen


def no_number() -> Score:
    """As left by a judge that gave no verdict."""
    return Score("r", "judge", math.nan, None, {"reason": "invalid-verdict"})


def test_an_answer_without_a_number_has_no_part_in_the_mean() -> None:
    """The mean of 1 and 3 is 2, whatever the third answer is; a model without any number has no figure."""
    scores = {"a": graded(1.0), "b": graded(3.0), "c": no_number()}
    assert compute_rates(scores)["score"][0::3] == (2.0, 2)
    assert compute_rates_by_domain(scores, {"a": "x", "b": "x", "c": "y"}).keys() == {"x"}
    assert compute_rates({"c": no_number()}) == {}


def test_models_are_compared_over_the_questions_for_which_both_have_a_number() -> None:
    """The fused model has a and b, the other has b and c: only b counts, 3 - 5 = -2."""
    (found,) = compare_models(
        {
            "gemma": {"a": no_number(), "b": graded(5.0), "c": graded(9.0)},
            "fused": {"a": graded(1.0), "b": graded(3.0), "c": no_number()},
            "mute": {"a": no_number()},
        },
        ["fused", "mute"],
    )
    assert (found.model, found.other, found.metric) == ("fused", "gemma", "score")
    assert found.difference == Difference(-2.0, -2.0, -2.0, 1)


def test_a_scorer_may_verify_some_questions_and_grade_others() -> None:
    """Each figure covers its own questions; the rate comes first, whichever question comes first."""
    fused = {"essay": graded(0.5), "sum": exact_match(True, 1.0), "sum-2": exact_match(False, 1.0)}
    rates = compute_rates(fused)
    assert {metric: (rate.value, rate.n) for metric, rate in rates.items()} == {
        "exact_match": (0.5, 2),
        "contains": (1.0, 2),
        "score": (0.5, 1),
    }
    assert list(rates) == ["exact_match", "contains", "score"]
    other = {"essay": graded(0.25), "sum": exact_match(False, 0.0), "sum-2": no_number()}
    found = compare_models({"other": other, "fused": fused}, ["fused"])
    assert {each.metric: (each.difference.value, each.difference.n) for each in found} == {
        "exact_match": (1.0, 1),
        "contains": (1.0, 1),
        "score": (0.25, 1),
    }


def test_an_evaluation_is_read_back_as_it_was_written() -> None:
    """The keys are the same as in every earlier ``evaluation.json``."""
    rate = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    difference = {
        "model": "target-sft", "other": "gemma", "metric": "contains",
        "difference": 0.25, "low": 0.0, "high": 0.5, "n": 8,
    }  # fmt: skip
    figures = {
        "models": {"gemma": {"exact_match": rate}},
        "domains": {"gemma": {"sums": {"exact_match": rate}}},
        "differences": [difference],
    }
    accuracies = {"source_chosen": rate, "target_chosen": rate, "chosen": rate}
    content = {
        **figures,
        "development": figures,
        "num_quadruples": 2,
        "reward_accuracies": {"target-sft-wrpo": accuracies},
        "average_logps": {"target": {"chosen_source": [-0.5], "target": [-1.0, -2.0]}},
    }
    evaluation = Evaluation.from_json(content)
    assert evaluation.to_json() == content
    assert list(evaluation.to_json()) == list(content)
    assert evaluation.held_out.models["gemma"]["exact_match"] == Rate(0.5, 0.25, 0.75, 8)
    assert evaluation.held_out.comparisons == [
        Comparison("target-sft", "gemma", "contains", Difference(0.25, 0.0, 0.5, 8))
    ]
    assert evaluation.reward_accuracies["target-sft-wrpo"].target_chosen == Rate(0.5, 0.25, 0.75, 8)
    assert Evaluation.from_json(figures).to_json() == figures


def test_the_summary_names_a_figure_by_its_metric() -> None:
    rates = {"exact_match": Rate(0.5, 0.25, 0.75, 8), "contains": Rate(0.75, 0.5, 1.0, 8), "score": Rate(-1, -2, 0, 3)}
    assert Figures({"target": rates}).flatten() == {
        "target": {
            "exact_match": 0.5, "low": 0.25, "high": 0.75, "n": 8,
            "contains": 0.75, "contains_low": 0.5, "contains_high": 1.0,
            "score": -1, "score_low": -2, "score_high": 0, "score_n": 3,
        }
    }  # fmt: skip


def test_a_fused_model_is_compared_with_the_others_and_with_the_fused_ones_before_it() -> None:
    """Over the metrics that both have; one without figures is skipped."""
    scores = {
        "gemma": {"a": graded(1.0)},
        "first": {"a": exact_match(True, 1.0)},
        "second": {"a": exact_match(False, 1.0)},
    }
    found = compare_models(scores, ["gone", "first", "second"])
    assert [(each.model, each.other, each.metric, each.difference.value) for each in found] == [
        ("second", "first", "exact_match", -1.0),
        ("second", "first", "contains", 0.0),
    ]
