"""The loss that balances a mixture's router: equal to TRL's, whatever is shared, and absent if switched off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.chat import EncodedExample
from sinterlm.errors import InputError
from sinterlm.records import TrainingRow
from sinterlm.training.logprobs import response_logps_and_router_loss
from sinterlm.training.packing import one_to_a_line, shared
from sinterlm.training.router import router_coefficient
from tests.test_trl_parity import SHARED, WHOLE_BATCH, Run, answers, conversations, finish, pairs, wrpo_rows
from tests.tiny import build_model, build_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOKENIZER = build_tokenizer("llama3")
STEPS = {**SHARED, **WHOLE_BATCH, "max_steps": 2}


def build_mixture(coefficient: float = 0.7) -> PreTrainedModel:
    """Its coefficient is far above the usual 0.001, so that the router's loss moves the weights."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        router_aux_loss_coef=coefficient,
        bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3 if parameter.dim() > 1 and "norm" not in name else 1)
    return model


def fused(rows: Sequence[TrainingRow], objective: str, folder: Path, **extra: Any) -> Run:
    model = build_mixture()
    config = FusionConfig(output_dir=str(folder), objective=objective, **{**STEPS, **extra})
    return finish(FusionTrainer(model, config, rows, TOKENIZER), model)


def trls(rows: Sequence[TrainingRow], trainer: Any, config: Any, folder: Path, **extra: Any) -> Run:
    model = build_mixture()
    arguments = {"output_dir": str(folder), "report_to": "none", "activation_checkpointing": False, **STEPS, **extra}
    dataset = Dataset.from_list([conversations(row) for row in rows])
    reference = {"ref_model": build_mixture()} if trainer is DPOTrainer else {}
    run = trainer(model, args=config(**arguments), train_dataset=dataset, processing_class=TOKENIZER, **reference)
    return finish(run, model)


def assert_same(one: Run, other: Run, names: Sequence[str] = ("loss", "grad_norm", "aux_loss")) -> None:
    for ours, theirs in zip(one.history, other.history, strict=True):
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    for name, value in other.model.state_dict().items():
        assert torch.allclose(one.model.state_dict()[name], value, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("share_prompt", ["on", "off"])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_it_is_trls(objective: str, share_prompt: str, tmp_path: Path) -> None:
    """Loss, gradient and weights after two steps, with a prompt computed for each of its answers or once."""
    if objective == "sft":
        rows = answers(wrpo_rows(6), "chosen_target")
        theirs = trls(rows, SFTTrainer, SFTConfig, tmp_path)
        ours = fused(rows, "sft", tmp_path, share_prompt=share_prompt)
    else:
        rows = pairs(wrpo_rows(6), "chosen_target")
        theirs = trls(rows, DPOTrainer, DPOConfig, tmp_path, beta=0.3)
        ours = fused(rows, "dpo", tmp_path, share_prompt=share_prompt, beta=0.3)
    assert_same(ours, theirs)


def test_it_can_be_switched_off_and_weighed(tmp_path: Path) -> None:
    rows = answers(wrpo_rows(6), "chosen_target")
    by_model, off = fused(rows, "sft", tmp_path), fused(rows, "sft", tmp_path, router_aux_loss_coef=0.0)
    assert "aux_loss" not in off.history[0]
    first, plain = by_model.history[0], off.history[0]
    assert first["loss"] == pytest.approx(plain["loss"] + 0.7 * first["aux_loss"], rel=1e-5)
    weighed = fused(rows, "sft", tmp_path, router_aux_loss_coef=0.2).history[0]
    assert weighed["loss"] == pytest.approx(plain["loss"] + 0.2 * first["aux_loss"], rel=1e-5)


def test_parts_of_a_batch_count_by_their_tokens(tmp_path: Path) -> None:
    """A step in chunks and micro-batches: its loss is their mean over tokens, close to that of the whole batch."""
    rows = wrpo_rows(8)
    whole = fused(rows, "wrpo", tmp_path, beta=0.3)
    cut = fused(
        rows, "wrpo", tmp_path, beta=0.3, per_device_train_batch_size=4, gradient_accumulation_steps=2, chunk_tokens=300
    )
    assert cut.history[0]["aux_loss"] == pytest.approx(whole.history[0]["aux_loss"], rel=0.05)
    assert cut.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=0.05)


