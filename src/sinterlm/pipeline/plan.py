"""What a recipe will do and take, without loading a model: from counts, stored means and text lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from sinterlm.formats import read_prompts
from sinterlm.models import FLOAT32_BYTES, cached_fingerprint
from sinterlm.models.flops import GPUS, Flops, add_flops, count_weights
from sinterlm.pipeline.cells import Grid
from sinterlm.pipeline.cost import (
    USUAL_ANSWER_TOKENS,
    USUAL_PROMPT_TOKENS,
    cost_of_scoring,
    cost_of_training,
    usual_tokens,
)
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.progress import show_bytes
from sinterlm.pipeline.stage import is_done, stage_keys
from sinterlm.pipeline.stages import build_stages, held_out_asks, split_parts
from sinterlm.recipe.build import engine_identity
from sinterlm.recipe.schema import ExtraPrompts, files_of, scorers_in
from sinterlm.records import Prompt, response_id
from sinterlm.scoring.scorers import Scorer
from sinterlm.store import Store

CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English text, used where the store has no counts of the same model yet."""
BYTES_PER_ANSWER = 600
"""Of the store: key, indices, settings and score of one answer, its text aside."""
NUM_CHECKPOINTS = 2
"""Kept at once, unless the recipe says otherwise."""
HOURS_NOTE = (
    f"GPU hours are estimates, right in their order of magnitude at best: {USUAL_ANSWER_TOKENS} tokens an answer "
    f"(less where the limit is lower, the mean of what is stored where there is some), {USUAL_PROMPT_TOKENS} a prompt "
    "where there is no file; "
    + "; ".join(
        f"{gpu.name}: {gpu.writing / 16e9:,.0f} tokens/s written and {gpu.reading / 16e9:,.0f} read with 8 billion "
        f"weights, {gpu.training / 1e12:.0f} TFLOP/s in training"
        for gpu in GPUS
    )
)
OPTIMIZER_COPIES = 3
"""A checkpoint holds the weights and AdamW's two moments; training holds these and the gradients."""

UNKNOWN = "unknown"
SAMPLING = ("calls", "prompt_tokens", "new_tokens", "disk_bytes", "gpu_hours")
"""The figures of a stage that samples; these are all there are."""
SCORING = ("calls", "gpu_hours")
TRAINING = ("disk_bytes", "gpu_hours")

KnownPart = list[Prompt] | int
"""The prompts of a part, or how many the recipe says there are where their file is not here."""
Part = KnownPart | None
"""None where the file is not here and the recipe gives a share of it."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage and what is left to do of it; None where there is nothing of the kind, or where it is not known."""

    name: str
    done: bool
    figures: tuple[str, ...] = ()
    """Which of those below the stage has: of these, None is unknown."""
    calls: int | None = None
    """Answers still to be sampled, or scored."""
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    """At most, where the store has no mean of the same model's answers yet."""
    disk_bytes: int | None = None
    gpu_hours: dict[str, float] | None = None
    """By the kind of GPU; unknown too where the size of a model is not known."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages of a fusion and their sums."""

    output: str
    workspace: str
    stages: tuple[StagePlan, ...]
    prompts: dict[str, int | None]
    """Number of prompts by part; None where the file is not there and the recipe gives a share."""
    memory_bytes: int | None
    """Estimated peak: training holds weights, gradients and AdamW's two moments in float32."""
    money: float
    """0: local models and recorded answers cost nothing."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan with its sums, for ``--json``; None where a part of a sum is unknown."""
        left = {name: [getattr(stage, name) for stage in self.stages if name in stage.figures] for name in SAMPLING}
        gpu_hours = _add_hours(left.pop("gpu_hours"))
        sums = {name: _add(values) for name, values in left.items()}
        return {**asdict(self), "total": {**sums, "gpu_hours": gpu_hours}}


