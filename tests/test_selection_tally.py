"""The report of a selection, compared with figures that a reader can work out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given

from sinterlm.records import Candidates, Dropped, Message, Role, RowResponse, Selection, TrainingRow
from sinterlm.selection import select_fusepo, select_fusesft, select_wrpo, tally_selection
from sinterlm.selection.tally import Spread
from tests.answers import any_candidates, candidates

ASKED = (Message("user", "What is the opposite of hot?"),)


def response(role: Role | None, source: str, score: float | None, length: int = 4, **others: object) -> RowResponse:
    return RowResponse("x" * length, role, source, 0, score, **others)  # type: ignore[arg-type]  # group and weight


def row(*responses: RowResponse) -> TrainingRow:
    return TrainingRow("p", ASKED, responses)


def test_the_roles_of_equation_9() -> None:
    """The order of the WRPO paper's appendix F: y_ws 0.180, y_ls 0.158, y_wt 0.152, y_lt 0.132 on average."""
    rows = [
        row(
            response("chosen_source", source, 0.180 + shift, 40),
            response("chosen_target", "target-sft", 0.152 + shift, 30),
            response("rejected", "target-sft", 0.132 + shift, 10),
            response("rejected_source", source, 0.158 + shift, 60),
        )
        for source, shift in (("gemma", -0.01), ("gemma", 0.0), ("qwen", 0.01))
    ]
    tally = tally_selection(Selection(rows, [Dropped("q", "select-wrpo", "tied-target-answers")] * 2))
    assert (tally.num_rows, tally.drops, tally.weights) == (3, {"tied-target-answers": 2}, None)
    assert {role.role: role.mean_score for role in tally.roles} == pytest.approx(
        {"chosen_source": 0.180, "chosen_target": 0.152, "rejected": 0.132, "rejected_source": 0.158}
    )
    assert [(role.num_responses, role.mean_characters) for role in tally.roles] == [(3, 40), (3, 30), (3, 10), (3, 60)]
    assert tally.roles[0].sources == {"gemma": 2, "qwen": 1}
    assert tally.roles[1].sources == {"target-sft": 3}
    margins = {(margin.chosen, margin.rejected): margin for margin in tally.margins}
    assert {pair: margin.score and margin.score.mean for pair, margin in margins.items()} == {
        ("chosen_source", "rejected"): pytest.approx(0.048),
        ("chosen_target", "rejected"): pytest.approx(0.020),
        ("chosen_source", "rejected_source"): pytest.approx(0.022),
    }
    assert margins["chosen_source", "rejected_source"].characters.mean == -20


def test_margins_within_groups() -> None:
    """Two pairs per row: gemma's 0.3 and 4 characters, qwen's 0.1 and -1; no pair crosses the groups."""
    tally = tally_selection(
        Selection(
            [
                row(
                    response("chosen", "gemma", 0.5, 8, group="gemma", weight=0.75),
                    response("rejected", "gemma", 0.2, 4, group="gemma", weight=0.75),
                    response("chosen", "qwen", 0.4, 3, group="qwen", weight=0.25),
                    response("rejected", "qwen", 0.3, 4, group="qwen", weight=0.25),
                )
            ],
            [],
        )
    )
    (margin,) = tally.margins
    assert margin.num_pairs == 2
    assert margin.score is not None
    assert [margin.score.mean, margin.score.median] == pytest.approx([0.2, 0.2])
    assert asdict(margin.characters) == pytest.approx({"mean": 1.5, "tenth": -0.5, "median": 1.5, "ninetieth": 3.5})
    assert tally.weights is not None
    assert tally.weights.mean_num_weights == 2, "a weight a group, not a response"
    assert tally.weights.mean_entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert tally.weights.mean_largest == 0.75
    assert tally.weights.sources == {"gemma": 0.75, "qwen": 0.25}


def test_weights_of_responses() -> None:
    """Rows of weights 1, and 1/2 and 1/2: entropies 0 and log 2; two responses of one source add up."""
    rows = [
        row(response("chosen", "a", 1.0, weight=1.0), response("chosen", "b", 0.0, weight=0.0)),
        row(response("chosen", "b", 1.0, weight=0.5), response("chosen", "b", 1.0, weight=0.5)),
    ]
    weights = tally_selection(Selection(rows, [])).weights
    assert weights is not None
    assert weights.mean_entropy == pytest.approx(math.log(2) / 2)
    assert weights.mean_largest == 0.75
    assert weights.sources == {"a": 0.5, "b": 0.5}


def test_spread() -> None:
    """Margins of 0 to 100: a tenth of them are at most 10. Every quantile of a single margin is that margin."""

    def margins(values: list[float]) -> Spread | None:
        rows = [row(response("chosen", "a", value), response("rejected", "a", 0.0)) for value in values]
        return tally_selection(Selection(rows, [])).margins[0].score

    assert margins([float(value) for value in range(101)]) == Spread(50.0, 10.0, 50.0, 90.0)
    assert margins([3.0]) == Spread(3.0, 3.0, 3.0, 3.0)


def test_rows_without_scores_and_no_rows_at_all() -> None:
    tally = tally_selection(Selection([row(response("chosen", "a", None), response("rejected", "a", None, 1))], []))
    assert tally.roles[0].mean_score is None
    assert (tally.margins[0].score, tally.margins[0].characters.mean) == (None, 3)
    empty = tally_selection(Selection([], []))
    assert (empty.num_rows, empty.roles, empty.margins, empty.weights) == (0, [], [], None)


@given(any_candidates())
def test_it_counts_every_policys_rows(cases: list[Candidates]) -> None:
    """Every response and every source's share of the weight is counted once, and all of it is plain JSON."""
    for selection in (
        select_wrpo(cases, seed=0, rejected_source=True),
        select_fusepo(cases, seed=0, temperature=0.5),
        select_fusesft(cases, seed=0, temperature=0.5),
    ):
        tally = tally_selection(selection)
        assert sum(role.num_responses for role in tally.roles) == sum(len(row.responses) for row in selection.rows)
        assert all(sum(role.sources.values()) == role.num_responses for role in tally.roles)
        assert sum(tally.drops.values()) == len(selection.dropped)
        if tally.weights:
            assert sum(tally.weights.sources.values()) == pytest.approx(1)
            assert 0 <= tally.weights.mean_entropy <= math.log(max(tally.weights.mean_num_weights, 4)) + 1e-9
        json.dumps(asdict(tally))


def test_a_control_without_contrast() -> None:
    """At a large temperature the entropy of K sources is log K."""
    case = candidates([[("a", 0.18), ("b", 0.1)], [("c", 0.13), ("d", 0.12)]])
    weights = tally_selection(select_fusepo([case], seed=0, temperature=1e6)).weights
    assert weights is not None
    assert weights.mean_entropy == pytest.approx(math.log(2))
