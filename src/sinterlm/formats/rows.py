"""Training rows: Sinter's own files, and the shapes in which other tools write them.

    many responses   prompt, responses [{content, role, source, index, score, group, weight, truncated}]
    WRPO             prompt, chosen_source, chosen_target, rejected [, rejected_source]
    WRPO, authors'   prompt (one message), chosen [source's, target's], rejected [one]
    preference pair  prompt, chosen, rejected [, score_chosen, score_rejected, source]
    SFT              prompt, completion; or messages, of which the last is the answer

All may have ``weight`` and an id (``prompt_id`` or ``id``). Conversations are TRL's: lists of messages, or plain text
for one message. Those under ``chosen`` and the like may begin with the prompt; ``prompt`` itself may then be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from sinterlm.errors import InputError
from sinterlm.formats.lines import Line, read_lines
from sinterlm.formats.write import atomic_write
from sinterlm.records import Message, Prompt, Role, RowResponse, TrainingRow

_SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
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


def write_rows(path: Path, rows: Sequence[TrainingRow]) -> None:
    """Write rows as Parquet in the many-responses shape, from which :func:`read_rows` makes the same rows again."""
    columns = {
        "prompt_id": [row.prompt_id for row in rows],
        "prompt": [[message._asdict() for message in row.messages] for row in rows],
        "responses": [
            [{name: getattr(response, name) for name in RowResponse.__slots__} for response in row.responses]
            for row in rows
        ],
        "weight": [row.weight for row in rows],
    }
    with atomic_write(path) as temporary:
        pq.write_table(pa.table(columns, schema=_SCHEMA), temporary)


def read_rows(path: Path) -> list[TrainingRow]:
    """Read rows in the many-responses shape, as :func:`write_rows` writes them."""
    return [_many_responses(line) for line in read_lines(path)]


def read_training_file(
    path: Path, roles: Sequence[str], check: Callable[[TrainingRow], object] = lambda row: None
) -> list[TrainingRow]:
    """Read training rows in any of the shapes above.

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


def parse_rows(records: Iterable[Mapping[str, Any]]) -> list[TrainingRow]:
    """Make training rows of dictionaries in any of the shapes above, such as those of a ``datasets.Dataset``.

    Raises:
        InputError: A record has another shape; it is named by its number, from 0 as in a Dataset.

    >>> (row,) = parse_rows([{"prompt": "Hot?", "chosen": "Cold.", "rejected": "Warm."}])
    >>> [(response.role, response.content) for response in row.responses]
    [('chosen', 'Cold.'), ('rejected', 'Warm.')]
    """
    rows = []
    for number, record in enumerate(records):
        line = Line(f"row {number}", {key: value for key, value in record.items() if value is not None})
        rows.append(_parse_row(line, "`prompt` and `chosen`, `completion` or `responses`, or `messages`"))
    return rows


def _parse_row(line: Line, expected: str) -> TrainingRow:
    shape = next((key for key in _SHAPES if key in line.fields), None)
    if shape is None:
        raise line.error(f"the keys are {', '.join(line.fields)}", expected)
    return _SHAPES[shape](line)


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


def _many_responses(line: Line) -> TrainingRow:
    responses = tuple(_listed_response(item) for item in line.objects("responses"))
    return _row(line, line.prompt("prompt"), responses)


def _listed_response(item: Line) -> RowResponse:
    return RowResponse(
        content=_not_empty(item, "content", item.text("content")),
        role=item.choice("role", get_args(Role)),
        source=item.text("source", default=""),
        index=item.whole_number("index", default=0),
        score=item.optional_number("score"),
        group=item.text("group", default=""),
        weight=item.optional_number("weight"),
        truncated=item.flag("truncated"),
    )


def _wrpo(line: Line) -> TrainingRow:
    roles: tuple[Role, ...] = ("chosen_source", "chosen_target", "rejected", "rejected_source")
    return _conversations(line, {role: _answer_messages(line, role) for role in roles if role in line.fields})


def _pair(line: Line) -> TrainingRow:
    chosen, rejected = _answer_messages(line, "chosen"), _answer_messages(line, "rejected")
    if [message.role for message in chosen] == ["assistant", "assistant"]:  # the WRPO authors' shape
        return _conversations(line, {"chosen_source": chosen[:1], "chosen_target": chosen[1:], "rejected": rejected})
    return _conversations(line, {"chosen": chosen, "rejected": rejected})


def _completion(line: Line) -> TrainingRow:
    return _conversations(line, {"chosen": _answer_messages(line, "completion")})


def _messages(line: Line) -> TrainingRow:
    return _conversations(line, {"chosen": line.messages("messages")})


_SHAPES: Mapping[str, Callable[[Line], TrainingRow]] = {
    "responses": _many_responses,
    "chosen_source": _wrpo,
    "chosen_target": _wrpo,
    "chosen": _pair,
    "rejected": _pair,
    "completion": _completion,
    "messages": _messages,
}
"""The key that gives a shape away, and how a line of that shape is read; the first that is there decides."""


def _answer_messages(line: Line, key: str) -> tuple[Message, ...]:
    return line.messages(key, speaker="assistant")


def _conversations(line: Line, conversations: Mapping[Role, tuple[Message, ...]]) -> TrainingRow:
    """A row of answers, each given as a conversation that ends with it and may begin with the prompt."""
    prompt = line.prompt("prompt") if "prompt" in line.fields else next(iter(conversations.values()))[:-1]
    responses = []
    for role, (*before, answer) in conversations.items():
        if answer.role != "assistant" or (before and tuple(before) != prompt) or not prompt:
            raise line.error(
                f"`{role}` has the roles {', '.join(message.role for message in conversations[role])}",
                "one message of the assistant, alone or after the messages of the prompt",
            )
        responses.append(
            RowResponse(
                content=_not_empty(line, role, answer.content),
                role=role,
                source=line.text("source", default=""),
                score=line.optional_number(f"score_{role}"),
            )
        )
    return _row(line, prompt, tuple(responses))


def _not_empty(line: Line, key: str, content: str) -> str:
    if not content.strip():
        raise line.error(f"`{key}` is an empty response", "an answer: an empty response never reaches a loss")
    return content


def _row(line: Line, prompt: tuple[Message, ...], responses: tuple[RowResponse, ...]) -> TrainingRow:
    weight = line.number("weight", default=1.0)
    if weight < 0:
        raise line.error(f"`weight` is {weight:g}", "a number, at least 0")
    return TrainingRow(
        prompt_id=line.identifier("prompt_id") or line.identifier("id") or Prompt("", prompt).content_hash,
        messages=prompt,
        responses=responses,
        weight=weight,
    )
