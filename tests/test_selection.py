"""Selection: hand-made tables of cases, and properties of all candidates."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinterlm.errors import InputError
from sinterlm.records import Candidates, Dropped, Message, Prompt, Score, Scored, Selection, TrainingRow
from sinterlm.selection import select_best_of_sources, select_on_policy, select_wrpo, split_prompts
from sinterlm.selection.choices import REASONS
from sinterlm.selection.ranking import tie_order
from sinterlm.selection.weights import softmax_weights, source_weights
from tests.answers import PROMPT, Case, any_candidates, candidates, outcome, scored
from tests.reference import preference


def quadruple(chosen_source: str, chosen_target: str, rejected: str) -> dict[str, str]:
    return {"chosen_source": chosen_source, "chosen_target": chosen_target, "rejected": rejected}


RIGHT = [[("Paris", True)]]
TOO_FEW = "fewer-than-two-different-target-answers"
TIED = "tied-target-answers"
WRPO_CASES: list[tuple[str, list[list[Case]], list[Case], dict[str, Any], dict[str, str] | str]] = [
    # name, answers by source, answers of the target, options, roles or reason
    (
        "the best over all samples of all sources",
        [[("a", 0.1), ("b", 0.7)], [("c", 0.9), ("d", -3.0)]],
        [("e", 0.5), ("f", 0.2), ("g", 0.3)],
        {},
        quadruple("c", "e", "f"),
    ),
    ("negative scores", [[("a", -2.0), ("b", -1.0)]], [("c", -5.0), ("d", -4.0)], {}, quadruple("b", "d", "c")),
    ("pass or fail", RIGHT, [("Rome", False), ("Paris", True)], {}, quadruple("Paris", "Paris", "Rome")),
    ("no source passes", [[("Rome", False)]], [("Rome", False), ("Paris", True)], {}, "no-passing-source-answer"),
    ("no source answers", [], [("Rome", False), ("Paris", True)], {}, "no-eligible-source-answer"),
    ("empty answers only", [[("", True), (" \n", True)]], [("a", 1.0), ("b", 0.0)], {}, "no-eligible-source-answer"),
    ("all cut", [[("Paris", True, "length")]], [("a", False), ("b", True)], {}, "no-eligible-source-answer"),
    (
        "cut answers kept on demand",
        [[("Paris", True, "length")]],
        [("Rome", False, "length"), ("Paris", True)],
        {"truncated": "keep"},
        quadruple("Paris", "Paris", "Rome"),
    ),
    ("an empty answer is never kept", RIGHT, [("", False, "length"), ("Paris", True)], {"truncated": "keep"}, TOO_FEW),
    (
        "a better cut answer is passed over",
        [[("a", 9.0, "length"), ("b", 1.0)]],
        [("c", 1.0), ("d", 0.0)],
        {},
        quadruple("b", "c", "d"),
    ),
    (
        "a better answer without score",
        [[("a", math.nan), ("b", 1.0)]],
        [("c", 1.0), ("d", 0.0)],
        {},
        quadruple("b", "c", "d"),
    ),
    ("target never fails", RIGHT, [("Paris", True), ("Paris.", True)], {}, "no-failing-target-answer"),
    ("target says one thing", RIGHT, [("Rome", False), ("Rome", False)], {}, TOO_FEW),
    ("target says one eligible thing", RIGHT, [("Rome", False), ("Oslo", False, "length"), ("", False)], {}, TOO_FEW),
    ("target was not sampled", RIGHT, [], {}, TOO_FEW),
    (
        "target never passes",
        RIGHT,
        [("Rome", False), ("Oslo", False)],
        {"ties": "first"},
        quadruple("Paris", "Oslo", "Rome"),
    ),
    ("target never passes, dropped", RIGHT, [("Rome", False), ("Oslo", False)], {"target_ties": "drop"}, TIED),
    (
        "graded scores all equal",
        [[("a", 1.0)]],
        [("b", 0.5), ("b", 0.5), ("c", 0.5), ("d", 0.5)],
        {"ties": "first"},
        quadruple("a", "c", "b"),
    ),
    ("graded scores all equal, dropped", [[("a", 1.0)]], [("b", 0.5), ("c", 0.5)], {"target_ties": "drop"}, TIED),
    (
        "graded scores stay under target_ties: drop",
        [[("a", 1.0)]],
        [("b", 0.5), ("c", 0.6)],
        {"target_ties": "drop"},
        quadruple("a", "c", "b"),
    ),
    (
        "first maximum and first minimum",
        [[("a", 0.5), ("b", 0.9)], [("c", 0.9)]],
        [("d", 0.1), ("e", 0.8), ("f", 0.1), ("g", 0.8)],
        {"ties": "first"},
        quadruple("b", "e", "d"),
    ),
]


@pytest.mark.parametrize(("name", "sources", "target", "options", "expected"), WRPO_CASES)
def test_wrpo_cases(
    name: str, sources: list[list[Case]], target: list[Case], options: dict[str, Any], expected: object
) -> None:
    assert outcome(select_wrpo([candidates(sources, target)], seed=0, **options)) == expected, name


def test_passing_outranks_a_higher_score() -> None:
    """A scorer that checks, then grades, may give the higher grade to a wrong answer."""
    wrong, right = scored(("Lyon", 0.0), "gemma", 0), scored(("Paris", 0.0), "gemma", 1)
    answers = (
        Scored(wrong.response, Score(wrong.response.id, "scorer", 0.9, False)),
        Scored(right.response, Score(right.response.id, "scorer", 0.2, True)),
    )
    case = Candidates(PROMPT, answers, answers)
    assert outcome(select_wrpo([case], seed=0)) == quadruple("Paris", "Paris", "Lyon")


def test_graded_failures_still_tie() -> None:
    """If the target never passes, a higher grade does not win: ``target_ties`` decides whether the prompt stays."""
    answers = tuple(
        Scored(scored((content, 0.0), "target-sft", index).response, Score("x", "scorer", value, False))
        for index, (content, value) in enumerate([("Lyon", 0.9), ("Nice", 0.2)])
    )
    case = Candidates(PROMPT, candidates(RIGHT).sources, answers)
    assert outcome(select_wrpo([case], seed=0)) == quadruple("Paris", "Lyon", "Nice")
    assert outcome(select_wrpo([case], seed=0, target_ties="drop")) == TIED
    assert outcome(select_on_policy([case], seed=0)) == TIED


def test_wrpo_row_is_whole() -> None:
    """The row contains the prompt as the target receives it, and every answer's source, index, score and cut."""
    case = candidates(
        [[("Lyon", 0.1), ("Paris", 0.9, "length")], [("Nice", 0.2)]], [("Oslo", 0.3), ("Bern", 0.4), ("Rome", 0.0)]
    )
    selection = select_wrpo([case], seed=0, truncated="keep")
    (row,) = selection.rows
    assert selection.dropped == []
    assert isinstance(row, TrainingRow)
    assert (row.prompt_id, row.messages, row.weight) == (PROMPT.id, PROMPT.messages, 1.0)
    found = [(r.role, r.content, r.source, r.index, r.score, r.truncated, r.weight) for r in row.responses]
    assert found == [
        ("chosen_source", "Paris", "source-0", 1, 0.9, True, None),
        ("chosen_target", "Bern", "target-sft", 1, 0.4, False, None),
        ("rejected", "Rome", "target-sft", 2, 0.0, False, None),
    ]


