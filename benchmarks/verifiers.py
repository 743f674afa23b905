"""Answers per second of the scorers that check mathematics and code, on published solutions.

    .venv/bin/python -m benchmarks.verifiers
    .venv/bin/python -m benchmarks.verifiers --workers 8 --scorers code

Every solution is scored, and the last column says how many verdicts match the published ones. The data is not part of
this project (``tests/published_data.py`` says where it is looked for). Without it, or without a sandbox, a line says
what is left out.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing

from tests.published_data import FOLDER, gsm8k_solutions, humaneval_solutions, mbpp_solutions

from sinterlm.errors import SandboxError
from sinterlm.scoring.code.sandbox import check_isolation
from sinterlm.scoring.code.settings import Code
from sinterlm.scoring.mathematics import Mathematics
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.settings import build_scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scorers", nargs="+", choices=["mathematics", "code"], default=["mathematics", "code"])
    arguments = parser.parse_args()
    if not FOLDER.is_dir():
        print(f"left out: the published solutions are not in {FOLDER}; SINTER_SHARED_DATA may name another folder")
        return
    print("| data | answers | s | answers/s | as published |\n| :-- | --: | --: | --: | --: |")
    if "mathematics" in arguments.scorers:
        measure("GSM8K", Mathematics(kind="mathematics", num_workers=arguments.workers), gsm8k_solutions())
    if "code" in arguments.scorers:
        code = Code(kind="code", num_workers=arguments.workers)
        try:
            check_isolation()
        except SandboxError as error:
            print(f"left out: {error}")
            return
        measure("HumanEval", code, [(entry, True) for entry in humaneval_solutions()])
        measure("MBPP", code, [(entry, True) for entry in mbpp_solutions()])


def measure(name: str, config: Mathematics | Code, solutions: list[tuple[Exchange, bool]]) -> None:
    entries = [entry for entry, _ in solutions]
    with closing(build_scorer(config)) as scorer:
        scorer.score(entries[:1])  # start the workers
        started = time.perf_counter()
        scores = scorer.score(entries)
        seconds = time.perf_counter() - started
    agreeing = sum(score.passed == flag for score, (_, flag) in zip(scores, solutions, strict=True))
    print(f"| {name} | {len(entries)} | {seconds:.1f} | {len(entries) / seconds:.0f} | {agreeing} |")


if __name__ == "__main__":
    main()
