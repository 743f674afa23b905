"""The shipped recipes: each can be planned and has its paper's settings, and those on recorded answers run whole."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sinterlm import cli
from sinterlm.errors import InputError
from sinterlm.formats import read_rows
from sinterlm.models.flops import GPUS, count_weights
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.stages import build_stages
from sinterlm.recipe.load import load_recipe, resolve_text
from sinterlm.recipe.schema import Recipe
from sinterlm.selection.fusesft import FuseSft
from sinterlm.selection.wrpo import Wrpo
from sinterlm.store import Store
from tests.published_data import FOLDER as PUBLISHED
from tests.published_data import needs_published_data, read_published
from tests.tiny import save_tiny

RECIPES = Path(__file__).resolve().parents[1] / "src" / "sinterlm" / "recipes"
SHIPPED = sorted(
    path
    for folder in ("wrpo", "fuserl", "fusechat3", "arena-bench", "quickstart")
    for path in (RECIPES / folder).glob("*.yaml")
    if path.name != "shots.yaml"
)


def load(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides).recipe


def plan(recipe: Recipe) -> dict[str, Any]:
    """The plan as printed with ``--json``, with its stages by name."""
    planned = plan_fusion(Fusion(recipe)).to_json()
    return {**planned, "stages": {stage["name"]: stage for stage in planned["stages"]}}


# -- every recipe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_planned_and_written_out_whole(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, [f"output={tmp_path}", f"workspace={tmp_path}"]).recipe
    planned = plan(recipe)
    assert planned["total"]["calls"] > 0
    trainings = [stage for name, stage in planned["stages"].items() if name.startswith("train-")]
    assert trainings
    assert not [note for note in planned["notes"] if "size unknown" in note or "all domains" in note]
    if "gguf:" not in recipe.target.model:  # whose size is known once the package is installed
        assert all(stage["note"] == "the best cell's model" or stage["disk_bytes"] > 1e9 for stage in trainings)
        assert 50 < planned["total"]["gpu_hours"]["H100"] < planned["total"]["gpu_hours"]["A100"] < 3000
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolve_text(recipe))
    assert resolve_text(load_recipe(resolved).recipe) == resolve_text(recipe)


def test_every_paper_has_its_recipes() -> None:
    names = {f"{path.parent.name}/{path.stem}" for path in SHIPPED}
    variants = ("1-source", "2-sources", "5-sources", "group-2", "rank-2", "equation-9", "simpo", "ipo", "untuned")
    assert {"wrpo/llama3-8b", *(f"wrpo/llama3-8b-{variant}" for variant in variants)} <= names
    assert {f"fuserl/llama3.1-8b-{objective}" for objective in ("dpo", "simpo", "rloo")} <= names
    targets = ("llama3.1-8b", "qwen2.5-7b", "gemma2-9b", "llama3.2-3b", "llama3.2-1b")
    assert {f"fusechat3/{target}" for target in targets} <= names


def test_recipes_of_one_paper_share_answers_and_write_apart() -> None:
    for folder in ("wrpo", "fuserl", "fusechat3", "arena-bench"):
        recipes = [load_recipe(path).recipe for path in SHIPPED if path.parent.name == folder]
        assert len({recipe.workspace for recipe in recipes}) == 1
        assert len({recipe.output for recipe in recipes}) == len(recipes)


# -- WRPO (arXiv 2412.03187) -----------------------------------------------------------------------------------------

GROUP_1 = {"gemma-2-27b", "gemma-2-9b", "qwen2-72b", "llama-3-70b", "yi-1.5-34b"}
GROUP_2 = {"mistral-large", "internlm2.5-20b", "deepseek-v2", "deepseek-coder-v2", "phi-3-medium"}


@pytest.mark.parametrize(
    ("variant", "sources"),
    [
        ("", GROUP_1 | GROUP_2),
        ("-5-sources", GROUP_1),
        ("-2-sources", {"gemma-2-27b", "qwen2-72b"}),
        ("-1-source", {"gemma-2-27b"}),
        ("-group-2", GROUP_2),
        ("-search", {"gemma-2-27b", "qwen2-72b"}),
    ],
)
def test_sources_of_wrpo(variant: str, sources: set[str]) -> None:
    """Section 4.3 and appendix D."""
    assert set(load(f"wrpo/llama3-8b{variant}").sources) == sources


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("", {"base": "dpo", "beta": 0.01, "gamma": None, "tau": None, "alpha": 0.1, "learning_rate": 3e-7}),
        ("-ipo", {"base": "ipo", "beta": None, "gamma": None, "tau": 0.01, "alpha": 0.1, "learning_rate": 1e-6}),
        ("-simpo", {"base": "simpo", "beta": 10, "gamma": 0.0, "tau": None, "alpha": 0.5, "learning_rate": 6e-7}),
    ],
)
def test_table_6_of_wrpo(variant: str, settings: dict[str, object]) -> None:
    wrpo = load(f"wrpo/llama3-8b{variant}").preference["wrpo"]
    found = {name: getattr(wrpo.objective, name, wrpo.train.get(name)) for name in settings}
    assert found == settings
    assert wrpo.train["per_device_train_batch_size"] * wrpo.train["gradient_accumulation_steps"] == 128


def test_switches_of_wrpo() -> None:
    """Appendix D (rank), appendix F (equation 9), Figure 5 (from the untuned target)."""
    rank = load("wrpo/llama3-8b-rank-2").preference["wrpo"].select
    assert isinstance(rank, Wrpo)
    assert rank.rank == 2
    mixed = load("wrpo/llama3-8b-equation-9").preference["wrpo"]
    assert isinstance(mixed.select, Wrpo)
    assert (mixed.select.rejected_source, mixed.objective.rejected_mix) == (True, True)
    untuned = Fusion(load("wrpo/llama3-8b-untuned"))
    assert untuned.compared("wrpo") == untuned.target
    assert "train-sft" not in {stage.name for stage in build_stages(untuned)}


def test_the_plan_of_wrpo_by_hand(tmp_path: Path) -> None:
    """10 sources x 59,876 prompts x 5 answers; weights that work at a token: 123 + 27 + 72 + 70 + 9 + 20 + 21 + 21 +
    34 + 14 = 411 billion. 512 tokens an answer and 200 a prompt are what the plan assumes. Training takes 6 + 2 + 2
    operations a weight and token: gradients, recomputed activations, the reference once.
    """
    planned = plan(load("wrpo/llama3-8b", f"workspace={tmp_path}", f"output={tmp_path}"))
    stages, a100 = planned["stages"], GPUS[0]
    answers_a_source = 59_876 * 5
    assert stages["sample-sources"]["calls"] == stages["score-sources"]["calls"] == 10 * answers_a_source
    assert stages["sample-sources"]["new_tokens"] == 10 * answers_a_source * 4096
    operations = 2 * 411e9 * answers_a_source
    seconds = operations * (200 / a100.reading + 512 / a100.writing)
    assert stages["sample-sources"]["gpu_hours"]["A100"] == pytest.approx(seconds / 3600)
    scored = 2 * 8e9 * 10 * answers_a_source * (200 + 512) / a100.reading / 3600
    assert stages["score-sources"]["gpu_hours"]["A100"] == pytest.approx(scored)
    assert stages["sample-target"]["calls"] == 39_917 * 5
    assert stages["train-wrpo"]["disk_bytes"] == 4 * 8e9
    trained = stages["train-wrpo"]["gpu_hours"]["A100"]
    assert trained == pytest.approx(10 * 8e9 * 39_917 * (200 + 3 * 512) / a100.training / 3600)
    papers = 8 * 215 / 60
    assert papers / 2 < trained < papers * 2, "Table 8: 215 minutes on eight A800"
    assert planned["total"]["gpu_hours"]["A100"] == pytest.approx(
        sum((stage["gpu_hours"] or {}).get("A100", 0) for stage in stages.values())
    )


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("Qwen/Qwen2.5-Math-72B-Instruct", 72e9),
        ("internlm/internlm2_5-20b-chat", 20e9),
        ("RLHFlow/ArmoRM-Llama3-8B-v0.1", 8e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("01-ai/Yi-1.5-34B-Chat", 34e9),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", None),
        ("microsoft/Phi-3-medium-4k-instruct", None),
        ("org7b/model", None),
    ],
)
def test_weights_by_name(model: str, weights: float | None) -> None:
    assert count_weights(model) == weights
    assert count_weights(model, active_billions=13) == 13e9


def test_a_model_of_unknown_size_leaves_hours_unknown(tmp_path: Path) -> None:
    source = "{engine: transformers, model: org/unheard-of, sampling: {num_samples: 5}}"
    planned = plan(load("wrpo/llama3-8b-1-source", f"workspace={tmp_path}", f"sources.other={source}"))
    assert planned["stages"]["sample-sources"]["gpu_hours"] is None
    assert planned["stages"]["score-sources"]["gpu_hours"]["A100"] > 0
    assert "other: size unknown, so GPU hours are unknown; set `active_billions`" in planned["notes"]
    assert planned["total"]["gpu_hours"] is None
    assert planned["total"]["calls"] > 0


@pytest.mark.parametrize("place", ["scorer", "evaluation.held_out.scorer"])
def test_a_reward_model_of_unknown_size_is_named(tmp_path: Path, place: str) -> None:
    unheard = "{kind: reward-model, model: org/unheard-of}"
    gate = f"{{kind: combination, rule: gate, parts: {{right: {{kind: mathematics}}, graded: {unheard}}}}}"
    planned = plan(
        load("wrpo/llama3-8b-1-source", f"workspace={tmp_path}", "prompts.split.held_out=9", f"{place}={gate}")
    )
    stage = "score-sources" if place == "scorer" else "score-held-out"
    assert planned["stages"][stage]["gpu_hours"] is None
    note = "org/unheard-of: size unknown until its files are on this machine, so GPU hours of scoring are unknown"
    assert planned["notes"].count(note) == 1


def test_the_files_of_a_scorer_that_are_not_there_are_named(tmp_path: Path) -> None:
    recorded = "{kind: recorded, path: gone.jsonl}"
    planned = plan(load("wrpo/llama3-8b-1-source", f"workspace={tmp_path}", f"scorer={recorded}"))
    assert f"{RECIPES}/wrpo/gone.jsonl: not found (path of the scorer recorded)" in planned["notes"]


def test_a_share_of_one_domain_leaves_a_part_unknown(tmp_path: Path) -> None:
    folders = (f"workspace={tmp_path}", f"output={tmp_path}", "prompts.path=gone.jsonl")
    planned = plan(load("fusechat3/llama3.1-8b", *folders, "prompts.split.sft_domains.code=0.75"))
    assert planned["prompts"] == {"held_out": 0, "sft": None, "development": 0, "preference": 116_353}
    assert planned["stages"]["sample-sources"]["calls"] is None
    assert planned["stages"]["train-sft"]["gpu_hours"] is None
    assert planned["stages"]["train-dpo"]["gpu_hours"]["A100"] > 0
    without_sft = plan(load("wrpo/llama3-8b-untuned", *folders, "prompts.split={preference: 100}"))
    assert without_sft["prompts"] == {"held_out": 0, "sft": 0, "development": 0, "preference": 100}
    assert without_sft["stages"]["sample-sources"]["calls"] == 10 * 100 * 5


# -- FuseRL (arXiv 2504.06562) and FuseChat-3.0 (arXiv 2503.04222) ---------------------------------------------------


def test_fuserl() -> None:
    recipes = {name: load(f"fuserl/llama3.1-8b-{name}") for name in ("dpo", "simpo", "rloo")}
    methods = {name: recipe.preference["fusepo"] for name, recipe in recipes.items()}
    assert {name: method.select.kind for name, method in methods.items()} == {
        "dpo": "fusepo",
        "simpo": "fusepo",
        "rloo": "fusepo-rloo",
    }
    assert (methods["simpo"].objective.base, methods["simpo"].objective.gamma) == ("simpo", 1.0)
    assert methods["rloo"].objective.baseline == "source"
    for recipe in recipes.values():
        assert recipe.sft
        assert isinstance(recipe.sft.select, FuseSft)
        assert (recipe.sft.select.keep, recipe.sft.select.num_responses, len(recipe.sources)) == ("pooled", 4, 4)
        assert (recipe.prompts.split.sft, recipe.prompts.split.preference) == (23_950, 35_926)


@pytest.mark.parametrize(
    ("target", "sft_rate", "kind", "beta", "rate"),
    [
        ("llama3.1-8b", 5e-6, "ln-dpo", 10, 8e-7),
        ("llama3.2-3b", 5e-6, "ln-dpo", 10, 1e-6),
        ("llama3.2-1b", 5e-6, "ln-dpo", 10, 1e-6),
        ("qwen2.5-7b", 2e-6, "dpo", 0.01, 3e-7),
        ("gemma2-9b", 2e-6, "dpo", 0.01, 5e-7),
    ],
)
def test_settings_of_fusechat3(target: str, sft_rate: float, kind: str, beta: float, rate: float) -> None:
    """Its README's tables."""
    recipe = load(f"fusechat3/{target}")
    dpo = recipe.preference["dpo"]
    assert recipe.sft
    assert (recipe.sft.train["learning_rate"], recipe.sft.train["num_train_epochs"]) == (sft_rate, 3)
    assert (dpo.objective.kind, dpo.objective.beta) == (kind, beta)
    assert (dpo.train["learning_rate"], dpo.train["num_train_epochs"]) == (rate, 1)


