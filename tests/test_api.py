"""The public Python API: what docs/python.md shows works on a fusion, and the names and signatures are frozen."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sinterlm
from sinterlm.errors import InputError
from sinterlm.evaluation.rates import Rate
from sinterlm.pipeline.finished import Run
from sinterlm.pipeline.progress import SilentReporter
from tests.tiny_fusion import write_tiny_fusion

pytestmark = pytest.mark.xdist_group("api")  # the tests' shared fixtures are made once, in one process

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
SIGNATURES = {
    "load_run": "(folder: 'str | Path') -> 'Run'",
    "plan_fusion": (
        "(recipe: 'AnyRecipe', overrides: 'Sequence[str]' = (), *, pilot: 'str | Path | None' = None) -> 'plan.Plan'"
    ),
    "run_fusion": (
        "(recipe: 'AnyRecipe', overrides: 'Sequence[str]' = (), *, until: 'str | None' = None, "
        "only: 'str | None' = None, allow_code: 'bool' = False, reporter: 'Reporter | None' = None) -> 'Run'"
    ),
}
MEMBERS = {
    "answers": "(self, part: 'Part' = 'held_out', model: 'str | None' = None) -> 'Sequence[ScoredAnswer]'",
    "examples": "(self) -> 'Sequence[Example]'",
    "rows": "(self, training: 'str') -> 'Sequence[TrainingRow]'",
    "table": "(self, name: 'TableName') -> 'list[dict[str, Any]]'",
    **dict.fromkeys(
        ("dropped", "evaluation", "figures", "folder", "fused", "is_finished", "models", "recipe", "summary"),
        "property",
    ),
}
TABLES = ("figures", "differences", "answers", "rows", "dropped", "stages", "steps")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The names that the page's code defines, run block by block next to a recipe."""
    folder = tmp_path_factory.mktemp("notebook")
    write_tiny_fusion(folder, num_questions=24)
    (folder / "notebook").mkdir()
    (folder / "notebook" / "recipe.yaml").write_text(
        "extends: ../recipe.yaml\nscorer: {kind: exact-match, model: null}\nsources: {shots: null}\n"
        "preference: {dpo: null, wrpo: {train: {max_steps: 1}}}\nsft: {train: {max_steps: 1}}\n"
    )
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "notebook")
        for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
            exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def run(shown: Mapping[str, Any]) -> Run:
    """The run that the page makes."""
    found: Run = shown["run"]
    return found


def test_the_public_names_are_these() -> None:
    assert sinterlm.__all__ == ["FusionConfig", "FusionTrainer", "load_run", "plan_fusion", "run_fusion"]
    assert {name: str(inspect.signature(getattr(sinterlm, name))) for name in SIGNATURES} == SIGNATURES
    public = {name: member for name, member in vars(Run).items() if not name.startswith("_")}
    assert {
        name: str(inspect.signature(member)) if callable(member) else "property" for name, member in public.items()
    } == MEMBERS
    with pytest.raises(AttributeError, match="no attribute 'fuse'"):
        getattr(sinterlm, "fuse")  # noqa: B009  # mypy knows that there is none


def test_torch_is_loaded_when_it_is_needed() -> None:
    code = "import sys; from sinterlm import load_run, plan_fusion, run_fusion; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_shown_code_runs(shown: Mapping[str, Any], run: Run) -> None:
    assert [stage.name for stage in shown["plan"].stages][-1] == "report"
    assert run.is_finished
    assert run.recipe.seed == 1
    assert shown["fused"] == run.fused
    assert shown["model"].name_or_path == str(run.folder / "target-sft-wrpo")
    assert shown["figures"].num_rows == 2 * 5


def test_models_have_the_figures_of_their_answers(run: Run) -> None:
    assert list(run.models) == ["tiny", "old-answers", "target", "target-sft", "target-sft-wrpo"]
    fused, recorded = run.models["target-sft-wrpo"], run.models["old-answers"]
    assert fused.location == str(run.folder / "target-sft-wrpo")
    assert fused.provenance.startswith("wrpo: base dpo, alpha 0.5")
    assert (recorded.location, recorded.provenance) == (None, "recorded answers, answers.jsonl")
    with pytest.raises(InputError, match="no weights to load"):
        recorded.load()
    answers = run.answers(model="old-answers")
    assert len(answers) == 8
    assert all(answer.prompt.id == answer.response.prompt_id for answer in answers)
    assert all(answer.score.passed == (answer.response.content == answer.prompt.answers[0]) for answer in answers)
    rate = recorded.figures["exact_match"]
    assert isinstance(rate, Rate)
    assert rate.value == sum(answer.score.value for answer in answers) / 8
    assert run.summary["held_out"]["old-answers"]["exact_match"] == rate.value
    assert run.figures.models["old-answers"]["exact_match"] == rate


