"""Recipes: what is read, what is refused, and with which message."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from sinterlm.chat import FewShot
from sinterlm.errors import InputError
from sinterlm.formats.yaml_file import dump_yaml, parse_value, read_yaml
from sinterlm.objectives.named import OBJECTIVES
from sinterlm.recipe import train_arguments
from sinterlm.recipe.load import load_recipe, read_train_settings, resolve_text
from sinterlm.recipe.overrides import Override
from sinterlm.recipe.quickstart import quickstart_recipe
from sinterlm.recipe.schema import ObjectiveSettings, Recipe, Training
from sinterlm.recipe.train_arguments import OWNED, find_problems
from sinterlm.records import Scored
from sinterlm.sampling.few_shot import load_few_shot
from sinterlm.sampling.recorded import RecordedSource
from sinterlm.sampling.settings import LocalModel
from sinterlm.training.members import find_members
from tests.answers import Case, candidates

RECIPE = """\
workspace: runs/mine
output: runs/mine/wrpo
seed: 3
prompts:
  path: questions.jsonl
  split: {held_out: 150, sft: 0.33, development: 0, preference: rest}
target: {model: example/target, prompt: {system: Answer with one word.}, sampling: {max_new_tokens: 64}}
sources:
  gemma-2.5:
    engine: transformers
    model: gguf:package/FILE.gguf
    prompt: {few_shot: shots.yaml}
    sampling: {num_samples: 3, temperature: 1, top_p: 0.9}
  old-answers: {engine: recorded, path: /data/answers.jsonl}
scorer: {kind: exact-match}
sft:
  select: {kind: best-of-sources}
  train: {learning_rate: 7e-6, num_train_epochs: 3, lr_scheduler_type: cosine}
preference:
  wrpo:
    select: {kind: wrpo, target_ties: drop}
    objective: {kind: wrpo, beta: 1e-2, alpha: 0.1}
    train: {learning_rate: 3e-7, max_length: 2048, bf16: true, report_to: [none]}
  dpo:
    select: {kind: on-policy}
    objective: {kind: dpo}
evaluation:
  held_out:
    scorer: {kind: exact-match}
"""


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    return write(tmp_path, RECIPE)


def write(folder: Path, text: str | bytes, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, overrides).recipe


def refusal(path: Path, *overrides: str) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(InputError) as error:
        load_recipe(path, overrides)
    return str(error.value).replace(f"{path.parent}/", "").splitlines()


def complaint_of(function: Callable[..., object], *arguments: object) -> str | None:
    try:
        function(*arguments)
    except InputError as error:
        return str(error)
    return None


def test_every_part_is_read(recipe_path: Path) -> None:
    recipe = load(recipe_path)
    assert (recipe.seed, recipe.output, recipe.workspace) == (
        3,
        Path.cwd() / "runs/mine/wrpo",
        Path.cwd() / "runs/mine",
    )
    assert recipe.prompts.path == recipe_path.parent / "questions.jsonl"
    split = {"held_out": 150, "sft": 0.33, "sft_domains": {}, "development": 0, "preference": "rest"}
    assert recipe.prompts.split.model_dump() == split
    gemma, recorded = recipe.sources.values()
    assert isinstance(gemma, LocalModel)
    assert isinstance(recorded, RecordedSource)
    assert gemma.model == "gguf:package/FILE.gguf"
    assert gemma.prompt.few_shot == recipe_path.parent / "shots.yaml"
    assert (gemma.sampling.num_samples, gemma.sampling.temperature, gemma.sampling.max_new_tokens) == (3, 1.0, 512)
    assert recorded.path == Path("/data/answers.jsonl")
    assert recipe.sft is not None
    assert recipe.sft.train == {"learning_rate": 7e-6, "num_train_epochs": 3, "lr_scheduler_type": "cosine"}
    assert recipe.preference["wrpo"].objective.beta == 0.01
    assert recipe.preference["wrpo"].select.model_dump()["target_ties"] == "drop"
    assert recipe.preference["dpo"].train == {}
    assert load_recipe(recipe_path).path == recipe_path


def test_paths_are_relative_to_the_recipe(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs; output paths are relative to that folder."""
    monkeypatch.chdir(recipe_path.parent)
    recipe = load(Path("recipe.yaml"), "output=elsewhere", "prompts.path=other.jsonl")
    assert recipe.prompts.path == recipe_path.parent / "other.jsonl"
    assert recipe.output == recipe_path.parent / "elsewhere"
    assert load(Path("recipe.yaml"), "prompts.path=~/x").prompts.path == Path.home() / "x"
    assert load(Path("recipe.yaml"), "output=~/x").output == Path.home() / "x"
    assert load(Path("recipe.yaml"), "output=~nobody-of-this-name/x").output.parent.parent == recipe_path.parent


