"""Between the conversations that files hold and the responses of a training row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from pydantic import AliasChoices, Field

from sinterlm.errors import InputError
from sinterlm.formats.fields import Identifier, Number, Question, Record
from sinterlm.formats.lines import Line
from sinterlm.records import Message, Prompt, Role, RowResponse, TrainingRow

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
"""A conversation in Parquet, as TRL has it."""


class Row(Record):
    """What rows of all shapes may have."""

    prompt_id: Identifier | None = Field(None, validation_alias=AliasChoices("prompt_id", "id"))
    weight: Number = 1.0


class ConversationsRow(Row):
    """A row of answers, each a conversation; if there is no ``prompt``, the first answer begins with it."""

    prompt: Question | None = None
    source: str = ""
    score_chosen: Number | None = None


class PairRow(ConversationsRow):
    """A row of two answers."""

    source_rejected: str | None = None
    score_rejected: Number | None = None

    @property
    def sources(self) -> dict[Role, str]:
        """The models of the pair: ``source``, and ``source_rejected`` if the rejected answer is another's."""
        other = self.source if self.source_rejected is None else self.source_rejected
        return {"chosen": self.source, "rejected": other}


def row_of_conversations(
    line: Line, record: ConversationsRow, conversations: Mapping[Role, tuple[Message, ...]], sources: Mapping[Role, str]
) -> TrainingRow:
    """A row of answers, each given as a conversation that ends with it and may begin with the prompt.

    Args:
        line: The line that holds them, for messages.
        record: The line as its shape has it; ``score_ROLE`` is the score of the answer of that role.
        conversations: By the role of the answer.
        sources: The models that gave the answers, if they are known.
    """
    prompt = record.prompt or next(iter(conversations.values()))[:-1]
    responses = []
    for role, (*before, answer) in conversations.items():
        if answer.role != "assistant" or not prompt:
            raise _not_an_answer(line, role, f"has the roles {_roles(conversations[role])}")
        if before and tuple(before) != prompt:
            raise _not_an_answer(
                line,
                role,
                f"(roles {_roles(conversations[role])}) does not begin with the prompt (roles {_roles(prompt)})",
            )
        responses.append(
            RowResponse(
                content=not_empty(line, role, answer.content),
                role=role,
                source=sources.get(role, ""),
                score=getattr(record, f"score_{role}", None),
            )
        )
    return build_row(line, record, prompt, tuple(responses))


def build_row(line: Line, record: Row, prompt: tuple[Message, ...], responses: tuple[RowResponse, ...]) -> TrainingRow:
    """The row of a record, which is named by its id, or by the hash of its prompt if it has none."""
    if record.weight < 0:
        raise line.error(f"`weight` is {record.weight:g}", "a number, at least 0")
    return TrainingRow(
        prompt_id=record.prompt_id or Prompt("", prompt).content_hash,
        messages=prompt,
        responses=responses,
        weight=record.weight,
    )


def not_empty(line: Line, key: str, content: str) -> str:
    """``content``, which must be more than white space."""
    if not content.strip():
        raise line.error(f"`{key}` is an empty response", "an answer: an empty response never reaches a loss")
    return content


def _not_an_answer(line: Line, role: Role, found: str) -> InputError:
    return line.error(f"`{role}` {found}", "one message of the assistant, alone or after the messages of the prompt")


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(message.role for message in messages)


def dump_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as files hold it."""
    return [message._asdict() for message in messages]


def dump_answer(response: RowResponse) -> list[dict[str, str]]:
    """A response as a conversation of one message."""
    return dump_messages([Message("assistant", response.content)])
