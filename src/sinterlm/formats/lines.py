"""Files of records, read line by line: JSON Lines or Parquet, with the place of every record for error messages."""

from __future__ import annotations

import codecs
import gzip
import json
import numbers
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sinterlm.errors import InputError
from sinterlm.records import Message
from sinterlm.thoughts import has_thoughts

ChoiceT = TypeVar("ChoiceT", bound=str)

ROLES = ("system", "user", "assistant")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""What files and servers call a model's thoughts before its answer."""
_BESIDE_MESSAGES = ("tools", "functions", "documents", "images", "videos", "audios", "chat_template_kwargs")
MIN_WHOLE_NUMBER, MAX_WHOLE_NUMBER = -(2**63), 2**63 - 1
"""What Parquet and SQLite can hold."""

MAX_NUMBER = 1e100
"""In size: sums and squares of what is larger leave what floating-point numbers can hold."""

BATCH = 1_000
"""Rows of Parquet that are in memory at once."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Line:
    """One record of a file and where it stands; keys without a value (null) are not there."""

    place: str
    """For messages, e.g. ``questions.jsonl, line 12``."""
    fields: Mapping[str, Any]

    def error(self, found: str, expected: str) -> InputError:
        """The error to raise for this line."""
        return InputError(f"{self.place}: {found}; expected {expected}")

    def text(self, key: str, default: str | None = None) -> str:
        """The text under ``key``; without a default it must be there."""
        value = self.fields.get(key, default)
        if not isinstance(value, str):
            raise self.error(f"`{key}` is {_describe(value)}", "text")
        return value

    def identifier(self, key: str) -> str | None:
        """The id under ``key``: text, or a whole number, which is read as text; ``1.0`` is the whole number 1."""
        value = self.fields.get(key)
        if value is None or (isinstance(value, str) and value):
            return value
        number = _whole(value)
        if number is None:
            raise self.error(f"`{key}` is {_describe(value)}", "text or a whole number")
        return str(number)

    def number(self, key: str, default: float | None = None) -> float:
        """The finite number under ``key``; without a default it must be there."""
        value = self.fields.get(key, default)
        number = _number(value)
        if number is None:
            raise self.error(f"`{key}` is {_describe(value)}", f"a finite number, at most {MAX_NUMBER:g} in size")
        return float(number)

    def optional_number(self, key: str) -> float | None:
        """The finite number under ``key``, if there is one."""
        return self.number(key, 0.0) if key in self.fields else None

    def whole_number(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """The whole number, at least ``least``, under ``key``; without a default it must be there."""
        value = self.fields.get(key, default)
        number = _whole(value)
        if number is None or not least <= number <= MAX_WHOLE_NUMBER:
            raise self.error(f"`{key}` is {_describe(value)}", f"a whole number, {least} to {MAX_WHOLE_NUMBER}")
        return number

    def numbers(self, key: str) -> tuple[float, ...]:
        """The finite numbers in the list under ``key``."""
        values = self.fields.get(key)
        if not isinstance(values, list):
            raise self.error(f"`{key}` is {_describe(values)}", "a list of numbers")
        items = Line(self.place, {f"{key}[{place}]": value for place, value in enumerate(values)})
        return tuple(items.number(name) for name in items.fields)

    def choice(self, key: str, choices: Sequence[ChoiceT]) -> ChoiceT | None:
        """The one of ``choices`` that stands under ``key``, if anything does."""
        value = self.fields.get(key)
        if value is not None and value not in choices:
            raise self.error(f"`{key}` is {_describe(value)}", f"{', '.join(choices)}, or none")
        return value

    def flag(self, key: str) -> bool:
        """The truth value under ``key``; false where there is none."""
        value = self.fields.get(key, False)
        if not isinstance(value, bool):
            raise self.error(f"`{key}` is {_describe(value)}", "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts under ``key``: a list, or one text for a list of one; empty where there are none."""
        value = self.fields.get(key, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            raise self.error(f"`{key}` is {_describe(value)}", "text or a list of texts")
        return tuple(values)

    def messages(self, key: str, *, speaker: str = "user") -> tuple[Message, ...]:
        """The conversation under ``key``: a list of messages, or one message, or text, which is the ``speaker``'s."""
        value = self.fields.get(key)
        if isinstance(value, str):
            return (Message(speaker, value),)
        turns = [value] if isinstance(value, Mapping) else value
        if not isinstance(turns, list) or not turns:
            raise self.error(f"`{key}` is {_describe(value)}", "text or a list of messages")
        self.check_beside_messages()
        has_answer = isinstance(turns[-1], Mapping) and turns[-1].get("role") == "assistant"
        last = len(turns) - 1 if has_answer else None
        return tuple(self._message(f"{key}[{number}]", turn, number, last) for number, turn in enumerate(turns))

    def check_beside_messages(self) -> None:
        """Refuse what stands beside a conversation and would change it, such as tools, and is not read."""
        for name in _BESIDE_MESSAGES:
            if not _says_nothing(self.fields.get(name)):
                raise self.error(
                    f"`{name}` is {_describe(self.fields[name])}, which is not read", f"a conversation without {name}"
                )

    def check_turn(
        self, key: str, turn: Mapping[str, Any], known: Sequence[str], *, is_answer: bool, is_earlier_answer: bool
    ) -> None:
        """Refuse what a turn says in fields that are not read: it would be left out of what is trained.

        Args:
            key: where the turn stands.
            turn: one message.
            known: the fields that are read.
            is_answer: whether the turn is the answer that is trained.
            is_earlier_answer: whether it is an answer before that one, which is part of the prompt and not trained.
        """
        weight = turn.get("weight")
        if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
            raise self.error(f"`{key}.weight` is {_describe(weight)}", "0 or 1; a row's own `weight` may be any number")
        if is_answer and weight == 0:
            raise self.error(
                f"`{key}.weight` is 0, and this is the answer that would be trained",
                "an answer that is trained: leave the row out, or give the row itself `weight: 0`",
            )
        if is_earlier_answer and weight == 1:
            raise self.error(
                f"`{key}.weight` is 1, and only the last answer of a conversation is trained",
                "`weight: 0`, or none, on earlier answers; make a row of its own of each answer that is to be trained",
            )
        for name, value in turn.items():
            if name not in (*known, "weight") and not _says_nothing(value):
                raise self.error(
                    f"`{key}.{name}` is {_describe(value)}, which is not read",
                    f"a message with {', '.join(known)} only: remove {name}, or put what it says into the text",
                )

    def with_reasoning(self, content: str) -> str:
        """A text of the assistant with what it thought before, which some files hold in a field of its own."""
        found = {name: self.text(name) for name in REASONING_FIELDS if not _says_nothing(self.fields.get(name))}
        thoughts = {text.strip() for text in found.values()}
        if not thoughts:
            return content
        if len(thoughts) > 1 or has_thoughts(content):
            names = " and ".join(f"`{name}`" for name in found)
            raise self.error(f"{names} and the text hold several thoughts", "one thought before the answer")
        return f"<think>\n{thoughts.pop()}\n</think>\n\n{content}"

    def prompt(self, key: str) -> tuple[Message, ...]:
        """The conversation under ``key``, which must end with words of the user."""
        messages = self.messages(key)
        if messages[-1].role != "user" or not messages[-1].content.strip():
            found = "is empty" if messages[-1].role == "user" else f"is of the role {messages[-1].role!r}"
            raise self.error(f"the last message of `{key}` {found}", "a message of the user")
        return messages

    def objects(self, key: str) -> list[Line]:
        """The objects in the list under ``key``, as lines of their own; one object is a list of one."""
        value = self.fields.get(key)
        if isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
            raise self.error(f"`{key}` is {_describe(value)}", "a list of objects")
        return [Line(f"{self.place}, `{key}[{number}]`", _present(item)) for number, item in enumerate(value)]

    def _message(self, key: str, turn: object, number: int, answer: int | None) -> Message:
        """One message of a conversation of which the one numbered ``answer``, if any, is trained."""
        if not isinstance(turn, Mapping):
            raise self.error(f"`{key}` is {_describe(turn)}", "a message with `role` and `content`")
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise self.error(f"`{key}.role` is {_describe(role)}", " or ".join(ROLES))
        is_said = role == "assistant"
        known = ("role", "content", *(REASONING_FIELDS if is_said else ()))
        is_earlier_answer = is_said and answer is not None and number < answer
        self.check_turn(key, turn, known, is_answer=number == answer, is_earlier_answer=is_earlier_answer)
        if not isinstance(content, str):
            raise self.error(f"`{key}.content` is {_describe(content)}", "text")
        if is_said:
            content = Line(f"{self.place}, `{key}`", _present(turn)).with_reasoning(content)
        return Message(role, content)


def read_lines(path: Path) -> Iterator[Line]:
    """Every record of JSON Lines, of a list of objects (in ``.json``) or of Parquet (in ``.parquet``), in order.

    Text may be compressed by gzip (``.jsonl.gz``, ``.json.gz``).
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "no such file"
        raise InputError(f"{path}: {found}; expected a file of JSON Lines, JSON or Parquet")
    if path.suffix == ".parquet":
        return _parquet_lines(path)
    is_json = path.name.removesuffix(".gz").endswith(".json")
    return _json_array(path) if is_json and _is_array(path) else _json_lines(path)


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader | gzip.GzipFile]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from error


def _is_array(path: Path) -> bool:
    with _opened(path) as file:
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _json_array(path: Path) -> Iterator[Line]:
    """The objects of a file that is one list, as many data sets are published."""
    expected = "a list of JSON objects"
    with _opened(path) as file:
        text = _decode(file.read(), str(path))
    for number, fields in enumerate(parse_json(text, str(path), expected), start=1):
        yield _line(fields, f"{path}, row {number}", expected)


def _json_lines(path: Path) -> Iterator[Line]:
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            place, expected = f"{path}, line {number}", "one JSON object in each line"
            if text := _decode(raw, place).strip():
                yield _line(parse_json(text, place, expected), place, expected)


def _line(fields: object, place: str, expected: str) -> Line:
    if not isinstance(fields, dict):
        raise InputError(f"{place}: {_describe(fields)}; expected {expected}")
    return Line(place, _present(fields))


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 ({error.reason} at byte {error.start})") from error


def parse_json(text: str, place: str, expected: str) -> Any:
    """The value that JSON text has.

    Args:
        text: The JSON.
        place: Where it stands, for messages.
        expected: What it should be, for messages.

    Raises:
        InputError: It is no JSON, or JSON that cannot be stored or that readers take differently.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unambiguous)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a pair is no text: it cannot be hashed or stored
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise InputError(f"{place}: {half} is half of a surrogate pair; expected its other half beside it") from error
    except _DuplicateKey as error:
        raise InputError(f"{place}: the key {_describe(error.args[0])} is there twice; keep one of them") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error.msg} at column {error.colno}); expected {expected}") from error
    except ValueError as error:  # Python's limit on digits
        raise InputError(
            f"{place}: a number of too many digits; expected {expected}, its numbers of usual size"
        ) from error
    except RecursionError as error:
        raise InputError(f"{place}: nested too deeply; expected {expected}") from error
    return value


