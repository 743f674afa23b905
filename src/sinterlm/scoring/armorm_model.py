"""The network of ArmoRM: a Llama with a regression of objectives, and a gate; see ``armorm.py`` for its formulas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel

NUM_OBJECTIVES = 19
"""Those of ArmoRM-Llama3-8B-v0.1, whose configuration does not say so."""


class GatedScore(NamedTuple):
    """The model's output for B dialogues and K objectives."""

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
    """A Llama with the objectives' regression, the gate and the transform; names and shapes match the checkpoint."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        num_objectives = getattr(config, "num_objectives", NUM_OBJECTIVES)
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
            gate_positions: (B,), the positions at which the gate reads.
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        hidden = hidden.to(self.regression_layer.weight.dtype)
        rows, columns = (torch.arange(size, device=input_ids.device) for size in input_ids.shape)
        last_positions = (columns * attention_mask).argmax(dim=-1)
        objectives = self.regression_layer(hidden[rows, last_positions])
        gate = self.gating(hidden[rows, gate_positions])
        score = (gate * (objectives @ self.reward_transform_matrix)).sum(dim=-1)
        return GatedScore(score, objectives, gate)
