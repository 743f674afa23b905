"""How a hyper-parameter changes during training, as a function of the share of finished optimizer steps."""

from __future__ import annotations


def constant(end: float, progress: float) -> float:
    """The end value, from the first step."""
    return end


def ramp(end: float, progress: float) -> float:
    """Linear from 0: the first step sees 0, and the end value is reached when all steps are finished.

    As in the WRPO authors' code: ``end`` times finished optimizer steps over all optimizer steps.

    Args:
        end: The value at the end.
        progress: Finished optimizer steps over all optimizer steps, in [0, 1].

    >>> [ramp(0.1, finished / 4) for finished in range(4)]
    [0.0, 0.025, 0.05, 0.07500000000000001]
    """
    return end * progress