ON_POLICY_CASES: list[tuple[list[Case], dict[str, Any], Any]] = [
    ([("a", 0.1), ("b", 0.7), ("c", 0.4)], {}, {"chosen": "b", "rejected": "a"}),
    ([("Paris", True), ("Rome", False)], {}, {"chosen": "Paris", "rejected": "Rome"}),
    ([("Paris", True), ("Paris!", True)], {}, "no-failing-target-answer"),
    ([("Oslo", False), ("Rome", False)], {}, "tied-target-answers"),
    ([("a", 0.5), ("b", 0.5)], {}, "tied-target-answers"),
    ([("a", 0.5), ("a", 0.5)], {}, "fewer-than-two-different-target-answers"),
    ([("a", 0.9, "length"), ("b", 0.5), ("c", 0.1)], {}, {"chosen": "b", "rejected": "c"}),
    ([("a", 0.9, "length"), ("b", 0.5), ("c", 0.1)], {"truncated": "keep"}, {"chosen": "a", "rejected": "c"}),
    ([("a", 0.9), ("b", 0.1), ("c", 0.9), ("d", 0.1)], {"ties": "first"}, {"chosen": "a", "rejected": "b"}),
]


@pytest.mark.parametrize(("target", "options", "expected"), ON_POLICY_CASES)
def test_on_policy_cases(target: list[Case], options: dict[str, Any], expected: Any) -> None:
    assert outcome(select_on_policy([candidates([], target)], seed=0, **options)) == expected


