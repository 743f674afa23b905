"""FusionTrainer against TRL's DPOTrainer: the same rows through both real train() loops, fp32 on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.records import Message, RowResponse, TrainingRow
from tests.tiny import FAMILIES, build_model, build_tokenizer

# TRL 1.16 still reads this property of a model under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NUM_STEPS = 6
SHARED: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": NUM_STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "seed": 3,
    "max_length": 256,
    "save_strategy": "no",
    "disable_tqdm": True,
    "beta": 0.3,
}
METRICS = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins")


def wrpo_rows(count: int = 12) -> list[TrainingRow]:
    """Quadruples with answers of unlike lengths."""
    return [
        TrainingRow(
            f"p{index}",
            (Message("user", f"What is the opposite of {'hot ' * (index % 3)}{index}?"),),
            (
                RowResponse(f"The source says {index * 7}.", "chosen_source"),
                RowResponse(f"cold {'five ' * (index % 4)}", "chosen_target"),
                RowResponse(f"capital of {index}" * (1 + index % 2), "rejected"),
            ),
        )
        for index in range(count)
    ]


def trl_history(rows: Sequence[TrainingRow], chosen_role: Any, family: str, folder: Path) -> list[dict[str, float]]:
    """TRL's log when it trains on (``chosen_role``, rejected)."""
    tokenizer = build_tokenizer(family)
    dataset = Dataset.from_list(
        [
            {
                "prompt": [message._asdict() for message in row.messages],
                "chosen": [{"role": "assistant", "content": row.with_role(chosen_role).content}],
                "rejected": [{"role": "assistant", "content": row.with_role("rejected").content}],
            }
            for row in rows
        ]
    )
    config = DPOConfig(output_dir=str(folder), activation_checkpointing=False, report_to="none", **SHARED)
    policy, reference = build_model(tokenizer), build_model(tokenizer)
    trainer = DPOTrainer(policy, reference, args=config, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def fusion_history(
    rows: Sequence[TrainingRow], objective: str, tokenizer: PreTrainedTokenizerFast, folder: Path, **extra: Any
) -> list[dict[str, float]]:
    config = FusionConfig(output_dir=str(folder), objective=objective, **SHARED, **extra)
    trainer = FusionTrainer(build_model(tokenizer), config, rows, tokenizer)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def assert_same_curve(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs) == NUM_STEPS
    for our_step, their_step in zip(ours, theirs, strict=True):
        for name in METRICS:
            assert our_step[name] == pytest.approx(their_step[name], rel=1e-4, abs=1e-5), (name, our_step["step"])
    # Before the first update policy and reference are equal, and rounding decides.
    assert [step["rewards/accuracies"] for step in ours[1:]] == [step["rewards/accuracies"] for step in theirs[1:]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("alpha", "chosen_role"), [(0.0, "chosen_target"), (1.0, "chosen_source")])
def test_wrpo_at_the_ends_of_alpha_is_trls_dpo(alpha: float, chosen_role: str, family: str, tmp_path: Path) -> None:
    rows = wrpo_rows()
    ours = fusion_history(rows, "wrpo", build_tokenizer(family), tmp_path, alpha=alpha, alpha_schedule="constant")
    assert_same_curve(ours, trl_history(rows, chosen_role, family, tmp_path))


def test_dpo_is_trls_dpo(tmp_path: Path) -> None:
    rows = wrpo_rows()
    pairs = [
        TrainingRow(
            row.prompt_id,
            row.messages,
            (RowResponse(row.with_role("chosen_target").content, "chosen"), row.with_role("rejected")),
        )
        for row in rows
    ]
    ours = fusion_history(pairs, "dpo", build_tokenizer("chatml"), tmp_path)
    theirs = trl_history(rows, "chosen_target", "chatml", tmp_path)
    assert_same_curve(ours, theirs)
    assert ours[-1]["logps/chosen"] == pytest.approx(theirs[-1]["logps/chosen"], rel=1e-4)


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """WRPO with alpha between the ends is not DPO."""
    rows = wrpo_rows()
    ours = fusion_history(rows, "wrpo", build_tokenizer("chatml"), tmp_path, alpha=0.5, alpha_schedule="constant")
    with pytest.raises(AssertionError):
        assert_same_curve(ours, trl_history(rows, "chosen_target", "chatml", tmp_path))
