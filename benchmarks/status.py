"""Time of `sinterlm status` beside a run with many answers.

Makes a workspace whose store has the given numbers of answers, scores and drops, written by SQL, and times the command
as another terminal would run it.

    python benchmarks/status.py --rows 1000000
    python benchmarks/status.py                     # ten million: needs 8 GB in --folder, and some minutes
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

NUM_TRIALS = 5
_NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?)"
_RESPONSES = f"""{_NUMBERS} INSERT INTO responses
    SELECT printf('%064x', n), 'model', printf('%064x', n / 10), n % 10, 'It is ' || n || '.', 'stop', 20, 8, NULL
    FROM numbers"""
_SCORES = f"""{_NUMBERS} INSERT INTO scores
    SELECT printf('%064x', n), 'exact-match:2', 'answers', n % 2, n % 2, '{{"contains": 1.0}}' FROM numbers"""
_DROPPED = f"""{_NUMBERS} INSERT INTO dropped
    SELECT '.', 'score-sources', printf('%064x', n), 'no-score', 'the score is no number' FROM numbers"""
_DROP_COUNTS = "INSERT INTO drop_counts SELECT run, stage, reason, COUNT(*) FROM dropped GROUP BY run, stage, reason"


def main() -> None:
    """Make the store and time the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="answers, with a score each; a tenth are drops")
    parser.add_argument("--folder", type=Path, help="where the workspace is made; by default it is removed")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.folder) as folder:
        run = _make_run(Path(folder), arguments.rows)
        size = (run / "store.sqlite").stat().st_size
        print(f"{arguments.rows:,} answers and scores, {arguments.rows // 10:,} drops, {size / 1e9:.1f} GB")
        times = sorted(_time_status(run) for _ in range(NUM_TRIALS))
        print(
            f"sinterlm status: {times[0].seconds:.2f} to {times[-1].seconds:.2f} s, {times[0].cpu_seconds:.2f} s of CPU"
        )


class _Times(NamedTuple):
    seconds: float
    cpu_seconds: float


def _time_status(run: Path) -> _Times:
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "sinterlm", "status", str(run)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return _Times(time.monotonic() - started, usage.ru_utime + usage.ru_stime)


def _make_run(folder: Path, num_rows: int) -> Path:
    (folder / "target").mkdir()
    (folder / "questions.jsonl").write_text(json.dumps({"id": "p", "prompt": "?", "answers": ["!"]}) + "\n")
    (folder / "answers.jsonl").write_text(json.dumps({"prompt_id": "p", "response": "!"}) + "\n")
    recipe = {
        "output": str(folder / "run"),
        "prompts": {"path": "questions.jsonl", "split": {"sft": 1.0}},
        "target": {"model": str(folder / "target")},
        "sources": {"old": {"engine": "recorded", "path": "answers.jsonl"}},
        "scorer": {"kind": "exact-match"},
        "sft": {"select": {"kind": "best-of-sources"}, "train": {}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "sinterlm", "run", str(folder / "recipe.yaml"), "--until", "select-sft"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = folder / "run"
    with closing(sqlite3.connect(run / "store.sqlite")) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for table, query, number in (
            ("responses", _RESPONSES, num_rows),
            ("scores", _SCORES, num_rows),
            ("dropped", _DROPPED, num_rows // 10),
        ):
            print(f"writing {table} ...", flush=True)
            with connection:
                connection.execute(query, (number,))
        with connection:
            connection.execute("DELETE FROM drop_counts")
            connection.execute(_DROP_COUNTS)
    return run


if __name__ == "__main__":
    main()
