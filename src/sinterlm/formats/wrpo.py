"""WRPO's quadruples.

    Sinter's shape  prompt, chosen_source, chosen_target, rejected [, rejected_source]
    the authors'    prompt (one message), chosen [the source's answer, the target's], rejected [the target's]

``source`` names the model that gave the source's answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sinterlm.formats.conversations import MESSAGES, answer_messages, dump_answer, row_of_conversations
from sinterlm.formats.lines import Line
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.records import Message, Role, TrainingRow

_ROLES: tuple[Role, ...] = ("chosen_source", "chosen_target", "rejected", "rejected_source")


def read_quadruple(line: Line) -> TrainingRow:
    """A quadruple with a key for every role."""
    return _row(line, {role: answer_messages(line, role) for role in _ROLES if role in line.fields})


def is_authors_row(chosen: Sequence[Message]) -> bool:
    """Whether the ``chosen`` of a line is the authors': two answers, and no conversation."""
    return [message.role for message in chosen] == ["assistant", "assistant"]


def read_authors_row(line: Line, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> TrainingRow:
    """A quadruple in the authors' shape."""
    conversations: dict[Role, tuple[Message, ...]] = {
        "chosen_source": chosen[:1],
        "chosen_target": chosen[1:],
        "rejected": rejected,
    }
    if "rejected_source" in line.fields:
        conversations["rejected_source"] = answer_messages(line, "rejected_source")
    return _row(line, conversations)


def _row(line: Line, conversations: dict[Role, tuple[Message, ...]]) -> TrainingRow:
    source = line.text("source", default="")
    return row_of_conversations(line, conversations, {"chosen_source": source, "rejected_source": source})


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
