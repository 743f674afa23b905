"""The stages ``train-NAME``: fine-tune the target, or optimise its start by a preference method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sinterlm.chat import encode_prompt
from sinterlm.files import FINISHED, move_whole, remove
from sinterlm.models import Fingerprint, check_trainable, load_tokenizer
from sinterlm.models.flops import training_flops
from sinterlm.pipeline.forecast import (
    OPTIMIZER_COPIES,
    TRAINING,
    Forecast,
    Part,
    StagePlan,
    combine,
    count,
    estimate_answer_tokens,
    estimate_prompt_tokens,
    hours,
)
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.grid_store import describe_grid, read_search, settle
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.metrics import read_metrics
from sinterlm.pipeline.progress import follow_training, show_bytes
from sinterlm.pipeline.stage import RunContext, Shown, Stage, StageResult
from sinterlm.recipe.grid import apply_choice, list_choices
from sinterlm.recipe.schema import ExtraPrompts, Training
from sinterlm.records import Message
from sinterlm.report import data as page
from sinterlm.template import TemplateOptions
from sinterlm.training.arguments import DEFAULT_MAX_LENGTH
from sinterlm.training.output_folder import require_own_or_empty

if TYPE_CHECKING:
    from sinterlm.training.result import TrainingResult

TRAINING_DEFAULTS = {
    "num_train_epochs": 3,
    "max_steps": -1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_length": DEFAULT_MAX_LENGTH,
}
"""The defaults, of Transformers and our own, that decide how much is trained."""
NUM_CHECKPOINTS = 2
"""Checkpoints kept at a time by default."""


class Train(Stage):
    """Trains one model on the rows of its selection."""

    reads_target = True

    def __init__(self, fusion: Fusion, training: str) -> None:
        self._fusion = fusion
        self._training = training
        self.name = f"train-{training}"
        self.needs = training_needs(fusion, training)
        if fusion.searches(training):
            self.needs = (*self.needs, f"search-{training}")
        self.outputs = (fusion.output / fusion.model_of(training).name / FINISHED,)

    def configuration(self, fingerprint: Fingerprint) -> object:
        """The target's weights and template, the objective, the training arguments and the seed."""
        return describe_training(self._fusion, self._training, fingerprint)

    def check(self, inputs: Inputs) -> None:
        """Check that the target can be trained, its template can write a dialogue, and the arguments go together."""
        if inputs.reads_target:
            _check_target(self._fusion, inputs)
            _check_arguments(self._fusion, self._fusion.trainings[self._training])

    def estimate(self, forecast: Forecast) -> StagePlan:
        """The cost of one training; nothing after a search, which has trained the model."""
        if self._fusion.trainings[self._training].grid:
            return StagePlan(self.name, note="the best cell's model")
        weights = forecast.target_bytes
        return StagePlan(
            self.name,
            False,
            TRAINING,
            disk_bytes=weights,
            gpu_hours=estimate_training_hours(forecast, self._training),
            note="" if weights is None else f"and {describe_checkpoints(weights)}",
        )

    def work(self, run: RunContext) -> StageResult:
        """Train with the recipe's settings or, after a search, take over the chosen cell's model."""
        fusion, name = run.fusion, self._training
        output = fusion.output / fusion.model_of(name).name
        if search := read_search(fusion, name):
            _adopt(fusion.output / search["folder"] / "model", output)
        # An adopted model counts as finished; if it is gone, it is trained again.
        result = fit(run, name, settle(fusion, name), output=output, label=self.name)
        counts = {
            "rows": result.num_rows,
            "steps": result.num_steps,
            "tokens": result.num_tokens,
            "cut": result.num_cut,
            "cut prompts": result.num_cut_prompts,
        }
        return StageResult(counts, [replace(drop, stage=self.name) for drop in result.dropped])

    def show(self, run: RunContext) -> Shown:
        """The training's curves."""
        metrics = read_metrics(self.outputs[0].parent)
        training = page.TrainingRun(self._training, training_title(run.fusion, self._training), metrics)
        return Shown(fill=lambda data: replace(data, training=[*data.training, training])) if metrics else Shown()


def training_title(fusion: Fusion, name: str) -> str:
    """The objective of a training and its hyper-parameters, e.g. ``dpo: beta 0.1``."""
    objective = settle(fusion, name).objective
    values = ", ".join(f"{key} {value}" for key, value in objective.resolve().values.items())
    return f"{objective.kind}{f': {values}' if values else ''}"


def fit(run: RunContext, name: str, training: Training, *, output: Path, label: str) -> TrainingResult:
    """Train on the rows of ``sft`` or a preference method, from its start, with the settings of ``training``."""
    from sinterlm.formats import read_rows
    from sinterlm.training.card import CardDetails
    from sinterlm.training.train import train

    fusion = run.fusion
    start = fusion.start_of(name).weights
    assert start is not None
    sources = {f"Source {source.name}": source.config.provenance() for source in fusion.sources}
    grid = {"Chosen on the development prompts from": describe_grid(training)} if training.grid else {}
    with follow_training(run.reporter, label) as report_progress:
        return train(
            read_rows(fusion.rows_path(name)),
            model=start,
            objective=training.objective.kind,
            hyperparameters=training.objective.resolve().values,
            arguments={**training.train, **fusion.recipe.target.template_options},
            output_dir=output,
            seed=fusion.recipe.seed,
            cache_dir=fusion.workspace / "reference",
            card=CardDetails(fusion.recipe.target.model, {**sources, "Scorer": fusion.recipe.scorer.title, **grid}),
            say=lambda line: run.reporter.say(f"  {label}: {line}"),
            report_progress=report_progress,
        )


