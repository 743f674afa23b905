"""What runs on a node of a cluster: one copy of an engine or scorer, and the check that the node can build it."""

from __future__ import annotations

import asyncio
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from sinterlm.errors import InputError, SinterError
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.records import Score, Usage
from sinterlm.sampling.protocol import Answered, Engine, Generation, Item, Streams
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
    has_room: bool = False
    """Whether the worker waits for more work."""


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
        """Release what is held, e.g. a server that was started."""
        if self._built is not None:
            self._built.close()


class _Open:
    """Items that were given together and are not answered yet."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.keys = {(item.prompt.id, item.index) for item in items}
        self.answers: list[Answered] = []
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class StreamWorker(Worker):
    """Answers many units at once, each as soon as the last of its items is answered.

    The engine's stream runs in a thread and takes items from a queue, so a server never waits for a unit to be whole.
    """

    def __init__(self, copied: Copied) -> None:
        super().__init__(copied)
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._open: deque[_Open] = deque()
        self._thread: threading.Thread | None = None

    async def work(self, unit: Sequence[Item]) -> Done:  # type: ignore[override]  # Ray runs both
        """Answer some items; the result is a list of :class:`Answered`."""
        opened = _Open(unit)
        self._open.append(opened)
        for item in unit:
            self._queue.put(item)
        if self._thread is None:
            assert isinstance(self._built, Streams)
            self._thread = threading.Thread(
                target=self._answer, args=(self._built, asyncio.get_running_loop()), daemon=True
            )
            self._thread.start()
        try:
            await opened.future
        finally:
            self._open.remove(opened)
        said, self._said[:] = tuple(self._said), ()
        return Done(opened.answers, said, self._queue.empty())

    def close(self) -> None:
        """End the stream, then close the engine."""
        self._queue.put(None)
        super().close()

    def _items(self) -> Iterator[Item]:
        while item := self._queue.get():
            yield item

    def _answer(self, engine: Streams, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with _on_this_node():
                for answered in engine.stream(self._items()):
                    loop.call_soon_threadsafe(self._hand_out, answered)
        except BaseException as error:
            loop.call_soon_threadsafe(self._fail, error)

    def _hand_out(self, answered: Answered) -> None:
        """Give answers to the units that wait for them; what they cost and the notes go to the first."""
        rest = answered
        given = {(each.prompt_id, each.index) for each in answered.generations}
        given |= {(each.prompt_id, each.index) for each in answered.failures}
        for opened in self._open:
            own = opened.keys & given
            if not own:
                continue
            opened.answers.append(
                rest._replace(
                    generations=[each for each in answered.generations if (each.prompt_id, each.index) in own],
                    failures=[each for each in answered.failures if (each.prompt_id, each.index) in own],
                )
            )
            rest = Answered((), state=answered.state)
            opened.keys -= own
            if not opened.keys and not opened.future.done():
                opened.future.set_result(None)
        if rest is answered and self._open and (rest.usage != Usage() or rest.notes):
            self._open[0].answers.append(rest)

    def _fail(self, error: BaseException) -> None:
        for opened in self._open:
            if not opened.future.done():
                opened.future.set_exception(error)


@contextmanager
def _on_this_node() -> Iterator[None]:
    """Say in an error's message on which node it happened."""
    try:
        yield
    except SinterError as error:
        raise type(error)(f"node {platform.node()}: {error}") from error
