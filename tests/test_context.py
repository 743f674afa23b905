"""The limit of a model's context, and what happens to prompts and rows beyond it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from sinterlm.chat import encode_prompt
from sinterlm.context import context_length, length_of_plain_positions
from sinterlm.errors import ToleranceError
from sinterlm.models import load_model
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.recipe.load import load_recipe
from sinterlm.store import Store
from tests.test_architectures import (
    GREEDY,
    GROUPED,
    PROMPTS,
    SIZES,
    TOKENIZER,
    generated,
    run,
    save,
    save_type,
    texts_of,
)
from tests.tiny_fusion import write_tiny_fusion

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 1e4}
CONTEXTS: Mapping[str, tuple[Callable[[], PreTrainedConfig], int | None]] = {
    "rotary": (lambda: LlamaConfig(**GROUPED), 512),
    "learned": (lambda: GPT2Config(n_positions=77), 77),
    "none": (lambda: AutoConfig.for_model("mamba"), None),
    "yarn, positions before the stretching": (lambda: rotary(4.0, "yarn", 512), 2048),
    "yarn, positions after it": (lambda: rotary(4.0, "yarn", 128), 512),
    "dynamic": (lambda: rotary(2.0, "dynamic", None), 1024),
    "linear": (lambda: rotary(4.0, "linear", None), 512),
    "Llama 3": (lambda: rotary(8.0, "llama3", 64, low_freq_factor=1.0, high_freq_factor=4.0), 512),
    "sliding window": (lambda: AutoConfig.for_model("mistral", **GROUPED, sliding_window=8), 512),
    "of the language part": (
        lambda: AutoConfig.for_model("gemma3", text_config={**GROUPED, "head_dim": 8}, vision_config={}),
        512,
    ),
}


def rotary(factor: float, rope_type: str, original: int | None, **other: float) -> LlamaConfig:
    extra = {} if original is None else {"original_max_position_embeddings": original}
    rope = {"rope_type": rope_type, "factor": factor, "rope_theta": 1e4, **extra, **other}
    return LlamaConfig(**GROUPED, rope_parameters=rope)


class Bare(torch.nn.Module):
    """A configuration without weights."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config


@pytest.mark.parametrize("name", CONTEXTS)
def test_context_length(name: str) -> None:
    config, expected = CONTEXTS[name]
    assert context_length(Bare(config())) == expected  # type: ignore[arg-type]


def test_robertas_table_of_positions_begins_behind_that_of_padding() -> None:
    config = RobertaConfig(**{**SIZES, "max_position_embeddings": 34, "pad_token_id": 1, "num_hidden_layers": 1})
    model = RobertaForSequenceClassification(config)
    length = context_length(model)
    assert length == 32
    model(input_ids=torch.full((1, length), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, length + 1), 5))


def save_with_positions(folder: Path, model_type: str, num_positions: int) -> Path:
    if model_type == "gpt2":
        config = GPT2Config(
            vocab_size=len(TOKENIZER),
            n_embd=32,
            n_layer=1,
            n_head=4,
            n_positions=num_positions,
            eos_token_id=TOKENIZER.eos_token_id,
            bos_token_id=None,
        )
        return save(folder, GPT2LMHeadModel(config))
    return save_type(folder, model_type, {**GROUPED, "max_position_embeddings": num_positions})


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "diffllama"])
def test_answers_end_where_the_context_does_and_longer_prompts_have_none(model_type: str, tmp_path: Path) -> None:
    """The longest prompt that fits leaves room for one token; a prompt with one token more is not answered."""
    lengths = {prompt.id: len(encode_prompt(TOKENIZER, prompt.messages)) for prompt in PROMPTS}
    whole = run(save_with_positions(tmp_path / "whole", model_type, 256), GREEDY)
    context = lengths["q1"] + 1
    settings = {"q0": "length", "q1": "length", "q2": "prompt-too-long", "q3": "prompt-too-long"}
    found = run(save_with_positions(tmp_path / "short", model_type, context), GREEDY)
    assert {name: answer.finish_reason for (name, _), answer in found.items()} == settings
    for (name, _), answer in found.items():
        assert answer.num_prompt_tokens == lengths[name]
        assert answer.num_tokens == max(0, min(GREEDY.max_new_tokens, context - lengths[name]))
        if model_type != "gpt2":  # which has another table of positions
            assert whole[name, 0].content.startswith(answer.content)
    assert found["q1", 0].num_tokens == 1
    assert found["q3", 1].content == ""


def test_positions_that_depend_on_the_longest_row_are_computed_row_by_row(tmp_path: Path) -> None:
    """A text longer than in pre-training changes LongRoPE's positions; it must not change those of its neighbours."""
    original = len(encode_prompt(TOKENIZER, PROMPTS[1].messages)) + GREEDY.max_new_tokens
    settings = {
        **GROUPED,
        "original_max_position_embeddings": original,
        "rope_parameters": {**LONGROPE, "original_max_position_embeddings": original},
    }
    folder = save_type(tmp_path, "phi3", settings)
    assert length_of_plain_positions(load_model(str(folder)).config) == original
    found = run(folder, GREEDY)
    assert texts_of(found) == generated(folder)