BEST_OF_SOURCES_CASES: list[tuple[list[list[Case]], dict[str, Any], Any]] = [
    ([[("a", 0.1)], [("b", 0.7), ("c", 0.4)]], {}, {"chosen": "b"}),
    ([[("Rome", False)], [("Paris", True)]], {}, {"chosen": "Paris"}),
    ([[("Rome", False)], [("Oslo", False)]], {}, "no-passing-source-answer"),
    ([[("a", 0.7, "length")], [("b", 0.1)]], {}, {"chosen": "b"}),
    ([[("a", 0.7, "length")], [("b", 0.1)]], {"truncated": "keep"}, {"chosen": "a"}),
    ([[("a", 0.7)], [("b", 0.7)]], {"ties": "first"}, {"chosen": "a"}),
    ([[("", 1.0)], []], {}, "no-eligible-source-answer"),
]


@pytest.mark.parametrize(("sources", "options", "expected"), BEST_OF_SOURCES_CASES)
def test_best_of_sources_cases(sources: list[list[Case]], options: dict[str, Any], expected: Any) -> None:
    assert outcome(select_best_of_sources([candidates(sources)], seed=0, **options)) == expected


def test_ties_go_to_the_smallest_hash() -> None:
    """y_l has the smallest hash of all tied answers, y_wt the smallest of those with other texts."""

    def sha256(source: str, index: int) -> str:
        return hashlib.sha256(json.dumps([7, PROMPT.id, source, index], separators=(",", ":")).encode()).hexdigest()

    case = candidates([[("a", True)] * 4, [("b", True)] * 4], [("c", False), ("d", False), ("e", False), ("e", False)])
    (row,) = select_wrpo([case], seed=7).rows
    by_source = min((sha256(f"source-{s}", i), f"source-{s}", i) for s in range(2) for i in range(4))
    y_ws = row.with_role("chosen_source")
    assert (y_ws.source, y_ws.index) == by_source[1:]
    ordered = [index for _, index in sorted((sha256("target-sft", index), index) for index in range(4))]
    assert row.with_role("rejected").index == ordered[0]
    texts = "cdee"
    assert row.with_role("chosen_target").index == next(i for i in ordered if texts[i] != texts[ordered[0]])
    assert tie_order(case.target[3], 7) == sha256("target-sft", 3)


def test_seed_decides_ties() -> None:
    case = candidates([[("a", True)]], [(letter, False) for letter in "bcdefgh"])
    outcomes = {json.dumps(outcome(select_wrpo([case], seed=seed))) for seed in range(40)}
    assert len(outcomes) > 10


def test_ties_are_broken_evenly_over_prompts() -> None:
    """Each of four tied answers to 4,000 prompts is chosen 1,000 times, within five standard deviations."""
    cases = (
        candidates([[(letter, True) for letter in "abcd"]], prompt=Prompt(f"prompt-{number}", PROMPT.messages))
        for number in range(4_000)
    )
    counts = Counter(row.responses[0].content for row in select_best_of_sources(cases, seed=0).rows)
    assert all(abs(counts[letter] - 1_000) < 5 * math.sqrt(4_000 * 0.25 * 0.75) for letter in "abcd")


