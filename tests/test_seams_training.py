"""Training as a whole, compared with float64 by hand: steps, seeds, checkpoints, and every argument of Sinter."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.chat import encode_example
from sinterlm.errors import InputError, ToleranceError
from sinterlm.records import Message, Role, RowResponse, TrainingRow
from sinterlm.training.arguments import FusionArguments
from sinterlm.training.checkpoints import RegularCheckpoints, steps_between
from sinterlm.training.metrics import StepMetrics
from sinterlm.training.result import TrainingResult
from sinterlm.training.train import METRICS, train
from tests.tiny import build_model, build_tokenizer, save_tiny

CPU: Mapping[str, Any] = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "learning_rate": 5e-3}
ROLES: tuple[Role, ...] = ("chosen_source", "chosen_target", "rejected")
THOUGHT = "<think>\nTwo and two.\n</think>\n\n"


def quadruple(index: int, *, weight: float = 1.0) -> TrainingRow:
    """Answers of different lengths; the prompts of neighbours also differ in length."""
    texts = (f"The source says {index * 7}.", f"cold {'five ' * (index % 4)}", f"capital of {index}")
    return TrainingRow(
        f"p{index}",
        (Message("user", f"What is the opposite of {'hot ' * (index % 3)}{index}?"),),
        tuple(RowResponse(text, role) for text, role in zip(texts, ROLES, strict=True)),
        weight=weight,
    )


ROWS = [quadruple(index, weight=(0.5, 1.0, 2.0, 0.0)[index % 4]) for index in range(12)]
BETA, ALPHA, WARMUP = 0.7, 0.6, 2
ROWS_OF_A_STEP = 4


# --- steps by hand ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What a step logged, and the same computed by hand."""

    logged: Mapping[str, float]
    expected: Mapping[str, float]


class Snapshots(TrainerCallback):
    """Keeps the weights at the start of each step."""

    def __init__(self) -> None:
        self.models: list[PreTrainedModel] = []

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model = build_model(build_tokenizer()).double()
        model.load_state_dict(kwargs["model"].state_dict())
        self.models.append(model)


def logp_by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: TrainingRow, role: str) -> Tensor:
    """The sum over the response's tokens, from all logits of a single sequence."""
    [content] = [response.content for response in row.responses if response.role == role]
    example = encode_example(tokenizer, row.messages, content)
    logits = model(input_ids=torch.tensor([example.prompt_ids + example.response_ids]), use_cache=False).logits[0]
    predicted = logits[len(example.prompt_ids) - 1 : -1].log_softmax(-1)
    return predicted[range(len(example.response_ids)), example.response_ids].sum()  # type: ignore[no-any-return]


def step_by_hand(
    model: PreTrainedModel, reference: PreTrainedModel, tokenizer: Any, rows: Sequence[TrainingRow], alpha: float
) -> dict[str, float]:
    """WRPO's equation 6, weighted over the rows of the step; means over the rows that count."""
    model.zero_grad()
    losses, counted = [], []
    for row in rows:
        logps = {role: logp_by_hand(model, tokenizer, row, role) for role in ROLES}
        with torch.no_grad():
            start = {role: logp_by_hand(reference, tokenizer, row, role) for role in ROLES}
        source, target, rejected = (BETA * (logps[role] - start[role]) for role in ROLES)
        chosen = alpha * source + (1 - alpha) * target
        losses.append(-row.weight * torch.nn.functional.logsigmoid(chosen - rejected))
        if row.weight:
            counted.append(
                {
                    "rewards/chosen": chosen,
                    "rewards/source_chosen": source,
                    "rewards/target_chosen": target,
                    "rewards/rejected": rejected,
                    "rewards/margins": chosen - rejected,
                    "rewards/accuracies": (chosen > rejected).double(),
                    "rewards/source_accuracies": (source > rejected).double(),
                    "logps/source_chosen": logps["chosen_source"],
                    "logps/chosen": (logps["chosen_source"] + logps["chosen_target"]) / 2,
                    "logps/rejected": logps["rejected"],
                }
            )
    loss = torch.stack(losses).sum() / sum(row.weight for row in rows)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    means = {name: float(torch.stack([row[name] for row in counted]).mean().detach()) for name in counted[0]}
    return {
        **means,
        "loss": float(loss.detach()),
        "grad_norm": float(torch.cat([gradient.flatten() for gradient in gradients]).norm()),
        "alpha": alpha,
    }


