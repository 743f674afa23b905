"""Where models answer and scorers score: the forms of the ``executor:`` mapping. It decides no answer and no score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sinterlm.settings import Positive, Settings


class Local(Settings):
    """This process does everything."""

    kind: Literal["local"] = "local"


class Placement(Settings):
    """What one copy of a model or scorer gets, all of it on one node, and the number of copies."""

    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a copy; by default 1, and none on a cluster without GPUs or for a model with ``device: cpu``.
    """
    cpus: Positive = 1
    """CPU cores of a copy, and the threads that it computes with on a CPU."""
    copies: Positive | None = None
    """By default as many as fit on the cluster, counted anew as nodes come and go."""


class Ray(Settings):
    """Models and scorers run on the nodes of a Ray cluster; this process asks them and alone writes the store."""

    kind: Literal["ray"]
    address: str = "auto"
    """``auto``: the cluster that this machine belongs to, or a cluster of this machine alone; ``local``: always the
    latter; otherwise the head node's ``HOST:PORT``.
    """
    target: Placement = Placement()
    """The target and all its trained forms."""
    sources: dict[str, Placement] = {}
    """Sources by name; the others are placed by default."""
    scorer: Placement = Placement()
    """Every scorer, and each part of one."""


AnyExecutor = Annotated[Local | Ray, Field(discriminator="kind")]
"""The forms of the ``executor:`` mapping, told apart by ``kind``."""
