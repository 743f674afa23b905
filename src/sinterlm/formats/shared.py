"""Answers and scores of a store as a data set, so that what was paid for once can be shared.

    responses  id, identity, prompt_hash, index, content, finish_reason, num_prompt_tokens, num_tokens, sampling, prompt
    scores     response_id, scorer, answers_hash, value, passed, detail (JSON)

The keys are the store's own: a response belongs to the identity of who was asked, the content of the prompt and the
sample index; a score to the response, the identity of the scorer and the prompt's accepted answers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow as pa

from sinterlm.errors import InputError
from sinterlm.formats.conversations import MESSAGES, dump_messages
from sinterlm.formats.dataset import FILE_NAME
from sinterlm.formats.lines import MIN_WHOLE_NUMBER, Line, parse_json, read_lines
from sinterlm.records import IMPORT, Dropped, FinishReason, Prompt, SamplingSettings, Score, StoredResponse, StoredScore

_SETTINGS = get_type_hints(SamplingSettings)
_SETTING_TYPES = {int: pa.int64(), float: pa.float64()}

RESPONSES, SCORES = "responses", "scores"
RESPONSE_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "identity": pa.string(),
        "prompt_hash": pa.string(),
        "index": pa.int64(),
        "content": pa.string(),
        "finish_reason": pa.string(),
        "num_prompt_tokens": pa.int64(),
        "num_tokens": pa.int64(),
        "sampling": pa.struct({name: _SETTING_TYPES[type_] for name, type_ in _SETTINGS.items()}),
        "prompt": MESSAGES,
    }
)
SCORE_SCHEMA = pa.schema(
    {
        "response_id": pa.string(),
        "scorer": pa.string(),
        "answers_hash": pa.string(),
        "value": pa.float64(),
        "passed": pa.bool_(),
        "detail": pa.string(),
    }
)
MAX_DETAIL, MAX_DEPTH = 2**20, 32
"""Characters and levels of a score's detail."""
_HASH = re.compile("[0-9a-f]{64}")


def dump_response(response: StoredResponse) -> dict[str, Any]:
    """The record of a response."""
    fields = {name: getattr(response, name) for name in RESPONSE_SCHEMA.names}
    return fields | {
        "sampling": response.sampling and asdict(response.sampling),
        "prompt": response.prompt and dump_messages(response.prompt),
    }


def dump_score(stored: StoredScore) -> dict[str, Any]:
    """The record of a score; a score that is no number has no value."""
    score = stored.score
    return {
        "response_id": score.response_id,
        "scorer": score.scorer,
        "answers_hash": stored.answers_hash,
        "value": None if math.isnan(score.value) else score.value,
        "passed": score.passed,
        "detail": json.dumps(dict(score.detail)),
    }


def read_shared_responses(folder: Path) -> Iterator[StoredResponse]:
    """The responses of a shared data set, each checked.

    Raises:
        InputError: There is no such data set, a row is of another shape, or its id is not the hash of its key.
    """
    return map(_parse_response, read_lines(_file(folder, RESPONSES)))


def read_shared_scores(folder: Path) -> Iterator[StoredScore | Dropped]:
    """The scores of a shared data set, each checked; none where it has none.

    One whose detail is odd is dropped: only its scorer knows what belongs there, and the others are as good without it.

    Raises:
        InputError: A row is of another shape.
    """
    if not (folder / SCORES).is_dir():
        return iter(())
    return map(_parse_score, read_lines(_file(folder, SCORES)))


def _file(folder: Path, name: str) -> Path:
    path = folder / name / FILE_NAME
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a folder that `sinterlm export --format answers` wrote")
    return path


def _parse_response(line: Line) -> StoredResponse:
    prompt = line.messages("prompt") if "prompt" in line.fields else None
    finish_reason = line.choice("finish_reason", get_args(FinishReason))
    if finish_reason is None:
        raise line.error("`finish_reason` is missing", f"one of {', '.join(get_args(FinishReason))}")
    response = StoredResponse(
        identity=line.text("identity"),
        prompt_hash=_hash(line, "prompt_hash"),
        index=line.whole_number("index"),
        content=line.text("content"),
        finish_reason=finish_reason,
        num_prompt_tokens=line.whole_number(
            "num_prompt_tokens",
        ),
        num_tokens=line.whole_number(
            "num_tokens",
        ),
        sampling=_sampling(line),
        prompt=prompt,
    )
    if line.text("id") != response.id:
        raise line.error(f"`id` is {line.text('id')!r}", f"the hash of identity, prompt_hash and index, {response.id}")
    if prompt is not None and Prompt("", prompt).content_hash != response.prompt_hash:
        raise line.error("`prompt` is not what `prompt_hash` names", "the messages of which it is the hash")
    return response


def _sampling(line: Line) -> SamplingSettings | None:
    if "sampling" not in line.fields:
        return None
    (settings,) = line.objects("sampling")
    given: dict[str, Any] = {
        name: settings.whole_number(name, least=MIN_WHOLE_NUMBER) if type_ is int else settings.number(name)
        for name, type_ in _SETTINGS.items()
        if name in settings.fields
    }
    return SamplingSettings(**given)


def _parse_score(line: Line) -> StoredScore | Dropped:
    response_id = _hash(line, "response_id")
    try:
        detail = _parse_detail(line)
    except InputError as error:
        return Dropped(response_id, IMPORT, "unreadable-score-detail", str(error))
    score = Score(
        response_id=response_id,
        scorer=line.text("scorer"),
        value=line.number("value") if "value" in line.fields else math.nan,
        passed=line.flag("passed") if "passed" in line.fields else None,
        detail=detail,
    )
    return StoredScore(score, _hash(line, "answers_hash"))


def _parse_detail(line: Line) -> dict[str, Any]:
    """What a scorer found besides the value: of any shape, but for its bounds and the keys that others read."""
    text, expected = line.text("detail"), "a JSON object"
    if len(text) > MAX_DETAIL:
        raise line.error(f"`detail` has {len(text):,} characters", f"{MAX_DETAIL:,} at most")
    detail = parse_json(text, f"{line.place}, `detail`", expected)
    if not isinstance(detail, dict):
        raise line.error(f"`detail` is {text[:80]}", expected)
    if _is_deeper(detail, MAX_DEPTH):
        raise line.error("`detail` is nested too deeply", f"{MAX_DEPTH} levels at most")
    inner = Line(f"{line.place}, `detail`", detail)
    for key in {"reason", "problem"} & detail.keys():
        inner.text(key)
    if "contains" in detail:
        inner.number("contains")
    return detail


def _is_deeper(value: object, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in items)


def _hash(line: Line, key: str) -> str:
    value = line.text(key)
    if not _HASH.fullmatch(value):
        raise line.error(f"`{key}` is {value!r}", "a SHA-256 as 64 hexadecimal digits")
    return value