# --- in a run --------------------------------------------------------------------------------------------------------


def fuse_sources(folder: Path, *questions: str) -> dict[str, float]:
    """Sample and score the sources of a tiny recipe with some more questions; returns the sampling's counts."""
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        write_tiny_fusion(folder, num_questions=16)
        with (folder / "questions.jsonl").open("a") as file:
            for number, question in enumerate(questions):
                file.write(json.dumps({"id": f"more-{number}", "prompt": question, "answers": ["x"]}) + "\n")
    overrides = ["prompts.split={held_out: 2, sft: 0.5, preference: rest}"]
    run_fusion(Fusion(load_recipe(recipe, overrides).recipe), SilentReporter(), until="score-sources")
    with Store(folder / "run" / "store.sqlite", read_only=True) as store:
        return dict(store.finished_stages(".")["sample-sources"].counts)


def test_a_prompt_that_is_too_long_is_dropped_once_and_the_run_goes_on(tmp_path: Path) -> None:
    """Few-shot examples count. Rerunning the stage neither asks again nor forgets what was dropped."""
    questions = ["why? " * 600, "why? " * 96]
    counts = fuse_sources(tmp_path, *questions)
    with Store(tmp_path / "run" / "store.sqlite") as store:
        dropped = [drop for drop in store.dropped(".") if drop.reason == "prompt-too-long"]
        store.forget_stage(".", "sample-sources")
    asked = [(drop.subject, drop.detail.rpartition(" as ")[2]) for drop in dropped]
    assert sorted(asked) == [("more-0", "shots is asked"), ("more-0", "tiny is asked"), ("more-1", "shots is asked")]
    assert all(int(drop.detail.split()[0]) > 512 and drop.stage == "sample-sources" for drop in dropped)
    again = fuse_sources(tmp_path)
    assert (again["tiny sampled now"], again["shots sampled now"]) == (0, 0)
    assert (counts["tiny answers"], again["tiny answers"]) == (2 * 15, 2 * 15)
    with Store(tmp_path / "run" / "store.sqlite", read_only=True) as store:
        assert [drop for drop in store.dropped(".") if drop.reason == "prompt-too-long"] == dropped


def test_a_source_that_can_read_no_prompt_is_an_error(tmp_path: Path) -> None:
    write_tiny_fusion(tmp_path, num_questions=16)
    path = tmp_path / "models" / "source" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 16}))
    with pytest.raises(
        ToleranceError, match=r"model tiny: none of the 14 prompts can be asked; the first, .*: prompt-too-long, "
    ):
        fuse_sources(tmp_path)


def test_prompts_that_a_model_refuses_are_dropped_once_and_the_others_answered(tmp_path: Path) -> None:
    """With the chat template of one source, and with the few-shot prompt of the other, which accepts one question."""
    write_tiny_fusion(tmp_path, num_questions=16)
    path = next((tmp_path / "models" / "source").glob("chat_template.jinja"))
    refusal = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
    path.write_text(refusal + path.read_text())
    turns = [{"role": role, "content": "why?"} for role in ("user", "assistant", "user")]
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write(json.dumps({"id": "turns", "prompt": turns, "answers": ["x"]}) + "\n")
    counts = fuse_sources(tmp_path)
    with Store(tmp_path / "run" / "store.sqlite") as store:
        dropped = {drop.detail.split(":")[0]: drop for drop in store.dropped(".") if drop.reason == "prompt-refused"}
        store.forget_stage(".", "sample-sources")
    assert {drop.subject for drop in dropped.values()} == {"turns"}
    assert "one turn only" in dropped["tiny"].detail
    assert "a few-shot prompt holds one question" in dropped["shots"].detail
    again = fuse_sources(tmp_path)
    assert (again["tiny sampled now"], again["shots sampled now"]) == (0, 0)
    assert counts["tiny answers"] == again["tiny answers"] == 2 * 14
    with Store(tmp_path / "run" / "store.sqlite", read_only=True) as store:
        assert sum(drop.reason == "prompt-refused" for drop in store.dropped(".")) == 2


def test_a_source_that_refuses_every_prompt_is_an_error(tmp_path: Path) -> None:
    write_tiny_fusion(tmp_path, num_questions=16)
    path = next((tmp_path / "models" / "source").glob("chat_template.jinja"))
    path.write_text("{% if ' is ' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + path.read_text())
    with pytest.raises(ToleranceError, match=r"model tiny: none of the 14 prompts can be asked.* prompt-refused, .*no"):
        fuse_sources(tmp_path)
