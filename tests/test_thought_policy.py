"""Thoughts in scoring, from the recipe's key to the scores of a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from sinterlm.errors import SandboxError
from sinterlm.records import Score
from sinterlm.scoring.by_domain import ByDomainScorer
from sinterlm.scoring.code.sandbox import check_isolation
from sinterlm.scoring.exact_match import ExactMatchScorer
from sinterlm.scoring.protocol import ANSWERS_AT_ONCE, Exchange, Scorer, answers_at_once
from sinterlm.scoring.scorers import SCORERS, SERVED, AnyScorer
from sinterlm.scoring.settings import build_scorer
from sinterlm.scoring.thought_policy import ThoughtPolicy
from sinterlm.store import Store
from tests.answers import answered
from tests.chat_server import serve
from tests.test_scoring import build
from tests.test_stored_scores import by_length, counts, judge, judged_text, run_scoring, write_lines
from tests.tiny import save_tiny, save_tiny_reward_model

BOXED = "<think>\nPerhaps \\boxed{12}? No.\n</think>\n\nIt is 5."
FORMS = ["<think>\nPerhaps 4?\n</think>\n\n5", "Perhaps 4?\n</think>\n\n5", "[THINK]4?[/THINK]5"]


def scorer(**settings: Any) -> Scorer:
    return build_scorer(TypeAdapter(AnyScorer).validate_python(settings))


def value(entry: Exchange, **settings: Any) -> float:
    [score] = scorer(**settings).score([entry])
    return score.value


@pytest.mark.parametrize("content", FORMS)
def test_exact_match_reads_what_a_reader_is_shown(content: str) -> None:
    entry = answered(content, "5")
    assert value(entry, kind="exact-match") == 1.0
    assert value(entry, kind="exact-match", thoughts="keep") == 0.0
    assert math.isnan(value(entry, kind="exact-match", thoughts="refuse"))
    assert value(answered("5", "5"), kind="exact-match", thoughts="refuse") == 1.0


def test_a_number_in_the_thoughts_is_no_answer() -> None:
    assert value(answered("<think>It is 5, or not", "5"), kind="exact-match") == 0.0
    [score] = scorer(kind="exact-match").score([answered("<think>5</think>It is 6.", "5")])
    assert score.detail == {"contains": 0.0}


@pytest.mark.parametrize(("thoughts", "expected"), [({}, 1.0), ({"thoughts": "keep"}, 0.0)])
def test_a_box_in_the_thoughts_is_no_answer(thoughts: dict[str, str], expected: float) -> None:
    assert value(answered(BOXED, "5"), kind="mathematics", **thoughts) == expected


DRAFT = "<think>\n```python\ndef add(a, b):\n    return a + b\n```\n</think>\n\n"


def test_a_program_in_the_thoughts_is_no_answer() -> None:
    """A right draft before a wrong program, and alone; none of its programs runs if thoughts are refused."""
    try:
        check_isolation()
    except SandboxError as error:
        pytest.skip(str(error))
    wrong, right = (f"```python\ndef add(a, b):\n    return a {sign} b\n```" for sign in "-+")
    tests = "assert add(1, 2) == 3"
    assert [value(answered(DRAFT + text, tests), kind="code") for text in (wrong, right, "")] == [0.0, 1.0, 0.0]
    assert value(answered(DRAFT, tests), kind="code", thoughts="keep") == 1.0
    assert math.isnan(value(answered(DRAFT + right, tests), kind="code", thoughts="refuse"))


def test_every_scorer_that_reads_answers_has_the_key() -> None:
    """All scorers except those that combine other scores or look scores up."""
    kinds = {**SCORERS, **{f"{name}, served": form for name, forms in SERVED.items() for form in forms}}
    without = {name for name, kind in kinds.items() if "thoughts" not in kind.model_fields}
    assert without == {"recorded", "combination", "by-domain"}


def test_a_refused_answer_says_why() -> None:
    [bare, refused] = scorer(kind="exact-match", thoughts="refuse").score([answered("5", "5"), answered(FORMS[0], "5")])
    assert (bare.value, refused.detail["reason"]) == (1.0, "holds-thoughts")
    assert refused.passed is None


def test_policies_share_the_scores_of_answers_without_thoughts() -> None:
    entries = [answered("5", "5"), answered(FORMS[0], "5")]
    scorers = [scorer(kind="exact-match", thoughts=thoughts) for thoughts in ("keep", "strip", "refuse")]
    identities = [[score.scorer for score in own.score(entries)] for own in scorers]
    assert len({bare for bare, _ in identities}) == 1
    assert len({thinking for _, thinking in identities}) == 3
    assert len({own.identity for own in scorers}) == 3


def test_a_reward_model_reads_the_answer_alone(tmp_path: Path) -> None:
    folder = save_tiny_reward_model(tmp_path)
    alone = build(folder)
    [bare, whole] = [score.value for score in alone.score([answered("cold"), answered("<think>x</think>\ncold")])]
    assert abs(bare - whole) > 1e-3
    settings: dict[str, Any] = {"kind": "reward-model", "model": str(folder), "max_length": 512}
    thinking = answered("<think>x</think>\ncold")
    assert value(thinking, **settings) == pytest.approx(bare, abs=1e-5)
    assert value(thinking, **settings, thoughts="keep") == pytest.approx(whole, abs=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four questions, each with a right answer after a thought and a right one without."""
    folder = tmp_path_factory.mktemp("thoughts")
    save_tiny(folder / "target")
    write_lines(
        folder / "questions.jsonl",
        [{"id": f"p{n}", "prompt": f"What is {n} plus 1?", "answers": [str(n + 1)]} for n in range(4)],
    )
    answers: list[Mapping[str, object]] = [
        {"prompt_id": f"p{n}", "index": index, "response": text}
        for n in range(4)
        for index, text in enumerate((f"<think>\nSo {n} and 1 ...\n</think>\n\n{n + 1}", str(n + 1)))
    ]
    write_lines(folder / "answers.jsonl", answers)
    return folder


