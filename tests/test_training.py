"""Training on tiny real models: log-probabilities, the loss of a step, resuming, and a run's files."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sinterlm import FusionConfig, FusionTrainer, chat
from sinterlm.chat import EncodedExample, EncodedText, encode_example
from sinterlm.errors import InputError, SinterError, ToleranceError
from sinterlm.objectives.named import OBJECTIVES, resolve_objective
from sinterlm.records import Message, RowResponse, TrainingRow
from sinterlm.template import TemplateOptions
from sinterlm.training import encoding, logprobs
from sinterlm.training.batch import RowCollator
from sinterlm.training.card import CardDetails, render_card, source_shares
from sinterlm.training.check import check_arguments
from sinterlm.training.checkpoints import CheckpointManifest, newest_whole_checkpoint, write_manifest
from sinterlm.training.encoding import EncodedRow, encode_rows
from sinterlm.training.logprobs import attach_response_logps, response_logps
from sinterlm.training.packing import Layout, one_to_a_line, shared
from sinterlm.training.reference import ReferenceCache, with_reference
from sinterlm.training.result import TrainingResult
from sinterlm.training.sequence_logps import sequence_logps
from sinterlm.training.train import METRICS, train
from tests.tiny import build_model, build_tokenizer, save_tiny

VOCABULARY = 97
CPU: Mapping[str, Any] = {"use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-3}


def quadruple(index: int, **changes: Any) -> TrainingRow:
    """A WRPO row whose answers' lengths differ between rows."""
    return TrainingRow(
        f"p{index}",
        (Message("user", f"What is the opposite of {'hot ' * (index % 3)}{index}?"),),
        (
            RowResponse(f"The source says {index * 7}.", "chosen_source", source="gemma"),
            RowResponse(f"cold {'five ' * (index % 4)}", "chosen_target", source="target-sft"),
            RowResponse(f"capital of {index}", "rejected", source="target-sft"),
        ),
        **changes,
    )


def answer(index: int, **changes: Any) -> TrainingRow:
    """An SFT row."""
    content = f"cold {'five ' * (index % 5)}"
    return TrainingRow(
        f"p{index}", (Message("user", f"What is {index}?"),), (RowResponse(content, source="gemma"),), **changes
    )


ROWS: Mapping[str, Sequence[TrainingRow]] = {
    "sft": [answer(index, weight=0.5 + index % 3) for index in range(16)],
    "wrpo": [quadruple(index, weight=0.5 + index % 3) for index in range(16)],
}


def random_rows(seed: int, *, num_rows: int = 4, num_responses: int = 3) -> list[list[EncodedExample]]:
    """Token ids whose prompts share their first tokens."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (), generator=generator))
        return torch.randint(VOCABULARY, (length,), generator=generator).tolist()

    system = tokens(1, 5)
    prompts = [system + tokens(1, 8) for _ in range(num_rows)]
    return [[EncodedExample(prompt, tokens(1, 6)) for _ in range(num_responses)] for prompt in prompts]


def tiny_config(kind: Any, **extra: Any) -> Any:
    return kind(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=128,
        pad_token_id=0,
        **extra,
    )


def llama(**extra: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = LlamaForCausalLM(tiny_config(LlamaConfig, **extra)).eval()
    return model


MODELS: Mapping[str, Any] = {
    "llama": lambda: LlamaForCausalLM(tiny_config(LlamaConfig)),
    "soft-capped": lambda: Gemma2ForCausalLM(
        tiny_config(Gemma2Config, final_logit_softcapping=0.5, attn_logit_softcapping=None)
    ),
    "sliding window": lambda: Gemma3ForCausalLM(tiny_config(Gemma3TextConfig, sliding_window=64)),
    "scaled": lambda: CohereForCausalLM(tiny_config(CohereConfig, logit_scale=0.25)),
    "divided": lambda: GraniteForCausalLM(tiny_config(GraniteConfig, logits_scaling=8.0)),
}


def logps_from_all_logits(model: PreTrainedModel, example: EncodedExample) -> float:
    """Straight from the definition: the whole log-softmax of one unpadded sequence, in float64."""
    ids = torch.tensor([example.prompt_ids + example.response_ids])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].double().log_softmax(-1)
    first = len(example.prompt_ids)
    positions = torch.arange(first - 1, first - 1 + len(example.response_ids))
    return float(logps[positions, torch.tensor(example.response_ids)].sum())


# --- log-probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_logits", [VOCABULARY, 5 * VOCABULARY, 2**26])
@pytest.mark.parametrize("name", MODELS)
def test_logps_are_the_models_own(name: str, chunk_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Including soft-capping and scaling, for every layout and chunk size."""
    monkeypatch.setattr(logprobs, "MAX_CHUNK_LOGITS", chunk_logits)
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    rows = random_rows(1)
    examples = [example for row in rows for example in row]
    expected = [logps_from_all_logits(model, example) for example in examples]
    found = sequence_logps(model, examples, batch_size=3)
    assert [response.logp for response in found] == pytest.approx(expected, rel=1e-5)
    assert [response.num_tokens for response in found] == [len(example.response_ids) for example in examples]
    assert found[0].mean == pytest.approx(expected[0] / len(examples[0].response_ids), rel=1e-5)


