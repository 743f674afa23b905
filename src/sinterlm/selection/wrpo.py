"""WRPO's rows: prompt, the sources' best answer, the target's best and worst (arXiv 2412.03187, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sinterlm.records import Candidates, RowResponse, Selection
from sinterlm.selection.choices import (
    NoRow,
    TargetTies,
    choose_source_answer,
    choose_target_pair,
    collect,
    to_row_response,
)
from sinterlm.selection.ranking import Ties, Truncated


def select_wrpo(
    candidates: Iterable[Candidates],
    *,
    seed: int,
    ties: Ties = "hash",
    target_ties: TargetTies = "keep",
    truncated: Truncated = "drop",
    stage: str = "select-wrpo",
) -> Selection:
    """Select y_ws (best over all sources), y_wt and y_l (best and worst of the target) for every prompt.

    With a pass-or-fail scorer y_ws passes and y_l fails; y_wt and y_l are different texts.

    Args:
        candidates: every prompt's scored answers, in any order; read once.
        seed: decides ties.
        ties: ``hash`` takes the smallest SHA-256 of (seed, prompt id, source, index), ``first`` the first in order.
        target_ties: whether prompts stay where the target's best answer is no better than its worst.
        truncated: whether answers cut by the token limit may be chosen.
        stage: named in every :class:`Dropped`.

    Returns:
        Rows with the roles ``chosen_source``, ``chosen_target`` and ``rejected``, and the prompts that give none.
    """

    def choose(candidate: Candidates) -> Sequence[RowResponse] | NoRow:
        source = choose_source_answer(candidate.sources, seed=seed, ties=ties, truncated=truncated)
        if isinstance(source, NoRow):
            return source
        pair = choose_target_pair(candidate.target, seed=seed, ties=ties, target_ties=target_ties, truncated=truncated)
        if isinstance(pair, NoRow):
            return pair
        return (
            to_row_response(source, "chosen_source"),
            to_row_response(pair.best, "chosen_target"),
            to_row_response(pair.worst, "rejected"),
        )

    return collect(candidates, choose, stage=stage)
