"""Features of PEFT, Transformers, Liger and trackers work with our loss, and none replaces it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback
from transformers.integrations import integration_utils

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.errors import InputError
from sinterlm.models import load_model, load_tokenizer
from sinterlm.training.check import check_arguments
from sinterlm.training.encoding import encode_rows, row_examples
from sinterlm.training.lora import add_adapter, base_weights, merge_adapter
from sinterlm.training.sequence_logps import sequence_logps
from tests import processes
from tests.processes import keep_gradients
from tests.test_distributed import assert_same_steps, assert_same_weights, lines_of
from tests.tiny import build_model, build_tokenizer, save_tiny

CPU: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training of an adapter."""
    folder = tmp_path_factory.mktemp("lora")
    processes.run("lora", model, folder, may_interrupt=False)
    return folder / "lora"


def trainer_of(folder: Path, objective: str = "wrpo", **arguments: Any) -> FusionTrainer:
    tokenizer = build_tokenizer()
    config = FusionConfig(output_dir=str(folder), objective=objective, max_steps=3, **{**CPU, **arguments})
    return FusionTrainer(build_model(tokenizer), config, processes.rows(objective), tokenizer)


def model_of(trainer: FusionTrainer) -> Any:
    return trainer.model


def logps_of(model: PreTrainedModel) -> list[float]:
    """The model's log-probabilities of the rows' responses."""
    objective = FusionConfig(output_dir="unused", objective="wrpo", use_cpu=True).resolved_objective
    rows = encode_rows(processes.rows("wrpo"), build_tokenizer(), objective=objective, max_length=512).rows
    return [found.logp for found in sequence_logps(model, [example for row in rows for example in row_examples(row)])]


# --- LoRA ------------------------------------------------------------------------------------------------------------


def test_only_the_adapter_learns(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, lora_r=4, learning_rate=1e-2)
    before = {name: weights.clone() for name, weights in model_of(trainer).named_parameters()}
    trainer.train()
    changed = {name for name, weights in model_of(trainer).named_parameters() if not torch.equal(weights, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert {name.split(".")[-4] for name in changed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


@pytest.mark.parametrize("objective", ["sft", "wrpo"])
def test_an_adapter_begins_where_the_full_model_does(objective: str, tmp_path: Path) -> None:
    """It adds A times B with B = 0: the first loss is the same, and rewards relative to the model without it are 0."""
    firsts = []
    for arguments in ({}, {"lora_r": 4}):
        trainer = trainer_of(tmp_path, objective, learning_rate=1e-2, **arguments)
        trainer.train()
        firsts.append(trainer.state.log_history[0])
    for name in firsts[0].keys() & {"loss", "logps/chosen", "logps/rejected"}:
        assert firsts[1][name] == pytest.approx(firsts[0][name], rel=1e-6), name


def test_settings_of_an_adapter_are_pefts(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, lora_r=2, lora_alpha=6, lora_dropout=0.25, lora_target_modules=["q_proj"])
    config = model_of(trainer).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (2, 6, 0.25, {"q_proj"})


def test_the_reference_is_the_model_without_its_adapter() -> None:
    arguments = FusionConfig(output_dir="unused", lora_r=4, use_cpu=True)
    base = build_model(build_tokenizer())
    expected = logps_of(base)
    adapted = add_adapter(base, arguments)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    with base_weights(adapted):
        assert logps_of(base) == pytest.approx(expected, rel=1e-6)
    assert logps_of(base) != pytest.approx(expected, rel=1e-2)


def test_the_folder_holds_the_merged_model_and_the_adapter(model: Path, lora: Path) -> None:
    present = {path.name for path in lora.iterdir()}
    assert present >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "training.json"}
    in_adapter = {path.name for path in (lora / "adapter").iterdir()}
    assert in_adapter >= {"adapter_model.safetensors", "adapter_config.json"}
    assert "training_args.bin" not in present | in_adapter
    merged = AutoModelForCausalLM.from_pretrained(lora)
    by_adapter = merge_adapter(load_model(str(model), device="cpu", dtype="float32"), lora / "adapter")
    assert logps_of(merged) == pytest.approx(logps_of(by_adapter), rel=1e-5)
    assert logps_of(merged) != pytest.approx(logps_of(AutoModelForCausalLM.from_pretrained(model)), rel=1e-3)
    assert merged.generation_config.eos_token_id == [load_tokenizer(str(lora)).convert_tokens_to_ids("<|im_end|>")]


def test_an_adapter_is_resumed(model: Path, lora: Path, tmp_path: Path) -> None:
    processes.run("lora", model, tmp_path)
    assert_same_steps(tmp_path / "lora", lora, tolerance=1e-6)
    assert_same_weights(tmp_path / "lora", lora, tolerance=1e-6)


def test_modules_that_the_model_does_not_have_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lora_target_modules is 'nonsense': .*not found"):
        trainer_of(tmp_path, lora_r=4, lora_target_modules="nonsense")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_alpha": 16}, "lora_alpha is 16, but lora_r is not given"),
        ({"lora_target_modules": ["q_proj"]}, "lora_target_modules is .'q_proj'., but lora_r is not given"),
        ({"lora_r": 4, "lora_alpha": 0}, "lora_alpha is 0; expected at least 1"),
    ],
)
def test_settings_of_an_adapter_that_train_none_are_errors(arguments: dict[str, Any], message: str) -> None:
    """Otherwise all weights would train silently, or none would."""
    with pytest.raises(InputError, match=message):
        check_arguments("sft", {}, {**CPU, **arguments})


