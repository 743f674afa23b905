"""Grids: what a recipe may contain, and a search with tiny models that chooses on development prompts only."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sinterlm.errors import InputError, SinterError
from sinterlm.formats import read_rows
from sinterlm.pipeline.forecast import SAMPLING, StagePlan
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.grid_store import Cell, Grid
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.stage import stage_keys
from sinterlm.pipeline.stages import build_stages, search, train
from sinterlm.pipeline.status import status_of
from sinterlm.recipe.grid import apply_choice, count_cells, list_choices
from sinterlm.recipe.load import load_recipe, resolve_text
from sinterlm.recipe.schema import Preference, Recipe
from sinterlm.store import Store
from sinterlm.terminal.plan import print_plan
from sinterlm.terminal.terminal import Terminal
from sinterlm.training.trainer import FusionTrainer
from tests.test_pipeline import Lines
from tests.tiny_fusion import write_tiny_fusion

pytestmark = pytest.mark.xdist_group("grid")  # the tests' shared fixtures are made once, in one process

SHIPPED = Path(__file__).resolve().parents[1] / "recipes" / "wrpo" / "llama3-8b-search.yaml"
GRID = "[{train.learning_rate: [2e-2, 5e-2]}, {objective.alpha: [0.5, 0.0], train.max_steps: [4]}]"
CELLS = [
    {"train.learning_rate": 2e-2},
    {"train.learning_rate": 5e-2},
    {"objective.alpha": 0.5, "train.max_steps": 4},
    {"objective.alpha": 0.0, "train.max_steps": 4},
]
NUM_TRAININGS = 3
"""Contains the recipe's own alpha and steps, so one cell of the second entry is the best of the first."""
MODEL = "target-wrpo"


# --- what a recipe may say ---


