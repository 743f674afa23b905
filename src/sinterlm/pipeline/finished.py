"""Reads what a run left in its folder and store: its models, figures, answers, rows and drops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from sinterlm.errors import InputError
from sinterlm.evaluation.figures import Evaluation, Figures, Rates
from sinterlm.explain import unknown_name
from sinterlm.formats import read_rows
from sinterlm.models import load_model, load_tokenizer
from sinterlm.pipeline.fusion import Fusion, SamplingRequest, load_fusion
from sinterlm.pipeline.metrics import read_metrics
from sinterlm.pipeline.outputs import require_undamaged
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.report import write_run_report
from sinterlm.pipeline.score import scored_answers
from sinterlm.pipeline.stage import RunContext
from sinterlm.pipeline.stages import build_stages
from sinterlm.pipeline.stages.train import training_title
from sinterlm.pipeline.status import status_of
from sinterlm.pipeline.summary import read_evaluation, read_summary
from sinterlm.recipe.schema import Recipe
from sinterlm.records import Dropped, Prompt, Response, Score, TrainingRow
from sinterlm.report.data import Part
from sinterlm.scoring.settings import ScorerSettings
from sinterlm.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TableName = Literal["figures", "differences", "answers", "rows", "dropped", "stages", "steps"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a run: a source, the target, or a trained form of the target."""

    name: str
    """Its name in the tables and in ``summary.json``, e.g. ``target-sft-wrpo``."""
    location: str | None
    """The folder or hub name to load it from; None if it has no weights to load, such as a file of answers."""
    provenance: str
    """What it is, e.g. ``gemma-3-270m, few-shot prompt`` or ``wrpo: base dpo, beta 0.1``."""
    figures: Rates
    """Figures on the held-out questions by metric; empty before or without an evaluation."""

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model and its tokenizer with Transformers.

        Raises:
            InputError: The model is not on this machine or has no weights to load.
        """
        if self.location is None:
            raise InputError(f"{self.name} ({self.provenance}): no weights to load on this machine")
        return load_model(self.location), load_tokenizer(self.location)


class ScoredAnswer(NamedTuple):
    """One model's answer to one prompt and its score."""

    prompt: Prompt
    response: Response
    score: Score


class Example(NamedTuple):
    """One held-out question with the target's answer before and after fusion."""

    before: ScoredAnswer
    after: ScoredAnswer

    @property
    def gain(self) -> float:
        """The rise in score."""
        return self.after.score.value - self.before.score.value


class _Asked(NamedTuple):
    request: SamplingRequest
    scorer: ScorerSettings


