"""Recipes that say only how they differ from another: ``extends``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinterlm.errors import InputError
from sinterlm.formats.document import Document
from sinterlm.recipe.extension import extend
from sinterlm.recipe.load import load_recipe, resolve_text
from sinterlm.recipe.schema import Recipe
from sinterlm.sampling.recorded import RecordedSource
from sinterlm.sampling.settings import LocalModel

BASE = """\
output: base-out
seed: 7
prompts: {path: questions.jsonl, split: {held_out: 1, sft: 0.5}}
target: {model: org/small}
sources:
  large: {engine: transformers, model: org/large, sampling: {num_samples: 3}}
  older: {engine: recorded, path: answers.jsonl}
scorer: {kind: exact-match}
preference:
  wrpo:
    select: {kind: wrpo}
    objective: {kind: wrpo, beta: 0.1, alpha: 0.3}
    train: {learning_rate: 1e-6, warmup_steps: 0.1}
    grid: [{train.learning_rate: [1e-6, 2e-6]}, {objective.alpha: [0.1, 0.3]}]
evaluation: {held_out: {scorer: {kind: exact-match}}}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return write(tmp_path / "base" / "base.yaml", BASE.replace("held_out: 1", "held_out: 1, development: 2"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def extending(base: Path, changes: str) -> Path:
    """A recipe in another folder that extends ``base``."""
    return write(base.parents[1] / "variant.yaml", f"extends: base/base.yaml\n{changes}")


def load(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, overrides).recipe


def test_what_is_not_changed_holds_and_mappings_are_merged(base: Path) -> None:
    variant = load(extending(base, "output: mine\npreference: {wrpo: {objective: {alpha: 0.5}}}\n"))
    original = load(base)
    wrpo = variant.preference["wrpo"]
    assert variant.output.name == "mine"
    assert (wrpo.objective.alpha, wrpo.objective.beta) == (0.5, 0.1)
    assert wrpo.train == {"learning_rate": 1e-6, "warmup_steps": 0.1}
    objective = wrpo.objective.model_copy(update={"alpha": 0.3})
    same = variant.model_copy(
        update={"output": original.output, "preference": {"wrpo": wrpo.model_copy(update={"objective": objective})}}
    )
    assert same == original


def test_null_takes_a_key_away(base: Path) -> None:
    variant = load(extending(base, "sources: {older: null}\npreference: {wrpo: {train: {warmup_steps: null}}}\n"))
    assert list(variant.sources) == ["large"]
    assert variant.preference["wrpo"].train == {"learning_rate": 1e-6}


def test_a_list_takes_the_place_of_a_list(base: Path) -> None:
    variant = load(extending(base, "preference: {wrpo: {grid: [{objective.alpha: [0.9]}]}}\n"))
    assert variant.preference["wrpo"].grid == [{"objective.alpha": [0.9]}]


def test_a_path_is_relative_to_the_file_that_names_it(base: Path) -> None:
    changes = "sources: {newer: {engine: recorded, path: new.jsonl}}\n"
    variant = load(extending(base, changes))
    older, newer = variant.sources["older"], variant.sources["newer"]
    assert isinstance(older, RecordedSource)
    assert isinstance(newer, RecordedSource)
    assert variant.prompts.path == base.parent / "questions.jsonl"
    assert (older.path, newer.path) == (base.parent / "answers.jsonl", base.parents[1] / "new.jsonl")


def test_a_chain_of_extensions(base: Path) -> None:
    extending(base, "seed: 8\nsources: {large: {sampling: {num_samples: 4}}}\n")
    last = write(base.parents[1] / "last.yaml", "extends: variant.yaml\nsources: {large: {sampling: {top_p: 0.9}}}\n")
    large = load(last).sources["large"]
    assert isinstance(large, LocalModel)
    assert (load(last).seed, large.sampling.num_samples, large.sampling.top_p) == (8, 4, 0.9)


def test_overrides_hold_over_both(base: Path) -> None:
    path = extending(base, "seed: 8\npreference: {wrpo: {objective: {alpha: 0.5}}}\n")
    variant = load(path, "seed=9", "preference.wrpo.objective.beta=0.2", "preference.wrpo.grid=[]")
    objective = variant.preference["wrpo"].objective
    assert (variant.seed, objective.alpha, objective.beta) == (9, 0.5, 0.2)


def test_the_resolved_recipe_is_whole(base: Path, tmp_path: Path) -> None:
    variant = load(extending(base, "seed: 8\n"))
    (tmp_path / "elsewhere").mkdir()
    resolved = write(tmp_path / "elsewhere" / "recipe.yaml", resolve_text(variant))
    assert "extends" not in resolved.read_text()
    assert resolve_text(load(resolved)) == resolve_text(variant)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("seed: no\n", "variant.yaml:2: seed: found 'no' (text), expected a whole number"),
        ("\npreference: {wrpo: {objective: {alpha: 3}}}\n", "variant.yaml:3: preference.wrpo.objective.alpha: found 3"),
        ("scorer: null\n", "variant.yaml:2: scorer: missing"),
        ("sources:\n  large: {model: null}\n", "variant.yaml:3: sources.large.model: missing"),
        # The base is at fault if it has what the changes do not fit.
        ("evaluation: null\n", "variant.yaml): preference.wrpo.grid: cells are compared by the scorer"),
        ("sources: {older: {engine: transformers, model: org/old}}\n", "base.yaml:7 (extended by "),
        ("scorers: {kind: exact-match}\n", "variant.yaml:2: scorers: unknown key"),
        # A null that finds nothing would leave the source in unseen.
        ("sources:\n  lrge: null\n", "variant.yaml:3: sources.lrge: "),
        ("sources: {lrge: null}\n", "base.yaml has no such key to remove: unknown key; did you mean large?"),
        ("preference: {wrpo: {objective: {beta: null, tau: null}}}\n", "preference.wrpo.objective.tau: "),
        ("workspace: null\n", "variant.yaml:2: workspace: "),
    ],
)
def test_errors_name_the_file_and_the_line_that_say_it(base: Path, changes: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load(extending(base, changes))
    assert message in str(error.value)


def test_what_is_wrong_with_the_base_is_said_of_the_base(base: Path) -> None:
    base.write_text(BASE.replace("alpha: 0.3}", "alpha: 7}"))
    with pytest.raises(InputError, match=r"base/base\.yaml:12: preference\.wrpo\.objective\.alpha: found 7"):
        load(extending(base, "preference: {wrpo: {objective: {alpha: 0.5}}}\n"))


def test_extending_nothing_itself_or_in_a_circle(base: Path, tmp_path: Path) -> None:
    lost = write(tmp_path / "lost.yaml", "seed: 1\nextends: gone.yaml\n")
    with pytest.raises(InputError, match=r"lost\.yaml:2: extends: no such file: .*gone\.yaml"):
        load(lost)
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(InputError, match=r"b\.yaml:1: extends: a\.yaml extends this recipe in turn"):
        load(tmp_path / "a.yaml")
    with pytest.raises(InputError, match=r"number\.yaml:1: extends: found 3, expected the path of a recipe"):
        load(write(tmp_path / "number.yaml", "extends: 3\n"))


VALUES = st.recursive(
    st.integers(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


def merged(base: Any, changes: Any) -> Any:
    return extend(Document("base", base, {}), Document("changes", changes, {})).value


@given(MAPPINGS, MAPPINGS)
def test_changes_hold_and_the_rest_stays(base: dict[str, Any], changes: dict[str, Any]) -> None:
    both = merged(base, changes)
    assert merged(both, changes) == both
    assert merged(base, {}) == base
    assert both.keys() == base.keys() | changes.keys()
    assert all(both[key] == base[key] for key in base.keys() - changes.keys())
    assert all(both[key] == value for key, value in changes.items() if not isinstance(value, dict))
    assert merged(base, dict.fromkeys(base)) == {}
