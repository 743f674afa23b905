"""The stages ``search-NAME``: train the cells of a grid, evaluate each on the development prompts, keep the best.

Held-out prompts and answers are never read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sinterlm.errors import SinterError
from sinterlm.evaluation.rates import Rate, compute_rates
from sinterlm.models import Fingerprint, cached_fingerprint, fingerprint
from sinterlm.pipeline.forecast import Forecast, StagePlan, add_hours
from sinterlm.pipeline.fusion import Fusion, Participant
from sinterlm.pipeline.grid_store import Cell, CellResult, Grid, best_of, describe_choice, read_search, write_search
from sinterlm.pipeline.metrics import read_metrics
from sinterlm.pipeline.sample import sample
from sinterlm.pipeline.sampling_cost import estimate_sampling
from sinterlm.pipeline.score import score
from sinterlm.pipeline.stage import RunContext, Shown, Stage, StageResult
from sinterlm.pipeline.stages.evaluate import held_out_scores
from sinterlm.pipeline.stages.sample import describe_request
from sinterlm.pipeline.stages.train import (
    describe_checkpoints,
    describe_training,
    estimate_training_hours,
    fit,
    training_needs,
)
from sinterlm.report import data as page


class Search(Stage):
    """Finds the best settings of one training, one entry of its grid after the other."""

    reads_target = True

    def __init__(self, fusion: Fusion, training: str) -> None:
        self._fusion = fusion
        self._training = training
        self.name = f"search-{training}"
        self.needs = training_needs(fusion, training)
        self.outputs = (fusion.search_path(training),)

    def configuration(self, fingerprint: Fingerprint) -> object:
        """The training and its grid, how the target is evaluated, and by which scorer."""
        fusion = self._fusion
        return [
            describe_training(fusion, self._training, fingerprint),
            fusion.trainings[self._training].grid,
            describe_request(fusion.for_evaluation(fusion.target), fingerprint),
            fusion.rounds["held-out"].scorer.describe(fingerprint),
        ]

    def estimate(self, forecast: Forecast) -> StagePlan:
        """The cells that are not finished yet, each with one answer to every development prompt."""
        fusion, training = self._fusion, self._training
        num_left = self._grid(forecast).count_unfinished()
        cell = replace(
            fusion.model_of(training), location=str(fusion.search_path(training))
        )  # a model that is not trained yet
        asked = [(fusion.for_evaluation(cell), forecast.parts["development"])] * num_left
        planned = estimate_sampling(self.name, asked, forecast)
        note = f"trainings: {num_left} at most"
        weights = forecast.target_bytes
        if weights is None:
            return replace(planned, disk_bytes=None, note=note)
        # The best cell so far, and the one in training.
        num_models = min(num_left, 2)
        return replace(
            planned,
            disk_bytes=None if planned.disk_bytes is None else planned.disk_bytes + num_models * weights,
            gpu_hours=add_hours([planned.gpu_hours, *[estimate_training_hours(forecast, training)] * num_left]),
            note=f"{note}, {num_models} models at once, and {describe_checkpoints(weights)}",
        )

    def progress(self, forecast: Forecast) -> Mapping[str, float]:
        """The number of cells, and of those finished."""
        grid = self._grid(forecast)
        return {"cells": grid.num_cells, "finished": grid.num_cells - grid.count_unfinished()}

    def work(self, run: RunContext) -> StageResult:
        """Train and evaluate the cells that are not finished, and write which one was chosen."""
        fusion, name = run.fusion, self._training
        grid = Grid(fusion, name, run.prompts("development"), fingerprint)
        entries, num_trained = [], 0
        for cells in grid.entries():
            for cell in cells:
                if cell.result is None:
                    self._carry_out(run, grid, cell)
                    num_trained += 1
                    grid.keep_one_model(best_of(cells))
            entries.append(cells)
        best = best_of(entries[-1])
        grid.keep_one_model(best)
        write_search(fusion, name, entries)
        result = best.result
        assert result is not None
        run.reporter.say(f"  chosen on {result.rate.n} development prompts: {describe_choice(best.choice)}")
        # A cell that a later entry repeats counts once.
        results = {cell.folder: cell.result for cells in entries for cell in cells}
        return StageResult(
            {"cells": grid.num_cells, "trained now": num_trained, f"best {result.metric}": round(result.rate.value, 4)},
            [drop for finished in results.values() if finished for drop in finished.dropped],
        )

    def show(self, run: RunContext) -> Shown:
        """The cells side by side, and the chosen settings."""
        found = read_search(run.fusion, self._training)
        if not found:
            return Shown()
        cells = [
            page.SearchedCell(
                cell["number"],
                describe_choice(cell["settings"]),
                Rate(cell["value"], cell["low"], cell["high"], cell["n"]),
                loss=cell["loss"],
                margin=cell["margin"],
                is_chosen=cell["chosen"],
            )
            for entry in found["entries"]
            for cell in entry
        ]
        search = page.Search(self._training, found["metric"], cells)
        return Shown(
            {"searches": {self._training: found}}, lambda data: replace(data, searches=[*data.searches, search])
        )

    def _grid(self, forecast: Forecast) -> Grid:
        return Grid(self._fusion, self._training, forecast.stored_prompts("development"), cached_fingerprint)

    def _carry_out(self, run: RunContext, grid: Grid, cell: Cell) -> None:
        """Train a cell, have its model answer the development prompts greedily, and score the answers."""
        fusion, scorer = run.fusion, run.fusion.rounds["held-out"].scorer
        label = f"cell {cell.number} of {grid.num_cells}"
        run.reporter.say(f"  {label}: {describe_choice(cell.choice)}")
        try:
            fit(run, self._training, cell.training, output=cell.model, label=label)
        except SinterError as error:
            raise type(error)(f"{self.name}, {label} ({describe_choice(cell.choice)}): {error}") from error
        participant = Participant(label, fusion.recipe.target, str(cell.model))
        request = fusion.for_evaluation(participant)
        sampled = sample(run, self.name, [request], grid.development)
        scored = score(run, self.name, scorer, [request], grid.development)
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
