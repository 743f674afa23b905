"""Combinations compared with values worked out by hand, and their order with that of tuples."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinterlm.errors import InputError
from sinterlm.records import Message, Prompt, Response, Score
from sinterlm.scoring.combination import CombinationScorer, Rule, rank_value
from sinterlm.scoring.exact_match import ExactMatchScorer
from sinterlm.scoring.protocol import Exchange, Scorer, no_score


def answered(content: str, number: int = 0) -> Exchange:
    prompt = Prompt("sum", (Message("user", "What is 2 plus 3?"),), ("5",))
    return Exchange(prompt, Response(f"r-{content}-{number}", prompt.id, "gemma", number, content, "stop", 1, 1))


class LengthScorer:
    """Grades an answer by its length, keeps its inputs, and gives no score to an answer without a letter."""

    needs_answers = False

    def __init__(self, unit: float = 1.0) -> None:
        self.unit = unit
        self.asked: list[str] = []
        self.is_open = True

    @property
    def identity(self) -> str:
        return f"length:{self.unit}"

    def score(self, answered: Sequence[Exchange]) -> list[Score]:
        self.asked += [entry.response.content for entry in answered]
        return [self._score_one(entry) for entry in answered]

    def close(self) -> None:
        self.is_open = False

    def _score_one(self, entry: Exchange) -> Score:
        if entry.response.content == "?":
            return no_score(entry, self.identity, "no-letters", "it has no letters", {"num_letters": 0})
        return Score(entry.response.id, self.identity, self.unit * len(entry.response.content))


def combine(rule: Rule, *contents: str, parts: dict[str, Scorer] | None = None, **settings: Any) -> list[Score]:
    parts = parts or {"right": ExactMatchScorer(), "length": LengthScorer()}
    scorer = CombinationScorer(rule, parts, **settings)
    scores = scorer.score([answered(content) for content in contents])
    assert {score.scorer for score in scores} <= {scorer.identity}
    return scores


# --- weighted sum ----------------------------------------------------------------------------------------------------


def test_a_weighted_sum_by_hand() -> None:
    """``five`` is wrong and 4 long: 2 * 0 - 0.5 * 4 = -2; ``5`` is right and 1 long: 2 * 1 - 0.5 * 1 = 1.5."""
    scores = combine("weighted-sum", "five", "5", weights={"right": 2.0, "length": -0.5})
    assert [(score.value, score.passed) for score in scores] == [(-2.0, None), (1.5, None)]
    assert scores[0].detail["parts"] == {
        "right": {"value": 0.0, "passed": False, "detail": {"contains": 0.0}},
        "length": {"value": 4.0, "passed": None, "detail": {}},
    }


def test_a_weight_is_1_unless_given() -> None:
    [score] = combine("weighted-sum", "5", weights={"length": 10.0})
    assert score.value == 11.0


# --- gate ------------------------------------------------------------------------------------------------------------


def test_a_gate_grades_all_and_lets_pass_what_the_verifier_does() -> None:
    scores = combine("gate", "5", "The 5.", "five")
    assert [(score.value, score.passed) for score in scores] == [(1.0, True), (6.0, True), (4.0, False)]


def test_a_gate_with_a_failing_value_does_not_ask_about_what_fails() -> None:
    length = LengthScorer()
    parts: dict[str, Scorer] = {"right": ExactMatchScorer(), "length": length}
    scores = combine("gate", "5", "five", "The 5.", "six", parts=parts, failing_value=-1.0)
    assert [(score.value, score.passed) for score in scores] == [(1.0, True), (-1.0, False), (6.0, True), (-1.0, False)]
    assert length.asked == ["5", "The 5."]
    assert list(scores[1].detail["parts"]) == ["right"]
    combine("gate", "six", parts=parts, failing_value=-1.0)
    assert length.asked == ["5", "The 5."], "nor at all where nothing passes"


def test_every_part_of_a_gate_but_the_last_must_pass() -> None:
    always_wrong = CombinationScorer("gate", {"a": ExactMatchScorer(), "b": ExactMatchScorer()}, failing_value=0.0)
    parts: dict[str, Scorer] = {"right": ExactMatchScorer(), "again": always_wrong, "length": LengthScorer()}
    scores = combine("gate", "The 5.", "five", parts=parts)
    assert [(score.value, score.passed) for score in scores] == [(6.0, True), (4.0, False)]


def test_a_gate_needs_a_verifier() -> None:
    parts: dict[str, Scorer] = {"length": LengthScorer(), "right": ExactMatchScorer()}
    with pytest.raises(InputError, match="its part length neither passes nor fails prompt sum"):
        combine("gate", "5", parts=parts)


# --- rank ------------------------------------------------------------------------------------------------------------


def test_a_rank_by_hand() -> None:
    """s(1) = (1 + 1/2) / 2 = 0.75 and s(4) = (1 + 4/5) / 2 = 0.9; a right answer is one step higher."""
    scores = combine("rank", "5", "five", "The 5.")
    assert [score.value for score in scores] == pytest.approx([1.75, 0.9, 1 + (1 + 6 / 7) / 2])
    assert [score.passed for score in scores] == [True, False, True]


GRADES = st.integers(min_value=-100, max_value=100)


@given(st.lists(st.tuples(GRADES, GRADES, GRADES), min_size=2, unique=True))
def test_a_rank_is_in_the_order_of_tuples(rows: list[tuple[int, int, int]]) -> None:
    values = [rank_value(row, step=1.0) for row in sorted(rows)]
    assert all(value < next_value for value, next_value in pairwise(values))


@given(GRADES, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_the_last_part_decides_between_equal_scores(grade: int, first: float, second: float) -> None:
    values = [rank_value([grade, last], step=1.0) for last in (first, second)]
    assert grade < min(values)
    assert max(values) < grade + 1
    if first < second:
        assert values[0] <= values[1]


def test_the_step_says_what_is_alike() -> None:
    """0.14 and 0.06 are both nearest to 0.1, so the second part decides; with the step 0.01 they differ."""
    assert rank_value([0.14, 1.0], step=0.1) < rank_value([0.06, 2.0], step=0.1)
    assert rank_value([0.14, 1.0], step=0.01) > rank_value([0.06, 2.0], step=0.01)
    assert rank_value([0.3, 0.0], step=0.1) == pytest.approx(0.35), "0.3 / 0.1 is a little less than 3"


# --- every rule ------------------------------------------------------------------------------------------------------

RULES: tuple[Rule, ...] = ("weighted-sum", "gate", "rank")


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_without_a_score_of_a_part_has_none(rule: Rule) -> None:
    parts: dict[str, Scorer] = {"right": ExactMatchScorer(), "length": LengthScorer()}
    unscored, scored = combine(rule, "?", "5", parts=parts)
    assert math.isnan(unscored.value)
    assert (unscored.detail["reason"], unscored.detail["problem"]) == ("no-letters", "length: it has no letters")
    assert unscored.detail["parts"]["length"]["value"] is None
    json.dumps(unscored.detail, allow_nan=False)
    assert not math.isnan(scored.value)


def test_parts_behind_a_missing_score_are_not_asked() -> None:
    first, second = LengthScorer(), LengthScorer(2.0)
    combine("weighted-sum", "?", "5", parts={"first": first, "second": second})
    assert (first.asked, second.asked) == (["?", "5"], ["5"])


@pytest.mark.parametrize("rule", RULES)
def test_scores_do_not_depend_on_what_is_scored_beside(rule: Rule) -> None:
    contents = ["5", "five", "The 5.", "no"]
    together = [score.value for score in combine(rule, *contents)]
    assert together == [combine(rule, content)[0].value for content in contents]


def test_combinations_can_be_parts() -> None:
    """0.1 * (gate: 6 for ``The 5.``) + 1 = 1.6; the gate passes, but a sum leaves that open."""
    inner = CombinationScorer("gate", {"right": ExactMatchScorer(), "length": LengthScorer()})
    [score] = combine(
        "weighted-sum", "The 5.", parts={"gate": inner, "right": ExactMatchScorer()}, weights={"gate": 0.1}
    )
    assert score.value == pytest.approx(1.6)
    assert score.passed is None
    assert score.detail["parts"]["gate"]["detail"]["parts"]["length"]["value"] == 6.0


def test_identity_names_rule_settings_and_parts_in_their_order() -> None:
    def identity(rule: Rule = "rank", *parts: tuple[str, Scorer], **settings: Any) -> str:
        given = dict(parts or (("a", ExactMatchScorer()), ("b", LengthScorer())))
        return CombinationScorer(rule, given, **settings).identity

    different = [
        identity(),
        identity("gate"),
        identity("weighted-sum"),
        identity(step=2.0),
        identity("gate", failing_value=0.0),
        identity("weighted-sum", weights={"a": 2.0}),
        identity("rank", ("b", LengthScorer()), ("a", ExactMatchScorer())),
        identity("rank", ("a", ExactMatchScorer()), ("b", LengthScorer(2.0))),
    ]
    assert len(set(different)) == len(different)
    assert identity("weighted-sum", weights={"a": 1.0}) == identity("weighted-sum")
    assert identity("gate", step=2.0) == identity("gate"), "a gate reads no step"


def test_it_needs_answers_where_a_part_does_and_closes_all() -> None:
    length = LengthScorer()
    assert CombinationScorer("rank", {"a": length, "b": ExactMatchScorer()}).needs_answers
    assert not CombinationScorer("rank", {"a": length, "b": LengthScorer()}).needs_answers
    CombinationScorer("rank", {"a": length, "b": ExactMatchScorer()}).close()
    assert not length.is_open
