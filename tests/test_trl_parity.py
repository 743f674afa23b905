"""FusionTrainer compared with TRL's trainers: the same rows through both real train() loops, fp32 on a CPU.

What TRL has is compared directly: DPO (``aot`` on micro-batches of one is conservative DPO), length-normalised DPO
(``sigmoid_norm``), IPO of means, SimPO (its experimental CPO trainer), SFT, and RLOO's step on the responses that TRL
sampled itself. What TRL lacks is compared if it has an equivalent: WRPO at the ends of alpha; FusePO, FuseSFT and
weighted rows with TRL on rows that are repeated according to their weights. TRL has no IPO of sums, no WRPO between the
ends or with equation 9, no FusePO-RLOO, no RLOO within sources, and no KL term on recorded responses:
``test_reference_parity.py`` tests those.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.records import Message, Role, RowResponse, TrainingRow
from tests.tiny import FAMILIES, build_model, build_tokenizer, save_tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the warning that experimental features may change
    from trl.experimental.cpo.cpo_config import CPOConfig
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

# TRL 1.16 still reads this property of a model under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NUM_STEPS = 6
SHARED: Mapping[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": NUM_STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "seed": 3,
    "max_length": 256,
    "save_strategy": "no",
    "disable_tqdm": True,
    # Plain gradient descent: the weights are the sum of the gradients, and rounding is not amplified as by Adam.
    "optim": "sgd",
    "learning_rate": 0.03,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1e6,
}
WHOLE_BATCH = {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1}
OF_THE_LOSS = ("loss", "grad_norm")
OF_THE_PAIR = (*OF_THE_LOSS, "logps/chosen", "logps/rejected")
REWARDS = (*OF_THE_PAIR, "rewards/chosen", "rewards/rejected", "rewards/margins")


class Run(NamedTuple):
    """The results of a training."""

    model: PreTrainedModel
    history: list[dict[str, float]]


def finish(trainer: Trainer, model: PreTrainedModel) -> Run:
    trainer.train()
    return Run(model, [line for line in trainer.state.log_history if "loss" in line])


def assert_same_run(ours: Run, theirs: Run, names: Sequence[str]) -> None:
    """The same numbers in every step, and the same weights at the end: the sum of all gradients."""
    assert len(ours.history) == len(theirs.history) > 0
    for our_step, their_step in zip(ours.history, theirs.history, strict=True):
        for name in names:
            assert our_step[name] == pytest.approx(their_step[name], rel=1e-5, abs=1e-5), (name, our_step["step"])
    start = build_model(build_tokenizer("llama3")).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in ours.model.state_dict().items() if name in start)
    for name, value in theirs.model.state_dict().items():
        assert torch.allclose(ours.model.state_dict()[name], value, rtol=1e-5, atol=1e-6), name


# --- rows ------------------------------------------------------------------------------------------------------------


def wrpo_rows(count: int = 12) -> list[TrainingRow]:
    """Quadruples with answers of different lengths."""
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


def pairs(rows: Sequence[TrainingRow], chosen_role: Role) -> list[TrainingRow]:
    """The pairs of ``chosen_role`` and the rejected answer."""
    return [
        replace(row, responses=(replace(row.with_role(chosen_role), role="chosen"), replace(row.with_role("rejected"))))
        for row in rows
    ]


def repeated(rows: Sequence[TrainingRow], times: Sequence[int]) -> list[TrainingRow]:
    return [row for row, count in zip(rows, times, strict=True) for _ in range(count)]


# --- the trainers ----------------------------------------------------------------------------------------------------


def fusion_run(
    rows: Sequence[TrainingRow], objective: str, tokenizer: PreTrainedTokenizerFast, folder: Path, **extra: Any
) -> Run:
    model = build_model(tokenizer)
    config = FusionConfig(output_dir=str(folder), objective=objective, **{**SHARED, **extra})
    return finish(FusionTrainer(model, config, rows, tokenizer), model)


def conversations(row: TrainingRow) -> dict[str, Any]:
    """A pair, or a single answer, in TRL's conversational form."""
    columns: dict[str, Any] = {
        response.role or "completion": [{"role": "assistant", "content": response.content}]
        for response in row.responses
    }
    return {"prompt": [message._asdict() for message in row.messages], **columns}


def trl_run(
    rows: Sequence[TrainingRow],
    trainer: Any,
    config: Any,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    **extra: Any,
) -> Run:
    """One of TRL's trainers on pairs or single answers; DPO has a separate reference."""
    model = build_model(tokenizer)
    arguments = {"output_dir": str(folder), "report_to": "none", "activation_checkpointing": False, **SHARED, **extra}
    dataset = Dataset.from_list([conversations(row) for row in rows])
    reference = {"ref_model": build_model(tokenizer)} if trainer is DPOTrainer else {}
    return finish(
        trainer(model, args=config(**arguments), train_dataset=dataset, processing_class=tokenizer, **reference), model
    )


# --- pairs, and WRPO at the ends of alpha ----------------------------------------------------------------------------