def overrides(grid: str = GRID) -> list[str]:
    """The tiny fusion with one method and a scorer whose figures differ between any two models."""
    return [
        "prompts.split={held_out: 8, development: 12, preference: rest}",
        "sources={old-answers: {engine: recorded, path: answers.jsonl}}",
        "sft=null",
        "preference={wrpo: {select: {kind: wrpo, truncated: keep}, "
        "objective: {kind: wrpo, beta: 0.1, alpha: 0.5, alpha_schedule: constant}, "
        f"train: {{max_steps: 4, per_device_train_batch_size: 4, max_length: 128}}, grid: {grid}}}}}",
    ]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny fusion, evaluated by a reward model whose figures differ between any two models."""
    path = write_tiny_fusion(tmp_path_factory.mktemp("grid"))
    text = path.read_text()
    path.write_text(text[: text.index("evaluation:")] + f"evaluation: {{held_out: {{scorer: {scorer_of(path)}}}}}\n")
    return path


def scorer_of(recipe: Path) -> str:
    return f"{{kind: reward-model, model: {recipe.parent}/models/reward}}"


def load(recipe: Path, *changes: str, grid: str = GRID) -> Recipe:
    return load_recipe(recipe, [*overrides(grid), *changes]).recipe


def test_an_entry_is_the_product_of_its_keys_and_the_last_changes_fastest() -> None:
    entry: dict[str, list[Any]] = {"objective.alpha": [0.1, 0.3], "train.learning_rate": [1, 2, 3]}
    assert [tuple(choice.values()) for choice in list_choices(entry)] == [
        (0.1, 1), (0.1, 2), (0.1, 3), (0.3, 1), (0.3, 2), (0.3, 3),
    ]  # fmt: skip


def test_a_choice_changes_its_own_settings_and_nothing_else(recipe: Path) -> None:
    training = load(recipe).preference["wrpo"]
    chosen = apply_choice(training, {"train.learning_rate": 1e-6, "objective.alpha": 0.9, "train.max_steps": 7})
    assert isinstance(chosen, Preference)
    assert chosen.train == training.train | {"learning_rate": 1e-6, "max_steps": 7}
    assert chosen.objective == training.objective.model_copy(update={"alpha": 0.9})
    assert chosen.select == training.select
    assert "learning_rate" not in training.train


@pytest.mark.parametrize(
    ("grid", "key", "message"),
    [
        ("{train.learning_rate: [1e-6]}", "grid", "found a mapping, expected a list"),
        ("[]", "", ""),
        ("[{}]", "grid[0]", "found a mapping, expected at least 1 of them"),
        ("[{train.learning_rate: []}]", "grid[0].train.learning_rate", "found a list, expected at least 1 of them"),
        ("[{train.learning_rate: 1e-6}]", "grid[0].train.learning_rate", "found 1e-06, expected a list"),
        ("[{learning_rate: [1e-6]}]", "grid[0].learning_rate", "unknown key, expected train.NAME or objective.NAME"),
        ("[{select.ties: [hash]}]", "grid[0].select.ties", "unknown key, expected train.NAME or objective.NAME"),
        ("[{train.: [1]}]", "grid[0].train.", "unknown key, expected train.NAME or objective.NAME"),
        ("[{train.lerning_rate: [1, 2]}]", "grid[0].train.lerning_rate", "did you mean learning_rate?"),
        ("[{train.seed: [1, 2]}]", "grid[0].train.seed", "not for recipes to set: the recipe's own `seed` is used"),
        ("[{train.learning_rate: [1e-6, fast]}]", "grid[0].train.learning_rate[1]", "found 'fast' (text), expected"),
        ("[{train.learning_rate: [-1.0]}]", "grid[0].train.learning_rate[0]", "at least 0"),
        ("[{objective.bta: [1, 2]}]", "grid[0].objective.bta", "did you mean beta?"),
        ("[{objective.alpha: [0.1, 2]}]", "grid[0].objective.alpha[1]", "found 2, expected a number, at least 0"),
        ("[{objective.alpha: [yes]}]", "grid[0].objective.alpha[0]", "found 'yes' (text), expected a number"),
        ("[{objective.kind: [wrpo, wrop]}]", "grid[0].objective.kind[1]", "unknown objective 'wrop'; did you mean"),
        ("[{objective.kind: [[wrpo]]}]", "grid[0].objective.kind[0]", "unknown objective"),
        ("[{objective.base: [dop]}]", "grid[0].objective.base[0]", "found 'dop' (text), expected"),
        ("[{objective.kind: [wrpo, dpo]}]", "select.kind", "the objective 'dpo' needs chosen, rejected"),
        ("[{objective.kind: [dpo]}]", "objective.alpha", "unknown hyper-parameter of 'dpo'"),
        ("[{objective.alpha: [0.1, 0.3, 0.1]}]", "grid[0].objective.alpha[2]", "0.1 is listed twice"),
        (
            "[{objective.alpha: [0.1]}, {objective.alpha: [0.3]}]",
            "grid[1].objective.alpha",
            "searched already in preference.wrpo.grid[0]; keep it in one entry",
        ),
    ],
)
def test_what_is_wrong_with_a_grid_is_told_by_line_and_key(
    recipe: Path, tmp_path: Path, grid: str, key: str, message: str
) -> None:
    text = (
        recipe.read_text()
        .replace("\n  dpo:", f"\n    grid: {grid}\n  dpo:")
        .replace("held_out: 8,", "held_out: 8, development: 8,")
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    if not key:
        assert load_recipe(path).recipe.preference["wrpo"].grid == []
        return
    line = 1 + next(
        number for number, line in enumerate(text.splitlines()) if key.partition("[")[0].partition(".")[0] + ":" in line
        and number > text[: text.index("  wrpo:")].count("\n")
    )  # fmt: skip
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert f"{path}:{line}: preference.wrpo.{key}: " in str(error.value)
    assert message in str(error.value)


def test_every_combination_of_objective_and_base_is_checked(recipe: Path) -> None:
    """A hyper-parameter that one of the searched objectives lacks is an error, even if another has it."""
    with pytest.raises(InputError, match=r"objective\.alpha: unknown hyper-parameter of 'dpo'"):
        load(recipe, grid="[{train.learning_rate: [1e-6]}, {objective.kind: [wrpo, dpo]}]")


@pytest.mark.parametrize(
    ("grid", "cells"),
    [
        ("[{train.learning_rate: [1e-6]}, {objective.base: [dpo, ipo]}]", r"grid\[1\].objective.base\[1\]"),
        (
            "[{objective.kind: [wrpo], objective.base: [ipo]}]",
            r"grid\[0\].objective.kind\[0\] and preference.wrpo.grid\[0\].objective.base\[0\]",
        ),
    ],
)
def test_the_cells_are_named_whose_objective_lacks_a_hyperparameter(recipe: Path, grid: str, cells: str) -> None:
    """The error names the line of the hyper-parameter, which the recipe's own base has."""
    message = rf"objective\.beta: unknown hyper-parameter of 'wrpo' with base 'ipo', which preference.wrpo.{cells} asks"
    with pytest.raises(InputError, match=message):
        load(recipe, grid=grid)


