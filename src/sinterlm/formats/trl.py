"""The shapes of TRL's trainers, conversational: lists of messages.

    preference           prompt, chosen, rejected
    prompt-completion    prompt, completion
    language modelling   messages
    unpaired preference  prompt, completion, label

``weight``, ``source``, ``score_chosen``, ``source_rejected`` and ``score_rejected`` are optional. Conversations
under ``chosen`` and the like may be plain text, or begin with the prompt; ``prompt`` itself may then be missing.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from sinterlm.formats.conversations import (
    MESSAGES,
    ConversationsRow,
    PairRow,
    dump_answer,
    dump_messages,
    row_of_conversations,
)
from sinterlm.formats.fields import Conversation, Number, Reply
from sinterlm.formats.lines import Line
from sinterlm.formats.pairs import (
    ANSWER_COLUMNS,
    PAIR_COLUMNS,
    Answer,
    PreferencePair,
    answer_columns,
    answers_of,
    chosen_of,
    each,
    pair_columns,
    pairs_of,
)
from sinterlm.formats.shape import Shape
from sinterlm.formats.wrpo import is_authors_row, read_authors_row
from sinterlm.records import Message, Role, TrainingRow


class _Preference(PairRow):
    chosen: Reply
    rejected: Reply


class _Completion(ConversationsRow):
    completion: Reply


class _Unpaired(_Completion):
    label: bool = False
    score_rejected: Number | None = None


class _LanguageModelling(ConversationsRow):
    messages: Conversation


def read_pair(line: Line) -> TrainingRow:
    """A preference pair, or the WRPO authors' row, whose ``chosen`` holds two answers."""
    if is_authors_row(line):
        return read_authors_row(line)
    record = line.parse(_Preference)
    return row_of_conversations(line, record, {"chosen": record.chosen, "rejected": record.rejected}, record.sources)


def read_completion(line: Line) -> TrainingRow:
    """A prompt and the answer to learn."""
    record = line.parse(_Completion)
    return _single(line, record, "chosen", record.completion)


def read_unpaired(line: Line) -> TrainingRow:
    """A prompt and an answer that is chosen or rejected by itself."""
    record = line.parse(_Unpaired)
    return _single(line, record, "chosen" if record.label else "rejected", record.completion)


def read_messages(line: Line) -> TrainingRow:
    """A conversation that ends with the answer to learn."""
    record = line.parse(_LanguageModelling)
    return _single(line, record, "chosen", record.messages)


def _single(line: Line, record: ConversationsRow, role: Role, conversation: tuple[Message, ...]) -> TrainingRow:
    return row_of_conversations(line, record, {role: conversation}, {role: record.source})


def _preference_record(row: TrainingRow, pair: PreferencePair) -> dict[str, Any]:
    return {
        "prompt_id": row.prompt_id,
        "prompt": dump_messages(row.messages),
        "chosen": dump_answer(pair.chosen),
        "rejected": dump_answer(pair.rejected),
        **pair_columns(pair),
    }


def _completion_record(row: TrainingRow, answer: Answer) -> dict[str, Any]:
    return {
        "prompt_id": row.prompt_id,
        "prompt": dump_messages(row.messages),
        "completion": dump_answer(answer.response),
        **answer_columns(answer),
    }


def _messages_record(row: TrainingRow, answer: Answer) -> dict[str, Any]:
    return {
        "prompt_id": row.prompt_id,
        "messages": [*dump_messages(row.messages), *dump_answer(answer.response)],
        **answer_columns(answer),
    }


def _unpaired_record(row: TrainingRow, answer: Answer) -> dict[str, Any]:
    score = answer.response.score
    return {
        "prompt_id": row.prompt_id,
        "prompt": dump_messages(row.messages),
        "completion": dump_answer(answer.response),
        "label": answer.is_chosen,
        **answer_columns(answer),
        "score_chosen": score if answer.is_chosen else None,
        "score_rejected": None if answer.is_chosen else score,
    }


_ID = {"prompt_id": pa.string()}
_SINGLE = {**_ID, "prompt": MESSAGES, "completion": MESSAGES}
PREFERENCE = Shape(
    pa.schema({**_ID, "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, **PAIR_COLUMNS}),
    each(pairs_of, _preference_record),
)
COMPLETION = Shape(pa.schema({**_SINGLE, **ANSWER_COLUMNS}), each(chosen_of, _completion_record))
LANGUAGE_MODELLING = Shape(
    pa.schema({**_ID, "messages": MESSAGES, **ANSWER_COLUMNS}), each(chosen_of, _messages_record)
)
UNPAIRED = Shape(
    pa.schema({**_SINGLE, "label": pa.bool_(), **ANSWER_COLUMNS, "score_rejected": pa.float64()}),
    each(answers_of, _unpaired_record),
)