def test_drops_name_stage_reason_and_detail() -> None:
    cases = [
        candidates([[("Rome", False), ("Oslo", False), ("", False)]]),
        candidates([[("", False), ("a", True, "length")]]),
    ]
    assert select_wrpo(cases, seed=0).dropped == [
        Dropped(PROMPT.id, "select-wrpo", "no-passing-source-answer", "best score 0 of 2 eligible answers"),
        Dropped(PROMPT.id, "select-wrpo", "no-eligible-source-answer", "2 answers: 1 empty, 1 cut by the token limit"),
    ]
    assert {drop.stage for drop in select_wrpo(cases, seed=0, stage="select").dropped} == {"select"}


# Properties. Few values and few texts, so that ties and duplicates are frequent.


policies = st.sampled_from(
    [
        lambda cases, **options: select_wrpo(cases, seed=0, **options),
        lambda cases, **options: select_wrpo(cases, seed=0, target_ties="drop", **options),
        lambda cases, **options: select_on_policy(cases, seed=0, **options),
        lambda cases, **options: select_best_of_sources(cases, seed=0, **options),
    ]
)


@given(any_candidates(), policies, st.sampled_from(["drop", "keep"]), st.sampled_from(["hash", "first"]))
def test_every_prompt_is_accounted_for_once(cases: list[Candidates], select: Any, truncated: str, ties: str) -> None:
    selection = select(iter(cases), truncated=truncated, ties=ties)
    subjects = [row.prompt_id for row in selection.rows] + [drop.subject for drop in selection.dropped]
    assert sorted(subjects) == [case.prompt.id for case in cases]
    assert {drop.reason for drop in selection.dropped} <= set(REASONS)


@given(any_candidates(), st.sampled_from(["drop", "keep"]))
def test_rows_keep_their_promises(cases: list[Candidates], truncated: Any) -> None:
    """What a trainer relies on in every row: no empty text, two different target texts, right against wrong."""
    by_id = {case.prompt.id: case for case in cases}
    for row in select_wrpo(cases, seed=0, truncated=truncated).rows:
        y_ws, y_wt, y_l = row.responses
        case = by_id[row.prompt_id]
        assert all(response.content for response in row.responses)
        assert truncated == "keep" or not any(response.truncated for response in row.responses)
        assert y_wt.content != y_l.content
        assert y_wt.score is not None
        assert y_l.score is not None
        assert y_wt.score >= y_l.score
        if any(answer.score.passed is not None for answer in case.sources):
            assert (y_ws.score, y_l.score) == (1.0, 0.0)


@given(any_candidates(), policies, st.randoms(use_true_random=False))
def test_order_of_samples_is_irrelevant(cases: list[Candidates], select: Any, generator: random.Random) -> None:
    shuffled = [
        Candidates(
            case.prompt,
            tuple(generator.sample(case.sources, len(case.sources))),
            tuple(generator.sample(case.target, len(case.target))),
        )
        for case in cases
    ]
    assert select(shuffled, ties="hash") == select(cases, ties="hash")


@given(any_candidates(graded=True), policies, st.sampled_from(["hash", "first"]))
def test_monotone_transformations_change_nothing(cases: list[Candidates], select: Any, ties: str) -> None:
    def transform(answers: Sequence[Scored]) -> tuple[Scored, ...]:
        return tuple(
            Scored(a.response, Score(a.score.response_id, a.score.scorer, math.exp(3 * a.score.value) - 7))
            for a in answers
        )

    def chosen(selection: Selection) -> list[Any]:
        rows = [[(r.role, r.source, r.index) for r in row.responses] for row in selection.rows]
        return [rows, [(drop.subject, drop.reason) for drop in selection.dropped]]

    transformed = [Candidates(case.prompt, transform(case.sources), transform(case.target)) for case in cases]
    assert chosen(select(transformed, ties=ties)) == chosen(select(cases, ties=ties))


