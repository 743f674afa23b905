"""FuseSFT's rows: several good answers to a prompt, weighted by a softmax of their scores (arXiv 2504.06562)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Literal

from sinterlm.records import Candidates, RowResponse, Scored, Selection
from sinterlm.selection.choices import NoRow, choose_source_answer, collect, group_by_source, to_row_response
from sinterlm.selection.ranking import Ties, Truncated, fails, order_texts, select_best, select_eligible
from sinterlm.selection.settings import SOURCES, SelectAmongSources, Temperature
from sinterlm.selection.weights import softmax_weights
from sinterlm.settings import Positive

Keep = Literal["pooled", "each-source"]


class FuseSft(SelectAmongSources):
    """Weighted SFT: the best answers of all sources, or the best of each (FuseRL, arXiv 2504.06562)."""

    kind: Literal["fusesft"]
    temperature: Temperature
    """Temperature of the softmax that turns scores into weights, in units of the scores."""
    keep: Keep = "pooled"
    """The best of all sources' answers together, or the best of each source."""
    num_responses: Positive = 4
    """The most answers in a row."""
    ties: Ties = "hash"
    """Among answers of the same score, take the one with the smallest SHA-256 of seed, prompt id, source and index, or
    the first in order, which is the argmax of the papers.
    """
    truncated: Truncated = "drop"
    """Whether answers that the token limit cut may be chosen. Kept ones get no end-of-turn token in training."""

    description = "weighted SFT rows: the best M answers over all sources, or the best of each source"
    formula = "T = the M highest s(y_ki); w_y = exp(s(y) / t) / Σ_T exp(s(y') / t)"
    paper = "FuseRL, arXiv 2504.06562"
    roles = ("chosen",)
    by_prompt = skips_ineligible = True
    reads = SOURCES
    gives_weights = True
    compares = False

    def select(self, candidates: Iterable[Candidates], *, seed: int, stage: str) -> Selection:
        """As :func:`select_fusesft`."""
        return select_fusesft(candidates, seed=seed, stage=stage, **self.arguments)

    def responses_in_row(self, *, source_samples: Sequence[int], target_samples: int) -> int:
        """M, or one from each source."""
        return self.num_responses if self.keep == "pooled" else len(source_samples)


def select_fusesft(
    candidates: Iterable[Candidates],
    *,
    seed: int,
    temperature: float,
    keep: Keep = "pooled",
    num_responses: int = 4,
    sources: Collection[str] | None = None,
    num_samples: int | None = None,
    ties: Ties = "hash",
    truncated: Truncated = "drop",
    stage: str = "select-fusesft",
) -> Selection:
    """Select the sources' best answers for every prompt, each with the weight exp(s / t) / sum of exp(s / t).

    Every text is kept once; with a pass-or-fail scorer it passes. If fewer are left, they share the whole weight.

    Args:
        candidates: Every prompt's scored answers, in any order; read once.
        seed: Decides between answers of the same score.
        temperature: The t above, in units of the scores (see :func:`~sinterlm.selection.weights.softmax_weights`).
        keep: ``pooled`` takes the best of all sources' answers together, ``each-source`` the best of each source.
        num_responses: M, the most that are kept.
        sources: Names of the sources that take part; all by default.
        num_samples: How many samples of each source take part, the first by index; all by default.
        ties: ``hash`` takes the smallest SHA-256 of (seed, prompt id, source, index), ``first`` the first in order.
        truncated: Whether answers cut by the token limit may be chosen.
        stage: Named in every :class:`Dropped`.

    Returns:
        Rows with responses of the role ``chosen`` and weights that sum to 1, and the prompts that give none.
    """

    def choose(candidate: Candidates) -> Sequence[RowResponse] | NoRow:
        best = choose_source_answer(candidate.sources, seed=seed, ties=ties, truncated=truncated)
        if isinstance(best, NoRow):
            return best
        kept = _keep(select_eligible(candidate.sources, truncated=truncated))
        weights = softmax_weights([answer.score.value for answer in kept], temperature=temperature)
        return [to_row_response(answer, "chosen", weight=weight) for answer, weight in zip(kept, weights, strict=True)]

    def _keep(eligible: Sequence[Scored]) -> list[Scored]:
        pool = [answer for answer in eligible if not fails(answer)]
        if keep == "each-source":
            pool = [select_best(own, seed=seed, ties=ties) for own in group_by_source(pool).values()]
        return list(islice(order_texts(pool, seed=seed, ties=ties), num_responses))

    return collect(candidates, choose, stage=stage, sources=sources, num_samples=num_samples)
