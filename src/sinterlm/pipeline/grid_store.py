"""The cells of a grid on disk: their settings, their results, and which one was chosen.

search/METHOD/CELL/model/           the trained model, kept only for the best cell so far
search/METHOD/CELL/metrics.jsonl    its training, step by step
search/METHOD/CELL/cell.json        written last: marks a finished cell
search/METHOD/search.json           written once all cells are finished: their figures and the choice

A cell's folder is named by a hash of all that decides its figures, so a changed recipe never finds another's figures.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sinterlm.evaluation.rates import Rate
from sinterlm.files import atomic_write, remove
from sinterlm.models import Fingerprint
from sinterlm.pipeline.fusion import Fusion
from sinterlm.recipe.grid import Choice, apply_choice, count_cells, list_choices
from sinterlm.recipe.schema import Training
from sinterlm.records import Dropped, Prompt, digest


@dataclass(frozen=True, slots=True)
class CellResult:
    """The result of a cell, e.g. ``CellResult("exact_match", Rate(0.6, 0.5, 0.7, 100), loss=0.61, margin=0.4)``."""

    metric: str
    """``exact_match`` or ``score``: the scorer's main figure."""
    rate: Rate
    """On the development prompts."""
    loss: float | None = None
    """At the last training step."""
    margin: float | None = None
    """Margin of internal rewards at the last training step; None if the training compares nothing."""
    dropped: Sequence[Dropped] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One training of a search."""

    number: int
    """From 1, over the whole grid."""
    choice: Choice
    """Its own values, and those that earlier entries have settled."""
    training: Training
    """The training with these values."""
    folder: Path

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.folder / "model"

    @property
    def result(self) -> CellResult | None:
        """The cell's result; None if it is not finished or its figures are damaged."""
        try:
            stored = json.loads((self.folder / "cell.json").read_bytes())
            if stored.pop("digest", None) not in (None, digest(stored)):  # earlier releases wrote none
                return None
        except (OSError, ValueError, AttributeError):
            return None
        dropped = tuple(Dropped(**drop) for drop in stored.pop("dropped"))
        return CellResult(stored.pop("metric"), Rate(**stored.pop("rate")), dropped=dropped, **stored)

    def finish(self, result: CellResult) -> None:
        """Mark the cell as finished and keep its figures."""
        if (metrics := self.model / "metrics.jsonl").is_file():
            with atomic_write(self.folder / metrics.name) as path:
                shutil.copy(metrics, path)
        with atomic_write(self.folder / "cell.json") as path:
            figures = {**asdict(result), "rate": result.rate._asdict()}
            path.write_text(json.dumps({**figures, "digest": digest(figures)}, indent=1))


