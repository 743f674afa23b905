"""The jobs of a source as an engine keeps them: in the store, on the disk at once."""

from __future__ import annotations

from collections.abc import Iterable

from sinterlm.sampling.protocol import Job
from sinterlm.store import Store


class StoredJobs:
    """See :class:`~sinterlm.sampling.protocol.JobBook`.

    Args:
        store: Keeps them.
        identity: The source's, so that every recipe that asks it the same way shares them.
    """

    def __init__(self, store: Store, identity: str) -> None:
        self._store = store
        self._identity = identity

    def items(self) -> Iterable[tuple[str, Job]]:
        """Every job by name."""
        return [(name, Job(*kept)) for name, kept in self._store.jobs(self._identity).items()]

    def __setitem__(self, name: str, job: Job) -> None:
        """Keep the state of a job."""
        self._store.set_job(self._identity, name, job.state, job.detail)
