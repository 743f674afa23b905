"""Files of records, read line by line: JSON Lines or Parquet, with the place of every record for error messages."""

from __future__ import annotations

import codecs
import difflib
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from sinterlm.errors import InputError
from sinterlm.explain import MISSING, Fault, find_faults, show_path
from sinterlm.formats.fields import Record, present, show_value

if TYPE_CHECKING:
    import pyarrow as pa

RecordT = TypeVar("RecordT", bound=Record)

BATCH = 1_000
"""Rows of Parquet that are in memory at once."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Line:
    """One record of a file and its place; keys without a value (null) are left out."""

    place: str
    """For messages, e.g. ``questions.jsonl, line 12``."""
    fields: Mapping[str, Any]

    def error(self, found: str, expected: str) -> InputError:
        """The error to raise for this line."""
        return InputError(f"{self.place}: {found}; expected {expected}")

    def parse(self, shape: type[RecordT]) -> RecordT:
        """The record as an instance of its shape.

        Raises:
            InputError: It does not fit; one line for each problem, with file, line and key.
        """
        try:
            return shape.model_validate(self.fields, context=self.fields)
        except ValidationError as error:
            faults = [self._in_words(fault, shape) for fault in find_faults(error, shape)]
            raise InputError("\n".join(f"{self.place}: {fault}" for fault in faults)) from None

    def _in_words(self, fault: Fault, shape: type[RecordT]) -> str:
        key = f"`{show_path(fault.path)}`"
        found = fault.said.replace("{key}", key) or f"{key} is {show_value(fault.found)}"
        guess = ""
        if fault.found is MISSING and len(fault.path) == 1:
            unread = [name for name in self.fields if name not in shape.model_fields]
            nearest = difflib.get_close_matches(str(fault.path[0]), unread, n=1, cutoff=0.75)
            guess = f"; did you mean `{nearest[0]}`?" if nearest else ""
        return f"{found}; expected {fault.expected}{guess}"


def read_lines(path: Path) -> Iterator[Line]:
    """Every record of JSON Lines, of a list of objects (in ``.json``) or of Parquet (in ``.parquet``), in order.

    Text may be compressed by gzip (``.jsonl.gz``, ``.json.gz``).
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "no such file"
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
        raise InputError(f"{place}: {show_value(fields)}; expected {expected}")
    return Line(place, present(fields))


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 ({error.reason} at byte {error.start})") from error


def parse_json(text: str, place: str, expected: str) -> Any:
    """The value that JSON text has.

    Args:
        text: The JSON.
        place: Its place, for messages.
        expected: What it should be, for messages.

    Raises:
        InputError: It is not JSON, or JSON that cannot be stored or that readers take differently.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unambiguous)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a pair is not text: it cannot be hashed or stored
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise InputError(f"{place}: {half} is half of a surrogate pair; expected its other half beside it") from error
    except _DuplicateKey as error:
        raise InputError(f"{place}: the key {show_value(error.args[0])} is given twice; keep one of them") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error.msg} at column {error.colno}); expected {expected}") from error
    except ValueError as error:  # Python's limit on digits
        raise InputError(
            f"{place}: a number with too many digits; expected {expected}, with numbers of usual size"
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


def count_rows(path: Path) -> int:
    """The number of records in a Parquet file."""
    import pyarrow.parquet as pq

    with _whole_parquet(path):
        return int(pq.read_metadata(path).num_rows)


def _parquet_lines(path: Path) -> Iterator[Line]:
    import pyarrow.parquet as pq

    number = 0
    with _whole_parquet(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(BATCH):
            for fields in _plain_rows(batch, path, number):
                number += 1
                yield Line(f"{path}, row {number}", present(fields))


@contextmanager
def _whole_parquet(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
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