class Pairs(NamedTuple):
    """An objective of pairs, and its equivalent in TRL."""

    ours: Mapping[str, Any]
    trainer: Any
    config: Any
    theirs: Mapping[str, Any]
    names: Sequence[str]
    """The metrics that both log; TRL's rewards are sums over tokens even if its loss uses means."""


PAIRS = {
    "dpo": Pairs({"beta": 0.3}, DPOTrainer, DPOConfig, {"beta": 0.3}, REWARDS),
    "ln-dpo": Pairs({"beta": 2.0}, DPOTrainer, DPOConfig, {"beta": 2.0, "loss_type": ["sigmoid_norm"]}, OF_THE_PAIR),
    "ipo": Pairs(
        {"tau": 0.5, "average_logps": True}, DPOTrainer, DPOConfig, {"beta": 0.5, "loss_type": ["ipo"]}, OF_THE_PAIR
    ),
    "simpo": Pairs(
        {"beta": 2.0, "gamma": 0.7},
        CPOTrainer,
        CPOConfig,
        {"beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.0, "loss_type": "simpo"},
        (*OF_THE_LOSS, "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str, tmp_path: Path) -> None:
    case, tokenizer = PAIRS[name], build_tokenizer("llama3")
    rows = pairs(wrpo_rows(), "chosen_target")
    ours = fusion_run(rows, name, tokenizer, tmp_path, **case.ours)
    assert_same_run(ours, trl_run(rows, case.trainer, case.config, tokenizer, tmp_path, **case.theirs), case.names)


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_label_smoothing(name: str, tmp_path: Path) -> None:
    """TRL's ``aot`` sorts the margins of a micro-batch: with one margin in each it is conservative DPO."""
    case, tokenizer = PAIRS[name], build_tokenizer("llama3")
    rows = pairs(wrpo_rows(), "chosen_target")
    loss_type = {"loss_type": ["aot"]} if name == "dpo" else {}
    one_by_one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "label_smoothing": 0.1}
    ours = fusion_run(rows, name, tokenizer, tmp_path, **case.ours, **one_by_one)
    theirs = {**case.theirs, **loss_type, **one_by_one}
    assert_same_run(ours, trl_run(rows, case.trainer, case.config, tokenizer, tmp_path, **theirs), case.names)


@pytest.mark.parametrize("base", PAIRS)
@pytest.mark.parametrize(("alpha", "chosen_role"), [(0.0, "chosen_target"), (1.0, "chosen_source")])
def test_wrpo_at_the_ends_of_alpha(alpha: float, chosen_role: Role, base: str, tmp_path: Path) -> None:
    case, tokenizer, rows = PAIRS[base], build_tokenizer("llama3"), wrpo_rows()
    ours = fusion_run(rows, "wrpo", tokenizer, tmp_path, base=base, alpha=alpha, alpha_schedule="constant", **case.ours)
    theirs = trl_run(pairs(rows, chosen_role), case.trainer, case.config, tokenizer, tmp_path, **case.theirs)
    # logps/chosen is the mean of both chosen answers.
    assert_same_run(ours, theirs, [name for name in case.names if name != "logps/chosen"])


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"llama3"}))
def test_every_family_of_templates(family: str, tmp_path: Path) -> None:
    case, tokenizer = PAIRS["dpo"], build_tokenizer(family)
    rows = pairs(wrpo_rows(), "chosen_target")
    theirs = trl_run(rows, DPOTrainer, DPOConfig, tokenizer, tmp_path, **case.theirs)
    assert_same_run(fusion_run(rows, "dpo", tokenizer, tmp_path, **case.ours), theirs, REWARDS)


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """WRPO with alpha between the ends is not DPO."""
    tokenizer, rows = build_tokenizer("llama3"), wrpo_rows()
    ours = fusion_run(rows, "wrpo", tokenizer, tmp_path, beta=0.3, alpha=0.5, alpha_schedule="constant")
    theirs = trl_run(pairs(rows, "chosen_target"), DPOTrainer, DPOConfig, tokenizer, tmp_path, beta=0.3)
    with pytest.raises(AssertionError):
        assert_same_run(ours, theirs, OF_THE_LOSS)


# --- weights are repetitions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["dpo", "ln-dpo", "simpo"])
def test_fusepo_is_the_base_on_repeated_pairs(base: str, tmp_path: Path) -> None:
    """A source's pair of weight 3/4 equals three of four pairs in a batch of all rows."""
    case, tokenizer = PAIRS[base], build_tokenizer("llama3")
    rows = wrpo_rows(4)
    by_source = {"a": pairs(rows, "chosen_source"), "b": pairs(rows, "chosen_target")}
    weights = {"a": 0.75, "b": 0.25}
    fused = [
        replace(
            row,
            responses=tuple(
                replace(response, source=source, weight=weights[source])
                for source in by_source
                for response in by_source[source][index].responses
            ),
        )
        for index, row in enumerate(rows)
    ]
    ours = fusion_run(fused, "fusepo", tokenizer, tmp_path, base=base, **case.ours, **WHOLE_BATCH)
    flat = repeated([*by_source["a"], *by_source["b"]], [3] * 4 + [1] * 4)
    theirs = trl_run(flat, case.trainer, case.config, tokenizer, tmp_path, **case.theirs, **WHOLE_BATCH)
    assert_same_run(ours, theirs, case.names)


