"""Tiny real models and tokenizers, built from config in memory: no download, a few hundred kilobytes each.

Each family has the special tokens and the form of chat template of its namesake. So a test that passes on all of them
covers a default system prompt (ChatML), trimmed content and a BOS that the template writes (Llama 3, Gemma), a refused
system role (Gemma, Mistral), and an end-of-turn that is the eos (ChatML, Llama 3, Mistral) or not (Gemma).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a tiny model.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)

CORPUS = (
    "What is the capital of France? Paris is the capital of France.",
    "Answer with one word. The opposite of hot is cold. Two plus three is five.",
    "Sources and target, chosen and rejected: the model learns from answers to questions.",
    "user assistant system model",
)
VOCABULARY_SIZE = 384


@dataclass(frozen=True)
class Family:
    """Special tokens and template of one family, and the ``bos`` that its tokenizer adds to raw text, if any."""

    chat_template: str
    eos: str
    pad: str
    bos: str | None = None
    others: tuple[str, ...] = ()


_FAMILIES = {
    "chatml": Family(CHATML_TEMPLATE, eos="<|im_end|>", pad="<|endoftext|>", others=("<|im_start|>",)),
    "llama3": Family(
        LLAMA3_TEMPLATE,
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        bos="<|begin_of_text|>",
        others=("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "gemma": Family(GEMMA_TEMPLATE, eos="<eos>", pad="<pad>", bos="<bos>", others=("<start_of_turn>", "<end_of_turn>")),
    "mistral": Family(MISTRAL_TEMPLATE, eos="</s>", pad="<pad>", bos="<s>", others=("[INST]", "[/INST]")),
}
FAMILIES = tuple(_FAMILIES)


@cache
def _train_bpe(special_tokens: tuple[str, ...]) -> str:
    """A byte-level BPE as JSON, learnt from the corpus; it can encode any text."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(special_tokens),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def build_tokenizer(family: str = "chatml") -> PreTrainedTokenizerFast:
    """A small real byte-level BPE tokenizer with the family's special tokens and chat template."""
    tokens = _FAMILIES[family]
    specials = tuple(token for token in (tokens.pad, tokens.eos, tokens.bos, *tokens.others) if token)
    backend = Tokenizer.from_str(_train_bpe(specials))
    if tokens.bos:
        backend.post_processor = TemplateProcessing(
            single=f"{tokens.bos} $A", special_tokens=[(tokens.bos, backend.token_to_id(tokens.bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens.bos,
        eos_token=tokens.eos,
        pad_token=tokens.pad,
        additional_special_tokens=list(tokens.others),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = tokens.chat_template
    return tokenizer


def _build_config(tokenizer: PreTrainedTokenizerFast, *, hidden_size: int = 32, num_layers: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, hidden_size: int = 32, num_layers: int = 2
) -> LlamaForCausalLM:
    """A randomly initialised float32 Llama in eval mode; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_build_config(tokenizer, hidden_size=hidden_size, num_layers=num_layers))
    model.eval()
    return model


def save_tiny(
    folder: Path | str, *, family: str = "chatml", seed: int = 0, hidden_size: int = 32, num_layers: int = 2
) -> Path:
    """Write a tiny causal model and its tokenizer to ``folder``; the Auto classes can load them."""
    tokenizer = build_tokenizer(family)
    build_model(tokenizer, seed=seed, hidden_size=hidden_size, num_layers=num_layers).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def save_tiny_reward_model(
    folder: Path | str, *, family: str = "llama3", seed: int = 0, hidden_size: int = 32, num_layers: int = 2
) -> Path:
    """Write a tiny sequence classifier with one output and its tokenizer to ``folder``."""
    tokenizer = build_tokenizer(family)
    config = _build_config(tokenizer, hidden_size=hidden_size, num_layers=num_layers)
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
