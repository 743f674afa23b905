"""What a format is made of: shapes of records, read into training rows and written from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from sinterlm.formats.lines import Line
from sinterlm.records import TrainingRow

Read = Callable[[Line], TrainingRow]
"""Makes a row of one line; raises InputError for a line of another shape."""


class Misfit(NamedTuple):
    """Why a row cannot be written in a shape."""

    reason: str
    """As in :class:`~sinterlm.records.Dropped`."""
    detail: str = ""


class Shape(NamedTuple):
    """How rows are written: the columns, and the records that one row becomes."""

    schema: pa.Schema
    records: Callable[[TrainingRow], Sequence[Mapping[str, Any]] | Misfit]
