"""ArmoRM: 19 objectives of an answer, weighed by a gate that reads the prompt (arXiv 2406.12845).

With h_x the backbone's last hidden state at the end of the prompt and h_xy that at the end of the dialogue:

    r = W h_xy                                  the objectives
    g = scale * softmax(MLP(h_x) / t)           the gate: a weight for each objective
    score = sum_i g_i (r^T M)_i                 M takes from every objective what it has of verbosity

The layout is that of RLHFlow/ArmoRM-Llama3-8B-v0.1; none of the code in its repository is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel

from sinterlm.errors import InputError
from sinterlm.models import load_model_of, load_tokenizer
from sinterlm.scoring.dialogues import Batch, Dialogue, DialogueScorer, Loaded, Reading

OBJECTIVES = (
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)
"""What ``objectives`` and ``gate`` in a score's detail are about, in their order."""
ANSWER_HEADER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
"""The end of the prompt, with the end of its last turn: the gate reads the prompt at the first token of this."""
DETAIL_DIGITS = 6
"""Decimal places of the detail: 38 numbers stand beside every score."""


class GatedScore(NamedTuple):
    """What the model says of B dialogues in K objectives."""

    score: Tensor
    """(B,)."""
    objectives: Tensor
    """(B, K), before the transform."""
    gate: Tensor
    """(B, K)."""


class GatingNetwork(nn.Module):
    """The gate: linear layers with ReLU between them, a softmax with a temperature, and a scale."""

    def __init__(self, sizes: Sequence[int], *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states of prompts (B, H) to weights of objectives (B, K)."""
        *inner, last = self.layers
        for layer in inner:
            hidden = layer(hidden).relu()
        weights: Tensor = (last(hidden) / self.temperature).softmax(dim=-1) * self.logit_scale
        return weights


class ArmoRM(LlamaPreTrainedModel):
    """A Llama with the objectives' regression, the gate and the transform; names and shapes are the checkpoint's."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        num_objectives = getattr(config, "num_objectives", len(OBJECTIVES))
        inner_sizes = [getattr(config, "gating_hidden_dim", 1024)] * getattr(config, "gating_n_hidden", 3)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, num_objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(num_objectives))
        self.gating = GatingNetwork(
            [config.hidden_size, *inner_sizes, num_objectives], temperature=getattr(config, "gating_temperature", 10)
        )
        self._keep_in_fp32_modules_strict = {"regression_layer", "reward_transform_matrix", "gating"}
        self.post_init()  # type: ignore[no-untyped-call]  # Transformers'

    def forward(self, input_ids: Tensor, attention_mask: Tensor, gate_positions: Tensor) -> GatedScore:
        """Score B dialogues of T tokens, padded on either side.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T).
            gate_positions: (B,), where the gate reads.
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        hidden = hidden.to(self.regression_layer.weight.dtype)
        rows, columns = (torch.arange(size, device=input_ids.device) for size in input_ids.shape)
        last_positions = (columns * attention_mask).argmax(dim=-1)
        objectives = self.regression_layer(hidden[rows, last_positions])
        gate = self.gating(hidden[rows, gate_positions])
        score = (gate * (objectives @ self.reward_transform_matrix)).sum(dim=-1)
        return GatedScore(score, objectives, gate)


class ArmoRMScorer(DialogueScorer):
    """Scores by ArmoRM; the detail holds its ``objectives`` and the ``gate``'s weights, in the order of OBJECTIVES."""

    kind = "armorm"

    def _load(self) -> Loaded:
        model = load_model_of(ArmoRM, self._name, device=self._device, dtype=self._dtype)
        if not self._float32_head:
            model.to(model.model.dtype)
        return Loaded(model, load_tokenizer(self._name), model.config.pad_token_id or 0)

    def _read(self, loaded: Loaded, batch: Batch) -> list[Reading]:
        header = list(loaded.tokenizer(ANSWER_HEADER, add_special_tokens=False)["input_ids"])
        positions = [self._gate_position(dialogue, header) for dialogue in batch.dialogues]
        found: GatedScore = loaded.model(
            batch.input_ids, batch.attention_mask, torch.tensor(positions, device=batch.input_ids.device)
        )
        score, objectives, gate = (part.float().tolist() for part in found)
        return [
            Reading(value, {"objectives": _rounded(rewards), "gate": _rounded(weights)})
            for value, rewards, weights in zip(score, objectives, gate, strict=True)
        ]

    def _gate_position(self, dialogue: Dialogue, header: list[int]) -> int:
        position = find_last(header, dialogue.tokens)
        if position is None:
            raise InputError(
                f"prompt {dialogue.prompt_id}: the chat template of {self._name} writes no {ANSWER_HEADER!r} before "
                "the answer, where ArmoRM's gate reads the prompt; use the tokenizer and the chat template that the "
                "model was published with"
            )
        return position


def find_last(pattern: list[int], tokens: list[int]) -> int | None:
    """Where ``pattern`` last begins in ``tokens``; None where it does not stand there."""
    starts = range(len(tokens) - len(pattern), -1, -1)
    return next((start for start in starts if tokens[start : start + len(pattern)] == pattern), None)


def _rounded(values: Any) -> list[float]:
    return [round(value, DETAIL_DIGITS) for value in values]
