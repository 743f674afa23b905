"""What the records of files consist of: types of fields, turns of a conversation, and the base of a record's shape.

A shape is a pydantic model of the keys that are read. Numbers may be of whatever type a file's reader has for them, ids
may be whole numbers, and a conversation may be text; other keys than a shape's are ignored, as other tools have
theirs.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from sinterlm.explain import MISSING, Expects, misfit
from sinterlm.records import Message
from sinterlm.thoughts import has_thoughts

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""What files and servers call a model's thoughts before its answer."""
_BESIDE_MESSAGES = ("tools", "functions", "documents", "images", "videos", "audios", "chat_template_kwargs")
MIN_WHOLE_NUMBER, MAX_WHOLE_NUMBER = -(2**63), 2**63 - 1
"""What Parquet and SQLite can hold."""
MAX_NUMBER = 1e100
"""Limit of a number's size: sums and squares of larger ones exceed what floating-point numbers can hold."""


def show_value(value: object) -> str:
    """A value in an error message, as JSON has it, shortened."""
    if value is None or value is MISSING:
        return "missing"
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:  # JSON that could just be read
        return "nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."


def says_nothing(value: object) -> bool:
    """Whether a field is as good as missing; tables have every field in every row, some as JSON text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    if isinstance(value, Mapping):
        return all(map(says_nothing, value.values()))
    return value is None or value == []


def present(fields: Any) -> Any:
    """A mapping without the keys that have no value (null); anything else as it is."""
    if not isinstance(fields, Mapping):
        return fields
    return {key: value for key, value in fields.items() if value is not None}


def _number(value: object) -> int | float | None:
    """The finite number that a value is, of whatever type a file's reader has for it; None if there is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return None
    try:
        as_float = float(value)
    except (OverflowError, ValueError):  # a whole number beyond all floating-point numbers; a signalling NaN
        return None
    if not abs(as_float) <= MAX_NUMBER:  # also for NaN, which is never <= anything
        return None
    whole = int(value) if isinstance(value, numbers.Integral | Decimal) else int(as_float)
    return whole if value == whole else as_float


def _read_number(value: object) -> float:
    if type(value) is float and abs(value) <= MAX_NUMBER:  # by far the most frequent type, and much faster
        return value
    if (number := _number(value)) is None:
        raise ValueError
    return float(number)


def _read_whole(value: object) -> int:
    """The whole number that a value is; a floating-point number only if it says exactly which."""
    if type(value) is int:
        return value
    number = _number(value)
    is_exact = isinstance(value, numbers.Integral | Decimal) or (number is not None and abs(number) < 2**53)
    if not isinstance(number, int) or not is_exact:
        raise ValueError
    return number


def _read_identifier(value: object) -> str:
    """Text, or a whole number, which is read as text; ``1.0`` is the whole number 1."""
    if isinstance(value, str) and value:
        return value
    return str(_read_whole(value))


def _read_weight(value: object) -> object:
    if value is not None and (isinstance(value, bool) or value not in (0, 1)):
        raise ValueError
    return value


def as_list(value: object) -> object:
    """One text or one object as a list of it."""
    return [value] if isinstance(value, str | Mapping) else value


Number = Annotated[float, BeforeValidator(_read_number), Expects(f"a finite number, at most {MAX_NUMBER:g} in size")]
Whole = Annotated[
    int,
    BeforeValidator(_read_whole),
    Field(ge=0, le=MAX_WHOLE_NUMBER),
    Expects(f"a whole number, 0 to {MAX_WHOLE_NUMBER}"),
]
SignedWhole = Annotated[
    int,
    BeforeValidator(_read_whole),
    Field(ge=MIN_WHOLE_NUMBER, le=MAX_WHOLE_NUMBER),
    Expects(f"a whole number, {MIN_WHOLE_NUMBER} to {MAX_WHOLE_NUMBER}"),
]
Identifier = Annotated[str, BeforeValidator(_read_identifier), Expects("text or a whole number")]
Texts = Annotated[list[str], BeforeValidator(as_list), Expects("text or a list of texts")]
TurnWeight = Annotated[Any, BeforeValidator(_read_weight), Expects("0 or 1; a row's own `weight` may be any number")]


