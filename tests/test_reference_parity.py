"""FusionTrainer compared with the float64 reference: rows from a file, the real train() loop, fp32 on a CPU.

At the start policy and reference are equal, so that log-ratios are 0; the second step's loss tells objectives apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.chat import encode_example
from sinterlm.formats import read_training_file
from sinterlm.objectives import ResolvedObjective, resolve_objective
from sinterlm.records import RowResponse, TrainingRow
from sinterlm.training.members import find_members
from tests.reference import preference
from tests.reference.preference import Answer
from tests.tiny import build_model, build_tokenizer

TOKENIZER = build_tokenizer("llama3")
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fusesft": ("fusesft", {}),
    "fusesft of means": ("fusesft", {"average_logps": True}),
    "fusepo": ("fusepo", {"beta": 0.5}),
    "fusepo over ln-dpo": ("fusepo", {"base": "ln-dpo", "beta": 2.0}),
    "fusepo over simpo": ("fusepo", {"base": "simpo", "beta": 2.0, "gamma": 0.5}),
    "rloo": ("rloo", {}),
    "rloo with kl": ("rloo", {"kl": 0.5}),
    "rloo within sources": ("rloo", {"baseline": "source", "kl": 0.5}),
    "fusepo-rloo": ("fusepo-rloo", {}),
    "fusepo-rloo with kl": ("fusepo-rloo", {"kl": 0.5}),
    "fusepo-rloo over all": ("fusepo-rloo", {"baseline": "all", "kl": 0.5}),
    "wrpo over ipo": ("wrpo", {"base": "ipo", "tau": 0.2, "alpha": 0.3, "alpha_schedule": "constant"}),
    "wrpo, both sides": ("wrpo", {"beta": 0.5, "alpha": 0.3, "alpha_schedule": "constant", "rejected_mix": True}),
}
SOURCE_WEIGHTS = {"gemma": 0.7, "qwen": 0.2, "phi": 0.1}


def members_of(objective: ResolvedObjective, row: int) -> list[tuple[str, str]]:
    """Source and role of every response of a row, with sources interleaved; row 0 has only one source."""
    sources = list(SOURCE_WEIGHTS)[: 3 if row else 1]
    if objective.objective.per == "row":
        members = [("gemma", role) for role in objective.roles]
    elif objective.objective.per == "group":
        members = [(source, role) for source in sources for role in objective.roles]
    else:
        members = [(source, "chosen") for number, source in enumerate(sources) for _ in range(2 + number)]
    return members[::2] + members[1::2]


def write_file(path: Path, objective: ResolvedObjective) -> None:
    """Five rows of answers of different lengths, in the many-responses shape."""
    lines = []
    for row in range(5):
        responses = [
            {
                "content": f"{'five ' * (number * row % 4)}{source} {role} {number}",
                "role": role,
                "source": source,
                "score": ((3 * row + 5 * number) % 7) / 4,
                "weight": SOURCE_WEIGHTS[source] if objective.objective.reads_weights else None,
            }
            for number, (source, role) in enumerate(members_of(objective, row))
        ]
        lines.append({"prompt": f"What is {'hot ' * row}?", "responses": responses, "weight": 0.5 + row})
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@torch.no_grad()
def sequence_logp(model: PreTrainedModel, row: TrainingRow, content: str) -> tuple[float, int]:
    """By the definition, one sequence at a time: log pi(y|x) in float64, and the number of tokens."""
    example = encode_example(TOKENIZER, row.messages, content)
    logits = model(input_ids=torch.tensor([example.prompt_ids + example.response_ids])).logits[0].double()
    logps = logits[len(example.prompt_ids) - 1 : -1].log_softmax(-1)
    return float(logps.gather(-1, torch.tensor(example.response_ids)[:, None]).sum()), len(example.response_ids)


def as_answer(policy: PreTrainedModel, reference: PreTrainedModel, row: TrainingRow, response: RowResponse) -> Answer:
    lp, length = sequence_logp(policy, row, response.content)
    ref, _ = sequence_logp(reference, row, response.content)
    weight = 1.0 if response.weight is None else response.weight
    return Answer(
        np.array(lp), np.array(ref), np.array(length), response.role, response.source, response.score or 0.0, weight
    )


def step_loss(
    policy: PreTrainedModel, reference: PreTrainedModel, rows: Sequence[TrainingRow], objective: ResolvedObjective
) -> float:
    """The reference's loss of a step over all rows."""
    answers = [[as_answer(policy, reference, row, response) for response in row.responses] for row in rows]
    row_weights = [row.weight for row in rows]
    if objective.name == "fusesft" and not objective.values["average_logps"]:
        columns = [np.array([(y.lp, y.length, y.weight) for y in row]).T for row in answers]
        weights = [own * weight for (_, _, own), weight in zip(columns, row_weights, strict=True)]
        return preference.likelihood_step([lp for lp, _, _ in columns], [length for _, length, _ in columns], weights)
    losses = [preference.row_loss(objective.name, objective.values, row) for row in answers]
    return float(np.average(losses, weights=row_weights))


def train(rows: Sequence[TrainingRow], name: str, num_steps: int, folder: Path) -> tuple[PreTrainedModel, list[float]]:
    """The model after this many steps, each over all rows, and the losses of the steps."""
    objective, hyperparameters = CASES[name]
    config = FusionConfig(
        output_dir=str(folder),
        objective=objective,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        max_steps=num_steps,
        per_device_train_batch_size=5,
        chunk_tokens=150,  # so that a step has several chunks
        optim="sgd",
        learning_rate=0.3,
        lr_scheduler_type="constant",
        **hyperparameters,
    )
    model = build_model(TOKENIZER)
    trainer = FusionTrainer(model, config, rows, TOKENIZER)
    trainer.train()
    return model.eval(), [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("name", CASES)
def test_the_losses_of_steps_are_the_references(name: str, tmp_path: Path) -> None:
    objective = resolve_objective(*CASES[name])
    write_file(tmp_path / "rows.jsonl", objective)
    check = partial(find_members, objective=objective)
    rows = read_training_file(tmp_path / "rows.jsonl", objective.roles, check=check)
    start = build_model(TOKENIZER)
    after_one_step, _ = train(rows, name, 1, tmp_path)
    _, losses = train(rows, name, 2, tmp_path)
    expected = [step_loss(policy, start, rows, objective) for policy in (start, after_one_step)]
    assert abs(expected[1] - expected[0]) > 1e-3
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-5)
