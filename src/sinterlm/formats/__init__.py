"""Prompts, rows and recorded answers in and out (JSON Lines, Parquet)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sinterlm.formats.prompts import read_prompts
    from sinterlm.formats.recorded import RecordedAnswer, RecordedAnswers, index_recorded, read_recorded
    from sinterlm.formats.row_files import (
        parse_rows,
        read_row_ids,
        read_rows,
        read_rows_of_others,
        read_training_file,
        reread_rows,
        write_rows,
    )
    from sinterlm.formats.scores import RecordedScore, read_scores

__all__ = [
    "RecordedAnswer",
    "RecordedAnswers",
    "RecordedScore",
    "index_recorded",
    "parse_rows",
    "read_prompts",
    "read_recorded",
    "read_row_ids",
    "read_rows",
    "read_rows_of_others",
    "read_scores",
    "read_training_file",
    "reread_rows",
    "write_rows",
]

_MODULES = {
    "prompts": ("read_prompts",),
    "recorded": ("RecordedAnswer", "RecordedAnswers", "index_recorded", "read_recorded"),
    "row_files": (
        "parse_rows",
        "read_row_ids",
        "read_rows",
        "read_rows_of_others",
        "read_training_file",
        "reread_rows",
        "write_rows",
    ),
    "scores": ("RecordedScore", "read_scores"),
}


def __getattr__(name: str) -> object:
    """Load lazily: reading a recipe needs no pyarrow."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
