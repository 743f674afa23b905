"""Tiny models of many architectures, built from configs: the engine gives the same text as Transformers' generate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sinterlm.chat import encode_prompt
from sinterlm.errors import InputError
from sinterlm.records import Message, Prompt, SamplingSettings
from sinterlm.sampling.protocol import Generation, Item
from sinterlm.sampling.transformers_engine import TransformersEngine
from tests.tiny import build_tokenizer

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=10, seed=0)
SAMPLED = SamplingSettings(temperature=0.9, top_p=0.8, max_new_tokens=10, seed=3)
TEXTS = ("x", "What is the capital of France?", "What is the capital of the model, and why?", "cold " * 20)
PROMPTS = [Prompt(f"q{number}", (Message("user", text),)) for number, text in enumerate(TEXTS)]
ITEMS = [Item(prompt, index) for prompt in PROMPTS for index in range(2)]

TOKENIZER = build_tokenizer("chatml")
SIZES: Mapping[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
BOTH_LAYERS = ["sliding_attention", "full_attention"] * 2


class Case(NamedTuple):
    """A model type with its settings, and whether the part that prompts share is computed once."""

    model_type: str
    settings: Mapping[str, Any]
    shares: bool = True


CASES = {
    "the quickstart's SmolLM2": Case("llama", GROUPED),
    "the quickstart's Gemma": Case(
        "gemma3_text",
        {
            **GROUPED,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 6,
            "layer_types": BOTH_LAYERS,
        },
    ),
    "latents in the cache": Case("deepseek_v3", LATENT),
    "latents of version 2": Case("deepseek_v2", LATENT),
    "keys of earlier layers, Gemma 3n": Case(
        "gemma3n_text",
        {
            **GROUPED,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": len(TOKENIZER),
            "num_kv_shared_layers": 2,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "sliding_window": 6,
            "layer_types": BOTH_LAYERS,
            "activation_sparsity_pattern": [0.0] * 4,
        },
    ),
    "keys of earlier layers, Gemma 4": Case(
        "gemma4_text",
        {
            **GROUPED,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": len(TOKENIZER),
            "num_kv_shared_layers": 2,
            "sliding_window": 6,
            "layer_types": BOTH_LAYERS,
        },
    ),
    "a mixture of experts": Case("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "differences of two attentions": Case("diffllama", GROUPED, shares=False),
    "a mask of its own": Case("doge", GROUPED, shares=False),
    "sinks": Case(
        "gpt_oss",
        {**GROUPED, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": None},
        shares=False,
    ),
    "biases by distance": Case("bloom", {"vocab_size": len(TOKENIZER), "hidden_size": 32, "n_head": 4}, shares=False),
    "a state in place of keys": Case(
        "mamba",
        {"vocab_size": len(TOKENIZER), "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1},
        shares=False,
    ),
    "no causal attention": Case("bert", {**SIZES, "is_decoder": False}, shares=False),
}


def save(folder: Path, model: PreTrainedModel) -> Path:
    """Its weights are moved far from their initial values, so the output depends on the whole input."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def save_type(folder: Path, model_type: str, settings: Mapping[str, Any]) -> Path:
    torch.manual_seed(0)
    return save(folder, AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)))


def run(
    folder: Path, settings: SamplingSettings, items: list[Item] | None = None, **other: Any
) -> dict[tuple[str, int], Generation]:
    engine = TransformersEngine(str(folder), few_shot=None, system=None, settings=settings, **other)
    answers = [answer for batch in engine.sample(engine.batches(items or ITEMS)) for answer in batch]
    return {(answer.prompt_id, answer.index): answer for answer in answers}


def generated(folder: Path) -> dict[str, str]:
    """Transformers' greedy answers, by prompt."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    texts = {}
    for prompt in PROMPTS:
        encoded = torch.tensor([encode_prompt(TOKENIZER, prompt.messages)])
        output = model.generate(
            encoded,
            attention_mask=torch.ones_like(encoded),
            do_sample=False,
            max_new_tokens=GREEDY.max_new_tokens,
            eos_token_id=TOKENIZER.eos_token_id,
            pad_token_id=0,
        )
        texts[prompt.id] = str(TOKENIZER.decode(output[0, encoded.shape[1] :], skip_special_tokens=True)).strip()
    return texts


def texts_of(found: Mapping[tuple[str, int], Generation], index: int = 0) -> dict[str, str]:
    return {prompt.id: found[prompt.id, index].content for prompt in PROMPTS}


@pytest.mark.parametrize("name", CASES)
def test_greedy_text_is_that_of_generate(name: str, tmp_path: Path) -> None:
    case, placements = CASES[name], list[str]()
    folder = save_type(tmp_path, case.model_type, case.settings)
    found = run(folder, GREEDY, on_loaded=placements.append)
    assert texts_of(found) == texts_of(found, index=1) == generated(folder)
    assert placements[0].startswith("cpu, float32")
    assert ("slow" not in placements[0]) == case.shares


def test_both_ways_draw_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling, with penalties and answers that end at different tokens: only the speed differs."""
    folder = save(tmp_path, LlamaForCausalLM(LlamaConfig(**GROUPED)))
    settings = replace(SAMPLED, repetition_penalty=1.3)
    shared = run(folder, settings)
    monkeypatch.setattr("sinterlm.sampling.sharing.TOLERANCES", {torch.float32: -1.0})
    placements: list[str] = []
    assert run(folder, settings, on_loaded=placements.append) == shared
    assert "slow" in placements[0]
    assert run(folder, settings, batch_tokens=1) == shared  # a sample at a time


def test_a_model_that_attends_otherwise_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits decide, whatever its configuration says."""
    folder = save(tmp_path, LlamaForCausalLM(LlamaConfig(**GROUPED)))
    monkeypatch.setattr("sinterlm.attention.rows.NewTokens.bias", see_all)
    placements: list[str] = []
    found = run(folder, GREEDY, on_loaded=placements.append)
    assert "its logits would differ" in placements[0]
    assert texts_of(found) == generated(folder)


def see_all(new_tokens: Any, window: int | None) -> torch.Tensor:
    """A bias that hides no key, not even those of later tokens."""
    num_keys = len(new_tokens.prefix.tokens) + new_tokens.positions_BS.shape[1]
    return torch.zeros((*new_tokens.positions_BT.shape, num_keys))


def test_a_model_that_transformers_cannot_generate_with_is_refused(tmp_path: Path) -> None:
    """Its cache has no length, because none of its layers has attention."""
    layers = {"num_hidden_layers": 2, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 4}
    folder = save_type(tmp_path, "bamba", {**GROUPED, **layers, "attn_layer_indices": []})
    with pytest.raises(InputError, match=r"Transformers cannot sample BambaForCausalLM .*use the engine `recorded`"):
        run(folder, GREEDY)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_logits_that_are_no_numbers_are_an_error(dtype: str, tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**GROUPED))
    model.lm_head.weight.data[7] = torch.nan if dtype == "float32" else 1e6  # outside the range of float16
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    advice = "its weights may be damaged" if dtype == "float32" else "sample it with dtype: float32"
    with pytest.raises(InputError, match=rf"model {tmp_path}: logits are not finite in {dtype}; {advice}"):
        run(tmp_path, GREEDY, dtype=dtype)