def test_resolved_text_round_trips(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text contains every default, and reads back the same in and from any folder."""
    recipe = load(recipe_path)
    text = resolve_text(recipe)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    again = load(write(tmp_path / "other", text))
    assert resolve_text(again) == text
    assert again.preference["wrpo"].objective.given == {
        "base": "dpo",
        "beta": 0.01,
        "alpha": 0.1,
        "alpha_schedule": "ramp",
        "label_smoothing": 0.0,
        "rejected_mix": False,
    }
    assert again.model_copy(update={"preference": recipe.preference}) == recipe
    assert "temperature: 0.8" in text


def test_a_model_that_is_a_folder_is_found_from_anywhere(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere a recipe names a model; a hub name stays unchanged."""
    (recipe_path.parent / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(recipe_path.parent)
    scorer = "{kind: reward-model, model: models/mine}"
    recipe = load(
        recipe_path,
        "target.model=models/mine",
        "sources.old-answers={engine: transformers, model: models/mine}",
        f"scorer={scorer}",
        f"evaluation.held_out.scorer={scorer}",
    )
    monkeypatch.chdir("/")
    again = load(write(recipe_path.parent, resolve_text(recipe), "resolved.yaml"))
    assert again.evaluation.held_out is not None
    gemma, other = again.sources.values()
    named = [again.target, other, again.scorer, again.evaluation.held_out.scorer]
    assert [model.model_dump()["model"] for model in named] == [str(recipe_path.parent / "models" / "mine")] * 4
    assert gemma.model_dump()["model"] == "gguf:package/FILE.gguf"
    assert load(recipe_path).target.model == "example/target"
    assert load(recipe_path, f"target.model={'x' * 10_000}").target.model == "x" * 10_000


# Overrides.


def test_overrides(recipe_path: Path) -> None:
    recipe = load(
        recipe_path,
        "preference.wrpo.train.learning_rate=1e-5",
        "sources.gemma-2.5.sampling.top_p=0.5",
        "target.prompt.system=Note: be brief",
        "evaluation.held_out.max_new_tokens=8",
        "preference.plain={select: {kind: on-policy}, objective: {kind: dpo, beta: 5E-1}}",
        "preference.plain.train.weight_decay=1",
        "sft=null",
        "seed=1",
        "seed=2",
    )
    assert recipe.preference["wrpo"].train["learning_rate"] == 1e-5
    assert recipe.preference["wrpo"].train["max_length"] == 2048
    assert recipe.sources["gemma-2.5"].model_dump()["sampling"]["top_p"] == 0.5
    assert recipe.target.prompt.system == "Note: be brief"
    assert recipe.evaluation.held_out is not None
    assert recipe.evaluation.held_out.max_new_tokens == 8
    assert recipe.preference["plain"].objective.beta == 0.5
    assert recipe.preference["plain"].train == {"weight_decay": 1}
    assert recipe.sft is None
    assert recipe.seed == 2


@pytest.mark.parametrize("value", ["2026", "a #1", "null", "[x", "1e3", "key: value", " x ", "~"])
def test_an_overrides_value_may_be_given_as_it_is(recipe_path: Path, value: str) -> None:
    """Text that YAML would read as something else, with the order and places of other overrides."""
    overrides: list[str | Override] = ["target.prompt.system=other", Override("target.prompt.system", value)]
    assert load_recipe(recipe_path, overrides).recipe.target.prompt.system == value
    assert load_recipe(recipe_path, overrides[::-1]).recipe.target.prompt.system == "other"
    with pytest.raises(InputError, match=r"^command line: seed: found '.*' \(text\), expected a whole number$"):
        load_recipe(recipe_path, [Override("seed", value)])


@pytest.mark.parametrize("name", ["2026", "a #1", "null"])
def test_an_output_folder_may_have_any_name(recipe_path: Path, name: str) -> None:
    assert load_recipe(recipe_path, [Override("output", name)]).recipe.output == Path.cwd() / name


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sed=1", "command line: sed: unknown key; did you mean seed?"),
        ("seed=x", "command line: seed: found 'x' (text), expected a whole number"),
        ("seed=-1", "command line: seed: found -1, expected at least 0"),
        ("seed=4294967296", "command line: seed: found 4294967296, expected at most 4294967295"),
        ("seed", "command line: seed: expected KEY=VALUE, for example seed=1"),
        ("=1", "command line: =1: expected KEY=VALUE, for example seed=1"),
        ("seed.x=1", "command line: seed.x: leads into 3, which has no keys"),
        ("seed=[1", "command line: seed:1: not valid YAML: "),
        ("output=", "command line: output: found nothing, expected a path"),
        (
            "sft.train.lerning_rate=1",
            "command line: sft.train.lerning_rate: unknown training argument; did you mean le",
        ),
        ("sft.train.hub_token=hf_secret", "command line: sft.train.hub_token: not for recipes to set: secrets do not"),
        ("preference.new.objective.kind=dpo", "command line: preference.new.select: missing, expected a mapping"),
        ("sft.select={}", "command line: sft.select.kind: missing, expected one of best-of-sources, fusesft"),
        (
            "sft.select={kind: fusesft}",
            "command line: sft.select.temperature: missing, expected a number",
        ),
        (
            "sft.select={kind: fusesft, temperature: 0.01}",
            "command line: sft.select.kind: rows of 'fusesft' have weights, but the objective 'sft' reads rows "
            "without weights; policies that give them: best-of-sources",
        ),
        (
            "sft.objective={kind: rloo}",
            "recipe.yaml:17: sft.select.kind: rows of 'best-of-sources' hold good answers only, but the objective "
            "'rloo' compares good ones with bad ones; policies that give them: none",
        ),
        (
            "preference.wrpo.objective.rejected_mix=true",
            "recipe.yaml:21: preference.wrpo.select.kind: rows of 'wrpo' hold chosen_source, chosen_target, rejected, "
            "but the objective 'wrpo' needs chosen_source, chosen_target, rejected, rejected_source; "
            "policies that give them: wrpo with rejected_source: true",
        ),
        (
            "preference.wrpo.select.sources=[gemma-2.5, old-answer]",
            "command line: preference.wrpo.select.sources[1]: unknown source 'old-answer'; did you mean old-answers?",
        ),
        (
            "preference.wrpo.select.sources=[]",
            "command line: preference.wrpo.select.sources: found a list, expected at",
        ),
        ("preference.wrpo.select.rank=0", "command line: preference.wrpo.select.rank: found 0, expected at least 1"),
        (
            "preference.pairs={select: {kind: fusechat3, window: [0.1, 0.01]}, objective: {kind: dpo}}",
            "command line: preference.pairs.select.window: found a list, expected [LOW, HIGH], the lowest and the",
        ),
        (
            "preference.pairs={select: {kind: fusechat3, windows: {code: all}}, objective: {kind: dpo}}",
            "command line: preference.pairs.select.windows.code: found 'all' (text), expected [LOW, HIGH], the lowest",
        ),
        (
            "preference.all={select: {kind: fusepo, temperature: 1.0}, objective: {kind: dpo}}",
            "command line: preference.all.select.kind: rows of 'fusepo' have weights, but the objective 'dpo' reads",
        ),
        (
            "preference.all={select: {kind: fusepo-rloo, temperature: 1.0}, objective: {kind: fusepo}}",
            "command line: preference.all.select.kind: rows of 'fusepo-rloo' hold responses without a role, but the "
            "objective 'fusepo' needs chosen, rejected; policies that give them: fusepo",
        ),
        (
            "preference.pairs={select: {kind: fusechat3}, objective: {kind: dpo}, target_samples: target}",
            "command line: preference.pairs.target_samples: rows of 'fusechat3' hold no answer of the target; remove",
        ),
        ("sources={}", "command line: sources: found a mapping, expected at least 1 of them"),
        (
            "target.prompt.few_shot=shots.yaml",
            "command line: target.prompt.few_shot: the target is trained with its chat template and so must be asked",
        ),
        (
            "sources.gemma-2.5.prompt.system=Be brief.",
            "command line: sources.gemma-2.5.prompt.system: a few-shot prompt has no place for a system prompt",
        ),
        ("prompts.split.held_out=0", "command line: prompts.split.held_out: found 0, but the recipe uses this part"),
        (
            "prompts.split.sft_domains={code: all}",
            "command line: prompts.split.sft_domains.code: found 'all' (text), ex",
        ),
        (f"seed={'x' * 10_000}", f"command line: seed: found '{'x' * 60}'... (text), expected a whole number"),
    ],
)
def test_overrides_refused(recipe_path: Path, override: str, line: str) -> None:
    found = refusal(recipe_path, override)
    assert len(found) == 1
    assert found[0].startswith(line)
    assert "secret" not in found[0].replace("secrets", "")


