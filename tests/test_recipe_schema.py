"""The JSON schema of a recipe: what `sinterlm schema` prints, what the shipped recipes name, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sinterlm import cli
from sinterlm.errors import InputError
from sinterlm.formats.yaml_file import dump_yaml, read_yaml
from sinterlm.objectives.named import OBJECTIVES
from sinterlm.recipe.json_schema import recipe_schema, schema_text
from sinterlm.recipe.load import load_recipe
from tests.draft7 import find_faults

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "src" / "sinterlm" / "recipes" / "recipe.schema.json"
PARTS = ("objectives", "accelerate", "methods")
"""Folders of settings, which are not recipes."""
RECIPES = [
    path
    for folder in (SHIPPED.parent, ROOT / "examples")
    for path in sorted(folder.rglob("*.yaml"))
    if path.parent.name not in PARTS and path.name != "shots.yaml"
]
QUICKSTART = SHIPPED.parent / "quickstart" / "recipe.yaml"


SCHEMA = json.loads(SHIPPED.read_text())


def faults_of(value: Any) -> list[tuple[tuple[str | int, ...], str]]:
    return list(find_faults(value, SCHEMA, SCHEMA))


def test_the_shipped_file_is_what_the_command_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this fails, run ``make docs``."""
    cli.schema()
    assert capsys.readouterr().out == SHIPPED.read_text() == schema_text()
    cli.schema(tmp_path / "new" / "schema.json")
    assert (tmp_path / "new" / "schema.json").read_text() == SHIPPED.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_names_the_schema_and_fits_it(path: Path) -> None:
    first, _, _ = path.read_text().partition("\n")
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, first
    assert (path.parent / named[1]).resolve() == SHIPPED
    assert faults_of(read_yaml(path).value) == []


@pytest.mark.parametrize(
    ("place", "value", "keyword"),
    [
        ("sede", 1, "false"),
        ("seed", -1, "minimum"),
        ("seed", "0", "type"),
        ("output", None, "type"),
        ("target.sampling.top_p", 1.5, "maximum"),
        ("target.sampling.num_sample", 5, "false"),
        ("target.dtype", "float8", "enum"),
        ("sources.gemma-3-270m.engine", "vllm", "const"),
        ("scorer.kind", "exact", "const"),
        ("scorer.thoughts", "drop", "enum"),
        ("sft.select.kind", "wrpo", "const"),
        ("sft.train.learning_rat", 1e-5, "false"),
        ("sft.train.learning_rate", "high", "type"),
        ("sft.train.gradient_accumulation_steps", 0, "minimum"),
        ("sft.train.seed", 1, "false"),
        ("sft.train.bf16", "yes", "enum"),
        ("sft.grid", [{"train.learning_rate": []}], "minItems"),
        ("preference.wrpo.objective.kind", "wrpoo", "const"),
        ("preference.wrpo.objective.alpha", 1.1, "maximum"),
        ("preference.wrpo.objective.tau", 0.1, "false"),
        ("preference.wrpo.objective.alpha_schedule", "linear", "enum"),
        ("preference.dpo.objective.beta", 0, "exclusiveMinimum"),
        ("preference.dpo.objective.label_smoothing", 0.5, "exclusiveMaximum"),
        ("evaluation.held_out.scorer", {}, "required"),
    ],
)
def test_what_loading_refuses_the_schema_refuses_at_the_same_place(
    place: str, value: Any, keyword: str, tmp_path: Path
) -> None:
    recipe = read_yaml(QUICKSTART).value
    *above, key = place.split(".")
    mapping = recipe
    for name in above:
        mapping = mapping[name]
    mapping[key] = value
    (path, found), *_ = faults_of(recipe)
    assert (".".join(map(str, path)).startswith(place), found) == (True, keyword)
    written = tmp_path / "recipe.yaml"
    written.write_text(dump_yaml(recipe))
    with pytest.raises(InputError, match=re.escape(key)):
        load_recipe(written)


@pytest.mark.parametrize("key", ["output", "prompts", "target", "sources", "scorer"])
def test_a_whole_recipe_has_what_an_extending_one_may_leave_out(key: str) -> None:
    recipe = {name: value for name, value in read_yaml(QUICKSTART).value.items() if name != key}
    assert faults_of(recipe) == [((), "required")]
    assert faults_of({"extends": "recipe.yaml", **recipe}) == []


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"target": {"samplng": {}}}, ("target", "samplng")),
        ({"seed": "1"}, ("seed",)),
        ({"preference": {"wrpo": {"objective": {"alpha": 2}}}}, ("preference", "wrpo", "objective", "alpha")),
        ({"scorer": {"parts": {"a": {"kind": "judge", "modell": "x"}}}}, ("scorer", "parts", "a", "modell")),
    ],
)
def test_changes_are_checked_too(changes: dict[str, Any], place: tuple[str, ...]) -> None:
    assert [path for path, _ in faults_of({"extends": "recipe.yaml", **changes})] == [place]
    assert faults_of({"extends": "recipe.yaml", "sft": None, "sources": {"a": None, "b": {"engine": "recorded"}}}) == []


def test_every_objective_is_offered_with_its_hyperparameters() -> None:
    forms = recipe_schema()["$defs"]["objective"]["oneOf"]
    assert list(dict.fromkeys(form["properties"]["kind"]["const"] for form in forms)) == list(OBJECTIVES)
    (simpo,) = (form for form in forms if form["title"] == "wrpo with base simpo")
    assert simpo["properties"]["alpha"]["default"] == 0.5
    assert simpo["required"] == ["kind", "base"]
