"""The mathematics scorer on published flags, a table of forms, and texts designed to run forever."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from sinterlm.errors import InputError
from sinterlm.scoring.final_answer import final_answer
from sinterlm.scoring.mathematics import MathematicsScorer, _outcome
from sinterlm.scoring.protocol import Exchange
from tests.answers import answered
from tests.published_data import gsm8k_solutions, needs_published_data

pytest.importorskip("math_verify", reason="the extra `math` is not installed")


@pytest.fixture(scope="module")
def scorer() -> Iterator[MathematicsScorer]:
    scorer = MathematicsScorer(timeout_seconds=20, num_workers=2)
    yield scorer
    scorer.close()


def agreement(scorer: MathematicsScorer, solutions: list[tuple[Exchange, bool]]) -> tuple[int, int]:
    scores = scorer.score([entry for entry, _ in solutions])
    assert [score.response_id for score in scores] == [entry.response.id for entry, _ in solutions]
    return sum(score.passed == flag for score, (_, flag) in zip(scores, solutions, strict=True)), len(solutions)


@needs_published_data
def test_agrees_with_published_flags_on_every_eighth_question(scorer: MathematicsScorer) -> None:
    solutions = gsm8k_solutions()
    sample = [solution for number in range(0, len(solutions), 32) for solution in solutions[number : number + 4]]
    assert agreement(scorer, sample) == (660, 660)


@needs_published_data
@pytest.mark.slow
def test_agrees_with_all_published_flags(scorer: MathematicsScorer) -> None:
    """GSM8K's README: 286, 515, 458 and 742 of 1,319 solutions are correct."""
    solutions = gsm8k_solutions()
    assert sum(flag for _, flag in solutions) == 286 + 515 + 458 + 742
    assert agreement(scorer, solutions) == (5276, 5276)


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("Half of $90 is $45.\n#### 45", "45"),
        ("#### 1,234,567", "1234567"),
        ("The sum is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("First $\\boxed{1}$, and in the end $\\boxed {\\{1, \\sqrt{2}\\}}$.", "\\{1, \\sqrt{2}\\}"),
        ("A box left open: \\boxed{3x + \\frac{1}{2}", "3x + \\frac{1}{2}"),
        ("  x^2 + 1 ", "x^2 + 1"),
    ],
)
def test_final_answer(accepted: str, expected: str) -> None:
    assert final_answer(accepted) == expected


@pytest.mark.parametrize(
    ("content", "answers", "outcome"),
    [
        # GSM8K
        ("So he has 1,234 marbles.\n#### 1,234", ["#### 1234"], "right"),
        ("6 trays of 13 rolls are 6 * 13 = <<6*13=78>>78 rolls.\nA: 78", ["6 * 13 = <<6*13=78>>78\n#### 78"], "right"),
        ("6 trays of 13 rolls are 6 * 13 = <<6*13=76>>76 rolls.\nA: 76", ["6 * 13 = <<6*13=78>>78\n#### 78"], "wrong"),
        ("It costs $78.00.", ["#### 78"], "right"),
        ("It costs 87.", ["#### 78"], "wrong"),
        # MATH
        ("Hence $\\boxed{0.5}$.", ["Thus $x = \\boxed{\\frac{1}{2}}$"], "right"),
        ("It is $\\boxed{(7, \\pi/4)}$.", ["\\left(7, \\frac{\\pi}{4}\\right)"], "right"),
        ("It is $\\boxed{(\\pi/4, 7)}$.", ["\\left(7, \\frac{\\pi}{4}\\right)"], "wrong"),
        ("It is $\\boxed{9}$.", ["So the sides are 4 and 5, and their sum is $\\boxed{9}$."], "right"),
        ("It was $\\boxed{4}$ before I found that it is $\\boxed{5}$", ["4"], "wrong"),
        ("$\\boxed{x = 5}$", ["5"], "right"),
        # OpenMathInstruct-2
        ("So the product is \\(\\boxed{2\\sqrt{3}}\\).", ["2\\sqrt{3}"], "right"),
        ("So the product is \\(\\boxed{\\sqrt{12}}\\).", ["2\\sqrt{3}"], "right"),
        ("So the product is \\(\\boxed{\\sqrt{6}}\\).", ["2\\sqrt{3}"], "wrong"),
        ("We get 50\\%.", ["50"], "right"),
        # several accepted answers, and none found
        ("It is 8.", ["7", "8"], "right"),
        ("I do not know.", ["7"], "no-answer"),
        ("", ["7"], "no-answer"),
    ],
)
def test_outcome(scorer: MathematicsScorer, content: str, answers: list[str], outcome: str) -> None:
    [score] = scorer.score([answered(content, *answers)])
    assert (score.detail, score.passed, score.value) == (
        {"outcome": outcome},
        outcome == "right",
        float(outcome == "right"),
    )


