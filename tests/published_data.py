"""Published data sets, for tests and benchmarks that need them: none of them is part of this project.

They are looked for in the folder that ``SINTER_SHARED_DATA`` names, by default ``shared/data`` beside the repository:

    gsm8k/example_model_solutions.jsonl, gsm8k/test.jsonl    openai/grade-school-math, MIT
    humaneval/HumanEval.jsonl.gz                             openai/human-eval, MIT
    mbpp/mbpp.jsonl                                          google-research/mbpp, CC BY 4.0
    arena_bench_v1/                                          lmarena/arena-hard-auto, in its history, Apache-2.0
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sinterlm.scoring.protocol import Exchange
from tests.answers import answered

FOLDER = Path(os.environ.get("SINTER_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

needs_published_data = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"{FOLDER} is not there; SINTER_SHARED_DATA may name another folder"
)


def read_published(name: str) -> list[dict[str, Any]]:
    path = FOLDER / name
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def gsm8k_solutions() -> list[tuple[Exchange, bool]]:
    """Every solution of four models, and whether it was published as correct."""
    questions = read_published("gsm8k/test.jsonl")
    solved = read_published("gsm8k/example_model_solutions.jsonl")
    return [
        (
            answered(solution["solution"], row["answer"], prompt=row["question"], name=f"{number}-{model}"),
            solution["is_correct"],
        )
        for number, (row, models) in enumerate(zip(questions, solved, strict=True))
        for model, solution in models.items()
        if model not in ("question", "ground_truth")
    ]


def humaneval_solutions() -> list[Exchange]:
    """Every canonical solution, which continues its prompt."""
    return [
        answered(
            row["canonical_solution"],
            f"{row['test']}\ncheck({row['entry_point']})",
            prompt=row["prompt"],
            name=row["task_id"],
        )
        for row in read_published("humaneval/HumanEval.jsonl.gz")
    ]


def mbpp_solutions() -> list[Exchange]:
    """Every reference solution, as a model would give it: fenced, with prose around it."""
    return [
        answered(
            f"Here it is:\n\n```python\n{row['code']}\n```\nIt runs in linear time.",
            *filter(None, (row["test_setup_code"], *row["test_list"])),
            prompt=row["text"],
            name=f"MBPP/{row['task_id']}",
        )
        for row in read_published("mbpp/mbpp.jsonl")
    ]