def test_the_domains_of_fusechat3(tmp_path: Path) -> None:
    """Four sources with five samples for instructions, four with eight for code, one each for the other two."""
    recipe = load("fusechat3/llama3.1-8b", f"workspace={tmp_path}")
    sizes = recipe.prompts.sizes
    assert sizes
    planned = plan(recipe)
    assert (planned["prompts"]["sft"], planned["prompts"]["preference"]) == (32_362 + 9_952, 48_545 + 51_803 + 16_005)
    assert sum(sizes.values()) == 94_539 + 64_128 == planned["prompts"]["sft"] + planned["prompts"]["preference"]
    calls = planned["stages"]["sample-sources"]["calls"]
    by_hand = 4 * 5 * 80_907 + 4 * 8 * 16_005 + 1 * 9_952 + 5 * 51_803
    assert calls == pytest.approx(by_hand, abs=10), "to the rounding of shares"


@pytest.mark.parametrize("target", ["llama3.1-8b", "llama3.2-1b", "gemma2-9b"])
def test_pairs_come_first_in_fusechat3(target: str, tmp_path: Path) -> None:
    """In mathematics (51,803) and code (16,005) prompts without a pair go to SFT: 42,314 to 110,122 in all."""
    planned = plan(load(f"fusechat3/{target}", f"workspace={tmp_path}", f"output={tmp_path}"))
    assert list(planned["stages"]).index("select-dpo") + 1 == list(planned["stages"]).index("select-sft")
    note = "sft: rows of 42,314 to 110,122 prompts, depending on how many select-dpo drops"
    assert [found.partition(";")[0] for found in planned["notes"] if found.startswith("sft: ")] == [note]
    if target == "llama3.1-8b":  # 3 epochs, 200 + 512 tokens per row, 8 operations with recomputation
        hours = 3 * (6 + 2) * 8e9 * 110_122 * (200 + 512) / GPUS[0].training / 3600
        assert planned["stages"]["train-sft"]["gpu_hours"]["A100"] == pytest.approx(hours)