@given(any_candidates(graded=True), st.randoms(use_true_random=False))
def test_best_follows_permuted_scores(cases: list[Candidates], generator: random.Random) -> None:
    """The answer with the highest score is chosen: scores decide, not whose answer it is."""
    for case in cases:
        values = generator.sample([answer.score.value for answer in case.sources], len(case.sources))
        permuted = tuple(
            Scored(answer.response, Score("x", "scorer", value))
            for answer, value in zip(case.sources, values, strict=True)
        )
        selection = select_best_of_sources([Candidates(case.prompt, permuted)], seed=0, truncated="keep")
        best = max((a.score.value for a in permuted if a.response.content), default=None)
        assert [row.responses[0].score for row in selection.rows] == ([] if best is None else [best])


# The split.


def make_prompts(num: int, domain: str = "", start: int = 0) -> list[Prompt]:
    return [
        Prompt(f"{domain}-{n}", (Message("user", f"{domain} question {n}?"),), (), domain)
        for n in range(start, start + num)
    ]


def ids(prompts: Sequence[Prompt]) -> set[str]:
    return {prompt.id for prompt in prompts}


def test_split_sizes() -> None:
    """579 prompts: 150 held out leave 429; a third of them rounded down is 141, a tenth 42; the rest is 246."""
    parts = split_prompts(make_prompts(579), held_out=150, sft=0.33, development=0.1, preference="rest", seed=0)
    assert [len(part) for part in parts] == [150, 141, 42, 246, 0]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((0, 0, 0, "rest"), [0, 0, 0, 100, 0]),
        ((0.29, 10, 5, 20), [29, 10, 5, 20, 36]),  # 0.29 * 100 is below 29 in floating point
        ((0.5, 0.5, 0.5, 0.0), [50, 25, 25, 0, 0]),
        ((0, 1.0, 0, "rest"), [0, 100, 0, 0, 0]),
        ((100, 0.33, 0, "rest"), [100, 0, 0, 0, 0]),
    ],
)
def test_counts_and_fractions(sizes: Any, expected: list[int]) -> None:
    held_out, sft, development, preference = sizes
    parts = split_prompts(
        make_prompts(100), held_out=held_out, sft=sft, development=development, preference=preference, seed=0
    )
    assert [len(part) for part in parts] == expected


def test_too_few_prompts() -> None:
    with pytest.raises(InputError, match=r"asks for 130 prompts \(held_out 50 \+ sft 80\), but there are 100"):
        split_prompts(make_prompts(100), held_out=50, sft=80, development=0, preference="rest", seed=0)
    with pytest.raises(InputError, match="there are 10 different"):
        split_prompts(make_prompts(10), held_out=20, sft=0.5, development=0, preference="rest", seed=0)


def test_every_family_is_in_every_part() -> None:
    """Families of 60, 30 and 10: 50 held out are 30, 15 and 5, and the 25 of SFT 15, 7.5 and 2.5."""
    prompts = [*make_prompts(60, "sums"), *make_prompts(30, "plurals"), *make_prompts(10, "capitals")]
    parts = split_prompts(prompts, held_out=50, sft=25, development=0, preference="rest", seed=3)
    assert Counter(prompt.domain for prompt in parts.held_out) == {"sums": 30, "plurals": 15, "capitals": 5}
    sft = Counter(prompt.domain for prompt in parts.sft)
    assert sft["sums"] == 15
    assert (sft["plurals"], sft["capitals"]) in [(7, 3), (8, 2)]