def num_tokens(tokenizer: Any, row: TrainingRow) -> int:
    """The prompt once, and every response."""
    examples = [encode_example(tokenizer, row.messages, response.content) for response in row.responses]
    return len(examples[0].prompt_ids) + sum(len(example.response_ids) for example in examples)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    """Two epochs of three steps. A step has four rows in two micro-batches, each with one row of weight 0."""
    tokenizer, snapshots = build_tokenizer(), Snapshots()
    model = build_model(tokenizer)
    reference = copy.deepcopy(model).double()
    config = FusionConfig(
        output_dir=str(tmp_path_factory.mktemp("steps")),
        objective="wrpo",
        beta=BETA,
        alpha=ALPHA,
        num_train_epochs=2,
        warmup_steps=WARMUP,
        per_device_train_batch_size=ROWS_OF_A_STEP // 2,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        **CPU,
    )
    trainer = FusionTrainer(model, config, ROWS, tokenizer, callbacks=[snapshots])
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert len(logged) == len(snapshots.models) == 6
    found: list[Step] = []
    for index, (line, snapshot) in enumerate(zip(logged, snapshots.models, strict=True)):
        first = index * ROWS_OF_A_STEP % len(ROWS)
        rows = ROWS[first : first + ROWS_OF_A_STEP]
        expected = step_by_hand(snapshot, reference, tokenizer, rows, alpha=ALPHA * index / len(logged))
        # Up to the rate in WARMUP steps, and linearly down to 0 at the end.
        rate = index / WARMUP if index < WARMUP else (len(logged) - index) / (len(logged) - WARMUP)
        expected["learning_rate"] = CPU["learning_rate"] * rate
        expected["num_tokens"] = sum(num_tokens(tokenizer, row) for row in rows if row.weight)
        expected["num_tokens"] += found[-1].expected["num_tokens"] if found else 0
        found.append(Step(line, expected))
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("loss", "grad_norm", "alpha", "learning_rate", "num_tokens"),
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("rewards/source_chosen", "rewards/target_chosen", "rewards/source_accuracies"),
        *("logps/chosen", "logps/rejected", "logps/source_chosen"),
    ],
)
def test_every_step_of_a_ramped_wrpo_is_its_formula(name: str, steps: list[Step]) -> None:
    """With the initial model as reference, the alpha of this step, and the weights of its rows."""
    logged = [step.logged[name] for step in steps]
    assert logged == pytest.approx([step.expected[name] for step in steps], rel=2e-4, abs=2e-5)
    assert len(set(logged)) > 1  # so that a constant would not agree


def test_the_steps_would_tell_another_alpha_and_swapped_models(steps: list[Step]) -> None:
    """The comparison above is sharp: by now the two chosen answers differ from each other and from the rejected one."""
    last = steps[-1].expected
    assert abs(last["rewards/source_chosen"] - last["rewards/target_chosen"]) > 0.1
    assert abs(last["rewards/margins"]) > 0.1


