"""Sampling into the store: only what is missing is asked for, and every batch is one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain

from sinterlm.errors import InputError, ToleranceError
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.pipeline.stage import RunContext, StageResult
from sinterlm.recipe.build import build_engine, engine_identity
from sinterlm.records import NOT_ASKED, PROMPT_TOO_LONG, Dropped, Prompt, Response, StoredResponse, response_id
from sinterlm.sampling.protocol import Engine, Generation, Item
from sinterlm.scoring.protocol import Answered
from sinterlm.store import RecordedResponse


def engine_of(run: RunContext, ask: SamplingRequest) -> Engine:
    """The participant's engine, which says where its weights went once they are loaded."""
    participant = ask.participant
    return build_engine(
        participant.config,
        location=participant.location,
        settings=ask.settings,
        on_loaded=lambda placement: run.reporter.say(f"  {participant.name}: loaded on {placement}"),
    )


def identity_of(ask: SamplingRequest) -> str:
    """What names the answers in the store.

    Raises:
        InputError: The weights or the file of answers are not there.
    """
    participant = ask.participant
    identity = engine_identity(participant.config, location=participant.location, settings=ask.settings)
    if identity is None:
        raise InputError(f"{participant.name}: its file of recorded answers is not there")
    return identity


def sample(
    run: RunContext, stage: str, ask: SamplingRequest, prompts: Sequence[Prompt], *, must_answer: bool = False
) -> StageResult:
    """Sample one participant for every prompt, as often as asked, except what the store has.

    A batch of which a part is stored is sampled again whole, and only its missing items are written: so a resumed run
    gives the answers of an uninterrupted one, whatever a batch's composition does to the last bits.

    Raises:
        ToleranceError: ``must_answer``, and the participant can be asked none of the prompts or every answer is empty.
    """
    name, identity, prompts = ask.participant.name, identity_of(ask), ask.asked(prompts)
    with closing(engine_of(run, ask)) as engine:
        batches = engine.batches([Item(prompt, index) for prompt in prompts for index in range(ask.num_samples)])
        tokens_per_second: float | None = None
        problems: dict[str, str] = {}
        if ask.settings is None:
            recorded = _look_up(engine, batches)
            num_new = run.store.set_recorded(identity, prompts, recorded, num_samples=ask.num_samples)
        else:
            stored = run.store.response_ids(identity)
            pending = [batch for batch in batches if any(_response_id(identity, item) not in stored for item in batch)]
            if pending:
                tokens_per_second, problems = _answer(run, ask, engine, pending)
            num_new = sum(map(len, pending))
    answered = {item.prompt.id for batch in batches for item in batch}
    stored_to = _stored(run, ask)
    kept = [Answered(prompt, response) for prompt in prompts for response in stored_to(prompt)]
    responses = [response for _, response in kept if response.finish_reason not in NOT_ASKED]
    empty = [response for response in responses if not response.content]
    not_asked = _not_asked(stage, name, kept, problems)
    if must_answer and prompts and len(not_asked) == len(prompts):
        raise ToleranceError(
            f"model {name}: none of the {len(prompts)} prompts can be asked; the first, {not_asked[0].subject!r}: "
            f"{not_asked[0].reason}, {not_asked[0].detail}; take other prompts or another model"
        )
    if must_answer and prompts and len(empty) == len(responses):
        raise ToleranceError(
            f"model {name}: all {len(responses)} answers are empty; look at its prompt (chat template or "
            "few-shot file), its stop string and max_new_tokens"
        )
    dropped = [
        *(
            Dropped(prompt.id, stage, "no-recorded-answer", f"{name} has none")
            for prompt in prompts
            if prompt.id not in answered
        ),
        *(
            Dropped(response.id, stage, "empty-answer", f"{name} on {response.prompt_id}, sample {response.index}")
            for response in empty
        ),
        *not_asked,
    ]
    counts: dict[str, float] = {
        f"{name} answers": len(responses),
        f"{name} sampled now": num_new,
        f"{name} cut by the limit": sum(response.finish_reason == "length" for response in responses),
    }
    if tokens_per_second is not None:
        counts[f"{name} tokens/s"] = round(tokens_per_second)
    return StageResult(counts, dropped)


