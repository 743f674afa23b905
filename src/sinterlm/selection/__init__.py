"""Pure functions from records to records: the split of the prompts, and which answers become training rows."""

from sinterlm.selection.best_of_sources import select_best_of_sources
from sinterlm.selection.on_policy import select_on_policy
from sinterlm.selection.split import Parts, split_prompts
from sinterlm.selection.weights import softmax_weights, source_weights
from sinterlm.selection.wrpo import select_wrpo

__all__ = [
    "Parts",
    "select_best_of_sources",
    "select_on_policy",
    "select_wrpo",
    "softmax_weights",
    "source_weights",
    "split_prompts",
]