def plan_fusion(fusion: Fusion) -> Plan:
    """Plan ``fusion``; a file or model that is not there is noted, not refused."""
    stages = build_stages(fusion, cached_fingerprint)
    keys = stage_keys(stages)
    notes = list(_missing(fusion))
    parts = _parts(fusion)
    notes += _undecided(fusion, parts)
    if fusion.matches_paths:
        notes.append("prompts: counted before de-duplication and decontamination")
    if fusion.store_path.exists():
        with closing(Store(fusion.store_path, read_only=True)) as store:
            finished = store.finished_stages(fusion.run_name)
            planned = [
                _plan_stage(
                    stage.name,
                    is_done(stage, keys[stage.name], finished.get(stage.name), fusion.output),
                    fusion,
                    parts,
                    store,
                )
                for stage in stages
            ]
    else:
        planned = [_plan_stage(stage.name, False, fusion, parts, None) for stage in stages]
    weights = _target_bytes(fusion)
    return Plan(
        output=str(fusion.output),
        workspace=str(fusion.workspace),
        stages=tuple(planned),
        prompts={part: None if prompts is None else _count(prompts) for part, prompts in parts.items()},
        memory_bytes=None if weights is None else weights * (OPTIMIZER_COPIES + 1),
        money=0.0,
        notes=tuple(notes),
    )


def _parts(fusion: Fusion) -> Mapping[str, Part]:
    recipe = fusion.recipe
    if recipe.prompts.path.is_file():
        return {part: list(prompts) for part, prompts in split_parts(recipe, read_prompts(recipe.prompts.path)).items()}
    split = recipe.prompts.split
    sizes = {
        **{part: [size] for part, size in split.model_dump(exclude={"sft_domains"}).items()},
        "sft": [split.sft, *split.sft_domains.values()] if recipe.fine_tunings else [0],
    }
    return {part: _add([size if isinstance(size, int) else None for size in own]) for part, own in sizes.items()}


def _together(parts: Sequence[Part]) -> Part:
    """All prompts of several parts, or their number."""
    if any(isinstance(part, list) for part in parts):
        return [prompt for part in parts if isinstance(part, list) for prompt in part]
    return _add([part for part in parts if not isinstance(part, list)])


def _missing(fusion: Fusion) -> Iterator[str]:
    recipe = fusion.recipe
    if not recipe.prompts.path.is_file():
        yield f"{recipe.prompts.path}: not there; counts are the recipe's, and unknown where it gives shares"
        limited = [name for name, source in recipe.sources.items() if source.domains]
        if limited and not recipe.prompts.sizes:
            yield f"{', '.join(limited)}: counted as if asked about all domains"
    recorded = (fusion.answering_for(fusion.target),) if recipe.target.samples else ()
    for participant in (*fusion.sources, fusion.target, *recorded):
        ask = fusion.for_training(participant)
        identity = engine_identity(
            participant.config, location=None, settings=ask.settings, fingerprint=cached_fingerprint
        )
        if identity is None and participant.weights:
            yield f"{participant.weights}: not read yet, so what the store has of {participant.name} is unknown"
        elif identity is None:
            yield f"{participant.name}: its answers are not there"
    models = [(model.name, model.config) for model in (*fusion.sources, fusion.target)]
    unsized = [name for name, model in models if model.flops(prompt_tokens=1, new_tokens=1) is None]
    if unsized:
        yield f"{', '.join(unsized)}: of unknown size, so its GPU hours are unknown; `active_billions` says it"
    scorers = [part for scorer in recipe.scorers.values() for part in scorers_in(scorer)]
    readers = dict.fromkeys(model for scorer in scorers for model in scorer.models())
    for model in readers:
        if count_weights(model) is None:
            yield f"{model}: of unknown size until its files are here, so the GPU hours of scoring are unknown"
    for scorer in scorers:
        for key, path in files_of(scorer):
            if not path.is_file():
                yield f"{path}: not there ({key} of the scorer {scorer.kind})"


def _undecided(fusion: Fusion, parts: Mapping[str, Part]) -> Iterator[str]:
    """How many prompts an SFT has at least and at most, where a method's selection decides it."""
    for name, sft in fusion.recipe.fine_tunings.items():
        if sft.extra_prompts:
            method = sft.extra_prompts.dropped_by
            least, most = (_show_count(part) for part in (parts["sft"], _selected_from(fusion, name, parts)))
            yield (
                f"{name}: rows of {least} to {most} prompts, by how many select-{method} drops; the hours of "
                f"train-{name} and of train-{method} are each at most"
            )


def _selected_from(fusion: Fusion, training: str, parts: Mapping[str, Part]) -> Part:
    """The prompts of which a training has rows, at most."""
    if training not in fusion.recipe.fine_tunings:
        return parts["preference"]
    extra = fusion.extra_prompts(training)
    return _together([parts["sft"], _droppable(fusion, extra, parts["preference"])]) if extra else parts["sft"]


