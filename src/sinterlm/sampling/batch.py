"""The engine that asks by jobs: a provider's batch API, or a program such as ``vllm run-batch``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sinterlm.endpoint.keys import OPENAI_URL
from sinterlm.endpoint.settings import BaseUrl
from sinterlm.errors import InputError
from sinterlm.explain import Problem
from sinterlm.models import Fingerprint, fingerprint
from sinterlm.records import SamplingSettings, Usage
from sinterlm.sampling.endpoint_engine import RemoteModel
from sinterlm.sampling.jobs import JobEngine, Runner
from sinterlm.sampling.served_model import ServedModel
from sinterlm.settings import Positive

INPUT, OUTPUT = "{input}", "{output}"
"""What a command must contain."""
LostJobs = Literal["refuse", "ask-again"]


class BatchSource(RemoteModel):
    """A model that is asked by jobs."""

    description: ClassVar = (
        "a model asked by jobs of many requests: a provider's batch API, cheaper and within a day, or `vllm run-batch`"
    )

    engine: Literal["batch"]
    base_url: BaseUrl = OPENAI_URL
    """The provider, up to and without ``/batches``."""
    command: Annotated[list[str], Field(min_length=1)] | None = None
    """A program of this machine that works off a file of requests, in place of a provider, for example ``[vllm,
    run-batch, -i, "{input}", -o, "{output}", --model, org/name]``. Keys that are about a provider have then no meaning.
    """
    chunk: Annotated[int, Field(ge=1, le=50_000)] = 5_000
    """Requests in a job. All samples of a prompt are one request, if the server takes that. No file is larger than
    200 MB.
    """
    concurrency: Positive = 20
    """Jobs at once at the provider. A budget stops further jobs, not those that are submitted. Programs run one at a
    time.
    """
    poll_seconds: Annotated[float, Field(gt=0)] | None = None
    """How often running jobs are looked at; by default every minute, and every second for ``command``."""
    completion_window: str = "24h"
    """How long a job may take, as the provider calls it. What is not answered by then is put into another job."""
    batch_discount: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The share by which jobs are cheaper than ``price``, which is that of the endpoint itself."""
    lost_jobs: LostJobs = "refuse"
    """What to do about a job that the server does not know: ``refuse`` to continue, because it may be another account's
    and paid for, or ``ask-again`` for its answers.
    """

    @property
    def runs_elsewhere(self) -> bool:  # type: ignore[override]
        """Whether a provider answers; a program needs this machine."""
        return self.command is None

    def build(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        on_loaded: Callable[[str], None] | None = None,
    ) -> JobEngine:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.build`."""
        assert settings is not None
        poll_seconds = self.poll_seconds or (1.0 if self.command else 60.0)
        return JobEngine(self.requests(settings), self._build_runner(), chunk=self.chunk, poll_seconds=poll_seconds)

    def _build_runner(self) -> Runner:
        if self.command:
            from sinterlm.sampling.command_jobs import CommandJobs

            return CommandJobs(self.command)
        from sinterlm.sampling.provider_jobs import ProviderJobs

        return ProviderJobs(
            self.base_url,
            api_key_env=self.api_key_env,
            most=self.concurrency,
            completion_window=self.completion_window,
            timeout_seconds=self.timeout_seconds,
            max_retries=self.max_retries,
            asks_again_for_lost=self.lost_jobs == "ask-again",
        )

    def identity(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        fingerprint: Fingerprint = fingerprint,
    ) -> str:
        """As of the engine ``endpoint``, so that a model may be asked by jobs and directly in turn."""
        assert settings is not None
        if self.command:
            return self.name_answers(self.revision or "command", settings)
        return super().identity(location=location, settings=settings, fingerprint=fingerprint)

    def check(self, name: str) -> None:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.check`.

        Raises:
            CredentialsError: The provider needs a key, and there is none.
            InputError: There is no such program.
        """
        if not self.command:
            super().check(name)
            return
        ServedModel.check(self, name)
        if shutil.which(self.command[0]) is None:
            raise InputError(f"{self.command[0]}: there is no such program (command of {name}); install it")

    def provenance(self, location: str | None = None) -> str:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.provenance`."""
        return f"{self.model} by {self.command[0]}" if self.command else f"{super().provenance(location)}, by jobs"

    def money(self, usage: Usage) -> float | None:
        """What ``usage`` costs by jobs: the price less the discount; nothing for a program of this machine."""
        if self.command:
            return 0.0 if self.price is None else self.price.money(usage)
        money = super().money(usage)
        return None if money is None else money * (1 - self.batch_discount)

    def compare_cost(self, usage: Usage) -> str:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.compare_cost`."""
        if self.command:
            return ""
        jobs, directly = self.money(usage), super().money(usage)
        begin = f"asked by jobs, each within {self.completion_window}, for "
        if jobs is None:
            return f"{begin}{self.batch_discount:.0%} less than if asked directly and at once"
        return f"{begin}{jobs:,.2f}; asked directly and at once, it would cost {directly:,.2f}"

    def find_problems(self) -> Iterator[Problem]:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.find_problems`."""
        yield from super().find_problems()
        if not self.command:
            return
        missing = [place for place in (INPUT, OUTPUT) if not any(place in part for part in self.command)]
        if missing:
            reason = f"must contain {' and '.join(missing)}: the file of requests, and the file that it writes"
            yield Problem(("command",), reason)
        for name in sorted(_OF_PROVIDERS & self.model_fields_set):
            yield Problem((name,), "has no meaning beside `command`; remove one of them")


_OF_PROVIDERS = {
    "api_key_env",
    "base_url",
    "batch_discount",
    "completion_window",
    "concurrency",
    "lost_jobs",
    "max_retries",
    "timeout_seconds",
}
"""Keys that have no meaning beside ``command``."""
