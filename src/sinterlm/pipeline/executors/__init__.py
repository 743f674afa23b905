"""Where models answer and scorers score.

An executor gives a stage engines and scorers that keep the protocols of ``sampling`` and ``scoring``, wherever they
compute. So stages, the store and every result are the same in one process and on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.recipe.executors import Ray
from sinterlm.sampling.protocol import Engine
from sinterlm.scoring.protocol import Scorer
from sinterlm.scoring.settings import ScorerSettings


class Executor(Protocol):
    """Places engines and scorers. Cheap to construct: it connects when the first one works."""

    def engine(self, request: SamplingRequest, on_loaded: Callable[[str], None]) -> Engine:
        """The engine of a request; ``on_loaded`` is told where its weights are, once they are loaded."""
        ...

    def scorer(self, scorer: Scorer, config: ScorerSettings) -> Scorer:
        """The scorer that does the work of ``scorer``, which was built from ``config``."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class LocalExecutor:
    """Everything runs in this process."""

    def engine(self, request: SamplingRequest, on_loaded: Callable[[str], None]) -> Engine:
        """See :meth:`Executor.engine`."""
        return request.build_engine(on_loaded)

    def scorer(self, scorer: Scorer, config: ScorerSettings) -> Scorer:
        """See :meth:`Executor.scorer`."""
        return scorer

    def close(self) -> None:
        """Nothing is held."""


def build_executor(fusion: Fusion, say: Callable[[str], None]) -> Executor:
    """The executor that the recipe names.

    Args:
        fusion: The fusion to run.
        say: Told what happens on the cluster, line by line.
    """
    settings = fusion.recipe.executor
    if isinstance(settings, Ray):
        from sinterlm.pipeline.executors.ray_executor import RayExecutor

        return RayExecutor(settings, say)
    return LocalExecutor()
