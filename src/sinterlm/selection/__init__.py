"""Pure functions from records to records: the split of the prompts, and which answers become training rows."""

from sinterlm.selection.best_of_sources import select_best_of_sources
from sinterlm.selection.fusechat3 import select_fusechat3
from sinterlm.selection.fusepo import select_fusepo
from sinterlm.selection.fusepo_rloo import select_fusepo_rloo
from sinterlm.selection.fusesft import select_fusesft
from sinterlm.selection.on_policy import select_on_policy
from sinterlm.selection.rloo import select_rloo
from sinterlm.selection.split import Handover, Parts, hand_over, split_prompts
from sinterlm.selection.tally import SelectionTally, tally_selection
from sinterlm.selection.weights import softmax_weights, source_weights
from sinterlm.selection.wrpo import select_wrpo

__all__ = [
    "Handover",
    "Parts",
    "SelectionTally",
    "hand_over",
    "select_best_of_sources",
    "select_fusechat3",
    "select_fusepo",
    "select_fusepo_rloo",
    "select_fusesft",
    "select_on_policy",
    "select_rloo",
    "select_wrpo",
    "softmax_weights",
    "source_weights",
    "split_prompts",
    "tally_selection",
]
