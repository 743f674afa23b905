"""The stages of a fusion, in order, and what each depends on: the table of contents of a run.

prompts -> sample-sources -> score-sources -> select-sft -> train-sft -> sample-target -> score-target
        -> select-METHOD, train-METHOD (each preference method) -> sample-held-out
            -> score-held-out -> evaluate -> report

A training with a grid has a stage search-METHOD before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from sinterlm.formats import read_prompts
from sinterlm.pipeline.answers import answers_of, sample, score
from sinterlm.pipeline.cells import describe_scorer
from sinterlm.pipeline.evaluate import evaluate
from sinterlm.pipeline.fusion import Ask, Fusion
from sinterlm.pipeline.report import write_run_report
from sinterlm.pipeline.rows import select
from sinterlm.pipeline.search import search
from sinterlm.pipeline.stage import Run, Stage, StageResult
from sinterlm.pipeline.train import train_model
from sinterlm.recipe.build import build_hyperparameters, engine_identity
from sinterlm.recipe.schema import Recipe, RecordedSource
from sinterlm.records import Dropped, Prompt, digest
from sinterlm.sampling.identity import Fingerprint
from sinterlm.sampling.recorded import RecordedEngine
from sinterlm.selection.split import Parts, split_prompts


def build_stages(fusion: Fusion, fingerprint: Fingerprint) -> list[Stage]:
    """The stages of ``fusion`` in an order in which they can be done."""
    recipe = fusion.recipe
    held_out = recipe.evaluation.held_out

    def described(ask: Ask) -> object:
        return _describe_ask(ask, fingerprint)

    weights = fingerprint(recipe.target.model)
    scorer = describe_scorer(recipe.scorer, fingerprint)
    stages = [
        Stage("prompts", [_file_digest(recipe.prompts.path), recipe.prompts.split.model_dump(), recipe.seed], _prompts),
        Stage(
            "sample-sources",
            {source.name: described(fusion.for_training(source)) for source in fusion.sources},
            _sample_sources,
            needs=("prompts",),
        ),
        Stage("score-sources", scorer, _score_sources, needs=("sample-sources",)),
    ]
    start = "prompts"
    if recipe.sft:
        stages += [
            Stage(
                "select-sft",
                [recipe.sft.select.model_dump(), recipe.target.prompt.system, recipe.seed],
                partial(select, name="sft", policy=recipe.sft.select, part="sft", with_target=False),
                needs=("score-sources",),
                outputs=(fusion.rows_path("sft"),),
            ),
            *_training_stages(fusion, "sft", [weights, recipe.sft.train, recipe.seed], (), fingerprint),
        ]
        start = "train-sft"
    if recipe.preference:
        stages += [
            Stage(
                "sample-target",
                described(fusion.for_training(fusion.target)),
                _sample_target,
                needs=("prompts", start),
            ),
            Stage("score-target", scorer, _score_target, needs=("sample-target",)),
        ]
    for method, preference in recipe.preference.items():
        configuration = [
            weights,
            preference.objective.kind,
            build_hyperparameters(preference.objective),
            preference.train,
            recipe.seed,
        ]
        stages += [
            Stage(
                f"select-{method}",
                [preference.select.model_dump(), recipe.seed],
                partial(select, name=method, policy=preference.select, part="preference", with_target=True),
                needs=("score-sources", "score-target"),
                outputs=(fusion.rows_path(method),),
            ),
            *_training_stages(fusion, method, configuration, (start,), fingerprint),
        ]
    done = tuple(stage.name for stage in stages)
    if held_out:
        stages += [
            Stage("sample-held-out", described(fusion.for_evaluation(fusion.target)), _sample_held_out, needs=done),
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
        )
    )
    return stages


def _training_stages(
    fusion: Fusion, name: str, configuration: object, starts: tuple[str, ...], fingerprint: Fingerprint
) -> Iterator[Stage]:
    """A training, and before it the search for its settings where it has a grid."""
    needs = (f"select-{name}", *starts)
    held_out, grid = fusion.recipe.evaluation.held_out, fusion.trainings[name].grid
    if held_out and grid:
        asked = _describe_ask(fusion.for_evaluation(fusion.target), fingerprint)
        yield Stage(
            f"search-{name}",
            [configuration, grid, asked, describe_scorer(held_out.scorer, fingerprint)],
            partial(search, name=name),
            needs=needs,
            outputs=(fusion.search_path(name),),
        )
        needs = (*needs, f"search-{name}")
    yield Stage(
        f"train-{name}",
        configuration,
        partial(train_model, name=name),
        needs=needs,
        outputs=(fusion.output / fusion.model_of(name).name / "training.json",),
    )


def split_parts(recipe: Recipe, prompts: Sequence[Prompt]) -> dict[str, tuple[Prompt, ...]]:
    """The recipe's split of its prompts, by part."""
    split = recipe.prompts.split
    parts = split_prompts(
        prompts,
        held_out=split.held_out,
        sft=split.sft if recipe.sft else 0,
        development=split.development,
        preference=split.preference,
        seed=recipe.seed,
    )
    return parts._asdict()


