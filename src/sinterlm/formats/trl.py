"""The shapes of TRL's trainers, conversational: lists of messages.

    preference           prompt, chosen, rejected [, weight, source, score_chosen, score_rejected]
    prompt-completion    prompt, completion [, weight, source]
    language modelling   messages
    unpaired preference  prompt, completion, label

Those under ``chosen`` and the like may be plain text, or begin with the prompt; ``prompt`` itself may then be missing.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from sinterlm.formats.conversations import (
    MESSAGES,
    answer_messages,
    dump_answer,
    dump_messages,
    row_of_conversations,
)
from sinterlm.formats.lines import Line
from sinterlm.formats.pairs import answers_of, chosen_of, pairs_of
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.formats.wrpo import is_authors_row, read_authors_row
from sinterlm.records import Message, Role, TrainingRow

_EXTRA = {"weight": pa.float64(), "source": pa.string()}


def read_pair(line: Line) -> TrainingRow:
    """A preference pair, or the WRPO authors' row, whose ``chosen`` holds two answers."""
    chosen, rejected = answer_messages(line, "chosen"), answer_messages(line, "rejected")
    if is_authors_row(chosen):
        return read_authors_row(line, chosen, rejected)
    source = line.text("source", default="")
    return row_of_conversations(line, {"chosen": chosen, "rejected": rejected}, {"chosen": source, "rejected": source})


def read_completion(line: Line) -> TrainingRow:
    """A prompt and the answer to learn."""
    return _single(line, "chosen", answer_messages(line, "completion"))


def read_unpaired(line: Line) -> TrainingRow:
    """A prompt and an answer that is chosen or rejected by itself."""
    return _single(line, "chosen" if line.flag("label") else "rejected", answer_messages(line, "completion"))


def read_messages(line: Line) -> TrainingRow:
    """A conversation, of which the last message is the answer to learn."""
    return _single(line, "chosen", line.messages("messages"))


def _single(line: Line, role: Role, conversation: tuple[Message, ...]) -> TrainingRow:
    return row_of_conversations(line, {role: conversation}, {role: line.text("source", default="")})


def _preference_records(row: TrainingRow) -> list[dict[str, Any]] | Misfit:
    pairs = pairs_of(row)
    if isinstance(pairs, Misfit):
        return pairs
    return [
        {
            "prompt_id": row.prompt_id,
            "prompt": dump_messages(row.messages),
            "chosen": dump_answer(pair.chosen),
            "rejected": dump_answer(pair.rejected),
            "weight": pair.weight,
            "source": pair.chosen.source,
            "score_chosen": pair.chosen.score,
            "score_rejected": pair.rejected.score,
        }
        for pair in pairs
    ]


def _completion_records(row: TrainingRow) -> list[dict[str, Any]] | Misfit:
    answers = chosen_of(row)
    if isinstance(answers, Misfit):
        return answers
    return [
        {
            "prompt_id": row.prompt_id,
            "prompt": dump_messages(row.messages),
            "completion": dump_answer(answer.response),
            "weight": answer.weight,
            "source": answer.response.source,
            "score_chosen": answer.response.score,
        }
        for answer in answers
    ]


def _messages_records(row: TrainingRow) -> list[dict[str, Any]] | Misfit:
    answers = chosen_of(row)
    if isinstance(answers, Misfit):
        return answers
    return [
        {
            "prompt_id": row.prompt_id,
            "messages": [*dump_messages(row.messages), *dump_answer(answer.response)],
            "weight": answer.weight,
            "source": answer.response.source,
        }
        for answer in answers
    ]


def _unpaired_records(row: TrainingRow) -> list[dict[str, Any]] | Misfit:
    answers = answers_of(row)
    if isinstance(answers, Misfit):
        return answers
    return [
        {
            "prompt_id": row.prompt_id,
            "prompt": dump_messages(row.messages),
            "completion": dump_answer(answer.response),
            "label": answer.is_chosen,
            "weight": answer.weight,
            "source": answer.response.source,
        }
        for answer in answers
    ]


PREFERENCE = Shape(
    pa.schema(
        {
            "prompt_id": pa.string(),
            "prompt": MESSAGES,
            "chosen": MESSAGES,
            "rejected": MESSAGES,
            **_EXTRA,
            "score_chosen": pa.float64(),
            "score_rejected": pa.float64(),
        }
    ),
    _preference_records,
)
COMPLETION = Shape(
    pa.schema(
        {
            "prompt_id": pa.string(),
            "prompt": MESSAGES,
            "completion": MESSAGES,
            **_EXTRA,
            "score_chosen": pa.float64(),
        }
    ),
    _completion_records,
)
LANGUAGE_MODELLING = Shape(pa.schema({"prompt_id": pa.string(), "messages": MESSAGES, **_EXTRA}), _messages_records)
UNPAIRED = Shape(
    pa.schema({"prompt_id": pa.string(), "prompt": MESSAGES, "completion": MESSAGES, "label": pa.bool_(), **_EXTRA}),
    _unpaired_records,
)