def _droppable(fusion: Fusion, extra: ExtraPrompts, preference: Part) -> Part:
    """The preference prompts that go to SFT where a method drops all that it may."""
    sizes, domains = fusion.recipe.prompts.sizes, extra.domains
    if domains is None or preference is None:
        return preference
    if isinstance(preference, list):
        return [prompt for prompt in preference if prompt.domain in domains]
    return min(preference, sum(sizes.get(domain, 0) for domain in domains)) if sizes else preference


def _plan_stage(name: str, done: bool, fusion: Fusion, parts: Mapping[str, Part], store: Store | None) -> StagePlan:
    if done:
        return StagePlan(name, True)
    if name.startswith("sample-"):
        return _plan_sampling(name, _asked_in(name, fusion, parts), store)
    if name.startswith("score-"):
        held_out = fusion.recipe.evaluation.held_out
        scorer = held_out.scorer if held_out and name == "score-held-out" else fusion.recipe.scorer
        return _plan_scoring(name, scorer, _asked_in(name.replace("score-", "sample-"), fusion, parts))
    if name.startswith("search-"):
        return _plan_search(name, fusion, parts, store)
    if name.startswith("train-") and fusion.trainings[name.removeprefix("train-")].grid:
        return StagePlan(name, False, note="the best cell's model")
    if name.startswith("train-"):
        weights = _target_bytes(fusion)
        return StagePlan(
            name,
            False,
            TRAINING,
            disk_bytes=weights,
            gpu_hours=_training_hours(fusion, name.removeprefix("train-"), parts),
            note="" if weights is None else f"and {_checkpoints(weights)}",
        )
    return StagePlan(name, False)


def _asked_in(stage: str, fusion: Fusion, parts: Mapping[str, Part]) -> list[tuple[SamplingRequest, Part]]:
    """Who is asked in a stage that samples, and which prompts."""
    asks, used = {
        "sample-sources": (map(fusion.for_training, fusion.sources), fusion.training_parts),
        "sample-target": (map(fusion.for_training, fusion.sampled_targets), ("preference",)),
        "sample-held-out": (held_out_asks(fusion), ("held_out", "development")),
    }[stage]
    together = _together([parts[name] for name in used])
    if isinstance(together, int):
        return [(ask, round(together * _share(ask, fusion.recipe.prompts.sizes))) for ask in asks]
    return [(ask, None if together is None else ask.asked(together)) for ask in asks]


def _share(ask: SamplingRequest, sizes: Mapping[str, int] | None) -> float:
    """Which share of the prompts the participant is asked, by the sizes of the domains."""
    domains = ask.participant.config.domains
    if domains is None or sizes is None:
        return 1.0
    return sum(sizes.get(domain, 0) for domain in domains) / sum(sizes.values())


def _plan_search(name: str, fusion: Fusion, parts: Mapping[str, Part], store: Store | None) -> StagePlan:
    """The cells that are not finished yet, each with one answer to every development prompt."""
    training = name.removeprefix("search-")
    development = store.prompts(fusion.run_name, "development") if store else []
    num_left = Grid(fusion, training, development, cached_fingerprint).count_unfinished()
    cell = replace(fusion.model_of(training), location=str(fusion.search_path(training)))  # yet to be trained
    planned = _plan_sampling(name, [(fusion.for_evaluation(cell), parts["development"])] * num_left, store)
    note = f"trainings: {num_left} at most"
    weights = _target_bytes(fusion)
    if weights is None:
        return replace(planned, disk_bytes=None, note=note)
    # The best cell so far, and the one at work.
    num_models = min(num_left, 2)
    return replace(
        planned,
        disk_bytes=None if planned.disk_bytes is None else planned.disk_bytes + num_models * weights,
        gpu_hours=_add_hours([planned.gpu_hours, *[_training_hours(fusion, training, parts)] * num_left]),
        note=f"{note}, {num_models} models at once, and {_checkpoints(weights)}",
    )