def test_answers_are_those_of_the_part(run: Run) -> None:
    assert {answer.response.source for answer in run.answers("sft")} == {"tiny", "old-answers"}
    of_target = run.answers("preference", "target-sft")
    assert len(of_target) == 8 * 3
    assert {answer.response.index for answer in of_target} == {0, 1, 2}
    assert len(run.answers()) == len(run.models) * 8
    assert not run.answers("development")
    before, after = run.examples()[0]
    assert (before.response.source, after.response.source) == ("target", "target-sft-wrpo")
    assert before.prompt == after.prompt


def test_every_table_is_one_of_any_library(run: Run) -> None:
    tables = {name: pa.Table.from_pylist(run.table(name)) for name in TABLES}  # type: ignore[arg-type]
    assert tables["answers"].num_rows == sum(len(run.answers(part)) for part in ("sft", "preference", "held_out"))
    assert tables["rows"].num_rows == sum(len(row.responses) for name in ("sft", "wrpo") for row in run.rows(name))
    assert tables["dropped"].num_rows == len(run.dropped) > 0
    assert set(tables["stages"].column("state").to_pylist()) == {"done"}
    assert tables["differences"].num_rows == len(run.figures.comparisons)
    assert "rewards/margins" in tables["steps"].column_names  # SFT comes before it and has none
    assert tables["steps"].column("training").to_pylist() == ["sft", "wrpo"]


def test_a_recipe_is_a_file_a_dictionary_or_what_was_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.folder / "recipe.yaml"
    content = run.recipe.model_dump(mode="json", exclude_unset=True)
    plans = [sinterlm.plan_fusion(recipe) for recipe in (path, str(path), content, run.recipe)]
    assert all(plan == plans[0] for plan in plans)
    assert all(stage.done for stage in plans[0].stages)
    changed = [sinterlm.plan_fusion(recipe, ["seed=2"]) for recipe in (path, content, run.recipe)]
    assert all(plan == changed[0] for plan in changed)
    assert not any(stage.done for stage in changed[0].stages)
    monkeypatch.chdir(path.parent)
    extended = sinterlm.plan_fusion({"extends": "recipe.yaml", "output": str(tmp_path)})
    assert extended.output == str(tmp_path)
    with pytest.raises(InputError, match=r"the recipe: target\.modl: unknown key; did you mean model"):
        sinterlm.plan_fusion({**content, "target": {"modl": "x"}})


def test_a_run_that_is_not_finished_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    started = sinterlm.run_fusion(
        run.recipe, [f"output={tmp_path / 'run'}"], until="prompts", reporter=SilentReporter()
    )
    assert not started.is_finished
    assert list(started.models) == ["tiny", "old-answers", "target"]
    assert started.fused is None
    assert not started.figures.models
    assert not started.answers()
    assert not started.examples()
    assert started.table("figures") == []
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: started.summary, "summary.json: damaged or missing"),
        (lambda: started.rows("sft"), "select-sft is not done yet"),
        (lambda: started.rows("sftt"), "unknown training 'sftt'; did you mean sft?"),
        (
            lambda: started.answers(model="tin"),
            "unknown model 'tin' among those asked about held_out; did you mean tiny",
        ),
        (lambda: started.answers("heldout"), "unknown part 'heldout'; did you mean held_out?"),  # type: ignore[arg-type]
        (lambda: started.table("rowz"), "unknown table 'rowz'; did you mean rows"),  # type: ignore[arg-type]
        (lambda: sinterlm.load_run(tmp_path), "holds no run"),
    ]
    for read, message in refused:
        with pytest.raises(InputError, match=re.escape(message)):
            read()


def test_the_same_call_resumes(run: Run) -> None:
    lines: list[str] = []

    class Listening(SilentReporter):
        def say(self, text: str) -> None:
            lines.append(text)

    again = sinterlm.run_fusion(run.recipe, reporter=Listening())
    assert again.is_finished
    assert not [line for line in lines if "..." in line]
