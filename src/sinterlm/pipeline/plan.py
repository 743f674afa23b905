"""What a recipe will do and take, without loading a model: from counts, stored means and text lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import filesize
from rich.console import Console
from rich.table import Table

from sinterlm.formats import read_prompts
from sinterlm.models import cached_fingerprint, known_weights_bytes
from sinterlm.pipeline.cells import Grid
from sinterlm.pipeline.fusion import Ask, Fusion
from sinterlm.pipeline.stage import is_done, stage_keys
from sinterlm.pipeline.stages import build_stages, held_out_asks, split_parts
from sinterlm.recipe.build import build_few_shot, engine_identity
from sinterlm.recipe.schema import AskedModel
from sinterlm.records import Prompt, response_id
from sinterlm.store import Store

CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English text, used where the store has no counts of the same model yet."""
BYTES_PER_ANSWER = 600
"""Of the store: key, indices, settings and score of one answer, its text aside."""
NUM_CHECKPOINTS = 2
"""Kept at once, unless the recipe says otherwise."""
OPTIMIZER_COPIES = 3
"""A checkpoint holds the weights and AdamW's two moments; training holds these and the gradients."""
UNKNOWN = "unknown"

Part = list[Prompt] | int | None
"""Of the prompts: read, counted by the recipe, or unknown."""
Parts = Mapping[str, Part]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage and what is left to do of it; None where that cannot be known yet."""

    name: str
    done: bool
    calls: int | None = None
    """Answers still to be sampled, or scored."""
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    """At most, where the store has no mean of the same model's answers yet."""
    disk_bytes: int | None = None
    note: str = ""

    @property
    def asks_models(self) -> bool:
        """Whether the stage samples answers, so that a figure without a value is an unknown one."""
        return self.name.startswith(("sample-", "search-"))


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
        names = ("calls", "prompt_tokens", "new_tokens", "disk_bytes")
        return {**asdict(self), "total": {name: self._sum(name) for name in names}}

    def _sum(self, name: str) -> int | None:
        left = [stage for stage in self.stages if not stage.done]
        if any(stage.asks_models and getattr(stage, name) is None for stage in left):
            return None
        return sum(getattr(stage, name) or 0 for stage in left)


