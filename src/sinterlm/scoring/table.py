"""The scorers a recipe can name. A new one is a file beside this one, a row here, a model in ``recipe/schema.py``."""

from __future__ import annotations

from typing import NamedTuple


class ScorerRow(NamedTuple):
    """Where a scorer stands, and what it is in one line."""

    path: str
    """``module:class``; nothing is imported before a scorer is built."""
    description: str
    check: str | None = None
    """``module:function`` that raises where this machine lacks what the scorer needs; called before any answer is."""
    rules: str | None = None
    """``module:constant`` that names the scorer's own rules, of which neither its settings nor weights tell: it changes
    whenever an answer may get another score than before. The module imports no torch."""


SCORERS = {
    "exact-match": ScorerRow(
        "sinterlm.scoring.exact_match:ExactMatchScorer",
        "1 where the answer equals an accepted answer, letter case, articles and punctuation around it aside; else 0",
        rules="sinterlm.scoring.exact_match:NORMALISATION",
    ),
    "mathematics": ScorerRow(
        "sinterlm.scoring.mathematics:MathematicsScorer",
        "1 where the final answer equals an accepted one by value, as math-verify finds and compares them; else 0",
        "sinterlm.scoring.mathematics:check_packages",
        "sinterlm.scoring.mathematics:RULES",
    ),
    "code": ScorerRow(
        "sinterlm.scoring.code.scorer:CodeScorer",
        "1 where the program in the answer passes the prompt's tests, run in a sandbox; else 0",
        "sinterlm.scoring.code.sandbox:check_isolation",
        "sinterlm.scoring.code.scorer:VERSION",
    ),
    "reward-model": ScorerRow(
        "sinterlm.scoring.reward_model:RewardModelScorer",
        "the output of a sequence-classification model, which reads with its own tokenizer and chat template",
    ),
    "armorm": ScorerRow(
        "sinterlm.scoring.armorm:ArmoRMScorer",
        "ArmoRM: 19 objectives, weighed by a gate that reads the prompt; both stand beside the score",
    ),
    "judge": ScorerRow(
        "sinterlm.scoring.judge:JudgeScorer",
        "a language model behind the OpenAI protocol: a grade, grades by a rubric, or the win rate against a baseline",
        rules="sinterlm.scoring.judge_prompts:WORDING",
    ),
    "recorded": ScorerRow(
        "sinterlm.scoring.recorded:RecordedScorer",
        "scores made elsewhere, from a JSON Lines or Parquet file, joined by prompt and answer",
    ),
    "by-domain": ScorerRow(
        "sinterlm.scoring.by_domain:ByDomainScorer",
        "a scorer for every domain of the prompts, such as a verifier for mathematics and a reward model else",
    ),
    "combination": ScorerRow(
        "sinterlm.scoring.combination:CombinationScorer",
        "several scorers as one: a weighted sum, a gate (a verifier first), or a rank (ties go to the next)",
    ),
}
