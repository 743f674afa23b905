"""The work of one process of ``training_step.py``: build rows and trainer, run some steps, measure time and memory."""

from __future__ import annotations

import math
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from transformers.utils import logging
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.chat import EncodedExample, encode_example
from sinterlm.models import load_model, load_tokenizer
from sinterlm.records import Message, Role, RowResponse, TrainingRow

WORDS = ("hot", "cold", "big", "small", "fast", "slow", "dog", "cat", "house", "tree", "river", "old", "new", "early")
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
)
"""Used for all models. It adds no system prompt, which Sinter would compute once for several rows."""
MAX_ANSWERS = 9


class Cell(NamedTuple):
    """A kind of row; rows with two answers have ``row_tokens`` tokens on average, counting the prompt once."""

    model: str
    row_tokens: int
    prompt_share: float
    num_rows: int
    """Rows per step."""
    trl_rows: int
    """Rows that TRL computes at once in its fastest setting (``--table trl``); it accumulates the rest of a step."""

    def __str__(self) -> str:
        name = Path(self.model).name.partition("-Instruct")[0].partition("-q4")[0]
        return f"{name}, {self.num_rows} rows of {self.row_tokens} tokens, {self.prompt_share:.0%} prompt"


@dataclass(frozen=True)
class Contender:
    """A trainer and its settings."""

    label: str
    num_answers: int
    objective: str
    """The objective of Sinter; empty for TRL's DPO."""
    settings: dict[str, Any] = field(default_factory=dict)


class Options(NamedTuple):
    """Options of all measurements."""

    device: str
    dtype: str
    threads: int
    steps: int
    warm_up: int
    max_length: int
    attention: str
    fresh_rows: bool


class Measurement(NamedTuple):
    """The measurements of one process; the lists have one entry per counted step."""

    wall: list[float]
    cpu: list[float]
    matmul_rate: list[float]
    """FLOP/s of a square product of 2,048, before each step."""
    model_matmul_rate: float
    """FLOP/s of the widest product in a layer of the model, with the tokens of a step (2,048 at most)."""
    num_tokens: float
    """Tokens per step, counting each prompt once."""
    num_unshared_tokens: float
    """Tokens per step, counting a prompt once for every response."""
    flops: float
    """Operations per step that these tokens need."""
    peak_bytes: int
    loaded_bytes: int
    """Part of the peak that libraries, model and rows take before the trainer is made."""


class StepClock(TrainerCallback):
    """Times every optimizer step and a matrix product before it."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.matmul_rate: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.matmul_rate.append(matmul_rate(2048, 2048, 2048, self._device, self._dtype))
        self._start = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize(self._device)
        self.wall.append(time.perf_counter() - self._start[0])
        self.cpu.append(time.process_time() - self._start[1])


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(m: int, k: int, n: int, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of an (m, k) by (k, n) product, the best of five."""
    left, right = (torch.ones(shape, device=device, dtype=dtype) for shape in ((m, k), (k, n)))
    seconds = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * m * k * n / min(seconds)


class Row(NamedTuple):
    """Text of a row, before an objective gives its answers roles."""

    prompt: str
    answers: list[str]


def build_rows(cell: Cell, count: int) -> list[Row]:
    """Random words of one token each; lengths vary by half. A step's rows are sorted by length, to reduce padding."""
    rng = random.Random(0)

    def words(mean: float) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(max(1, round(mean * rng.uniform(0.5, 1.5)) - 1)))

    prompt_tokens = cell.row_tokens * cell.prompt_share
    answer_tokens = (cell.row_tokens - prompt_tokens) / 2
    rows = [Row(words(prompt_tokens), [words(answer_tokens) for _ in range(MAX_ANSWERS)]) for _ in range(count)]
    steps = [rows[start : start + cell.num_rows] for start in range(0, count, cell.num_rows)]
    return [
        row for step in steps for row in sorted(step, key=lambda row: len(row.prompt + max(row.answers[:2], key=len)))
    ]


def responses(objective: str, answers: list[str]) -> tuple[RowResponse, ...]:
    """The answers with the roles, groups, weights and scores that the objective reads."""
    if objective == "rloo":
        return tuple(RowResponse(answer, score=float(index)) for index, answer in enumerate(answers))
    if objective == "fusesft":
        return tuple(RowResponse(answer, "chosen", weight=1 / len(answers)) for answer in answers)
    pair: tuple[Role, ...] = ("chosen", "rejected")
    if objective == "fusepo":
        return tuple(
            RowResponse(answer, pair[index % 2], group=str(index // 2), weight=2 / len(answers))
            for index, answer in enumerate(answers)
        )
    roles = ("chosen_source", "chosen_target", "rejected") if objective == "wrpo" else pair
    return tuple(RowResponse(answer, role) for answer, role in zip(answers, roles, strict=True))


def sinter_trainer(
    contender: Contender, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], arguments: Any
) -> Trainer:
    training_rows = [
        TrainingRow(f"p{index}", (Message("user", row.prompt),), responses(contender.objective, row.answers))
        for index, row in enumerate(rows)
    ]
    config = FusionConfig(objective=contender.objective, **arguments)
    return FusionTrainer(model, config, training_rows, tokenizer)


def trl_trainer(
    contender: Contender, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], arguments: Any
) -> Trainer:
    def conversation(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    dataset = Dataset.from_list(
        [
            {
                "prompt": conversation("user", row.prompt),
                "chosen": conversation("assistant", row.answers[0]),
                "rejected": conversation("assistant", row.answers[1]),
            }
            for row in rows
        ]
    )
    config = DPOConfig(**{"precompute_ref_log_probs": True, "gradient_checkpointing": False} | arguments)
    return DPOTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer)


