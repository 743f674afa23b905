"""The stages of a fusion, in order, and what each depends on: the table of contents of a run.

prompts -> sample-sources -> score-sources -> select-sft -> train-sft -> sample-target -> score-target
        -> select-METHOD, train-METHOD (each preference method) -> sample-held-out
            -> score-held-out -> evaluate -> report

A training with a grid has a stage search-METHOD before it. An SFT that learns from what a method drops, too
(``extra_prompts``), has that method's select-METHOD before its select-sft.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial

from sinterlm.models import Fingerprint
from sinterlm.pipeline.cells import describe_scorer
from sinterlm.pipeline.evaluate import evaluate
from sinterlm.pipeline.fusion import Fusion, Participant, SamplingRequest
from sinterlm.pipeline.prompts import describe_prompts, read_distinct_prompts, write_matches
from sinterlm.pipeline.report import write_run_report
from sinterlm.pipeline.rows import select
from sinterlm.pipeline.sample import engine_of, sample
from sinterlm.pipeline.score import score
from sinterlm.pipeline.search import search
from sinterlm.pipeline.stage import RunContext, Stage, StageResult
from sinterlm.pipeline.train import train_model
from sinterlm.recipe.build import build_hyperparameters, engine_identity, template_options
from sinterlm.recipe.schema import Recipe
from sinterlm.records import Dropped, Prompt
from sinterlm.sampling.protocol import HoldsAnswers
from sinterlm.selection.split import Parts, split_prompts


def build_stages(fusion: Fusion, fingerprint: Fingerprint) -> list[Stage]:
    """The stages of ``fusion`` in an order in which they can be done."""
    recipe = fusion.recipe
    held_out = recipe.evaluation.held_out

    def described(ask: SamplingRequest) -> object:
        return _describe_ask(ask, fingerprint)

    weights = fingerprint(recipe.target.model)
    scorer = describe_scorer(recipe.scorer, fingerprint)
    stages = [
        Stage("prompts", [*describe_prompts(recipe.prompts), recipe.seed], _prompts, outputs=fusion.matches_paths),
        Stage(
            "sample-sources",
            {source.name: described(fusion.for_training(source)) for source in fusion.sources},
            _sample_sources,
            needs=("prompts",),
        ),
        Stage("score-sources", scorer, _score_sources, needs=("sample-sources",)),
    ]
    for name, sft in recipe.fine_tunings.items():
        if sft.extra_prompts:
            stages.append(_selection_stage(fusion, sft.extra_prompts.dropped_by))
        stages += [_selection_stage(fusion, name), *_training_stages(fusion, name, weights, (), fingerprint)]
    if fusion.sampled_targets:
        stages += [
            Stage(
                "sample-target",
                [
                    described(fusion.for_training(fusion.answering_for(fusion.target))),
                    [target.name for target in fusion.sampled_targets],
                ],
                _sample_target,
                needs=("prompts", *_sampled_starts(fusion)),
                reads_target=any(target.weights is not None for target in fusion.sampled_targets),
            ),
            Stage("score-target", scorer, _score_target, needs=("sample-target",)),
        ]
    first = {sft.extra_prompts.dropped_by for sft in recipe.fine_tunings.values() if sft.extra_prompts}
    for method in recipe.preference:
        if method not in first:
            stages.append(_selection_stage(fusion, method))
        stages += _training_stages(fusion, method, weights, (_start_stage(fusion, method),), fingerprint)
    done = tuple(stage.name for stage in stages)
    if held_out:
        stages += [
            Stage(
                "sample-held-out",
                _describe_held_out_asks(fusion, fingerprint),
                _sample_held_out,
                needs=done,
                reads_target=True,
            ),
            Stage(
                "score-held-out",
                describe_scorer(held_out.scorer, fingerprint),
                _score_held_out,
                needs=("sample-held-out",),
            ),
            Stage(
                "evaluate",
                None,
                evaluate,
                needs=("score-held-out",),
                outputs=(fusion.output / "evaluation.json",),
            ),
        ]
        done = ("evaluate",)
    stages.append(
        Stage(
            "report",
            None,
            write_run_report,
            needs=done,
            outputs=(fusion.output / "report.html", fusion.output / "summary.json"),
            may_change=True,
        )
    )
    return stages


def _selection_stage(fusion: Fusion, name: str) -> Stage:
    """The selection of one training's rows; after that of the method which decides what prompts there are for it."""
    recipe, compared, extra = fusion.recipe, fusion.compared(name), fusion.extra_prompts(name)
    configuration = [
        fusion.trainings[name].select.model_dump(),
        *([compared and compared.name] if name in recipe.preference else []),
        recipe.target.prompt.system,
        recipe.seed,
        *([extra.model_dump()] if extra else []),
    ]
    needs = ["score-sources"]
    if compared:
        needs.append("score-target")
    if extra:
        needs.append(f"select-{extra.dropped_by}")
    return Stage(
        f"select-{name}",
        configuration,
        partial(select, name=name),
        needs=tuple(needs),
        outputs=(fusion.rows_path(name),),
    )