def training_needs(fusion: Fusion, training: str) -> tuple[str, ...]:
    """The stages that a training, or a search for its settings, comes after."""
    selection = f"select-{training}"
    return (selection,) if training in fusion.recipe.fine_tunings else (selection, fusion.start_stage(training))


def describe_training(fusion: Fusion, name: str, fingerprint: Fingerprint) -> list[object]:
    """What decides a training besides its rows and its start."""
    training = fusion.trainings[name]
    return [
        fingerprint(fusion.recipe.target.model),
        training.objective.kind,
        training.objective.resolve().values,
        training.train,
        fusion.recipe.seed,
        *([options] if (options := fusion.recipe.target.template_options) else []),
    ]


def estimate_training_hours(forecast: Forecast, name: str) -> dict[str, float] | None:
    """The GPU hours of one training if every prompt of its part gives a row; None if unknown."""
    fusion = forecast.fusion
    part = selected_from(forecast, name)
    training, target = fusion.trainings[name], fusion.recipe.target
    weights = target.num_weights
    if part is None or weights is None:
        return None
    num_prompts = count(part)
    arguments = TRAINING_DEFAULTS | training.train
    answers = [estimate_answer_tokens(request) for request, _ in source_samples(fusion, training)]
    answer = min(sum(answers) / len(answers), arguments["max_length"])
    epochs = float(arguments["num_train_epochs"])
    if arguments["max_steps"] > 0:
        batch = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
        epochs = arguments["max_steps"] * batch / max(num_prompts, 1)
    objective = training.objective.resolve()
    flops = training_flops(
        weights,
        tokens=estimate_prompt_tokens(part) + num_prompts * answer * responses_in_row(fusion, training),
        epochs=epochs,
        needs_reference=objective.needs_reference,
        recomputes=any(arguments.get(key) for key in ("activation_checkpointing", "gradient_checkpointing")),
    )
    return hours(flops)


def selected_from(forecast: Forecast, training: str) -> Part:
    """The prompts that can give a training its rows."""
    fusion, parts = forecast.fusion, forecast.parts
    if training not in fusion.recipe.fine_tunings:
        return parts["preference"]
    extra = fusion.extra_prompts(training)
    return combine([parts["sft"], _droppable(fusion, extra, parts["preference"])]) if extra else parts["sft"]


def source_samples(fusion: Fusion, training: Training) -> list[tuple[SamplingRequest, int]]:
    """The sources that a training selects from, with the number of answers to a prompt that it looks at."""
    looked_at = (
        (request, training.select.samples_of(request.participant.name, request.num_samples))
        for request in fusion.rounds["sources"].requests
    )
    return [(request, number) for request, number in looked_at if number]


def responses_in_row(fusion: Fusion, training: Training) -> int:
    """The most answers that a row can hold."""
    return training.select.responses_in_row(
        source_samples=[number for _, number in source_samples(fusion, training)],
        target_samples=fusion.for_training(fusion.answering_for(fusion.target)).num_samples,
    )


def describe_checkpoints(weights: int) -> str:
    """The disk space that checkpoints take during a training, in words."""
    return f"up to {show_bytes(NUM_CHECKPOINTS * OPTIMIZER_COPIES * weights)} of checkpoints during training"


def _droppable(fusion: Fusion, extra: ExtraPrompts, preference: Part) -> Part:
    """The preference prompts that go to SFT if a method drops all that it may."""
    sizes, domains = fusion.recipe.prompts.sizes, extra.domains
    if domains is None or preference is None:
        return preference
    if isinstance(preference, int):
        return min(preference, sum(sizes.get(domain, 0) for domain in domains)) if sizes else preference
    return [prompt for prompt in preference if prompt.domain in domains]


def _check_target(fusion: Fusion, inputs: Inputs) -> None:
    target = fusion.recipe.target
    if inputs.is_new("target", target.model):
        check_trainable(target.model)
        options = TemplateOptions.of(target.chat_template_kwargs, target.template_date)
        encode_prompt(load_tokenizer(target.model), [Message("user", "What is the capital of France?")], options)


def _check_arguments(fusion: Fusion, training: Training) -> None:
    from sinterlm.training.check import check_arguments

    choices = [choice for entry in training.grid for choice in list_choices(entry)]
    for settings in [training, *(apply_choice(training, choice) for choice in choices)]:
        objective = settings.objective
        check_arguments(objective.kind, objective.resolve().values, settings.train, seed=fusion.recipe.seed)


def _adopt(model: Path, output: Path) -> None:
    """Move a cell's model to where a model of the fusion belongs."""
    if model.is_dir():
        require_own_or_empty(output)
        remove(output)
        move_whole(model, output)