def test_the_models_own_dropout_is_off(tmp_path: Path) -> None:
    """Before the first update policy and reference agree, in the library's attention, which would drop weights."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    config = FusionConfig(str(tmp_path), objective="wrpo", beta=1.0, max_steps=1, share_prompt="off", **CPU)
    trainer = FusionTrainer(model, config, ROWS, tokenizer)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


# --- seeds -----------------------------------------------------------------------------------------------------------


def losses_of(
    folder: Path, rows: Sequence[TrainingRow] = ROWS, objective: str = "wrpo", **arguments: Any
) -> list[float]:
    """The losses of six steps of four rows."""
    tokenizer = build_tokenizer()
    given = {"max_steps": 6, "per_device_train_batch_size": 4, **CPU, **arguments}
    trainer = FusionTrainer(
        build_model(tokenizer), FusionConfig(str(folder), objective=objective, **given), rows, tokenizer
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def plain(index: int) -> TrainingRow:
    return TrainingRow(f"p{index}", (Message("user", f"What is {index}?"),), (RowResponse(f"capital of {index}"),))


PLAIN = [plain(index) for index in range(12)]


def test_the_seed_decides_the_order_of_the_rows(tmp_path: Path) -> None:
    """At a learning rate of 0 a step's loss identifies its rows. Epochs have the same rows in different orders."""
    first, again, other = (losses_of(tmp_path, PLAIN, "sft", seed=seed, learning_rate=0.0) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert losses_of(tmp_path, PLAIN, "sft", seed=1, data_seed=2, learning_rate=0.0) == other
    assert first[:3] != first[3:]


def test_the_seed_decides_a_new_adapter_and_its_dropout(tmp_path: Path) -> None:
    """Whatever was drawn before, with the same order of rows."""

    def adapter_and_losses(seed: int, drawn_before: int, **arguments: Any) -> tuple[Tensor, list[float]]:
        torch.manual_seed(drawn_before)
        tokenizer = build_tokenizer()
        config = FusionConfig(
            str(tmp_path), seed=seed, lora_r=2, max_steps=3, train_sampling_strategy="sequential", **CPU, **arguments
        )
        trainer: Any = FusionTrainer(build_model(tokenizer), config, PLAIN, tokenizer)
        adapter = torch.cat([value.flatten() for name, value in trainer.model.named_parameters() if "lora_A" in name])
        adapter = adapter.detach().clone()
        trainer.train()
        return adapter, [line["loss"] for line in trainer.state.log_history if "loss" in line]

    adapter, losses = adapter_and_losses(1, 0, lora_dropout=0.5)
    again, same_losses = adapter_and_losses(1, 7, lora_dropout=0.5)
    other, _ = adapter_and_losses(2, 0, lora_dropout=0.5)
    undropped, other_losses = adapter_and_losses(1, 0)
    assert torch.equal(adapter, again)
    assert torch.equal(adapter, undropped)
    assert losses == same_losses != other_losses
    assert not torch.equal(adapter, other)


def test_what_train_is_given_reaches_the_trainer(tmp_path: Path) -> None:
    """Seed, cache and progress, through the whole of ``train``; another seed in the same folder trains again."""
    folder, cache = save_tiny(tmp_path / "model"), tmp_path / "cache"
    arguments = {**CPU, "max_steps": 2, "per_device_train_batch_size": 4, "max_length": 45}

    def curve(output: str, seed: int) -> tuple[list[float], TrainingResult]:
        told: list[tuple[int, int, float]] = []
        result = train(
            ROWS[:8],
            model=str(folder),
            objective="wrpo",
            output_dir=tmp_path / output,
            hyperparameters={"beta": BETA},
            arguments=arguments,
            seed=seed,
            cache_dir=cache,
            report_progress=lambda *step: told.append(step),
        )
        lines = [json.loads(line) for line in (tmp_path / output / METRICS).read_text().splitlines()]
        assert [(step, num_steps) for step, num_steps, _ in told] == [(1, 2), (2, 2)]
        assert [loss for *_, loss in told] == [line["loss"] for line in lines]
        assert json.loads((tmp_path / output / "training.json").read_text())["settings"]["beta"] == BETA
        return [line["logps/rejected"] for line in lines], result

    first, result = curve("out", 1)
    assert len(list(cache.iterdir())) == 1
    assert not (tmp_path / "out" / "reference").exists()
    tokenizer = build_tokenizer()
    examples = [
        [encode_example(tokenizer, row.messages, response.content) for response in row.responses] for row in ROWS[:8]
    ]
    kept = [min(len(row[0].prompt_ids), max(22, 45 - max(len(one.response_ids) for one in row))) for row in examples]
    assert (
        result.num_cut_prompts
        == sum(len(row[0].prompt_ids) > room for row, room in zip(examples, kept, strict=True))
        > 0
    )
    assert result.num_cut == sum(
        len(one.response_ids) > 45 - room for row, room in zip(examples, kept, strict=True) for one in row
    )
    assert result.num_tokens == sum(
        room + sum(min(len(one.response_ids), 45 - room) for one in encoded)
        for row, encoded, room in zip(ROWS[:8], examples, kept, strict=True)
        if row.weight
    )
    assert curve("out", 2)[0] != first
    assert curve("again", 1)[0] == first


def test_the_speed_of_several_steps_counts_their_tokens() -> None:
    """With ``logging_steps`` above 1 a line covers several steps."""
    metrics = StepMetrics()
    for num_tokens in (100, 20):
        metrics.begin(num_tokens)
        metrics.add({"reward": torch.tensor([1.0, 5.0])}, counted=torch.tensor([True, False]))
    logged = metrics.pop(Accelerator(cpu=True))
    assert logged["tokens_per_second"] * logged["step_seconds"] == pytest.approx(120)
    assert logged["reward"] == 1


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [10, 20, 25, 600])
def test_checkpoints_come_regularly_and_none_at_the_last_step(num_steps: int, tmp_path: Path) -> None:
    """At the last step the model itself is written instead."""
    every = steps_between(num_steps)
    args, control = FusionConfig(str(tmp_path), use_cpu=True), TrainerControl()
    due = []
    for step in range(1, num_steps + 1):
        RegularCheckpoints().on_step_end(args, TrainerState(global_step=step, max_steps=num_steps), control)
        due += [step] if control.should_save else []
    assert due == list(range(every, num_steps, every))


# --- Sinter's own arguments ------------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """The figures of a training that tests can see."""

    losses: list[float]
    num_tokens: int
    num_cut: int
    num_cut_prompts: int
    num_dropped: int
    num_forward_passes: int
    num_computed: int
    """Tokens that the model has read."""
    num_trained: int
    """Weights."""
    products: str


