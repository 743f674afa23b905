"""Asks models for the answers that the store lacks, and writes each answer before it counts as done.

Models behind servers are asked all at once, each in a thread of its own and at its own pace. Models that need this
machine are asked one after another meanwhile. A model that fails does not stop the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Thread

from sinterlm.errors import BudgetError, InputError, SinterError, ToleranceError
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.pipeline.jobs import StoredJobs
from sinterlm.pipeline.stage import RunContext
from sinterlm.records import Prompt, Response, Spent, StoredResponse, Usage, response_id
from sinterlm.sampling.protocol import (
    Answered,
    Engine,
    Generation,
    HoldsAnswers,
    Item,
    KeepsJobs,
    KeepsLog,
    Streams,
)
from sinterlm.store import RecordedResponse
from sinterlm.streams import Spool, chunks

PROMPTS_AT_ONCE = 256
"""Prompts whose missing answers are looked up at a time."""
GRACE_SECONDS = 8.0
"""How long an interrupted run waits for requests in flight, which are paid for, before it gives them up."""
CLOSING_SECONDS = 0.5
"""How long it then waits for the threads to notice."""


@dataclass(slots=True)
class Asked:
    """What became of asking one model."""

    without: Spool[str] = field(default_factory=Spool)
    """The ids of the prompts that an engine of answers made elsewhere has no answer to."""
    num_new: int = 0
    """Answers that the store did not have."""
    num_items: int = 0
    """Answers that were asked for."""
    num_failed: int = 0
    tokens: int = 0
    money: float = 0.0
    seconds: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)
    """By prompt id, why the model could not be asked."""
    error: SinterError | None = None
    """Why the model could not be asked any more."""

    @property
    def tokens_per_second(self) -> float | None:
        """The rate; None if nothing was sampled now."""
        return self.tokens / self.seconds if self.seconds else None


def ask(run: RunContext, stage: str, requests: Sequence[SamplingRequest], prompts: Sequence[Prompt]) -> list[Asked]:
    """Ask for every answer that the store lacks; returns what became of each request, in their order.

    Raises:
        SinterError: A model could not be asked any more, or too many of its answers failed. All others were asked
            nevertheless.
        BudgetError: The budget is reached.
    """
    results = [Asked() for _ in requests]
    run.store.forget_failures(run.fusion.run_name, stage)

    def work(places: Sequence[int]) -> None:
        for place in places:
            request, result = requests[place], results[place]
            try:
                _ask_one(run, stage, request, request.asked(prompts), result, engines)
                _check_failures(request, result)
            except SinterError as error:
                result.error = error
                if len(requests) > 1:
                    run.reporter.say(f"  {request.participant.name} failed, the others are still asked: {error}")

    engines: list[Engine] = []
    at_work: list[Future[None]] = []
    elsewhere: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        if request.participant.config.runs_elsewhere:
            elsewhere.setdefault(request.participant.name, []).append(place)
    try:
        at_work = [_start(partial(work, places)) for places in elsewhere.values()]
        work([place for place in range(len(requests)) if not requests[place].participant.config.runs_elsewhere])
        _wait(at_work)
        for done in at_work:
            done.result()  # raises what is no SinterError: no stage may count as done after it
    except BaseException:
        run.halt.stop()
        try:
            _close([engine for engine in engines if isinstance(engine, KeepsJobs)])  # jobs need nobody to wait for them
            _wait(at_work, GRACE_SECONDS)
        finally:
            _close(list(engines))
            _wait(at_work, CLOSING_SECONDS)
        raise
    try:
        run.halt.raise_reason()
    except BudgetError as error:
        raise BudgetError(f"{error}\n{stage}: {_describe_left(requests, results)}") from None
    _raise_errors(requests, results)
    return results


def _start(work: Callable[[], None]) -> Future[None]:
    """Work in a thread of its own, which does not keep an interrupted process alive, and keep how it ends.

    (``Thread.join`` is no help: in CPython 3.11 an interrupt in it lets a thread at work count as ended. A pool waits
    for its threads when the process ends.)
    """
    future: Future[None] = Future()

    def to_the_end() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    Thread(target=to_the_end, daemon=True).start()
    return future


def _wait(at_work: Sequence[Future[None]], seconds: float = math.inf) -> None:
    """Wait until all work has ended, at most so long."""
    end = time.monotonic() + seconds
    # In short steps, so that an interrupt arrives at once on every system.
    while wait(at_work, timeout=0.1).not_done and time.monotonic() < end:
        pass


def _describe_left(requests: Sequence[SamplingRequest], results: Sequence[Asked]) -> str:
    """What was not asked for, in words."""
    left = [
        f"{num_left:,} of {request.participant.name}"
        for request, result in zip(requests, results, strict=True)
        if (num_left := result.num_items - result.num_new - result.num_failed)
    ]
    return f"answers left to ask for: {', '.join(left) or 'none'}"


def _raise_errors(requests: Sequence[SamplingRequest], results: Sequence[Asked]) -> None:
    failed = [
        (request.participant.name, result.error)
        for request, result in zip(requests, results, strict=True)
        if result.error is not None
    ]
    if not failed:
        return
    first = failed[0][1]
    if len(failed) == 1:
        raise first
    told = "\n".join(f"{name}: {error}" for name, error in failed)
    raise type(first)(f"{len(failed)} models could not be asked to the end; their answers so far are kept\n{told}")


def _check_failures(request: SamplingRequest, result: Asked) -> None:
    name, tolerated = request.participant.name, request.participant.config.tolerated_failed
    if result.num_failed > tolerated * result.num_items:
        raise ToleranceError(
            f"model {name}: {result.num_failed} of {result.num_items} requests failed after all retries, more than "
            f"max_failed ({tolerated:g}) tolerates; `sinterlm status` shows why. The same command asks for them again"
        )


def _ask_one(
    run: RunContext,
    stage: str,
    request: SamplingRequest,
    prompts: Sequence[Prompt],
    result: Asked,
    engines: list[Engine],
) -> None:
    engine = engine_of(run, request)
    engines.append(engine)
    try:
        if isinstance(engine, KeepsJobs):
            engine.keep_jobs(StoredJobs(run.store, identity_of(request)), run.fusion.workspace / "jobs")
        if isinstance(engine, Streams):
            _stream(run, stage, request, engine, prompts, result)
            return
        if isinstance(engine, HoldsAnswers):
            found = _look_up(engine, prompts, request.num_samples, result)
            result.num_new = run.store.set_recorded(
                identity_of(request), prompts, found, num_samples=request.num_samples
            )
            return
        batches = engine.batches([Item(prompt, index) for prompt in prompts for index in range(request.num_samples)])
        _sample(run, stage, request, engine, batches, result)
    finally:
        engines.remove(engine)
        engine.close()


def _close(engines: Iterable[Engine]) -> None:
    for engine in engines:
        with suppress(Exception):  # the error that is on its way says more
            engine.close()


def engine_of(run: RunContext, request: SamplingRequest) -> Engine:
    """Build the participant's engine, which reports where its weights are once they are loaded."""
    name = request.participant.name
    engine = run.executor.engine(request, lambda placement: run.reporter.say(f"  {name}: loaded on {placement}"))
    if isinstance(engine, KeepsLog):
        engine.log_to(run.fusion.log_path(name))
    return engine


