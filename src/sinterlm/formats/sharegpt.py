"""LLaMA-Factory's ``sharegpt`` formatting: turns with ``from`` and ``value``.

supervised  conversations, which end with the answer [, system]
ranking     conversations, which end with the user; chosen and rejected, one turn each [, system]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sinterlm.formats.conversations import row_of_conversations, sources_of_pair
from sinterlm.formats.dataset import FILE_NAME
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


def read_sharegpt(line: Line) -> TrainingRow:
    """A conversation to learn from, or one that goes on with a chosen and a rejected answer."""
    return row_of_turns(line, sources_of_pair(line))


def row_of_turns(line: Line, sources: Mapping[Role, str]) -> TrainingRow:
    """As :func:`read_sharegpt`, with answers of ``sources``."""
    before = read_turns(line, "conversations")
    if "system" in line.fields and line.text("system"):
        before = (Message("system", line.text("system")), *before)
    if "chosen" not in line.fields and "rejected" not in line.fields:
        return row_of_conversations(line, {"chosen": before}, sources)
    roles: tuple[Role, ...] = ("chosen", "rejected")
    answers = {role: (*before, *read_turns(line, role)) for role in roles}
    return row_of_conversations(line, answers, sources)


def read_turns(line: Line, key: str) -> tuple[Message, ...]:
    """The conversation under ``key``: a list of turns, or one turn."""
    turns = line.objects(key)
    line.check_beside_messages()
    messages = []
    for number, turn in enumerate(turns):
        speaker = turn.text("from")
        if speaker not in _ROLES:
            raise turn.error(f"`from` is {json.dumps(speaker)}", f"one of {', '.join(_ROLES)}")
        is_said, is_last = _ROLES[speaker] == "assistant", number == len(turns) - 1
        line.check_turn(
            f"{key}[{number}]",
            turn.fields,
            ("from", "value"),
            is_answer=is_said and is_last,
            is_earlier_answer=is_said and not is_last,
        )
        messages.append(Message(_ROLES[speaker], turn.text("value")))
    return tuple(messages)


def dump_turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as turns."""
    return [{"from": _SPEAKERS[message.role], "value": message.content} for message in messages]


def _dump_turn(response: RowResponse) -> dict[str, str]:
    return dump_turns([Message("assistant", response.content)])[0]


def _misfit_of(row: TrainingRow) -> Misfit | None:
    """Why these turns are none of LLaMA-Factory's, where user and assistant alternate after the system prompt."""
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
