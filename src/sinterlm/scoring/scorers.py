"""The scorers that a recipe can name: those that come with Sinter, and those of installed packages.

A new one is a file beside this one and a row here, or a package with an entry point in the group ``sinterlm.scorers``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinterlm.components import union_of, with_installed
from sinterlm.scoring.armorm import ArmoRM
from sinterlm.scoring.by_domain import ByDomain
from sinterlm.scoring.code.settings import Code
from sinterlm.scoring.combination import Combination
from sinterlm.scoring.exact_match import ExactMatch
from sinterlm.scoring.judge.settings import Judge
from sinterlm.scoring.mathematics import Mathematics
from sinterlm.scoring.python import Python
from sinterlm.scoring.recorded import RecordedScores
from sinterlm.scoring.reward_model import RewardModel
from sinterlm.scoring.served_reward_model import ServedRewardModel
from sinterlm.scoring.settings import ScorerSettings

SCORERS: dict[str, type[ScorerSettings]] = with_installed(
    "sinterlm.scorers",
    {
        "exact-match": ExactMatch,
        "mathematics": Mathematics,
        "code": Code,
        "reward-model": RewardModel,
        "armorm": ArmoRM,
        "judge": Judge,
        "recorded": RecordedScores,
        "python": Python,
        "by-domain": ByDomain,
        "combination": Combination,
    },
    ScorerSettings,
)

SERVED: dict[str, list[type[ScorerSettings]]] = {"reward-model": [ServedRewardModel]}
"""Forms of a kind whose model a server runs; they have the key ``engine``."""

if TYPE_CHECKING:
    AnyScorer = ScorerSettings
else:
    AnyScorer = union_of(SCORERS, "kind", SERVED)
    """The forms of the ``scorer:`` mapping, told apart by ``kind``, and some also by ``engine``."""
    for form in SCORERS.values():  # some are made of others, of any form
        form.model_rebuild(_types_namespace={"Part": AnyScorer})
