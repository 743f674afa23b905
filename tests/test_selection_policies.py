"""The policies of the papers: hand-made cases of every rule, an independent reference, and rows that train."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.chat import encode_example
from sinterlm.formats import read_rows, write_rows
from sinterlm.objectives.named import resolve_objective
from sinterlm.records import Candidates, Message, Prompt, RowResponse, Scored, Selection, TrainingRow
from sinterlm.selection import (
    select_best_of_sources,
    select_fusechat3,
    select_fusepo,
    select_fusepo_rloo,
    select_fusesft,
    select_on_policy,
    select_rloo,
    select_wrpo,
    split_prompts,
)
from sinterlm.selection.choices import REASONS
from sinterlm.selection.policies import POLICIES
from sinterlm.training.members import find_members
from sinterlm.training.sequence_logps import sequence_logps
from tests.answers import PROMPT, Case, any_candidates, candidates, outcome, scored
from tests.reference import selection as reference
from tests.tiny import build_model, build_tokenizer

NAN = math.nan
LOG3 = math.log(3)
TWO_TARGETS: list[Case] = [("t-good", 0.9), ("t-bad", 0.1)]
REQUIRED: Mapping[str, Mapping[str, Any]] = {
    name: {"temperature": 0.5} for name in ("fusesft", "fusepo", "fusepo-rloo")
}
"""The keys that a policy requires, by its name."""


def select(name: str, cases: Sequence[Candidates], *, seed: int = 0, **keys: Any) -> Selection:
    """The policy's selection with these keys in the recipe."""
    policy = POLICIES[name].model_validate({"kind": name, **REQUIRED.get(name, {}), **keys})
    return policy.select(cases, seed=seed, stage="select")


def parts(selection: Selection) -> list[tuple[Any, ...]] | str:
    """Role, source, content and weight of each response of the only row, or the reason of the only drop."""
    if not selection.rows:
        (drop,) = selection.dropped
        return drop.reason
    (row,) = selection.rows
    return [(r.role, r.source, r.content, r.weight and round(r.weight, 6)) for r in row.responses]


def weights(selection: Selection) -> dict[str, float | None]:
    """Weight by content."""
    return {response.content: response.weight for response in selection.rows[0].responses}


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_table_names_every_policy(name: str) -> None:
    policy = POLICIES[name]
    assert select(name, []) == Selection([], [])
    assert policy.description
    assert policy.formula
    assert policy.paper


@given(any_candidates(), st.sampled_from(list(POLICIES)))
def test_the_table_says_what_rows_hold(cases: list[Candidates], name: str) -> None:
    policy = POLICIES[name]
    selection = select(name, cases, truncated="keep")
    for row in selection.rows:
        assert {response.role for response in row.responses} == set(policy.roles or (None,))
        assert all((response.weight is not None) == policy.gives_weights for response in row.responses)
        given_by = {"target" if response.source == "target-sft" else "sources" for response in row.responses}
        assert given_by == set(policy.reads)


# --- rules that all policies share -----------------------------------------------------------------------------------


@given(any_candidates(), st.sampled_from(list(POLICIES)), st.sampled_from(["drop", "keep"]))
def test_every_prompt_has_one_row_or_is_dropped(cases: list[Candidates], name: str, truncated: str) -> None:
    selection = select(name, cases, truncated=truncated)
    with_row = [row.prompt_id for row in selection.rows]
    without = [case.prompt.id for case in cases if case.prompt.id not in with_row]
    assert len(set(with_row)) == len(with_row)
    assert [drop.subject for drop in selection.dropped if drop.subject not in with_row] == without
    assert {drop.reason for drop in selection.dropped} <= set(REASONS)
    for row in selection.rows:
        assert all(response.content.strip() for response in row.responses)
        assert truncated == "keep" or not any(response.truncated for response in row.responses)


@given(any_candidates(), st.sampled_from(list(POLICIES)))
def test_rows_are_the_same_prompt_by_prompt(cases: list[Candidates], name: str) -> None:
    """What the policies of Sinter declare; the pipeline gives them a few prompts at a time."""
    assert POLICIES[name].by_prompt
    alone = [select(name, [case]) for case in cases]
    rows = [row for selection in alone for row in selection.rows]
    assert select(name, cases) == Selection(rows, [drop for selection in alone for drop in selection.dropped])


@given(any_candidates(), st.sampled_from(list(POLICIES)), st.randoms(use_true_random=False))
def test_order_of_samples_is_irrelevant(cases: list[Candidates], name: str, generator: random.Random) -> None:
    def selected(some: Sequence[Candidates]) -> list[Any]:
        selection = select(name, some)
        rows = [
            sorted((str(r.role), r.source, r.index, r.group, r.weight and round(r.weight, 9)) for r in row.responses)
            for row in selection.rows
        ]
        return [rows, sorted((drop.subject, drop.reason) for drop in selection.dropped)]

    def shuffle(answers: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(generator.sample(answers, len(answers)))

    shuffled = [replace(case, sources=shuffle(case.sources), target=shuffle(case.target)) for case in cases]
    assert selected(shuffled) == selected(cases)


MISSING = [
    ("without a score", [("a", NAN), ("b", 0.2), ("c", 0.1)]),
    ("with an infinite score", [("a", math.inf), ("b", 0.2), ("c", 0.1)]),
    ("empty", [(" ", 0.9), ("b", 0.2), ("c", 0.1)]),
    ("cut", [("a", 0.9, "length"), ("b", 0.2), ("c", 0.1)]),
]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("what", "answers"), MISSING, ids=[what for what, _ in MISSING])
def test_an_answer_that_is_not_eligible_takes_no_part(name: str, what: str, answers: list[Case]) -> None:
    selection = select(name, [candidates([answers], answers)])
    (row,) = selection.rows
    assert {response.content for response in row.responses} <= {"b", "c"}, what
    assert POLICIES[name].gives_weights is (row.responses[0].weight is not None)