def plan_fusion(fusion: Fusion) -> Plan:
    """Plan ``fusion``; a file or model that is not there is noted, not refused."""
    stages = build_stages(fusion, cached_fingerprint)
    keys = stage_keys(stages)
    notes = list(_missing(fusion))
    parts = _parts(fusion)
    if fusion.store_path.exists():
        with closing(Store(fusion.store_path, read_only=True)) as store:
            finished = {name: past.key for name, past in store.finished_stages(fusion.run_name).items()}
            planned = [
                _plan_stage(stage.name, is_done(stage, keys[stage.name], finished), fusion, parts, store)
                for stage in stages
            ]
    else:
        planned = [_plan_stage(stage.name, False, fusion, parts, None) for stage in stages]
    weights = known_weights_bytes(fusion.recipe.target.model)
    return Plan(
        output=str(fusion.output),
        workspace=str(fusion.workspace),
        stages=tuple(planned),
        prompts={part: len(prompts) if isinstance(prompts, list) else prompts for part, prompts in parts.items()},
        memory_bytes=None if weights is None else weights * (OPTIMIZER_COPIES + 1),
        money=0.0,
        notes=tuple(notes),
    )


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan as a table with its sums."""
    table = Table("stage", "", title=f"{plan.output}", title_justify="left")
    for column in ("answers", "prompt tokens", "new tokens", "disk"):
        table.add_column(column, justify="right")
    table.add_column("")
    for stage in plan.stages:
        without = UNKNOWN if stage.asks_models and not stage.done else ""
        table.add_row(
            stage.name,
            "done" if stage.done else "to do",
            *(_number(value, without) for value in (stage.calls, stage.prompt_tokens, stage.new_tokens)),
            _size(stage.disk_bytes, without),
            stage.note,
        )
    total = plan.to_json()["total"]
    memory = UNKNOWN if plan.memory_bytes is None else f"about {_size(plan.memory_bytes)}"
    table.add_section()
    table.add_row(
        "left to do", "", *(_number(total[name]) for name in ("calls", "prompt_tokens", "new_tokens")),
        _size(total["disk_bytes"]), f"money: {plan.money:g}; memory: {memory}",
    )  # fmt: skip
    console.print(table)
    counts = (f"{part} {_number(count)}" for part, count in plan.prompts.items())
    console.print(f"prompts: {', '.join(counts)}", highlight=False)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def _parts(fusion: Fusion) -> Parts:
    recipe = fusion.recipe
    if recipe.prompts.path.is_file():
        return {part: list(prompts) for part, prompts in split_parts(recipe, read_prompts(recipe.prompts.path)).items()}
    sizes = recipe.prompts.split.model_dump() | ({} if recipe.sft else {"sft": 0})
    return {part: size if isinstance(size, int) else None for part, size in sizes.items()}


def _missing(fusion: Fusion) -> Iterator[str]:
    recipe = fusion.recipe
    if not recipe.prompts.path.is_file():
        yield f"{recipe.prompts.path}: not there; counts are the recipe's, and unknown where it gives shares"
    for participant in (*fusion.sources, fusion.target):
        ask = fusion.for_training(participant)
        identity = engine_identity(
            participant.config, location=None, settings=ask.settings, fingerprint=cached_fingerprint
        )
        if identity is None and participant.weights:
            yield f"{participant.weights}: not read yet, so what the store has of {participant.name} is unknown"
        elif identity is None:
            yield f"{participant.name}: its answers are not there"


def _plan_stage(name: str, done: bool, fusion: Fusion, parts: Parts, store: Store | None) -> StagePlan:
    if done:
        return StagePlan(name, True)
    if name.startswith("sample-"):
        asks, used = {
            "sample-sources": ([fusion.for_training(source) for source in fusion.sources], fusion.training_parts),
            "sample-target": ([fusion.for_training(fusion.start)], ("preference",)),
            "sample-held-out": (held_out_asks(fusion), ("held_out", "development")),
        }[name]
        return _plan_sampling(name, asks, [parts[part] for part in used], store)
    if name.startswith("score-"):
        return StagePlan(name, False, note="the answers without a score")
    if name.startswith("search-"):
        return _plan_search(name, fusion, parts, store)
    if name.startswith("train-") and fusion.trainings[name.removeprefix("train-")].grid:
        return StagePlan(name, False, note="the best cell's model")
    if name.startswith("train-"):
        weights = known_weights_bytes(fusion.recipe.target.model)
        if weights is None:
            return StagePlan(name, False)
        checkpoints = _size(NUM_CHECKPOINTS * OPTIMIZER_COPIES * weights)
        return StagePlan(name, False, disk_bytes=weights, note=f"and up to {checkpoints} of checkpoints meanwhile")
    return StagePlan(name, False)


def _plan_search(name: str, fusion: Fusion, parts: Parts, store: Store | None) -> StagePlan:
    """The cells that are not finished yet, each with one answer to every development prompt."""
    training = name.removeprefix("search-")
    development = store.prompts(fusion.run_name, "development") if store else []
    num_left = Grid(fusion, training, development, cached_fingerprint).count_unfinished()
    cell = replace(fusion.model_of(training), location=str(fusion.search_path(training)))  # yet to be trained
    planned = _plan_sampling(name, [fusion.for_evaluation(cell)] * num_left, [parts["development"]], store)
    note = f"trainings: {num_left} at most"
    weights = known_weights_bytes(fusion.recipe.target.model)
    if weights is None:
        return replace(planned, note=note)
    # The best cell so far, and the one at work.
    num_models = min(num_left, 2)
    checkpoints = _size(NUM_CHECKPOINTS * OPTIMIZER_COPIES * weights)
    return replace(
        planned,
        disk_bytes=None if planned.disk_bytes is None else planned.disk_bytes + num_models * weights,
        note=f"{note}, {num_models} models at once, and up to {checkpoints} of checkpoints meanwhile",
    )


def _plan_sampling(name: str, asks: Sequence[Ask], parts: Sequence[Part], store: Store | None) -> StagePlan:
    if None in parts and any(isinstance(ask.participant.config, AskedModel) for ask in asks):
        return StagePlan(name, False)
    is_read = all(isinstance(part, list) or not part for part in parts)
    calls = prompt_tokens = new_tokens = disk_bytes = 0
    for ask in asks:
        config = ask.participant.config
        if not isinstance(config, AskedModel):
            continue  # the answers are there
        identity = engine_identity(
            config, location=ask.participant.location, settings=ask.settings, fingerprint=cached_fingerprint
        )
        stored = store.response_ids(identity) if store and identity else set()
        means = store.mean_tokens(identity) if store and identity else None
        few_shot = build_few_shot(config.prompt)
        prefix = len(few_shot.prefix) / CHARACTERS_PER_TOKEN if few_shot else 0
        for part in parts:
            if not isinstance(part, list):
                missing, length = (part or 0) * ask.num_samples, 0.0
            else:
                lacking = [
                    prompt
                    for prompt in part
                    for index in range(ask.num_samples)
                    if not stored or response_id(identity or "", prompt.content_hash, index) not in stored
                ]
                missing = len(lacking)
                length = sum(_length(prompt) for prompt in lacking) / max(missing, 1)
            limit = ask.settings.max_new_tokens if ask.settings else 0
            per_prompt, per_answer = means or (prefix + length / CHARACTERS_PER_TOKEN, limit)
            calls += missing
            prompt_tokens += round(missing * per_prompt)
            new_tokens += round(missing * per_answer)
            disk_bytes += round(missing * (BYTES_PER_ANSWER + per_answer * CHARACTERS_PER_TOKEN))
    return StagePlan(name, False, calls, prompt_tokens if is_read else None, new_tokens, disk_bytes)


def _length(prompt: Prompt) -> int:
    return sum(len(message.content) for message in prompt.messages)


def _number(value: int | None, without: str = UNKNOWN) -> str:
    return without if value is None else f"{value:,}"


def _size(value: int | None, without: str = UNKNOWN) -> str:
    return without if value is None else filesize.decimal(value)
