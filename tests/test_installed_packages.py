"""Policies and objectives of installed packages: in `sinterlm list`, in recipes, in plans and in trainings."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from sinterlm.components import union_of, with_installed
from sinterlm.errors import InputError
from sinterlm.formats import write_rows
from sinterlm.objectives import OBJECTIVES, Objective
from sinterlm.records import Message, RowResponse, TrainingRow
from sinterlm.selection.on_policy import OnPolicy
from sinterlm.selection.settings import SelectionPolicy
from sinterlm.training.check import check_arguments
from tests.packages import install, worked_example
from tests.tiny import save_tiny

RECIPE = """
output: out
prompts: {path: questions.jsonl, split: {held_out: 1, development: 1}}
target: {model: MODEL}
sources: {old: {engine: recorded, path: old.jsonl}}
scorer: {kind: exact-match}
evaluation: {held_out: {scorer: {kind: exact-match}}}
preference:
  mine:
    select: {kind: off-policy, ties: first}
    objective: {kind: hinge, width: 2}
    grid: [{objective.width: [1.0, 3.0]}]
"""
WITHOUT_TORCH = """
import json, sys
from dataclasses import replace
from pathlib import Path
from sinterlm.errors import InputError
from sinterlm.pipeline.fusion import Fusion
from sinterlm.recipe.catalogue import catalogue
from sinterlm.recipe.json_schema import schema_text
from sinterlm.recipe.load import load_recipe, resolve_text
import yaml

recipe = load_recipe(Path("recipe.yaml")).recipe
training = yaml.safe_load(resolve_text(recipe))["preference"]["mine"]
refused = {}
for change in sys.argv[1:]:
    try:
        load_recipe(Path("recipe.yaml"), change.split("; "))
    except InputError as error:
        refused[change] = str(error)
fusion = Fusion(recipe)
found = {
    "listed": {what: catalogue(what)[-1] for what in ("policies", "objectives")},
    "training": training,
    "refused": refused,
    "compared": fusion.compared("mine"),
    "in_schema": "width" in schema_text(),
    "torch": "torch" in sys.modules,
}
"""
TRAINED = """
from sinterlm import FusionConfig, cli