OF_SOURCES = [name for name, policy in POLICIES.items() if "sources" in policy.reads]


@pytest.mark.parametrize("name", OF_SOURCES)
def test_groups_and_number_of_sources(name: str) -> None:
    """Only the named sources take part; a name without answers to this prompt changes nothing."""
    answers: list[list[Case]] = [[(f"{source}-good", 0.5), (f"{source}-bad", 0.45)] for source in "abc"]
    cases = [candidates(answers, TWO_TARGETS)]
    selection = select(name, cases, sources=["source-1", "source-2", "source-7"])
    used = {response.source for row in selection.rows for response in row.responses} - {"target-sft"}
    assert used
    assert used <= {"source-1", "source-2"}
    assert select(name, cases, sources=["source-7"]).rows == []


@pytest.mark.parametrize("name", OF_SOURCES)
def test_fewer_samples_than_there_are_and_than_asked(name: str) -> None:
    """The first two of four samples take part; if five are requested, all four do."""
    answers: list[Case] = [("a", 0.3), ("b", 0.25), ("c", 0.9), ("d", 0.1)]
    (two,) = select(name, [candidates([answers], TWO_TARGETS)], num_samples=2).rows
    assert {response.content for response in two.responses} <= {"a", "b", "t-good", "t-bad"}
    options: dict[str, Any] = {"window": [0, 1]} if name == "fusechat3" else {}
    (five,) = select(name, [candidates([answers], TWO_TARGETS)], num_samples=5, **options).rows
    assert "c" in {response.content for response in five.responses}


@pytest.mark.parametrize("name", OF_SOURCES)
def test_one_source_is_enough(name: str) -> None:
    """It has the whole weight."""
    answers: list[Case] = [("good", 0.15), ("bad", 0.1)]
    (row,) = select(name, [candidates([answers], TWO_TARGETS)]).rows
    assert {response.source for response in row.responses} - {"target-sft"} == {"source-0"}
    by_group = {r.group or r.content: r.weight for r in row.responses if r.weight is not None}
    assert not by_group or math.fsum(by_group.values()) == pytest.approx(1)


TIED: list[Case] = [("a", 0.15), ("b", 0.1), ("c", 0.15), ("d", 0.1)]
"""Two answers tie for best, two for worst."""


@pytest.mark.parametrize("name", [name for name in POLICIES if "rloo" not in name])
def test_ties_of_every_policy(name: str) -> None:
    """A hash of (seed, prompt id, source, index) decides among the best and among the worst; or the first does.

    Policies that take all samples have none to choose; FuseSFT chooses if it keeps fewer than it has.
    """
    options = {"num_responses": 1} if name == "fusesft" else {}

    def chosen(ties: str, seed: int) -> set[tuple[str | None, str]]:
        selection = select(name, [candidates([TIED], TIED)], seed=seed, ties=ties, **options)
        return {(response.role, response.content) for response in selection.rows[0].responses}

    def smallest(source: str, indices: tuple[int, int], seed: int) -> str:
        key = {n: json.dumps([seed, PROMPT.id, source, n], separators=(",", ":")) for n in indices}
        return str(TIED[min(indices, key=lambda n: hashlib.sha256(key[n].encode()).hexdigest())][0])

    def expected(best: Mapping[str, str], worst: Mapping[str, str]) -> set[tuple[str, str]]:
        source, target = "source-0", "target-sft"
        whose = target if name == "on-policy" else source
        return {
            "wrpo": {("chosen_source", best[source]), ("chosen_target", best[target]), ("rejected", worst[target])},
            "best-of-sources": {("chosen", best[source])},
            "fusesft": {("chosen", best[source])},
        }.get(name, {("chosen", best[whose]), ("rejected", worst[whose])})

    models = ("source-0", "target-sft")
    assert chosen("first", 0) == expected(dict.fromkeys(models, "a"), dict.fromkeys(models, "b"))
    by_hash = [
        expected({m: smallest(m, (0, 2), seed) for m in models}, {m: smallest(m, (1, 3), seed) for m in models})
        for seed in range(8)
    ]
    assert [chosen("hash", seed) for seed in range(8)] == by_hash
    assert len(set(map(frozenset, by_hash))) > 1