def _prompts(run: Run) -> StageResult:
    recipe = run.fusion.recipe
    parts = split_parts(recipe, read_prompts(recipe.prompts.path))
    run.store.set_prompts(run.fusion.run_name, parts)
    return StageResult({part: len(prompts) for part, prompts in parts.items() if prompts})


def _training_prompts(run: Run) -> list[Prompt]:
    parts = run.fusion.training_parts
    return [prompt for part in parts for prompt in run.store.prompts(run.fusion.run_name, part)]


def _sample_sources(run: Run) -> StageResult:
    prompts = _training_prompts(run)
    asks = [run.fusion.for_training(source) for source in run.fusion.sources]
    result = _merge([sample(run, "sample-sources", ask, prompts, must_answer=True) for ask in asks])
    return StageResult(result.counts, [*result.dropped, *_unused_recorded_answers(run)])


def _unused_recorded_answers(run: Run) -> Iterator[Dropped]:
    prompts = [prompt for part in Parts._fields for prompt in run.store.prompts(run.fusion.run_name, part)]
    for source in run.fusion.sources:
        if isinstance(source.config, RecordedSource):
            engine = RecordedEngine(source.config.path)
            for answer, reason in engine.unused(prompts, num_samples=source.config.num_samples):
                subject = answer.prompt_id or answer.content_hash or ""
                yield Dropped(subject, "sample-sources", reason, f"{source.name}, index {answer.index}")


def _score_sources(run: Run) -> StageResult:
    prompts = _training_prompts(run)
    asks = [run.fusion.for_training(source) for source in run.fusion.sources]
    answered = [answered for ask in asks for answered in answers_of(run, ask, prompts)]
    return score(run, "score-sources", run.fusion.recipe.scorer, answered)


def _sample_target(run: Run) -> StageResult:
    prompts = run.store.prompts(run.fusion.run_name, "preference")
    return sample(run, "sample-target", run.fusion.for_training(run.fusion.start), prompts)


def _score_target(run: Run) -> StageResult:
    prompts = run.store.prompts(run.fusion.run_name, "preference")
    answered = list(answers_of(run, run.fusion.for_training(run.fusion.start), prompts))
    return score(run, "score-target", run.fusion.recipe.scorer, answered)


def _sample_held_out(run: Run) -> StageResult:
    prompts = evaluation_prompts(run)
    return _merge([sample(run, "sample-held-out", ask, prompts) for ask in held_out_asks(run.fusion)])


def _score_held_out(run: Run) -> StageResult:
    held_out = run.fusion.recipe.evaluation.held_out
    assert held_out is not None
    prompts = evaluation_prompts(run)
    answered = [answered for ask in held_out_asks(run.fusion) for answered in answers_of(run, ask, prompts)]
    return score(run, "score-held-out", held_out.scorer, answered)


def evaluation_prompts(run: Run) -> list[Prompt]:
    """The prompts that no training sees: the held-out ones, and those set apart for choosing settings."""
    return [prompt for part in ("held_out", "development") for prompt in run.store.prompts(run.fusion.run_name, part)]


def held_out_asks(fusion: Fusion) -> list[Ask]:
    """Every model once, greedily; sources and start as in training too, to measure internal rewards on quadruples."""
    asks = [fusion.for_evaluation(participant) for participant in fusion.participants]
    if fusion.recipe.preference:
        asks += [fusion.for_training(participant) for participant in (*fusion.sources, fusion.start)]
    return asks


def _merge(results: Sequence[StageResult]) -> StageResult:
    counts: dict[str, float] = {}
    for result in results:
        for name, count in result.counts.items():
            counts[name] = count if "tokens/s" in name else counts.get(name, 0) + count
    return StageResult(counts, [drop for result in results for drop in result.dropped])


def _describe_ask(ask: Ask, fingerprint: Fingerprint) -> object:
    participant = ask.participant
    identity = engine_identity(
        participant.config, location=participant.location, settings=ask.settings, fingerprint=fingerprint
    )
    return [identity, ask.num_samples]


def _file_digest(path: Path) -> str | None:
    """The content's hash; None for a file that is not there (a plan says so, a run refuses)."""
    return digest(path.read_bytes().hex()) if path.is_file() else None