@pytest.mark.parametrize("layout", [one_to_a_line, shared])
@pytest.mark.parametrize("chunk_logits", [3 * VOCABULARY, 2**26])
def test_gradients_do_not_depend_on_layout_or_chunks(
    layout: Layout, chunk_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with one sequence at a time and all logits at once."""
    monkeypatch.setattr(logprobs, "MAX_CHUNK_LOGITS", chunk_logits)
    rows = random_rows(2)
    weights = torch.linspace(-1, 1, 12)
    reference, model = llama(), llama()
    for weight, example in zip(weights, (example for row in rows for example in row), strict=True):
        ids = torch.tensor([example.prompt_ids + example.response_ids])
        logps = reference(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1].log_softmax(-1)
        (weight * logps.gather(-1, torch.tensor(example.response_ids)[:, None]).sum()).backward()
    (weights * response_logps(model, **layout(rows, pad_token_id=0))).sum().backward()
    for own, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert own.grad is not None
        assert expected.grad is not None
        assert torch.allclose(own.grad, expected.grad, rtol=1e-4, atol=1e-6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(seed=st.integers(0, 10_000), num_rows=st.integers(1, 5), num_responses=st.integers(1, 4))
def test_layouts_agree(seed: int, num_rows: int, num_responses: int, tiny_llama: PreTrainedModel) -> None:
    rows = random_rows(seed, num_rows=num_rows, num_responses=num_responses)
    with torch.no_grad():
        plain = response_logps(tiny_llama, **one_to_a_line(rows, pad_token_id=0))
        packed = response_logps(tiny_llama, **shared(rows, pad_token_id=5))
    assert torch.allclose(plain, packed, rtol=1e-5, atol=1e-5)


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    return llama()


def test_padding_and_its_tokens_change_nothing(tiny_llama: PreTrainedModel) -> None:
    """A long neighbour pads a row; the padding token does not matter."""
    row = [EncodedExample([1, 2, 3], [4, 5])]
    neighbour = [EncodedExample([7] * 20, [8] * 10)]
    with torch.no_grad():
        alone = response_logps(tiny_llama, **one_to_a_line([row], pad_token_id=0))
        padded = [response_logps(tiny_llama, **one_to_a_line([row, neighbour], pad_token_id=pad)) for pad in (0, 9)]
    assert alone[0].item() == pytest.approx(padded[0][0].item(), rel=1e-5)
    assert padded[0].tolist() == padded[1].tolist()


def test_the_prompt_is_not_scored(tiny_llama: PreTrainedModel) -> None:
    """The last prompt token only matters as context: its own probability is not in the sum."""
    with torch.no_grad():
        batch = one_to_a_line([[EncodedExample([1, 2], [3])]], pad_token_id=0)
        logits = tiny_llama(input_ids=torch.tensor([[1, 2, 3]])).logits[0].log_softmax(-1)
        assert response_logps(tiny_llama, **batch).item() == pytest.approx(logits[1, 3].item(), rel=1e-5)


def test_sequence_logps_keeps_the_mode_and_the_order(tiny_llama: PreTrainedModel) -> None:
    examples = [row[0] for row in random_rows(5, num_rows=7)]
    backwards = sequence_logps(tiny_llama, examples[::-1])[::-1]
    for left, right in zip(sequence_logps(tiny_llama, examples), backwards, strict=True):
        assert left.logp == pytest.approx(right.logp, rel=1e-5)
    assert not tiny_llama.training
    assert sequence_logps(tiny_llama, []) == []


# --- rows to batches -------------------------------------------------------------------------------------------------


def test_a_prompt_is_encoded_once_for_all_its_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    render_prompt = chat.render_prompt

    def noting(tokenizer: Any, messages: Sequence[Message], options: TemplateOptions) -> EncodedText:
        seen.append(messages)
        return render_prompt(tokenizer, messages, options)

    monkeypatch.setattr(encoding, "render_prompt", noting)
    encode_rows(ROWS["wrpo"], build_tokenizer(), objective=resolve_objective("wrpo"), max_length=512)
    assert len(seen) == len(ROWS["wrpo"])


def test_encoded_rows_hold_what_chat_encodes() -> None:
    tokenizer = build_tokenizer()
    row = quadruple(1)
    encoded = encode_rows([row], tokenizer, objective=resolve_objective("wrpo"), max_length=512).rows[0]
    examples = [encode_example(tokenizer, row.messages, response.content) for response in row.responses]
    assert encoded["input_ids"] == sum((example.response_ids for example in examples), examples[0].prompt_ids)
    assert encoded["num_response_tokens"] == [len(example.response_ids) for example in examples]


def test_prompts_are_cut_at_their_beginning_before_responses_at_their_end() -> None:
    """First the prompt is cut, down to 20 tokens, then each answer that still does not fit, and no other."""
    tokenizer = build_tokenizer("llama3")
    messages = (Message("user", f"{'hot ' * 100}What is the opposite?"),)
    row = TrainingRow("p", messages, (RowResponse("cold " * 20, "chosen"), RowResponse("five", "rejected")))
    dpo = resolve_objective("dpo")
    examples = [encode_example(tokenizer, messages, response.content) for response in row.responses]
    prompt, (long, short) = examples[0].prompt_ids, (example.response_ids for example in examples)
    for max_length, num_kept in ((20 + len(long) + 5, 25), (20 + len(long), 20), (20 + len(long) - 3, 20)):
        encoded = encode_rows([row], tokenizer, objective=dpo, max_length=max_length, max_prompt_length=20)
        (cut,) = encoded.rows
        assert cut["input_ids"][: cut["num_prompt_tokens"]] == [tokenizer.bos_token_id, *prompt[-num_kept + 1 :]]
        assert cut["input_ids"][cut["num_prompt_tokens"] :] == [*long[: max_length - num_kept], *short]
        assert (encoded.num_cut, encoded.num_cut_prompts) == (int(max_length < 20 + len(long)), 1)
        assert encoded.dropped == []
    whole = encode_rows([row], tokenizer, objective=dpo, max_length=len(prompt) + len(long), max_prompt_length=20)
    assert (whole.num_cut, whole.num_cut_prompts, whole.rows[0]["num_prompt_tokens"]) == (0, 0, len(prompt))


def test_the_prompt_keeps_half_of_the_length_by_default() -> None:
    tokenizer = build_tokenizer()
    row = TrainingRow("p", (Message("user", "hot " * 100),), (RowResponse("cold " * 100),))
    (cut,) = encode_rows([row], tokenizer, objective=resolve_objective("sft"), max_length=40).rows
    assert (cut["num_prompt_tokens"], cut["num_response_tokens"]) == (20, [20])


def test_pairs_that_cutting_makes_the_same_are_dropped() -> None:
    """Every answer of a fusion counts separately: one that differs elsewhere keeps the row."""
    tokenizer = build_tokenizer()
    messages = (Message("user", "hot"),)
    responses = (RowResponse(f"{'cold ' * 30}a", "chosen"), RowResponse(f"{'cold ' * 30}b", "rejected"))
    room = len(encode_example(tokenizer, messages, "cold").prompt_ids) + 8
    rows = [
        TrainingRow("alike", messages, responses),
        TrainingRow("other", messages, (RowResponse("hot", "chosen"), responses[1])),
    ]
    dpo = resolve_objective("dpo")
    encoded = encode_rows(rows, tokenizer, objective=dpo, max_length=room, max_prompt_length=room - 8)
    assert [row["name"] for row in encoded.rows] == ["row 2 (prompt 'other')"]
    assert [(drop.subject, drop.reason) for drop in encoded.dropped] == [("alike", "answers-alike-after-cutting")]
    assert encoded.num_cut == 1
    assert encode_rows(rows, tokenizer, objective=dpo, max_length=512).dropped == []


@pytest.mark.parametrize(
    ("objective", "texts", "is_kept"),
    [
        ("dpo", {"chosen": "cold", "rejected": "cold"}, False),
        ("ipo", {"chosen": "cold", "rejected": "cold"}, False),
        ("simpo", {"chosen": "cold", "rejected": " cold"}, False),  # this template trims: the same tokens
        ("dpo", {"chosen": "cold", "rejected": "Cold"}, True),
        ("wrpo", {"chosen_source": "cold", "chosen_target": "hot", "rejected": "hot"}, False),
        ("wrpo", {"chosen_source": "cold", "chosen_target": "cold", "rejected": "cold"}, False),
        ("wrpo", {"chosen_source": "cold", "chosen_target": "cold", "rejected": "hot"}, True),
        ("wrpo", {"chosen_source": "hot", "chosen_target": "cold", "rejected": "hot"}, True),
        ("fusepo", {"chosen": "cold", "rejected": "cold"}, False),
        ("sft", {"chosen": "cold"}, True),
    ],
    ids=str,
)
def test_rows_of_equal_answers_are_dropped(objective: str, texts: Mapping[Any, str], is_kept: bool) -> None:
    """Nothing is cut here. The loss would be ln 2 (or 1 / (2 tau) squared), without a gradient."""
    responses = tuple(RowResponse(text, role, weight=1.0, group="gemma") for role, text in texts.items())
    if objective != "fusepo":
        responses = tuple(replace(response, weight=None) for response in responses)
    rows = [TrainingRow("p", (Message("user", "What is hot?"),), responses)]
    resolved = resolve_objective(objective)
    encoded = encode_rows(rows, build_tokenizer("llama3"), objective=resolved, max_length=512)
    assert (len(encoded.rows), [drop.reason for drop in encoded.dropped]) == (
        (1, []) if is_kept else (0, ["answers-alike"])
    )


def test_a_row_goes_without_a_pair_of_equal_answers_and_its_gradient_stays() -> None:
    """The loss of such a pair is a constant (ln 2 times its weight), so the others must keep their weights."""
    texts = {"gemma": ("cold", "cold "), "qwen": ("cold", "hot"), "llama": ("cool", "warm")}
    weights = {"gemma": 0.5, "qwen": 0.3, "llama": 0.2}
    responses = tuple(
        RowResponse(text, role, group=group, weight=weights[group])  # type: ignore[arg-type]
        for group, pair in texts.items()
        for role, text in zip(("chosen", "rejected"), pair, strict=True)
    )
    row, fusepo = TrainingRow("p", (Message("user", "What is hot?"),), responses), resolve_objective("fusepo")
    encoded = encode_rows([row], build_tokenizer("llama3"), objective=fusepo, max_length=512)
    (without,) = encode_rows(
        [replace(row, responses=responses[2:])], build_tokenizer("llama3"), objective=fusepo, max_length=512
    ).rows
    assert encoded.rows == [without]
    assert (without["weights"], without["groups"]) == ([0.3, 0.3, 0.2, 0.2], [0, 0, 1, 1])
    assert [drop.reason for drop in encoded.dropped] == ["pair-alike"]
    assert encoded.dropped[0].detail == "row 1, 1 of 3 pairs"


def test_truncated_responses_get_no_end_of_turn() -> None:
    tokenizer = build_tokenizer()
    messages = (Message("user", "What is hot?"),)
    rows = [TrainingRow("p", messages, (RowResponse("cold", truncated=cut),)) for cut in (True, False)]
    cut, whole = encode_rows(rows, tokenizer, objective=resolve_objective("sft"), max_length=512).rows
    assert tokenizer.eos_token_id not in cut["input_ids"][cut["num_prompt_tokens"] :]
    assert whole["input_ids"][whole["num_prompt_tokens"] :].count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    ("row", "objective", "message"),
    [
        (answer(0), "dpo", "'p0'.: 0 responses with the role 'chosen'.*rows that were selected for 'dpo'"),
        (TrainingRow("p", (Message("user", "x"),), ()), "sft", "no response"),
        (TrainingRow("p", (Message("user", "x"),), (RowResponse("a"), RowResponse("b"))), "sft", "2 responses"),
        (TrainingRow("p", (Message("user", "x"),), (RowResponse(" \n"),)), "sft", "'p'.*empty"),
        (answer(0, weight=-1.0), "sft", "'p0'.: weight is -1.0; expected a finite number, at least 0"),
        (answer(0, weight=math.nan), "sft", "weight is nan"),
        (answer(0, weight=math.inf), "sft", "weight is inf"),
        (
            TrainingRow("p", (Message("user", "x"),), (RowResponse("a", weight=0.5),)),
            "sft",
            "'p'.: a response has the weight 0.5.*give the row a `weight`",
        ),
    ],
)
def test_rows_of_the_wrong_shape_are_refused_by_name(row: TrainingRow, objective: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_rows([row], build_tokenizer(), objective=resolve_objective(objective), max_length=512)


FUSED = [
    TrainingRow(
        f"p{row}",
        (Message("user", f"What is {row}?"),),
        (
            RowResponse(f"cold {row}", "chosen", "gemma", score=3.0, weight=0.75),
            RowResponse("five", "rejected", "gemma", score=1.0, weight=0.75),
            RowResponse("hot", "chosen", "qwen", score=2.0, weight=0.25),
            RowResponse("a", "rejected", "qwen", score=0.5, weight=0.25),
        ),
        weight=2.0 - row,
    )
    for row in range(2)
]


def test_a_batch_of_many_responses() -> None:
    """Pairs, weights, scores and groups stay with their responses; groups are numbered across the batch."""
    rows = encode_rows(FUSED, build_tokenizer(), objective=resolve_objective("fusepo"), max_length=512).rows
    collator = RowCollator(layout=one_to_a_line, pad_token_id=0, counts="rows", chunk_tokens=10_000)
    (batch,) = collator(rows)["chunks"]
    assert batch["rows"].tolist() == [0] * 4 + [1] * 4
    assert {role: index.tolist() for role, index in batch["members"].items()} == {
        "chosen": [0, 2, 4, 6],
        "rejected": [1, 3, 5, 7],
    }
    assert batch["groups"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch["weights"] is not None
    assert batch["weights"].tolist() == [0.75, 0.75, 0.25, 0.25] * 2
    assert (batch["scores"], batch["reference_logps"]) == (None, None)
    assert batch["row_weights"].tolist() == batch["row_counts"].tolist() == [2.0, 1.0]
    rows = encode_rows(FUSED, build_tokenizer(), objective=resolve_objective("fusepo-rloo"), max_length=512).rows
    (batch,) = collator(rows)["chunks"]
    assert batch["scores"] is not None
    assert batch["scores"].tolist() == [3.0, 1.0, 2.0, 0.5] * 2
    assert batch["members"] == {}


@pytest.mark.parametrize(("chunk_tokens", "num_rows"), [(10_000, [5]), (30, [3, 2]), (1, [1] * 5)])
def test_chunks_hold_whole_rows_in_order(chunk_tokens: int, num_rows: list[int]) -> None:
    """Five rows of 10 tokens: all at once, in two halves, or one by one if no row fits."""
    row: Any = {"input_ids": [1] * 10, "num_prompt_tokens": 2, "num_response_tokens": [8], "reference_logps": []}
    row |= {"weight": 1.0, "pairs": [{"chosen": 0}], "weights": None, "scores": None, "groups": [0]}
    rows: list[Any] = [{**row, "name": f"p{index}"} for index in range(5)]
    collator = RowCollator(layout=one_to_a_line, pad_token_id=0, counts="rows", chunk_tokens=chunk_tokens)
    chunks = collator(rows)["chunks"]
    assert sorted(len(chunk["names"]) for chunk in chunks) == sorted(num_rows)
    assert [name for chunk in chunks for name in chunk["names"]] == [f"p{index}" for index in range(5)]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("wrpo", {}, [2.0, 0.5]),
        ("fusesft", {"average_logps": True}, [2.0, 0.5]),
        ("sft", {}, [2.0 * 5, 0.5 * 3]),
        ("fusesft", {}, [2.0 * (0.25 * 5), 0.5 * (0.75 * 3)]),
    ],
)
def test_what_a_row_counts(name: str, settings: dict[str, Any], expected: list[float]) -> None:
    """A row's own weight, or that times the weighted number of its tokens."""
    weighed = name == "fusesft"
    row: Any = {"input_ids": [1] * 7, "num_prompt_tokens": 2, "reference_logps": [], "name": "p"}
    row |= {"pairs": [], "scores": None, "groups": [0]}
    rows: list[Any] = [
        {**row, "weight": 2.0, "num_response_tokens": [5], "weights": [0.25] if weighed else None},
        {**row, "weight": 0.5, "num_response_tokens": [3], "weights": [0.75] if weighed else None},
    ]
    counts = resolve_objective(name, settings).counts
    collator = RowCollator(layout=one_to_a_line, pad_token_id=0, counts=counts, chunk_tokens=1000)
    (batch,) = collator(rows)["chunks"]
    assert batch["row_counts"].tolist() == expected


# --- the loss of a step ----------------------------------------------------------------------------------------------


def history(
    objective: str, rows: Sequence[TrainingRow], folder: Path, model: PreTrainedModel | None = None, **arguments: Any
) -> list[dict[str, float]]:
    tokenizer = build_tokenizer()
    config = FusionConfig(
        output_dir=str(folder), objective=objective, save_strategy="no", **{**CPU, "num_train_epochs": 1, **arguments}
    )
    trainer = FusionTrainer(model or build_model(tokenizer), config, rows, tokenizer)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("objective", ROWS)
def test_accumulation_does_not_change_the_step(objective: str, tmp_path: Path) -> None:
    """8 x 1, 4 x 2 and 1 x 8, with rows of different weights and lengths, and a last step that is not full."""
    rows = ROWS[objective][:13]
    curves = [
        history(objective, rows, tmp_path, per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps)
        for steps in (1, 2, 8)
    ]
    for other in curves[1:]:
        for left, right in zip(curves[0], other, strict=True):
            for name in {*left} - {"epoch", "step_seconds", "tokens_per_second"}:
                assert right[name] == pytest.approx(left[name], rel=1e-4, abs=1e-5), name


def test_sft_step_is_the_weighted_mean_over_answer_tokens(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    examples = [encode_example(tokenizer, row.messages, row.responses[0].content) for row in ROWS["sft"]]
    weights = [row.weight for row in ROWS["sft"]]
    total = sum(
        weight * logps_from_all_logits(model, example) for weight, example in zip(weights, examples, strict=True)
    )
    count = sum(weight * len(example.response_ids) for weight, example in zip(weights, examples, strict=True))
    first = history("sft", ROWS["sft"], tmp_path, model, per_device_train_batch_size=16)[0]
    assert first["loss"] == pytest.approx(-total / count, rel=1e-5)


def test_row_weights_count(tmp_path: Path) -> None:
    """A row of weight 2 equals two rows."""
    doubled = [quadruple(0, weight=2.0), quadruple(1), quadruple(2)]
    repeated = [quadruple(0), quadruple(0), quadruple(1), quadruple(2)]
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "train_sampling_strategy": "sequential",
    }
    for left, right in zip(
        history("wrpo", doubled, tmp_path, **arguments), history("wrpo", repeated, tmp_path, **arguments), strict=True
    ):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-4)


