"""Frozen: the output of `sinterlm list` for policies and objectives, their form in a resolved recipe, and stage keys.

A change here makes finished stages run again, or changes what others read. Make it on purpose, then rewrite the file
with ``python -m tests.test_resolved_components``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.stages.train import responses_in_row
from sinterlm.recipe.catalogue import catalogue
from sinterlm.recipe.load import load_recipe, resolve_text
from sinterlm.records import digest

FROZEN = Path(__file__).parent / "cases" / "resolved_components.json"
RECIPE = """
output: runs/frozen
prompts: {path: questions.jsonl, split: {held_out: 2, sft: 0.5}}
target: {model: HuggingFaceTB/SmolLM2-135M-Instruct}
sources:
  a: {engine: transformers, model: HuggingFaceTB/SmolLM2-360M-Instruct, sampling: {num_samples: 3}}
  b: {engine: recorded, path: b.jsonl, num_samples: 2}
scorer: {kind: exact-match}
"""
TRAININGS = {
    "best-of-sources": {"select": {"kind": "best-of-sources"}},
    "named": {"select": {"kind": "best-of-sources", "sources": ["b"], "num_samples": 1, "ties": "first"}},
    "fusesft": {"select": {"kind": "fusesft", "temperature": 0.1}, "objective": {"kind": "fusesft"}},
    "each-source": {
        "select": {"kind": "fusesft", "temperature": 0.1, "keep": "each-source", "sources": ["a"]},
        "objective": {"kind": "fusesft", "average_logps": True},
    },
    "wrpo": {"select": {"kind": "wrpo"}, "objective": {"kind": "wrpo"}},
    "wrpo-simpo": {
        "select": {"kind": "wrpo", "rejected_source": True, "min_margin": 0.5},
        "objective": {"kind": "wrpo", "base": "simpo", "alpha": 0.3, "rejected_mix": True},
    },
    "wrpo-ipo": {"select": {"kind": "wrpo"}, "objective": {"kind": "wrpo", "base": "ipo"}},
    "fusepo": {"select": {"kind": "fusepo", "temperature": 0.1}, "objective": {"kind": "fusepo", "base": "ln-dpo"}},
    "fusepo-rloo": {"select": {"kind": "fusepo-rloo", "temperature": 0.1}, "objective": {"kind": "fusepo-rloo"}},
    "fusechat3": {"select": {"kind": "fusechat3", "windows": {"code": "none"}}, "objective": {"kind": "ln-dpo"}},
    "on-policy": {"select": {"kind": "on-policy"}, "objective": {"kind": "dpo", "beta": 0.2}},
    "ipo": {"select": {"kind": "on-policy", "min_margin": 0.1}, "objective": {"kind": "ipo"}},
    "simpo": {"select": {"kind": "on-policy"}, "objective": {"kind": "simpo"}},
    "rloo": {"select": {"kind": "rloo"}, "objective": {"kind": "rloo", "kl": 0.1}},
}
"""All policies and objectives, with and without their own keys."""
FINE_TUNINGS = ("best-of-sources", "named", "fusesft", "each-source")


def resolved(name: str, folder: Path) -> dict[str, Any]:
    """The resolved recipe's text for one training, the content of its stages' keys, and the counts of its plan."""
    place = ("sft",) if name in FINE_TUNINGS else ("preference", name)
    recipe = yaml.safe_load(RECIPE)
    recipe |= {"sft": TRAININGS[name]} if len(place) == 1 else {"preference": {name: TRAININGS[name]}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(path).recipe
    text = yaml.safe_load(resolve_text(loaded))
    for key in place:
        text = text[key]
    training = Fusion(loaded).trainings[place[-1]]
    parts = {part: text[part] for part in ("select", "objective")}
    return {
        "text": json.dumps(parts, ensure_ascii=False),  # the order of the keys too
        "select": digest(training.select.model_dump()),
        "objective": digest([training.objective.kind, training.objective.resolve().values]),
        "responses": responses_in_row(Fusion(loaded), training),
    }


@pytest.fixture(scope="module")
def frozen() -> Mapping[str, Any]:
    return json.loads(FROZEN.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", TRAININGS)
def test_recipes_resolve_to_the_same_text_and_keys(name: str, frozen: Mapping[str, Any], tmp_path: Path) -> None:
    assert resolved(name, tmp_path) == frozen["trainings"][name]


@pytest.mark.parametrize("what", ["objectives", "policies"])
def test_the_list_says_the_same(what: str, frozen: Mapping[str, Any]) -> None:
    assert json.dumps(catalogue(what)) == json.dumps(frozen[what])


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        trainings = {name: resolved(name, Path(folder)) for name in TRAININGS}
    lists = {what: catalogue(what) for what in ("objectives", "policies")}
    FROZEN.write_text(json.dumps({"trainings": trainings, **lists}, indent=1, ensure_ascii=False) + "\n")
