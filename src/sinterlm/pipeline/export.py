"""Exports the rows of a run or a file as a data set in another tool's format."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from sinterlm.errors import InputError, ToleranceError
from sinterlm.formats import read_rows_of_others, reread_rows
from sinterlm.formats.dataset import FILE_NAME, Around, Card, Records, write_dataset
from sinterlm.formats.responses import RESPONSES
from sinterlm.formats.row_formats import FORMATS, Format
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.models import plain_name
from sinterlm.pipeline.fusion import Fusion, Round, SamplingRequest, load_fusion
from sinterlm.pipeline.outputs import require_undamaged
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.score import scored_answers_to, stored_scorer
from sinterlm.pipeline.stage import RunContext, count_reasons
from sinterlm.records import Dropped, Prompt, RowResponse, Scored, TrainingRow
from sinterlm.store import Store
from sinterlm.streams import Spool

STAGE = "export"


class Exported(NamedTuple):
    """What an export wrote."""

    folder: Path
    counts: Mapping[str, int]
    """Records by configuration."""
    dropped: Collection[Dropped]

    def to_json(self) -> dict[str, Any]:
        """The figures, for ``--json``."""
        return {"folder": str(self.folder), "counts": dict(self.counts), "dropped": count_reasons(self.dropped)}


class _Origin(NamedTuple):
    """What is exported."""

    rows: Mapping[str, Iterable[TrainingRow]]
    """By configuration; read more than once."""
    domains: Mapping[str, str]
    """By prompt id."""
    title: str
    description: str


def export_rows(path: Path, output: Path | None = None, *, format_name: str, names: Sequence[str] = ()) -> Exported:
    """Write the rows of a run or a file in a format, with a card and a list of the rows that do not fit.

    Args:
        path: The output folder of a run or a file of rows in any format.
        output: The folder of the data set; by default ``export/FORMAT`` in the run's folder.
        format_name: A name in :data:`~sinterlm.formats.row_formats.FORMATS`.
        names: The sets of rows to export, e.g. ``sft``; by default all.

    Raises:
        InputError: The format, the run or a name is unknown, or the output folder holds something else.
        ToleranceError: No row fits the format.
    """
    if format_name not in FORMATS:
        raise InputError(f"unknown format {format_name!r}; choose from {', '.join(FORMATS)}")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected the output folder of a run or a file of rows")
    format_ = FORMATS[format_name]
    with ExitStack() as stack:
        if path.is_file():
            origin = _of_file(path)
            folder = output or path.with_name(f"{path.stem}-{format_name}")
        else:
            fusion = load_fusion(path)
            store = stack.enter_context(closing(Store(fusion.store_path, read_only=True)))
            origin = _of_run(RunContext(fusion, store, SilentReporter()), format_)
            folder = output or fusion.output / STAGE / format_name
        if not origin.rows:
            raise InputError(f"{path}: no rows yet; make them with `sinterlm run RECIPE --until select-...`")
        return _write(path, folder, origin._replace(rows=_choose(origin.rows, names)), format_name)


def _write(path: Path, folder: Path, origin: _Origin, format_name: str) -> Exported:
    """Write the rows as a stream; what does not fit is listed beside them."""
    format_ = FORMATS[format_name]
    shapes: dict[str, Shape] = {}
    dropped: Spool[Dropped] = Spool()
    num_rows = 0

    def records(name: str, rows: Iterable[TrainingRow], shape: Shape | None) -> Iterator[dict[str, Any]]:
        nonlocal num_rows
        for row in rows:
            num_rows += 1
            fitting = shape.records(row) if shape else Misfit("no-such-rows-in-this-format")
            if isinstance(fitting, Misfit):
                dropped.append(Dropped(row.prompt_id, f"{STAGE}-{name}", fitting.reason, fitting.detail))
            else:
                domain = {format_.domain_key: origin.domains.get(row.prompt_id, "")}
                yield from ({**record, **domain} for record in fitting)

    def describe(counts: Mapping[str, int]) -> Around:
        if not counts:
            reasons = "; ".join(f"{reason}: {count}" for reason, count in count_reasons(dropped).items())
            raise ToleranceError(
                f"{path}: none of its {num_rows} rows fits the format {format_name} "
                f"({reasons or 'no rows yet'}); `sinterlm list formats` shows what each holds"
            )
        files: dict[str, Iterable[str]] = {}
        if format_.files:
            files |= format_.files({name: shape for name, shape in shapes.items() if name in counts})
        if dropped:
            files["dropped.jsonl"] = (json.dumps(asdict(drop), ensure_ascii=False) + "\n" for drop in dropped)
        text = _describe(origin, format_name, dropped, next(iter(counts)))
        return Around(Card(origin.title, text, [format_name]), files)

    configurations = {}
    for name, rows in origin.rows.items():
        shape = format_.shape_of(rows)
        if shape:
            shapes[name] = shape
        schema = (shape or RESPONSES).schema.append(pa.field(format_.domain_key, pa.string()))
        configurations[name] = Records(schema, records(name, rows, shape))
    return Exported(folder, write_dataset(folder, configurations, describe), dropped)


def _of_file(path: Path) -> _Origin:
    read = read_rows_of_others(path)
    name = path.parent.name if path.name == FILE_NAME else path.stem  # an export's files all have one name
    domains = {row.prompt_id: domain for row, domain in read}
    return _Origin({name: [row for row, _ in read]}, domains, name, f"Training rows from `{path.name}`.")


def _of_run(run: RunContext, format_: Format) -> _Origin:
    fusion = run.fusion
    require_undamaged(run)
    rows = dict(_answers(run) if format_.is_of_answers else _selected(fusion))
    models = "\n".join(f"- source `{source.name}`: {source.config.provenance()}" for source in fusion.sources)
    target = plain_name(fusion.recipe.target.model)
    description = (
        f"Training rows made by fusing several models' answers.\n\n- target: {target}\n{models}\n"
        f"- scorer: {fusion.recipe.scorer.title}\n\nThe licences of these models and of the prompts apply."
    )
    return _Origin(rows, run.store.domains(fusion.run_name), fusion.output.name, description)


def _selected(fusion: Fusion) -> Iterator[tuple[str, Iterable[TrainingRow]]]:
    for name in fusion.trainings:
        if fusion.rows_path(name).is_file():
            yield name, reread_rows(fusion.rows_path(name))


def _answers(run: RunContext) -> Iterator[tuple[str, Iterable[TrainingRow]]]:
    """Yield all scored training answers, one configuration per model."""
    training = (run.fusion.rounds[name] for name in ("sources", "target") if name in run.fusion.rounds)
    for questions in training:
        for request in questions.requests:
            if request.participant.is_there:
                yield request.participant.name, _Answers(run, questions, request)


@dataclass(frozen=True)
class _Answers:
    """All scored answers of one model as rows, read anew each time."""

    run: RunContext
    questions: Round
    request: SamplingRequest

    def __iter__(self) -> Iterator[TrainingRow]:
        prompts = self.run.prompts(*self.questions.parts)
        with closing(stored_scorer(self.run, self.questions.scorer)) as scorer:
            found = scored_answers_to(self.run, scorer, [self.request], prompts)
            yield from (_row(prompt, answers) for prompt, answers in zip(prompts, found, strict=True) if answers)


def _row(prompt: Prompt, answers: Sequence[Scored]) -> TrainingRow:
    responses = (
        RowResponse(response.content, None, response.source, response.index, _known(score.value))
        for response, score in answers
    )
    return TrainingRow(prompt.id, prompt.messages, tuple(responses))


def _known(value: float) -> float | None:
    """A score, or None if it is not a number because the scorer could not judge the answer."""
    return None if math.isnan(value) else value


def _choose(rows: Mapping[str, Iterable[TrainingRow]], names: Sequence[str]) -> Mapping[str, Iterable[TrainingRow]]:
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise InputError(f"unknown rows {unknown[0]!r}; choose from {', '.join(rows)}")
    return {name: rows[name] for name in names or rows}


def _describe(origin: _Origin, format_name: str, dropped: Iterable[Dropped], name: str) -> str:
    left_out = "".join(f"\n- {count}: {reason}" for reason, count in count_reasons(dropped).items())
    return (
        f"{origin.description}\n\nFormat `{format_name}`: {FORMATS[format_name].description}.\n\n"
        f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("PATH", "{name}", split="train")\n```'
        + (f"\n\nRows that do not fit the format, listed in `dropped.jsonl`:\n{left_out}" if dropped else "")
    )
