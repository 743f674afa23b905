"""FusePO-RLOO's rows: all answers of every source with their scores, weighted over the sources (arXiv 2504.06562)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from sinterlm.records import Candidates, Selection
from sinterlm.selection.choices import (
    EQUAL_SCORES,
    TOO_FEW_ANSWERS_TO_COMPARE,
    NoRow,
    PartialRow,
    collect,
    group_by_source,
    have_equal_scores,
    to_row_response,
    too_few_to_compare,
)
from sinterlm.selection.ranking import Truncated, select_eligible
from sinterlm.selection.settings import SOURCES, SelectAmongSources, Temperature
from sinterlm.selection.weights import source_weights


class FusePoRloo(SelectAmongSources):
    """All answers of every source, weighted over the sources (FuseRL, arXiv 2504.06562)."""

    kind: Literal["fusepo-rloo"]
    temperature: Temperature
    """Temperature of the softmax that turns scores into weights, in units of the scores."""
    truncated: Truncated = "drop"
    """Whether answers that the token limit cut may be chosen. Kept ones get no end-of-turn token in training."""

    description = "all answers of every source with their scores, weighted over the sources"
    formula = "for each k: all y_ki; w_k as for fusepo"
    paper = "FuseRL, arXiv 2504.06562"
    roles = ()
    by_prompt = skips_ineligible = True
    reads = SOURCES
    gives_weights = True

    def select(self, candidates: Iterable[Candidates], *, seed: int, stage: str) -> Selection:
        """As :func:`select_fusepo_rloo`."""
        return select_fusepo_rloo(candidates, seed=seed, stage=stage, **self.arguments)

    def responses_in_row(self, *, source_samples: Sequence[int], target_samples: int) -> int:
        """All answers of every source."""
        return sum(source_samples)


def select_fusepo_rloo(
    candidates: Iterable[Candidates],
    *,
    seed: int,
    temperature: float,
    sources: Collection[str] | None = None,
    num_samples: int | None = None,
    truncated: Truncated = "drop",
    stage: str = "select-fusepo-rloo",
) -> Selection:
    """Select all answers of every source; a source weighs exp(R / t) / sum of exp(R / t), R its best score.

    A source with fewer than two eligible answers is left out of the row, and the weights are those of the others. A
    prompt is dropped if the scores of every source are equal among themselves.

    Args:
        candidates: Every prompt's scored answers, in any order; read once.
        seed: Decides nothing here: no answer is chosen before another.
        temperature: The t above, in units of the scores (see :func:`~sinterlm.selection.weights.softmax_weights`).
        sources: Names of the sources that take part; all by default.
        num_samples: How many samples of each source take part, the first by index; all by default.
        truncated: Whether answers cut by the token limit take part.
        stage: Named in every :class:`Dropped`.

    Returns:
        Rows with responses without roles in groups named after the sources, the weight of a source on all of its
        group, and the prompts that give none and sources that rows go without.
    """

    def choose(candidate: Candidates) -> PartialRow | NoRow:
        groups, left_out = [], []
        for source, own in group_by_source(candidate.sources).items():
            eligible = select_eligible(own, truncated=truncated)
            if len(eligible) < 2:
                reason, detail = too_few_to_compare(eligible, own)
                left_out.append(NoRow(reason, f"{source}: {detail}"))
            else:
                groups.append(eligible)
        if not groups:
            return NoRow(TOO_FEW_ANSWERS_TO_COMPARE, "; ".join(drop.detail for drop in left_out) or "no answers")
        if all(map(have_equal_scores, groups)):
            return NoRow(EQUAL_SCORES, f"within each of {len(groups)} sources")
        answers = [answer for group in groups for answer in group]
        weights = source_weights(answers, temperature=temperature)
        responses = [
            to_row_response(answer, None, group=source, weight=weights[source])
            for answer in answers
            for source in [answer.response.source]
        ]
        return PartialRow(responses, left_out)

    return collect(candidates, choose, stage=stage, sources=sources, num_samples=num_samples)