class Run:
    """A run, read on demand from its folder and its workspace's store.

    Args:
        fusion: The recipe of the run, with its folders.
    """

    def __init__(self, fusion: Fusion) -> None:
        self._fusion = fusion

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self._fusion.output

    @property
    def recipe(self) -> Recipe:
        """The recipe with every default written out."""
        return self._fusion.recipe

    @property
    def is_finished(self) -> bool:
        """Whether every stage of the recipe is done and its files have the sizes that were written."""
        return all(stage["state"] == "done" for stage in status_of(self.folder)["stages"])

    @cached_property
    def models(self) -> Mapping[str, Model]:
        """Every model that exists, by name: the sources, the target, and its trained forms."""
        figures = self.figures.models
        trained = {self._fusion.model_of(name).name: name for name in self._fusion.trainings}
        return {
            participant.name: Model(
                participant.name,
                participant.weights,
                training_title(self._fusion, trained[participant.name])
                if participant.name in trained
                else participant.config.provenance(participant.location),
                figures.get(participant.name, {}),
            )
            for participant in self._fusion.participants
            if participant.is_there
        }

    @property
    def fused(self) -> Model | None:
        """The run's main result; None if it is not trained yet or the recipe trains none."""
        fused = self._fusion.fused
        return self.models.get(fused.name) if fused else None

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """The content of ``summary.json``.

        Raises:
            InputError: It is damaged or not written yet.
        """
        return read_summary(self._fusion)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The content of ``evaluation.json``; empty before or without an evaluation."""
        return read_evaluation(self._fusion)

    @property
    def figures(self) -> Figures:
        """The models' figures on the held-out questions, and the paired differences of the fused ones."""
        return self.evaluation.held_out

    @property
    def dropped(self) -> Sequence[Dropped]:
        """Everything that a stage dropped, and why."""
        with self._reading() as run:
            stages = {stage.name for stage in run.stages}
            return [drop for drop in run.store.dropped(run.fusion.run_name) if drop.stage in stages]

    def rows(self, training: str) -> Sequence[TrainingRow]:
        """The selected rows of ``sft`` or of a preference method.

        Raises:
            InputError: The recipe has no such training, or its rows are not selected yet.
        """
        if training not in self._fusion.trainings:
            raise InputError(unknown_name(training, self._fusion.trainings, f"training {training!r}"))
        path = self._fusion.rows_path(training)
        if not path.is_file():
            raise InputError(f"{self.folder}: select-{training} is not done yet; run the recipe first")
        return read_rows(path)

    def answers(self, part: Part = "held_out", model: str | None = None) -> Sequence[ScoredAnswer]:
        """Answers with their scores, model by model; answers without a score are left out.

        Args:
            part: Which prompts. Every model answered ``held_out`` and ``development`` once, greedily. The sources
                answered ``sft`` and ``preference`` several times, and so did the sampled target ``preference``.
            model: Whose answers; by default all models'.

        Raises:
            InputError: There is no such part, or no model of this name answered its prompts.
        """
        if part not in get_args(Part):
            raise InputError(unknown_name(part, get_args(Part), f"part {part!r}"))
        asked = self._asked(part)
        if model is not None and model not in asked:
            raise InputError(unknown_name(model, asked, f"model {model!r} among those asked about {part}"))
        with self._reading() as run:
            prompts = run.store.prompts(run.fusion.run_name, part)
            found = []
            for name in asked if model is None else [model]:
                scored = scored_answers(run, asked[name].scorer, asked[name].request, prompts)
                found += [
                    ScoredAnswer(prompt, response, score)
                    for prompt in prompts
                    for response, score in scored.get(prompt.id, ())
                ]
            return found

    def table(self, name: TableName) -> list[dict[str, Any]]:
        """A table as a list of flat records, for ``pandas.DataFrame``, ``polars.DataFrame`` or ``pyarrow.Table``.

        Args:
            name: ``figures`` (a line per model and metric), ``differences`` (paired, a line per two models and metric),
                ``answers`` (of all parts), ``rows`` (a line per response of a training row), ``dropped``, ``stages`` or
                ``steps`` (of the trainings, as in ``metrics.jsonl``).

        Raises:
            InputError: The table is unknown.
        """
        if name not in get_args(TableName):
            raise InputError(unknown_name(name, get_args(TableName), f"table {name!r}"))
        records = list(getattr(self, f"_list_{name}")())
        columns = dict.fromkeys(column for record in records for column in record)  # trainings log different figures
        return [{column: record.get(column) for column in columns} for record in records]

    def examples(self) -> Sequence[Example]:
        """The held-out questions that gained most and least from fusion; none before the evaluation."""
        fused = self._fusion.fused
        if fused is None or not self.figures.models:
            return []
        before, after = (
            {answer.prompt.id: answer for answer in self.answers("held_out", name)}
            for name in (self._fusion.target.name, fused.name)
        )
        examples = [Example(before[key], after[key]) for key in before if key in after]
        examples.sort(key=lambda example: -example.gain)
        return [examples[0], examples[-1]] if len(examples) > 1 else examples

    @contextmanager
    def _reading(self) -> Iterator[RunContext]:
        with closing(Store(self._fusion.store_path, read_only=True)) as store:
            yield read_only(self._fusion, store)

    def _asked(self, part: Part) -> Mapping[str, _Asked]:
        """What every model was asked about a part's prompts; for held-out prompts, the evaluation's request."""
        asked: dict[str, _Asked] = {}
        for questions in self._fusion.rounds.values():
            for request in questions.requests if part in questions.parts else ():
                if request.participant.is_there:  # the evaluation's requests come before those for internal rewards
                    asked.setdefault(request.participant.name, _Asked(request, questions.scorer))
        return asked

    def _list_figures(self) -> Iterator[dict[str, Any]]:
        for model, rates in self.figures.models.items():
            for metric, rate in rates.items():
                yield {"model": model, "metric": metric, **rate._asdict()}

    def _list_differences(self) -> Iterator[dict[str, Any]]:
        return (comparison.to_json() for comparison in self.figures.comparisons)

    def _list_answers(self) -> Iterator[dict[str, Any]]:
        for part in get_args(Part):
            for prompt, response, score in self.answers(part):
                yield {
                    "part": part,
                    "prompt_id": prompt.id,
                    "domain": prompt.domain,
                    "prompt": prompt.messages[-1].content,
                    "model": response.source,
                    "index": response.index,
                    "response": response.content,
                    "finish_reason": response.finish_reason,
                    "num_tokens": response.num_tokens,
                    "score": score.value,
                    "passed": score.passed,
                }

    def _list_rows(self) -> Iterator[dict[str, Any]]:
        for training in self._fusion.trainings:
            if not self._fusion.rows_path(training).is_file():
                continue
            for row in self.rows(training):
                for response in row.responses:
                    yield {
                        "training": training,
                        "prompt_id": row.prompt_id,
                        "role": response.role,
                        "source": response.source,
                        "index": response.index,
                        "score": response.score,
                        "weight": response.weight,
                        "response": response.content,
                    }

    def _list_dropped(self) -> Iterator[dict[str, Any]]:
        for drop in self.dropped:
            yield {"stage": drop.stage, "reason": drop.reason, "subject": drop.subject, "detail": drop.detail}

    def _list_stages(self) -> Iterator[dict[str, Any]]:
        for stage in status_of(self.folder)["stages"]:
            yield {
                "stage": stage["name"],
                "state": stage["state"],
                "seconds": stage.get("seconds"),
                "peak_memory_bytes": stage.get("peak_memory_bytes"),
            }

    def _list_steps(self) -> Iterator[dict[str, Any]]:
        for training in self._fusion.trainings:
            for step in read_metrics(self.folder / self._fusion.model_of(training).name):
                yield {"training": training, **step}


def load_run(folder: str | Path) -> Run:
    """The run whose output folder is ``folder``.

    Raises:
        InputError: ``folder`` holds no run, or files of the run are damaged.
    """
    fusion = load_fusion(Path(folder))
    with closing(Store(fusion.store_path, read_only=True)) as store:
        require_undamaged(read_only(fusion, store))
    return Run(fusion)


def rewrite_report(folder: Path) -> Run:
    """Write ``report.html`` and ``summary.json`` of the run in ``folder`` again.

    Raises:
        InputError: ``folder`` holds no run, or files of the run are damaged.
    """
    fusion = load_fusion(folder)
    with closing(Store(fusion.store_path, read_only=True)) as store:
        run = read_only(fusion, store)
        require_undamaged(run)
        write_run_report(run)
    return Run(fusion)


def read_only(fusion: Fusion, store: Store) -> RunContext:
    """The context of a run that is read and not changed."""
    return RunContext(fusion, store, SilentReporter(), stages=tuple(build_stages(fusion)))