def _look_up(engine: Engine, batches: Sequence[Sequence[Item]]) -> Iterator[RecordedResponse]:
    """What an engine finds that looks answers up, each under the name that the engine gives it.

    A file is read again whenever its stage is done again: that costs nothing, and what it says to a prompt may depend
    on the prompts' ids.
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
    run: RunContext, ask: SamplingRequest, engine: Engine, batches: Sequence[Sequence[Item]]
) -> tuple[float, dict[str, str]]:
    """Sample ``batches`` into the store, batch by batch; tokens a second, and why prompts were refused, by id."""
    identity = identity_of(ask)
    items = {(item.prompt.id, item.index): item for batch in batches for item in batch}
    started, tokens = time.monotonic(), 0
    problems: dict[str, str] = {}
    with run.reporter.task(ask.participant.name, len(items), "answers") as task:
        for generations in engine.sample(batches):
            answered = [(items[generation.prompt_id, generation.index], generation) for generation in generations]
            run.store.add_responses(
                identity,
                [
                    (item.prompt, _response(generation, _response_id(identity, item), ask))
                    for item, generation in answered
                ],
            )
            tokens += sum(generation.num_tokens for generation in generations)
            problems |= {generation.prompt_id: generation.problem for generation in generations if generation.problem}
            task.advance(len(generations), f"{tokens / (time.monotonic() - started):.0f} tokens/s")
    return tokens / (time.monotonic() - started), problems


def _response_id(identity: str, item: Item) -> str:
    return response_id(identity, item.prompt.content_hash, item.index)


def _response(generation: Generation, key: str, ask: SamplingRequest) -> Response:
    return Response(
        id=key,
        prompt_id=generation.prompt_id,
        source=ask.participant.name,
        index=generation.index,
        content=generation.content,
        finish_reason=generation.finish_reason,
        num_prompt_tokens=generation.num_prompt_tokens,
        num_tokens=generation.num_tokens,
        sampling=ask.settings,
    )


def answers_of(run: RunContext, ask: SamplingRequest, prompts: Sequence[Prompt]) -> Iterator[Answered]:
    """The stored answers of one participant, prompt by prompt."""
    return chain.from_iterable(map(answers_to(run, ask), prompts))


def answers_to(run: RunContext, ask: SamplingRequest) -> Callable[[Prompt], list[Answered]]:
    """The stored answers of one participant to a prompt; what names them is found out once."""
    stored = _stored(run, ask)

    def answers(prompt: Prompt) -> list[Answered]:
        if not ask.asked([prompt]):
            return []
        return [Answered(prompt, response) for response in stored(prompt) if response.finish_reason not in NOT_ASKED]

    return answers


def _stored(run: RunContext, ask: SamplingRequest) -> Callable[[Prompt], list[Response]]:
    """What the store holds of one participant on a prompt: answers, or that it cannot be answered."""
    name, identity = ask.participant.name, identity_of(ask)
    return lambda prompt: run.store.responses(identity, prompt, source=name, num_samples=ask.num_samples)


def _not_asked(stage: str, name: str, kept: Iterable[Answered], problems: Mapping[str, str]) -> list[Dropped]:
    """The prompts that the store says a participant cannot be asked; ``problems`` has what this command was told."""
    found: dict[str, Dropped] = {}
    for prompt, response in kept:
        if response.finish_reason not in NOT_ASKED or prompt.id in found:
            continue
        if response.finish_reason == PROMPT_TOO_LONG:
            detail = f"{response.num_prompt_tokens} tokens as {name} is asked"
        else:
            roles = ", ".join(message.role for message in prompt.messages)
            detail = f"{name}: {problems.get(prompt.id) or f'refused before, with messages of the roles {roles}'}"
        found[prompt.id] = Dropped(prompt.id, stage, response.finish_reason, detail)
    return list(found.values())
