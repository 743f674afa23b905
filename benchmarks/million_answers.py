"""Time and memory, by stage, of recorded answers on their way to an export and a report.

Answers of four models, ten to a prompt, are imported, scored by exact match, selected by two policies, exported and
reported, each by a command of its own. No model runs. One line a command: wall-clock and CPU seconds, answers a second,
and the peak of the process's memory.

    python benchmarks/million_answers.py --answers 50000
    python benchmarks/million_answers.py                    # a million; needs 5 GB in --folder
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

SAMPLES = {"ant": 3, "bee": 3, "cat": 2, "dog": 2}
"""Recorded answers to each prompt, by source."""
WORDS = ("so", "the", "sum", "of", "these", "numbers", "is", "what", "one", "gets", "by", "adding")
MAX_WORDS = 160
"""An answer has up to this many words, 80 on average, or is the bare number."""


def main() -> None:
    """Run every command and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the files are written and kept; by default they are removed")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = _write_recipe(folder, arguments.answers // sum(SAMPLES.values()))
        print(f"{arguments.answers:,} answers")
        print(f"  {'command':24} {'s':>8} {'CPU s':>8} {'answers/s':>10} {'peak MiB':>9}")
        run = str(recipe.parent / "run")
        for name, command in {
            "prompts": ["run", str(recipe), "--only", "prompts"],
            "sample-sources": ["run", str(recipe), "--only", "sample-sources"],
            "score-sources": ["run", str(recipe), "--only", "score-sources"],
            "select-sft": ["run", str(recipe), "--only", "select-sft"],
            "select-pairs": ["run", str(recipe), "--only", "select-pairs"],
            "export sinterlm": ["export", run, "--format", "sinterlm"],
            "export trl": ["export", run, "--format", "trl"],
            "export of all answers": ["export", run, "--format", "ultrafeedback-armorm"],
            "report": ["report", run],
            "status": ["status", run],
        }.items():
            _measure(name, command, arguments.answers)


def _measure(name: str, command: Sequence[str], num_answers: int) -> None:
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "sinterlm", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"sinterlm {' '.join(command)} has failed (exit code {process.returncode})")
    print(
        f"  {name:24} {seconds:8.1f} {usage.ru_utime + usage.ru_stime:8.1f} {num_answers / seconds:10,.0f} "
        f"{usage.ru_maxrss / 1024:9.0f}",
        flush=True,
    )


def _write_recipe(folder: Path, num_prompts: int) -> Path:
    _write_lines(
        folder / "questions.jsonl",
        ({"id": f"p{n}", "prompt": f"What is {n} plus 1?", "answers": [str(n + 1)]} for n in range(num_prompts)),
    )
    for source, num_samples in SAMPLES.items():
        _write_lines(folder / f"{source}.jsonl", _answers(source, num_samples, num_prompts))
    (folder / "target").mkdir(exist_ok=True)
    recipe = {
        "output": str(folder / "run"),
        "prompts": {"path": "questions.jsonl", "split": {"sft": 0.5, "preference": "rest"}},
        "target": {"model": str(folder / "target")},
        "sources": {
            source: {"engine": "recorded", "path": f"{source}.jsonl", "num_samples": num_samples}
            for source, num_samples in SAMPLES.items()
        },
        "scorer": {"kind": "exact-match"},
        "sft": {"select": {"kind": "best-of-sources"}, "train": {}},
        "preference": {
            "pairs": {
                "select": {"kind": "fusechat3"},
                "objective": {"kind": "dpo", "beta": 0.1},
                "train": {},
            }
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _answers(source: str, num_samples: int, num_prompts: int) -> Iterable[Mapping[str, object]]:
    """Yield a model's answers: the bare number or some words around it, right in half of the cases."""
    drawing = random.Random(source)
    for number in range(num_prompts):
        for index in range(num_samples):
            answer = str(number + drawing.choice((1, 2)))
            if drawing.random() < 0.5:
                words = drawing.choices(WORDS, k=drawing.randrange(1, 2 * MAX_WORDS))
                answer = f"{' '.join(words)} {answer}"
            yield {"prompt_id": f"p{number}", "source": source, "index": index, "response": answer}


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