def test_rows_without_weight_do_not_count_where_they_are_alone(tmp_path: Path) -> None:
    rows = [replace(row, weight=float(index == 0)) for index, row in enumerate(answers(wrpo_rows(2), "chosen_target"))]
    one_each = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    found, alone = fused(rows, "sft", tmp_path, **one_each), fused(rows[:1], "sft", tmp_path, **one_each)
    assert_same(found, alone)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sharing_and_checkpointing_change_no_number(checkpointing: bool) -> None:
    """A prompt's token counts for each of its answers, a beginning's for each prompt, even with one-token answers."""
    first = list(range(20, 32))
    rows = [
        [EncodedExample([*first, 40, 41], [50]), EncodedExample([*first, 40, 41], [51, 52, 53])],
        [EncodedExample([*first, 42, 43, 44], [54, 55])],
    ]
    found = []
    for layout in (shared, one_to_a_line):
        model = build_mixture()
        if checkpointing:
            model.train()
            model.activation_checkpointing_enable()
        logps, loss = response_logps_and_router_loss(model, **layout(rows, pad_token_id=0, for_router=True))
        (logps.sum() + 10 * loss).backward()
        found.append((logps.detach(), loss.detach(), [p.grad for p in model.parameters()]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert float(found[0][1]) == pytest.approx(float(found[1][1]), rel=1e-6)
    for ours, plain in zip(found[0][2], found[1][2], strict=True):
        assert (ours is None) == (plain is None)
        assert ours is None or plain is None or torch.allclose(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize(("given", "expected"), [(None, 0.001), (0.0, 0.0), (0.2, 0.2)])
def test_what_it_is_weighed_with(model_type: str, given: float | None, expected: float) -> None:
    """By default the model's configuration decides, as in TRL, even if it does not ask for router logits."""
    experts = "num_local_experts" if model_type == "mixtral" else "num_experts"
    widths = {"intermediate_size": 48, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    attention = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_experts_per_tok": 2, experts: 4, **widths, **attention}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    rows = [[EncodedExample([20, 21], [40, 41])]]
    assert router_coefficient(model, rows, given=given) == expected


def test_a_coefficient_for_a_model_without_routers_is_refused(tmp_path: Path) -> None:
    config = FusionConfig(output_dir=str(tmp_path), objective="sft", **STEPS, router_aux_loss_coef=0.1)
    rows = answers(wrpo_rows(2), "chosen_target")
    with pytest.raises(InputError, match=r"is 0.1, but LlamaForCausalLM gives no loss of a mixture"):
        FusionTrainer(build_model(TOKENIZER), config, rows, TOKENIZER)


def test_more_tokens_than_the_model_reads_are_refused(tmp_path: Path) -> None:
    """By default a row is at most as long as the model's context."""
    rows = answers(wrpo_rows(2), "chosen_target")
    long = replace(rows[0], responses=(replace(rows[0].responses[0], content="cold " * 800),))
    config = FusionConfig(output_dir=str(tmp_path), objective="sft", **{**STEPS, "max_length": 513})
    with pytest.raises(InputError, match="max_length is 513, but the model reads 512 tokens at most"):
        FusionTrainer(build_model(TOKENIZER), config, rows, TOKENIZER)
    config = FusionConfig(output_dir=str(tmp_path), objective="sft", **{**STEPS, "max_length": None})
    trainer = FusionTrainer(build_model(TOKENIZER), config, [long], TOKENIZER)
    assert [len(row["input_ids"]) for row in trainer.train_dataset] == [512]  # type: ignore[union-attr]
    assert trainer.num_cut == 1
