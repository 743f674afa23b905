"""Answers and scores of a store as a data set, so that what was paid for once can be shared.

    responses  id, identity, prompt_hash, index, content, finish_reason, num_prompt_tokens, num_tokens, sampling,
               prompt, reasoning, served_by
    scores     response_id, scorer, answers_hash, value, passed, detail (JSON)

The keys are the store's own: a response belongs to the identity of who was asked, the content of the prompt and the
sample index; a score to the response, the identity of the scorer and the prompt's accepted answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pyarrow as pa
from pydantic import Field

from sinterlm.errors import InputError
from sinterlm.explain import Expects
from sinterlm.formats.conversations import MESSAGES, dump_messages
from sinterlm.formats.dataset import FILE_NAME
from sinterlm.formats.fields import Conversation, Number, Record, SignedWhole, Whole
from sinterlm.formats.lines import Line, parse_json, read_lines
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
        "reasoning": pa.string(),
        "served_by": pa.string(),
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

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$"), Expects("a SHA-256 as 64 hexadecimal digits")]


class _Sampling(Record):
    temperature: Number | None = None
    top_p: Number | None = None
    max_new_tokens: SignedWhole | None = None
    seed: SignedWhole | None = None
    repetition_penalty: Number | None = None


class _ResponseRecord(Record):
    id: str
    identity: str
    prompt_hash: _Hash
    index: Whole
    content: str
    finish_reason: Annotated[FinishReason, Expects(f"one of {', '.join(get_args(FinishReason))}")]
    num_prompt_tokens: Whole
    num_tokens: Whole
    sampling: Annotated[_Sampling | None, Expects("an object")] = None
    prompt: Conversation | None = None
    reasoning: str = ""
    served_by: str = ""


class _ScoreRecord(Record):
    response_id: _Hash
    scorer: str
    answers_hash: _Hash
    value: Number = math.nan
    passed: bool | None = None


class _DetailText(Record):
    detail: str


class _Detail(Record):
    """The keys of a score's detail that others read."""

    reason: str = ""
    problem: str = ""
    contains: Number = 0.0


def dump_response(response: StoredResponse) -> dict[str, Any]:
    """The record of a response."""
    fields = {name: getattr(response, name) for name in RESPONSE_SCHEMA.names}
    return fields | {
        "sampling": response.sampling and asdict(response.sampling),
        "prompt": response.prompt and dump_messages(response.prompt),
    }


def dump_score(stored: StoredScore) -> dict[str, Any]:
    """The record of a score; a score that is not a number has no value."""
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
        InputError: There is no such data set, a row has another shape, or its id is not the hash of its key.
    """
    return map(_parse_response, read_lines(_file(folder, RESPONSES)))


def read_shared_scores(folder: Path) -> Iterator[StoredScore | Dropped]:
    """The scores of a shared data set, each checked; none if it has none.

    One whose detail is odd is dropped: only its scorer knows what belongs there, and the others are as good without it.

    Raises:
        InputError: A row has another shape.
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
    record = line.parse(_ResponseRecord)
    sampling = None if record.sampling is None else SamplingSettings(**record.sampling.model_dump(exclude_none=True))
    response = StoredResponse(
        identity=record.identity,
        prompt_hash=record.prompt_hash,
        index=record.index,
        content=record.content,
        finish_reason=record.finish_reason,
        num_prompt_tokens=record.num_prompt_tokens,
        num_tokens=record.num_tokens,
        sampling=sampling,
        prompt=record.prompt,
        reasoning=record.reasoning,
        served_by=record.served_by,
    )
    if record.id != response.id:
        raise line.error(f"`id` is {record.id!r}", f"the hash of identity, prompt_hash and index, {response.id}")
    if record.prompt is not None and Prompt("", record.prompt).content_hash != record.prompt_hash:
        raise line.error("`prompt` is not what `prompt_hash` names", "the messages with that hash")
    return response


def _parse_score(line: Line) -> StoredScore | Dropped:
    record = line.parse(_ScoreRecord)
    try:
        detail = _parse_detail(line)
    except InputError as error:
        return Dropped(record.response_id, IMPORT, "unreadable-score-detail", str(error))
    score = Score(record.response_id, record.scorer, record.value, record.passed, detail)
    return StoredScore(score, record.answers_hash)


def _parse_detail(line: Line) -> dict[str, Any]:
    """What a scorer found besides the value: of any shape, apart from its bounds and the keys that others read."""
    text, expected = line.parse(_DetailText).detail, "a JSON object"
    if len(text) > MAX_DETAIL:
        raise line.error(f"`detail` has {len(text):,} characters", f"{MAX_DETAIL:,} at most")
    detail = parse_json(text, f"{line.place}, `detail`", expected)
    if not isinstance(detail, dict):
        raise line.error(f"`detail` is {text[:80]}", expected)
    if _is_deeper(detail, MAX_DEPTH):
        raise line.error("`detail` is nested too deeply", f"{MAX_DEPTH} levels at most")
    Line(f"{line.place}, `detail`", detail).parse(_Detail)
    return detail


def _is_deeper(value: object, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in items)