def test_the_published_shares_of_fusechat3_can_be_fixed(tmp_path: Path) -> None:
    """As in the recipe's comment."""
    shares = "{sft: 32362, sft_domains: {mathematics: 40188, code: 12037, chinese: 9952}, preference: 64128}"
    planned = plan(
        load("fusechat3/llama3.1-8b", f"workspace={tmp_path}", "sft.extra_prompts=null", f"prompts.split={shares}")
    )
    assert (planned["prompts"]["sft"], planned["prompts"]["preference"]) == (94_539, 64_128)
    assert not [note for note in planned["notes"] if note.startswith("sft: ")]


# -- Arena-Bench: the same recorded answers under three methods ------------------------------------------------------

SOURCE_MODELS = ("Mixtral-8x7B-Instruct-v0.1", "Starling-LM-7B-alpha", "openchat_3.5")
TARGET_MODELS = ("Llama-2-70b-chat", "Mistral-7B-Instruct-v0.1")
NUM_PROMPTS = 12
SPLIT = "prompts.split={sft: 4, preference: 8}"


def answer_of(model: str, number: int) -> str:
    return f"{model} thinks {number} times of the sea."


def score_of(model: str, number: int) -> int:
    """1 to 10; the source's three answers to prompts 0, 4 and 8 all have the score 5."""
    if number % 4 == 0 and model in SOURCE_MODELS:
        return 5
    return 1 + (3 * number + 4 * (*SOURCE_MODELS, *TARGET_MODELS).index(model)) % 10


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the form in which Arena-Bench was published, with our own content."""
    folder = tmp_path_factory.mktemp("arena") / "arena-bench-v1"

    def write(path: Path, lines: Iterator[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    numbers = range(NUM_PROMPTS)
    questions = ({"question_id": f"q{number}", "turns": [f"What of the sea, {number}?"]} for number in numbers)
    write(folder / "question.jsonl", questions)
    for model in (*SOURCE_MODELS, *TARGET_MODELS):
        choices = ({"index": 0, "turns": [f" {answer_of(model, number)}"]} for number in numbers)
        answers = ({"question_id": f"q{number}", "choices": [choice]} for number, choice in enumerate(choices))
        write(folder / "model_answer" / f"{model}.jsonl", answers)
        # The judge gave the first answer of one model no number.
        judgments = (
            {"question_id": f"q{number}", "score": None if (model, number) == (TARGET_MODELS[0], 11) else score}
            for number in numbers
            for score in [score_of(model, number)]
        )
        write(folder / "model_judgment" / f"{model}.jsonl", judgments)
    return folder


@pytest.fixture(scope="module")
def runs(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three recipes run in one workspace, with a tiny target."""
    folder = tmp_path_factory.mktemp("runs")
    prepare = [sys.executable, str(RECIPES / "arena-bench" / "prepare.py"), str(published)]
    subprocess.run([*prepare, "--output", str(folder / "data")], check=True, capture_output=True)
    save_tiny(folder / "target")
    for name in ("wrpo", "fuserl", "fusechat3"):
        result = CliRunner().invoke(
            cli.app, ["run", str(RECIPES / "arena-bench" / f"{name}.yaml"), *here(folder, name)]
        )
        assert result.exit_code == 0, result.output
    return folder / "runs"


