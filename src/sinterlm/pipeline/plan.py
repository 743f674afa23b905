"""Plans a recipe without loading a model: estimates come from counts, stored means and text lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sinterlm.formats import read_prompts
from sinterlm.models import cached_fingerprint
from sinterlm.models.flops import count_weights
from sinterlm.pipeline.forecast import (
    OPTIMIZER_COPIES,
    SAMPLING,
    Forecast,
    Part,
    Past,
    StagePlan,
    add,
    add_hours,
    count,
    show_count,
)
from sinterlm.pipeline.fusion import Fusion, load_fusion
from sinterlm.pipeline.outputs import is_done
from sinterlm.pipeline.stage import stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.pipeline.stages.prompts import split_parts
from sinterlm.pipeline.stages.train import selected_from
from sinterlm.records import Usage
from sinterlm.store import Store


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages of a fusion and their sums."""

    output: str
    workspace: str
    models: dict[str, str]
    """The target and the sources by name: what each is and how it is asked."""
    stages: tuple[StagePlan, ...]
    prompts: dict[str, int | None]
    """Number of prompts by part; None if the file is not on this machine and the recipe gives a share."""
    memory_bytes: int | None
    """Estimated peak: training holds weights, gradients and AdamW's two moments in float32."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan with its sums, for ``--json``; a sum is None if a part of it is unknown."""
        return {**asdict(self), "money": self.money, "total": self.total}

    @property
    def money(self) -> float | None:
        """What sampling and scoring will cost by the prices in the recipe; None if a part of it is unknown."""
        money: float | None = self.total["money"]
        return money

    @property
    def total(self) -> dict[str, Any]:
        """The sums of what is left to do, by figure; training has no money and no time."""
        left = {name: [getattr(stage, name) for stage in self.stages if name in stage.figures] for name in SAMPLING}
        gpu_hours = add_hours(left.pop("gpu_hours"))
        return {**{name: add(values) for name, values in left.items()}, "gpu_hours": gpu_hours}


def plan_fusion(fusion: Fusion, *, pilot: Path | None = None) -> Plan:
    """Plan ``fusion``; a missing file or model gives a note, not an error.

    Args:
        fusion: What to plan.
        pilot: The output folder of a run from whose answers the lengths, rates and prices are taken; by default this
            run's own preview, if there is one.

    Raises:
        InputError: ``pilot`` holds no run.
    """
    stages = build_stages(fusion)
    keys = stage_keys(stages, cached_fingerprint)
    parts = _parts(fusion)
    with ExitStack() as stack:
        store = None
        if fusion.store_path.exists():
            store = stack.enter_context(Store(fusion.store_path, read_only=True))
        finished = store.finished_stages(fusion.run_name) if store else {}
        past = [Past(store, fusion.run_name)] if store else []
        preview = fusion.preview_output
        if pilot := pilot or (preview if (preview / "recipe.yaml").is_file() else None):
            piloted = load_fusion(pilot)
            past.append(Past(stack.enter_context(Store(piloted.store_path, read_only=True)), piloted.run_name))
        forecast = Forecast(fusion, parts, store, past)
        planned = [
            StagePlan(stage.name, True)
            if is_done(stage, keys[stage.name], finished.get(stage.name), fusion.output)
            else stage.estimate(forecast)
            for stage in stages
        ]
    notes = [*_missing(fusion), *_unpriced(planned), *_asked_by_jobs(fusion, planned), *_undecided(forecast)]
    if fusion.matches_paths:
        notes.append("prompts: counted before de-duplication and decontamination")
    weights = forecast.target_bytes
    return Plan(
        output=str(fusion.output),
        workspace=str(fusion.workspace),
        models={model.name: model.config.provenance() for model in (fusion.target, *fusion.sources)},
        stages=tuple(planned),
        prompts={part: None if prompts is None else count(prompts) for part, prompts in parts.items()},
        memory_bytes=None if weights is None else weights * (OPTIMIZER_COPIES + 1),
        notes=tuple(notes),
    )