def test_a_tie_between_sources_is_one_between_their_answers() -> None:
    """A row of FuseChat-3.0 has one source; if several have equally good best answers, the hash chooses evenly."""
    answers: list[list[Case]] = [[("a", 0.15), ("b", 0.1)], [("c", 0.15), ("d", 0.1)]]
    taken = [outcome(select_fusechat3([candidates(answers)], seed=seed)) for seed in range(40)]
    assert 8 < taken.count({"chosen": "a", "rejected": "b"}) < 32
    assert all(row in ({"chosen": "a", "rejected": "b"}, {"chosen": "c", "rejected": "d"}) for row in taken)


# Some answers of a prompt were checked and others not. Recorded scores may be like this: verdicts are optional.
PARTLY_CHECKED: list[Case] = [("failed", (False, 0.9)), ("unchecked", 0.5), ("worst", (False, 0.45))]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("best-of-sources", {"chosen": "unchecked"}),
        ("fusesft", {"chosen": "unchecked"}),
        ("wrpo", {"chosen_source": "unchecked", "chosen_target": "unchecked", "rejected": "worst"}),
        ("fusepo", {"chosen": "unchecked", "rejected": "worst"}),
        ("fusechat3", {"chosen": "unchecked", "rejected": "worst"}),
        ("on-policy", {"chosen": "unchecked", "rejected": "worst"}),
    ],
)
def test_what_failed_is_never_chosen_before_what_was_not_checked(name: str, expected: Mapping[str, str]) -> None:
    case = candidates([PARTLY_CHECKED], PARTLY_CHECKED)
    assert outcome(select(name, [case])) == expected
    passing: list[Case] = [*PARTLY_CHECKED, ("passed", (True, 0.48))]
    (row,) = select(name, [candidates([passing], passing)]).rows
    assert "passed" in {response.content for response in row.responses}


# --- an independent reference ----------------------------------------------------------------------------------------


def any_answers(generator: random.Random, prompt_id: str, source: str, kind: str) -> list[Scored]:
    """Few texts and few scores, so that ties and duplicates are frequent; some are empty, cut or without a score."""
    num = generator.randint(0, 5)
    indices = generator.choice([range(num), generator.sample(range(num + 2), num)])
    found = []
    for index in indices:
        text = generator.choice(["a", "b", "c", "d", "", " ", f"{source}-{index}"])
        verdict = generator.random() < 0.5
        score: Any = {
            "verdicts": verdict,
            "graded": float(generator.randint(-2, 2)),
            "armorm": round(generator.uniform(0.05, 0.25), 2),
            "gated": (verdict, round(generator.uniform(0.0, 0.3), 2)),
        }[kind if kind != "partly checked" else generator.choice(["verdicts", "graded", "gated"])]
        if generator.random() < 0.07:
            score = generator.choice([NAN, math.inf, -math.inf])
        found.append(scored((text, score, generator.choice(["stop"] * 4 + ["length"])), source, index, prompt_id))
    return found


def any_case(generator: random.Random, number: int) -> Candidates:
    kind = generator.choice(["verdicts", "graded", "armorm", "gated", "partly checked"])
    prompt = Prompt(f"p{number}", PROMPT.messages, (), generator.choice(["", "code", "mathematics"]))
    names = generator.sample([f"source-{n}" for n in range(4)], generator.randint(0, 4))
    sources = [answer for name in names for answer in any_answers(generator, prompt.id, name, kind)]
    return Candidates(prompt, tuple(sources), tuple(any_answers(generator, prompt.id, "target-sft", kind)))