def identity_of(request: SamplingRequest) -> str:
    """The key of the answers in the store.

    Raises:
        InputError: The file of answers is missing.
    """
    identity = request.identity()
    if identity is None:
        raise InputError(f"{request.participant.name}: its file of recorded answers is missing")
    return identity


def _look_up(
    engine: HoldsAnswers, prompts: Sequence[Prompt], num_samples: int, result: Asked
) -> Iterator[RecordedResponse]:
    """Yield the answers that an engine holds, each under the name that the engine gives it.

    Whenever the stage is done again, the file is read again: reading is cheap, and which answers belong to a prompt may
    depend on the prompts' ids.
    """
    for prompt, generations in zip(prompts, engine.held(prompts, num_samples=num_samples), strict=True):
        if not generations:
            result.without.append(prompt.id)
        for generation in generations:
            assert generation.name is not None
            identity, number = generation.name
            yield RecordedResponse(
                generation.index,
                StoredResponse(
                    identity=identity,
                    prompt_hash=prompt.content_hash,
                    index=number,
                    content=generation.content,
                    finish_reason=generation.finish_reason,
                    num_prompt_tokens=generation.num_prompt_tokens,
                    num_tokens=generation.num_tokens,
                ),
            )


def _sample(
    run: RunContext,
    stage: str,
    request: SamplingRequest,
    engine: Engine,
    batches: Sequence[Sequence[Item]],
    result: Asked,
) -> None:
    """Sample batch by batch.

    A partly stored batch is sampled again as a whole, and only its missing answers are written. So a resumed run gives
    the same answers as an uninterrupted one, although a batch's composition may change the last bits.
    """
    identity = identity_of(request)
    stored = run.store.response_ids(identity)
    pending = [batch for batch in batches if any(_key(identity, item) not in stored for item in batch)]
    if pending:
        answers = map(_without_requests, engine.sample(run.within_budget(pending)))
        prompts = {item.prompt.id: item.prompt for batch in pending for item in batch}
        _write(run, stage, request, answers, prompts, sum(map(len, pending)), result)


