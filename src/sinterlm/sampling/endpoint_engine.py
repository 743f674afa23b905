"""The engine that asks a model behind a server that speaks the OpenAI protocol."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

from sinterlm.endpoint.settings import Served
from sinterlm.errors import InputError, TryAgainError
from sinterlm.models import Fingerprint, fingerprint
from sinterlm.records import (
    PROMPT_REFUSED,
    PROMPT_TOO_LONG,
    Failure,
    FinishReason,
    Prompt,
    SamplingSettings,
    Usage,
)
from sinterlm.sampling.protocol import Answered, Generation, Item
from sinterlm.sampling.served_model import LIMITS, Requests, ServedModel, check_reply
from sinterlm.template import TemplateRefusal

if TYPE_CHECKING:
    from sinterlm.endpoint import Endpoint, RequestRefused

MAX_REFUSED = 5
"""How many prompts a server may refuse before its first answer; then it refuses the settings, and asking on is vain."""
LONG_ANSWER, MAX_REPEATED = 30, 8
"""Characters of an answer that chance does not repeat, and how often a server may repeat such answers at first."""
_MAY_BE_LEFT_OUT = ("temperature", "top_p", "seed", *LIMITS)
_NOT_TAKEN = re.compile(
    r"unsupported|not? support|not (allowed|permitted)|unknown|unrecogni[sz]ed|unexpected|extra|only the default",
    re.IGNORECASE,
)
"""Matches refusals of a field itself. Others refuse its value."""
_NUMBER_OF_ANSWERS = re.compile(r"""(['"`])n\1|\bn (must|should|has to|is)\b|\bn ?[>=]""")
_NO_SYSTEM_ROLE = re.compile(
    r"system (role|message|prompt)s?\b.*\b(not|un) ?(supported|allowed|accept)|only user and assistant", re.IGNORECASE
)
_CONTEXT_TOKENS = re.compile(r"context (?:length|size|window)\D{1,20}(\d+)")
_PROMPT_TOKENS = re.compile(
    r"(\d+) input tokens|request \((\d+) tokens|\((\d+) in the messages|resulted in (\d+) tokens"
)
"""Match the sizes in refusals of vLLM, llama.cpp and OpenAI."""


class EndpointSource(Served, ServedModel):
    """A model behind a server that speaks the OpenAI protocol."""

    description: ClassVar = (
        "a model behind a server that speaks the OpenAI protocol: vLLM, SGLang, llama.cpp, Ollama, or a vendor's"
    )
    runs_elsewhere: ClassVar = True

    engine: Literal["endpoint"]
    revision: str | None = None
    """Names the weights that answer. If it is given, answers stay valid when ``base_url`` changes; without it, the
    first ``base_url`` names them.
    """

    __hash__ = ServedModel.__hash__
    """Fields hold mappings, of which pydantic makes no hash."""

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


class _Job(NamedTuple):
    """Answers to one prompt that one request may ask for."""

    prompt: Prompt
    indices: Sequence[int]


class _Variety:
    """Notices a server that gives the same answer whenever it is asked, so that every sample but the first is wasted.

    Short answers are often the same, so only prompts with long ones count.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._num_repeated = 0
        self._is_known = False

    def add(self, generations: Iterable[Generation]) -> bool:
        """Look at answers; whether they make sure, for the first time, that there is no variety."""
        for each in generations:
            if self._is_known or len(each.content) < LONG_ANSWER:
                continue
            if (text := self._texts.pop(each.prompt_id, None)) is None:
                self._texts[each.prompt_id] = each.content
            elif text == each.content:
                self._num_repeated += 1
                self._is_known = self._num_repeated == MAX_REPEATED
            else:
                self._is_known = True
                self._num_repeated = 0
            if self._is_known:
                self._texts.clear()
                return self._num_repeated > 0
        return False


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
        self._most: int | None = None
        """Answers that the server gives to one request; None if it gives all."""
        self._without: set[str] = set()
        """Fields that the server does not take."""
        self._has_system_role = True
        self._names: dict[str, list[str]] = {}
        """By URL, every name that the server gave to its model."""
        self._variety = _Variety()
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
        return [list(group) for _, group in groupby(items, key=lambda item: item.prompt.id)]

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Answer one batch after the other; :meth:`stream` asks for many at once.

        Raises:
            TryAgainError: An answer failed after all retries.
        """
        for batch in batches:
            found = {}
            for answered in self.stream(batch):
                for failure in answered.failures:
                    raise TryAgainError(f"prompt {failure.prompt_id}: {failure.kind} ({failure.detail})")
                found.update({(each.prompt_id, each.index): each for each in answered.generations})
            yield [found[item.prompt.id, item.index] for item in batch]

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
            most = self._most or len(indices)
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
                body = self._requests.body(
                    prompt, indices, without=self._without, limit=limit, has_system_role=self._has_system_role
                )
                received = await self._endpoint.post(self._requests.path, body, check=check_reply)
                break
            except TemplateRefusal as error:
                return _unasked(job, PROMPT_REFUSED, str(error), num_requests)
            except RequestFailed as error:
                failures = [Failure(prompt.id, index, error.kind, error.detail) for index in job.indices]
                return Answered((), failures, Usage(num_requests + error.requests))
            except RequestRefused as error:
                num_requests += 1
                if error.kind == "content-filtered":
                    return _unasked(job, PROMPT_REFUSED, error.detail, num_requests)
                if error.kind == "refused" and self._adapt(body, error.detail):
                    continue
                room = _room_for_an_answer(error.detail) if limit is None else 0
                if error.kind == "context-too-long" and room > 0:
                    limit = room
                elif error.kind != "refused":
                    return _unasked(job, PROMPT_TOO_LONG, error.detail, num_requests)
                elif len(indices) > 1:
                    indices, refusal = indices[:1], error.detail
                else:
                    return self._refused(job, error, num_requests)
        self._has_answered = True
        read = self._requests.read(received.value, prompt, indices)
        if missing := job.indices[len(read.generations) :]:
            said = f"gives {len(read.generations)} of {len(indices)} answers" if len(indices) > 1 else refusal
            self._give_most(len(read.generations), said)
            self._again.append(_Job(prompt, missing))
        self._notice(received.url, read.served_by)
        if self._requests.draws and self._variety.add(read.generations):
            self._notes.append(
                f"gave the same answer twice to each of {MAX_REPEATED} prompts: it may not draw answers at random, and "
                "then several samples are worth no more than one"
            )
        return Answered(read.generations, usage=read.usage + Usage(num_requests + received.requests))

    def _adapt(self, body: Mapping[str, Any], detail: str) -> bool:
        """Find out what a refusal is about, so that later requests are not refused for it.

        Args:
            body: The request.
            detail: What the server said.

        Returns:
            Whether the request would now be another one.
        """
        messages = body.get("messages") or ({"role": ""},)
        if messages[0]["role"] == "system" and _NO_SYSTEM_ROLE.search(detail):
            if self._has_system_role:
                self._has_system_role = False
                self._notes.append(f"takes no system message; it opens the first user turn instead ({detail})")
            return True
        if not _NOT_TAKEN.search(detail) or ("n" in body and _NUMBER_OF_ANSWERS.search(detail)):
            return False
        has_spare_limit = all(name in body for name in LIMITS)
        places = {
            name: found.start()
            for name in _MAY_BE_LEFT_OUT
            if name in body and (name not in LIMITS or has_spare_limit)
            if (found := re.search(rf"\b{name}\b", detail))
        }
        if not places:
            return False
        name = min(places, key=places.__getitem__)  # a server may go on to say which field it takes instead
        if name not in self._without:
            self._without.add(name)
            means = "" if name in LIMITS else f"; answers are drawn with the server's own {name}"
            self._notes.append(f"does not take `{name}`{means} ({detail})")
        return True

    def _give_most(self, most: int, why: str) -> None:
        """The server gives at most so many answers to one request."""
        if self._most is None or most < self._most:
            self._most = most
            asked = "one by one" if most == 1 else f"at most {most} at once"
            self._notes.append(
                f"does not give as many answers to a request as `n` says; they are asked {asked} ({why})"
            )

    def _notice(self, url: str, name: str) -> None:
        """Notice that the model behind a URL has changed."""
        names = self._names.setdefault(url, [])
        if name and name not in names:
            if names:
                self._notes.append(f"{url}: the model is now {name}; answers before came from {names[-1]}")
            names.append(name)

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


def _unasked(job: _Job, reason: FinishReason, problem: str, num_requests: int) -> Answered:
    """A prompt that the model cannot be asked."""
    found = _PROMPT_TOKENS.search(problem) if reason == PROMPT_TOO_LONG else None
    tokens = int(found[found.lastindex or 0]) if found else 0
    generations = [Generation(job.prompt.id, index, "", reason, tokens, 0, problem=problem) for index in job.indices]
    return Answered(generations, usage=Usage(num_requests))


def _room_for_an_answer(detail: str) -> int:
    """Tokens that the context leaves after the prompt, by what a server says; at most 0 if that is not known.

    Some servers refuse a prompt that leaves less room than the limit of an answer; others cut the answer there.

    >>> _room_for_an_answer("maximum context length is 4096 tokens and your request has 4000 input tokens")
    96
    """
    context, prompt = _CONTEXT_TOKENS.search(detail), _PROMPT_TOKENS.search(detail)
    return int(context[1]) - int(prompt[prompt.lastindex or 0]) if context and prompt else 0