def test_sft_may_come_from_named_domains_alone(recipe_path: Path) -> None:
    split = load(
        recipe_path, "prompts.split.sft=0", "prompts.split.sft_domains={code: 0.752, chinese: 1.0}"
    ).prompts.split
    assert (split.sft, split.sft_domains) == (0, {"code": 0.752, "chinese": 1.0})


def test_every_policy_from_a_recipe(recipe_path: Path) -> None:
    """Each with all its keys, and the same again after the recipe is written and read."""
    of_sources = "sources: [gemma-2.5], num_samples: 2, truncated: keep"
    selects = {
        "wrpo": f"{{kind: wrpo, rank: 2, rejected_source: true, target_ties: drop, min_margin: 0.5, "
        f"ties: first, {of_sources}}}",
        "fusepo": f"{{kind: fusepo, temperature: 0.01, min_margin: 0, ties: first, {of_sources}}}",
        "fusepo-rloo": f"{{kind: fusepo-rloo, temperature: 1e-2, {of_sources}}}",
        "fusechat3": f"{{kind: fusechat3, window: [1, 9], windows: {{code: none, chat: [0, 0.5]}}, {of_sources}}}",
        "on-policy": "{kind: on-policy, min_margin: 0.5, ties: first, truncated: keep}",
        "rloo": "{kind: rloo, truncated: keep}",
    }
    objectives = {"wrpo": "{kind: wrpo, rejected_mix: true}", "fusechat3": "{kind: ln-dpo}", "on-policy": "{kind: dpo}"}
    methods = ", ".join(
        f"{name}: {{select: {select}, objective: {objectives.get(name, f'{{kind: {name}}}')}, "
        f"{'target_samples: target' if name in ('wrpo', 'on-policy', 'rloo') else ''}}}"
        for name, select in selects.items()
    )
    recipe = load(
        recipe_path,
        f"preference={{{methods}}}",
        f"sft.select={{kind: fusesft, temperature: 0.01, keep: each-source, num_responses: 2, {of_sources}}}",
        "sft.objective={kind: fusesft, average_logps: true}",
    )
    assert load(write(recipe_path.parent, resolve_text(recipe), "resolved.yaml")).preference.keys() == selects.keys()
    answers: list[list[Case]] = [[("good", 0.9), ("bad", 0.1), ("best", 1.0)]]
    case = candidates(answers, [("t-good", 0.9), ("t-bad", 0.1)])
    case = replace(case, sources=tuple(replace_source(answer, "gemma-2.5") for answer in case.sources))
    assert recipe.sft is not None
    trainings: list[Training] = [recipe.sft, *recipe.preference.values()]
    for training in trainings:
        options: dict[str, Any] = {"window": [0.0, 1.0]} if training.select.kind == "fusechat3" else {}
        options |= {"rank": 1} if training.select.kind == "wrpo" else {}
        selection = training.select.model_copy(update=options).select([case], seed=0, stage="select-x")
        (row,) = selection.rows
        assert "best" not in {response.content for response in row.responses}, "the third sample"
        assert find_members(row, training.objective.resolve()).responses


