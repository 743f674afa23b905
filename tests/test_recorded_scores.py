"""Recorded scores: which line scores which answer, and the messages for files that do not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sinterlm.errors import InputError
from sinterlm.records import Message, Prompt, Response
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.recorded import NO_RECORDED_SCORE, RecordedScorer

SUM = Prompt("sum", (Message("user", "What is 2 plus 3?"),))
POEM = Prompt("poem", (Message("system", "Rhyme."), Message("user", "Write a poem.")))


def answered(prompt: Prompt, content: str, *, source: str = "gemma", index: int = 0) -> Exchange:
    response = Response(f"{prompt.id}-{source}-{index}", prompt.id, source, index, content, "stop", 1, 1)
    return Exchange(prompt, response)


def write(folder: Path, *lines: Mapping[str, Any]) -> Path:
    path = folder / "scores.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def values(path: Path, *entries: Exchange, **settings: Any) -> list[float]:
    return [score.value for score in RecordedScorer(path, **settings).score(entries)]


LINES: list[dict[str, Any]] = [
    {"prompt_id": "sum", "response": "5", "score": 9},
    {"prompt_id": "sum", "response": " five\n", "score": 0.5, "passed": True},
    {"prompt": [message._asdict() for message in POEM.messages], "content": "Roses", "score": -2},
    {"prompt_id": "sum", "source": "gemma", "index": 1, "score": 3.5, "passed": False},
]
ENTRIES = [
    answered(SUM, "five"),
    answered(SUM, "5", source="smollm2", index=4),
    answered(POEM, "Roses\n"),
    answered(SUM, "5", index=1),
]


def test_an_answer_is_found_by_its_text_or_by_source_and_index(tmp_path: Path) -> None:
    """The last is gemma's second, which has its own score besides that of its text."""
    scorer = RecordedScorer(write(tmp_path, *LINES))
    scores = scorer.score(ENTRIES)
    assert [(score.value, score.passed) for score in scores] == [(0.5, True), (9.0, None), (-2.0, None), (3.5, False)]
    assert [score.response_id for score in scores] == [entry.response.id for entry in ENTRIES]
    assert {score.scorer for score in scores} == {scorer.identity}
    assert not scorer.needs_answers


def test_parquet_says_the_same(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(LINES[:2]), tmp_path / "scores.parquet")
    assert values(tmp_path / "scores.parquet", *ENTRIES[:2]) == [0.5, 9.0]


def test_a_file_of_recorded_answers_with_scores_will_do(tmp_path: Path) -> None:
    """In the file the source is the model that answered; in the run it is the name of the whole file."""
    lines = [
        {"prompt_id": "sum", "source": model, "response": text, "score": score}
        for model, text, score in (("mixtral", "5", 8), ("openchat", "six", 1))
    ]
    path = write(tmp_path, *lines)
    pooled = [answered(SUM, "5", source="pool", index=0), answered(SUM, "six", source="pool", index=1)]
    assert values(path, *pooled) == [8.0, 1.0]


def test_a_missing_score_is_an_error_that_names_the_answer(tmp_path: Path) -> None:
    path = write(tmp_path, *LINES)
    missing = [answered(SUM, "six", source="smollm2", index=3), answered(POEM, "5")]
    with pytest.raises(InputError, match=r"no score for 2 of 3 answers, e\.g\. prompt sum, source smollm2, index 3"):
        values(path, ENTRIES[0], *missing)


def test_missing_scores_can_be_set_aside(tmp_path: Path) -> None:
    scores = RecordedScorer(write(tmp_path, *LINES), missing="drop").score([ENTRIES[0], answered(SUM, "six")])
    assert scores[0].value == 0.5
    assert math.isnan(scores[1].value)
    assert (scores[1].detail["reason"], scores[1].passed) == (NO_RECORDED_SCORE, None)


def test_one_answer_has_one_score(tmp_path: Path) -> None:
    assert values(write(tmp_path, LINES[0], LINES[0]), ENTRIES[1]) == [9.0], "the same again is not a contradiction"
    path = write(tmp_path, LINES[0], {**LINES[0], "score": 8})
    with pytest.raises(InputError, match=r"line 2: scores an answer differently from .*line 1 \(8, not 9\)"):
        values(path, ENTRIES[1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt_id": "sum", "response": "5"}, r"line 1: `score` is missing; expected a finite number"),
        ({"prompt_id": "sum", "response": "5", "score": "9"}, r'`score` is "9"; expected a finite number'),
        ({"prompt_id": "sum", "response": "5", "score": True}, r"`score` is true; expected a finite number"),
        ({"prompt_id": "sum", "score": 9}, r"no `response`, nor `source` and `index`"),
        ({"prompt_id": "sum", "source": "gemma", "score": 9}, r"no `response`, nor `source` and `index`"),
        ({"response": "5", "score": 9}, r"`prompt` is missing; expected text or a list of messages"),
        ({"prompt_id": "sum", "response": "5", "score": 9, "passed": 1}, r"`passed` is 1; expected true or false"),
    ],
)
def test_a_line_of_another_shape_is_refused(tmp_path: Path, line: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        values(write(tmp_path, line), ENTRIES[0])


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no score in it"):
        values(write(tmp_path), ENTRIES[0])


def test_identity_names_content_and_rule(tmp_path: Path) -> None:
    first = RecordedScorer(write(tmp_path, LINES[0])).identity
    assert RecordedScorer(write(tmp_path, LINES[0]).rename(tmp_path / "moved.jsonl")).identity == first
    assert RecordedScorer(write(tmp_path, LINES[0]), missing="drop").identity != first
    assert RecordedScorer(write(tmp_path, LINES[1])).identity != first