def any_options(generator: random.Random, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of all policies, and those of this one."""
    choose = generator.choice
    shared = {"ties": choose(["hash", "first"]), "truncated": choose(["drop", "keep"])}
    own: dict[str, Any] = {
        "wrpo": {
            "rank": choose([1, 1, 2, 3]),
            "rejected_source": choose([True, False]),
            "target_ties": choose(["keep", "drop"]),
        },
        "fusesft": {"keep": choose(["pooled", "each-source"]), "num_responses": choose([1, 2, 4])},
        "fusechat3": {
            "window": choose([[0.01, 0.1], "none", [0.5, 2.0]]),
            "windows": choose([{}, {"code": "none"}, {"mathematics": [1.0, 4.0]}]),
        },
    }.get(name, {})
    if name in ("wrpo", "fusepo", "on-policy"):
        own["min_margin"] = choose([None, None, 0.0, 0.05, 1.0])
    if name in REQUIRED:
        own["temperature"] = choose([0.0, 0.01, 0.5, 10.0])
    if name in OF_SOURCES:
        own["sources"] = choose([None, None, ["source-0"], ["source-2", "source-0", "source-9"]])
        own["num_samples"] = choose([None, None, 1, 2, 9])
    return shared, own


@pytest.mark.parametrize("name", POLICIES)
def test_agrees_with_the_reference(name: str) -> None:
    """Ties, duplicates, missing scores, partial verdicts, ranks, groups, windows, margins: the same as loops give."""
    generator, num_rows = random.Random(name), 0
    for number in range(800):
        case, seed = any_case(generator, number), generator.randint(0, 3)
        shared, own = any_options(generator, name)
        expected = reference.POLICIES[name](case, reference.Rules(seed, **shared), **own)
        given = shared if "rloo" not in name else {"truncated": shared["truncated"]}
        selected = select(name, [case], seed=seed, **given, **own)
        found = [
            [(r.role, r.source, r.index, r.group, r.weight and pytest.approx(r.weight)) for r in row.responses]
            for row in selected.rows
        ]
        assert found == ([] if expected is None else [expected]), (case, seed, shared, own)
        num_rows += len(found)
    assert 40 <= num_rows <= 760, "both what gives rows and what does not"


# --- wrpo ------------------------------------------------------------------------------------------------------------


def quadruple(source: str, **others: str) -> dict[str, str]:
    return {"chosen_source": source, "chosen_target": "t-good", "rejected": "t-bad", **others}


WRPO_CASES: list[tuple[str, list[list[Case]], dict[str, Any], Any]] = [
    ("second best", [[("a", 0.1), ("b", 0.7)], [("c", 0.9)]], {"rank": 2}, quadruple("b")),
    ("second best of the same source", [[("a", 0.1), ("b", 0.7), ("c", 0.9)]], {"rank": 2}, quadruple("b")),
    ("the best text again is not second", [[("a", 0.9), ("b", 0.3)], [("a", 0.9)]], {"rank": 2}, quadruple("b")),
    (
        "a tie at the top fills both ranks",
        [[("a", 0.9), ("b", 0.9), ("c", 0.8)]],
        {"rank": 2, "ties": "first"},
        quadruple("b"),
    ),
    ("no second text", [[("a", 0.9), ("a", 0.9)]], {"rank": 2}, "no-source-answer-of-that-rank"),
    ("the second best fails", [[("a", True), ("b", False)]], {"rank": 2}, "no-passing-source-answer"),
    ("the second best passes", [[("a", True), ("b", True)]], {"rank": 2, "ties": "first"}, quadruple("b")),
    (
        "worst of the source that gave the best, not of all",
        [[("a", 0.1), ("b", 0.2)], [("c", 0.5), ("d", 0.9), ("e", 0.7)]],
        {"rejected_source": True},
        quadruple("d", rejected_source="c"),
    ),
    (
        "beside the second best",
        [[("a", 0.8), ("b", 0.2)], [("c", 0.5), ("d", 0.9)]],
        {"rejected_source": True, "rank": 2},
        quadruple("a", rejected_source="b"),
    ),
    ("one answer of that source", [[("a", 0.9)], [("b", 0.1)]], {"rejected_source": True}, "no-rejected-source-answer"),
    ("equal scores", [[("a", 0.9), ("b", 0.9)]], {"rejected_source": True}, "no-rejected-source-answer"),
    ("the same text", [[("a", 0.9), ("a", 0.1)]], {"rejected_source": True}, "no-rejected-source-answer"),
    ("only empty beside it", [[("a", 0.9), ("", 0.1)]], {"rejected_source": True}, "no-rejected-source-answer"),
    ("all pass", [[("a", True), ("b", True)]], {"rejected_source": True}, "no-rejected-source-answer"),
    (
        "one fails",
        [[("a", True), ("b", True), ("c", False)]],
        {"rejected_source": True, "ties": "first"},
        quadruple("a", rejected_source="c"),
    ),
    (
        "the failing one, even with the higher number",
        [[("a", (True, 0.2)), ("b", (True, 0.1)), ("c", (False, 0.9))]],
        {"rejected_source": True},
        quadruple("a", rejected_source="c"),
    ),
]


@pytest.mark.parametrize(("name", "sources", "options", "expected"), WRPO_CASES, ids=[case[0] for case in WRPO_CASES])
def test_wrpo_cases(name: str, sources: list[list[Case]], options: dict[str, Any], expected: Any) -> None:
    assert outcome(select_wrpo([candidates(sources, TWO_TARGETS)], seed=0, **options)) == expected


@given(any_candidates(graded=True))
def test_rank_1_of_what_is_left_is_rank_2(cases: list[Candidates]) -> None:
    """Without the best text, the second best becomes the best."""

    def chosen(some: Candidates, rank: int) -> str | None:
        target = candidates(target=TWO_TARGETS).target
        rows = select_wrpo([replace(some, target=target)], seed=0, rank=rank).rows
        return rows[0].with_role("chosen_source").content if rows else None

    for case in cases:
        best = chosen(case, 1)
        left = replace(case, sources=tuple(a for a in case.sources if a.response.content != best))
        assert chosen(case, 2) == chosen(left, 1)


def test_a_third_and_two_thirds() -> None:
    """The papers' 59,876 prompts: 19,959 for SFT leave 39,917, the 311 steps of 128 rows of the authors' code."""
    prompts = [Prompt(f"p{number}", (Message("user", f"Question {number}?"),)) for number in range(59_876)]
    split = split_prompts(prompts, held_out=0, sft=19_959, development=0, preference="rest", seed=0)
    assert (len(split.sft), len(split.preference)) == (19_959, 39_917)
    assert len(split.preference) // 128 == 311


# --- best of one source, the control ---------------------------------------------------------------------------------


def test_the_best_of_one_source_sees_as_many_samples_as_the_mix() -> None:
    """Two sources: three samples of each for the mix, six of one for the control."""
    answers = [[(f"a{n}", 0.1 * n) for n in range(6)], [(f"b{n}", 0.15 * n) for n in range(6)]]
    case = candidates(answers)
    mix = select_best_of_sources([case], seed=0, num_samples=3)
    control = select_best_of_sources([case], seed=0, sources=["source-0"])
    assert (outcome(mix), outcome(control)) == ({"chosen": "b2"}, {"chosen": "a5"})


# --- fusesft ---------------------------------------------------------------------------------------------------------

# Scores log 3, 0 and log 6 at temperature 1 weigh 3 : 1 : 6; at temperature 0.5 9 : 1 : 36.
FUSESFT_CASES: list[tuple[str, list[list[Case]], dict[str, Any], Any]] = [
    (
        "the best M of all, whoever gave them",
        [[("a", LOG3), ("b", math.log(6)), ("c", -9.0)], [("d", 0.0), ("e", -1.0)]],
        {"num_responses": 3},
        {"b": 0.6, "a": 0.3, "d": 0.1},
    ),
    ("temperature", [[("a", LOG3), ("b", 0.0)]], {"temperature": 0.5}, {"a": 0.9, "b": 0.1}),
    ("temperature 0: the best alone", [[("a", 0.5), ("b", 0.4)]], {"temperature": 0.0}, {"a": 1.0, "b": 0.0}),
    ("M = 1: plain SFT", [[("a", 0.5), ("b", 0.4)], [("c", 0.6)]], {"num_responses": 1}, {"c": 1.0}),
    ("fewer than M", [[("a", 0.5)], [("b", 0.5)]], {}, {"a": 0.5, "b": 0.5}),
    ("one source, one answer", [[("a", 0.5)]], {}, {"a": 1.0}),
    ("one text counts once", [[("a", 0.5), ("a", 0.5)], [("a", 0.5), ("b", 0.5)]], {}, {"a": 0.5, "b": 0.5}),
    (
        "best of each source",
        [[("a", LOG3), ("b", math.log(6))], [("c", LOG3), ("d", 0.0)]],
        {"keep": "each-source"},
        {"b": 2 / 3, "c": 1 / 3},
    ),
    ("best of each source, of one text", [[("a", 0.5)], [("a", 0.5)]], {"keep": "each-source"}, {"a": 1.0}),
    (
        "best of each source, at most M",
        [[("a", 0.1)], [("b", 0.9)]],
        {"keep": "each-source", "num_responses": 1},
        {"b": 1.0},
    ),
    ("passing ones only", [[("a", True), ("b", False)], [("c", True)]], {}, {"a": 0.5, "c": 0.5}),
    (
        "best of each source that passes",
        [[("a", True), ("b", False)], [("c", False)]],
        {"keep": "each-source"},
        {"a": 1.0},
    ),
    (
        "verified, then graded: a failing one never",
        [[("a", (True, LOG3)), ("b", (False, 9.0)), ("c", (True, 0.0))]],
        {},
        {"a": 0.75, "c": 0.25},
    ),
    ("none passes", [[("a", False)]], {}, "no-passing-source-answer"),
    ("nothing eligible", [[("a", NAN), ("", 1.0)]], {}, "no-eligible-source-answer"),
    ("no source", [], {}, "no-eligible-source-answer"),
]


@pytest.mark.parametrize(
    ("name", "sources", "options", "expected"), FUSESFT_CASES, ids=[case[0] for case in FUSESFT_CASES]
)
def test_fusesft_cases(name: str, sources: list[list[Case]], options: dict[str, Any], expected: Any) -> None:
    selection = select_fusesft([candidates(sources)], seed=0, **{"temperature": 1.0, **options})
    if isinstance(expected, str):
        assert outcome(selection) == expected
        return
    assert weights(selection) == pytest.approx(expected)
    assert [response.role for response in selection.rows[0].responses] == ["chosen"] * len(expected)


# --- fusepo ----------------------------------------------------------------------------------------------------------

FUSEPO_CASES: list[tuple[str, list[list[Case]], dict[str, Any], Any, list[tuple[str, str]]]] = [
    # name, answers by source, options, parts of the row or reason, what the row leaves out
    (
        "one pair of each source, weighed by its best score",
        [[("a", LOG3), ("b", 0.0), ("c", -1.0)], [("d", -5.0), ("e", 0.0)]],
        {},
        [
            ("chosen", "source-0", "a", 0.75),
            ("rejected", "source-0", "c", 0.75),
            ("chosen", "source-1", "e", 0.25),
            ("rejected", "source-1", "d", 0.25),
        ],
        [],
    ),
    (
        "equal best scores: equal weights",
        [[("a", 0.5), ("b", 0.1)], [("c", 0.5), ("d", 0.4)]],
        {"temperature": 0.01},
        [
            ("chosen", "source-0", "a", 0.5),
            ("rejected", "source-0", "b", 0.5),
            ("chosen", "source-1", "c", 0.5),
            ("rejected", "source-1", "d", 0.5),
        ],
        [],
    ),
    (
        "one source: weight 1",
        [[("a", 0.5), ("b", 0.1)]],
        {},
        [("chosen", "source-0", "a", 1.0), ("rejected", "source-0", "b", 1.0)],
        [],
    ),
    (
        "pass or fail: sources without both are left out, and weigh nothing",
        [[("a", True), ("b", False)], [("c", True), ("d", True)], [("e", False), ("f", False)], [("g", True)]],
        {},
        [("chosen", "source-0", "a", 1.0), ("rejected", "source-0", "b", 1.0)],
        [
            ("no-failing-source-answer", "source-1: all 2 eligible answers pass"),
            ("tied-source-answers", "source-2: best score 0, worst 0"),
            ("fewer-than-two-different-source-answers", "source-3: 1 of 1 answers eligible"),
        ],
    ),
    (
        "equal scores and equal texts are left out",
        [[("a", 0.5), ("b", 0.1)], [("c", 0.4), ("d", 0.4)], [("e", 0.4), ("e", 0.1)]],
        {},
        [("chosen", "source-0", "a", 1.0), ("rejected", "source-0", "b", 1.0)],
        [
            ("tied-source-answers", "source-1: best score 0.4, worst 0.4"),
            ("fewer-than-two-different-source-answers", "source-2: 2 of 2 answers eligible"),
        ],
    ),
    (
        "pairs closer than the margin are left out",
        [[("a", 0.5), ("b", 0.3)], [("c", 0.75), ("d", 0.5)]],
        {"min_margin": 0.25},
        [("chosen", "source-1", "c", 1.0), ("rejected", "source-1", "d", 1.0)],
        [("source-margin-outside-window", "source-0: margin 0.2")],
    ),
    ("no source has a pair", [[("a", True)], [("b", False), ("c", False)]], {}, "no-source-pair", []),
    ("no source answers", [], {}, "no-source-pair", []),
]


@pytest.mark.parametrize(
    ("name", "sources", "options", "expected", "left_out"), FUSEPO_CASES, ids=[case[0] for case in FUSEPO_CASES]
)
def test_fusepo_cases(
    name: str, sources: list[list[Case]], options: dict[str, Any], expected: Any, left_out: list[tuple[str, str]]
) -> None:
    selection = select_fusepo([candidates(sources)], seed=0, **{"temperature": 1.0, **options})
    assert parts(selection) == expected
    if selection.rows:
        assert [(drop.reason, drop.detail) for drop in selection.dropped] == left_out
        assert all(response.group == response.source for response in selection.rows[0].responses)


def test_a_prompt_without_pairs_says_why_for_every_source() -> None:
    (drop,) = select_fusepo(
        [candidates([[("a", True)], [("b", False), ("c", False)]])], seed=0, temperature=1.0
    ).dropped
    assert drop.detail == (
        "source-0: 1 of 1 answers eligible (fewer-than-two-different-source-answers); "
        "source-1: best score 0, worst 0 (tied-source-answers)"
    )


@given(st.integers(1, 4), st.integers(2, 5), st.floats(0.1, 3), st.integers(0, 2**32 - 1))
def test_fusepo_and_fusesft_agree_with_numpy(k: int, n: int, temperature: float, seed: int) -> None:
    """Equations of FuseRL on a K x N matrix of different scores."""
    scores = np.random.default_rng(seed).normal(size=(k, n))
    case = candidates([[(f"{row}-{column}", scores[row, column]) for column in range(n)] for row in range(k)])
    best = np.exp(scores.max(axis=1) / temperature)
    (row,) = select_fusepo([case], seed=0, temperature=temperature).rows
    assert [(r.role, r.content) for r in row.responses] == [
        pair
        for source in range(k)
        for pair in (
            ("chosen", f"{source}-{scores[source].argmax()}"),
            ("rejected", f"{source}-{scores[source].argmin()}"),
        )
    ]
    assert [r.weight for r in row.responses] == pytest.approx(list(np.repeat(best / best.sum(), 2)))
    top = np.argsort(-scores, axis=None)[:4]
    pooled = np.exp(scores.ravel()[top] / temperature)
    expected = {f"{index // n}-{index % n}": weight for index, weight in zip(top, pooled / pooled.sum(), strict=True)}
    assert weights(select_fusesft([case], seed=0, temperature=temperature)) == pytest.approx(expected)


# --- all samples -----------------------------------------------------------------------------------------------------


def test_fusepo_rloo_takes_every_eligible_answer() -> None:
    """Best scores log 3 and 0 weigh 3 : 1; a source with one eligible answer is left out; duplicates stay."""
    answers: list[list[Case]] = [
        [("a", LOG3), ("b", -2.0), ("b", -2.0), ("", 0.0)],
        [("c", 0.0), ("d", 0.0)],
        [("e", 9.0), ("f", NAN)],
    ]
    selection = select_fusepo_rloo([candidates(answers)], seed=0, temperature=1.0)
    assert parts(selection) == [
        (None, "source-0", "a", 0.75),
        (None, "source-0", "b", 0.75),
        (None, "source-0", "b", 0.75),
        (None, "source-1", "c", 0.25),
        (None, "source-1", "d", 0.25),
    ]
    assert [(drop.reason, drop.detail) for drop in selection.dropped] == [
        ("fewer-than-two-answers-to-compare", "source-2: 1 of 2 answers eligible")
    ]
    assert [response.score for response in selection.rows[0].responses] == [LOG3, -2.0, -2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ([[("a", 0.5), ("b", 0.5)], [("c", 0.1), ("d", 0.1)]], "equal-scores"),
        ([[("a", True), ("b", True)]], "equal-scores"),
        ([[("a", 0.5)], [("b", 0.1)]], "fewer-than-two-answers-to-compare"),
        ([], "fewer-than-two-answers-to-compare"),
    ],
)
def test_fusepo_rloo_drops(sources: list[list[Case]], reason: str) -> None:
    assert parts(select_fusepo_rloo([candidates(sources)], seed=0, temperature=1.0)) == reason


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ([("a", 0.5), ("b", 0.1), ("a", 0.5)], [("a", 0.5), ("b", 0.1), ("a", 0.5)]),
        ([("a", True), ("b", False), ("c", True, "length")], [("a", 1.0), ("b", 0.0)]),
        ([("a", 0.5), ("b", 0.5)], "equal-scores"),
        ([("a", 0.5), ("", 0.1)], "fewer-than-two-answers-to-compare"),
        ([], "fewer-than-two-answers-to-compare"),
    ],
)
def test_rloo_cases(target: list[Case], expected: Any) -> None:
    selection = select_rloo([candidates([[("s", 9.0)]], target)], seed=0)
    if isinstance(expected, str):
        assert parts(selection) == expected
    else:
        assert [(r.content, r.score) for r in selection.rows[0].responses] == expected


# --- fusechat3 -------------------------------------------------------------------------------------------------------

FUSECHAT3_CASES: list[tuple[str, list[list[Case]], dict[str, Any], Any]] = [
    (
        "of several sources that with the best chosen answer",
        [[("a", 0.15), ("b", 0.10)], [("c", 0.17), ("d", 0.12), ("e", 0.15)]],
        {},
        {"chosen": "c", "rejected": "d"},
    ),
    (
        "the next source, where the margin of the best is too wide",
        [[("a", 0.15), ("b", 0.10)], [("c", 0.30), ("d", 0.12)]],
        {},
        {"chosen": "a", "rejected": "b"},
    ),
    (
        "the next source, where the margin of the best is too small",
        [[("a", 0.15), ("b", 0.10)], [("c", 0.160), ("d", 0.155)]],
        {},
        {"chosen": "a", "rejected": "b"},
    ),
    ("lowest margin, as written", [[("a", 0.15), ("b", 0.14)]], {}, {"chosen": "a", "rejected": "b"}),
    ("highest margin, as written", [[("a", 0.3), ("b", 0.2)]], {}, {"chosen": "a", "rejected": "b"}),
    ("below", [[("a", 0.15), ("b", 0.1405)]], {}, "no-source-pair"),
    ("above", [[("a", 0.3), ("b", 0.1995)]], {}, "no-source-pair"),
    (
        "another window",
        [[("a", 9), ("b", 1)], [("c", 7), ("d", 5)]],
        {"window": [1, 4]},
        {"chosen": "c", "rejected": "d"},
    ),
    ("no window", [[("a", 9), ("b", 1)]], {"window": "none"}, {"chosen": "a", "rejected": "b"}),
    ("verdicts alone know no window", [[("a", True), ("b", False)]], {}, {"chosen": "a", "rejected": "b"}),
    (
        "mathematics: a right answer of high score, a wrong one of low score",
        [[("a", (True, 0.14)), ("b", (True, 0.16)), ("c", (False, 0.15)), ("d", (False, 0.11))]],
        {},
        {"chosen": "b", "rejected": "d"},
    ),
    (
        "mathematics: a wrong answer of higher score lies in no window",
        [[("a", (True, 0.14)), ("b", (False, 0.16))], [("c", (True, 0.13)), ("d", (False, 0.11))]],
        {},
        {"chosen": "c", "rejected": "d"},
    ),
    (
        "code: no window of its own",
        [[("a", (True, 0.9)), ("b", (False, 0.2))]],
        {"windows": {"code": "none"}},
        {"chosen": "a", "rejected": "b"},
    ),
    ("another domain's window", [[("a", 0.9), ("b", 0.2)]], {"windows": {"chat": "none"}}, "no-source-pair"),
    ("all fail", [[("a", False), ("b", False)], [("c", (False, 0.9))]], {}, "no-passing-source-answer"),
    ("all pass", [[("a", True), ("b", True)]], {}, "no-source-pair"),
    ("right and wrong, but not of one source", [[("a", True)], [("b", False)]], {}, "no-source-pair"),
    ("identical answers", [[("a", 0.5), ("a", 0.5)]], {}, "no-source-pair"),
    ("one answer", [[("a", 0.5)]], {}, "no-source-pair"),
    ("no source", [], {}, "no-eligible-source-answer"),
]


@pytest.mark.parametrize(
    ("name", "sources", "options", "expected"), FUSECHAT3_CASES, ids=[case[0] for case in FUSECHAT3_CASES]
)
def test_fusechat3_cases(name: str, sources: list[list[Case]], options: dict[str, Any], expected: Any) -> None:
    case = candidates(sources, TWO_TARGETS, prompt=replace(PROMPT, domain="code"))
    assert outcome(select_fusechat3([case], seed=0, **options)) == expected


@given(any_candidates())
def test_fusechat3_pairs_are_of_one_source_and_inside_the_window(cases: list[Candidates]) -> None:
    for row in select_fusechat3(cases, seed=0, window=[1, 2]).rows:
        chosen, rejected = row.with_role("chosen"), row.with_role("rejected")
        assert chosen.source == rejected.source
        assert chosen.content != rejected.content
        assert chosen.score is not None
        assert rejected.score is not None
        assert 1 <= chosen.score - rejected.score <= 2


# --- on-policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "min_margin", "expected"),
    [
        ([("a", 0.5), ("b", 0.3)], 0.2, {"chosen": "a", "rejected": "b"}),
        ([("a", 0.5), ("b", 0.3)], 0.25, "target-margin-outside-window"),
        ([("a", 0.5), ("b", 0.5)], 0.0, "tied-target-answers"),
        ([("a", True), ("b", False)], 5.0, {"chosen": "a", "rejected": "b"}),
        ([("a", (True, 0.2)), ("b", (False, 0.9))], 0.0, "target-margin-outside-window"),
        ([("a", (True, 0.2)), ("b", (False, 0.9))], None, {"chosen": "a", "rejected": "b"}),
    ],
)
def test_margin_threshold(target: list[Case], min_margin: float | None, expected: Any) -> None:
    assert outcome(select_on_policy([candidates([], target)], seed=0, min_margin=min_margin)) == expected
    row = outcome(select_wrpo([candidates([[("s", True)]], target)], seed=0, min_margin=min_margin, target_ties="drop"))
    if isinstance(expected, str):
        assert row == expected
    else:
        assert row == {"chosen_source": "s", "chosen_target": expected["chosen"], "rejected": expected["rejected"]}


# --- rows that train -------------------------------------------------------------------------------------------------

TOKENIZER = build_tokenizer()
SOURCES: list[list[Case]] = [
    [("Paris is the capital.", 0.9), ("Rome", 0.1), ("the capital", 0.4)],
    [("Paris", 0.8), ("France", 0.6), ("cold", 0.2)],
]
TARGET: list[Case] = [("Paris, one word.", 0.7), ("hot", 0.0), ("capital", 0.5)]
Logps = Callable[[RowResponse], float]


def expected_fusesft(row: TrainingRow, logp: Logps, tokens: Logps) -> float:
    """-Σ w log π over Σ w n: a mean over tokens, as in SFT."""
    weighted = sum((r.weight or 0) * logp(r) for r in row.responses)
    return -weighted / sum((r.weight or 0) * tokens(r) for r in row.responses)


def expected_fusepo(row: TrainingRow, logp: Logps, tokens: Logps) -> float:
    """Policy and reference are equal at the first step: every pair's loss is log 2, and the weights sum to 1."""
    return math.log(2)


def expected_advantages(row: TrainingRow, logp: Logps, tokens: Logps) -> float:
    """-Σ_k w_k 1/N_k Σ_i A_ki log π(y_ki); one group of weight 1 if rows have none."""
    loss = 0.0
    for source in {response.source for response in row.responses}:
        own = [response for response in row.responses if response.source == source]
        for response in own:
            others = [other.score or 0.0 for other in own if other is not response]
            advantage = (response.score or 0.0) - sum(others) / len(others)
            weight = 1.0 if response.weight is None else response.weight
            loss -= weight * advantage * logp(response) / len(own)
    return loss


@pytest.mark.parametrize(
    ("policy", "objective", "expected"),
    [
        ("fusesft", "fusesft", expected_fusesft),
        ("fusepo", "fusepo", expected_fusepo),
        ("fusepo-rloo", "fusepo-rloo", expected_advantages),
        ("rloo", "rloo", expected_advantages),
        ("fusechat3", "ln-dpo", expected_fusepo),
        ("wrpo", "wrpo", expected_fusepo),
    ],
)
def test_rows_train_as_they_are(
    policy: str, objective: str, expected: Callable[[TrainingRow, Logps, Logps], float], tmp_path: Path
) -> None:
    """From candidates through a file of rows to one optimizer step, whose loss is the equation's."""
    options: dict[str, Any] = {"window": "none"} if policy == "fusechat3" else {}
    options |= {"rejected_source": True} if policy == "wrpo" else {}
    hyperparameters: dict[str, Any] = {"rejected_mix": True} if policy == "wrpo" else {}
    selection = select(policy, [candidates(SOURCES, TARGET)], **options)
    write_rows(tmp_path / "rows.parquet", selection.rows)
    (row,) = rows = read_rows(tmp_path / "rows.parquet")
    assert rows == selection.rows
    find_members(row, resolve_objective(objective, hyperparameters))

    model = build_model(TOKENIZER)
    responses = list(row.responses)
    examples = [encode_example(TOKENIZER, row.messages, r.content, truncated=r.truncated) for r in responses]
    logps = sequence_logps(model, examples)
    wanted = expected(
        row, lambda r: logps[responses.index(r)].logp, lambda r: float(logps[responses.index(r)].num_tokens)
    )

    config = FusionConfig(
        str(tmp_path / "model"),
        objective=objective,
        max_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **hyperparameters,
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = FusionTrainer(model, config, rows, TOKENIZER)
    trainer.train()
    (step,) = (record for record in trainer.state.log_history if "loss" in record)
    assert step["loss"] == pytest.approx(wanted, rel=1e-4)
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