def _start_stage(fusion: Fusion, method: str) -> str:
    """The stage after which the model is there that a preference method starts from."""
    fine_tuning = fusion.recipe.fine_tuning_of(method)
    return f"train-{fine_tuning}" if fine_tuning else "prompts"


def _sampled_starts(fusion: Fusion) -> list[str]:
    """The stages after which every form of the target is there that is sampled; none for recorded answers."""
    if fusion.recipe.target.samples:
        return []
    return list(
        dict.fromkeys(_start_stage(fusion, method) for method in fusion.recipe.preference if fusion.compared(method))
    )


def _training_stages(
    fusion: Fusion, name: str, weights: str | None, starts: tuple[str, ...], fingerprint: Fingerprint
) -> Iterator[Stage]:
    """A training, and before it the search for its settings where it has a grid."""
    needs = (f"select-{name}", *starts)
    training = fusion.trainings[name]
    configuration = [
        weights,
        training.objective.kind,
        build_hyperparameters(training.objective),
        training.train,
        fusion.recipe.seed,
        *([options] if (options := template_options(fusion.recipe.target)) else []),
    ]
    held_out, grid = fusion.recipe.evaluation.held_out, training.grid
    if held_out and grid:
        asked = _describe_ask(fusion.for_evaluation(fusion.target), fingerprint)
        yield Stage(
            f"search-{name}",
            [configuration, grid, asked, describe_scorer(held_out.scorer, fingerprint)],
            partial(search, name=name),
            needs=needs,
            outputs=(fusion.search_path(name),),
            reads_target=True,
        )
        needs = (*needs, f"search-{name}")
    yield Stage(
        f"train-{name}",
        configuration,
        partial(train_model, name=name),
        needs=needs,
        outputs=(fusion.output / fusion.model_of(name).name / "training.json",),
        reads_target=True,
    )


def split_parts(recipe: Recipe, prompts: Sequence[Prompt]) -> dict[str, tuple[Prompt, ...]]:
    """The recipe's split of its prompts, by part."""
    split = recipe.prompts.split
    parts = split_prompts(
        prompts,
        held_out=split.held_out,
        sft=split.sft if recipe.fine_tunings else 0,
        sft_domains=split.sft_domains if recipe.fine_tunings else {},
        development=split.development,
        preference=split.preference,
        seed=recipe.seed,
    )
    return parts._asdict()


def _prompts(run: RunContext) -> StageResult:
    recipe = run.fusion.recipe
    distinct = read_distinct_prompts(recipe.prompts)
    parts = split_parts(recipe, distinct.prompts)
    run.store.set_prompts(run.fusion.run_name, parts)
    for path in run.fusion.matches_paths:
        write_matches(path, distinct.matches)
    return StageResult({part: len(prompts) for part, prompts in parts.items() if prompts}, distinct.dropped("prompts"))


def _training_prompts(run: RunContext) -> list[Prompt]:
    parts = run.fusion.training_parts
    return [prompt for part in parts for prompt in run.store.prompts(run.fusion.run_name, part)]


