"""Samples into the store: only missing answers are asked for, and every batch is one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing

from sinterlm.errors import InputError, ToleranceError
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.pipeline.stage import RunContext, StageResult
from sinterlm.records import NOT_ASKED, PROMPT_TOO_LONG, Dropped, Prompt, Response, StoredResponse, response_id
from sinterlm.sampling.protocol import Engine, Generation, Item
from sinterlm.scoring.protocol import Exchange
from sinterlm.store import RecordedResponse


def engine_of(run: RunContext, request: SamplingRequest) -> Engine:
    """Build the participant's engine, which reports where its weights are once they are loaded."""
    name = request.participant.name
    return request.build_engine(lambda placement: run.reporter.say(f"  {name}: loaded on {placement}"))


def identity_of(request: SamplingRequest) -> str:
    """The key of the answers in the store.

    Raises:
        InputError: The file of answers is missing.
    """
    identity = request.identity()
    if identity is None:
        raise InputError(f"{request.participant.name}: its file of recorded answers is missing")
    return identity


def sample(
    run: RunContext, stage: str, request: SamplingRequest, prompts: Sequence[Prompt], *, must_answer: bool = False
) -> StageResult:
    """Sample one participant's answers to every prompt, except those that the store has.

    A partly stored batch is sampled again as a whole, and only its missing answers are written. So a resumed run gives
    the same answers as an uninterrupted one, although a batch's composition may change the last bits.

    Raises:
        ToleranceError: With ``must_answer``: the participant can be asked none of the prompts, or every answer is
            empty.
    """
    name, identity, prompts = request.participant.name, identity_of(request), request.asked(prompts)
    with closing(engine_of(run, request)) as engine:
        batches = engine.batches([Item(prompt, index) for prompt in prompts for index in range(request.num_samples)])
        tokens_per_second: float | None = None
        problems: dict[str, str] = {}
        if request.settings is None:
            recorded = _look_up(engine, batches)
            num_new = run.store.set_recorded(identity, prompts, recorded, num_samples=request.num_samples)
        else:
            stored = run.store.response_ids(identity)
            pending = [batch for batch in batches if any(_response_id(identity, item) not in stored for item in batch)]
            if pending:
                tokens_per_second, problems = _answer(run, request, engine, pending)
            num_new = sum(map(len, pending))
    answered = {item.prompt.id for batch in batches for item in batch}
    num_answers = num_cut = 0
    empty: list[Dropped] = []
    not_asked: dict[str, Dropped] = {}
    for prompt, responses in zip(prompts, _stored(run, request, prompts), strict=True):
        for response in responses:
            if response.finish_reason in NOT_ASKED:
                not_asked.setdefault(prompt.id, _not_asked(stage, name, prompt, response, problems.get(prompt.id)))
                continue
            num_answers += 1
            num_cut += response.finish_reason == "length"
            if not response.content:
                detail = f"{name} on {prompt.id}, sample {response.index}"
                empty.append(Dropped(response.id, stage, "empty-answer", detail))
    if must_answer and prompts and len(not_asked) == len(prompts):
        first = next(iter(not_asked.values()))
        raise ToleranceError(
            f"model {name}: none of the {len(prompts)} prompts can be asked; the first, {first.subject!r}: "
            f"{first.reason}, {first.detail}; use other prompts or another model"
        )
    if must_answer and prompts and len(empty) == num_answers:
        raise ToleranceError(
            f"model {name}: all {num_answers} answers are empty; check its prompt (chat template or "
            "few-shot file), its stop string and max_new_tokens"
        )
    without = [prompt for prompt in prompts if prompt.id not in answered]
    dropped = [
        *(Dropped(prompt.id, stage, "no-recorded-answer", f"{name} has none") for prompt in without),
        *empty,
        *not_asked.values(),
    ]
    counts: dict[str, float] = {
        f"{name} answers": num_answers,
        f"{name} sampled now": num_new,
        f"{name} cut by the limit": num_cut,
    }
    if tokens_per_second is not None:
        counts[f"{name} tokens/s"] = round(tokens_per_second)
    return StageResult(counts, dropped)


