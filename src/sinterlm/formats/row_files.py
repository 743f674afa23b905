"""Training rows in files: Sinter's own, and those that other tools write, in any format of ``row_formats.py``.

All rows may have ``weight`` and an id (``prompt_id`` or ``id``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sinterlm.errors import InputError
from sinterlm.files import atomic_write
from sinterlm.formats.lines import Line, count_rows, read_lines
from sinterlm.formats.responses import RESPONSES, dump_row, read_responses
from sinterlm.formats.row_formats import FORMATS, reader_of
from sinterlm.records import TrainingRow
from sinterlm.streams import Reread, chunks

_ANY_KEYS = "`prompt` and `chosen`, `completion` or `responses`, or `messages`"


ROW_GROUP = 1_000
"""Rows that are in memory while they are written."""


def write_rows(path: Path, rows: Iterable[TrainingRow]) -> None:
    """Write rows as Parquet in the many-responses shape, from which :func:`read_rows` makes the same rows again.

    The rows are read once, as a stream. If reading them raises an error, a file that was there stays.
    """
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, RESPONSES.schema, write_page_checksum=True) as writer,
    ):
        for group in chunks(rows, ROW_GROUP):
            writer.write_table(pa.Table.from_pylist(list(map(dump_row, group)), schema=RESPONSES.schema))


def read_rows(path: Path) -> list[TrainingRow]:
    """Read rows in the many-responses shape, as :func:`write_rows` writes them."""
    return list(reread_rows(path))


def reread_rows(path: Path) -> Collection[TrainingRow]:
    """Like :func:`read_rows`, but for rows that may not fit in memory: they are read anew each time."""
    return Reread(lambda: map(read_responses, read_lines(path)), count_rows(path))


def read_row_ids(path: Path) -> set[str]:
    """The prompt ids of the rows that :func:`write_rows` has written."""
    return set(pq.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist())


def read_training_file(
    path: Path, roles: Sequence[str], check: Callable[[TrainingRow], object] = lambda row: None
) -> list[TrainingRow]:
    """Read training rows in any format.

    Args:
        path: JSON Lines or Parquet.
        roles: The responses that the objective needs in every row, e.g. ``("chosen", "rejected")``.
        check: Raises ValueError for a row that the objective cannot read for another reason.

    Raises:
        InputError: A line has another shape, lacks a response that the objective needs, or holds an empty one.
    """
    rows = []
    for line in read_lines(path):
        row = _parse_row(line, _keys_for(roles))
        _check_fit(line, row, roles, check)
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: there is no row in it; expected lines with {_keys_for(roles)}")
    return rows


def read_rows_of_others(path: Path) -> list[tuple[TrainingRow, str]]:
    """Read training rows in any format, each with the domain of its prompt ("" if the file names none).

    Raises:
        InputError: A line has another shape, or there is none at all.
    """
    rows = [(_parse_row(line, _ANY_KEYS), _domain(line)) for line in read_lines(path)]
    if not rows:
        raise InputError(f"{path}: there is no row in it; expected lines with {_ANY_KEYS}")
    return rows


def _domain(line: Line) -> str:
    """The text under one of the formats' keys for it; a value of another type means something else."""
    values = (line.fields.get(format_.domain_key) for format_ in FORMATS.values())
    return next((value for value in values if isinstance(value, str)), "")


def parse_rows(records: Iterable[Mapping[str, Any]]) -> list[TrainingRow]:
    """Make training rows of dictionaries in any format, such as those of a ``datasets.Dataset``.

    Raises:
        InputError: A record has another shape; it is named by its number, from 0 as in a Dataset.

    >>> (row,) = parse_rows([{"prompt": "Hot?", "chosen": "Cold.", "rejected": "Warm."}])
    >>> [(response.role, response.content) for response in row.responses]
    [('chosen', 'Cold.'), ('rejected', 'Warm.')]
    """
    rows = []
    for number, record in enumerate(records):
        line = Line(f"row {number}", {key: value for key, value in record.items() if value is not None})
        rows.append(_parse_row(line, _ANY_KEYS))
    return rows


def _parse_row(line: Line, expected: str) -> TrainingRow:
    read = reader_of(line.fields)
    if read is None:
        raise line.error(f"the keys are {', '.join(line.fields)}", expected)
    return read(line)


def _check_fit(line: Line, row: TrainingRow, roles: Sequence[str], check: Callable[[TrainingRow], object]) -> None:
    there = {response.role or "chosen" for response in row.responses}
    missing = [role for role in roles if role not in there]
    if missing:
        found = ", ".join(line.fields)
        raise line.error(f"there is no {missing[0]} response (the keys are {found})", _keys_for(roles))
    try:
        check(row)
    except ValueError as error:
        raise InputError(f"{line.place}: {error}") from error


def _keys_for(roles: Sequence[str]) -> str:
    """What a line must have for an objective that needs ``roles``."""
    if not roles:
        return "`prompt` and `responses`"
    many = f"`prompt` and `responses` with the roles {', '.join(roles)}"
    if tuple(roles) == ("chosen",):
        return f"`prompt` and `completion`, or `messages`, or {many}"
    return f"`prompt` and {', '.join(f'`{role}`' for role in roles)}, or {many}"
