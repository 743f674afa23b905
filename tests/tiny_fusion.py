"""A whole fusion of tiny models on disk: every stage is real, and small enough to run in seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.tiny import save_tiny, save_tiny_reward_model

RECIPE = """\
output: {folder}/run
seed: 3
prompts: {{path: questions.jsonl, split: {{held_out: 8, sft: 0.5, preference: rest}}}}
target:
  model: {folder}/models/target
  prompt: {{system: Answer with one word.}}
  sampling: {{num_samples: 3, temperature: 1.0, top_p: 0.95, max_new_tokens: 6}}
sources:
  tiny:
    engine: transformers
    model: {folder}/models/source
    sampling: {{num_samples: 2, temperature: 1.0, top_p: 0.9, max_new_tokens: 5}}
  shots:
    engine: transformers
    model: {folder}/models/source
    prompt: {{few_shot: shots.yaml}}
    sampling: {{num_samples: 2, temperature: 1.0, top_p: 1.0, max_new_tokens: 5}}
  old-answers: {{engine: recorded, path: answers.jsonl}}
scorer: {{kind: reward-model, model: {folder}/models/reward}}
sft:
  select: {{kind: best-of-sources, truncated: keep}}
  train: {train}
preference:
  wrpo:
    select: {{kind: wrpo, truncated: keep}}
    objective: {{kind: wrpo, base: dpo, beta: 0.1, alpha: 0.5, alpha_schedule: ramp}}
    train: {train}
  dpo:
    select: {{kind: on-policy, truncated: keep}}
    objective: {{kind: dpo, beta: 0.1}}
    train: {train}
evaluation: {{held_out: {{scorer: {{kind: exact-match}}}}}}
"""
TRAIN = "{learning_rate: 1e-3, max_steps: 6, per_device_train_batch_size: 4, save_steps: 2, max_length: 128}"
SHOTS = """\
template: "Question: {question}\\nAnswer: {answer}\\n\\n"
examples:
  - {question: "What is 90 plus 3?", answer: "93"}
  - {question: "What is 80 plus 4?", answer: "84"}
"""


def write_tiny_fusion(folder: Path, *, num_questions: int = 32) -> Path:
    """Write models, questions, recorded answers and recipe into ``folder``; returns the recipe's path."""
    save_tiny(folder / "models" / "target", seed=0)
    save_tiny(folder / "models" / "source", family="llama3", seed=1)
    save_tiny_reward_model(folder / "models" / "reward", seed=2)
    questions = [
        {
            "id": f"sum-{left}-{right}",
            "prompt": f"What is {left} plus {right}?",
            "answers": [str(left + right)],
            "domain": "even" if left % 2 == 0 else "odd",
        }
        for left, right in ((number, number % 5 + 1) for number in range(num_questions))
    ]
    _write_lines(folder / "questions.jsonl", questions)
    recorded = [
        {"prompt_id": row["id"], "response": recorded_answer(number, str(row["answers"][0]))}
        for number, row in enumerate(questions)
    ]
    _write_lines(folder / "answers.jsonl", recorded)
    (folder / "shots.yaml").write_text(SHOTS)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder, train=TRAIN))
    return recipe


def recorded_answer(number: int, right: str) -> str:
    """The recorded source's answer to the question with this number: right (half), in a sentence, or wrong."""
    return {2: f"It is {right}.", 3: "no idea"}.get(number % 4, right)


def _write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