def test_a_grid_needs_development_prompts_and_a_scorer(recipe: Path) -> None:
    with pytest.raises(InputError, match=r"preference.wrpo.grid: .*prompts.split.development is 0; give it prompts"):
        load(recipe, "prompts.split.development=0")
    with pytest.raises(InputError, match=r"preference.wrpo.grid: .*scorer of evaluation.held_out.*add `evaluation`"):
        load(recipe, "evaluation={}")


def test_sft_may_search_training_arguments_only(recipe: Path) -> None:
    sft = "sft={select: {kind: best-of-sources}, grid: [{%s: [1.0]}]}"
    assert load(recipe, sft % "train.learning_rate").sft
    with pytest.raises(InputError, match=r"sft.grid\[0\].objective.beta: unknown key, expected train.NAME, such"):
        load(recipe, sft % "objective.beta")


def test_the_recipe_of_a_run_reads_back_as_it_was(recipe: Path, tmp_path: Path) -> None:
    """Defaults are written out, except those of an objective if several are searched."""
    for grid in (GRID, "[{objective.base: [dpo]}]"):
        given = load(recipe, grid=grid)
        copy = tmp_path / "recipe.yaml"
        copy.write_text(resolve_text(given))
        again = load_recipe(copy).recipe
        assert again.preference["wrpo"].grid == given.preference["wrpo"].grid
        assert stage_keys(build_stages(Fusion(again)), str) == stage_keys(build_stages(Fusion(given)), str)
    assert again.preference["wrpo"].objective == given.preference["wrpo"].objective


# --- the search ---


def fuse(recipe: Path, output: Path, *changes: str, grid: str = GRID, until: str | None = None) -> Lines:
    reporter = Lines()
    run_fusion(Fusion(load(recipe, f"output={output}", *changes, grid=grid)), reporter, until=until)
    return reporter


@pytest.fixture(scope="module")
def selected(recipe: Path) -> Path:
    """A run up to its training rows."""
    fuse(recipe, recipe.parent / "selected", until="select-wrpo")
    return recipe.parent / "selected"


@contextmanager
def counted_trainings() -> Iterator[list[int]]:
    """Counts how often a model is really trained."""
    count = [0]

    def counting(self: FusionTrainer, **arguments: Any) -> Any:
        count[0] += 1
        return original(self, **arguments)

    original = FusionTrainer.train
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FusionTrainer, "train", counting)
        yield count


@pytest.fixture(scope="module")
def searched(recipe: Path, selected: Path) -> Path:
    """A run that was never interrupted."""
    output = recipe.parent / "searched"
    shutil.copytree(selected, output)
    models_at_once = []

    def watch(self: Cell, result: object) -> None:
        models_at_once.append(len(list(output.glob("search/wrpo/*/model/*.safetensors"))))
        finish(self, result)  # type: ignore[arg-type]

    finish = Cell.finish
    with counted_trainings() as count, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Cell, "finish", watch)
        reporter = fuse(recipe, output)
    assert count == [NUM_TRAININGS]
    assert models_at_once == [1, 2, 2], "the best so far, and the one at work"
    assert "  cell 2 of 4: learning_rate 0.05" in reporter.lines
    assert any(line.startswith("search-wrpo done") and "cells: 4" in line for line in reporter.lines)
    return output


def found_in(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "search" / "wrpo" / "search.json").read_text())
    return content


def weights(output: Path) -> bytes:
    return (output / MODEL / "model.safetensors").read_bytes()


def test_entries_are_searched_in_turn_and_the_best_is_kept_for_the_next(searched: Path) -> None:
    found = found_in(searched)
    first, second = found["entries"]
    assert [cell["number"] for cell in (*first, *second)] == [1, 2, 3, 4]
    best = max(first, key=lambda cell: cell["value"])
    assert [cell["settings"] for cell in first] == CELLS[:2]
    assert [cell["settings"] for cell in second] == [best["settings"] | choice for choice in CELLS[2:]]
    for entry in found["entries"]:
        assert [cell["chosen"] for cell in entry] == [cell["value"] == max(c["value"] for c in entry) for cell in entry]
    assert found["chosen"] == max(second, key=lambda cell: cell["value"])["settings"]
    assert second[0]["folder"] == best["folder"], "the recipe's own alpha and beta: an existing cell"
    assert len({cell["value"] for cell in (*first, *second)}) == NUM_TRAININGS, "no two models score alike"


