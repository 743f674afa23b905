"""ArmoRM: 19 objectives of an answer, weighted by a gate that reads the prompt (arXiv 2406.12845).

With h_x the backbone's last hidden state at the end of the prompt and h_xy that at the end of the dialogue:

    r = W h_xy                                  the objectives
    g = scale * softmax(MLP(h_x) / t)           the gate: a weight for each objective
    score = sum_i g_i (r^T M)_i                 M takes the verbosity out of every objective

The layout is that of RLHFlow/ArmoRM-Llama3-8B-v0.1; none of the code in its repository is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sinterlm.errors import InputError
from sinterlm.models import load_model_of, load_tokenizer
from sinterlm.scoring.dialogues import Dialogue, Reading
from sinterlm.scoring.loaded_reader import Batch, Loaded, LoadedReader, LoadedScorer

if TYPE_CHECKING:
    from sinterlm.scoring.armorm_model import GatedScore

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
"""The objectives, in the order of ``objectives`` and ``gate`` in a score's detail."""
ANSWER_HEADER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
"""The end of the prompt's last turn, and the answer's header: the gate reads the prompt at the first token."""
DETAIL_DIGITS = 6
"""Decimal places of the detail, which holds 38 numbers for every score."""


class ArmoRM(LoadedReader):
    """A model of the layout of RLHFlow/ArmoRM-Llama3-8B-v0.1."""

    kind: Literal["armorm"]

    description: ClassVar = "ArmoRM: 19 objectives, weighted by a gate that reads the prompt; the detail holds both"

    def build_reader(self) -> ArmoRMScorer:
        """The scorer; its first ``score`` loads the model."""
        return ArmoRMScorer(**self.arguments)


class ArmoRMScorer(LoadedScorer):
    """Scores by ArmoRM; the detail holds its ``objectives`` and the ``gate``'s weights, in the order of OBJECTIVES."""

    kind = "armorm"

    def _load(self) -> Loaded:
        from sinterlm.scoring import armorm_model

        model = load_model_of(armorm_model.ArmoRM, self._name, device=self._device, dtype=self._dtype)
        if not self._float32_head:
            model.to(model.model.dtype)
        return Loaded(model, load_tokenizer(self._name), model.config.pad_token_id or 0)

    def _read(self, loaded: Loaded, batch: Batch) -> list[Reading]:
        import torch

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
    """Where ``pattern`` last begins in ``tokens``; None if it does not occur."""
    starts = range(len(tokens) - len(pattern), -1, -1)
    return next((start for start in starts if tokens[start : start + len(pattern)] == pattern), None)


def _rounded(values: Any) -> list[float]:
    return [round(value, DETAIL_DIGITS) for value in values]
