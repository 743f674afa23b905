"""LLaMA-Factory's ``sharegpt`` formatting: turns with ``from`` and ``value``.

supervised  conversations, which end with the answer [, system]
ranking     conversations, which end with the user; chosen and rejected, one turn each [, system]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from sinterlm.explain import Expects
from sinterlm.formats.conversations import PairRow, row_of_conversations
from sinterlm.formats.dataset import FILE_NAME
from sinterlm.formats.fields import (
    Record,
    TurnWeight,
    as_list,
    check_beside_messages,
    check_weights,
    drop_unread,
)
from sinterlm.formats.lines import Line
from sinterlm.formats.pairs import (
    ANSWER_COLUMNS,
    PAIR_COLUMNS,
    Answer,
    PreferencePair,
    answer_columns,
    chosen_of,
    each,
    pair_columns,
    pairs_of,
)
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.records import Message, Role, RowResponse, TrainingRow

_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
_ROLES = {speaker: role for role, speaker in _SPEAKERS.items()} | {role: role for role in _SPEAKERS}
_TURN = pa.struct({"from": pa.string(), "value": pa.string()})
TURNS = pa.list_(_TURN)
"""A conversation in Parquet, as LLaMA-Factory has it."""


class _Speech(Record):
    """One turn of a conversation."""

    speaker: Annotated[
        Literal["human", "gpt", "system", "user", "assistant"], Expects(f"one of {', '.join(_ROLES)}")
    ] = Field(validation_alias="from")
    value: str
    weight: TurnWeight = None


def _check_speech(turn: object) -> object:
    return drop_unread(turn, ("from", "value")) if isinstance(turn, Mapping) and len(turn) > 2 else turn


def _read_turns(value: object, info: ValidationInfo) -> object:
    check_beside_messages(info)
    return as_list(value)


def _as_messages(turns: Sequence[_Speech]) -> tuple[Message, ...]:
    check_weights([(_ROLES[turn.speaker] == "assistant", turn.weight) for turn in turns])
    return tuple(Message(_ROLES[turn.speaker], turn.value) for turn in turns)


if TYPE_CHECKING:
    _Speeches = tuple[Message, ...]
else:
    _Speeches = Annotated[
        list[Annotated[_Speech, BeforeValidator(_check_speech), Expects("a turn with `from` and `value`")]],
        Field(min_length=1),
        BeforeValidator(_read_turns),
        AfterValidator(_as_messages),
        Expects("a list of objects"),
    ]


class _Supervised(PairRow):
    conversations: _Speeches
    system: str = ""


class _Ranking(_Supervised):
    chosen: _Speeches
    rejected: _Speeches


def read_sharegpt(line: Line) -> TrainingRow:
    """A conversation to learn from, or one that continues with a chosen and a rejected answer."""
    return row_of_turns(line)


def row_of_turns(line: Line, sources: Mapping[Role, str] | None = None) -> TrainingRow:
    """As :func:`read_sharegpt`, with answers of ``sources`` if they are given."""
    record = line.parse(_Ranking if {"chosen", "rejected"} & line.fields.keys() else _Supervised)
    before = record.conversations
    if record.system:
        before = (Message("system", record.system), *before)
    answers: dict[Role, tuple[Message, ...]] = {"chosen": before}
    if isinstance(record, _Ranking):
        answers = {"chosen": (*before, *record.chosen), "rejected": (*before, *record.rejected)}
    return row_of_conversations(line, record, answers, sources or record.sources)


def dump_turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as turns."""
    return [{"from": _SPEAKERS[message.role], "value": message.content} for message in messages]


def _dump_turn(response: RowResponse) -> dict[str, str]:
    return dump_turns([Message("assistant", response.content)])[0]


def _misfit_of(row: TrainingRow) -> Misfit | None:
    """Why LLaMA-Factory cannot read these turns: after the system prompt, user and assistant must alternate."""
    roles = [message.role for message in row.messages]
    turns = roles[roles[0] == "system" :]
    alternate = all(role == ("user", "assistant")[number % 2] for number, role in enumerate(turns))
    return None if alternate else Misfit("turns-do-not-alternate", f"roles {', '.join(roles)}")


def _answers(row: TrainingRow) -> Sequence[Answer] | Misfit:
    return _misfit_of(row) or chosen_of(row)


def _pairs(row: TrainingRow) -> Sequence[PreferencePair] | Misfit:
    return _misfit_of(row) or pairs_of(row)


def _split_system(row: TrainingRow) -> tuple[str, Sequence[Message]]:
    """The system prompt ("" for none) and the turns after it."""
    first = row.messages[0]
    return (first.content, row.messages[1:]) if first.role == "system" else ("", row.messages)


def _supervised_record(row: TrainingRow, answer: Answer) -> dict[str, Any]:
    system, turns = _split_system(row)
    return {
        "prompt_id": row.prompt_id,
        "conversations": [*dump_turns(turns), _dump_turn(answer.response)],
        "system": system,
        **answer_columns(answer),
    }


def _ranking_record(row: TrainingRow, pair: PreferencePair) -> dict[str, Any]:
    system, turns = _split_system(row)
    return {
        "prompt_id": row.prompt_id,
        "conversations": dump_turns(turns),
        "chosen": _dump_turn(pair.chosen),
        "rejected": _dump_turn(pair.rejected),
        "system": system,
        **pair_columns(pair),
    }


_COLUMNS = {"prompt_id": pa.string(), "conversations": TURNS}
SUPERVISED = Shape(pa.schema({**_COLUMNS, "system": pa.string(), **ANSWER_COLUMNS}), each(_answers, _supervised_record))
RANKING = Shape(
    pa.schema({**_COLUMNS, "chosen": _TURN, "rejected": _TURN, "system": pa.string(), **PAIR_COLUMNS}),
    each(_pairs, _ranking_record),
)


def list_datasets(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """The ``dataset_info.json`` by which LLaMA-Factory finds the configurations of a data set, by their names."""
    columns = {"messages": "conversations", "system": "system"}
    entries: dict[str, Any] = {}
    for name, shape in shapes.items():
        entries[name] = {"file_name": f"{name}/{FILE_NAME}", "formatting": "sharegpt", "columns": columns}
        if shape is RANKING:
            entries[name] |= {"ranking": True, "columns": columns | {"chosen": "chosen", "rejected": "rejected"}}
    return {"dataset_info.json": json.dumps(entries, indent=2)}