def here(folder: Path, name: str) -> list[str]:
    """What differs from the shipped recipe: the folders, the target, and how many prompts there are."""
    return [
        f"prompts.path={folder}/data/prompts.jsonl",
        f"sources.open-models.path={folder}/data/source.jsonl",
        f"target.samples.path={folder}/data/target.jsonl",
        f"scorer.path={folder}/data/scores.jsonl",
        f"target.model={folder}/target",
        f"workspace={folder}/runs",
        f"output={folder}/runs/{name}",
        "prompts.split={sft: 4, preference: 8}",
    ]


def scores_by_role(path: Path) -> dict[str, dict[str, float]]:
    """The scores of every row's answers by role, by prompt."""
    return {
        row.prompt_id: {str(response.role): float(response.score or 0) for response in row.responses}
        for row in read_rows(path)
    }


def scores_of(models: Sequence[str], prompt_id: str) -> list[float]:
    return [score_of(model, int(prompt_id[1:])) for model in models]


def test_wrpo_on_recorded_answers(runs: Path) -> None:
    rows = scores_by_role(runs / "wrpo" / "rows" / "wrpo.parquet")
    assert len(rows) >= 7, "prompt 11 has one scored answer of the target, and no row"
    assert "q11" not in rows
    for prompt_id, scores in rows.items():
        of_target = scores_of(TARGET_MODELS, prompt_id)
        assert scores == {
            "chosen_source": max(scores_of(SOURCE_MODELS, prompt_id)),
            "chosen_target": max(of_target),
            "rejected": min(of_target),
        }
    for row in read_rows(runs / "wrpo" / "rows" / "wrpo.parquet"):
        assert row.with_role("rejected").content.startswith(TARGET_MODELS)
        assert row.with_role("chosen_source").content.startswith(SOURCE_MODELS)


