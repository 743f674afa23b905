"""Between the conversations that files hold and the responses of a training row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from sinterlm.errors import InputError
from sinterlm.formats.lines import Line
from sinterlm.records import Message, Prompt, Role, RowResponse, TrainingRow

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
"""A conversation in Parquet, as TRL has it."""


def answer_messages(line: Line, key: str) -> tuple[Message, ...]:
    """The conversation under ``key`` that ends with an answer; plain text is the assistant's."""
    return line.messages(key, speaker="assistant")


def row_of_conversations(
    line: Line, conversations: Mapping[Role, tuple[Message, ...]], sources: Mapping[Role, str]
) -> TrainingRow:
    """A row of answers, each given as a conversation that ends with it and may begin with the prompt.

    Args:
        line: Where they stand; its ``prompt`` may be missing, and ``score_ROLE`` is the score of that answer.
        conversations: By the role of the answer.
        sources: The models that gave the answers, where they are known.
    """
    prompt = line.prompt("prompt") if "prompt" in line.fields else next(iter(conversations.values()))[:-1]
    responses = []
    for role, (*before, answer) in conversations.items():
        if answer.role != "assistant" or not prompt:
            raise _not_an_answer(line, role, f"has the roles {_roles(conversations[role])}")
        if before and tuple(before) != prompt:
            raise _not_an_answer(
                line,
                role,
                f"(roles {_roles(conversations[role])}) begins otherwise than the prompt (roles {_roles(prompt)})",
            )
        responses.append(
            RowResponse(
                content=not_empty(line, role, answer.content),
                role=role,
                source=sources.get(role, ""),
                score=line.optional_number(f"score_{role}"),
            )
        )
    return build_row(line, prompt, tuple(responses))


def sources_of_pair(line: Line) -> dict[Role, str]:
    """The models of a pair: ``source``, and ``source_rejected`` where the rejected answer is another's."""
    source = line.text("source", default="")
    return {"chosen": source, "rejected": line.text("source_rejected", default=source)}


def build_row(line: Line, prompt: tuple[Message, ...], responses: tuple[RowResponse, ...]) -> TrainingRow:
    """The row of a line: its id (else the prompt's hash) and its weight, which all shapes may have."""
    weight = line.number("weight", default=1.0)
    if weight < 0:
        raise line.error(f"`weight` is {weight:g}", "a number, at least 0")
    return TrainingRow(
        prompt_id=line.identifier("prompt_id") or line.identifier("id") or Prompt("", prompt).content_hash,
        messages=prompt,
        responses=responses,
        weight=weight,
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
