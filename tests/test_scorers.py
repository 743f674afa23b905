"""The table of scorers: their identity in stage keys, how little they import, and scorers of installed packages."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from sinterlm.errors import InputError
from sinterlm.records import Score, digest
from sinterlm.scoring.code import scorer as code_scorer
from sinterlm.scoring.scorers import SCORERS, AnyScorer
from sinterlm.scoring.settings import Preflight, ScorerSettings, build_scorer
from tests.answers import answered

SERVER = {"base_url": "http://127.0.0.1:1/v1"}
EXACT_MATCH = {"kind": "exact-match"}
MATHEMATICS = {"kind": "mathematics", "num_workers": 1}
CODE = {"kind": "code", "timeout_seconds": 3.0, "thoughts": "keep"}
REWARD_MODEL = {"kind": "reward-model", "model": "org/model"}
SERVED_REWARD_MODEL = {**REWARD_MODEL, "engine": "endpoint", "base_url": "http://127.0.0.1:1"}
ARMORM = {"kind": "armorm", "model": "org/armorm", "dtype": "bfloat16", "chat_template_kwargs": {"deep": True}}
RECORDED = {"kind": "recorded", "path": "scores.jsonl"}
JUDGE = {"kind": "judge", "model": "m", **SERVER}
PYTHON = {"kind": "python", "path": "scorer.py"}
GATE = {"kind": "combination", "rule": "gate", "parts": {"right": EXACT_MATCH, "good": REWARD_MODEL}}
BY_DOMAIN = {"kind": "by-domain", "domains": {"sums": MATHEMATICS}, "other": RECORDED}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the files of the mappings above."""
    (tmp_path / "scores.jsonl").write_text('{"prompt_id": "p", "response": "5", "score": 1.0}\n')
    (tmp_path / "baseline.jsonl").write_text('{"prompt_id": "p", "response": "5"}\n')
    (tmp_path / "scorer.py").write_text("def score(prompt, response):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(code_scorer, "VERSION", "4:2:python3.11")
    return tmp_path


def read(settings: Mapping[str, Any]) -> ScorerSettings:
    return TypeAdapter(AnyScorer).validate_python(settings)


FROZEN: list[tuple[dict[str, Any], str, str | None]] = [
    (EXACT_MATCH, "dde44ed7fb53bf45", "exact-match:2:thoughts-strip"),
    (MATHEMATICS, "4461cc5cfa9baf38", "mathematics:3:5s:thoughts-strip"),
    (CODE, "65378cc7b1ef1013", None),
    (REWARD_MODEL, "02e2aa40c115ff2a", None),
    ({**REWARD_MODEL, "engine": "transformers"}, "02e2aa40c115ff2a", None),
    (SERVED_REWARD_MODEL, "613084f91191c505", None),
    (ARMORM, "90a89d30761a1207", None),
    (JUDGE, "bb76c6e4bef4a883", "5433d8fd1881c13b7aeae75ad43e56cfa2c4b89be7fe7d60374a4f8a42b6ac11:thoughts-strip"),
    (
        {**JUDGE, "mode": "pairwise", "baseline": "baseline.jsonl"},
        "f7caaa290998b691",
        "91b7b71a1c487f6ac5068d8523e878c220f4a19e0bf4d7cbd33a107ef57d06a1:thoughts-strip",
    ),
    (
        {**JUDGE, "mode": "rubric", "rubric": {"right": "is it right"}},
        "a0f2c868647bf166",
        "108b2f8919e5c0e8a37d91a87494c2cd759d9afa682b825f1cf159294c870379:thoughts-strip",
    ),
    (RECORDED, "9a520376b7dd5e66", "aebf54293eee90c8f4775c454e0a10f29fb99b2c28f804e88789b3f8c8fe98f7"),
    (GATE, "bbdae187412da81b", None),
    (BY_DOMAIN, "21638936b2b4b61f", "cb047116ac214599b3ce55d69a696bb44f7f045a342dc70a2a011bc4a6f9afb9"),
    (PYTHON, "3abddece89444329", "6ac564de2f91974c4322c2fe43c43e4bc3288692bfe729bc4f42e8ee54cf00b9:thoughts-strip"),
]
"""Mappings, what describes them in stage keys (hashed), and what names their scores; of models the latter needs the
weights."""


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("settings", "described", "identity"), FROZEN, ids=str)
def test_what_names_a_scorer_in_stage_keys_and_in_the_store_never_changes(
    settings: Mapping[str, Any], described: str, identity: str | None
) -> None:
    """Otherwise finished stages would run again, and stored scores would be paid for twice."""
    assert digest(read(settings).describe(str.upper))[:16] == described
    if identity:
        assert build_scorer(read(settings)).identity == identity


