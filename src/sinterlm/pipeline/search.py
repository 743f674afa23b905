"""The search of a grid as a stage: train a cell, ask it the development prompts, keep the best, go on with it.

Held-out prompts and answers are never read here.
"""

from __future__ import annotations

from sinterlm.errors import SinterError
from sinterlm.evaluation.rates import compute_rates
from sinterlm.models import fingerprint
from sinterlm.pipeline.cells import Cell, CellResult, Grid, best_of, describe_choice, write_search
from sinterlm.pipeline.evaluate import held_out_scores
from sinterlm.pipeline.fusion import Participant
from sinterlm.pipeline.sample import sample
from sinterlm.pipeline.score import score
from sinterlm.pipeline.stage import RunContext, StageResult
from sinterlm.pipeline.train import fit, read_metrics


def search(run: RunContext, name: str) -> StageResult:
    """Find the best settings of one training, an entry of its grid after the other."""
    fusion = run.fusion
    grid = Grid(fusion, name, run.store.prompts(fusion.run_name, "development"), fingerprint)
    entries, num_trained = [], 0
    for cells in grid.entries():
        for cell in cells:
            if cell.result is None:
                _carry_out(run, name, grid, cell)
                num_trained += 1
                grid.keep_one_model(best_of(cells))
        entries.append(cells)
    best = best_of(entries[-1])
    grid.keep_one_model(best)
    write_search(fusion, name, entries)
    result = best.result
    assert result is not None
    run.reporter.say(f"  chosen on {result.rate.n} development prompts: {describe_choice(best.choice)}")
    # A cell that a later entry repeats is one cell.
    results = {cell.folder: cell.result for cells in entries for cell in cells}
    return StageResult(
        {"cells": grid.num_cells, "trained now": num_trained, f"best {result.metric}": round(result.rate.value, 4)},
        [drop for finished in results.values() if finished for drop in finished.dropped],
    )


def _carry_out(run: RunContext, name: str, grid: Grid, cell: Cell) -> None:
    """Train a cell, have its model answer the development prompts greedily, and score the answers."""
    fusion, stage = run.fusion, f"search-{name}"
    held_out = fusion.recipe.evaluation.held_out
    assert held_out is not None
    label = f"cell {cell.number} of {grid.num_cells}"
    run.reporter.say(f"  {label}: {describe_choice(cell.choice)}")
    try:
        fit(run, name, cell.training, output=cell.model, label=label)
    except SinterError as error:
        raise type(error)(f"{stage}, {label} ({describe_choice(cell.choice)}): {error}") from error
    participant = Participant(label, fusion.recipe.target, str(cell.model))
    ask = fusion.for_evaluation(participant)
    sampled = sample(run, stage, ask, grid.development)
    scored = score(run, stage, held_out.scorer, [ask], grid.development)
    metric, rate = next(iter(compute_rates(held_out_scores(run, grid.development, participant)).items()))
    last_step = (read_metrics(cell.model) or [{}])[-1]
    cell.finish(
        CellResult(
            metric,
            rate,
            loss=last_step.get("loss"),
            margin=last_step.get("rewards/margins"),
            dropped=(*sampled.dropped, *scored.dropped),
        )
    )