def _look_up(engine: Engine, batches: Sequence[Sequence[Item]]) -> Iterator[RecordedResponse]:
    """Yield the answers that an engine looks up, each under the name that the engine gives it.

    Whenever the stage is done again, the file is read again: reading is cheap, and which answers belong to a prompt may
    depend on the prompts' ids.
    """
    for batch, generations in zip(batches, engine.sample(batches), strict=True):
        for item, generation in zip(batch, generations, strict=True):
            assert generation.name is not None
            identity, number = generation.name
            yield RecordedResponse(
                generation.index,
                StoredResponse(
                    identity=identity,
                    prompt_hash=item.prompt.content_hash,
                    index=number,
                    content=generation.content,
                    finish_reason=generation.finish_reason,
                    num_prompt_tokens=generation.num_prompt_tokens,
                    num_tokens=generation.num_tokens,
                ),
            )


def _answer(
    run: RunContext, request: SamplingRequest, engine: Engine, batches: Sequence[Sequence[Item]]
) -> tuple[float, dict[str, str]]:
    """Sample ``batches`` into the store one by one; returns tokens per second and, by id, why prompts were refused."""
    identity = identity_of(request)
    items = {(item.prompt.id, item.index): item for batch in batches for item in batch}
    started, tokens = time.monotonic(), 0
    problems: dict[str, str] = {}
    with run.reporter.task(request.participant.name, len(items), "answers") as task:
        for generations in engine.sample(batches):
            answered = [(items[generation.prompt_id, generation.index], generation) for generation in generations]
            run.store.add_responses(
                identity,
                [
                    (item.prompt, _response(generation, _response_id(identity, item), request))
                    for item, generation in answered
                ],
            )
            tokens += sum(generation.num_tokens for generation in generations)
            problems |= {generation.prompt_id: generation.problem for generation in generations if generation.problem}
            task.advance(len(generations), f"{tokens / (time.monotonic() - started):.0f} tokens/s")
    return tokens / (time.monotonic() - started), problems


def _response_id(identity: str, item: Item) -> str:
    return response_id(identity, item.prompt.content_hash, item.index)


def _response(generation: Generation, key: str, request: SamplingRequest) -> Response:
    return Response(
        id=key,
        prompt_id=generation.prompt_id,
        source=request.participant.name,
        index=generation.index,
        content=generation.content,
        finish_reason=generation.finish_reason,
        num_prompt_tokens=generation.num_prompt_tokens,
        num_tokens=generation.num_tokens,
        sampling=request.settings,
    )


def answers_to(run: RunContext, request: SamplingRequest, prompts: Sequence[Prompt]) -> Iterator[list[Exchange]]:
    """Yield the stored answers of one participant to each of ``prompts``, in order; no answers if it is not asked.

    Answers are read from the store lazily, a few hundred at a time.
    """
    asked = request.asked(prompts)
    asked_ids = {prompt.id for prompt in asked}
    stored = _stored(run, request, asked)
    for prompt in prompts:
        responses = next(stored) if prompt.id in asked_ids else []
        yield [Exchange(prompt, response) for response in responses if response.finish_reason not in NOT_ASKED]


def _stored(run: RunContext, request: SamplingRequest, prompts: Sequence[Prompt]) -> Iterator[list[Response]]:
    """What the store has of one participant on each prompt: answers, or the record that it cannot be asked."""
    return run.store.responses(
        identity_of(request), prompts, source=request.participant.name, num_samples=request.num_samples
    )


def _not_asked(stage: str, name: str, prompt: Prompt, response: Response, problem: str | None) -> Dropped:
    """The drop of a prompt that a participant cannot be asked; ``problem`` is why, if this command has asked."""
    if response.finish_reason == PROMPT_TOO_LONG:
        detail = f"{response.num_prompt_tokens} tokens as {name} is asked"
    else:
        roles = ", ".join(message.role for message in prompt.messages)
        detail = f"{name}: {problem or f'refused before, with messages of the roles {roles}'}"
    return Dropped(prompt.id, stage, response.finish_reason, detail)