def test_every_scorer_is_frozen() -> None:
    assert {settings["kind"] for settings, _, _ in FROZEN} == SCORERS.keys()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("settings", "title"),
    [
        (EXACT_MATCH, "exact-match"),
        (REWARD_MODEL, "reward-model org/model"),
        (SERVED_REWARD_MODEL, "reward-model org/model"),
        (JUDGE, "judge m"),
        (GATE, "gate of exact-match, reward-model org/model"),
        (BY_DOMAIN, "mathematics for sums, else recorded"),
        (PYTHON, "python scorer.py"),
        ({**PYTHON, "function": "grade"}, "python scorer.py:grade"),
    ],
)
def test_reports_tell_scorers_apart(settings: Mapping[str, Any], title: str) -> None:
    assert read(settings).title == title


HEAVY = ("torch", "transformers", "accelerate", "aiohttp", "sympy", "math_verify", "pebble", "markdown_it", "pyarrow")


def test_naming_scorers_imports_none_of_what_they_need() -> None:
    """This keeps plans fast; ``code`` and ``judge`` can be described without it too."""
    script = f"""
import sys
from pydantic import TypeAdapter
from sinterlm.scoring.scorers import AnyScorer
for settings in {[EXACT_MATCH, MATHEMATICS, REWARD_MODEL, JUDGE]}:
    scorer = TypeAdapter(AnyScorer).validate_python(settings)
    scorer.describe(str.upper), scorer.title, scorer.flops(1.0), list(scorer.find_problems())
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_parts_of_a_scorer_are_checked_for_themselves(files: Path) -> None:
    nested = read({"kind": "by-domain", "domains": {"x": {**GATE, "weights": {"fair": 1.0}}}, "other": RECORDED})
    [unread, unknown] = nested.find_problems()
    assert (unread.path, unknown.path) == (("domains", "x", "weights"), ("domains", "x", "weights", "fair"))
    (files / "scores.jsonl").unlink()
    *_, recorded = nested.walk()
    with pytest.raises(InputError, match=r"scores.jsonl: there is no such file \(path of the scorer recorded\)"):
        recorded.check(Preflight())
    nested.check(Preflight())
    assert [part.kind for part in nested.walk("x")] == ["by-domain", "combination", "exact-match", "reward-model"]
    assert [part.kind for part in nested.walk("y")] == ["by-domain", "recorded"]


# -- kind: python ----------------------------------------------------------------------------------------------------


def python(folder: Path, code: str, **settings: Any) -> ScorerSettings:
    (folder / "mine.py").write_text(code)
    return read({"kind": "python", "path": str(folder / "mine.py"), **settings})


def outcomes(folder: Path, returned: str) -> Score:
    [score] = build_scorer(python(folder, f"{HEADER}def score(prompt, response):\n    return {returned}\n")).score(
        [ENTRY]
    )
    assert (score.response_id, score.scorer.partition(":")[0]) == (ENTRY.response.id, score.scorer[:64])
    return score


NO_NUMBER = {"reason": "no-score", "problem": "the score is no number"}
HEADER = "import math\nimport numpy\nfrom fractions import Fraction\nfrom sinterlm.records import Score\n"
ENTRY = answered("<think>Perhaps 12?</think>It is 5.", "5")


@pytest.mark.parametrize(
    ("returned", "value", "passed", "detail"),
    [
        ("len(response.content)", 8.0, None, {}),
        ("prompt.answers[0] in response.content", 1.0, True, {}),
        ("prompt.answers[0] == response.content", 0.0, False, {}),
        ("numpy.float32(0.5)", 0.5, None, {}),
        ("numpy.bool_(True)", 1.0, True, {}),
        ("Score('', '', 0.25, True, {'words': 3})", 0.25, True, {"words": 3}),
        ("Score('', '', numpy.float32(0.5), numpy.bool_(True))", 0.5, True, {}),
        ("Score('', '', Fraction(1, 4), 0)", 0.25, False, {}),
    ],
)
def test_a_function_gives_a_number_whether_it_passes_or_a_score(
    returned: str, value: float, passed: bool | None, detail: Mapping[str, Any], tmp_path: Path
) -> None:
    """It receives the answer without its thoughts."""
    score = outcomes(tmp_path, returned)
    assert (score.value, score.passed, score.detail) == (value, passed, detail)
    assert (type(score.value), type(score.passed)) == (float, type(passed)), "the store holds nothing else"


@pytest.mark.parametrize(
    ("returned", "detail"),
    [
        ("math.nan", NO_NUMBER),
        ("math.inf", NO_NUMBER),
        (
            "Score('', '', math.nan, None, {'reason': 'too-odd', 'n': 1})",
            {**NO_NUMBER, "reason": "too-odd", "n": 1},
        ),
        ("Score('', '', math.nan, None, {'reason': 3})", {**NO_NUMBER, "reason": "3"}),
    ],
)
def test_a_function_may_give_no_score(returned: str, detail: Mapping[str, Any], tmp_path: Path) -> None:
    score = outcomes(tmp_path, returned)
    assert math.isnan(score.value)
    assert score.detail == detail


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            "None",
            r"mine.py: score\(\) gives None \(NoneType\), expected a number, .* a Score; on prompt q, answer 0",
        ),
        ("'5'", r"score\(\) gives '5' \(str\), expected"),
        ("prompt.answers[1]", r"score\(\) raises IndexError: tuple index out of range \(line 6\); on prompt q"),
        ("exit('enough')", r"score\(\) raises SystemExit: enough \(line 6\); on prompt q"),
        ("numpy.ones(2)", r"score\(\) gives array.* \(ndarray\), expected a number"),
        ("10**400", r"score\(\) gives a score that is too large \("),
        ("Score('', '', 1.0, numpy.ones(2))", r"score\(\) gives Score\(.*, expected .* True, False or None as passed"),
        ("Score('', '', 'high')", r"score\(\) gives Score\(.*, expected a number as value"),
        ("Score('', '', 1.0, None, {'by': score})", r"score\(\) gives a detail that JSON cannot hold"),
    ],
)
def test_what_is_no_score_names_file_function_and_prompt(returned: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        outcomes(tmp_path, returned)


def test_what_was_scored_before_an_error_is_kept(tmp_path: Path) -> None:
    scorer = build_scorer(python(tmp_path, "def score(prompt, response):\n    return 1 / len(response.content)\n"))
    with pytest.raises(InputError, match="ZeroDivisionError") as caught:
        scorer.score([answered("four", name="a"), answered("", name="b"), answered("five", name="c")])
    assert [(prompt, score.value) for prompt, score in caught.value.scored] == [("a", 0.25)]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def score(prompt, response)\n", r"mine.py: cannot be run: SyntaxError: expected ':' \(line 1\)"),
        ("import math\nmath.no_such\n", r"mine.py: cannot be run: AttributeError: .*no_such' \(line 2\)"),
        ("def grade(prompt, response): return 1\n", r"mine.py: unknown function 'score' \(known: grade\)"),
        ("score = 1\n", "mine.py: unknown function 'score'"),
        ("import no_such_package\n", r"mine.py: cannot be run: ModuleNotFoundError: .* \(line 1\)"),
    ],
)
def test_a_file_that_cannot_score_is_refused_before_the_first_answer(code: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        python(tmp_path, code).check(Preflight(allow_code=True))


def test_a_file_beside_it_that_it_imports_is_named(tmp_path: Path) -> None:
    (tmp_path / "no_such_neighbour.py").touch()
    with pytest.raises(InputError, match=r"\(line 1\); other files beside it cannot be imported"):
        python(tmp_path, "import no_such_neighbour\n").check(Preflight(allow_code=True))


def test_a_file_runs_only_if_that_is_allowed(tmp_path: Path) -> None:
    """Neither a plan nor a check runs it."""
    settings = python(tmp_path, "raise SystemExit('it ran')\n")
    with pytest.raises(InputError, match="give the same command with --allow-code"):
        settings.check(Preflight())
    assert build_scorer(settings).identity
    assert settings.describe(str.upper)
    assert settings.title
    with pytest.raises(InputError, match="SystemExit: it ran"):
        settings.check(Preflight(allow_code=True))


def test_another_file_or_function_is_another_scorer(tmp_path: Path) -> None:
    code = "def score(prompt, response): return 1\n"
    versions = [python(tmp_path, code), python(tmp_path, code, function="grade"), python(tmp_path, code + "#\n")]
    identities, keys = [], []
    for content, settings in zip((code, code, code + "#\n"), versions, strict=True):
        (tmp_path / "mine.py").write_text(content)
        identities.append(build_scorer(settings).identity)
        keys.append(digest(settings.describe(str.upper)))
    assert len(set(identities)) == len(set(keys)) == 3
    needing = python(tmp_path, code, needs_answers=True)
    assert build_scorer(needing).needs_answers
    assert digest(needing.describe(str.upper)) == keys[0]