config = FusionConfig(output_dir="config", objective="hinge", width=4.0, use_cpu=True)
found["config"] = [config.resolved_objective.values, config.width]
options = ["--objective", "hinge", "--model", "model", "--data", "rows.parquet", "--output", "trained"]
cli.app(["train", *options, "width=4", "max_steps=1", "use_cpu=true"], standalone_mode=False)
print(json.dumps(found))
"""
REFUSED = {
    "preference.mine.objective={kind: hinge, widht: 2}": "unknown key; did you mean width?",
    "preference.mine.objective={kind: dpo, width: 2}; preference.mine.grid=[]": "unknown hyper-parameter of 'dpo'",
    "preference.mine.objective.width=0": "found 0.0, expected a number, above 0",
    "preference.mine.select.kind=off-polcy": "did you mean off-policy?",
    "preference.mine.select.sources=[new]": "unknown source 'new' (known: old)",
    "preference.mine.objective={kind: wrpo}; preference.mine.grid=[]": "rows of 'off-policy' hold chosen, rejected",
}


UNFINISHED = "from sinterlm.selection.settings import SelectionPolicy\nclass Policy(SelectionPolicy): kind: str"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The output of a process that has the worked examples of docs/extending.md installed, unchanged."""
    folder = tmp_path_factory.mktemp("installed")
    modules = {
        "off_policy": worked_example("src/sinterlm/selection/off_policy.py"),
        "hinge": worked_example("src/sinterlm/objectives/hinge.py"),
    }
    points = {
        "sinterlm.policies": {"off-policy": "my_package.off_policy:OffPolicy"},
        "sinterlm.objectives": {"hinge": "my_package.hinge:HINGE"},
    }
    install(folder / "site", "my_package", modules, points)
    model = save_tiny(folder / "saved").rename(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(model)))
    question = Message("user", "What is hot?")
    pair = (RowResponse("fire", "chosen"), RowResponse("ice", "rejected"))
    write_rows(folder / "rows.parquet", [TrainingRow("p", (question,), pair)])
    program = f"import sys; sys.path.insert(0, {str(folder / 'site')!r})\n{WITHOUT_TORCH}{TRAINED}"
    outcome = subprocess.run(
        [sys.executable, "-c", program, *REFUSED], cwd=folder, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    answer = json.loads(outcome.stdout.splitlines()[-1])
    answer["metrics"] = json.loads((folder / "trained" / "metrics.jsonl").read_text().splitlines()[0])
    return answer


def test_they_are_listed_with_their_package(found: Any) -> None:
    policy, objective = found["listed"]["policies"], found["listed"]["objectives"]
    assert (policy["name"], policy["reads"], policy["package"]) == ("off-policy", ["sources"], "my-package")
    assert (objective["name"], objective["link"], objective["package"]) == ("hinge", "hinge", "my-package")
    assert objective["hyperparameters"]["width"]["accepts"] == "a number, above 0"


def test_a_recipe_names_them_and_writes_their_defaults_out(found: Any) -> None:
    training = found["training"]
    assert training["select"] == {"kind": "off-policy", "ties": "first", "truncated": "drop"}
    assert training["objective"] == {"kind": "hinge", "beta": 0.01, "width": 2.0}
    assert training["grid"] == [{"objective.width": [1.0, 3.0]}]
    assert found["compared"] is None, "its rows hold the sources' answers alone"
    assert found["in_schema"]
    assert not found["torch"]


@pytest.mark.parametrize("change", REFUSED)
def test_their_keys_are_checked(change: str, found: Any) -> None:
    assert REFUSED[change] in found["refused"][change]


def test_they_train(found: Any) -> None:
    """Policy and reference are equal at the first step: the margin is 0, and the loss is the width."""
    assert found["config"] == [{"beta": 0.01, "width": 4.0}, 4.0]
    assert found["metrics"]["loss"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("text", "point", "problem"),
    [
        ("raise SystemExit", "broken:Policy", "cannot be imported (SystemExit"),
        (UNFINISHED, "broken:Policy", "which lacks select, description, roles; fix"),
        ("raise RuntimeError('no licence')", "broken:Policy", "cannot be imported (RuntimeError: no licence)"),
        ("Policy = dict", "broken:Policy", "which is not of type SelectionPolicy"),
        ("", "broken:Policy", "cannot be imported (AttributeError"),
    ],
)
def test_a_broken_package_is_named(
    text: str, point: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "broken_one", {"broken": text}, {"sinterlm.policies": {"mine": f"broken_one.{point}"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as refused:
        with_installed("sinterlm.policies", {}, SelectionPolicy)
    assert "the installed package broken-one offers 'mine'" in str(refused.value)
    assert problem in str(refused.value)
    sys.modules.pop("broken_one.broken", None)
    sys.modules.pop("broken_one", None)


def test_an_objective_is_a_row_and_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "broken_three", {}, {"sinterlm.objectives": {"mine": "sinterlm.objectives:Objective"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"broken-three offers 'mine' .* which is not of type Objective"):
        with_installed("sinterlm.objectives", {}, Objective)


def test_a_class_that_calls_itself_otherwise_is_named() -> None:
    with pytest.raises(InputError, match=r"OnPolicy is offered as 'mine', but its 'kind' is declared as 'on-policy'"):
        union_of({"mine": OnPolicy}, "kind")


@pytest.mark.parametrize(
    ("hyperparameters", "problem"),
    [
        ('{"kind": Hyperparameter(1.0, "", "", "link")}', "a hyper-parameter is called 'kind'"),
        ('{"width": Hyperparameter(0.0, "", "", "link", above=0)}', "the default of width is 0.0; expected a number"),
    ],
)
def test_an_objective_whose_hyperparameters_cannot_be_keys(
    hyperparameters: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = f'description="", formula="", paper="", learning_rate=1.0, roles=(), hyperparameters={hyperparameters}'
    text = f"from sinterlm.objectives import Hyperparameter, Objective\nROW = Objective({row})\n"
    install(tmp_path, "broken_two", {"row": text}, {"sinterlm.objectives": {"mine": "broken_two.row:ROW"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=problem):
        with_installed("sinterlm.objectives", {}, Objective)
    sys.modules.pop("broken_two", None)


def test_a_path_that_leads_to_no_function_is_found_before_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(OBJECTIVES["dpo"], link="sinterlm.objectives.links:hing")
    monkeypatch.setitem(cast(dict[str, Objective], OBJECTIVES), "mine", row)
    with pytest.raises(InputError, match=r"the link of objective 'mine' is sinterlm\.objectives\.links:hing, which is"):
        check_arguments("mine", {}, {})
