"""The quickstart under three seeds: one table per seed, and paired differences over all of them.

    python benchmarks/quickstart_seeds.py runs/seeds            runs what is missing, then prints the tables
    python benchmarks/quickstart_seeds.py runs/seeds prompts.path=my.jsonl        with changes to the recipe

A seed decides split, sampling, ties and training. Pooled intervals resample questions: a question that several seeds
held out is one cluster, so it is not counted several times.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from sinterlm.evaluation.rates import (
    Difference,
    Rate,
    compute_rates,
    join_runs,
    paired_difference,
    values_by_metric,
)
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.stage import RunContext
from sinterlm.pipeline.stages.evaluate import held_out_scores
from sinterlm.pipeline.summary import read_summary
from sinterlm.recipe.load import load_recipe
from sinterlm.recipe.quickstart import quickstart_recipe
from sinterlm.records import Score
from sinterlm.store import Store
from sinterlm.terminal.progress import TerminalReporter
from sinterlm.terminal.terminal import Terminal

SEEDS = (0, 1, 2)
METRICS = ("exact_match", "contains")

Scores = Mapping[str, Mapping[str, Score]]
"""Model to prompt id to score."""


def read_scores(fusion: Fusion) -> dict[str, dict[str, Score]]:
    """Every model's held-out scores in one run."""
    with closing(Store(fusion.store_path, read_only=True)) as store:
        run = RunContext(fusion, store, SilentReporter())
        prompts = store.prompts(fusion.run_name, "held_out")
        return {each.name: held_out_scores(run, prompts, each) for each in fusion.participants}


def compare(runs: list[Scores], model: str, other: str, metric: str) -> Difference:
    """``model`` minus ``other`` over one or more runs."""
    return paired_difference(
        join_runs((values_by_metric(scores[model])[metric], values_by_metric(scores[other])[metric]) for scores in runs)
    )


def show(value: Rate | Difference, *, sign: str = "") -> str:
    """Value and interval, as in the tables of the log."""
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def main(folder: Path, overrides: list[str]) -> None:
    """Run the seeds and print the tables."""
    runs: list[Scores] = []
    console = Terminal(stderr=True)
    for seed in SEEDS:
        settings = [f"output={folder / f'seed-{seed}'}", f"seed={seed}", *overrides]
        fusion = Fusion(load_recipe(quickstart_recipe(), settings).recipe)
        run_fusion(fusion, TerminalReporter(console))
        scores, summary = read_scores(fusion), read_summary(fusion)
        runs.append(scores)
        sources = [source.name for source in fusion.sources]
        seconds, memory = summary["seconds"], summary["peak_memory_bytes"] / 1e9
        num_questions = len(scores["target"])
        print(f"\nSeed {seed}: {num_questions} held-out questions, {seconds:.0f} s, {memory:.1f} GB\n")
        print("| model | exact match | contains |\n| --- | --- | --- |")
        for model, answered in scores.items():
            rates = compute_rates(answered)
            print(f"| {model} | {' | '.join(show(rates[metric]) for metric in METRICS)} |")
    models = list(runs[0])
    fused = models[-1]
    means = {
        source: sum(compute_rates(scores[source])["exact_match"].value for scores in runs) / len(runs)
        for source in sources
    }
    best = max(means, key=means.__getitem__)
    print(f"\nPaired differences of {fused} (best source over all seeds: {best})\n")
    print("| minus | metric | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | pooled |")
    print("| --- | --- | " + " | ".join("---" for _ in SEEDS) + " | --- |")
    for other in models[:-1]:
        for metric in METRICS:
            single = [show(compare([scores], fused, other, metric), sign="+") for scores in runs]
            pooled = compare(runs, fused, other, metric)
            print(f"| {other} | {metric} | {' | '.join(single)} | {show(pooled, sign='+')} (n {pooled.n}) |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
