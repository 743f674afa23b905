"""What runs on a node of a cluster: one copy of an engine or scorer, and the check that the node can build it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sinterlm.errors import InputError, SinterError
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.records import Score
from sinterlm.sampling.protocol import Engine, Generation
from sinterlm.scoring.protocol import Scorer
from sinterlm.scoring.settings import ScorerSettings, build_scorer


class Copied(Protocol):
    """What is copied to nodes: how to build it there, and the files and folders that it reads."""

    def build(self, say: Callable[[str], None]) -> Any:
        """Build it; ``say`` is told where its weights are."""
        ...

    @property
    def paths(self) -> dict[str, Path]:
        """What it reads, by what names it in the recipe."""
        ...


class CopiedEngine(NamedTuple):
    """An engine to build on a node."""

    request: SamplingRequest

    def build(self, say: Callable[[str], None]) -> Engine:
        """See :meth:`Copied.build`."""
        return self.request.build_engine(say)

    @property
    def paths(self) -> dict[str, Path]:
        """See :attr:`Copied.paths`."""
        asked = self.request.participant
        return asked.config.files() | _folders({"model": asked.weights})


class CopiedScorer(NamedTuple):
    """A scorer to build on a node."""

    config: ScorerSettings

    def build(self, say: Callable[[str], None]) -> Scorer:
        """See :meth:`Copied.build`."""
        return build_scorer(self.config)

    @property
    def paths(self) -> dict[str, Path]:
        """See :attr:`Copied.paths`."""
        return {**self.config.files(), **_folders({f"model {model}": model for model in self.config.models()})}


def _folders(models: dict[str, str | None]) -> dict[str, Path]:
    """The models that are folders of this machine; others are the hub's or in packages, which each node has itself."""
    return {key: Path(model) for key, model in models.items() if model and Path(model).is_dir()}


class Home(NamedTuple):
    """What a node must have in common with the driver."""

    what: str
    """The model or scorer, for messages."""
    release: str
    """Sinter's version."""
    paths: dict[str, Path]
    """Files and folders, by what names them."""


def release() -> str:
    """The version of Sinter in this environment."""
    return version("sinterlm")


class Done(NamedTuple):
    """What a worker has computed."""

    result: Any
    said: Sequence[str] = ()
    """Where the weights were loaded, if they just were."""


class Worker:
    """Computes one unit of work after another.

    Args:
        copied: What it builds.
    """

    def __init__(self, copied: Copied) -> None:
        self._copied = copied
        self._said: list[str] = []
        self._built: Any = None

    def start(self, home: Home) -> str:
        """Check that this node can build what the driver wants; returns the node's name.

        Raises:
            InputError: A file is missing, or Sinter has another version here.
        """
        node = platform.node()
        if home.release != release():
            raise InputError(
                f"node {node} has Sinter {release()}, but this is {home.release}; install the same on every node"
            )
        for key, path in home.paths.items():
            if not path.exists():
                raise InputError(
                    f"node {node}: there is no {path} ({key} of {home.what}); every node must see the files and "
                    "folders that a recipe names under the same path (a shared file system)"
                )
        self._built = self._copied.build(self._said.append)
        return node

    def work(self, unit: Sequence[Any]) -> Done:
        """Sample one batch, or score one."""
        with _on_this_node():
            result: list[Generation] | list[Score]
            if isinstance(self._copied, CopiedEngine):
                (result,) = self._built.sample([unit])
            else:
                result = self._built.score(unit)
        said, self._said[:] = tuple(self._said), ()
        return Done(result, said)

    def close(self) -> None:
        """Release what is held."""
        if self._built is not None:
            self._built.close()


@contextmanager
def _on_this_node() -> Iterator[None]:
    """Say in an error's message on which node it happened."""
    try:
        yield
    except SinterError as error:
        raise type(error)(f"node {platform.node()}: {error}") from error