def replace_source(answer: Scored, name: str) -> Scored:
    return answer._replace(response=replace(answer.response, source=name))


# What is refused in a file. Each case changes one text of the recipe above: place, key and how the message begins.

REFUSED = [
    ("seed: 3", "sede: 3", "recipe.yaml:3", "sede", "unknown key; did you mean seed?"),
    ("seed: 3", "seed: 3.0", "recipe.yaml:3", "seed", "found 3.0, expected a whole number"),
    ("seed: 3", "seed: true", "recipe.yaml:3", "seed", "found true, expected a whole number"),
    ("seed: 3", "seed: [3]", "recipe.yaml:3", "seed", "found a list, expected a whole number"),
    ("output: runs/mine/wrpo", "output: 3", "recipe.yaml:2", "output", "found 3, expected a path"),
    ("output: runs/mine/wrpo\n", "", "recipe.yaml", "output", "missing, expected a path"),
    (
        "held_out: 150",
        "held_out: -1",
        "recipe.yaml:6",
        "prompts.split.held_out",
        "found -1, expected a count (0, 1, 2, ...) or a fraction with a point (0.0 to 1.0)",
    ),
    ("sft: 0.33", "sft: 1.5", "recipe.yaml:6", "prompts.split.sft", "found 1.5, expected a count"),
    (
        "preference: rest",
        "preference: all",
        "recipe.yaml:6",
        "prompts.split.preference",
        "found 'all' (text), expected rest, ",
    ),
    ("model: example/target", "model: 7", "recipe.yaml:7", "target.model", "found 7, expected text; put it in quotes"),
    ("{max_new_tokens: 64}", "64", "recipe.yaml:7", "target.sampling", "found 64, expected a mapping"),
    (
        "num_samples: 3",
        "num_samples: 0",
        "recipe.yaml:13",
        "sources.gemma-2.5.sampling.num_samples",
        "found 0, expected at least 1",
    ),
    (
        "top_p: 0.9",
        "top_p: 1.1",
        "recipe.yaml:13",
        "sources.gemma-2.5.sampling.top_p",
        "found 1.1, expected at most 1.0",
    ),
    ("top_p: 0.9", "top_p: 0", "recipe.yaml:13", "sources.gemma-2.5.sampling.top_p", "found 0, expected more than 0.0"),
    (
        "top_p: 0.9",
        "top_p: '0.9'",
        "recipe.yaml:13",
        "sources.gemma-2.5.sampling.top_p",
        "found '0.9' (text), expected a number",
    ),
    (
        "temperature: 1",
        "temperature: .inf",
        "recipe.yaml:13",
        "sources.gemma-2.5.sampling.temperature",
        "found inf, expected a finite number",
    ),
    (
        "engine: recorded",
        "engine: recorder",
        "recipe.yaml:14",
        "sources.old-answers.engine",
        "found 'recorder' (text), expected one of transformers, endpoint, managed, batch, recorded; did you mean "
        "recorded?",
    ),
    (
        "engine: recorded, ",
        "",
        "recipe.yaml:14",
        "sources.old-answers.engine",
        "missing, expected one of transformers, endpoint, managed, batch, recorded",
    ),
    (
        "engine: recorded, ",
        "engine: recorded, sampling: {}, ",
        "recipe.yaml:14",
        "sources.old-answers.sampling",
        "unknown key (known: domains, engine, num_samples, path)",
    ),
    (
        "old-answers: {",
        "target-old: {",
        "recipe.yaml:14",
        "sources.target-old",
        "found 'target-old' (text), expected a source's name",
    ),
    (
        "old-answers: {",
        "old/answers: {",
        "recipe.yaml:14",
        "sources.old/answers",
        "found 'old/answers' (text), expected a source's name",
    ),
    ("kind: exact-match}\nsft", "kind: reward-model}\nsft", "recipe.yaml:15", "scorer.model", "missing, expected text"),
    (
        "kind: exact-match}\nsft",
        "kind: exact-match, model: x}\nsft",
        "recipe.yaml:15",
        "scorer.model",
        "unknown key (known: kind, thoughts)",
    ),
    (
        "kind: best-of-sources",
        "kind: best-of-source",
        "recipe.yaml:17",
        "sft.select.kind",
        "found 'best-of-source' (text), expected one of best-of-sources, fusesft; did you mean best-of-sources?",
    ),
    (
        "target_ties: drop",
        "target_ties: dorp",
        "recipe.yaml:21",
        "preference.wrpo.select.target_ties",
        "found 'dorp' (text), expected 'keep' or 'drop'; did you mean drop?",
    ),
    (
        "target_ties: drop",
        "target_tie: drop",
        "recipe.yaml:21",
        "preference.wrpo.select.target_tie",
        "unknown key; did you mean target_ties?",
    ),
    ("  wrpo:\n", "  sft:\n", "recipe.yaml:20", "preference.sft", "found 'sft' (text), expected a method's name"),
    ("  wrpo:\n", "  a/b:\n", "recipe.yaml:20", "preference.a/b", "found 'a/b' (text), expected a method's name"),
    (
        "kind: wrpo, beta",
        "kind: wrp, beta",
        "recipe.yaml:22",
        "preference.wrpo.objective.kind",
        "unknown objective 'wrp'; did you mean wrpo?",
    ),
    ("beta: 1e-2", "bta: 1e-2", "recipe.yaml:22", "preference.wrpo.objective.bta", "unknown key; did you mean beta?"),
    (
        "beta: 1e-2",
        "beta: -1",
        "recipe.yaml:22",
        "preference.wrpo.objective.beta",
        "found -1.0, expected a number, above 0",
    ),
    (
        "beta: 1e-2",
        "tua: 0.1",
        "recipe.yaml:22",
        "preference.wrpo.objective.tua",
        "unknown key; did you mean tau? (known: ",
    ),
    (
        "beta: 1e-2",
        "tau: 0.1",
        "recipe.yaml:22",
        "preference.wrpo.objective.tau",
        "unknown hyper-parameter of 'wrpo' (known: ",
    ),
    (
        "beta: 1e-2",
        "base: ipo, beta: 1e-2",
        "recipe.yaml:22",
        "preference.wrpo.objective.beta",
        "unknown hyper-parameter of 'wrpo' with base 'ipo'",
    ),
    ("beta: 1e-2", "base: ipos", "recipe.yaml:22", "preference.wrpo.objective.base", "found 'ipos' (text), expected "),
    (
        "alpha: 0.1",
        "alpha: 1.1",
        "recipe.yaml:22",
        "preference.wrpo.objective.alpha",
        "found 1.1, expected a number, at least 0, at most 1",
    ),
    (
        "max_length: 2048",
        "max_length: 2k",
        "recipe.yaml:23",
        "preference.wrpo.train.max_length",
        "found '2k' (text), expected a whole number",
    ),
    (
        "bf16: true",
        "bf16: yes",
        "recipe.yaml:23",
        "preference.wrpo.train.bf16",
        "found 'yes' (text), expected auto or true or false",
    ),
    (
        "bf16: true",
        "output_dir: x",
        "recipe.yaml:23",
        "preference.wrpo.train.output_dir",
        "not for recipes to set: every stage has its own folder",
    ),
    (
        "report_to: [none]",
        "report_to: 3",
        "recipe.yaml:23",
        "preference.wrpo.train.report_to",
        "found 3, expected null or text or a list",
    ),
    (
        "{kind: on-policy}",
        "{kind: wrpo}",
        "recipe.yaml:25",
        "preference.dpo.select.kind",
        "rows of 'wrpo' hold chosen_source, chosen_target, rejected, but the objective 'dpo' "
        "needs chosen, rejected; policies that give them: fusechat3, on-policy",
    ),
]


