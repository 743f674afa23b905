"""Sinter's own shape: a prompt and all its responses, with nothing left out.

prompt, responses [{content, role, source, index, score, group, weight, truncated}]
"""

from __future__ import annotations

from typing import Any, get_args

import pyarrow as pa

from sinterlm.formats.conversations import MESSAGES, build_row, dump_messages, not_empty
from sinterlm.formats.lines import Line
from sinterlm.formats.shape import Shape
from sinterlm.records import Role, RowResponse, TrainingRow

_SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt": MESSAGES,
        "responses": pa.list_(
            pa.struct(
                {
                    "content": pa.string(),
                    "role": pa.string(),
                    "source": pa.string(),
                    "index": pa.int64(),
                    "score": pa.float64(),
                    "group": pa.string(),
                    "weight": pa.float64(),
                    "truncated": pa.bool_(),
                }
            )
        ),
        "weight": pa.float64(),
    }
)


def read_responses(line: Line) -> TrainingRow:
    """A row of many responses."""
    responses = tuple(_read_response(item) for item in line.objects("responses"))
    return build_row(line, line.prompt("prompt"), responses)


def _read_response(item: Line) -> RowResponse:
    return RowResponse(
        content=not_empty(item, "content", item.with_reasoning(item.text("content"))),
        role=item.choice("role", get_args(Role)),
        source=item.text("source", default=""),
        index=item.whole_number("index", default=0),
        score=item.optional_number("score"),
        group=item.text("group", default=""),
        weight=item.optional_number("weight"),
        truncated=item.flag("truncated"),
    )


def dump_row(row: TrainingRow) -> dict[str, Any]:
    """The one record of a row, from which :func:`read_responses` makes the same row again."""
    responses = [{name: getattr(response, name) for name in RowResponse.__slots__} for response in row.responses]
    prompt = dump_messages(row.messages)
    return {"prompt_id": row.prompt_id, "prompt": prompt, "responses": responses, "weight": row.weight}


RESPONSES = Shape(_SCHEMA, lambda row: [dump_row(row)])