def _plan_sampling(name: str, asked: Sequence[tuple[SamplingRequest, Part]], store: Store | None) -> StagePlan:
    calls = prompt_tokens = new_tokens = disk_bytes = 0
    texts_are_known = True
    work: list[Flops | None] = []
    for ask, part in asked:
        config = ask.participant.config
        if ask.settings is None:
            continue  # the answers are there
        if part is None:
            return StagePlan(name, False, SAMPLING)
        identity = engine_identity(
            config, location=ask.participant.location, settings=ask.settings, fingerprint=cached_fingerprint
        )
        stored = store.response_ids(identity) if store and identity else set()
        means = store.mean_tokens(identity) if store and identity else None
        prefix = len(config.prompt_prefix()) / CHARACTERS_PER_TOKEN
        if isinstance(part, int):
            missing, length = part * ask.num_samples, float(USUAL_PROMPT_TOKENS * CHARACTERS_PER_TOKEN)
        else:
            lacking = [
                prompt
                for prompt in part
                for index in range(ask.num_samples)
                if not stored or response_id(identity or "", prompt.content_hash, index) not in stored
            ]
            missing = len(lacking)
            length = sum(_length(prompt) for prompt in lacking) / max(missing, 1)
        limit = ask.settings.max_new_tokens
        per_prompt, per_answer = means or (prefix + length / CHARACTERS_PER_TOKEN, limit)
        texts_are_known &= means is not None or not missing or not isinstance(part, int)
        calls += missing
        prompt_tokens += round(missing * per_prompt)
        new_tokens += round(missing * per_answer)
        disk_bytes += round(missing * (BYTES_PER_ANSWER + per_answer * CHARACTERS_PER_TOKEN))
        usual = per_answer if means else min(per_answer, USUAL_ANSWER_TOKENS)
        work.append(config.flops(prompt_tokens=missing * per_prompt, new_tokens=missing * usual))
    known_tokens = prompt_tokens if texts_are_known else None
    return StagePlan(name, False, SAMPLING, calls, known_tokens, new_tokens, disk_bytes, _hours(add_flops(work)))


def _plan_scoring(name: str, scorer: Scorer, asked: Sequence[tuple[SamplingRequest, Part]]) -> StagePlan:
    """All answers to be scored, whatever scores the store has."""
    note = "at most: what has a score keeps it"
    known = [(ask, part) for ask, part in asked if part is not None]
    if len(known) < len(asked):
        return StagePlan(name, False, SCORING, note=note)
    calls = sum(_count(part) * ask.num_samples for ask, part in known)
    tokens = sum(ask.num_samples * (_prompt_tokens(part) + _count(part) * usual_tokens(ask)) for ask, part in known)
    return StagePlan(name, False, SCORING, calls, gpu_hours=_hours(cost_of_scoring(scorer, tokens=tokens)), note=note)


def _training_hours(fusion: Fusion, name: str, parts: Mapping[str, Part]) -> dict[str, float] | None:
    part = _selected_from(fusion, name, parts)
    if part is None:
        return None
    return _hours(cost_of_training(fusion, name, num_prompts=_count(part), prompt_tokens=_prompt_tokens(part)))


def _show_count(part: Part) -> str:
    return UNKNOWN if part is None else f"{_count(part):,}"


def _count(part: KnownPart) -> int:
    return part if isinstance(part, int) else len(part)


def _prompt_tokens(part: KnownPart) -> float:
    """Of all prompts of a part."""
    if isinstance(part, int):
        return part * USUAL_PROMPT_TOKENS
    return sum(map(_length, part)) / CHARACTERS_PER_TOKEN


def _add(values: Sequence[int | None]) -> int | None:
    """Their sum; None where one is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _hours(work: Flops | None) -> dict[str, float] | None:
    return None if work is None else {gpu.name: work.hours(gpu) for gpu in GPUS}


def _add_hours(values: Sequence[dict[str, float] | None]) -> dict[str, float] | None:
    """Their sums by the kind of GPU; None where one is unknown."""
    known = [value for value in values if value is not None]
    return {gpu.name: sum(hours[gpu.name] for hours in known) for gpu in GPUS} if len(known) == len(values) else None


def _target_bytes(fusion: Fusion) -> int | None:
    """Of the target's weights in float32, in which they are trained and saved."""
    target = fusion.recipe.target
    weights = count_weights(target.model, target.active_billions)
    return None if weights is None else round(weights) * FLOAT32_BYTES


def _checkpoints(weights: int) -> str:
    return f"up to {show_bytes(NUM_CHECKPOINTS * OPTIMIZER_COPIES * weights)} of checkpoints meanwhile"


def _length(prompt: Prompt) -> int:
    return sum(len(message.content) for message in prompt.messages)