def test_a_cell_is_an_ordinary_training_and_the_method_has_the_best_of_them(
    recipe: Path, selected: Path, searched: Path, tmp_path: Path
) -> None:
    """The same settings in a recipe without a grid give the same development figure and, chosen, the same model."""
    found = found_in(searched)
    chosen = next(cell for cell in found["entries"][1] if cell["chosen"])
    other = next(cell for cell in found["entries"][0] if not cell["chosen"])
    for number, cell in enumerate((chosen, other)):
        output = tmp_path / str(number)
        shutil.copytree(selected, output)
        settings = [f"preference.wrpo.{key}={value}" for key, value in cell["settings"].items()]
        fuse(recipe, output, *settings, grid="[]", until="evaluate")
        figures = json.loads((output / "evaluation.json").read_text())["development"]["models"][MODEL]["score"]
        assert figures == pytest.approx({key: cell[key] for key in ("value", "low", "high", "n")})
        assert (weights(output) == weights(searched)) == cell["chosen"]
        metrics = [json.loads(line) for line in (searched / cell["folder"] / "metrics.jsonl").read_text().splitlines()]
        ordinary = [json.loads(line) for line in (output / MODEL / "metrics.jsonl").read_text().splitlines()]
        assert [step["loss"] for step in metrics] == [step["loss"] for step in ordinary]
        assert (cell["loss"], cell["margin"]) == (ordinary[-1]["loss"], ordinary[-1]["rewards/margins"])
        assert not (output / "search").exists()


def test_losing_cells_keep_their_figures_and_lose_their_weights(searched: Path) -> None:
    found = found_in(searched)
    for cell in (cell for entry in found["entries"] for cell in entry):
        folder = searched / cell["folder"]
        assert sorted(path.name for path in folder.iterdir()) == ["cell.json", "metrics.jsonl"]
    assert not list(searched.glob("search/**/*.safetensors"))


def test_what_was_chosen_is_in_summary_report_and_card(searched: Path) -> None:
    found = found_in(searched)
    summary = json.loads((searched / "summary.json").read_text())
    assert summary["searches"] == {"wrpo": found}
    assert summary["stages"]["search-wrpo"]["counts"]["cells"] == 4
    page = (searched / "report.html").read_text()
    assert "Search for the settings of wrpo" in page
    card = (searched / MODEL / "README.md").read_text()
    for key, value in found["chosen"].items():
        assert f"- {key.partition('.')[2]}: `{value}`" in card
    assert "learning_rate 0.02, 0.05; alpha 0.5, 0.0; max_steps 4" in card


def test_no_development_prompt_is_trained_on_or_held_out(searched: Path) -> None:
    with Store(searched / "store.sqlite", read_only=True) as store:
        parts = {part: {p.id for p in store.prompts(".", part)} for part in ("development", "preference", "held_out")}
    assert len(parts["development"]) == 12
    assert not parts["development"] & (parts["preference"] | parts["held_out"])
    assert not parts["development"] & {row.prompt_id for row in read_rows(searched / "rows" / "wrpo.parquet")}
    assert {cell["n"] for entry in found_in(searched)["entries"] for cell in entry} == {12}


def test_held_out_prompts_have_no_part_in_the_choice(recipe: Path, searched: Path, tmp_path: Path) -> None:
    """Other held-out questions under the same ids change held-out figures, but no digit of the search."""
    with Store(searched / "store.sqlite", read_only=True) as store:
        held_out = {prompt.id for prompt in store.prompts(".", "held_out")}
    questions = [json.loads(line) for line in (recipe.parent / "questions.jsonl").read_text().splitlines()]
    for question in questions:
        if question["id"] in held_out:
            question |= {"prompt": f"Say nothing of {question['id']}.", "answers": ["nothing"]}
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    fuse(recipe, tmp_path / "out", f"prompts.path={path}", until="evaluate")
    with Store(tmp_path / "out" / "store.sqlite", read_only=True) as store:
        assert {prompt.id for prompt in store.prompts(".", "held_out")} == held_out
    ours, theirs = (json.loads((run / "evaluation.json").read_text()) for run in (tmp_path / "out", searched))
    assert ours["models"][MODEL] != theirs["models"][MODEL]
    assert found_in(tmp_path / "out") == found_in(searched)
    assert weights(tmp_path / "out") == weights(searched)


