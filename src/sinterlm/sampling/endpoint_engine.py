"""The engine that asks a model behind a server that speaks the OpenAI protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

from sinterlm.endpoint.settings import Served, Server
from sinterlm.errors import InputError
from sinterlm.models import Fingerprint, fingerprint
from sinterlm.records import PROMPT_REFUSED, Failure, Prompt, SamplingSettings, Usage
from sinterlm.sampling.protocol import Answered, Generation, Item
from sinterlm.sampling.served_model import Requests, ServedModel, check_reply
from sinterlm.sampling.server_habits import NotAsked, ServerHabits
from sinterlm.sampling.streamed import batches_by_prompt, sample_streamed
from sinterlm.template import TemplateRefusal

if TYPE_CHECKING:
    from sinterlm.endpoint import Endpoint, RequestRefused

MAX_REFUSED = 5
"""How many prompts a server may refuse before its first answer; then it refuses the settings, and asking on is vain."""


class RemoteModel(Server, ServedModel):
    """A model behind a server that others run, however it is asked."""

    runs_elsewhere: ClassVar[bool] = True

    revision: str | None = None
    """Names the weights that answer. If it is given, answers stay valid when ``base_url`` changes; without it, the
    first ``base_url`` names them.
    """

    __hash__ = ServedModel.__hash__
    """Fields hold mappings, of which pydantic makes no hash."""

    def identity(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        fingerprint: Fingerprint = fingerprint,
    ) -> str:
        """See :meth:`~sinterlm.sampling.served_model.ServedModel.name_answers`; key, limits and price are no part."""
        assert settings is not None
        return self.name_answers(self.revision or self.base_urls[0], settings)

    def check(self, name: str) -> None:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.check`.

        Raises:
            CredentialsError: A server needs a key, and there is none.
        """
        super().check(name)
        self.check_keys()

    def provenance(self, location: str | None = None) -> str:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.provenance`."""
        hosts = ", ".join(dict.fromkeys(urlsplit(url).netloc for url in self.base_urls))
        return f"{self.model} behind {hosts}, {'few-shot prompt' if self.prompt.few_shot else 'chat'}"


class EndpointSource(Served, RemoteModel):
    """A model behind a server that speaks the OpenAI protocol."""

    description: ClassVar = (
        "a model behind a server that speaks the OpenAI protocol: vLLM, SGLang, llama.cpp, Ollama, or a vendor's"
    )

    engine: Literal["endpoint"]

    __hash__ = ServedModel.__hash__

    def build(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        on_loaded: Callable[[str], None] | None = None,
    ) -> EndpointEngine:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.build`."""
        assert settings is not None
        return EndpointEngine(self.requests(settings), self.build_endpoint)


class _Job(NamedTuple):
    """Answers to one prompt that one request may ask for."""

    prompt: Prompt
    indices: Sequence[int]


class EndpointEngine:
    """Samples a model behind a server.

    Several answers to a prompt are asked for at once (``n``). A server that refuses that, or gives fewer, is asked for
    the missing ones, and from then on for as many at once as it gave. Fields that a server does not take are left out.
    Whatever is found out is said once and holds as long as the engine does.

    Args:
        requests: What the server is asked.
        connect: Builds the client; its argument is told what the client notices.
    """

    def __init__(self, requests: Requests, connect: Callable[[Callable[[str], None]], Endpoint]) -> None:
        self._requests = requests
        self._notes: deque[str] = deque()
        self._endpoint = connect(self._notes.append)
        self._again: deque[_Job] = deque()
        """Answers that a request has asked for in vain, because it asked for too many."""
        self._habits = ServerHabits(requests, self._notes.append)
        self._num_refused = 0
        self._has_answered = False
        self._is_closed = False

    def stream(self, items: Iterable[Item]) -> Iterator[Answered]:
        """See :class:`~sinterlm.sampling.protocol.Streams`.

        Raises:
            CredentialsError: There is no key, or the server refuses it.
            InputError: The server refuses all requests.
            TryAgainError: The server does not work.
        """
        self._is_closed = False
        jobs = self._jobs(items)
        while True:
            for done in self._endpoint.map(self._answer, jobs):
                yield self._joined(done)
            if self._is_closed or not self._again:
                break
            jobs = self._jobs(())
        if self._notes:
            yield self._joined(())

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """One batch for each prompt."""
        return batches_by_prompt(items)

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Answer one batch after the other; :meth:`stream` asks for many at once.

        Raises:
            TryAgainError: An answer failed after all retries.
        """
        return sample_streamed(self, batches)

    def close(self) -> None:
        """Give up what is in flight; may be called from any thread."""
        self._is_closed = True
        self._endpoint.close()

    def _jobs(self, items: Iterable[Item]) -> Iterator[_Job]:
        """Yield the work, with what was asked for in vain before anything new."""
        for _, group in groupby(items, key=lambda item: item.prompt.id):
            same = list(group)
            self._again.append(_Job(same[0].prompt, [item.index for item in same]))
            yield from self._pieces()
        yield from self._pieces()

    def _pieces(self) -> Iterator[_Job]:
        """Yield what is to be asked, at most as many answers at once as the server gives."""
        while self._again:
            prompt, indices = self._again.popleft()
            most = self._habits.most or len(indices)
            if len(indices) > most:
                self._again.appendleft(_Job(prompt, indices[most:]))
            yield _Job(prompt, indices[:most])

    async def _answer(self, job: _Job) -> Answered:
        """Ask for the answers of one job, and for fewer of them if the server does not take that many at once."""
        from sinterlm.endpoint import RequestFailed, RequestRefused

        prompt, indices = job
        num_requests, limit, refusal = 0, None, ""
        while True:
            try:
                body = self._habits.body(prompt, indices, limit=limit)
                received = await self._endpoint.post(self._requests.path, body, check=check_reply)
                break
            except TemplateRefusal as error:
                refused = NotAsked(PROMPT_REFUSED, str(error))
                return Answered(refused.generations(prompt, job.indices), usage=Usage(num_requests))
            except RequestFailed as error:
                failures = [Failure(prompt.id, index, error.kind, error.detail) for index in job.indices]
                return Answered((), failures, Usage(num_requests + error.requests))
            except RequestRefused as error:
                num_requests += 1
                met = self._habits.meet_refusal(body, len(indices), limit, kind=error.kind, detail=error.detail)
                if isinstance(met, NotAsked):
                    return Answered(met.generations(prompt, job.indices), usage=Usage(num_requests))
                if met is None:
                    return self._refused(job, error, num_requests)
                if met.most < len(indices):
                    indices, refusal = indices[: met.most], error.detail
                limit = met.limit
        self._has_answered = True
        read = self._requests.read(received.value, prompt, indices)
        if missing := job.indices[len(read.generations) :]:
            said = f"gives {len(read.generations)} of {len(indices)} answers" if len(indices) > 1 else refusal
            self._habits.give_most(len(read.generations), said)
            self._again.append(_Job(prompt, missing))
        self._habits.notice(received.url, read)
        return Answered(read.generations, usage=read.usage + Usage(num_requests + received.requests))

    def _refused(self, job: _Job, error: RequestRefused, num_requests: int) -> Answered:
        """The server refuses a request for a reason that is not known.

        Raises:
            InputError: It refuses all requests.
        """
        self._num_refused += 1
        if not self._has_answered and self._num_refused >= MAX_REFUSED:
            raise InputError(error.advice)
        failures = [Failure(job.prompt.id, index, error.kind, error.detail) for index in job.indices]
        return Answered((), failures, Usage(num_requests))

    def _joined(self, done: Sequence[Answered]) -> Answered:
        """Results as one, with what was noticed."""
        notes = [self._notes.popleft() for _ in range(len(self._notes))]
        return Answered(
            [generation for each in done for generation in each.generations],
            [failure for each in done for failure in each.failures],
            sum((each.usage for each in done), Usage()),
            notes,
            self._endpoint.state,
        )