def test_fuserl_on_the_same_answers(runs: Path) -> None:
    for row in read_rows(runs / "fuserl" / "rows" / "sft.parquet"):
        scores = scores_of(SOURCE_MODELS, row.prompt_id)
        assert sorted(response.score or 0 for response in row.responses) == sorted(scores)
        weights = [math.exp((response.score or 0) / 2) for response in row.responses]
        expected = [weight / sum(weights) for weight in weights]
        assert [response.weight for response in row.responses] == pytest.approx(expected)
    pairs = scores_by_role(runs / "fuserl" / "rows" / "fusepo.parquet")
    assert pairs
    for prompt_id, pair in pairs.items():
        own = scores_of(SOURCE_MODELS, prompt_id)
        assert pair == {"chosen": max(own), "rejected": min(own)}
    for row in read_rows(runs / "fuserl" / "rows" / "fusepo.parquet"):
        assert [response.weight for response in row.responses] == [1.0, 1.0], "there is one source"


def test_fusechat3_on_the_same_answers(runs: Path) -> None:
    pairs = scores_by_role(runs / "fusechat3" / "rows" / "fusechat3.parquet")
    fusepo = scores_by_role(runs / "fuserl" / "rows" / "fusepo.parquet")
    assert pairs == fusepo, "of one source, where all score differences lie in the window"
    assert all(int(prompt_id[1:]) % 4 for prompt_id in pairs), "their three answers have one score"