def _parts(fusion: Fusion) -> Mapping[str, Part]:
    recipe = fusion.recipe
    if recipe.prompts.path.is_file():
        return {part: prompts for part, prompts in split_parts(recipe, read_prompts(recipe.prompts.path)).items()}
    split = recipe.prompts.split
    sizes = {
        **{part: [size] for part, size in split.model_dump(exclude={"sft_domains"}).items()},
        "sft": [split.sft, *split.sft_domains.values()] if recipe.fine_tunings else [0],
    }
    counts = {part: add([size if isinstance(size, int) else None for size in own]) for part, own in sizes.items()}
    most = recipe.preview
    return {part: min(number, most) if most and number is not None else number for part, number in counts.items()}


def _missing(fusion: Fusion) -> Iterator[str]:
    recipe = fusion.recipe
    if not recipe.prompts.path.is_file():
        yield f"{recipe.prompts.path}: not found; counts come from the recipe and are unknown where it gives shares"
        limited = [name for name, source in recipe.sources.items() if source.domains]
        if limited and not recipe.prompts.sizes:
            yield f"{', '.join(limited)}: counted as if asked about all domains"
    recorded = (fusion.answering_for(fusion.target),) if recipe.target.samples else ()
    for participant in (*fusion.sources, fusion.target, *recorded):
        identity = fusion.for_training(participant).identity(cached_fingerprint)
        if identity is None and participant.weights:
            yield f"{participant.weights}: not read yet, so the stored answers of {participant.name} are unknown"
        elif identity is None:
            yield f"{participant.name}: its file of answers is missing"
    models = [(model.name, model.config) for model in (*fusion.sources, fusion.target)]
    unsized = [name for name, model in models if model.flops(prompt_tokens=1, new_tokens=1) is None]
    if unsized:
        yield f"{', '.join(unsized)}: size unknown, so GPU hours are unknown; set `active_billions`"
    scorers = [part for scorer in recipe.scorers.values() for part in scorer.walk()]
    readers = dict.fromkeys(model for scorer in scorers for model in scorer.models())
    for model in readers:
        if count_weights(model) is None:
            yield f"{model}: size unknown until its files are on this machine, so GPU hours of scoring are unknown"
    for scorer in scorers:
        for key, path in scorer.files().items():
            if not path.is_file():
                yield f"{path}: not found ({key} of the scorer {scorer.kind})"


def _unpriced(planned: Sequence[StagePlan]) -> Iterator[str]:
    """Servers without a price."""
    models = dict.fromkeys(model.model for stage in planned for model in stage.models if model.money is None)
    if models:
        free = "`price: {input: 0, output: 0}` if it is free"
        yield f"{', '.join(models)}: no price in the recipe, so its money is unknown; set `price`, {free}"


def _asked_by_jobs(fusion: Fusion, planned: Sequence[StagePlan]) -> Iterator[str]:
    """What asking in another way would cost."""
    for name, config in fusion.recipe.sources.items():
        left = [model for stage in planned for model in stage.models if model.model == name and model.calls]
        parts = [Usage(model.calls, model.prompt_tokens or 0, 0, model.new_tokens or 0) for model in left]
        if left and (note := config.compare_cost(sum(parts, Usage()))):
            yield f"{name}: {note}"


def _undecided(forecast: Forecast) -> Iterator[str]:
    """The range of an SFT's number of prompts, if a method's selection decides it."""
    for name, sft in forecast.fusion.recipe.fine_tunings.items():
        if sft.extra_prompts:
            method = sft.extra_prompts.dropped_by
            least, most = (show_count(part) for part in (forecast.parts["sft"], selected_from(forecast, name)))
            yield (
                f"{name}: rows of {least} to {most} prompts, depending on how many select-{method} drops; the hours of "
                f"train-{name} and train-{method} are upper bounds"
            )
