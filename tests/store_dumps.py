"""Makes the dumps in ``cases/stores``: a small store, written by the code of the checkout in which this runs.

    cd a-checkout-of-the-release
    PYTHONPATH=src:. python path/to/tests/store_dumps.py NAME.sql EMPTY-FOLDER [too-long] [refused]

Run it once for each version of the store, before a later version changes it. ``too-long`` adds a prompt that is too
long for the source, and ``refused`` one that its chat template refuses.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

NUM_QUESTIONS = 6
_TRAIN = {"learning_rate": 1e-3, "max_steps": 1, "per_device_train_batch_size": 4, "max_length": 96}


def write_files(folder: Path, extremes: Collection[str] = ()) -> None:
    """Write the questions, two recorded answers to each, and scores for all but the last question."""
    questions: list[dict[str, Any]] = [
        {"id": f"q{n}", "prompt": f"What is {n} plus 2?", "answers": [str(n + 2)], "domain": ("even", "odd")[n % 2]}
        for n in range(NUM_QUESTIONS)
    ]
    if "too-long" in extremes:
        questions.append({"id": "long", "prompt": "why? " * 150, "answers": ["x"], "domain": "odd"})
    if "refused" in extremes:
        messages = [{"role": "user", "content": "Add."}, {"role": "user", "content": "1 and 1"}]
        questions.append({"id": "refused", "prompt": messages, "answers": ["2"], "domain": "odd"})
    answers = [
        {"prompt_id": f"q{n}", "response": text, "score": score}
        for n in range(NUM_QUESTIONS)
        for text, score in ((str(n + 2), 1.0), (f"<think>{n}, then 2.</think>It is {n + 2}.", 0.5))
    ]
    _write_lines(folder / "questions.jsonl", questions)
    _write_lines(folder / "answers.jsonl", answers)
    _write_lines(folder / "scores.jsonl", answers[:-2])


def write_recipe(folder: Path) -> Path:
    """A recipe with every stage: a sampled and a recorded source, two trainings, held-out questions."""
    recipe = {
        **_recipe(folder, "run"),
        "seed": 3,
        "prompts": {"path": "questions.jsonl", "split": {"held_out": 1, "sft": 0.5, "preference": "rest"}},
        "scorer": {"kind": "reward-model", "model": str(folder / "models" / "reward")},
        "preference": {
            "wrpo": {
                "select": {"kind": "wrpo", "truncated": "keep"},
                "objective": {"kind": "wrpo", "base": "dpo", "beta": 0.1, "alpha": 0.5},
                "train": _TRAIN,
            }
        },
        "evaluation": {"held_out": {"scorer": {"kind": "exact-match"}}},
    }
    recipe["sources"]["tiny"] = {
        "engine": "transformers",
        "model": str(folder / "models" / "source"),
        "sampling": {"num_samples": 1, "temperature": 1.0, "top_p": 0.9, "max_new_tokens": 4},
    }
    return _write_json(folder / "run.yaml", recipe)


def write_recorded_recipe(folder: Path) -> Path:
    """A recipe whose answers and scores are all recorded, so scoring its sources needs no model."""
    return _write_json(folder / "recorded.yaml", _recipe(folder, "second"))


def _recipe(folder: Path, output: str) -> dict[str, Any]:
    return {
        "output": str(folder / output),
        "workspace": str(folder / "workspace"),
        "prompts": {"path": "questions.jsonl", "split": {"sft": 1.0}},
        "target": {
            "model": str(folder / "models" / "target"),
            "sampling": {"num_samples": 2, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 4},
        },
        "sources": {"old": {"engine": "recorded", "path": "answers.jsonl", "num_samples": 2}},
        "scorer": {"kind": "recorded", "path": "scores.jsonl", "missing": "drop"},
        "sft": {"select": {"kind": "best-of-sources", "truncated": "keep"}, "train": _TRAIN},
    }


def _write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(dump: Path, folder: Path, extremes: Collection[str]) -> None:
    """Run both recipes and dump their store."""
    from tests.tiny import save_tiny, save_tiny_reward_model  # the checkout's code, which may lack a file like this

    save_tiny(folder / "models" / "target", seed=0)
    save_tiny(folder / "models" / "source", family="gemma", seed=1)
    save_tiny_reward_model(folder / "models" / "reward", seed=2)
    write_files(folder, extremes)
    command = [sys.executable, "-m", "sinterlm", "run"]
    subprocess.run([*command, str(write_recipe(folder))], check=True)
    # The first releases had no recorded scores and refuse this recipe.
    subprocess.run([*command, str(write_recorded_recipe(folder)), "--until", "score-sources"], check=False)
    with closing(sqlite3.connect(folder / "workspace" / "store.sqlite")) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        lines = [*connection.iterdump(), f"PRAGMA user_version = {version};"]
    dump.write_text("\n".join(lines).replace(str(folder), "FOLDER") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
