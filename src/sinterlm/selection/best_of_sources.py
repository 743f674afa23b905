"""What the target first learns from: the best answer over all sources (arXiv 2412.03187, section 4.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from sinterlm.records import Candidates, RowResponse, Selection
from sinterlm.selection.choices import NoRow, choose_source_answer, collect, to_row_response
from sinterlm.selection.ranking import Ties, Truncated
from sinterlm.selection.settings import SOURCES, SelectAmongSources


class BestOfSources(SelectAmongSources):
    """SFT: the best-scored answer over all sources."""

    kind: Literal["best-of-sources"]
    ties: Ties = "hash"
    """Among answers of the same score, take the one with the smallest SHA-256 of seed, prompt id, source and index, or
    the first in order, which is the argmax of the papers.
    """
    truncated: Truncated = "drop"
    """Whether answers that the token limit cut may be chosen. Kept ones get no end-of-turn token in training."""

    description = "SFT rows: the best-scored answer over all sources, or of those that are named"
    formula = "y = argmax over k, i of s(y_ki)"
    paper = "WRPO, arXiv 2412.03187"
    roles = ("chosen",)
    by_prompt = skips_ineligible = True
    reads = SOURCES
    compares = False

    def select(self, candidates: Iterable[Candidates], *, seed: int, stage: str) -> Selection:
        """As :func:`select_best_of_sources`."""
        return select_best_of_sources(candidates, seed=seed, stage=stage, **self.arguments)


def select_best_of_sources(
    candidates: Iterable[Candidates],
    *,
    seed: int,
    sources: Collection[str] | None = None,
    num_samples: int | None = None,
    ties: Ties = "hash",
    truncated: Truncated = "drop",
    stage: str = "select-best-of-sources",
) -> Selection:
    """Select the best-scored answer over all sources for every prompt; with a pass-or-fail scorer it passes.

    With one source that was sampled as often as all others together, it is the control that mixing sources must beat.

    Args:
        candidates: Every prompt's scored answers, in any order; read once.
        seed: Decides between answers of the same score.
        sources: Names of the sources that take part; all by default.
        num_samples: How many samples of each source take part, the first by index; all by default.
        ties: ``hash`` takes the smallest SHA-256 of (seed, prompt id, source, index), ``first`` the first in order.
        truncated: Whether answers cut by the token limit may be chosen.
        stage: Named in every :class:`Dropped`.

    Returns:
        Rows with one response of the role ``chosen``, and the prompts that give none.
    """

    def choose(candidate: Candidates) -> Sequence[RowResponse] | NoRow:
        answer = choose_source_answer(candidate.sources, seed=seed, ties=ties, truncated=truncated)
        return answer if isinstance(answer, NoRow) else [to_row_response(answer, "chosen")]

    return collect(candidates, choose, stage=stage, sources=sources, num_samples=num_samples)