@pytest.mark.parametrize(("old", "new", "place", "key", "message"), REFUSED)
def test_refused(tmp_path: Path, old: str, new: str, place: str, key: str, message: str) -> None:
    assert RECIPE.count(old) == 1
    found = refusal(write(tmp_path, RECIPE.replace(old, new)))
    assert len(found) == 1
    assert found[0].startswith(f"{place}: {key}: {message}")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = RECIPE.replace("seed: 3", "seed: x").replace("top_p: 0.9", "top: 0.9").replace("kind: dpo}", "beta: 1}")
    assert refusal(write(tmp_path, text)) == [
        "recipe.yaml:3: seed: found 'x' (text), expected a whole number",
        "recipe.yaml:13: sources.gemma-2.5.sampling.top: unknown key; did you mean top_p? "
        "(known: max_new_tokens, num_samples, repetition_penalty, seed, temperature, top_p)",
        "recipe.yaml:26: preference.dpo.objective.kind: missing, expected text",
    ]


# YAML.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("+7", 7),
        ("010", 10),
        ("0o10", 8),
        ("0xff", 255),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("1_000", "1_000"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("1e-3x", "1e-3x"),
        ("9" * 5_000, "9" * 5_000),
        ("[1, two, {three: 3.0}]", [1, "two", {"three": 3.0}]),
        ("Note: be brief", "Note: be brief"),
        ("- dash", "- dash"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_value(text, "test")
    assert found == value
    assert type(found) is type(value)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex(r"\A[-+.0-9eExo~a-f<:]{1,8}\Z")
    | st.sampled_from(
        ["yes", "No", "null", "~", "1e-3", "1e3", "0o7", "2026-01-31", "1:30", ".inf", "<<", "=", "!x", "&a"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_dumped_yaml_reads_back_unchanged(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = write(tmp_path_factory.getbasetemp(), dump_yaml(value))
    assert repr(read_yaml(path).value) == repr(value)


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 1}\nb: {<<: *a, y: 2}\nc:\n  <<: [*a, {y: 3, z: 3}]\nd: *a\n"
    document = read_yaml(write(tmp_path, text))
    assert document.value == {
        "a": {"x": 1, "y": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 1, "z": 3},
        "d": {"x": 1, "y": 1},
    }
    assert document.place(("b", "y")).endswith("recipe.yaml:2")
    assert document.place(("c", "unknown")).endswith("recipe.yaml:3")
    assert document.place(("d", "x")).endswith("recipe.yaml:1")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\n\na: 3\n", "recipe.yaml:4: a: given twice, first on line 1; keep one of them"),
        ("a:\n  b: {c: 1, c: 2}\n", "recipe.yaml:2: a.b.c: given twice, first on line 2; keep one of them"),
        ("a: !!python/object/apply:os.system [ls]\n", "recipe.yaml:1: a: tags such as tag:yaml.org,2002:python"),
        ("a: !secret x\n", "recipe.yaml:1: a: tags such as !secret are not allowed"),
        (LAUGHS, "recipe.yaml:1: a"),
        ("a: &a [*a]\n", "recipe.yaml:1: a[0][0]"),
        ("a: &a {<<: *a}\n", "recipe.yaml:1: a: aliases expand to too much"),
        ("a: {<<: [1]}\n", "recipe.yaml:1: a: << merges mappings only"),
        ("[" * 50, "recipe.yaml:1: not valid YAML: nested deeper than 32 levels"),
        ("[" * 100_000, "recipe.yaml:1: not valid YAML: nested deeper than 32 levels"),
        ("a: [1\nb: 2\n", "recipe.yaml:2: not valid YAML: while parsing a flow sequence, "),
        ("a: b: c\n", "recipe.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: *b\n", "recipe.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 1\n", "recipe.yaml:2: not valid YAML: expected a single document"),
        ("a: \x07\n", "recipe.yaml: not valid YAML: unacceptable character #x0007"),
        ("[a]: 1\n", "recipe.yaml:1: a key must be text"),
        (b"\xff\xfea", "recipe.yaml: not UTF-8 text (byte 0)"),
        ("x" * (2**20 + 1), "recipe.yaml: larger than 1,048,576 bytes"),
        ("", "recipe.yaml: found nothing, expected a mapping"),
        ("just text\n", "recipe.yaml: found 'just text' (text), expected a mapping"),
    ],
)
def test_yaml_refused(tmp_path: Path, text: str | bytes, line: str) -> None:
    found = refusal(write(tmp_path, text))
    assert found[0].startswith(line)


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == ["none.yaml: cannot be read (No such file or directory)"]
    assert refusal(tmp_path) == [f"{tmp_path}: cannot be read (Is a directory)".replace(f"{tmp_path.parent}/", "")]


@given(st.one_of(st.text(alphabet="ab:-[]{},&*!|>'\"#%@`? \n\t<~1.e", max_size=60), st.text(max_size=30)))
def test_no_text_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Any file is read or refused."""
    path = write(tmp_path_factory.getbasetemp(), text.encode("utf-8", "surrogatepass"))
    complaint = complaint_of(read_yaml, path)
    assert complaint is None or complaint.startswith(str(path))


@given(st.data())
def test_no_value_breaks_the_messages(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any value in place of any part of a recipe is read, or refused by name."""
    path = write(tmp_path_factory.getbasetemp(), RECIPE)
    keys = [".".join(map(str, key)) for key in read_yaml(path).places if all(isinstance(part, str) for part in key)]
    key = data.draw(st.sampled_from(keys))
    override = (
        f"{key}={data.draw(st.sampled_from(['3', '-1', 'x', 'null', '[]', '[x]', '{}', '{kind: 3}', '{x: {}}']))}"
    )
    complaint = complaint_of(load_recipe, path, [override])
    assert complaint is None or f"command line: {key}" in complaint or "prompts.split" in complaint


# train:


def test_training_arguments_are_those_of_transformers() -> None:
    """The arguments read from the source are those of the class, and each accepts its own default."""
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    defaults = {
        name: field.default
        for name, field in fields.items()
        if name not in OWNED and isinstance(field.default, bool | int | float | str | None)
    }
    assert len(defaults) > 80
    assert list(find_problems(defaults)) == []
    assert set(OWNED) <= set(fields)
    assert dict(find_problems({name: None for name in OWNED})).keys() == OWNED.keys()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("learning_rate", 1, None),
        ("learning_rate", "1e-3", "found '1e-3' (text), expected a number"),
        ("learning_rate", True, "found true, expected a number"),
        ("num_train_epochs", 3, None),
        ("per_device_train_batch_size", 2.0, "found 2.0, expected a whole number"),
        ("gradient_checkpointing_kwargs", {"use_reentrant": False}, None),
        ("lr_scheduler_type", "cosine", None),
        ("lr_scheduler_type", 3, "found 3, expected text"),
        ("max_steps", None, "found nothing, expected a whole number"),
        ("fsdp", "full_shard", None),
        ("bf16", 1, "found 1, expected auto or true or false"),
        ("accelerator_config", {"split_batches": True}, None),
        ("per_device_train_batch_size", 0, "found 0, expected a whole number, at least 1"),
        ("gradient_accumulation_steps", 0, "found 0, expected a whole number, at least 1"),
        ("learning_rate", -1, "found -1, expected a number, at least 0"),
        ("learning_rate", math.nan, "found nan, expected a number, at least 0"),
        ("learning_rate", math.inf, "found inf, expected a number, at least 0"),
        ("num_train_epochs", -1, "found -1, expected a number, at least 0"),
        ("max_steps", 0, "found 0, expected a whole number, at least 1"),
        ("max_steps", -1, None),
        ("max_length", 1, "found 1, expected a whole number or null, at least 2"),
        ("data_seed", None, None),
        ("data_seed", 2**32 - 1, None),
        ("data_seed", 2**32, "found 4294967296, expected a whole number or null, at least 0 and at most 4294967295"),
        ("learning_rate", 10**400, f"found '1{'0' * 59}'..., expected a number, at least 0"),
        ("save_strategy", "epoch", None),
        (
            "save_strategy",
            "best",
            "found 'best' (text), expected no, steps or epoch (training stages have no evaluation data to choose by)",
        ),
        ("push_to_hub", True, "not for recipes to set: publishing is a step of its own: hf upload NAME FOLDER"),
        (
            "parallelism_config",
            {"tp_size": 2},
            "not for recipes to set: it is an object, which text cannot give; `accelerate config` can",
        ),
        ("max_lenght", 3, "unknown training argument; did you mean max_length?"),
        ("qqq", 3, "unknown training argument"),
        ("do_train", True, "not for recipes to set: the stages decide what is done"),
    ],
)
def test_training_arguments(name: str, value: object, problem: str | None) -> None:
    assert dict(find_problems({name: value})) == ({name: problem} if problem else {})


