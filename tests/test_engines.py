"""Settings of engines: their identity in the store, how they are described, and where they come from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from sinterlm.records import SamplingSettings
from sinterlm.sampling.engines import Source
from tests.packages import install, worked_example
from tests.tiny import save_tiny, save_tiny_reward_model

SETTINGS = SamplingSettings(temperature=0.7, top_p=0.9, max_new_tokens=64, seed=3)
PENALISED = SamplingSettings(temperature=0.7, top_p=0.9, max_new_tokens=64, seed=3, repetition_penalty=1.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose template asks for the date, a few-shot prompt, and a file of answers."""
    model = tmp_path / "dated"
    model.mkdir()
    (model / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    (tmp_path / "shots.yaml").write_text(
        'template: "Q: {question}\\nA: {answer}\\n\\n"\nexamples: [{question: Hot, answer: cold}]\n'
    )
    (tmp_path / "answers.jsonl").write_text('{"prompt_id": "p", "source": "a", "index": 0, "content": "oxen"}\n')
    return tmp_path


def read_source(mapping: dict[str, Any], folder: Path) -> Any:
    return TypeAdapter(Source).validate_python(mapping, context={"folder": folder})


@pytest.mark.parametrize(
    ("mapping", "settings", "location", "expected"),
    [
        ({"model": "org/m"}, SETTINGS, None, "22a9b9b5515398b0"),
        ({"model": "org/m"}, SETTINGS, "trained", "f055b0d887da16a5"),
        ({"model": "org/m"}, PENALISED, None, "ec0c0449828b4afb"),
        (
            {"model": "org/m", "device": "cpu", "dtype": "float32", "active_billions": 2.0},
            SETTINGS,
            None,
            "22a9b9b5515398b0",
        ),
        (
            {"model": "org/m", "prompt": {"system": "Be brief."}},
            SETTINGS,
            None,
            "a54b96059669b64d",
        ),
        (
            {"model": "org/m", "prompt": {"few_shot": "shots.yaml"}},
            SETTINGS,
            None,
            "f3f8cb45c2b6f1a5",
        ),
        (
            {"model": "org/m", "chat_template_kwargs": {"enable_thinking": False}},
            SETTINGS,
            None,
            "0bbc727018dac3eb",
        ),
        (
            {"model": "FOLDER/dated", "template_date": "2026-11-30"},
            SETTINGS,
            None,
            "cef9cd3652481ebb",
        ),
        (
            {"engine": "recorded", "path": "answers.jsonl"},
            None,
            None,
            "d73d09f5367245bb",
        ),
    ],
)
def test_identities_are_those_of_every_release(
    folder: Path, mapping: dict[str, Any], settings: SamplingSettings | None, location: str | None, expected: str
) -> None:
    """Frozen: with another value, every stored answer would be sampled again."""
    mapping = {"engine": "transformers"} | mapping
    if "model" in mapping:
        mapping["model"] = mapping["model"].replace("FOLDER", str(folder))
    source = read_source(mapping, folder)
    names = {"org/m": "weights", "trained": "other", f"{folder}/dated": "weights"}
    identity = source.identity(location=location, settings=settings, fingerprint=names.get)
    assert identity is not None
    assert identity[:16] == expected


RECIPE = """
output: out
prompts: {path: questions.jsonl, split: {sft: 1.0}}
target: {model: target}
sources: {mine: {engine: generate, model: source-2b, device: cpu, sampling: {num_samples: 1, max_new_tokens: 3}}}
scorer: {kind: reward-model, model: reward}
sft: {select: {kind: best-of-sources, truncated: keep}, train: {max_steps: 1, use_cpu: true, max_length: 64}}
"""
FUSED = """
import json, sys
from pathlib import Path
from sinterlm import cli
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.recipe.catalogue import catalogue
from sinterlm.recipe.load import load_recipe

plan = plan_fusion(Fusion(load_recipe(Path("recipe.yaml")).recipe)).to_json()
found = {"listed": catalogue("engines")[-1], "plan": plan, "torch": "torch" in sys.modules}
cli.app(["run", "recipe.yaml"], standalone_mode=False)
cli.app(["export", "out", "--format", "trl"], standalone_mode=False)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The output and results of a process whose source uses the worked engine of docs/extending.md."""
    folder = tmp_path_factory.mktemp("engine")
    module = worked_example("src/sinterlm/sampling/generate_engine.py")
    point = {"generate": "my_package.generate_engine:GenerateSource"}
    install(folder / "site", "my_package", {"generate_engine": module}, {"sinterlm.engines": point})
    save_tiny(folder / "target")
    save_tiny(folder / "source-2b", seed=1)
    save_tiny_reward_model(folder / "reward")
    questions = [{"id": f"q{number}", "prompt": f"What is {number} plus 1?"} for number in range(4)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "recipe.yaml").write_text(RECIPE)
    program = f"import sys; sys.path.insert(0, {str(folder / 'site')!r})\n{FUSED}"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder / "out"


def test_an_installed_engine_is_listed_and_planned_without_torch(fused: tuple[dict[str, Any], Path]) -> None:
    """Its GPU hours are those of a model in this process: 4 answers of at most 3 tokens."""
    found, _ = fused
    assert (found["listed"]["name"], found["listed"]["package"]) == ("generate", "my-package")
    assert not found["torch"]
    (sampling,) = (stage for stage in found["plan"]["stages"] if stage["name"] == "sample-sources")
    assert (sampling["calls"], sampling["new_tokens"]) == (4, 12)
    assert sampling["gpu_hours"]["H100"] > 0


@pytest.mark.parametrize("file", ["target-sft/README.md", "report.html", "export/trl/README.md"])
def test_an_installed_engine_is_described_everywhere_as_what_it_is(
    file: str, fused: tuple[dict[str, Any], Path]
) -> None:
    text = (fused[1] / file).read_text()
    assert "source-2b, chat" in text
    assert "recorded answers" not in text
