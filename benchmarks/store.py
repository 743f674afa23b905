"""Time and memory, by stage, of looking recorded answers up, scoring them and selecting from them.

No model runs and the scorer is exact match, so most of the work is reading and writing the store.

    python benchmarks/store.py                    # 2,000 prompts with 10 answers each
    python benchmarks/store.py --prompts 20000    # 200,000 answers
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from sinterlm.store import Store


def main() -> None:
    """Run three stages, then score again with every score stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=10)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        recipe = _write_recipe(Path(folder), arguments.prompts, arguments.samples)
        _show(recipe, ("sample-sources", "score-sources", "select-sft"))
        print("scored again, with every score in the store")
        with Store(recipe.parent / "run" / "store.sqlite") as store:
            store.forget_stage(".", "score-sources")
        _show(recipe, ("score-sources",))


def _show(recipe: Path, stages: Sequence[str]) -> None:
    command = [sys.executable, "-m", "sinterlm", "run", str(recipe), "--until", stages[-1]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with Store(recipe.parent / "run" / "store.sqlite", read_only=True) as store:
        finished = store.finished_stages(".")
    for name in stages:
        print(f"  {name:14} {finished[name].seconds:7.1f} s  peak {finished[name].peak_memory_bytes / 2**20:6.0f} MiB")


def _write_recipe(folder: Path, num_prompts: int, num_samples: int) -> Path:
    _write_lines(
        folder / "questions.jsonl",
        ({"id": f"p{n}", "prompt": f"What is {n} plus 1?", "answers": [str(n + 1)]} for n in range(num_prompts)),
    )
    _write_lines(
        folder / "answers.jsonl",
        (
            {"prompt_id": f"p{n}", "index": index, "response": f"{n + index % 3}{' and so on' * 40 * (index % 2)}"}
            for n in range(num_prompts)
            for index in range(num_samples)
        ),
    )
    (folder / "target").mkdir()
    recipe = {
        "output": str(folder / "run"),
        "prompts": {"path": "questions.jsonl", "split": {"sft": 1.0}},
        "target": {"model": str(folder / "target")},
        "sources": {"old": {"engine": "recorded", "path": "answers.jsonl", "num_samples": num_samples}},
        "scorer": {"kind": "exact-match"},
        "sft": {"select": {"kind": "best-of-sources"}, "train": {}},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
