"""Ray's calls without a cluster: workers compute in this process, and may be lost at any moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError, RayTaskError


class Reference:
    """The result of a call, which is computed when somebody waits for it."""

    def __init__(self, actor: Handle, compute: Callable[[], Any]) -> None:
        self.actor, self._compute = actor, compute

    def get(self) -> Any:
        if self.actor.is_lost:
            raise ActorUnavailableError("the node is gone", actor_id=None)
        try:
            return self._compute()
        except Exception as error:
            raise RayTaskError("work", "the node's traceback", error) from None


class Handle:
    """An actor."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.is_lost = False
        self.num_given = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._worker, name)

        def remote(*arguments: Any) -> Reference:
            self.num_given += name == "work"
            return Reference(self, lambda: method(*arguments))

        return type("Method", (), {"remote": staticmethod(remote)})


@dataclass
class FakeRay:
    """A cluster.

    Args:
        nodes: The resources of each node.
        choose: Picks which of the open calls ends first; it may lose workers.
    """

    nodes: list[Mapping[str, float]]
    choose: Callable[[Sequence[Reference]], Reference] = lambda references: references[0]
    addresses: list[str] = field(default_factory=list)
    """Where it was looked for."""
    options: list[Mapping[str, Any]] = field(default_factory=list)
    """How each worker was placed."""
    running: list[Handle] = field(default_factory=list)
    _is_initialized: bool = False

    def install(self, patch: pytest.MonkeyPatch) -> FakeRay:
        """Put it in Ray's place."""
        for name, fake in {
            "init": self._init,
            "shutdown": self._shutdown,
            "is_initialized": lambda: self._is_initialized,
            "nodes": lambda: [{"Alive": True, "Resources": node} for node in self.nodes],
            "remote": self._remote,
            "wait": self._wait,
            "get": lambda reference: reference.get(),
            "kill": self._kill,
        }.items():
            patch.setattr(ray, name, fake)
        return self

    def _init(self, address: str, **settings: Any) -> None:
        self.addresses.append(address)
        self._is_initialized = True

    def _shutdown(self) -> None:
        self._is_initialized = False

    def _remote(self, worker_class: Any) -> Any:
        def options(**options: Any) -> Any:
            def create(*arguments: Any) -> Handle:
                self.options.append(options)
                self.running.append(Handle(worker_class(*arguments)))
                return self.running[-1]

            return type("Options", (), {"remote": staticmethod(create)})

        return type("Class", (), {"options": staticmethod(options)})

    def _wait(self, references: Sequence[Reference], num_returns: int, timeout: float) -> Any:
        if num_returns > 1:
            return [reference for reference in references if reference.get() is None], []
        chosen = self.choose(references)
        return [chosen], [reference for reference in references if reference is not chosen]

    def _kill(self, handle: Handle) -> None:
        handle.is_lost = True
        self.running.remove(handle)
