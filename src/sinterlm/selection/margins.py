"""How far apart the scores of two answers may be for the two to make a pair."""

from __future__ import annotations

import math
from typing import NamedTuple

from sinterlm.records import Scored

_ROUNDING = 1e-9
"""0.14 - 0.13 is 0.010000000000000009 in floating point, and 0.15 - 0.14 is 0.009999999999999981."""


class Window(NamedTuple):
    """The score margins that a pair may have, in units of the scores, both ends included."""

    low: float
    high: float = math.inf


def score_margin(better: Scored, worse: Scored) -> float:
    """How much higher the one answer is scored than the other."""
    return better.score.value - worse.score.value


def is_inside(window: Window, better: Scored, worse: Scored) -> bool:
    """Whether the margin of two answers lies in ``window``.

    A verdict (1 for passing, 0 for failing) has no real margin: two verdicts fit into every window.
    """
    if _is_verdict(better) and _is_verdict(worse):
        return True
    return window.low - _ROUNDING <= score_margin(better, worse) <= window.high + _ROUNDING


def _is_verdict(answer: Scored) -> bool:
    return answer.score.passed is not None and answer.score.value == float(answer.score.passed)