CASES = json.loads((Path(__file__).parent / "cases" / "mathematics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def outcomes(scorer: MathematicsScorer) -> list[str]:
    """The outcomes of all cases, scored in one call."""
    scores = scorer.score([answered(case["output"], case["accepted"]) for case in CASES])
    return [score.detail["outcome"] for score in scores]


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda n: f"{CASES[n]['accepted']}<-{CASES[n]['output'][:40]}"
)
def test_case(outcomes: list[str], number: int) -> None:
    case = CASES[number]
    assert (outcomes[number] == "right") == case["right"], (case, outcomes[number])


BOMBS = {
    "tower of powers": "$9^{9^{9}}$",
    "factorials": "$100000!!!$",
    "long sum": "$" + "x+" * 40_000 + "x$",
    "nested fractions": "$" + r"\frac{1}{" * 5_000 + "2" + "}" * 5_000 + "$",
    "open parentheses": "$" + "(" * 50_000 + "x" + ")" * 50_000 + "$",
    "100 KB of LaTeX": "$" + r"\sqrt{9" * 14_000 + "$",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_bomb_costs_its_limit_and_leaves_the_others(bomb: str) -> None:
    scorer = MathematicsScorer(timeout_seconds=1, num_workers=1)
    scorer.score([answered("5", "5")])  # start the workers
    started = time.monotonic()
    before, struck, after = scorer.score([answered("5", "5"), answered(bomb, "5"), answered("5", "5")])
    seconds = time.monotonic() - started
    scorer.close()
    assert (before.value, after.value) == (1.0, 1.0)
    if struck.detail["outcome"] == "stopped":  # our limit, not a verdict
        assert math.isnan(struck.value)
        assert (struck.passed, struck.detail["reason"]) == (None, "comparison-stopped")
        assert "1 s of computing" in struck.detail["problem"]
    else:
        assert (struck.value, struck.passed) == (0.0, False)
        assert struck.detail["outcome"] in ("no-answer", "wrong")
    assert seconds < 10  # one limit, one new worker; on a busy machine


def test_a_lost_worker_is_no_verdict_and_is_asked_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = MathematicsScorer(timeout_seconds=5, num_workers=1)
    asked: list[list[str]] = []

    def ask(question: object, all_arguments: list[tuple[tuple[str, ...], str]]) -> list[str]:
        asked.append([content for _, content in all_arguments])
        return [{"a": "right", "b": "lost", "c": "lost" if len(asked) == 1 else "wrong"}[name] for name in asked[-1]]

    monkeypatch.setattr(scorer, "_ask", ask)
    right, lost, wrong = scorer.score([answered(name, "5") for name in "abc"])
    assert asked == [["a", "b", "c"], ["b", "c"]]
    assert (right.passed, wrong.passed, lost.passed) == (True, False, None)
    assert math.isnan(lost.value)
    assert lost.detail["reason"] == "comparison-stopped"


def test_a_fault_of_the_checker_is_no_verdict() -> None:
    failed: Future[str] = Future()
    failed.set_exception(AttributeError("no such part"))
    assert _outcome(failed) == "AttributeError: no such part"
    scorer = MathematicsScorer(timeout_seconds=5, num_workers=1)
    score = scorer._score_one(answered("5", "5"), _outcome(failed))
    assert (score.passed, score.detail["reason"]) == (None, "comparison-stopped")
    assert "AttributeError: no such part" in score.detail["problem"]


DRIVER = """
from sinterlm.scoring.mathematics import MathematicsScorer, _outcome
from tests.answers import answered
scorer = MathematicsScorer(timeout_seconds=60, num_workers=2)
scorer.score([answered("5", "5")])
print("ready", flush=True)
scorer.score([answered("$9^{9^{9}}$", "5")] * 2)
"""


def test_workers_end_with_a_killed_driver() -> None:
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": f"src:{folder}"}, stdout=-1) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"ready\n"
        processes = psutil.Process(driver.pid).children(recursive=True)
        deadline = time.monotonic() + 60
        while sum(process.cpu_times().user > 0.5 for process in processes) < 2:  # both workers are busy
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


def test_no_worker_is_left_behind() -> None:
    def num_children() -> int:
        return len(psutil.Process().children(recursive=True))

    scorer = MathematicsScorer(timeout_seconds=1, num_workers=2)
    scorer.score([answered("5", "5")])
    at_work = num_children()
    scorer.score([answered(BOMBS["tower of powers"], "5")])
    scorer.close()
    assert num_children() == at_work - 2


SCRIPT = """
from sinterlm.scoring.mathematics import MathematicsScorer, _outcome
from tests.answers import answered
scorer = MathematicsScorer(timeout_seconds=20, num_workers=1)
print([score.value for score in scorer.score([answered("So it is 5.", "5")])])
scorer.close()
"""


def test_script_without_a_guard(tmp_path: Path) -> None:
    """Written as a user would; its code runs once."""
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = Path(__file__).parents[1]
    command = [sys.executable, str(tmp_path / "script.py")]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True)
    assert run.stdout == "[1.0]\n", run.stderr


def test_prompt_without_an_accepted_answer_is_named(scorer: MathematicsScorer) -> None:
    assert scorer.needs_answers
    for answers in ((), ("",), ("Some steps.\n####",)):
        with pytest.raises(InputError, match="prompt q: no accepted answers"):
            scorer.score([answered("5", *answers)])


def test_accepted_answer_that_cannot_be_read_gives_no_score(scorer: MathematicsScorer) -> None:
    """Except to the same text."""
    [same] = scorer.score([answered("\\boxed{t(0, 4]}", "t(0,4]")])
    assert same.passed
    [score] = scorer.score([answered("\\boxed{a < b}", "t(0,4]")])
    assert score.detail["reason"] == "unreadable-accepted-answer"
    [score] = scorer.score([answered("5", "\\")])
    assert math.isnan(score.value)
    assert score.passed is None
    assert score.detail["reason"] == "unreadable-accepted-answer"


def test_accepted_answers_that_cannot_be_read_are_refused_before_sampling(scorer: MathematicsScorer) -> None:
    readable = ["5", "1,072 dollars", "\\frac{1}{2}", "Evelyn", "\\text{east}", "C", "44 (apples)", "b > a > c", "17_8"]
    prompts = [answered("", answer).prompt for answer in readable]
    scorer.check_prompts([*prompts, answered("", "t(0,4]", "5").prompt])
    with pytest.raises(
        InputError, match=r"cannot read the accepted answers of 1 of 10 prompts, e\.g\. 'q' \('t\(0,4\]'"
    ):
        scorer.check_prompts([*prompts, answered("", "t(0,4]").prompt])


def test_numbers_and_words_are_read_without_workers() -> None:
    scorer = MathematicsScorer(timeout_seconds=1, num_workers=1)
    scorer.check_prompts([answered("", answer).prompt for answer in ("-1,072.5", "$3", "a", "(B)", "no solution")])
    assert scorer._pool is None


@pytest.mark.parametrize(
    "text", ["7" * 60_000, "1," * 30_000, "(" * 60_000, "**x " * 15_000, "$" * 60_000, "\\boxed" * 9000]
)
def test_long_lines_end_fast(scorer: MathematicsScorer, text: str) -> None:
    started = time.monotonic()
    [score] = scorer.score([answered(text, "42")])
    assert score.detail["outcome"] in ("wrong", "no-answer")
    assert time.monotonic() - started < 3


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinterlm.scoring.mathematics.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"math_verify, which is not installed; pip install 'sinterlm\[math\]'"):
        MathematicsScorer(timeout_seconds=1, num_workers=1).score([answered("5", "5")])


def test_identity_names_what_decides() -> None:
    base = MathematicsScorer(timeout_seconds=5, num_workers=1).identity
    assert base == MathematicsScorer(timeout_seconds=5.0, num_workers=8).identity
    assert base != MathematicsScorer(timeout_seconds=1, num_workers=1).identity
