"""Places engines and scorers on a Ray cluster; answers and scores come back to this process."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sinterlm.errors import InputError, Terminated, first_line
from sinterlm.pipeline.executors.worker import CopiedEngine, CopiedScorer
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.recipe.executors import Placement, Ray
from sinterlm.records import Score
from sinterlm.sampling.protocol import Engine, Generation, Item
from sinterlm.scoring.protocol import Exchange, Given, Scorer, Supply, in_order
from sinterlm.scoring.settings import ScorerSettings
from sinterlm.streams import chunks

if TYPE_CHECKING:
    from sinterlm.pipeline.executors.fleet import Fleet

ANSWERS_AT_ONCE = 64
"""Answers that a worker scores at a time."""
MAX_BATCHES = 64
"""Batches that a scorer likes to be given at once, so that a cluster is busy until the last of them."""


CONNECT_SECONDS = 5.0
"""How long the head node may take to answer."""


class RayExecutor:
    """Engines and scorers whose work needs a machine run on the cluster's nodes, the others in this process.

    Args:
        settings: The recipe's.
        say: Told what happens on the cluster, line by line.
    """

    def __init__(self, settings: Ray, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._connection = Connection(settings.address, say)

    def engine(self, request: SamplingRequest, on_loaded: Callable[[str], None]) -> Engine:
        """See :meth:`~sinterlm.pipeline.executors.Executor.engine`."""
        asked, engine = request.participant, request.build_engine(on_loaded)
        if not asked.config.needs_machine:
            return engine
        placement = self._settings.sources.get(asked.name, Placement())
        if asked.name.startswith("target"):
            placement = self._settings.target

        def start() -> Fleet:
            return self._connection.fleet(
                asked.name, CopiedEngine(request), placement, asked.config.num_gpus, on_loaded
            )

        return RemoteEngine(engine, start)

    def scorer(self, scorer: Scorer, config: ScorerSettings) -> Scorer:
        """See :meth:`~sinterlm.pipeline.executors.Executor.scorer`."""
        if not config.needs_machine:
            return scorer

        def start() -> Fleet:
            return self._connection.fleet(
                f"scorer {config.kind}", CopiedScorer(config), self._settings.scorer, config.num_gpus
            )

        return RemoteScorer(scorer, start)

    def close(self) -> None:
        """See :meth:`~sinterlm.pipeline.executors.Executor.close`."""
        self._connection.close()


class Connection:
    """This process as the driver of a cluster, from the first fleet on.

    Args:
        address: As in the recipe.
        say: Told where the cluster is.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self._address = address
        self._say = say
        self._lock = threading.Lock()
        self._is_ours = False

    def fleet(
        self,
        what: str,
        copied: CopiedEngine | CopiedScorer,
        placement: Placement,
        num_gpus: int,
        on_loaded: Callable[[str], None] = lambda placement: None,
    ) -> Fleet:
        """Connect, and return the workers of an engine or scorer; see there for the arguments."""
        with self._lock:
            self._connect()
        from sinterlm.pipeline.executors.fleet import Fleet

        return Fleet(what, copied, placement, num_gpus=num_gpus, say=self._say, on_loaded=on_loaded)

    def close(self) -> None:
        """Disconnect. Ray then ends what this process still has on the cluster, and a cluster that it has started."""
        if self._is_ours:
            import ray

            ray.shutdown()
            self._is_ours = False

    def _connect(self) -> None:
        """Join the cluster.

        Raises:
            InputError: Ray is not installed, or there is no cluster at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise InputError("executor: kind ray needs Ray; install it by `pip install 'sinterlm[ray]'`") from error
        from sinterlm.pipeline.executors.fleet import count

        if ray.is_initialized():  # also by a program that calls Sinter
            return
        self._check_address()
        # A cluster that Ray starts here would otherwise report its use to Ray's makers.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            if self._address != "local":
                try:
                    ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
                except ConnectionError as error:
                    if self._address != "auto":
                        raise InputError(f"executor: {self._address}: {first_line(error)}") from error
            if not ray.is_initialized():
                ray.init(address="local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except SystemExit:  # Ray's own handler of SIGTERM
            raise Terminated from None
        finally:
            if threading.current_thread() is threading.main_thread():  # Ray's own handler would end without a word
                signal.signal(signal.SIGTERM, on_terminate)
        self._is_ours = True
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
        resources = (count(len(nodes), "node"), count(cpus, "CPU core"), count(gpus, "GPU"))
        self._say(f"Ray cluster: {', '.join(resources)}")

    def _check_address(self) -> None:
        """Knock at the head node's port: Ray would try for minutes, and then say little.

        Raises:
            InputError: Nothing listens there.
        """
        if self._address in ("auto", "local"):
            return
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise InputError(
                f"executor: no Ray cluster at {self._address} ({first_line(error)}); give the HOST:PORT of its head "
                "node (`ray start --head --port 6379`), or use address: local"
            ) from error


class _Remote:
    """Workers that the first use starts.

    Args:
        start: Connects to the cluster.
    """

    def __init__(self, start: Callable[[], Fleet]) -> None:
        self._start = start
        self._fleet: Fleet | None = None

    @property
    def fleet(self) -> Fleet:
        """The workers."""
        if self._fleet is None:
            self._fleet = self._start()
        return self._fleet

    def close(self) -> None:
        """Stop the workers; the next use starts new ones."""
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None


class RemoteEngine(_Remote):
    """An engine whose batches are answered on a cluster, in any order. Batches are the same as in one process.

    Args:
        engine: The same engine in this process, which loads nothing.
        start: Connects to the cluster.
    """

    def __init__(self, engine: Engine, start: Callable[[], Fleet]) -> None:
        super().__init__(start)
        self._engine = engine

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """See :meth:`~sinterlm.sampling.protocol.Engine.batches`."""
        return self._engine.batches(items)

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Answer every batch; each yielded list is a whole batch's."""
        for _, generations in self.fleet.work(batches):
            yield generations


class RemoteScorer(_Remote):
    """A scorer that scores on a cluster.

    Args:
        scorer: The same scorer in this process, which loads nothing.
        start: Connects to the cluster.
    """

    def __init__(self, scorer: Scorer, start: Callable[[], Fleet]) -> None:
        super().__init__(start)
        self._scorer = scorer

    @property
    def identity(self) -> str:
        """See :attr:`~sinterlm.scoring.protocol.Scorer.identity`."""
        return self._scorer.identity

    @property
    def needs_answers(self) -> bool:
        """See :attr:`~sinterlm.scoring.protocol.Scorer.needs_answers`."""
        return self._scorer.needs_answers

    @property
    def answers_at_once(self) -> int:
        """See :attr:`~sinterlm.scoring.protocol.LikesMany.answers_at_once`."""
        return ANSWERS_AT_ONCE * MAX_BATCHES

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """See :meth:`~sinterlm.scoring.protocol.Scorer.score`."""
        return in_order(self.stream(exchanges))

    def stream(self, exchanges: Sequence[Exchange], supply: Supply = iter) -> Iterator[Given]:
        """Score batch by batch, as many at once as there are workers, and give each batch as it comes."""
        for number, scores in self.fleet.work(supply(chunks(exchanges, ANSWERS_AT_ONCE))):
            yield Given(list(enumerate(scores, start=number * ANSWERS_AT_ONCE)))
