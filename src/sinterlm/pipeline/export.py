"""Exports the rows of a run or a file as a data set in another tool's format."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from sinterlm.errors import InputError, ToleranceError
from sinterlm.formats import read_rows, read_rows_of_others
from sinterlm.formats.dataset import FILE_NAME, Card, Records, write_dataset
from sinterlm.formats.row_formats import FORMATS, Format
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.models import plain_name
from sinterlm.pipeline.fusion import Fusion, load_fusion
from sinterlm.pipeline.outputs import require_undamaged
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.score import scored_answers
from sinterlm.pipeline.stage import RunContext, count_reasons
from sinterlm.records import Dropped, Prompt, RowResponse, Scored, TrainingRow
from sinterlm.store import Store

STAGE = "export"


class Exported(NamedTuple):
    """What an export wrote."""

    folder: Path
    counts: Mapping[str, int]
    """Records by configuration."""
    dropped: Sequence[Dropped]

    def to_json(self) -> dict[str, Any]:
        """The figures, for ``--json``."""
        return {"folder": str(self.folder), "counts": dict(self.counts), "dropped": count_reasons(self.dropped)}


class _Origin(NamedTuple):
    """What is exported."""

    rows: Mapping[str, Sequence[TrainingRow]]
    """By configuration."""
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
    if path.is_file():
        origin = _of_file(path)
        folder = output or path.with_name(f"{path.stem}-{format_name}")
    else:
        fusion = load_fusion(path)
        origin = _of_run(fusion, format_)
        folder = output or fusion.output / STAGE / format_name
    if not origin.rows:
        raise InputError(f"{path}: no rows yet; make them with `sinterlm run RECIPE --until select-...`")
    rows = _choose(origin.rows, names)
    shapes = {name: shape for name, group in rows.items() if (shape := format_.shape_of(group))}
    dropped: list[Dropped] = []
    records = {name: list(_records(group, shapes.get(name), name, dropped)) for name, group in rows.items()}
    if not any(records.values()):
        reasons = "; ".join(f"{reason}: {count}" for reason, count in count_reasons(dropped).items())
        raise ToleranceError(
            f"{path}: none of its {sum(map(len, rows.values()))} rows fits the format {format_name} "
            f"({reasons or 'no rows yet'}); `sinterlm list formats` shows what each holds"
        )
    configurations = {
        name: Records(
            shapes[name].schema.append(pa.field(format_.domain_key, pa.string())),
            [record | {format_.domain_key: origin.domains.get(record["prompt_id"], "")} for record in group],
        )
        for name, group in records.items()
        if group
    }
    files = dict(format_.files({name: shapes[name] for name in configurations}) if format_.files else {})
    if dropped:
        files["dropped.jsonl"] = "".join(json.dumps(asdict(drop), ensure_ascii=False) + "\n" for drop in dropped)
    card = Card(origin.title, _describe(origin, format_name, dropped, next(iter(configurations))), [format_name])
    return Exported(folder, write_dataset(folder, configurations, card, files), dropped)


def _of_file(path: Path) -> _Origin:
    read = read_rows_of_others(path)
    name = path.parent.name if path.name == FILE_NAME else path.stem  # an export's files all have one name
    domains = {row.prompt_id: domain for row, domain in read}
    return _Origin({name: [row for row, _ in read]}, domains, name, f"Training rows from `{path.name}`.")


def _of_run(fusion: Fusion, format_: Format) -> _Origin:
    with closing(Store(fusion.store_path, read_only=True)) as store:
        run = RunContext(fusion, store, SilentReporter())
        require_undamaged(run)
        prompts = [prompt for part in ("sft", "preference") for prompt in store.prompts(fusion.run_name, part)]
        rows = dict(_answers(run) if format_.is_of_answers else _selected(fusion))
    models = "\n".join(f"- source `{source.name}`: {source.config.provenance()}" for source in fusion.sources)
    target = plain_name(fusion.recipe.target.model)
    description = (
        f"Training rows made by fusing several models' answers.\n\n- target: {target}\n{models}\n"
        f"- scorer: {fusion.recipe.scorer.title}\n\nThe licences of these models and of the prompts apply."
    )
    return _Origin(rows, {prompt.id: prompt.domain for prompt in prompts}, fusion.output.name, description)


def _selected(fusion: Fusion) -> Iterator[tuple[str, Sequence[TrainingRow]]]:
    for name in fusion.trainings:
        if fusion.rows_path(name).is_file():
            yield name, read_rows(fusion.rows_path(name))


def _answers(run: RunContext) -> Iterator[tuple[str, Sequence[TrainingRow]]]:
    """Yield all scored training answers, one configuration per model."""
    training = (run.fusion.rounds[name] for name in ("sources", "target") if name in run.fusion.rounds)
    for questions in training:
        prompts = run.prompts(*questions.parts)
        for request in questions.requests:
            if request.participant.is_there:
                scored = scored_answers(run, questions.scorer, request, prompts)
                yield (
                    request.participant.name,
                    [_row(prompt, scored[prompt.id]) for prompt in prompts if prompt.id in scored],
                )


def _row(prompt: Prompt, answers: Sequence[Scored]) -> TrainingRow:
    responses = (
        RowResponse(response.content, None, response.source, response.index, _known(score.value))
        for response, score in answers
    )
    return TrainingRow(prompt.id, prompt.messages, tuple(responses))


def _known(value: float) -> float | None:
    """A score, or None if it is not a number because the scorer could not judge the answer."""
    return None if math.isnan(value) else value


def _choose(rows: Mapping[str, Sequence[TrainingRow]], names: Sequence[str]) -> Mapping[str, Sequence[TrainingRow]]:
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise InputError(f"unknown rows {unknown[0]!r}; choose from {', '.join(rows)}")
    return {name: rows[name] for name in names or rows}


def _records(
    rows: Sequence[TrainingRow], shape: Shape | None, name: str, dropped: list[Dropped]
) -> Iterator[dict[str, Any]]:
    """Yield the records of ``rows``; rows that do not fit go to ``dropped``."""
    for row in rows:
        records = shape.records(row) if shape else Misfit("no-such-rows-in-this-format")
        if isinstance(records, Misfit):
            dropped.append(Dropped(row.prompt_id, f"{STAGE}-{name}", records.reason, records.detail))
        else:
            yield from map(dict, records)


def _describe(origin: _Origin, format_name: str, dropped: Sequence[Dropped], name: str) -> str:
    left_out = "".join(f"\n- {count}: {reason}" for reason, count in count_reasons(dropped).items())
    return (
        f"{origin.description}\n\nFormat `{format_name}`: {FORMATS[format_name].description}.\n\n"
        f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("PATH", "{name}", split="train")\n```'
        + (f"\n\nRows that do not fit the format, listed in `dropped.jsonl`:\n{left_out}" if dropped else "")
    )
