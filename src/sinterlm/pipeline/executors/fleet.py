"""Copies of one engine or scorer on the nodes of a cluster, and the work that is given to them.

Ray's own retries are not used: after a node's death its actors are unavailable for a while, and work that is given to
them then is lost. Here a unit of work belongs to the driver until its result has come. A worker that Ray cannot reach
is given up, its units go to others, and a new one is started in its place.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from sinterlm.errors import InputError, TryAgainError
from sinterlm.pipeline.executors.worker import Copied, Done, Home, Worker, release
from sinterlm.recipe.executors import Placement

MAX_TRIES = 5
"""Workers that may be lost with the same unit of work before it is held to be the cause."""
MAX_LOSSES = 10
"""Workers that may be lost one after the other without a result in between."""
START_SECONDS = 600.0
"""How long no worker may be found a place."""
COUNT_SECONDS = 5.0
"""How often the cluster's nodes are counted."""
CLOSE_SECONDS = 10.0
"""How long a worker may take to release what it holds."""
DEPTH = 2
"""Units that a worker holds at once: one that it computes and one that waits for it."""


class Needs(NamedTuple):
    """What one worker occupies on a node."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        """For messages."""
        return count(self.cpus, "CPU core") + (f" and {count(self.gpus, 'GPU')}" if self.gpus else "")

    def fit(self, node: dict[str, float]) -> int:
        """How many workers a node has room for."""
        return int(min(node.get("CPU", 0) // self.cpus, node.get("GPU", 0) // self.gpus if self.gpus else float("inf")))


@dataclass(eq=False)
class _Task:
    """A unit of work until its result has come."""

    number: int
    unit: Sequence[Any]
    tries: int = 0


@dataclass(eq=False)
class _Actor:
    """A worker as the driver sees it."""

    handle: Any
    starting: Any
    """The reference of its start; None once it runs."""
    node: str = ""
    tasks: dict[Any, _Task] = field(default_factory=dict)
    """What it has been given, by the reference of the result."""

    @property
    def room(self) -> int:
        return 0 if self.starting else DEPTH - len(self.tasks)


class Fleet:
    """Workers that compute units of work, wherever the cluster has room for them; the first unit starts them.

    Args:
        what: The model or scorer, for messages.
        copied: What every worker builds.
        placement: What a worker occupies, and how many there are.
        num_gpus: GPUs that a worker needs, if the placement does not say.
        say: Told what happens, line by line.
        on_loaded: Told where weights are loaded.
    """

    def __init__(
        self,
        what: str,
        copied: Copied,
        placement: Placement,
        *,
        num_gpus: int,
        say: Callable[[str], None],
        on_loaded: Callable[[str], None] = lambda placement: None,
    ) -> None:
        self._what = what
        self._copied = copied
        self._placement = placement
        self._num_gpus = num_gpus
        self._say = say
        self._on_loaded = on_loaded
        self._actors: list[_Actor] = []
        self._again: deque[_Task] = deque()
        self._losses = 0
        self._counted = 0.0
        """When the nodes were last counted."""
        self._changed = 0.0
        """When a result last came, or a worker was lost."""

    def work(self, units: Iterable[Sequence[Any]]) -> Generator[tuple[int, Any], None, None]:
        """Compute every unit; yields the number of each, from 0, and its result, in the order in which results come.

        The next unit is taken only when a worker has room for it.

        Raises:
            InputError: No node has room for a worker, or a node lacks what the recipe names.
            SinterError: What a worker has raised.
            TryAgainError: Workers are lost again and again.
        """
        self._forget()
        room = self._room()
        if not room and not self._actors:
            raise self._no_room()
        rest = iter(units)
        first = list(islice(rest, max(room, 1)))
        supply = enumerate(chain(first, rest))
        most = len(first) if len(first) < room else None
        is_over = not first
        self._changed = time.monotonic()
        while True:
            if self._again or not is_over:
                self._start_workers(most)
            while (self._again or not is_over) and (
                actor := max(self._actors, key=lambda each: each.room, default=None)
            ):
                if actor.room <= 0:
                    break
                if self._again:
                    task = self._again.popleft()
                elif numbered := next(supply, None):
                    task = _Task(*numbered)
                else:
                    is_over = True
                    break
                actor.tasks[actor.handle.work.remote(task.unit)] = task
            if is_over and not self._again and not any(actor.tasks for actor in self._actors):
                return
            for task, done in self._await():
                yield task.number, done.result

    def close(self) -> None:
        """Stop every worker. One that is idle releases first what it holds."""
        idle = [actor.handle.close.remote() for actor in self._actors if actor.node and not actor.tasks]
        with suppress(RayError):
            ray.wait(idle, num_returns=len(idle), timeout=CLOSE_SECONDS) if idle else None
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors.clear()

    def _forget(self) -> None:
        """Give up what an earlier call has left in flight, because it was closed before its end."""
        self._again.clear()
        for actor in self._actors:
            actor.tasks.clear()

    def _needs(self) -> Needs:
        gpus = self._placement.gpus
        has_gpus = any(node.get("GPU") for node in _nodes())
        return Needs(self._placement.cpus, gpus if gpus is not None else self._num_gpus if has_gpus else 0)

    def _room(self) -> int:
        """How many workers the recipe names, or the cluster has room for."""
        if self._placement.copies is not None:  # Ray places them when it can: a cluster may grow by what it is asked
            return self._placement.copies
        return sum(map(self._needs().fit, _nodes()))

    def _no_room(self) -> InputError:
        largest = max(_nodes(), key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        has = f"{count(largest.get('CPU', 0), 'CPU core')} and {count(largest.get('GPU', 0), 'GPU')}"
        return InputError(
            f"{self._what} needs {self._needs()} on one node, but the cluster's largest node has {has}; lower its "
            "`cpus` or `gpus` in the recipe's `executor`, or give its `copies` if the cluster will grow"
        )

    def _start_workers(self, most: int | None) -> None:
        """Start the workers that are wanted and do not run; ``most`` if there is work for no more."""
        now = time.monotonic()
        if self._actors and now - self._counted < COUNT_SECONDS:
            return
        self._counted = now
        wanted = self._room()
        needs = self._needs()
        actor_class = ray.remote(Worker)
        for _ in range(len(self._actors), wanted if most is None else min(wanted, most)):
            handle = actor_class.options(
                num_cpus=needs.cpus,
                num_gpus=needs.gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            ).remote(self._copied)
            starting = handle.start.remote(Home(self._what, release(), self._copied.paths))
            self._actors.append(_Actor(handle, starting))

    def _await(self) -> Iterator[tuple[_Task, Done]]:
        """Wait until something happens for a while; yields what has been computed."""
        waiting = {actor.starting: actor for actor in self._actors if actor.starting}
        waiting |= {reference: actor for actor in self._actors for reference in actor.tasks}
        ready: list[Any] = []
        if waiting:
            with _signals():
                ready, _ = ray.wait(list(waiting), num_returns=1, timeout=COUNT_SECONDS)
        else:  # no node is left
            time.sleep(1)
        for reference in ready:
            actor = waiting[reference]
            try:
                with _signals():
                    value = ray.get(reference)
            except RayTaskError as error:  # what our own code raised there
                raise error.cause from error
            except RayError as error:
                self._give_up(actor, error)
                continue
            if reference is actor.starting:
                actor.starting, actor.node = None, value
                continue
            done: Done = value
            self._losses, self._changed = 0, time.monotonic()
            for placement in done.said:
                self._on_loaded(f"{placement}, node {actor.node}")
            yield actor.tasks.pop(reference), done
        if all(actor.starting for actor in self._actors) and time.monotonic() - self._changed > START_SECONDS:
            raise TryAgainError(
                f"{self._what}: for {START_SECONDS / 60:.0f} minutes the cluster has found no place for a worker with "
                f"{self._needs()}; what is stored stays: rerun the command to resume"
            )

    def _give_up(self, actor: _Actor, error: RayError) -> None:
        """Replace a worker that Ray cannot reach; its work goes to others.

        Raises:
            InputError: A node cannot start a worker at all.
            TryAgainError: Too many workers were lost.
        """
        last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__).strip()
        if getattr(error, "_actor_init_failed", False):
            raise InputError(
                f"{self._what}: a node cannot start a worker ({last}); Sinter and what the recipe needs must be "
                "installed on every node"
            ) from error
        self._actors.remove(actor)
        ray.kill(actor.handle)
        self._counted, self._changed = 0.0, time.monotonic()
        self._losses += 1
        where = f" on node {actor.node}" if actor.node else ""
        self._say(f"  {self._what}: lost a worker{where} ({type(error).__name__}); others do its work")
        for task in actor.tasks.values():
            task.tries += 1
            self._again.append(task)
        if self._losses > MAX_LOSSES or any(task.tries >= MAX_TRIES for task in actor.tasks.values()):
            raise TryAgainError(
                f"{self._what}: workers are lost again and again, the last{where} ({last}); a node may have too little "
                "memory. What is stored stays: rerun the command to resume"
            ) from error


@contextmanager
def _signals() -> Iterator[None]:
    """While Ray waits, it wraps what the handler of a signal raises."""
    try:
        yield
    except SystemError as error:
        raise error.__cause__ or error from None


def count(number: float, unit: str) -> str:
    """A number with its unit, for messages."""
    return f"{number:.0f} {unit}{'' if number == 1 else 's'}"


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