def test_without_peft_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinterlm.training.config.is_peft_available", lambda: False)
    with pytest.raises(InputError, match=r"lora_r needs the package peft.*pip install 'sinterlm\[train\]'"):
        check_arguments("sft", {}, {**CPU, "lora_r": 4})


# --- activation checkpointing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"lora_r": 4}], ids=["full", "lora"])
def test_activation_checkpointing_changes_no_loss_and_no_gradient(
    arguments: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    for name, is_on in (("off", False), ("on", True)):
        settings = {"activation_checkpointing": is_on, "save_strategy": "no", **arguments}
        folder = tmp_path / name
        folder.mkdir()
        processes.run("wrpo", model, folder, may_interrupt=False, callback=keep_gradients(folder), **settings)
    for left, right in zip(lines_of(tmp_path / "on" / "wrpo"), lines_of(tmp_path / "off" / "wrpo"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-6)
    on, off = (torch.load(tmp_path / name / "gradients-1-0.pt") for name in ("on", "off"))
    for name, gradient in on.items():
        assert (gradient is None) == (off[name] is None)
        assert gradient is None or torch.allclose(gradient, off[name], rtol=1e-5, atol=1e-7), name


def test_activation_checkpointing_computes_layers_twice(tmp_path: Path) -> None:
    calls = {}
    for is_on in (False, True):
        trainer = trainer_of(tmp_path, activation_checkpointing=is_on, gradient_accumulation_steps=1)
        count = calls[is_on] = [0]

        def counted(*_: Any, count: list[int] = count) -> None:
            count[0] += 1

        model_of(trainer).model.layers[0].mlp.register_forward_pre_hook(counted)
        trainer.train()
    assert calls[True][0] == 2 * calls[False][0]


# --- trackers and kernels --------------------------------------------------------------------------------------------


def test_a_tracker_gets_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "recording", Tracker)
    trainer_of(tmp_path, report_to=["recording"], learning_rate=1e-3).train()
    steps = [logs for logs in seen if "loss" in logs]
    assert len(steps) == 3
    names = {"rewards/margins", "rewards/source_accuracies", "logps/target_chosen", "alpha", "num_tokens", "grad_norm"}
    assert steps[0].keys() >= names


def test_liger_leaves_the_loss_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FusionConfig(output_dir="unused", use_liger_kernel=True, liger_kernel_config={"rope": False}, use_cpu=True)
    assert config.liger_kernel_config == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    with pytest.raises(ValueError, match="fused_linear_cross_entropy would take the place of the objective's loss"):
        FusionConfig(
            output_dir="unused",
            use_liger_kernel=True,
            liger_kernel_config={"fused_linear_cross_entropy": True},
            use_cpu=True,
        )


def test_sampling_that_repeats_rows_is_refused() -> None:
    with pytest.raises(InputError, match="batch_rebalance, which repeats rows at the end of an epoch; expected random"):
        check_arguments("sft", {}, {**CPU, "train_sampling_strategy": "batch_rebalance"})


@pytest.mark.parametrize(
    "arguments", [{"torch_compile": True}, {"torch_compile_mode": "default"}, {"torch_compile_backend": "inductor"}]
)
def test_compilation_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="torch_compile is on; expected off"):
        check_arguments("sft", {}, {**CPU, **arguments})


@pytest.mark.parametrize("name", ["split_batches", "dispatch_batches"])
def test_batches_of_one_process_for_all_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"accelerator_config: {name} is on; expected off"):
        check_arguments("sft", {}, {**CPU, "accelerator_config": {name: True}})
