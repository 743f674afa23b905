"""Which responses of a row each objective reads, and every row that does not fit it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sinterlm import cli
from sinterlm.objectives.named import resolve_objective
from sinterlm.records import Message, Role, RowResponse, TrainingRow
from sinterlm.training.members import Members, UnfitRow, find_members, with_pairs
from tests.tiny import save_tiny

ASKED = (Message("user", "What is the opposite of hot?"),)


def response(role: Role | None = None, source: str = "", **others: Any) -> RowResponse:
    return RowResponse("cold", role, source, **others)


def members(responses: Sequence[RowResponse], name: str, hyperparameters: dict[str, Any] | None = None) -> Members:
    return find_members(TrainingRow("p", ASKED, tuple(responses)), resolve_objective(name, hyperparameters))


# --- rows that fit ---------------------------------------------------------------------------------------------------

OTHER = response("rejected", "other")
BARE = response()


@pytest.mark.parametrize(
    "chosen", [response("chosen", "gemma"), response(None, "gemma"), response("chosen", weight=1.0)]
)
def test_sft_reads_the_chosen_response(chosen: RowResponse) -> None:
    """A response without a role is the chosen one if the objective needs no other role."""
    assert members([OTHER, chosen], "sft") == ((chosen,), ({"chosen": 0},), (0,))


def test_a_role_goes_before_none() -> None:
    named = response("chosen", "gemma")
    assert members([BARE, named], "sft").responses == (named,)


@pytest.mark.parametrize("name", ["dpo", "ln-dpo", "ipo", "simpo"])
def test_a_pair_in_any_order(name: str) -> None:
    rejected, chosen = response("rejected", "target"), response("chosen", "gemma")
    assert members([rejected, BARE, chosen], name) == ((chosen, rejected), ({"chosen": 0, "rejected": 1},), (0, 1))


def test_wrpo_reads_the_sources_rejected_answer_for_equation_9_only() -> None:
    quadruple = [response(role) for role in ("rejected_source", "chosen_source", "chosen_target", "rejected")]
    read = ("chosen_source", "chosen_target", "rejected")
    assert tuple(own.role for own in members(quadruple, "wrpo").responses) == read
    both = members(quadruple, "wrpo", {"rejected_mix": True})
    assert tuple(own.role for own in both.responses) == (*read, "rejected_source")
    assert both.pairs == ({"chosen_source": 0, "chosen_target": 1, "rejected": 2, "rejected_source": 3},)


def test_fusepo_pairs_within_groups() -> None:
    """By ``group``, or by ``source`` without a group; responses without a role are skipped."""
    gemma = response("rejected", "gemma", weight=0.75), response("chosen", "gemma", weight=0.75)
    qwen = response("chosen", "a", group="qwen", weight=0.25), response("rejected", "b", group="qwen", weight=0.25)
    found = members([gemma[0], qwen[0], response(None, "gemma"), gemma[1], qwen[1]], "fusepo")
    assert found.responses == (gemma[1], gemma[0], *qwen)
    assert found.pairs == ({"chosen": 0, "rejected": 1}, {"chosen": 2, "rejected": 3})
    assert found.groups == (0, 0, 1, 1)


def test_fusesft_reads_all_chosen_responses() -> None:
    responses = [response("chosen", "gemma", weight=0.7), OTHER, response(None, "gemma", weight=0.3)]
    assert members(responses, "fusesft") == ((responses[0], responses[2]), (), (0, 0))


@pytest.mark.parametrize(
    ("name", "baseline", "sources", "groups"),
    [
        ("rloo", "all", ("a", "b", "a"), (0, 1, 0)),
        ("rloo", "all", ("", "", ""), (0, 0, 0)),
        ("rloo", "source", ("a", "a", "a"), (0, 0, 0)),
        ("fusepo-rloo", "source", ("a", "b", "b", "a"), (0, 1, 1, 0)),
        ("fusepo-rloo", "all", ("a", "b"), (0, 1)),
    ],
)
def test_rloo_reads_every_response(name: str, baseline: str, sources: tuple[str, ...], groups: tuple[int, ...]) -> None:
    """Whatever its role; one per source is enough if the baseline is all other responses."""
    weight = 0.5 if name == "fusepo-rloo" else None
    roles: tuple[Role | None, ...] = ("chosen", "rejected", None, "chosen")
    responses = tuple(
        response(role, source, score=1.0, weight=weight) for role, source in zip(roles, sources, strict=False)
    )
    assert members(responses, name, {"baseline": baseline}) == (responses, (), groups)


# --- rows that do not fit --------------------------------------------------------------------------------------------

CHOSEN, REJECTED = response("chosen", "gemma", weight=0.5), response("rejected", "gemma", weight=0.5)
SCORED = response(None, "gemma", score=1.0)
WEIGHED = response(None, "gemma", score=1.0, weight=1.0)
WRPO = [response("chosen_source"), response("chosen_target"), response("rejected")]


@pytest.mark.parametrize(
    ("name", "hyperparameters", "responses", "found", "expected"),
    [
        ("sft", {}, [], "roles: no response", "one response each of chosen"),
        ("sft", {}, [BARE, BARE], "2 responses with the role 'chosen' in the row (roles: none, none)", "one response"),
        ("sft", {}, [response(weight=0.5)], "a response has the weight 0.5", "give the row a `weight`"),
        ("sft", {}, [response(weight=math.nan)], "a response has the weight nan", "give the row a `weight`"),
        (
            "dpo",
            {},
            [response("chosen")],
            "0 responses with the role 'rejected'",
            "one response each of chosen, rejected",
        ),
        ("dpo", {}, [BARE, response("rejected")], "0 responses with the role 'chosen'", "chosen, rejected"),
        ("dpo", {}, [CHOSEN, REJECTED], "a response has the weight 0.5", "'dpo' does not read the weights"),
        ("wrpo", {}, WRPO[:2], "0 responses with the role 'rejected'", "chosen_source, chosen_target, rejected"),
        (
            "wrpo",
            {"rejected_mix": True},
            WRPO,
            "0 responses with the role 'rejected_source'",
            "rejected, rejected_source",
        ),
        *(
            (
                "wrpo",
                {"rejected_mix": True},
                [response("chosen_source", better), *WRPO[1:], response("rejected_source", worse)],
                f"rejected_source has the source {worse!r}",
                f"{better!r}, that of chosen_source, since the two are answers of one model",
            )
            for better, worse in (("gemma", "target"), ("gemma", ""), ("", "gemma"))
        ),
        ("fusesft", {}, [REJECTED], "roles: rejected", "responses of the role chosen, or without one"),
        ("fusesft", {}, [CHOSEN, BARE], "a response without `weight`", "one on every response, since 'fusesft' weighs"),
        ("fusesft", {}, [response(weight=0.0)] * 2, "the weights 0, 0", "finite numbers from 0 up, not all 0"),
        ("fusesft", {}, [CHOSEN, response(weight=-0.5)], "the weights 0.5, -0.5", "finite numbers from 0 up"),
        ("fusesft", {}, [CHOSEN, response(weight=math.nan)], "the weights 0.5, nan", "finite numbers from 0 up"),
        ("fusesft", {}, [CHOSEN, response(weight=math.inf)], "the weights 0.5, inf", "finite numbers from 0 up"),
        ("fusepo", {}, [BARE, BARE], "roles: none, none", "one response each of chosen, rejected in every group"),
        (
            "fusepo",
            {},
            [CHOSEN, CHOSEN, REJECTED],
            "2 responses with the role 'chosen' in group 'gemma'",
            "every group",
        ),
        (
            "fusepo",
            {},
            [CHOSEN, response("rejected", "b")],
            "0 responses with the role 'rejected' in group",
            "every group",
        ),
        (
            "fusepo",
            {},
            [response("chosen"), REJECTED],
            "a response with neither `group` nor `source`",
            "on every response",
        ),
        ("fusepo", {}, [CHOSEN, response("rejected", "gemma")], "a response without `weight`", "on every response"),
        (
            "fusepo",
            {},
            [CHOSEN, response("rejected", "gemma", weight=0.4)],
            "different weights within a group",
            "a group's weight on all its members",
        ),
        ("rloo", {}, [], "roles: no response", "responses"),
        ("rloo", {}, [SCORED, BARE], "a response without `score`", "one on every response, since 'rloo' compares them"),
        ("rloo", {}, [SCORED, response(score=math.nan)], "the scores 1, nan", "finite numbers"),
        ("rloo", {}, [SCORED], "a response with no other to compare with", "two or more in the row"),
        ("rloo", {}, [CHOSEN, REJECTED], "a response has the weight 0.5", "'rloo' does not read the weights"),
        (
            "rloo",
            {"baseline": "source"},
            [SCORED, SCORED, response(None, "qwen", score=1.0)],
            "a response with no other to compare with",
            "two or more of every source",
        ),
        ("rloo", {"baseline": "source"}, [response(score=1.0)] * 2, "neither `group` nor `source`", "'rloo' compares"),
        ("fusepo-rloo", {}, [SCORED, SCORED], "a response without `weight`", "since 'fusepo-rloo' weighs them"),
        ("fusepo-rloo", {}, [WEIGHED], "a response with no other to compare with", "two or more of every source"),
        (
            "fusepo-rloo",
            {"baseline": "all"},
            [response(score=1.0, weight=1.0)] * 2,
            "neither `group`",
            "every response",
        ),
        (
            "fusepo-rloo",
            {},
            [WEIGHED, response(None, "gemma", score=0.0, weight=0.5)],
            "different weights within a group",
            "a group's weight on all its members",
        ),
    ],
)
def test_a_row_that_does_not_fit(
    name: str, hyperparameters: dict[str, Any], responses: Sequence[RowResponse], found: str, expected: str
) -> None:
    """The error says what was found and what was expected."""
    with pytest.raises(UnfitRow) as raised:
        members(responses, name, hyperparameters)
    assert found in raised.value.found
    assert expected in raised.value.expected
    assert str(raised.value) == f"{raised.value.found}; expected {raised.value.expected}"


# --- through the command ---------------------------------------------------------------------------------------------

GOOD = {"content": "cold", "source": "gemma", "role": "chosen", "weight": 1.0, "score": 1.0}


def many(*changes: dict[str, Any]) -> dict[str, Any]:
    """A row in the many-responses shape; None removes a key."""
    responses = [{**GOOD, **change} for change in changes]
    return {"prompt": "What is the opposite of hot?", "responses": responses}


def quadruple(rejected_source: str) -> dict[str, Any]:
    """A row for equation 9, with one answer of the given model."""
    sources = {"chosen_source": "gemma", "chosen_target": "target", "rejected": "target"}
    sources["rejected_source"] = rejected_source
    return many(*({"role": role, "source": source, "weight": None} for role, source in sources.items()))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("name", "settings", "good", "bad", "said"),
    [
        (
            "fusesft",
            [],
            many({}),
            many({}, {"weight": None}),
            "a response without `weight`; expected one on every response",
        ),
        ("fusesft", [], many({}), many({"weight": -1}), "the weights -1; expected finite numbers from 0 up, not all 0"),
        ("fusesft", [], many({}), many({"weight": "half"}), '`responses[0].weight` is "half"'),
        (
            "fusepo",
            ["base=simpo"],
            many({}, {"role": "rejected"}),
            many({}, {"role": "rejected", "weight": 0.5}),
            "different weights within a group; expected a group's weight on all its members",
        ),
        (
            "fusepo",
            [],
            many({}, {"role": "rejected"}),
            many({}, {}, {"role": "rejected"}),
            "2 responses with the role 'chosen' in group 'gemma' (roles: chosen, chosen, rejected); expected one",
        ),
        ("fusepo", [], many({}, {"role": "rejected"}), many({}), "there is no rejected response"),
        (
            "rloo",
            [],
            many({"weight": None}, {"weight": None}),
            many({"weight": None}, {"weight": None, "score": None}),
            "a response without `score`; expected one on every response, since 'rloo' compares them",
        ),
        (
            "rloo",
            ["baseline=source"],
            many({"weight": None}, {"weight": None}),
            many({"weight": None}, {"weight": None}, {"weight": None, "source": "qwen"}),
            "a response with no other to compare with; expected two or more of every source",
        ),
        (
            "wrpo",
            ["rejected_mix=true"],
            {"prompt": "q", "chosen_source": "a", "chosen_target": "b", "rejected": "c", "rejected_source": "d"},
            {"prompt": "q", "chosen_source": "a", "chosen_target": "b", "rejected": "c"},
            "there is no rejected_source response",
        ),
        (
            "wrpo",
            ["rejected_mix=true"],
            quadruple(rejected_source="gemma"),
            quadruple(rejected_source="target"),
            "rejected_source has the source 'target'; expected 'gemma', that of chosen_source",
        ),
        ("sft", [], {"prompt": "q", "completion": "a"}, many({"weight": 0.5}), "a response has the weight 0.5"),
    ],
)
def test_the_command_names_file_and_line(
    name: str,
    settings: list[str],
    good: dict[str, Any],
    bad: dict[str, Any],
    said: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    command = [
        "sinterlm",
        "train",
        "--objective",
        name,
        "--model",
        model,
        "--data",
        rows,
        "--output",
        output,
        *settings,
    ]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    assert cli.exit_code() == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "rows.jsonl, line 2" in message
    assert said in message
    assert not output.exists()


# --- some of the pairs ------------------------------------------------------------------------------------------------


def test_what_is_left_of_a_row_is_numbered_anew() -> None:
    """Of three groups with a pair each, the second is left out."""
    sources = [[response(role, source, weight=0.5) for role in ("chosen", "rejected")] for source in "abc"]
    whole = members([each for pair in sources for each in pair], "fusepo")
    assert whole.groups == (0, 0, 1, 1, 2, 2)
    left = with_pairs(whole, [whole.pairs[0], whole.pairs[2]])
    assert left.responses == (*sources[0], *sources[2])
    assert left.pairs == ({"chosen": 0, "rejected": 1}, {"chosen": 2, "rejected": 3})
    assert left.groups == (0, 0, 1, 1)