@pytest.mark.parametrize(
    ("thoughts", "found"),
    [
        ({}, {"mean score": 1.0}),
        ({"thoughts": "strip"}, {"mean score": 1.0}),
        ({"thoughts": "keep"}, {"mean score": 0.5}),
        ({"thoughts": "refuse"}, {"without a score": 4.0, "mean score": 1.0}),
    ],
)
def test_the_recipe_decides(folder: Path, tmp_path: Path, thoughts: dict[str, str], found: dict[str, float]) -> None:
    lines = run_scoring(folder, tmp_path, {"kind": "exact-match", **thoughts}, num_samples=2)
    assert counts(lines) == {"answers": 8, "scored now": 8, **found}


def test_another_policy_scores_anew_what_it_reads_otherwise(folder: Path, tmp_path: Path) -> None:
    """A part of a combination has its own policy; only answers with thoughts are judged again."""
    with serve(by_length) as server:
        run_scoring(folder, tmp_path, judge(server, thoughts="keep"), num_samples=2)
        assert len(server.requests) == 8
        kept = {judged_text(request) for request in server.requests}
        assert sum("<" in text for text in kept) == 4
        run_scoring(folder, tmp_path, judge(server), num_samples=2)
        assert len(server.requests) == 12
        assert all(re.fullmatch("[1-4]", judged_text(request)) for request in server.requests[8:])
        both = {"right": {"kind": "exact-match"}, "quality": judge(server)}
        lines = run_scoring(folder, tmp_path, {"kind": "combination", "rule": "gate", "parts": both}, num_samples=2)
        assert len(server.requests) == 12
        assert counts(lines)["mean score"] == 1.0
        run_scoring(folder, tmp_path, judge(server, thoughts="refuse"), num_samples=2)
        assert len(server.requests) == 12
    with Store(tmp_path / "store.sqlite", read_only=True) as store:
        refused = [row for row in store._read("SELECT detail FROM scores") if "holds-thoughts" in row["detail"]]
        assert len(refused) == 4
        assert "thoughts: refuse" in json.loads(refused[0]["detail"])["problem"]


def test_a_scorer_says_how_many_answers_it_likes_at_once() -> None:
    """A judge behind a server likes many; so does whatever it is a part of."""

    class Many(ExactMatchScorer):
        answers_at_once = 512

    class Few(ExactMatchScorer):
        answers_at_once = 3

    assert answers_at_once(NoWish()) == ANSWERS_AT_ONCE == 64
    assert answers_at_once(ThoughtPolicy(Many(), "strip"), Few()) == 512
    assert answers_at_once(ByDomainScorer({"a": Few()}, ThoughtPolicy(Many(), "refuse"))) == 512
    assert answers_at_once(ByDomainScorer({"a": Few()}, Few())) == 3


class NoWish:
    """A scorer of an installed package, which says nothing about it."""

    identity, needs_answers = "none", False

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        return []

    def close(self) -> None:
        pass