def test_ties_go_to_the_first_cell(recipe: Path, selected: Path, tmp_path: Path) -> None:
    """No tiny model ever answers exactly, so all cells have a pass rate of 0."""
    output = tmp_path / "out"
    shutil.copytree(selected, output)
    exact = "evaluation={held_out: {scorer: {kind: exact-match}}}"
    fuse(recipe, output, exact, grid="[{train.learning_rate: [3e-2, 3e-3]}]", until="search-wrpo")
    found = found_in(output)
    assert found["metric"] == "exact_match"
    assert [(cell["value"], cell["chosen"]) for cell in found["entries"][0]] == [(0.0, True), (0.0, False)]
    assert found["entries"][0][0]["high"] == pytest.approx(1.96**2 / (12 + 1.96**2), abs=1e-3), "Wilson's, not 0"


class Interrupted(BaseException):
    """Like KeyboardInterrupt, not swallowed by any handler."""


def interrupt(recipe: Path, output: Path, owner: Any, name: str, number: int) -> None:
    """Run until the ``number``-th call of a function, then stop."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def interrupting(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Interrupted
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patched, suppress(Interrupted):
        patched.setattr(owner, name, interrupting)
        fuse(recipe, output, until="train-wrpo")
        pytest.fail("it was not interrupted")


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (search, "fit", 2),  # between two cells
        (Cell, "finish", 3),  # sampled and scored, but not marked as done
        (Grid, "keep_one_model", 2),  # the entry is decided, the losing cell not yet deleted
        (train, "remove", 1),  # searched, the best model still in its cell
    ],
)
def test_an_interrupted_search_goes_on_to_the_same_end(
    recipe: Path, selected: Path, searched: Path, tmp_path: Path, owner: Any, name: str, number: int
) -> None:
    output = tmp_path / "out"
    shutil.copytree(selected, output)
    with counted_trainings() as count:
        interrupt(recipe, output, owner, name, number)
        fuse(recipe, output, until="train-wrpo")
    assert count == [NUM_TRAININGS], "no cell is trained twice"
    assert found_in(output) == found_in(searched)
    assert weights(output) == weights(searched)
    assert not list(output.glob("search/**/*.safetensors"))


def test_plan_and_status_count_cells(recipe: Path, selected: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(selected, output)

    def planned() -> StagePlan:
        plan = plan_fusion(Fusion(load(recipe, f"output={output}")))
        assert next(stage for stage in plan.stages if stage.name == "train-wrpo").disk_bytes is None
        return next(stage for stage in plan.stages if stage.name == "search-wrpo")

    def counts() -> Any:
        return next(stage for stage in status_of(output)["stages"] if stage["name"] == "search-wrpo")["counts"]

    before = planned()
    assert (before.calls, before.note.partition(",")[0]) == (4 * 12, "trainings: 4 at most")
    size = (recipe.parent / "models" / "target" / "model.safetensors").stat().st_size
    assert before.disk_bytes is not None
    assert 2 * size < before.disk_bytes < 3 * size + 100_000
    assert counts() == {"cells": 4, "finished": 0}
    interrupt(recipe, output, search, "fit", 3)
    # The first entry, and the cell of the second that repeats its best.
    assert counts() == {"cells": 4, "finished": 3}
    assert (planned().calls, planned().note.partition(",")[0]) == (12, "trainings: 1 at most")


def test_a_model_that_was_deleted_is_trained_again_by_the_settings_that_were_chosen(
    recipe: Path, searched: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(searched, output)
    shutil.rmtree(output / MODEL)
    with counted_trainings() as count:
        reporter = fuse(recipe, output, until="train-wrpo")
    assert count == [1]
    assert not any(line.startswith("search-wrpo") for line in reporter.lines)
    assert weights(output) == weights(searched)


def test_another_grid_trains_its_new_cells_only(recipe: Path, searched: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(searched, output)
    with counted_trainings() as count:
        fuse(recipe, output, grid="[{train.learning_rate: [5e-2, 1e-3, 2e-2]}]", until="search-wrpo")
    assert count == [1]
    (cells,) = found_in(output)["entries"]
    known = {json.dumps(cell["settings"]): cell["value"] for cell in found_in(searched)["entries"][0]}
    assert [known.get(json.dumps(cell["settings"]), cell["value"]) for cell in cells] == [c["value"] for c in cells]


def test_a_training_that_fails_names_its_cell(recipe: Path, selected: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(selected, output)
    with pytest.raises(SinterError, match=r"search-wrpo, cell 2 of 2 \(learning_rate 1e\+30\): the gradient of step"):
        fuse(recipe, output, grid="[{train.learning_rate: [2e-2, 1e+30]}]", until="search-wrpo")
    with counted_trainings() as count:
        fuse(recipe, output, grid="[{train.learning_rate: [2e-2]}]", until="search-wrpo")
    assert count == [0], "without that value, the search is over"


def test_sft_can_be_searched_too(recipe: Path, tmp_path: Path) -> None:
    sft = "sft={select: {kind: best-of-sources}, train: {max_steps: 2, max_length: 128}, grid: [%s]}"
    changes = ["preference={}", "prompts.split={held_out: 8, development: 12, sft: 8}"]
    output = tmp_path / "out"
    fuse(recipe, output, *changes, sft % "{train.learning_rate: [1e-4, 3e-2]}", until="train-sft")
    found = json.loads((output / "search" / "sft" / "search.json").read_text())
    best = max(found["entries"][0], key=lambda cell: float(cell["value"]))
    assert found["chosen"] == best["settings"]
    card = (output / "target-sft" / "README.md").read_text()
    assert f"- learning_rate: `{best['settings']['train.learning_rate']}`" in card


# --- the shipped search ---


def test_the_shipped_search_is_the_papers(tmp_path: Path) -> None:
    """arXiv 2412.03187, appendices A and E; planning it needs neither its prompts nor its models."""
    recipe = load_recipe(SHIPPED, [f"output={tmp_path}"]).recipe
    wrpo = recipe.preference["wrpo"]
    assert wrpo.grid == [
        {"train.learning_rate": [3e-7, 5e-7, 6e-7, 1e-6]},
        {"objective.alpha": [0.1, 0.3, 0.5, 0.7, 0.9]},
    ]
    assert count_cells(wrpo) == 9
    assert (wrpo.objective.beta, wrpo.objective.alpha_schedule, wrpo.train["max_length"]) == (0.01, "ramp", 2048)
    assert wrpo.train["per_device_train_batch_size"] * wrpo.train["gradient_accumulation_steps"] == 128
    planned = {stage.name: stage for stage in plan_fusion(Fusion(recipe)).stages}
    assert planned["search-wrpo"].calls == 9 * 500
    assert "trainings: 9 at most" in planned["search-wrpo"].note


def test_a_plan_says_unknown_where_prompts_that_are_not_there_would_be_counted(tmp_path: Path) -> None:
    """Two of the parts are counts, and two are shares of the file's prompts."""
    shares = "prompts.split={held_out: 1000, sft: 0.33, development: 500, preference: rest}"
    plan = plan_fusion(Fusion(load_recipe(SHIPPED, [f"output={tmp_path}", f"workspace={tmp_path}", shares]).recipe))
    assert plan.prompts == {"held_out": 1000, "sft": None, "development": 500, "preference": None}
    total = plan.to_json()["total"]
    assert set(total) == {*SAMPLING}
    assert set(total.values()) == {None}
    output = io.StringIO()
    print_plan(plan, Terminal(file=output, width=200))
    cells = {line.split()[1]: line.split("│")[3:11] for line in output.getvalue().splitlines() if "│" in line}
    shown = {name: [cell.strip() for cell in row] for name, row in cells.items()}
    assert shown["sample-sources"] == shown["sample-target"] == shown["left"] == ["unknown"] * 8
    assert shown["search-wrpo"][:2] == ["4,500", "unknown"]  # the recipe counts them, but their texts are missing
    assert shown["score-sources"] == ["unknown", "", "", "unknown", "unknown", "", "unknown", "unknown"]
    assert shown["train-sft"] == ["", "", "", "", "", "32.0 GB", "unknown", "unknown"]
    assert shown["select-sft"] == shown["train-wrpo"] == [""] * 8
    assert "prompts: held_out 1,000, sft unknown, development 500, preference unknown" in output.getvalue()
