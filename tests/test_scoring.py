"""Scorers against a table of real outputs, and a reward model against its own head computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sinterlm.errors import InputError
from sinterlm.records import Message, Prompt, Response
from sinterlm.scoring.exact_match import ExactMatchScorer, normalise
from sinterlm.scoring.protocol import Answered

CASES = json.loads((Path(__file__).parent / "exact_match_cases.json").read_text(encoding="utf-8"))


def answered(content: str, *answers: str, question: str = "What?") -> Answered:
    prompt = Prompt("q", (Message("user", question),), answers)
    return Answered(prompt, Response(f"r-{content}", "q", "gemma", 0, content, "stop", 1, 1))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['output']!r}-{case['answers'][0]!r}")
def test_exact_match_case(case: dict[str, Any]) -> None:
    [score] = ExactMatchScorer().score([answered(case["output"], *case["answers"])])
    assert (score.value, score.passed) == (float(case["match"]), case["match"])
    assert score.detail == {"contains": float(case["contains"])}