class Record(BaseModel):
    """The keys of a record that are read; other keys are ignored, as other tools have theirs."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Turn(Record):
    """One message of a conversation."""

    role: Annotated[Literal["system", "user", "assistant"], Expects("system or user or assistant")]
    content: str
    weight: TurnWeight = None


def _read_turn(turn: object) -> object:
    if not isinstance(turn, Mapping) or len(turn) == 2:
        return turn
    if turn.get("role") != "assistant":
        return drop_unread(turn, ("role", "content"))
    return with_reasoning(drop_unread(turn, ("role", "content", *REASONING_FIELDS)))


def with_reasoning(fields: Mapping[str, Any], key: str = "content") -> Mapping[str, Any]:
    """A record whose text under ``key`` begins with the thought, which some files hold in a field of its own."""
    found = {name: fields[name] for name in REASONING_FIELDS if not says_nothing(fields.get(name))}
    content = fields.get(key)
    if not found or not isinstance(content, str):
        return fields
    for name, thought in found.items():
        if not isinstance(thought, str):
            raise misfit(f"{{key}} is {show_value(thought)}", "text", (name,))
    thoughts = {thought.strip() for thought in found.values()}
    if len(thoughts) > 1 or has_thoughts(content):
        names = " and ".join(f"`{name}`" for name in found)
        raise misfit(f"{names} and the text hold several thoughts", "one thought before the answer")
    return {**fields, key: f"<think>\n{thoughts.pop()}\n</think>\n\n{content}"}


def drop_unread(turn: Mapping[str, Any], known: Sequence[str]) -> Mapping[str, Any]:
    """A turn without fields that say nothing; a field that says something must be read, or training would miss it.

    Args:
        turn: One message.
        known: The fields that are read, ``weight`` aside.
    """
    for name, value in turn.items():
        if name not in (*known, "weight") and not says_nothing(value):
            raise misfit(
                f"{{key}} is {show_value(value)}, which is not read",
                f"a message with {', '.join(known)} only: remove {name}, or put what it says into the text",
                (name,),
            )
    return {name: value for name, value in turn.items() if name in known[:2] or not says_nothing(value)}


def check_weights(turns: Sequence[tuple[bool, Any]]) -> None:
    """Refuse weights of turns that would train an answer other than the last, or would not train the last.

    Args:
        turns: Whether each turn is an answer, and its weight.
    """
    is_last_answer = bool(turns) and turns[-1][0]
    for place, (is_answer, weight) in enumerate(turns):
        is_last = place == len(turns) - 1
        if is_answer and is_last and weight == 0:
            raise misfit(
                "{key} is 0, and this is the answer that would be trained",
                "an answer that is trained: leave the row out, or give the row itself `weight: 0`",
                (place, "weight"),
            )
        if is_answer and is_last_answer and not is_last and weight == 1:
            raise misfit(
                "{key} is 1, and only the last answer of a conversation is trained",
                "`weight: 0`, or none, on earlier answers; make a separate row of each answer that is to be trained",
                (place, "weight"),
            )


def check_beside_messages(info: ValidationInfo) -> None:
    """Refuse fields beside a conversation that would change it, such as tools, and are not read."""
    fields: Mapping[str, Any] = info.context or {}
    for name in _BESIDE_MESSAGES:
        if name in fields and not says_nothing(fields[name]):
            raise misfit(f"`{name}` is {show_value(fields[name])}, which is not read", f"a conversation without {name}")


def _text_of(speaker: str) -> WrapValidator:
    """Takes text for one message of the speaker; many rows hold text alone and need no more."""

    def read(value: object, read_turns: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        if isinstance(value, str):
            return (Message(speaker, value),)
        check_beside_messages(info)
        return read_turns(as_list(value))

    return WrapValidator(read)


def _as_messages(turns: Sequence[_Turn]) -> tuple[Message, ...]:
    check_weights([(turn.role == "assistant", turn.weight) for turn in turns])
    return tuple(Message(turn.role, turn.content) for turn in turns)


def _check_asks(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    last = messages[-1]
    if last.role != "user" or not last.content.strip():
        found = "is empty" if last.role == "user" else f"is of the role {last.role!r}"
        raise misfit(f"the last message of {{key}} {found}", "a message of the user")
    return messages


if TYPE_CHECKING:
    Conversation = tuple[Message, ...]
    Reply = tuple[Message, ...]
    Question = tuple[Message, ...]
else:
    _Turns = Annotated[
        list[Annotated[_Turn, BeforeValidator(_read_turn), Expects("a message with `role` and `content`")]],
        Field(min_length=1),
        AfterValidator(_as_messages),
    ]
    _WORDS = Expects("text or a list of messages")
    Conversation = Annotated[_Turns, _text_of("user"), _WORDS]
    """A list of messages, or one message, or text, which is the user's."""
    Reply = Annotated[_Turns, _text_of("assistant"), _WORDS]
    """A conversation that ends with an answer; text is the assistant's."""
    Question = Annotated[Conversation, AfterValidator(_check_asks)]
    """A conversation that ends with words of the user."""
