"""The scorers a recipe can name. A new one is a file beside this one, a row here, a model in ``recipe/schema.py``."""

from __future__ import annotations

from typing import NamedTuple


class ScorerRow(NamedTuple):
    """Where a scorer stands, and what it is in one line."""

    path: str
    """``module:class``; nothing is imported before a scorer is built."""
    description: str


SCORERS = {
    "exact-match": ScorerRow(
        "sinterlm.scoring.exact_match:ExactMatchScorer",
        "1 where the answer equals an accepted answer, letter case, articles and punctuation around it aside; else 0",
    ),
    "reward-model": ScorerRow(
        "sinterlm.scoring.reward_model:RewardModelScorer",
        "the output of a sequence-classification model, which reads with its own tokenizer and chat template",
    ),
}
