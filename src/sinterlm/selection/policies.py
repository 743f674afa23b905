"""The table of selection policies, by the name that recipes use: those of Sinter and of installed packages."""

from __future__ import annotations

from collections.abc import Mapping

from sinterlm.components import with_installed
from sinterlm.selection.best_of_sources import BestOfSources
from sinterlm.selection.choices import REASONS as SHARED_REASONS
from sinterlm.selection.fusechat3 import FuseChat3
from sinterlm.selection.fusepo import FusePo
from sinterlm.selection.fusepo_rloo import FusePoRloo
from sinterlm.selection.fusesft import FuseSft
from sinterlm.selection.on_policy import OnPolicy
from sinterlm.selection.rloo import Rloo
from sinterlm.selection.settings import SelectionPolicy
from sinterlm.selection.wrpo import Wrpo

GROUP = "sinterlm.policies"
"""The entry points by which installed packages add policies."""

POLICIES: Mapping[str, type[SelectionPolicy]] = with_installed(
    GROUP,
    {
        "best-of-sources": BestOfSources,
        "fusesft": FuseSft,
        "wrpo": Wrpo,
        "fusepo": FusePo,
        "fusepo-rloo": FusePoRloo,
        "fusechat3": FuseChat3,
        "on-policy": OnPolicy,
        "rloo": Rloo,
    },
    SelectionPolicy,
)

REASONS: Mapping[str, str] = SHARED_REASONS | {
    reason: meaning for policy in POLICIES.values() for reason, meaning in policy.reasons.items()
}
"""Every reason for which a policy drops a prompt, or leaves a source out of its row, and what it means."""