def test_transformers_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    train_arguments._declared_arguments.cache_clear()
    with pytest.raises(InputError, match="transformers is not installed"):
        list(train_arguments.find_problems({"learning_rate": 1}))


def test_schema_knows_every_hyperparameter() -> None:
    for objective in OBJECTIVES.values():
        assert objective.hyperparameters.keys() <= ObjectiveSettings.model_fields.keys()


def test_train_settings() -> None:
    settings = read_train_settings("wrpo", ["alpha=0.5", "beta=1e-1", "learning_rate=1e-6", "max_length=512", "seed=4"])
    assert settings.hyperparameters == {"alpha": 0.5, "beta": 0.1}
    assert settings.arguments == {"learning_rate": 1e-6, "max_length": 512}
    assert settings.seed == 4
    assert read_train_settings("sft", []).seed == 0


@pytest.mark.parametrize(
    ("objective", "setting", "message"),
    [
        ("wrp", "alpha=1", "command line: unknown objective 'wrp'; did you mean wrpo? (known: "),
        ("wrpo", "alpha=2", "command line: alpha: found 2, expected a number, at least 0, at most 1"),
        ("wrpo", "alhpa=1", "command line: alhpa: unknown training argument; did you mean alpha?"),
        ("dpo", "learning_rate=x", "command line: learning_rate: found 'x' (text), expected a number"),
        ("dpo", "seed=x", "command line: seed: found 'x' (text), expected a whole number"),
        ("dpo", "seed=-1", "command line: seed: found -1, expected a whole number, 0 to 4294967295"),
        ("dpo", "seed=4294967296", "command line: seed: found 4294967296, expected a whole number, 0 to 4294967295"),
        ("dpo", "output_dir=x", "command line: output_dir: not for recipes to set: "),
    ],
)
def test_train_settings_refused(objective: str, setting: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_train_settings(objective, [setting])
    assert str(error.value).startswith(message)


# Few-shot prompts.

SHOTS = """\
template: "Question: {question}\\nAnswer: {answer}\\n\\n"
examples:
  - {question: Capital of Bolivia, answer: Sucre}
  - {question: 13 plus 48, answer: "61"}
"""


def test_few_shot(tmp_path: Path) -> None:
    shots = load_few_shot(write(tmp_path, SHOTS, "shots.yaml"))
    assert shots == FewShot(
        "Question: {question}\nAnswer: {answer}\n\n",
        (("Capital of Bolivia", "Sucre"), ("13 plus 48", "61")),
    )
    assert shots.prefix.startswith("Question: Capital of Bolivia\nAnswer: Sucre\n\n")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("{question}", "{query}", "shots.yaml:1: template: "),
        ("{answer}", "{answer} {answer}", "shots.yaml:1: template: "),
        ('"61"', "61", "shots.yaml:4: examples[1].answer: found 61, expected text; put it in quotes"),
        ("Sucre", '""', "shots.yaml:3: examples[0].answer: found '' (text), expected at least 1 character"),
        ("answer: Sucre", "anwser: Sucre", "shots.yaml:3: examples[0].answer: missing, expected text"),
        ("template:", "tempalte:", "shots.yaml: template: missing, expected text"),
    ],
)
def test_few_shot_refused(tmp_path: Path, old: str, new: str, line: str) -> None:
    path = write(tmp_path, SHOTS.replace(old, new, 1), "shots.yaml")
    with pytest.raises(InputError) as error:
        load_few_shot(path)
    assert str(error.value).replace(f"{tmp_path}/", "").startswith(line)


def test_few_shot_needs_examples(tmp_path: Path) -> None:
    path = write(tmp_path, SHOTS.partition("examples:")[0] + "examples: []\n", "shots.yaml")
    with pytest.raises(InputError, match=r"shots\.yaml:2: examples: found a list, expected at least 1 of them"):
        load_few_shot(path)


def test_shipped_recipes_load() -> None:
    recipe = load_recipe(quickstart_recipe()).recipe
    assert recipe.prompts.path.is_file()
    for source in recipe.sources.values():
        assert isinstance(source, LocalModel)
        assert source.prompt.few_shot is not None
        assert load_few_shot(source.prompt.few_shot).examples


def test_loading_imports_no_torch(recipe_path: Path) -> None:
    script = (
        "import sys, pathlib; from sinterlm.recipe.load import load_recipe; load_recipe(pathlib.Path(sys.argv[1])); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(recipe_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