def step_flops(model: PreTrainedModel, rows: list[list[EncodedExample]]) -> float:
    """Operations that the rows need, forward and backward; a prompt counts once, the head on responses only.

    6 per weight and token; in each layer, 12 per key that a query sees, times the width of all heads.
    """
    config = model.config.get_text_config()
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    embedding = config.vocab_size * config.hidden_size  # also the head's size
    body = sum(weight.numel() for weight in model.base_model.parameters()) - embedding
    flops = 0.0
    for examples in rows:
        prompt, answers = len(examples[0].prompt_ids), [len(example.response_ids) for example in examples]
        keys = prompt**2 / 2 + sum(prompt * answer + answer**2 / 2 for answer in answers)
        flops += 6 * body * (prompt + sum(answers)) + 6 * embedding * sum(answers)
        flops += 12 * config.num_hidden_layers * width * keys
    return flops


def measure(cell: Cell, contender: Contender, options: Options) -> Measurement:
    """Train for some steps; called in its own process."""
    torch.set_num_threads(options.threads)
    os.environ["TQDM_DISABLE"] = "1"
    disable_progress_bars()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)
    dtype = getattr(torch, options.dtype)
    tokenizer = load_tokenizer(cell.model)
    tokenizer.chat_template = TEMPLATE
    num_steps = options.warm_up + options.steps
    rows = [
        row._replace(answers=row.answers[: contender.num_answers])
        for row in build_rows(cell, cell.num_rows * (num_steps if options.fresh_rows else 1))
    ]
    examples = [
        [encode_example(tokenizer, (Message("user", row.prompt),), answer) for answer in row.answers] for row in rows
    ]
    num_unshared_tokens = sum(
        len(example.prompt_ids) + len(example.response_ids) for row in examples for example in row
    )
    num_tokens = num_unshared_tokens - sum(len(row[0].prompt_ids) * (len(row) - 1) for row in examples)
    model = load_model(cell.model, device=options.device, dtype="float32")
    model.set_attn_implementation(options.attention)
    # Weights are mapped from their file; reading them makes them part of the loaded memory.
    sum(float(weight.detach().sum()) for weight in model.parameters())
    loaded_bytes = used_bytes(options.device)
    rows_at_once = {"per_device_train_batch_size": cell.num_rows if contender.objective else cell.trl_rows}
    settings = rows_at_once | contender.settings
    # With another number of rows per step than the table's, use a divisor, so that all contenders see the same rows.
    rows_of_pass = math.gcd(cell.num_rows, settings["per_device_train_batch_size"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "output_dir": folder,
            "use_cpu": options.device == "cpu",
            "bf16": dtype == torch.bfloat16,
            "gradient_accumulation_steps": cell.num_rows // rows_of_pass,
            "train_sampling_strategy": "sequential",
            "max_steps": num_steps,
            "max_length": options.max_length,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "learning_rate": 1e-6,
            **settings,
            "per_device_train_batch_size": rows_of_pass,
        }
        build = sinter_trainer if contender.objective else trl_trainer
        trainer = build(contender, model, tokenizer, rows, arguments)
        clock = StepClock(options.device, dtype)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    counted = slice(options.warm_up, None)
    config = model.config.get_text_config()
    return Measurement(
        wall=clock.wall[counted],
        cpu=clock.cpu[counted],
        matmul_rate=clock.matmul_rate[counted],
        model_matmul_rate=matmul_rate(
            min(2048, num_tokens), config.hidden_size, config.intermediate_size, options.device, dtype
        ),
        num_tokens=num_tokens * cell.num_rows / len(rows),
        num_unshared_tokens=num_unshared_tokens * cell.num_rows / len(rows),
        flops=step_flops(model, examples) * cell.num_rows / len(rows),
        peak_bytes=peak_bytes(options.device),
        loaded_bytes=loaded_bytes,
    )


def used_bytes(device: str) -> int:
    return int(torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss)


def peak_bytes(device: str) -> int:
    """Peak memory of the whole process; on a GPU, of its tensors."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
