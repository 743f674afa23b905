"""Prompts, rows and recorded answers in and out (JSON Lines, Parquet)."""

from sinterlm.formats.prompts import read_prompts
from sinterlm.formats.recorded import RecordedAnswer, read_recorded
from sinterlm.formats.row_files import (
    parse_rows,
    read_row_ids,
    read_rows,
    read_rows_of_others,
    read_training_file,
    write_rows,
)
from sinterlm.formats.scores import RecordedScore, read_scores

__all__ = [
    "RecordedAnswer",
    "RecordedScore",
    "parse_rows",
    "read_prompts",
    "read_recorded",
    "read_row_ids",
    "read_rows",
    "read_rows_of_others",
    "read_scores",
    "read_training_file",
    "write_rows",
]