def test_alpha_ramps_by_finished_steps(tmp_path: Path) -> None:
    """Four steps to 0.4: 0, 0.1, 0.2, 0.3; accumulation does not count."""
    lines = history(
        "wrpo", ROWS["wrpo"], tmp_path, alpha=0.4, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    assert [line["alpha"] for line in lines] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_first_step_is_log_2_and_dropout_is_off(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    line = history("wrpo", ROWS["wrpo"], tmp_path, model, beta=1.0)[0]
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_in_bf16_policy_and_reference_agree_before_the_first_step(tmp_path: Path) -> None:
    """One batch of all rows, so even the order of additions is the same; large weights, so rounding would show."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    line = history("wrpo", ROWS["wrpo"], tmp_path, model, beta=1.0, bf16=True, per_device_train_batch_size=16)[0]
    for name in ("source_chosen", "target_chosen", "rejected"):
        assert line[f"rewards/{name}"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_copy_of_the_model_computes_with_its_own_weights(bf16: bool, tmp_path: Path) -> None:
    """A deep copy computes like the model in training; a pickled model computes in the library's way."""
    tokenizer = build_tokenizer()
    config = FusionConfig(output_dir=str(tmp_path), bf16=bf16, **CPU)
    model: Any = FusionTrainer(build_model(tokenizer), config, ROWS["sft"], tokenizer).model
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    batch, tokens = one_to_a_line(random_rows(0), pad_token_id=0), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model(**batch), build_model(tokenizer)(input_ids=tokens).logits
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied(**batch), expected[0])
        assert not torch.equal(model(**batch), expected[0])
        for other in (copied, pickled):
            assert torch.allclose(other(input_ids=tokens).logits, expected[1], atol=1e-2 if bf16 else 1e-6)


NEEDS_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.mark.parametrize("way", ["FSDP", pytest.param("DEEPSPEED", marks=NEEDS_DEEPSPEED)])
def test_shards_that_are_not_made_are_told(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A launcher's configuration for GPUs, on a machine without."""
    history("sft", ROWS["sft"], tmp_path)
    assert not caplog.messages
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    history("sft", ROWS["sft"], tmp_path)
    (said,) = caplog.messages
    assert said.startswith(f"{way} is configured, but Accelerate found NO and shards nothing")


def test_group_by_length(tmp_path: Path) -> None:
    lines = history("wrpo", ROWS["wrpo"], tmp_path, train_sampling_strategy="group_by_length")
    assert lines[-1]["num_tokens"] == history("wrpo", ROWS["wrpo"], tmp_path)[-1]["num_tokens"]


def test_activation_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain, checkpointed = (history("wrpo", ROWS["wrpo"], tmp_path, activation_checkpointing=on) for on in (False, True))
    assert [line["loss"] for line in checkpointed] == pytest.approx([line["loss"] for line in plain], rel=1e-6)


@pytest.mark.parametrize(("objective", "beta"), [("dpo", 0.5), ("wrpo", 0.5)])
def test_eight_pairs_are_learnt(objective: str, beta: float, tmp_path: Path) -> None:
    chosen, rejected = ("hot", "cold")
    rows = [
        TrainingRow(
            f"p{index}",
            (Message("user", f"What is {index}?"),),
            (
                RowResponse(chosen, "chosen"),
                RowResponse(f"{chosen} {chosen}", "chosen_source"),
                RowResponse(chosen, "chosen_target"),
                RowResponse(rejected, "rejected"),
            ),
        )
        for index in range(8)
    ]
    lines = history(objective, rows, tmp_path, beta=beta, num_train_epochs=10)
    assert lines[-1]["rewards/margins"] > 1
    assert lines[-1]["rewards/accuracies"] == 1
    assert lines[-1]["loss"] < 0.3 < lines[0]["loss"]


def test_a_loss_that_is_not_finite_names_the_row(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    torch.nn.init.constant_(model.model.norm.weight, math.nan)
    with pytest.raises(SinterError, match=r"prompt 'p[0-9]+'\) is not finite in step 1"):
        history("sft", ROWS["sft"], tmp_path, model)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """Also in the last step, after which no loss would show it."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(SinterError, match="the gradient of step 1 is not finite, though its loss is"):
        history("sft", ROWS["sft"], tmp_path, model, max_steps=1)


def test_a_step_of_rows_without_weight_has_no_loss(tmp_path: Path) -> None:
    rows = [answer(index, weight=float(index >= 2)) for index in range(4)]
    lines = history("sft", rows, tmp_path, per_device_train_batch_size=2, train_sampling_strategy="sequential")
    assert (lines[0]["loss"], lines[0]["grad_norm"]) == (0, 0)
    assert lines[1]["loss"] > 1


@pytest.mark.parametrize(("weight", "total"), [(0.0, "0"), (1e-60, "0"), (1e300, "inf")])
def test_row_weights_must_have_a_sum(weight: float, total: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"the weights of the 2 rows sum to {total}; expected a finite number above 0"
    ):
        history("sft", [answer(index, weight=weight) for index in range(2)], tmp_path)


def test_rows_that_are_none_name_the_way(tmp_path: Path) -> None:
    rows: Any = [{"prompt": "What is hot?", "completion": "cold"}]
    with pytest.raises(InputError, match=r"train_dataset holds dict; expected TrainingRow, .*formats\.parse_rows"):
        history("sft", rows, tmp_path)


def test_no_row_left(tmp_path: Path) -> None:
    rows = [
        replace(row, responses=tuple(replace(own, content=f"cold {own.role}") for own in row.responses))
        for row in ROWS["wrpo"]
    ]
    with pytest.raises(ToleranceError, match=r"no training row is left of 16 \(answers-alike-after-cutting\)"):
        history("wrpo", rows, tmp_path, max_length=3, max_prompt_length=2)


# --- settings --------------------------------------------------------------------------------------------------------


def test_config_completes_from_the_table(tmp_path: Path) -> None:
    config = FusionConfig(output_dir=str(tmp_path), objective="wrpo", alpha=0.5, use_cpu=True)
    assert config.resolved_objective == resolve_objective("wrpo", {"alpha": 0.5})
    assert (config.beta, config.alpha_schedule, config.learning_rate) == (0.01, "ramp", 1e-6)
    assert FusionConfig(output_dir=str(tmp_path), use_cpu=True).learning_rate == 2e-5


def test_config_has_a_field_for_every_hyperparameter() -> None:
    names = {name for objective in OBJECTIVES.values() for name in objective.hyperparameters}
    assert names <= set(FusionConfig.__dataclass_fields__)


def test_config_refuses_what_the_objective_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no hyper-parameter 'alpha'"):
        FusionConfig(output_dir=str(tmp_path), objective="dpo", alpha=0.5, use_cpu=True)


@pytest.mark.parametrize("is_native", [True, False])
def test_bf16_auto_follows_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_native: bool) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": is_native, "avx2": True})
    assert FusionConfig(output_dir=str(tmp_path), bf16="auto", use_cpu=True).bf16 is is_native
    assert FusionConfig(output_dir=str(tmp_path), use_cpu=True).bf16 is False


def test_weights_in_half_precision_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def trainer(model: PreTrainedModel) -> FusionTrainer:
        config = FusionConfig(output_dir=str(tmp_path), objective="wrpo", use_cpu=True)
        return FusionTrainer(model, config, [quadruple(0)], build_tokenizer())

    trainer(build_model(build_tokenizer()))
    assert not caplog.messages
    trainer(build_model(build_tokenizer()).bfloat16())
    assert any("the weights are bfloat16, in which small updates are lost" in message for message in caplog.messages)


# --- the reference ---------------------------------------------------------------------------------------------------


def reference_of(model: PreTrainedModel, rows: Sequence[EncodedRow], cache: ReferenceCache) -> list[EncodedRow]:
    collate = RowCollator(layout=one_to_a_line, pad_token_id=0, counts="rows", chunk_tokens=512)
    attach_response_logps(model)
    return with_reference(model, rows, collate=collate, accelerator=Accelerator(cpu=True), cache=cache).rows


def encoded_quadruples() -> list[EncodedRow]:
    return encode_rows(ROWS["wrpo"], build_tokenizer(), objective=resolve_objective("wrpo"), max_length=512).rows


def test_reference_is_computed_once_for_the_same_weights_and_tokens(tmp_path: Path) -> None:
    tokenizer, rows = build_tokenizer(), encoded_quadruples()
    first, other = build_model(tokenizer), build_model(tokenizer, seed=1)
    cache = ReferenceCache(tmp_path, "first")
    computed = reference_of(first, rows, cache)
    assert reference_of(other, rows, cache) == computed
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    assert reference_of(other, rows, ReferenceCache(tmp_path, "other")) != computed
    changed: list[Any] = [{**rows[0], "num_prompt_tokens": rows[0]["num_prompt_tokens"] - 1}, *rows[1:]]
    assert cache.path(changed, torch.float32) != cache.path(rows, torch.float32)
    assert cache.path(rows[1:], torch.float32) != cache.path(rows, torch.float32)
    assert cache.path(rows, torch.bfloat16) != cache.path(rows, torch.float32)


def test_reference_in_another_precision_is_another(tmp_path: Path) -> None:
    rows, model, cache = encoded_quadruples(), build_model(build_tokenizer()), ReferenceCache(tmp_path, "model")
    exact = reference_of(model, rows, cache)
    with torch.autocast("cpu", torch.bfloat16):
        assert reference_of(model, rows, cache) != exact


# --- a run -----------------------------------------------------------------------------------------------------------

RUN: Mapping[str, Any] = {
    **CPU,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_steps": 2,
}


def run(model: Path, output: Path, objective: str = "wrpo", **changes: Any) -> TrainingResult:
    hyperparameters = {"beta": 0.3, "alpha": 0.5} if objective == "wrpo" else {}
    settings: dict[str, Any] = {"hyperparameters": hyperparameters, "arguments": RUN, "seed": 5, **changes}
    return train(ROWS[objective], model=str(model), objective=objective, output_dir=output, **settings)


def lines_of(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=ROWS)
def finished(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The objective, folder and result of an uninterrupted run."""
    output = tmp_path_factory.mktemp("finished") / "out"
    return request.param, output, run(tiny_folder, output, request.param)


def test_what_a_run_leaves(finished: tuple[str, Path, TrainingResult]) -> None:
    objective, output, result = finished
    assert (result.num_rows, result.num_steps, result.dropped, result.num_cut) == (16, 8, (), 0)
    present = {path.name for path in output.iterdir()}
    assert present >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"}
    assert not present & {"checkpoints", "training_args.bin"}
    card = (output / "README.md").read_text()
    assert f"- {objective}\n" in card
    assert "gemma: 100.0%" in card
    assert str(output.parent) not in card


def test_the_model_loads_and_knows_where_to_stop(finished: tuple[str, Path, TrainingResult]) -> None:
    _, output, _ = finished
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert model.config.use_cache


def test_both_ends_stop_generation_where_eos_is_not_the_end_of_turn(tmp_path: Path) -> None:
    run(save_tiny(tmp_path / "gemma", family="gemma"), tmp_path / "out", "sft", arguments={**CPU, "max_steps": 1})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<eos>", "<end_of_turn>")]
    assert sorted(saved["eos_token_id"]) == sorted(ends)


def test_a_line_of_metrics_for_every_step(finished: tuple[str, Path, TrainingResult]) -> None:
    objective, output, result = finished
    lines = lines_of(output)
    assert [line["step"] for line in lines] == list(range(1, 9))
    names = {"step", "epoch", "loss", "grad_norm", "learning_rate", "num_tokens", "step_seconds", "tokens_per_second"}
    if objective == "wrpo":
        pair = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
        members = {
            f"{kind}_{what}" for kind in ("rewards/source", "rewards/target") for what in ("chosen", "accuracies")
        }
        logps = {f"logps/{name}" for name in ("chosen", "rejected", "source_chosen", "target_chosen")}
        names |= pair | members | logps | {"alpha"}
    else:
        names |= {"logps/responses"}
    assert set(lines[0]) == names
    tokens = [line["num_tokens"] for line in lines]
    assert tokens == sorted(tokens)
    assert tokens[-1] == result.num_tokens


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8])
def test_resuming_gives_the_losses_of_an_uninterrupted_run(
    step: int,
    finished: tuple[str, Path, TrainingResult],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupted before and after a checkpoint, within an epoch and at its end."""
    objective, output, result = finished
    with monkeypatch.context() as patch:
        patch.setattr("sinterlm.training.train.CheckpointManifest", interrupting_manifest(step))
        with pytest.raises(KeyboardInterrupt):
            run(tiny_folder, tmp_path, objective)
    again = run(tiny_folder, tmp_path, objective)
    assert_same_run(tmp_path, output)
    assert (again.num_steps, again.num_tokens) == (result.num_steps, result.num_tokens)


def interrupting_manifest(step: int) -> type:
    """The manifest's callback, which also raises after ``step``, when its line is written."""

    class Interrupting(CheckpointManifest):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step + 1 or (step == state.max_steps == state.global_step):
                raise KeyboardInterrupt

    return Interrupting


def assert_same_run(left: Path, right: Path, *, tolerance: float = 1e-6) -> None:
    ours, theirs = lines_of(left), lines_of(right)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in {*mine} - {"step_seconds", "tokens_per_second"}:
            assert mine[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), (name, mine["step"])
    weights = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (left, right)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=tolerance) for name in weights[0])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "trains on cpu, float32"),
        ({"bf16": True}, "trains on cpu, float32 weights, bfloat16 products"),
    ],
    ids=str,
)
def test_where_and_in_which_precision_is_told(
    arguments: dict[str, Any], expected: str, tiny_folder: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    run(tiny_folder, tmp_path, "sft", arguments={**CPU, "max_steps": 1, **arguments}, say=said.append)
    assert said == [expected]


def test_where_the_reference_comes_from_is_told(tiny_folder: Path, tmp_path: Path) -> None:
    """Another beta reuses what the first training has computed; other rows do not."""
    for max_length, beta, expected in (
        (512, 0.3, "computed"),
        (512, 0.1, "read from the cache"),
        (40, 0.1, "computed"),
    ):
        said: list[str] = []
        arguments = {**CPU, "max_steps": 1, "max_length": max_length}
        output = tmp_path / f"{max_length}-{beta}"
        run(
            tiny_folder,
            output,
            hyperparameters={"beta": beta},
            arguments=arguments,
            cache_dir=tmp_path / "kept",
            say=said.append,
        )
        assert said[1] == f"log-probabilities of the reference: {expected}"


def test_a_training_without_save_steps_resumes(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Killed after 22 of 25 steps, it resumes after the twentieth and does not count the earlier ones again."""
    arguments = {**CPU, "max_steps": 25, "per_device_train_batch_size": 1}
    with monkeypatch.context() as patch:
        patch.setattr("sinterlm.training.train.CheckpointManifest", interrupting_manifest(22))
        with pytest.raises(KeyboardInterrupt):
            run(tiny_folder, tmp_path, arguments=arguments)
    assert {path.name for path in tmp_path.glob("checkpoints/*-*")} == {"checkpoint-10", "checkpoint-20"}
    killed = lines_of(tmp_path)
    run(tiny_folder, tmp_path, arguments=arguments)
    resumed = lines_of(tmp_path)
    assert [line["step"] for line in resumed] == list(range(1, 26))
    assert resumed[:20] == killed[:20]
    assert resumed[20]["step_seconds"] != killed[20]["step_seconds"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [10, 20]),
        ({"save_steps": 8}, [8, 16, 24, 25]),
        ({"save_steps": 0.5}, [13, 25]),
        ({"save_strategy": "epoch"}, [16, 25]),
        ({"save_strategy": "no"}, []),
    ],
    ids=str,
)
def test_checkpoints_are_written_as_told(
    arguments: dict[str, Any], expected: list[int], tiny_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """16 rows per epoch; by default none at the end."""
    saved = []

    class Noting(CheckpointManifest):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved.append(state.global_step)

    monkeypatch.setattr("sinterlm.training.train.CheckpointManifest", Noting)
    run(tiny_folder, tmp_path, "sft", arguments={**CPU, "max_steps": 25, "per_device_train_batch_size": 1, **arguments})
    assert saved == expected


@pytest.mark.parametrize("finished", ["wrpo"], indirect=True)
@pytest.mark.parametrize("damage", ["no manifest", "cut file", "missing file", "cut manifest"])
def test_half_written_checkpoints_are_skipped(
    damage: str, finished: tuple[str, Path, TrainingResult], tiny_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    objective, output, _ = finished
    with monkeypatch.context() as patch:
        patch.setattr("sinterlm.training.train.CheckpointManifest", interrupting_manifest(5))
        with pytest.raises(KeyboardInterrupt):
            run(tiny_folder, tmp_path, objective)
    newest = tmp_path / "checkpoints" / "checkpoint-4"
    assert newest_whole_checkpoint(newest.parent) == newest
    if damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "missing file":
        (newest / "optimizer.pt").unlink()
    else:
        file = newest / ("manifest.json" if damage == "cut manifest" else "optimizer.pt")
        file.write_bytes(file.read_bytes()[:-10])
    assert newest_whole_checkpoint(newest.parent) == newest.with_name("checkpoint-2")
    run(tiny_folder, tmp_path, objective)
    assert_same_run(tmp_path, output)


def test_newest_whole_checkpoint_orders_by_number(tmp_path: Path) -> None:
    assert newest_whole_checkpoint(tmp_path) is None
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_text("weights")
    for step in (9, 10):
        write_manifest(tmp_path / f"checkpoint-{step}")
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_finished_run_is_not_repeated_and_another_begins_anew(tiny_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def again(**changes: Any) -> TrainingResult:
        return run(
            tiny_folder, tmp_path, "sft", report_progress=lambda step, total, _: seen.append((step, total)), **changes
        )

    first = again()
    assert seen == [(step, 8) for step in range(1, 9)]
    assert again() == first
    assert len(seen) == 8
    again(seed=6)
    assert len(seen) == 16
    result = tmp_path / "training.json"
    earlier = json.loads(result.read_text())
    del earlier["num_cut_prompts"]  # an earlier version did not count them
    result.write_text(json.dumps(earlier))
    again(seed=6)
    assert len(seen) == 24
    assert "num_cut_prompts" in json.loads(result.read_text())


def test_checkpoints_of_other_settings_are_not_resumed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sinterlm.training.train.CheckpointManifest", interrupting_manifest(5))
        with pytest.raises(KeyboardInterrupt):
            run(tiny_folder, tmp_path / "a")
    run(tiny_folder, tmp_path / "a", hyperparameters={"beta": 0.1})
    run(tiny_folder, tmp_path / "b", hyperparameters={"beta": 0.1})
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_removes_what_a_kill_left(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sinterlm.training.train.remove_checkpoints", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_folder, tmp_path, "sft")
    assert (tmp_path / "checkpoints" / "checkpoint-8").exists()
    assert run(tiny_folder, tmp_path, "sft").num_steps == 8
    assert not (tmp_path / "checkpoints").exists()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("file", ["README.md", "checkpoints/model.bin", "notes/a.txt"])
def test_files_of_others_are_not_touched(file: str, tiny_folder: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "out" / file
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    with pytest.raises(InputError, match=r"out.*: holds files that are not of a training run.*another output folder"):
        run(tiny_folder, tmp_path / "out", "sft")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [foreign]
    assert foreign.read_text() == "mine"


def test_checkpoints_of_others_in_a_finished_folder_are_not_touched(tiny_folder: Path, tmp_path: Path) -> None:
    run(tiny_folder, tmp_path, "sft", arguments={**RUN, "max_steps": 1})
    foreign = tmp_path / "checkpoints" / "model.bin"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(InputError, match="checkpoints: holds files"):
        run(tiny_folder, tmp_path, "sft", arguments={**RUN, "max_steps": 2})
    assert foreign.read_text() == "mine"


def test_a_lock_a_reference_and_empty_folders_are_no_hindrance(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".identity.1.tmp").write_text("of a process that was killed")
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "x.parquet").touch()
    assert run(tiny_folder, tmp_path, "sft", arguments={**RUN, "max_steps": 1}).num_steps == 1


@pytest.mark.parametrize("output", [".", "..", "../model"])
def test_the_start_is_not_overwritten(output: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(InputError, match="holds the model to start from; choose another output folder"):
        run(model, model / output, "sft")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_older_checkpoints_go_when_the_new_one_is_whole(tmp_path: Path) -> None:
    """In the order of their numbers, including two in one second and 10 after 9."""
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    manifest = CheckpointManifest(num_kept=2)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    manifest.on_save(arguments, TrainerState(global_step=11, is_world_process_zero=True), TrainerControl())
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-11"}
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-11"


def test_training_prints_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    """Neither Transformers' bars nor its warning that checkpoints of one second have no order by time."""
    script = tmp_path / "quiet.py"
    script.write_text(QUIET)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(script), str(tiny_folder), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


QUIET = """
import sys
from pathlib import Path
from tests.test_training import run, CPU
arguments = {**CPU, "save_steps": 1, "max_steps": 4}
run(Path(sys.argv[1]), Path(sys.argv[2]), "sft", arguments=arguments)
"""


@pytest.mark.parametrize(
    ("base_model", "in_metadata", "in_text"),
    [("org/target", "org/target", "org/target"), ("gguf:pack/a.gguf", None, "gguf:pack/a.gguf"), (None, None, "start")],
)
def test_the_card_names_a_base_model_of_the_hub_only(
    base_model: str | None, in_metadata: str | None, in_text: str, tmp_path: Path
) -> None:
    (tmp_path / "start").mkdir()
    details = CardDetails(base_model or str(tmp_path / "start"))
    text = render_card(details, objective=resolve_objective("sft"), arguments={}, rows=ROWS["sft"], seed=0)
    assert getattr(ModelCard(text).data, "base_model", None) == in_metadata
    assert f"Trained from `{in_text}` by" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_device_train_batch_size": 0}, "batch_size should be a positive"),
        ({"report_to": "wandb"}, "wandb"),
        ({"report_to": ["nothing"]}, "nothing is not supported"),
        ({"deepspeed": "ds.json"}, "deepspeed"),
        ({"use_liger_kernel": True}, "liger"),
        ({"parallelism_config": "x"}, "'str' object"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"adam_beta1": 2.0}, "Invalid beta"),
        ({"fsdp": "full_shard"}, "fsdp"),
    ],
)
def test_what_transformers_refuses_is_found_without_a_model(arguments: dict[str, Any], message: str) -> None:
    """Whatever it raises, in one line; nothing of it affects later trainings in this process."""
    missing = {"wandb": "wandb", "deepspeed": "deepspeed", "liger": "liger_kernel"}
    if message in missing and importlib.util.find_spec(missing[message]):
        pytest.skip(f"{message} is installed")
    environment = dict(os.environ)
    with pytest.raises(InputError, match=f"^train: .*{message}") as error:
        check_arguments("sft", {}, {**CPU, **arguments})
    assert "\n" not in str(error.value)
    assert dict(os.environ) == environment


def test_a_seed_that_is_none_is_found_without_a_model() -> None:
    check_arguments("sft", {}, CPU, seed=1)
    with pytest.raises(InputError, match=r"^train: .*[Ss]eed"):
        check_arguments("sft", {}, CPU, seed=-1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments": {"learning_rat": 1}}, "learning_rat"),
        ({"arguments": {"output_dir": "x"}}, "output_dir"),
        ({"hyperparameters": {"tau": 1}}, "'tau'; it has: base, alpha"),
        ({"objective": "wrpa"}, "sft, fusesft, dpo, ln-dpo, ipo, simpo, wrpo"),
    ],
)
def test_wrong_settings_are_input_errors(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"objective": "wrpo", **changes}
    with pytest.raises(InputError, match=message):
        train(ROWS["wrpo"], model="unused", output_dir=tmp_path, **arguments)


def test_source_shares() -> None:
    rows = [quadruple(0), quadruple(1), answer(2)]
    assert source_shares(rows) == {"gemma": 1.0}
    other = TrainingRow("p", (Message("user", "x"),), (RowResponse("a", "chosen", source="other"),))
    assert source_shares([*rows, other]) == {"gemma": 0.75, "other": 0.25}