class _DuplicateKey(Exception):
    """The key that an object has twice: which one counts depends on who reads it."""


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return fields


def _parquet_lines(path: Path) -> Iterator[Line]:
    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(BATCH):
                for fields in _plain_rows(batch, path, number):
                    number += 1
                    yield Line(f"{path}, row {number}", _present(fields))
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a whole Parquet file ({error})") from error


def _plain_rows(batch: pa.RecordBatch, path: Path, number: int) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, after row {number}: text that is not UTF-8 ({error.reason})") from error
    except (ValueError, OverflowError) as error:  # e.g. a day after the year 9999
        raise InputError(
            f"{path}, after row {number}: a value that cannot be read ({error}); drop its column"
        ) from error
    return rows


def _number(value: object) -> int | float | None:
    """The finite number that a value is, of whatever type a file's reader has for it; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return None
    try:
        as_float = float(value)
    except (OverflowError, ValueError):  # a whole number beyond all floating-point numbers; a signalling NaN
        return None
    if not abs(as_float) <= MAX_NUMBER:  # NaN is neither
        return None
    whole = int(value) if isinstance(value, numbers.Integral | Decimal) else int(as_float)
    return whole if value == whole else as_float


def _whole(value: object) -> int | None:
    """The whole number that a value is; of a floating-point number only where it says exactly which."""
    number = _number(value)
    is_exact = isinstance(value, numbers.Integral | Decimal) or (number is not None and abs(number) < 2**53)
    return number if isinstance(number, int) and is_exact else None


def _says_nothing(value: object) -> bool:
    """Whether a field is as good as missing; tables have every field in every row, some as JSON text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    if isinstance(value, Mapping):
        return all(map(_says_nothing, value.values()))
    return value is None or value == []


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _describe(value: object) -> str:
    """A value in an error message, shortened."""
    if value is None:
        return "missing"
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:  # JSON that could just be read
        return "nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."