def _sample_sources(run: RunContext) -> StageResult:
    prompts = _training_prompts(run)
    asks = [run.fusion.for_training(source) for source in run.fusion.sources]
    result = _merge([sample(run, "sample-sources", ask, prompts, must_answer=True) for ask in asks])
    unused = _unused_recorded_answers(run, "sample-sources", run.fusion.sources)
    return StageResult(result.counts, [*result.dropped, *unused])


def _unused_recorded_answers(run: RunContext, stage: str, participants: Sequence[Participant]) -> Iterator[Dropped]:
    prompts = [prompt for part in Parts._fields for prompt in run.store.prompts(run.fusion.run_name, part)]
    for participant in participants:
        ask = run.fusion.for_training(participant)
        with closing(engine_of(run, ask)) as engine:
            if isinstance(engine, HoldsAnswers):
                for subject, index, reason in engine.unused(prompts, num_samples=ask.num_samples):
                    yield Dropped(subject, stage, reason, f"{participant.name}, index {index}")


def _score_sources(run: RunContext) -> StageResult:
    prompts = _training_prompts(run)
    asks = [run.fusion.for_training(source) for source in run.fusion.sources]
    return score(run, "score-sources", run.fusion.recipe.scorer, asks, prompts)


def _sample_target(run: RunContext) -> StageResult:
    prompts = run.store.prompts(run.fusion.run_name, "preference")
    asks = map(run.fusion.for_training, run.fusion.sampled_targets)
    result = _merge([sample(run, "sample-target", ask, prompts, must_answer=True) for ask in asks])
    unused = _unused_recorded_answers(run, "sample-target", run.fusion.sampled_targets)
    return StageResult(result.counts, [*result.dropped, *unused])


def _score_target(run: RunContext) -> StageResult:
    prompts = run.store.prompts(run.fusion.run_name, "preference")
    asks = map(run.fusion.for_training, run.fusion.sampled_targets)
    return score(run, "score-target", run.fusion.recipe.scorer, asks, prompts)


def _sample_held_out(run: RunContext) -> StageResult:
    prompts = evaluation_prompts(run)
    return _merge([sample(run, "sample-held-out", ask, prompts) for ask in held_out_asks(run.fusion)])


def _score_held_out(run: RunContext) -> StageResult:
    held_out = run.fusion.recipe.evaluation.held_out
    assert held_out is not None
    return score(run, "score-held-out", held_out.scorer, held_out_asks(run.fusion), evaluation_prompts(run))


def evaluation_prompts(run: RunContext) -> list[Prompt]:
    """The prompts that no training sees: the held-out ones, and those set apart for choosing settings."""
    return [prompt for part in ("held_out", "development") for prompt in run.store.prompts(run.fusion.run_name, part)]


def held_out_asks(fusion: Fusion) -> list[SamplingRequest]:
    """Every model once, greedily; sources and start as in training too, to measure internal rewards on quadruples."""
    asks = [fusion.for_evaluation(participant) for participant in fusion.participants]
    if fusion.recipe.preference:
        compared = (*fusion.sources, fusion.answering_for(fusion.start))
        asks += map(fusion.for_training, compared)
    return asks


def _describe_held_out_asks(fusion: Fusion, fingerprint: Fingerprint) -> object:
    """What of :func:`held_out_asks` stands in no earlier stage's key.

    That is how the target is asked to evaluate it and, where no rows are made of its samples, how it is sampled.
    """
    asked = _describe_ask(fusion.for_evaluation(fusion.target), fingerprint)
    if not fusion.recipe.preference or fusion.sampled_targets:
        return asked
    return [asked, _describe_ask(fusion.for_training(fusion.answering_for(fusion.target)), fingerprint)]


def _merge(results: Sequence[StageResult]) -> StageResult:
    counts: dict[str, float] = {}
    for result in results:
        for name, count in result.counts.items():
            counts[name] = count if "tokens/s" in name else counts.get(name, 0) + count
    return StageResult(counts, [drop for result in results for drop in result.dropped])


def _describe_ask(ask: SamplingRequest, fingerprint: Fingerprint) -> object:
    participant = ask.participant
    identity = engine_identity(
        participant.config, location=participant.location, settings=ask.settings, fingerprint=fingerprint
    )
    return [identity, ask.num_samples, participant.config.domains]
