"""LLaMA-Factory's ``sharegpt`` formatting: turns with ``from`` and ``value``.

supervised  conversations, which end with the answer [, system]
ranking     conversations, which end with the user; chosen and rejected, one turn each [, system]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sinterlm.formats.conversations import row_of_conversations
from sinterlm.formats.dataset import FILE_NAME
from sinterlm.formats.lines import Line
from sinterlm.formats.pairs import chosen_of, pairs_of
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.records import Message, Role, RowResponse, TrainingRow

_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
_ROLES = {speaker: role for role, speaker in _SPEAKERS.items()} | {role: role for role in _SPEAKERS}
_TURN = pa.struct({"from": pa.string(), "value": pa.string()})
TURNS = pa.list_(_TURN)
"""A conversation in Parquet, as LLaMA-Factory has it."""


def read_sharegpt(line: Line) -> TrainingRow:
    """A conversation to learn from, or one that goes on with a chosen and a rejected answer."""
    return row_of_turns(line, source=line.text("source", default=""))


def row_of_turns(line: Line, *, source: str) -> TrainingRow:
    """As :func:`read_sharegpt`, with answers of ``source``."""
    before = read_turns(line, "conversations")
    if "system" in line.fields and line.text("system"):
        before = (Message("system", line.text("system")), *before)
    if "chosen" not in line.fields and "rejected" not in line.fields:
        return row_of_conversations(line, {"chosen": before}, {"chosen": source})
    roles: tuple[Role, ...] = ("chosen", "rejected")
    answers = {role: (*before, *read_turns(line, role)) for role in roles}
    return row_of_conversations(line, answers, dict.fromkeys(roles, source))


def read_turns(line: Line, key: str) -> tuple[Message, ...]:
    """The conversation under ``key``: a list of turns, or one turn."""
    turns = line.objects(key)
    messages = []
    for turn in turns:
        speaker = turn.text("from")
        if speaker not in _ROLES:
            raise turn.error(f"`from` is {json.dumps(speaker)}", f"one of {', '.join(_ROLES)}")
        messages.append(Message(_ROLES[speaker], turn.text("value")))
    return tuple(messages)


def dump_turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as turns."""
    return [{"from": _SPEAKERS[message.role], "value": message.content} for message in messages]


def _dump_turn(response: RowResponse) -> dict[str, str]:
    return dump_turns([Message("assistant", response.content)])[0]


def split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]] | Misfit:
    """The system prompt ("" for none) and the turns after it, in which user and assistant alternate."""
    has_system = messages[0].role == "system"
    turns = messages[has_system:]
    if any(turn.role != ("user", "assistant")[number % 2] for number, turn in enumerate(turns)):
        return Misfit("turns-do-not-alternate", f"roles {', '.join(message.role for message in messages)}")
    return messages[0].content if has_system else "", turns


def _supervised_records(row: TrainingRow) -> list[dict[str, Any]] | Misfit:
    answers, prompt = chosen_of(row), split_system(row.messages)
    if isinstance(answers, Misfit):
        return answers
    if isinstance(prompt, Misfit):
        return prompt
    system, turns = prompt
    return [
        {
            "prompt_id": row.prompt_id,
            "conversations": [*dump_turns(turns), _dump_turn(answer.response)],
            "system": system,
            "weight": answer.weight,
            "source": answer.response.source,
        }
        for answer in answers
    ]


def _ranking_records(row: TrainingRow) -> list[dict[str, Any]] | Misfit:
    pairs, prompt = pairs_of(row), split_system(row.messages)
    if isinstance(pairs, Misfit):
        return pairs
    if isinstance(prompt, Misfit):
        return prompt
    system, turns = prompt
    return [
        {
            "prompt_id": row.prompt_id,
            "conversations": dump_turns(turns),
            "chosen": _dump_turn(pair.chosen),
            "rejected": _dump_turn(pair.rejected),
            "system": system,
            "weight": pair.weight,
            "source": pair.chosen.source,
            "score_chosen": pair.chosen.score,
            "score_rejected": pair.rejected.score,
        }
        for pair in pairs
    ]


_EXTRA = {"system": pa.string(), "weight": pa.float64(), "source": pa.string()}
SUPERVISED = Shape(pa.schema({"prompt_id": pa.string(), "conversations": TURNS, **_EXTRA}), _supervised_records)
RANKING = Shape(
    pa.schema(
        {
            "prompt_id": pa.string(),
            "conversations": TURNS,
            "chosen": _TURN,
            "rejected": _TURN,
            **_EXTRA,
            "score_chosen": pa.float64(),
            "score_rejected": pa.float64(),
        }
    ),
    _ranking_records,
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