def test_answers_are_stored_once_and_fused_three_times(runs: Path) -> None:
    with Store(runs / "store.sqlite", read_only=True) as store:
        responses = list(store.all_responses())
        num_scores = len(list(store.all_scores()))
    num_target_answers = 8 * len(TARGET_MODELS)  # answers to the prompts of the preference part
    assert len(responses) == NUM_PROMPTS * len(SOURCE_MODELS) + num_target_answers
    assert num_scores == len(responses)
    later = json.loads((runs / "fuserl" / "summary.json").read_text())["stages"]["sample-sources"]["counts"]
    assert (later["open-models answers"], later["open-models sampled now"]) == (NUM_PROMPTS * len(SOURCE_MODELS), 0)


def test_every_method_trains(runs: Path) -> None:
    for name, method in (("wrpo", "wrpo"), ("fuserl", "fusepo"), ("fusechat3", "fusechat3")):
        metrics = (runs / name / f"target-sft-{method}" / "metrics.jsonl").read_text().splitlines()
        assert len(metrics) == 8
        assert all(math.isfinite(json.loads(line)["loss"]) for line in metrics)


def test_a_folder_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    """It fails before anything is written."""
    (tmp_path / "question.jsonl").write_text("")
    prepare = [sys.executable, str(RECIPES / "arena-bench" / "prepare.py"), str(tmp_path)]
    outcome = subprocess.run([*prepare, "--output", str(tmp_path / "data")], capture_output=True, text=True)
    assert outcome.returncode == 2
    assert f"{tmp_path}/model_answer/{SOURCE_MODELS[0]}.jsonl: there is no such file" in outcome.stderr
    assert not (tmp_path / "data").exists()


