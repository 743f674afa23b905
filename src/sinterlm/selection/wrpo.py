"""WRPO's rows: prompt, the sources' best answer, the target's best and worst (arXiv 2412.03187, section 3.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

from sinterlm.records import Candidates, Role, RowResponse, Scored, Selection
from sinterlm.selection.choices import (
    NO_REJECTED_SOURCE_ANSWER,
    TARGET_PAIR,
    NoRow,
    PairTies,
    choose_pair,
    choose_source_answer,
    collect,
    to_row_response,
)
from sinterlm.selection.margins import Window
from sinterlm.selection.ranking import Ties, Truncated, passes, select_eligible, select_worst
from sinterlm.selection.ranking import rank as rank_of
from sinterlm.selection.settings import TARGET, Margin, SelectAmongSources
from sinterlm.settings import Positive


class Wrpo(SelectAmongSources):
    """The quadruples of WRPO (arXiv 2412.03187, section 3.1)."""

    kind: Literal["wrpo"]
    rank: Positive = 1
    """Which of the sources' answers is chosen: 1 is the best, 2 the second best."""
    rejected_source: bool = False
    """Whether the row also holds the worst answer of the chosen answer's source (equation 9)."""
    min_margin: Margin | None = None
    """The smallest difference between the scores of a pair."""
    ties: Ties = "hash"
    """Among answers of the same score, take the one with the smallest SHA-256 of seed, prompt id, source and index, or
    the first in order, which is the argmax of the papers.
    """
    target_ties: PairTies = "keep"
    """Whether a prompt is kept if the target's best answer is no better than its worst."""
    truncated: Truncated = "drop"
    """Whether answers that the token limit cut may be chosen. Kept ones get no end-of-turn token in training."""

    description = "quadruples: prompt, the sources' best answer, the target's own best and worst"
    formula = "y_ws = argmax over k, i of s(y_ki); y_wt = argmax, y_l = argmin over j of s(y_j)"
    paper = "WRPO, arXiv 2412.03187"
    roles = ("chosen_source", "chosen_target", "rejected")
    by_prompt = skips_ineligible = True
    pairs_of = TARGET
    optional_roles: ClassVar[Mapping[str, tuple[Role, ...]]] = {"rejected_source": ("rejected_source",)}

    def select(self, candidates: Iterable[Candidates], *, seed: int, stage: str) -> Selection:
        """As :func:`select_wrpo`."""
        return select_wrpo(candidates, seed=seed, stage=stage, **self.arguments)


def select_wrpo(
    candidates: Iterable[Candidates],
    *,
    seed: int,
    sources: Collection[str] | None = None,
    num_samples: int | None = None,
    rank: int = 1,
    rejected_source: bool = False,
    min_margin: float | None = None,
    ties: Ties = "hash",
    target_ties: PairTies = "keep",
    truncated: Truncated = "drop",
    stage: str = "select-wrpo",
) -> Selection:
    """Select y_ws (best over all sources), y_wt and y_l (best and worst of the target) for every prompt.

    With a pass-or-fail scorer y_ws passes and y_l fails; y_wt and y_l are different texts.

    Args:
        candidates: Every prompt's scored answers, in any order; read once.
        seed: Decides ties.
        sources: Names of the sources that take part; all by default.
        num_samples: How many samples of each source take part, the first by index; all by default.
        rank: Which of the sources' answers is y_ws: 1 the best, 2 the second best of different texts (appendix D).
        rejected_source: Whether y_ls, the worst answer of the source that gave y_ws, is part of the row (equation 9).
        min_margin: The smallest difference between the scores of y_wt and y_l; 1 and 0 that only say passed and failed
            are always far enough apart.
        ties: ``hash`` takes the smallest SHA-256 of (seed, prompt id, source, index), ``first`` the first in order.
        target_ties: Whether a prompt is kept if the target's best answer is no better than its worst.
        truncated: Whether answers cut by the token limit may be chosen.
        stage: Named in every :class:`Dropped`.

    Returns:
        Rows with the roles ``chosen_source``, ``chosen_target`` and ``rejected``, and ``rejected_source`` if asked
        for, and the prompts that give none.
    """
    window = None if min_margin is None else Window(min_margin)

    def choose(candidate: Candidates) -> Sequence[RowResponse] | NoRow:
        source = choose_source_answer(candidate.sources, seed=seed, ties=ties, truncated=truncated, rank=rank)
        if isinstance(source, NoRow):
            return source
        pair = choose_pair(
            candidate.target,
            TARGET_PAIR,
            seed=seed,
            ties=ties,
            truncated=truncated,
            tied=target_ties,
            window=window,
        )
        if isinstance(pair, NoRow):
            return pair
        responses = [
            to_row_response(source, "chosen_source"),
            to_row_response(pair.best, "chosen_target"),
            to_row_response(pair.worst, "rejected"),
        ]
        if rejected_source:
            worst = _choose_rejected(source, candidate.sources, seed=seed, ties=ties, truncated=truncated)
            if isinstance(worst, NoRow):
                return worst
            responses.append(to_row_response(worst, "rejected_source"))
        return responses

    return collect(candidates, choose, stage=stage, sources=sources, num_samples=num_samples)


def _choose_rejected(
    chosen: Scored, answers: Sequence[Scored], *, seed: int, ties: Ties, truncated: Truncated
) -> Scored | NoRow:
    """The worst answer of the source that gave ``chosen`` (y_ls): another text, and worse.

    With a pass-or-fail scorer it fails.
    """
    others = [
        answer
        for answer in select_eligible(answers, truncated=truncated)
        if answer.response.source == chosen.response.source and answer.response.content != chosen.response.content
    ]
    if others:
        worst = select_worst(others, seed=seed, ties=ties)
        if not passes(worst) and rank_of(worst) < rank_of(chosen):
            return worst
    return NoRow(NO_REJECTED_SOURCE_ANSWER, f"{chosen.response.source}: {len(others)} other answers, none worse")
