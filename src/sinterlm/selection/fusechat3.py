"""FuseChat-3.0's preference pairs: best against worst answer of one and the same source (arXiv 2503.04222)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator

from sinterlm.records import Candidates, RowResponse, Selection
from sinterlm.selection.choices import (
    NoRow,
    choose_source_answer,
    choose_source_pairs,
    collect,
    no_source_pair,
    to_row_response,
)
from sinterlm.selection.margins import Window
from sinterlm.selection.ranking import Ties, Truncated, select_best
from sinterlm.selection.settings import SOURCES, SelectAmongSources
from sinterlm.settings import expected

WindowRule = Sequence[float] | Literal["none"]
"""The lowest and the highest margin, or none at all."""


def _check_window(window: object) -> object:
    match window:
        case "none":
            return window
        case [int() | float() as low, int() | float() as high] if low <= high:
            return window
    raise expected("[LOW, HIGH], the lowest and the highest margin of scores, LOW first, or none")


WindowKey = Annotated[list[float] | Literal["none"], BeforeValidator(_check_window)]
"""The lowest and the highest margin between two scores."""


class FuseChat3(SelectAmongSources):
    """One pair of one source (FuseChat-3.0, arXiv 2503.04222)."""

    kind: Literal["fusechat3"]
    window: WindowKey = [0.01, 0.1]
    """The smallest and the largest difference between the scores of a pair, ``[LOW, HIGH]``."""
    windows: dict[str, WindowKey] = {}
    """A window for each domain named, in place of ``window``."""
    ties: Ties = "hash"
    """Among answers of the same score, take the one with the smallest SHA-256 of seed, prompt id, source and index, or
    the first in order, which is the argmax of the papers.
    """
    truncated: Truncated = "drop"
    """Whether answers that the token limit cut may be chosen. Kept ones get no end-of-turn token in training."""

    description = (
        "pairs: best against worst answer of one source, their scores in a window, which may depend on the domain"
    )
    formula = "of the k with low ≤ R_k - min over i of s(y_ki) ≤ high that with the highest R_k: argmax and argmin"
    paper = "FuseChat-3.0, arXiv 2503.04222"
    roles = ("chosen", "rejected")
    by_prompt = skips_ineligible = True
    reads = SOURCES

    def select(self, candidates: Iterable[Candidates], *, seed: int, stage: str) -> Selection:
        """As :func:`select_fusechat3`."""
        return select_fusechat3(candidates, seed=seed, stage=stage, **self.arguments)

    def named_domains(self) -> Iterator[tuple[str, str]]:
        """The domains that have a window of their own."""
        return (("windows", domain) for domain in self.windows)


def select_fusechat3(
    candidates: Iterable[Candidates],
    *,
    seed: int,
    window: WindowRule = (0.01, 0.1),
    windows: Mapping[str, WindowRule] | None = None,
    sources: Collection[str] | None = None,
    num_samples: int | None = None,
    ties: Ties = "hash",
    truncated: Truncated = "drop",
    stage: str = "select-fusechat3",
) -> Selection:
    """Select one pair for every prompt: of the sources that have a pair, the one with the best chosen answer.

    If answers were verified (mathematics, code), the best is the passing one with the highest score and the worst the
    failing one with the lowest, and a prompt without a passing answer is dropped. Otherwise the scores alone decide.

    Args:
        candidates: Every prompt's scored answers, in any order; read once.
        seed: Decides between answers of the same score.
        window: Lowest and highest margin between the two scores, ends included, or ``none``; 1 and 0 that only say
            passed and failed lie in every window.
        windows: By domain of the prompts, the window in place of ``window``.
        sources: Names of the sources that take part; all by default.
        num_samples: How many samples of each source take part, the first by index; all by default.
        ties: ``hash`` takes the smallest SHA-256 of (seed, prompt id, source, index), ``first`` the first in order.
        truncated: Whether answers cut by the token limit may be chosen.
        stage: Named in every :class:`Dropped`.

    Returns:
        Rows with the roles ``chosen`` and ``rejected``, and the prompts that give none.
    """
    rules = {domain: _read_window(rule) for domain, rule in (windows or {}).items()}
    default = _read_window(window)

    def choose(candidate: Candidates) -> Sequence[RowResponse] | NoRow:
        pairs, left_out = choose_source_pairs(
            candidate.sources,
            seed=seed,
            ties=ties,
            truncated=truncated,
            window=rules.get(candidate.prompt.domain, default),
        )
        if not pairs:
            best = choose_source_answer(candidate.sources, seed=seed, ties=ties, truncated=truncated)
            # Nothing eligible or nothing that passes says more than that no source gave a pair.
            return best if isinstance(best, NoRow) else no_source_pair(left_out)
        chosen = select_best([pair.best for pair in pairs], seed=seed, ties=ties)
        rejected = next(pair.worst for pair in pairs if pair.best is chosen)
        return to_row_response(chosen, "chosen"), to_row_response(rejected, "rejected")

    return collect(candidates, choose, stage=stage, sources=sources, num_samples=num_samples)


def _read_window(rule: WindowRule) -> Window | None:
    return None if rule == "none" else Window(float(rule[0]), float(rule[1]))