@pytest.fixture(scope="module")
def figures_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Any]], Figures]:
    """Maps arguments to the figures of a training with them; trainings that tests compare with run once."""
    known: dict[str, Figures] = {}

    def figures(arguments: Mapping[str, Any]) -> Figures:
        key = json.dumps(arguments)
        if key not in known:
            known[key] = train_with(tmp_path_factory.mktemp("figures"), arguments)
        return known[key]

    return figures


def train_with(folder: Path, arguments: Mapping[str, Any]) -> Figures:
    """Two steps of four WRPO rows; the source's answers begin with a thought."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{{ 'Today is ' + strftime_now('%Y-%m-%d') + '.\n' }}{% if is_loud is defined %}{{ 'LOUD' }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    rows = [
        row.__class__(row.prompt_id, row.messages, (RowResponse(THOUGHT + "four", "chosen_source"), *row.responses[1:]))
        for row in ROWS[:8]
    ]
    given = {"template_date": "2026-11-30", "max_steps": 2, "per_device_train_batch_size": 4, **CPU, **arguments}
    config = FusionConfig(str(folder), objective="wrpo", train_sampling_strategy="sequential", **given)
    trainer: Any = FusionTrainer(build_model(tokenizer), config, rows, tokenizer)
    lines: list[int] = []
    compute: Callable[..., Tensor] = trainer.compute_loss

    def counting(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        lines.append(inputs["sequences"]["input_ids"].numel())
        return compute(model, inputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "compute_loss", counting)
        trainer.train()
    return Figures(
        losses=[line["loss"] for line in trainer.state.log_history if "loss" in line],
        num_tokens=trainer.state.num_input_tokens_seen,
        num_cut=trainer.num_cut,
        num_cut_prompts=trainer.num_cut_prompts,
        num_dropped=len(trainer.dropped),
        num_forward_passes=len(lines),
        num_computed=sum(lines),
        num_trained=sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad),
        products="bfloat16" if trainer.accelerator.mixed_precision == "bf16" else "float32",
    )


LORA: Mapping[str, Any] = {"lora_r": 2}
CHANGES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], set[str]]] = {
    # name of the argument: settings, the same with the argument changed, the figures that must change
    "max_length": ({}, {"max_length": 50}, {"losses", "num_tokens", "num_cut"}),
    "max_prompt_length": ({"max_length": 50}, {"max_length": 50, "max_prompt_length": 40}, {"losses"}),
    "chunk_tokens": ({}, {"chunk_tokens": 150}, {"num_forward_passes"}),
    "bf16": ({}, {"bf16": True}, {"products", "losses"}),
    "share_prompt": ({}, {"share_prompt": "off"}, {"num_computed"}),
    "thoughts": ({}, {"thoughts": "strip"}, {"losses", "num_tokens"}),
    "chat_template_kwargs": ({}, {"chat_template_kwargs": {"is_loud": True}}, {"losses", "num_tokens"}),
    "template_date": ({}, {"template_date": "2027-01-02"}, {"losses"}),
    "lora_r": ({}, LORA, {"num_trained", "losses"}),
    "lora_alpha": (LORA, {**LORA, "lora_alpha": 4}, {"losses"}),
    "lora_dropout": (LORA, {**LORA, "lora_dropout": 0.5}, {"losses"}),
    "lora_target_modules": (LORA, {**LORA, "lora_target_modules": ["q_proj"]}, {"num_trained", "losses"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_own_argument_reaches_a_figure(name: str, figures_of: Callable[[Mapping[str, Any]], Figures]) -> None:
    settings, changed, expected = CHANGES[name]
    before, after = figures_of(settings), figures_of(changed)
    differing = {field for field in Figures._fields if getattr(before, field) != getattr(after, field)}
    assert differing >= expected
    if name in ("chunk_tokens", "share_prompt"):  # these change numbers only by rounding
        assert after.losses == pytest.approx(before.losses, rel=1e-4)


def test_thoughts_that_are_refused_drop_their_rows(tmp_path: Path) -> None:
    with pytest.raises(ToleranceError, match="no training row is left of 8"):
        train_with(tmp_path, {"thoughts": "refuse"})


def test_no_own_argument_is_forgotten(tmp_path: Path) -> None:
    """The router's coefficient needs a mixture of experts (test_router_loss.py); any other model refuses it."""
    assert {*CHANGES, "router_aux_loss_coef"} == {own.name for own in fields(FusionArguments)}
    with pytest.raises(InputError, match=r"router_aux_loss_coef is 0\.5, but LlamaForCausalLM gives no loss"):
        train_with(tmp_path, {"router_aux_loss_coef": 0.5})