def _without_requests(generations: Sequence[Generation]) -> Answered:
    """Answers of a model on this machine."""
    prompt_tokens = sum(generation.num_prompt_tokens for generation in generations)
    new_tokens = sum(generation.num_tokens for generation in generations)
    return Answered(generations, usage=Usage(prompt_tokens=prompt_tokens, new_tokens=new_tokens))


def _stream(
    run: RunContext, stage: str, request: SamplingRequest, engine: Streams, prompts: Sequence[Prompt], result: Asked
) -> None:
    """Ask for the missing answers of an engine whose items do not depend on each other."""
    lacking = dict(_lacking(run, request, prompts))
    by_id = {prompt.id: prompt for prompt in prompts if prompt.id in lacking}
    num_items = sum(map(len, lacking.values()))
    if num_items:
        items = (Item(by_id[name], index) for name, indices in lacking.items() for index in indices)
        _write(run, stage, request, engine.stream(run.within_budget(items)), by_id, num_items, result)


def _lacking(
    run: RunContext, request: SamplingRequest, prompts: Sequence[Prompt]
) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield, by prompt id, the sample indices that the store lacks. Of prompts of one text only the first is asked."""
    identity, seen = identity_of(request), set()
    for chunk in chunks(prompts, PROMPTS_AT_ONCE):
        stored = run.store.sample_indices(identity, [prompt.content_hash for prompt in chunk])
        for prompt in chunk:
            indices = [index for index in range(request.num_samples) if (prompt.content_hash, index) not in stored]
            if indices and prompt.content_hash not in seen:
                seen.add(prompt.content_hash)
                yield prompt.id, indices


def _write(
    run: RunContext,
    stage: str,
    request: SamplingRequest,
    answers: Iterator[Answered],
    prompts: Mapping[str, Prompt],
    num_items: int,
    result: Asked,
) -> None:
    """Write answers as they come, each with what it cost in one transaction."""
    identity, run_name, name = identity_of(request), run.fusion.run_name, request.participant.name
    result.num_items = num_items
    started = last = time.monotonic()
    with run.reporter.task(name, num_items, "answers") as task:
        for answered in answers:
            now = time.monotonic()
            with run.store.transaction():
                run.store.add_responses(
                    identity,
                    [
                        (
                            prompts[generation.prompt_id],
                            _response(generation, prompts[generation.prompt_id], request, identity),
                        )
                        for generation in answered.generations
                    ],
                )
                run.store.add_failures(run_name, stage, name, answered.failures)
                run.store.add_notes(run_name, stage, name, answered.notes)
                money = request.participant.config.money(answered.usage) or 0.0
                spent = Spent(stage, name, answered.usage, len(answered.generations), money, now - last)
                run.spend(spent)
            last = now
            for note in answered.notes:
                run.reporter.say(f"  {name}: {note}")
            result.num_new += len(answered.generations)
            result.num_failed += len(answered.failures)
            result.money += money
            result.tokens += sum(generation.num_tokens for generation in answered.generations)
            result.seconds = max(now - started, 1e-9)
            result.problems |= {each.prompt_id: each.problem for each in answered.generations if each.problem}
            state = [f"{result.tokens / result.seconds:.0f} tokens/s", answered.state]
            if result.num_failed:
                state.append(f"{result.num_failed} failed")
            if result.money:
                state.append(f"spent {result.money:.2f}")
            task.advance(len(answered.generations) + len(answered.failures), ", ".join(filter(None, state)))


def _key(identity: str, item: Item) -> str:
    return response_id(identity, item.prompt.content_hash, item.index)


def _response(generation: Generation, prompt: Prompt, request: SamplingRequest, identity: str) -> Response:
    return Response(
        id=_key(identity, Item(prompt, generation.index)),
        prompt_id=generation.prompt_id,
        source=request.participant.name,
        index=generation.index,
        content=generation.content,
        finish_reason=generation.finish_reason,
        num_prompt_tokens=generation.num_prompt_tokens,
        num_tokens=generation.num_tokens,
        sampling=request.settings,
        reasoning=generation.reasoning,
        served_by=generation.served_by,
    )
