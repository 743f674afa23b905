"""With recorded answers, rows can be made without a model: nothing of the target is looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sinterlm.errors import InputError
from sinterlm.formats import read_rows
from sinterlm.pipeline.finished import rewrite_report
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.run import run_fusion
from sinterlm.recipe.load import load_recipe
from sinterlm.store import Store
from tests.test_pipeline import Lines
from tests.tiny import save_tiny

RECIPE = """\
output: {folder}/run
prompts: {{path: prompts.jsonl, split: {{preference: rest}}}}
target: {{model: {folder}/target, samples: {{engine: recorded, path: own.jsonl, num_samples: 2}}}}
sources: {{source: {{engine: recorded, path: answers.jsonl, num_samples: 2}}}}
scorer: {{kind: exact-match}}
preference:
  wrpo: {{select: {{kind: wrpo}}, objective: {{kind: wrpo}}, train: {{max_steps: 1, max_length: 64}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Three prompts that each give a quadruple; the target's folder is missing."""
    prompts = [{"id": f"q{number}", "prompt": f"Is it {number}?", "answers": ["yes"]} for number in range(3)]
    answers = [{"prompt_id": line["id"], "response": text} for line in prompts for text in ("yes", "no")]
    for name, lines in (("prompts", prompts), ("answers", answers), ("own", answers)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def test_rows_need_no_target(recipe: Path) -> None:
    fusion = Fusion(load_recipe(recipe).recipe)
    outcome = run_fusion(fusion, Lines(), until="select-wrpo")
    assert outcome.done_now[-1] == "select-wrpo"
    assert len(read_rows(fusion.rows_path("wrpo"))) == 3
    assert not run_fusion(fusion, Lines(), until="select-wrpo").done_now


def test_a_training_needs_it_and_redoes_no_rows(recipe: Path, tmp_path: Path) -> None:
    fusion = Fusion(load_recipe(recipe).recipe)
    run_fusion(fusion, Lines(), until="select-wrpo")
    with pytest.raises(InputError, match="target"):
        run_fusion(fusion, Lines())
    save_tiny(tmp_path / "target")
    assert run_fusion(fusion, Lines(), until="train-wrpo").done_now == ["train-wrpo"]


def test_a_source_that_is_the_target_is_looked_for(recipe: Path, tmp_path: Path) -> None:
    own = f"sources.source={{engine: transformers, model: {tmp_path / 'target'}}}"
    with pytest.raises(InputError, match="target"):
        run_fusion(Fusion(load_recipe(recipe, [own]).recipe), Lines(), until="select-wrpo")


def test_a_release_with_other_rules_scores_again_and_asks_for_no_answer_again(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that a report is refused, because it would show neither scores nor answers."""
    fusion = Fusion(load_recipe(recipe).recipe)
    run_fusion(fusion, Lines(), until="select-wrpo")
    rewrite_report(fusion.output)
    report = (fusion.output / "report.html").read_bytes()
    monkeypatch.setattr("sinterlm.scoring.exact_match.NORMALISATION", 99)
    with pytest.raises(InputError, match=r"score-sources has scored 6 answers, but by other rules.*sinterlm run"):
        rewrite_report(fusion.output)
    assert (fusion.output / "report.html").read_bytes() == report
    outcome = run_fusion(fusion, Lines(), until="select-wrpo")
    assert outcome.done_now == ["score-sources", "score-target", "select-wrpo"]
    with Store(fusion.store_path, read_only=True) as store:
        assert store.finished_stages(".")["score-sources"].counts["scored now"] == 6
    rewrite_report(fusion.output)