def test_domains_with_their_own_share_of_sft() -> None:
    """100 of chat, 50 of mathematics, 10 of Chinese, a tenth held out: 0.4 of 90, 0.8 of 45, all of 9."""
    prompts = [*make_prompts(100, "chat"), *make_prompts(50, "mathematics"), *make_prompts(10, "chinese")]
    own = {"mathematics": 0.8, "chinese": 1.0, "code": 0.5}
    arguments: dict[str, Any] = {"held_out": 16, "sft": 0.4, "development": 0, "preference": "rest", "seed": 3}
    parts = split_prompts(prompts, **arguments, sft_domains=own)
    assert Counter(prompt.domain for prompt in parts.held_out) == {"chat": 10, "mathematics": 5, "chinese": 1}
    assert Counter(prompt.domain for prompt in parts.sft) == {"chat": 36, "mathematics": 36, "chinese": 9}
    assert Counter(prompt.domain for prompt in parts.preference) == {"chat": 54, "mathematics": 9}
    plain = split_prompts(prompts, **arguments)
    assert parts.held_out == plain.held_out
    assert [p for p in parts.sft if p.domain == "chat"] == [p for p in plain.sft if p.domain == "chat"]
    order = [hashlib.sha256(json.dumps([3, p.id], separators=(",", ":")).encode()).hexdigest() for p in parts.sft]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("sft", "own", "message"),
    [
        (0.5, {"sums": 11}, "asks for 11 prompts of domain 'sums' for SFT, but there are 10"),
        (25, {"sums": 0}, "asks for 25 prompts of domain 'plurals' for SFT, but there are 20"),
    ],
)
def test_more_than_a_domain_has(sft: Any, own: dict[str, Any], message: str) -> None:
    prompts = [*make_prompts(10, "sums"), *make_prompts(20, "plurals")]
    with pytest.raises(InputError, match=message):
        split_prompts(prompts, held_out=0, sft=sft, development=0, preference="rest", seed=0, sft_domains=own)


def test_split_follows_the_stated_hash() -> None:
    prompts = make_prompts(20)
    parts = split_prompts(prompts, held_out=8, sft=4, development=0, preference="rest", seed=5)
    ordered = sorted(
        prompts, key=lambda p: hashlib.sha256(json.dumps([5, p.id], separators=(",", ":")).encode()).hexdigest()
    )
    assert [*parts.held_out, *parts.sft, *parts.preference] == ordered


def test_seed_changes_the_split() -> None:
    held_out = [
        ids(split_prompts(make_prompts(200), held_out=50, sft=0, development=0, preference="rest", seed=s).held_out)
        for s in range(2)
    ]
    assert held_out[0] != held_out[1]


def test_prompts_of_one_content_stay_together() -> None:
    """100 questions, each under three ids: 10 held-out questions are 30 prompts."""
    prompts = [
        Prompt(f"{p.id}-{copy}", p.messages, (), f"domain-{copy}") for p in make_prompts(100) for copy in range(3)
    ]
    parts = split_prompts(prompts, held_out=10, sft=0.5, development=0, preference="rest", seed=0)
    assert [len(part) for part in parts] == [30, 135, 0, 135, 0]
    contents = [{prompt.content_hash for prompt in part} for part in parts]
    assert sum(map(len, contents)) == len(set().union(*contents)) == 100


sizes = st.one_of(st.integers(0, 8), st.floats(0, 0.3))


@given(
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["", "sums", "plurals"])), unique=True, max_size=40),
    st.tuples(sizes, sizes, sizes, st.one_of(st.just("rest"), sizes)),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_split_properties(pairs: Any, wanted: Any, seed: int, generator: random.Random) -> None:
    """Every prompt is in one part, no content in two, and sizes are as requested, whatever the order of the file."""
    prompts = [Prompt(f"{content}-{domain}", (Message("user", str(content)),), (), domain) for content, domain in pairs]
    held_out, sft, development, preference = wanted
    arguments = {"held_out": held_out, "sft": sft, "development": development, "preference": preference, "seed": seed}
    try:
        parts = split_prompts(prompts, **arguments)
    except InputError:
        assert sum(size for size in wanted if isinstance(size, int)) > 0
        return
    assert sorted(prompt.id for part in parts for prompt in part) == sorted(prompt.id for prompt in prompts)
    contents = [{prompt.content_hash for prompt in part} for part in parts]
    assert sum(map(len, contents)) == len(set().union(*contents))
    for size, part in zip(wanted, contents, strict=False):
        assert not isinstance(size, int) or len(part) == size
    assert split_prompts(generator.sample(prompts, len(prompts)), **arguments) == parts


# --- weights ---------------------------------------------------------------------------------------------------------

score_lists = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