class Grid:
    """The grid of one training of a fusion.

    Args:
        fusion: The fusion.
        name: ``sft``, or the preference method.
        development: The prompts that decide.
        fingerprint: Fingerprints a model's weights. If it does not know all weights, no cell counts as finished.
    """

    def __init__(self, fusion: Fusion, name: str, development: Sequence[Prompt], fingerprint: Fingerprint) -> None:
        self.development = development
        self.num_cells = count_cells(fusion.trainings[name])
        self._fusion = fusion
        self._training = fusion.trainings[name]
        self._folder = fusion.search_path(name).parent
        self._name = name
        self._fingerprint = fingerprint

    def entries(self) -> Iterator[list[Cell]]:
        """Yield the cells of each entry in turn; finish them before asking for the next, which builds on the best."""
        settled: Choice = {}
        number = 1
        for entry in self._training.grid:
            choices = [{**settled, **choice} for choice in list_choices(entry)]
            cells = [self._cell(number + index, choice) for index, choice in enumerate(choices)]
            yield cells
            settled = best_of(cells).choice
            number += len(cells)

    def count_unfinished(self) -> int:
        """How many cells are left to train, at most: a cell that a later entry repeats is not trained again."""
        num_finished = 0
        for cells in self.entries():
            finished = [cell for cell in cells if cell.result]
            num_finished += len(finished)
            if len(finished) < len(cells):
                break
        return self.num_cells - num_finished

    def keep_one_model(self, kept: Cell) -> None:
        """Remove the models of all cells but one, also of earlier grids; their metrics and figures stay."""
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder != kept.folder:
                remove(folder / "model")

    def _cell(self, number: int, choice: Choice) -> Cell:
        training = apply_choice(self._training, choice)
        settings = [training.objective.kind, training.objective.resolve().values, training.train]
        return Cell(number, choice, training, self._folder / digest([self._shared, settings])[:16])

    @cached_property
    def _shared(self) -> str:
        """The hash of what decides the figures of all cells alike."""
        fusion = self._fusion
        held_out = fusion.recipe.evaluation.held_out
        assert held_out is not None
        rows = fusion.rows_path(self._name)
        start = fusion.start_of(self._name).weights
        assert start is not None
        return digest(
            [
                self._fingerprint(start),
                hashlib.sha256(rows.read_bytes()).hexdigest() if rows.is_file() else None,
                fusion.recipe.seed,
                fusion.for_evaluation(fusion.target).identity(self._fingerprint),
                held_out.scorer.describe(self._fingerprint),
                [[prompt.content_hash, prompt.answers] for prompt in self.development],
            ]
        )


def best_of(cells: Sequence[Cell]) -> Cell:
    """The finished cell with the highest figure; the first of equals."""
    finished = [(cell, result) for cell in cells if (result := cell.result)]
    return max(finished, key=lambda pair: pair[1].rate.value)[0]


def write_search(fusion: Fusion, name: str, entries: Sequence[Sequence[Cell]]) -> None:
    """Write the result of a search: the settings and folder of the best cell, and the figures of all."""
    best = best_of(entries[-1])
    table = [[_describe(fusion, cell, is_best=cell is best_of(cells)) for cell in cells] for cells in entries]
    result = best.result
    assert result is not None
    content = {
        "metric": result.metric,
        "chosen": dict(best.choice),
        "folder": str(best.folder.relative_to(fusion.output)),
        "entries": table,
    }
    with atomic_write(fusion.search_path(name)) as path:
        path.write_text(json.dumps(content, indent=1))


def _describe(fusion: Fusion, cell: Cell, *, is_best: bool) -> dict[str, Any]:
    result = cell.result
    assert result is not None
    return {
        "number": cell.number,
        "settings": dict(cell.choice),
        "chosen": is_best,
        **result.rate._asdict(),
        "loss": result.loss,
        "margin": result.margin,
        "folder": str(cell.folder.relative_to(fusion.output)),
    }


def read_search(fusion: Fusion, name: str) -> Mapping[str, Any] | None:
    """What :func:`write_search` wrote; None without a grid or before the search is done."""
    path = fusion.search_path(name)
    return dict(json.loads(path.read_text())) if fusion.trainings[name].grid and path.is_file() else None


def settle(fusion: Fusion, name: str) -> Training:
    """A training of the recipe, with the settings that its search chose, if it has one."""
    search = read_search(fusion, name)
    training = fusion.trainings[name]
    return apply_choice(training, search["chosen"]) if search else training


def describe_choice(choice: Choice) -> str:
    """The choice in words.

    >>> describe_choice({"train.learning_rate": 3e-7, "objective.alpha": 0.1})
    'learning_rate 3e-07, alpha 0.1'
    """
    return ", ".join(f"{key.partition('.')[2]} {value}" for key, value in choice.items())


def describe_grid(training: Training) -> str:
    """Everything that a grid searches, in words."""
    axes = [(key, values) for entry in training.grid for key, values in entry.items()]
    return "; ".join(f"{key.partition('.')[2]} {', '.join(map(str, values))}" for key, values in axes)