def test_row_weights_are_repetitions(tmp_path: Path) -> None:
    case, tokenizer = PAIRS["dpo"], build_tokenizer("llama3")
    rows = pairs(wrpo_rows(4), "chosen_target")
    weighted = [replace(row, weight=0.5 * (1 + index)) for index, row in enumerate(rows)]
    ours = fusion_run(weighted, "dpo", tokenizer, tmp_path, **case.ours, **WHOLE_BATCH)
    theirs = trl_run(
        repeated(rows, [1, 2, 3, 4]), DPOTrainer, DPOConfig, tokenizer, tmp_path, **case.theirs, **WHOLE_BATCH
    )
    # Logged metrics are means over rows, whatever their weights.
    assert_same_run(ours, theirs, OF_THE_LOSS)


def answers(rows: Sequence[TrainingRow], role: Role) -> list[TrainingRow]:
    """One answer per prompt."""
    return [replace(row, responses=(replace(row.with_role(role), role=None),)) for row in rows]


def test_sft(tmp_path: Path) -> None:
    """The mean over the answer tokens of the global batch, even with micro-batches of different lengths."""
    tokenizer, rows = build_tokenizer("llama3"), answers(wrpo_rows(), "chosen_target")
    ours = fusion_run(rows, "sft", tokenizer, tmp_path)
    assert_same_run(ours, trl_run(rows, SFTTrainer, SFTConfig, tokenizer, tmp_path), OF_THE_LOSS)


def test_fusesft_is_sft_on_repeated_answers(tmp_path: Path) -> None:
    """Answers of weights 1/2, 1/4, 1/4 in rows of weights 1 and 2; counted in tokens, as TRL counts them."""
    tokenizer, rows = build_tokenizer("llama3"), wrpo_rows(4)
    roles: tuple[Role, ...] = ("chosen_source", "chosen_target", "rejected")
    fused = [
        replace(
            row,
            responses=tuple(
                replace(row.with_role(role), role=None, weight=weight)
                for role, weight in zip(roles, (0.5, 0.25, 0.25), strict=True)
            ),
            weight=1.0 + index % 2,
        )
        for index, row in enumerate(rows)
    ]
    flat = [
        answer
        for role, count in zip(roles, (2, 1, 1), strict=True)
        for answer in repeated(answers(rows, role), [count, 2 * count] * 2)
    ]
    ours = fusion_run(fused, "fusesft", tokenizer, tmp_path, **WHOLE_BATCH)
    assert_same_run(ours, trl_run(flat, SFTTrainer, SFTConfig, tokenizer, tmp_path, **WHOLE_BATCH), OF_THE_LOSS)


# --- RLOO ------------------------------------------------------------------------------------------------------------


def test_rloos_step_on_what_trl_sampled(tmp_path: Path) -> None:
    """TRL's RLOO samples its responses; its first step, on-policy, has the gradient of A log pi.

    They consist of letters that no merge joins, so that the text gives the same tokens again. TRL's loss is the mean of
    the advantages themselves (0), with that gradient: the weights are compared.
    """
    folder = save_tiny(tmp_path / "model", family="llama3")
    tokenizer = build_tokenizer("llama3")
    letters = {tokenizer.convert_tokens_to_ids(letter) for letter in "JKVXZ"}
    sampled: list[tuple[str, str, float]] = []

    def score(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float | None]:
        scores = [sum(ids) / 100 for ids in completion_ids]
        for prompt, completion, value in zip(prompts, completions, scores, strict=True):
            sampled.append((prompt[0]["content"], completion[0]["content"], value))
        return scores

    one_step = {"max_steps": 1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    shared = {key: value for key, value in SHARED.items() if key != "max_length"}
    config = RLOOConfig(
        output_dir=str(tmp_path / "trl"),
        report_to="none",
        activation_checkpointing=False,
        num_generations=4,
        max_completion_length=6,
        beta=0.0,
        generation_kwargs={"suppress_tokens": [token for token in range(len(tokenizer)) if token not in letters]},
        **{**shared, **one_step},
    )
    model = build_model(tokenizer)
    questions = Dataset.from_list([{"prompt": [{"role": "user", "content": f"What is {word}?"}]} for word in "ab"])
    model.config.name_or_path = str(folder)
    theirs = finish(RLOOTrainer(model, score, args=config, train_dataset=questions, processing_class=tokenizer), model)
    rows = [
        TrainingRow(
            question,
            (Message("user", question),),
            tuple(
                RowResponse(content, score=value, truncated=True)
                for asked, content, value in sampled
                if asked == question
            ),
        )
        for question in dict.fromkeys(question for question, _, _ in sampled)
    ]
    assert [len(row.responses) for row in rows] == [4, 4]
    ours = fusion_run(rows, "rloo", tokenizer, tmp_path, **one_step)
    assert theirs.history[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert_same_run(ours, theirs, ["grad_norm"])
