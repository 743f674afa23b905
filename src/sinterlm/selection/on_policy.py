"""Preference pairs of the target's own answers: its best against its worst."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from sinterlm.records import Candidates, RowResponse, Selection
from sinterlm.selection.choices import TARGET_PAIR, NoRow, choose_pair, collect, to_row_response
from sinterlm.selection.margins import Window
from sinterlm.selection.ranking import Ties, Truncated
from sinterlm.selection.settings import TARGET, Margin, SelectionPolicy


class OnPolicy(SelectionPolicy):
    """The target's own best against its own worst."""

    kind: Literal["on-policy"]
    min_margin: Margin | None = None
    """The smallest difference between the scores of a pair."""
    ties: Ties = "hash"
    """Among answers of the same score, take the one with the smallest SHA-256 of seed, prompt id, source and index, or
    the first in order, which is the argmax of the papers.
    """
    truncated: Truncated = "drop"
    """Whether answers that the token limit cut may be chosen. Kept ones get no end-of-turn token in training."""

    description = "pairs: the target's own best answer against its worst"
    formula = "argmax and argmin over j of s(y_j)"
    paper = "DPO, arXiv 2305.18290"
    roles = ("chosen", "rejected")
    by_prompt = skips_ineligible = True
    pairs_of = TARGET
    reads = TARGET

    def select(self, candidates: Iterable[Candidates], *, seed: int, stage: str) -> Selection:
        """As :func:`select_on_policy`."""
        return select_on_policy(candidates, seed=seed, stage=stage, **self.arguments)


def select_on_policy(
    candidates: Iterable[Candidates],
    *,
    seed: int,
    min_margin: float | None = None,
    ties: Ties = "hash",
    truncated: Truncated = "drop",
    stage: str = "select-on-policy",
) -> Selection:
    """Select the target's best and worst answer for every prompt; prompts are dropped if the two tie.

    With a pass-or-fail scorer the chosen answer passes and the rejected one fails.

    Args:
        candidates: Every prompt's scored answers, in any order; read once.
        seed: Decides between answers of the same score.
        min_margin: The smallest difference between the two scores; 1 and 0 that only say passed and failed are always
            far enough apart.
        ties: ``hash`` takes the smallest SHA-256 of (seed, prompt id, source, index), ``first`` the first in order.
        truncated: Whether answers cut by the token limit may be chosen.
        stage: Named in every :class:`Dropped`.

    Returns:
        Rows with the roles ``chosen`` and ``rejected``, and the prompts that give none.
    """
    window = None if min_margin is None else Window(min_margin)

    def choose(candidate: Candidates) -> Sequence[RowResponse] | NoRow:
        pair = choose_pair(candidate.target, TARGET_PAIR, seed=seed, ties=ties, truncated=truncated, window=window)
        if isinstance(pair, NoRow):
            return pair
        return to_row_response(pair.best, "chosen"), to_row_response(pair.worst, "rejected")

    return collect(candidates, choose, stage=stage)
