"""FusePO's rows: one pair of every source, weighted over the sources (arXiv 2504.06562)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from sinterlm.records import Candidates, Selection
from sinterlm.selection.choices import (
    NoRow,
    PartialRow,
    choose_source_pairs,
    collect,
    no_source_pair,
    to_row_response,
)
from sinterlm.selection.margins import Window
from sinterlm.selection.ranking import Ties, Truncated
from sinterlm.selection.settings import SOURCES, Margin, SelectAmongSources, Temperature
from sinterlm.selection.weights import source_weights


class FusePo(SelectAmongSources):
    """One weighted pair of every source (FuseRL, arXiv 2504.06562)."""

    kind: Literal["fusepo"]
    temperature: Temperature
    """Temperature of the softmax that turns scores into weights, in units of the scores."""
    min_margin: Margin | None = None
    """The smallest difference between the scores of a pair."""
    ties: Ties = "hash"
    """Among answers of the same score, take the one with the smallest SHA-256 of seed, prompt id, source and index, or
    the first in order, which is the argmax of the papers.
    """
    truncated: Truncated = "drop"
    """Whether answers that the token limit cut may be chosen. Kept ones get no end-of-turn token in training."""

    description = "weighted pairs: every source's best answer against its worst"
    formula = "for each k: argmax and argmin over i of s(y_ki); w_k ∝ exp(R_k / t), R_k = max over i of s(y_ki)"
    paper = "FuseRL, arXiv 2504.06562"
    roles = ("chosen", "rejected")
    by_prompt = skips_ineligible = True
    pairs_of = SOURCES
    reads = SOURCES
    gives_weights = True

    def select(self, candidates: Iterable[Candidates], *, seed: int, stage: str) -> Selection:
        """As :func:`select_fusepo`."""
        return select_fusepo(candidates, seed=seed, stage=stage, **self.arguments)

    def responses_in_row(self, *, source_samples: Sequence[int], target_samples: int) -> int:
        """A pair from each source."""
        return 2 * len(source_samples)


def select_fusepo(
    candidates: Iterable[Candidates],
    *,
    seed: int,
    temperature: float,
    min_margin: float | None = None,
    sources: Collection[str] | None = None,
    num_samples: int | None = None,
    ties: Ties = "hash",
    truncated: Truncated = "drop",
    stage: str = "select-fusepo",
) -> Selection:
    """Select best and worst answer of every source; a source weighs exp(R / t) / sum of exp(R / t), R its best score.

    With a pass-or-fail scorer the chosen answer passes and the rejected one fails. A source whose answers give no pair
    is left out of the row, and the weights are those of the others.

    Args:
        candidates: Every prompt's scored answers, in any order; read once.
        seed: Decides between answers of the same score.
        temperature: The t above, in units of the scores (see :func:`~sinterlm.selection.weights.softmax_weights`).
        min_margin: The smallest difference between the scores of a pair; 1 and 0 that only say passed and failed are
            always far enough apart.
        sources: Names of the sources that take part; all by default.
        num_samples: How many samples of each source take part, the first by index; all by default.
        ties: ``hash`` takes the smallest SHA-256 of (seed, prompt id, source, index), ``first`` the first in order.
        truncated: Whether answers cut by the token limit may be chosen.
        stage: Named in every :class:`Dropped`.

    Returns:
        Rows with the roles ``chosen`` and ``rejected`` in groups named after the sources, the weight of a source on
        both, and the prompts that give none and sources that rows go without.
    """
    window = None if min_margin is None else Window(min_margin)

    def choose(candidate: Candidates) -> PartialRow | NoRow:
        pairs, left_out = choose_source_pairs(
            candidate.sources, seed=seed, ties=ties, truncated=truncated, window=window
        )
        if not pairs:
            return no_source_pair(left_out)
        weights = source_weights([pair.best for pair in pairs], temperature=temperature)
        responses = [
            response
            for (source, weight), pair in zip(weights.items(), pairs, strict=True)
            for response in (
                to_row_response(pair.best, "chosen", group=source, weight=weight),
                to_row_response(pair.worst, "rejected", group=source, weight=weight),
            )
        ]
        return PartialRow(responses, left_out)

    return collect(candidates, choose, stage=stage, sources=sources, num_samples=num_samples)
