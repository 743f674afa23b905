"""Sinter's own shape: a prompt and all its responses, with nothing left out.

prompt, responses [{content, role, source, index, score, group, weight, truncated}]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

import pyarrow as pa
from pydantic import BeforeValidator, Field

from sinterlm.explain import Expects
from sinterlm.formats.conversations import MESSAGES, Row, build_row, dump_messages, not_empty
from sinterlm.formats.fields import Number, Question, Record, Whole, as_list, present, with_reasoning
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


class _Response(Record):
    content: str
    role: Annotated[Role | None, Expects(f"{', '.join(get_args(Role))}, or none")] = None
    source: str = ""
    index: Whole = 0
    score: Number | None = None
    group: str = ""
    weight: Number | None = None
    truncated: bool = False


def _read_response(response: object) -> object:
    return with_reasoning(present(response)) if isinstance(response, Mapping) else response


class _Responses(Row):
    prompt: Question
    responses: Annotated[
        list[Annotated[_Response, BeforeValidator(_read_response), Expects("an object with `content`")]],
        Field(min_length=1),
        BeforeValidator(as_list),
        Expects("a list of objects"),
    ]


def read_responses(line: Line) -> TrainingRow:
    """A row of many responses."""
    record = line.parse(_Responses)
    responses = tuple(RowResponse(**dict(response)) for response in record.responses)
    for place, response in enumerate(responses):
        not_empty(line, f"responses[{place}].content", response.content)
    return build_row(line, record, record.prompt, responses)


def dump_row(row: TrainingRow) -> dict[str, Any]:
    """The one record of a row, from which :func:`read_responses` makes the same row again."""
    responses = [{name: getattr(response, name) for name in RowResponse.__slots__} for response in row.responses]
    prompt = dump_messages(row.messages)
    return {"prompt_id": row.prompt_id, "prompt": prompt, "responses": responses, "weight": row.weight}


RESPONSES = Shape(_SCHEMA, lambda row: [dump_row(row)])
