"""What it will take to sample the answers that the store does not have: calls, tokens, money, disk and time."""

from __future__ import annotations

from collections.abc import Sequence

from sinterlm.models import cached_fingerprint
from sinterlm.models.flops import Flops, add_flops
from sinterlm.pipeline.forecast import (
    CHARACTERS_PER_TOKEN,
    SAMPLING,
    USUAL_ANSWER_TOKENS,
    USUAL_PROMPT_TOKENS,
    Forecast,
    KnownPart,
    ModelPlan,
    Part,
    StagePlan,
    add,
    count_characters,
    hours,
)
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.records import Usage, response_id

BYTES_PER_ANSWER = 600
"""What an answer takes in the store besides its text: key, indices, settings and score."""


def estimate_sampling(name: str, asked: Sequence[tuple[SamplingRequest, Part]], forecast: Forecast) -> StagePlan:
    """The cost of the answers that the store does not have.

    Args:
        name: The stage's.
        asked: Who is asked, and which prompts.
        forecast: What is known before.
    """
    models: list[ModelPlan] = []
    flops: list[Flops | None] = []
    disk_bytes = 0
    for request, part in asked:
        if request.settings is None:
            continue  # recorded answers cost nothing
        if part is None:
            return StagePlan(name, figures=SAMPLING)
        config = request.participant.config
        missing, characters = _missing(request, part, forecast)
        identity = request.identity(cached_fingerprint)
        means = forecast.mean_tokens(identity, name, request.participant.name)
        prefix = len(config.prompt_prefix()) / CHARACTERS_PER_TOKEN
        limit = request.settings.max_new_tokens
        per_prompt, per_answer = means or (prefix + characters / CHARACTERS_PER_TOKEN, limit)
        planned = ModelPlan(
            model=request.participant.name,
            runs_elsewhere=config.runs_elsewhere,
            calls=missing,
            prompt_tokens=round(missing * per_prompt) if means or not missing or not isinstance(part, int) else None,
            new_tokens=round(missing * per_answer),
        )
        expected = Usage(missing, round(missing * per_prompt), 0, round(missing * per_answer))
        models.append(forecast.with_costs(name, planned, expected, config.money))
        disk_bytes += round(missing * (BYTES_PER_ANSWER + per_answer * CHARACTERS_PER_TOKEN))
        usual = per_answer if means else min(per_answer, USUAL_ANSWER_TOKENS)
        flops.append(config.flops(prompt_tokens=missing * per_prompt, new_tokens=missing * usual))
    here = [model.seconds for model in models if not model.runs_elsewhere]
    elsewhere = [[model.seconds] for model in models if model.runs_elsewhere]
    # Models of this machine are sampled one after another, and servers meanwhile.
    times = [add(group) for group in (here, *elsewhere)]
    return StagePlan(
        name,
        figures=SAMPLING,
        calls=add([model.calls for model in models]),
        prompt_tokens=add([model.prompt_tokens for model in models]),
        new_tokens=add([model.new_tokens for model in models]),
        money=add([model.money for model in models]),
        seconds=None if None in times else max(time for time in times if time is not None),
        disk_bytes=disk_bytes,
        gpu_hours=hours(add_flops(flops)),
        models=tuple(models),
    )


def _missing(request: SamplingRequest, part: KnownPart, forecast: Forecast) -> tuple[int, float]:
    """The number of answers that the store does not have, and the mean length of their prompts in characters."""
    if isinstance(part, int):
        return part * request.num_samples, float(USUAL_PROMPT_TOKENS * CHARACTERS_PER_TOKEN)
    identity = request.identity(cached_fingerprint)
    stored = forecast.store.response_ids(identity) if forecast.store and identity else set()
    lacking = [
        prompt
        for prompt in part
        for index in range(request.num_samples)
        if not stored or response_id(identity or "", prompt.content_hash, index) not in stored
    ]
    return len(lacking), sum(map(count_characters, lacking)) / max(len(lacking), 1)