@needs_published_data
def test_the_published_answers_become_rows(tmp_path: Path) -> None:
    """Counted from the published files: for every prompt, the scores of the answers that exist, by model."""
    published = PUBLISHED / "arena_bench_v1"
    prepare = [sys.executable, str(RECIPES / "arena-bench" / "prepare.py"), str(published)]
    subprocess.run([*prepare, "--output", str(tmp_path / "data")], check=True, capture_output=True)
    save_tiny(tmp_path / "target")
    select = {"wrpo": "select-wrpo", "fuserl": "select-fusepo", "fusechat3": "select-fusechat3"}
    for name, method in select.items():
        stages = ("prompts", "sample-sources", "score-sources", "select-sft")
        target_stages = ("sample-target", "score-target") if name == "wrpo" else ()
        for stage in (*stages, *target_stages, method):
            changes = [change for change in here(tmp_path, name) if not change.startswith("prompts.split")]
            recipe = str(RECIPES / "arena-bench" / f"{name}.yaml")
            result = CliRunner().invoke(cli.app, ["run", recipe, "--only", stage, *changes])
            assert result.exit_code == 0, result.output
    rows = {path.relative_to(tmp_path / "runs"): read_rows(path) for path in tmp_path.glob("runs/*/rows/*.parquet")}

    def scores(models: Sequence[str], prompt_id: str) -> dict[str, float]:
        """By the answer's text."""
        return {answers[model, prompt_id]: given[model, prompt_id] for model in models if (model, prompt_id) in given}

    def lines(folder: str, model: str) -> list[dict[str, Any]]:
        return read_published(f"arena_bench_v1/{folder}/{model}.jsonl")

    models = (*SOURCE_MODELS, *TARGET_MODELS)
    answers = {
        (model, line["question_id"]): line["choices"][0]["turns"][0].strip()
        for model in models
        for line in lines("model_answer", model)
    }
    given = {
        (model, line["question_id"]): float(line["score"])
        for model in models
        for line in lines("model_judgment", model)
        if line["score"] is not None and answers[model, line["question_id"]]
    }
    sft = {row.prompt_id for row in rows[Path("wrpo/rows/sft.parquet")]}
    preference = {prompt_id for _, prompt_id in answers} - sft
    assert (len(sft), len(preference)) == (99, 201)

    quadruples = rows[Path("wrpo/rows/wrpo.parquet")]
    assert {row.prompt_id for row in quadruples} == {
        name for name in preference if len(scores(TARGET_MODELS, name)) > 1
    }
    for row in quadruples:
        of_source, of_target = (scores(models, row.prompt_id) for models in (SOURCE_MODELS, TARGET_MODELS))
        assert of_source[row.with_role("chosen_source").content] == max(of_source.values())
        assert of_target[row.with_role("chosen_target").content] == max(of_target.values())
        assert of_target[row.with_role("rejected").content] == min(of_target.values())

    pairs = rows[Path("fuserl/rows/fusepo.parquet")]
    assert {row.prompt_id for row in pairs} == {
        name for name in preference if len(set(scores(SOURCE_MODELS, name).values())) > 1
    }
    for row in pairs:
        own = scores(SOURCE_MODELS, row.prompt_id)
        assert own[row.with_role("chosen").content] == max(own.values())
        assert own[row.with_role("rejected").content] == min(own.values())
    assert scores_by_role(tmp_path / "runs/fusechat3/rows/fusechat3.parquet") == scores_by_role(
        tmp_path / "runs/fuserl/rows/fusepo.parquet"
    )
    weighted = rows[Path("fuserl/rows/sft.parquet")]
    assert {row.prompt_id for row in weighted} == sft
    for row in weighted:
        own = scores(SOURCE_MODELS, row.prompt_id)
        total = sum(math.exp(score / 2) for score in own.values())
        assert {response.content: response.weight for response in row.responses} == pytest.approx(
            {text: math.exp(score / 2) / total for text, score in own.items()}
        )


def test_a_recorded_target_is_not_asked(runs: Path) -> None:
    """Rows neither wait for the tuned target nor change with it."""
    recipe = load("arena-bench/wrpo", *here(runs.parent, "wrpo"))
    stages = {stage.name: stage for stage in build_stages(Fusion(recipe))}
    assert stages["sample-target"].needs == ("prompts",)
    assert stages["select-wrpo"].needs == ("score-sources", "score-target")


def test_a_recorded_target_refuses_a_choice_of_its_form(runs: Path) -> None:
    with pytest.raises(InputError, match=r"preference\.wrpo\.target_samples: `target\.samples` gives the answers"):
        load("arena-bench/wrpo", *here(runs.parent, "wrpo"), "preference.wrpo.target_samples=target")


def test_recorded_answers_of_the_target_that_are_not_there(runs: Path) -> None:
    arguments = [*here(runs.parent, "lost"), "target.samples.path=gone.jsonl"]
    result = CliRunner().invoke(cli.app, ["run", str(RECIPES / "arena-bench" / "wrpo.yaml"), *arguments])
    assert isinstance(result.exception, InputError)
    assert "gone.jsonl: there is no such file (recorded answers of target)" in str(result.exception)
