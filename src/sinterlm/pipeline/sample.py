"""The answers of models: sampled where the store lacks them, counted, and read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from sinterlm.errors import ToleranceError
from sinterlm.pipeline.ask import Asked, ask, identity_of
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.pipeline.stage import RunContext, StageResult
from sinterlm.records import NOT_ASKED, PROMPT_TOO_LONG, Dropped, Prompt, Response
from sinterlm.scoring.protocol import Exchange
from sinterlm.streams import Spool


def sample(
    run: RunContext,
    stage: str,
    requests: Sequence[SamplingRequest],
    prompts: Sequence[Prompt],
    *,
    must_answer: bool = False,
) -> StageResult:
    """Sample every participant's answers to every prompt, except those that the store has.

    Raises:
        ToleranceError: With ``must_answer``: a participant can be asked none of the prompts, or its every answer is
            empty. Also if more requests failed than a source tolerates.
    """
    counts: dict[str, float] = {}
    dropped: Spool[Dropped] = Spool()
    for request, asked in zip(requests, ask(run, stage, requests, prompts), strict=True):
        result = _count(run, stage, request, request.asked(prompts), asked, must_answer=must_answer)
        for name, count in result.counts.items():
            counts[name] = count if "tokens/s" in name else counts.get(name, 0) + count
        for drop in result.dropped:
            dropped.append(drop)
    return StageResult(counts, dropped)


def _count(
    run: RunContext,
    stage: str,
    request: SamplingRequest,
    prompts: Sequence[Prompt],
    asked: Asked,
    *,
    must_answer: bool,
) -> StageResult:
    """Count one participant's answers, and list what it did not answer."""
    name = request.participant.name
    num_answers = num_cut = 0
    empty: Spool[Dropped] = Spool()
    not_asked: Spool[Dropped] = Spool()
    for prompt, responses in zip(prompts, _stored(run, request, prompts), strict=True):
        refused = next((response for response in responses if response.finish_reason in NOT_ASKED), None)
        if refused:
            not_asked.append(_not_asked(stage, name, prompt, refused, asked.problems.get(prompt.id)))
        for response in responses:
            if response.finish_reason in NOT_ASKED:
                continue
            num_answers += 1
            num_cut += response.finish_reason == "length"
            if not response.content:
                detail = f"{name} on {prompt.id}, sample {response.index}"
                empty.append(Dropped(response.id, stage, "empty-answer", detail))
    if must_answer and prompts and len(not_asked) == len(prompts):
        first = next(iter(not_asked))
        raise ToleranceError(
            f"model {name}: none of the {len(prompts)} prompts can be asked; the first, {first.subject!r}: "
            f"{first.reason}, {first.detail}; use other prompts or another model"
        )
    if must_answer and prompts and len(empty) == num_answers:
        raise ToleranceError(
            f"model {name}: all {num_answers} answers are empty; check its prompt (chat template or "
            "few-shot file), its stop string and max_new_tokens"
        )
    dropped = chain(
        (Dropped(prompt_id, stage, "no-recorded-answer", f"{name} has none") for prompt_id in asked.without),
        empty,
        not_asked,
        _failed(run, stage, name),
    )
    counts: dict[str, float] = {
        f"{name} answers": num_answers,
        f"{name} sampled now": asked.num_new,
        f"{name} cut by the limit": num_cut,
    }
    if asked.num_failed:
        counts[f"{name} failed"] = asked.num_failed
    if asked.tokens_per_second is not None:
        counts[f"{name} tokens/s"] = round(asked.tokens_per_second)
    return StageResult(counts, dropped)


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


def _failed(run: RunContext, stage: str, name: str) -> Iterator[Dropped]:
    """A drop for every request to the participant that failed after all retries."""
    for of_stage, model, failure in run.store.failures(run.fusion.run_name):
        if (of_stage, model) == (stage, name):
            yield Dropped(failure.prompt_id, stage, failure.kind, f"{name}, sample {failure.index}: {failure.detail}")


def _not_asked(stage: str, name: str, prompt: Prompt, response: Response, problem: str | None) -> Dropped:
    """The drop of a prompt that a participant cannot be asked; ``problem`` is why, if this command has asked."""
    if response.finish_reason == PROMPT_TOO_LONG:
        tokens = response.num_prompt_tokens  # a server may not say how many there are
        detail = f"{tokens} tokens as {name} is asked" if tokens else f"{name}: {problem or 'refused before'}"
    else:
        roles = ", ".join(message.role for message in prompt.messages)
        detail = f"{name}: {problem or f'refused before, with messages of the roles {roles}'}"
    return Dropped(prompt.id, stage, response.finish_reason, detail)