def test_softmax_weights_by_hand() -> None:
    """e^(0 / 0.5) : e^(log 3 / 0.5) = 1 : 9; ArmoRM's 0.13 and 0.18 need a small temperature for contrast.

    At t = 1 they give 1 / (1 + e^-0.05) = 0.5125, at t = 0.01 1 / (1 + e^-5) = 0.9933.
    """
    assert softmax_weights([0.0, math.log(3)], temperature=0.5) == pytest.approx([0.1, 0.9])
    assert softmax_weights([0.13, 0.18], temperature=1.0)[1] == pytest.approx(0.5124974)
    assert softmax_weights([0.13, 0.18], temperature=0.01)[1] == pytest.approx(0.9933071)


@given(scores=score_lists, temperature=st.floats(1, 100), shift=st.integers(-1000, 1000))
def test_softmax_weights_agree_with_the_reference(scores: list[float], temperature: float, shift: int) -> None:
    """They sum to 1, and adding a constant to every score changes nothing."""
    weights = softmax_weights(scores, temperature=temperature)
    centred = np.array(scores) - np.mean(scores)  # the reference would overflow otherwise
    assert weights == pytest.approx(list(preference.softmax_weights(centred, temperature)), abs=1e-12)
    assert math.fsum(weights) == pytest.approx(1)
    assert softmax_weights([score + shift for score in scores], temperature=temperature) == pytest.approx(
        weights, abs=1e-9
    )


@given(scores=score_lists, temperature=st.floats(0, 100), generator=st.randoms())
def test_softmax_weights_follow_the_scores(scores: list[float], temperature: float, generator: random.Random) -> None:
    """Permuted scores give permuted weights, equal scores equal ones, and one score gets the whole weight."""
    weights = softmax_weights(scores, temperature=temperature)
    order = generator.sample(range(len(scores)), len(scores))
    permuted = softmax_weights([scores[index] for index in order], temperature=temperature)
    assert permuted == pytest.approx([weights[index] for index in order])
    assert softmax_weights([scores[0]] * 4, temperature=temperature) == [0.25] * 4
    assert softmax_weights(scores[:1], temperature=temperature) == [1.0]
    ranked = [weight for _, weight in sorted(zip(scores, weights, strict=True))]
    assert ranked == sorted(ranked)


def test_the_limits_of_the_temperature() -> None:
    """At 0 and just above, only the best or those tied for best count; at large temperatures all weigh the same."""
    scores = [0.5, 1.0, -3.0, 1.0]
    for temperature in (0.0, 5e-324, 1e-6):
        assert softmax_weights(scores, temperature=temperature) == [0.0, 0.5, 0.0, 0.5]
    assert softmax_weights(scores, temperature=1e12) == pytest.approx([0.25] * 4)
    assert softmax_weights([1e308, -1e308], temperature=1e-9) == [1.0, 0.0]


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf, 1.0], [-math.inf]])
def test_weights_of_no_scores_are_an_error(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one score, and finite ones; found"):
        softmax_weights(scores, temperature=1.0)
    answers = [scored(("Paris", score), f"source-{index % 2}", index) for index, score in enumerate(scores)]
    for order in (answers, answers[::-1]):
        with pytest.raises(ValueError, match="at least one score, and finite ones"):
            source_weights(order, temperature=1.0)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_temperatures_that_are_none(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature is {temperature}; expected a finite number, at least 0"):
        softmax_weights([1.0], temperature=temperature)


def test_source_weights_by_hand() -> None:
    """Best scores log 3 (of 0 and log 3), 0 and log 6 at temperature 1: 3 : 1 : 6."""
    answers = [
        scored(case, source, index)
        for source, values in {"b": [0.0, math.log(3)], "a": [0.0, -5.0], "c": [math.log(6)]}.items()
        for index, case in enumerate(("Paris", value) for value in values)
    ]
    weights = source_weights(answers, temperature=1.0)
    assert weights == pytest.approx({"b": 0.3, "a": 0.1, "c": 0.6})
    assert list(weights) == ["b", "a", "c"]
    assert source_weights(answers[:2], temperature=1.0) == {"b": 1.0}
    assert source_weights(answers, temperature=0.0) == {"b": 0.0, "a": 0.0, "c": 1.0}
    assert source_weights(answers[::-1], temperature=1.0) == pytest.approx(weights)
