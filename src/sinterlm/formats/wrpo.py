"""WRPO's quadruples.

    Sinter's shape  prompt, chosen_source, chosen_target, rejected [, rejected_source]
    the authors'    prompt (one message), chosen [the source's answer, the target's], rejected [the target's]

``source`` names the model that gave the source's answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sinterlm.formats.conversations import MESSAGES, ConversationsRow, dump_answer, row_of_conversations
from sinterlm.formats.fields import Number, Reply
from sinterlm.formats.lines import Line
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.records import Message, Role, TrainingRow

_ROLES: tuple[Role, ...] = ("chosen_source", "chosen_target", "rejected", "rejected_source")


class _Answers(ConversationsRow):
    rejected: Reply | None = None
    rejected_source: Reply | None = None
    score_chosen_source: Number | None = None
    score_chosen_target: Number | None = None
    score_rejected: Number | None = None
    score_rejected_source: Number | None = None


class _Quadruple(_Answers):
    chosen_source: Reply | None = None
    chosen_target: Reply | None = None


class _AuthorsRow(_Answers):
    chosen: Reply
    rejected: Reply


def read_quadruple(line: Line) -> TrainingRow:
    """A quadruple with a key for every role."""
    record = line.parse(_Quadruple)
    return _row(line, record, {role: getattr(record, role) for role in _ROLES})


def is_authors_row(line: Line) -> bool:
    """Whether the ``chosen`` of a line is the authors': two answers, and no conversation."""
    chosen = line.fields.get("chosen")
    roles = [isinstance(turn, Mapping) and turn.get("role") for turn in chosen] if isinstance(chosen, list) else []
    return roles == ["assistant", "assistant"]


def read_authors_row(line: Line) -> TrainingRow:
    """A quadruple in the authors' shape."""
    record = line.parse(_AuthorsRow)
    answers = (record.chosen[:1], record.chosen[1:], record.rejected, record.rejected_source)
    return _row(line, record, dict(zip(_ROLES, answers, strict=True)))


def _row(line: Line, record: _Answers, conversations: Mapping[Role, tuple[Message, ...] | None]) -> TrainingRow:
    given = {role: conversation for role, conversation in conversations.items() if conversation is not None}
    return row_of_conversations(line, record, given, {"chosen_source": record.source, "rejected_source": record.source})


def _authors_records(row: TrainingRow) -> list[dict[str, Any]] | Misfit:
    by_role = {response.role: response for response in row.responses}
    missing = [role for role in _ROLES[:3] if role not in by_role]
    if missing:
        return Misfit("no-quadruple", f"there is no {missing[0]} response")
    if len(row.messages) > 1:
        return Misfit(
            "prompt-of-several-messages", f"{len(row.messages)}; a row of this format holds one message of the user"
        )
    rejected_source = by_role.get("rejected_source")
    return [
        {
            "prompt_id": row.prompt_id,
            "prompt": row.messages[0]._asdict(),
            "chosen": [*dump_answer(by_role["chosen_source"]), *dump_answer(by_role["chosen_target"])],
            "rejected": dump_answer(by_role["rejected"]),
            "rejected_source": rejected_source and dump_answer(rejected_source),
            "weight": row.weight,
            "source": by_role["chosen_source"].source,
            **{f"score_{role}": response.score for role, response in by_role.items()},
        }
    ]


AUTHORS_ROW = Shape(
    pa.schema(
        {
            "prompt_id": pa.string(),
            "prompt": MESSAGES.value_type,
            "chosen": MESSAGES,
            "rejected": MESSAGES,
            "rejected_source": MESSAGES,
            "weight": pa.float64(),
            "source": pa.string(),
            **{f"score_{role}": pa.float64() for role in _ROLES},
        }
    ),
    _authors_records,
)
